"""Codec: how payloads, results and errors of named tasks are sealed, and what is let in.

Given to producers, workers and monitors alike; made of stages (stages.py), or read from a file. It
never talks to a server. What belongs where is a Seal's business (sealing.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, Unreadable, UntrustedPayload
from ..protocol.checks import shown
from ..protocol.envelope import MAGIC, Header, parted
from ..system.private import read_given
from . import zstandard
from .keys import Keys
from .stages import MAC, ZSTD, Compress, Encrypt, Sign, check_mac, unzipped

ENV_CODEC = "REDISTQ_CODEC"
"""A codec's file, or its settings as JSON: for whoever is given no codec."""
REQUIRED = ("signed", "encrypted")
_SETTINGS = frozenset({"compress", "sign", "encrypt", "require"})


class Codec:
    """Compresses, encrypts and signs what belongs to named tasks: any of ``Compress``, ``Encrypt``
    and ``Sign``, each once, applied in this order.

    What is sealed is bound to its task: put in another's place it is refused. ``require`` refuses
    all that is not "signed" (or encrypted, which signs too), or not "encrypted".
    """

    __slots__ = ("_compress", "_encrypt", "_sign", "require")

    def __init__(self, *stages: Compress | Encrypt | Sign, require: str | None = None) -> None:
        found: dict[type, Any] = {}
        for stage in stages:
            if type(stage) not in (Compress, Encrypt, Sign) or type(stage) in found:
                raise ConfigurationError(
                    "a codec is made of Compress, Encrypt and Sign, each once at most, not "
                    f"{shown(stage)}"
                )
            found[type(stage)] = stage
        self._compress: Compress | None = found.get(Compress)
        self._encrypt: Encrypt | None = found.get(Encrypt)
        self._sign: Sign | None = found.get(Sign)
        if require is not None and require not in REQUIRED:
            raise ConfigurationError(f"require is {' or '.join(REQUIRED)}, not {shown(require)}")
        if (require == "encrypted" and self._encrypt is None) or (
            require == "signed" and self._sign is None and self._encrypt is None
        ):
            raise ConfigurationError(
                f"a codec that requires what is {require} needs the keys to open it: give it "
                f"{'Encrypt' if require == 'encrypted' else 'Sign or Encrypt'}"
            )
        self.require = require
        """What is refused otherwise; None: nothing."""

    # -- where it is read from -------------------------------------------------------------------

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Codec:
        """Return the codec that settings say, as a file has them; raises ConfigurationError."""
        if not isinstance(settings, Mapping) or settings.keys() - _SETTINGS:
            raise ConfigurationError(
                f"the settings of a codec are {', '.join(sorted(_SETTINGS))}: see docs/codecs.md"
            )
        stages: list[Any] = []
        if compress := settings.get("compress"):
            options = compress if isinstance(compress, Mapping) else {"algorithm": compress}
            if options.keys() - {"algorithm", "level", "least"}:
                raise ConfigurationError("compress of a codec has algorithm, level and least")
            stages.append(Compress(**options))
        if encrypt := settings.get("encrypt"):
            stages.append(Encrypt(Keys.of("encrypt", encrypt)))
        if sign := settings.get("sign"):
            stages.append(Sign(Keys.of("sign", sign)))
        return cls(*stages, require=settings.get("require"))

    @classmethod
    def from_file(cls, path: str | Path) -> Codec:
        """Return the codec that a TOML file describes; raises ConfigurationError, also when others
        can write the file."""
        import tomllib

        data = read_given(Path(path), "the codec")
        try:
            return cls.of(tomllib.loads(data.decode()))
        except ValueError as error:
            if isinstance(error, ConfigurationError):
                raise ConfigurationError(f"{path}: {error}") from None
            # Without its words, which may quote what is in the file.
            raise ConfigurationError(f"{path} is no TOML: see docs/codecs.md") from None

    @classmethod
    def from_env(cls) -> Codec | None:
        """Return the codec that REDISTQ_CODEC names, a file or JSON; None where it is not set."""
        given = os.environ.get(ENV_CODEC, "")
        if not given:
            return None
        if not given.lstrip().startswith("{"):
            return cls.from_file(given)
        try:
            found = json.loads(given)
        except ValueError:
            raise ConfigurationError(f"{ENV_CODEC} is no JSON: see docs/codecs.md") from None
        return cls.of(found)

    def settings(self) -> dict[str, Any]:
        """Return what makes the same codec again in a process of ours: it has the keys in it."""
        found: dict[str, Any] = {}
        if (compress := self._compress) is not None:
            names = ("algorithm", "level", "least")
            found["compress"] = {name: getattr(compress, name) for name in names}
        if self._encrypt is not None:
            found["encrypt"] = self._encrypt.keys.settings()
        if self._sign is not None:
            found["sign"] = self._sign.keys.settings()
        if self.require is not None:
            found["require"] = self.require
        return found

    def has(self) -> list[str]:
        """Return which keys are in it, in the words in which Unreadable says what lacks."""
        found = []
        if self._encrypt is not None:
            found += [f"encryption key {name}" for name in self._encrypt.keys.ids]
        if self._sign is not None:
            found += [f"signing key {name}" for name in self._sign.keys.ids]
        return found

    # -- sealing ---------------------------------------------------------------------------------

    def seal(
        self, where: tuple[str, ...], data: bytes, bound: str = "task", ends: str = ""
    ) -> bytes:
        """Return an envelope with data in it that opens in one place alone: ``where``, from what it
        is to whose. ``bound`` and ``ends`` stand in its header."""
        packed = None if self._compress is None else self._compress.smaller(data)
        header = Header(
            bound,
            "" if packed is None or self._compress is None else self._compress.algorithm,
            "" if self._encrypt is None else self._encrypt.keys.current,
            "" if self._sign is None else self._sign.keys.current,
            ends,
        )
        body = data if packed is None else packed
        raw = header.written()
        place = _place(where, raw)
        if self._encrypt is not None:
            body = self._encrypt.sealed(header.key, place, body)
        if self._sign is not None:
            body = self._sign.mac(header.by, place, body) + body
        return b"".join((MAGIC, raw, b"\n", body))

    def open(self, where: tuple[str, ...], envelope: bytes) -> bytes:
        """Return what is in an envelope that was sealed for that place.

        Raises Unreadable where a key is not there, and UntrustedPayload for what was made with
        another, belongs elsewhere, was changed, or is not as this codec requires.
        """
        header, raw, start = parted(envelope)
        self._check_required(header)
        body = memoryview(envelope)[start:]
        place = _place(where, raw)
        if header.by:
            if self._sign is None:
                raise Unreadable("what is signed", f"signing key {header.by}")
            wanted = self._sign.mac(header.by, place, body[MAC:])
            check_mac(bytes(body[:MAC]), wanted, header.by)
            body = body[MAC:]
        if header.key:
            if self._encrypt is None:
                raise Unreadable("what is encrypted", f"encryption key {header.key}")
            body = memoryview(self._encrypt.opened(header.key, place, body))
        data = bytes(body)
        return unzipped(header.zip, data) if header.zip else data

    def plain(self, data: bytes, what: str) -> bytes:
        """Return data that nobody has sealed; raises UntrustedPayload where that is refused."""
        if self.require is not None:
            raise UntrustedPayload(
                f"{what} is not {self.require}, as this codec requires: whoever wrote it has no "
                "codec (codec=, or REDISTQ_CODEC), or is not to be trusted"
            )
        return data

    def _check_required(self, header: Header) -> None:
        if (self.require == "encrypted" and not header.key) or (
            self.require == "signed" and not header.protected
        ):
            raise UntrustedPayload(
                f"this is {header.words()}, and the codec requires what is {self.require}: give "
                "whoever wrote it the same codec"
            )

    def __repr__(self) -> str:
        stages = (self._compress, self._encrypt, self._sign)
        words = [repr(stage) for stage in stages if stage is not None]
        if self.require is not None:
            words.append(f"require={self.require!r}")
        return f"Codec({', '.join(words)})"

    def __reduce__(self) -> Any:
        raise TypeError("a codec is not pickled: its keys would travel with whatever holds it")


def what_it_has(codec: Codec | None) -> list[str]:
    """Return what a worker with that codec can read that others may not, in the words in which
    Unreadable says what lacks."""
    found = [] if codec is None else codec.has()
    return [*found, ZSTD] if zstandard.is_there() else found


def given_or_env(codec: Codec | None) -> Codec | None:
    """Return the codec that was given, else the one of the environment; raises ConfigurationError
    for what is none."""
    if codec is not None and not isinstance(codec, Codec):
        raise ConfigurationError(
            f"codec is a redistq.Codec, such as Codec.from_file('codec.toml'), not {shown(codec)}"
        )
    if codec is None and ENV_CODEC in os.environ:
        return Codec.from_env()
    return codec


def _place(where: tuple[str, ...], header: bytes) -> bytes:
    """Return where an envelope belongs, as it is signed: no two places read the same."""
    parts = [part.encode("utf-8", "surrogatepass") for part in where]
    parts.append(header)
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)
