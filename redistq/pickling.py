"""Python objects as bytes that may cross a shared server: pickled, compressed, signed.

Used by clients and by the worker's handler for function calls. It never talks to a server, and
never unpickles what is not signed with its key unless it was told that anything is welcome:
unpickling runs code that whoever wrote the bytes has chosen.

A packet is ``\\0rq1``, one byte of flags (1 compressed, 2 signed), 32 bytes of HMAC-SHA256 over
flags and data when signed, and the data. No JSON text begins with a zero byte, so the two kinds of
payload cannot be taken for each other.
"""

from __future__ import annotations

import functools
import hmac
import io
import os
import pickle
import secrets
import sys
import zlib
from collections import ChainMap
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

from .errors import ConfigurationError, PayloadError, UntrustedPayload

MAGIC = b"\0rq1"
_COMPRESSED, _SIGNED = 1, 2
_MAC = 32
_PROBE = 65_536
COMPRESS_FROM = 16_384
"""Bytes from which compression is tried; below, the server's round trip costs more."""
ENV_KEY = "REDISTQ_SIGNING_KEY"

_PLAIN = (int, float, str, bytes, bool, type(None), complex)


class Sealer:
    """Packs and unpacks objects. ``key`` signs; without one only ``allow_unsigned`` lets any in."""

    def __init__(self, key: bytes | None = None, *, allow_unsigned: bool = False) -> None:
        self.key, self.allow_unsigned = key, allow_unsigned

    def pack(self, data: bytes) -> bytes:
        """Bytes as a packet: compressed when that pays, signed when there is a key."""
        flags = 0
        if len(data) >= COMPRESS_FROM and _pays(data):
            data, flags = zlib.compress(data, 1), _COMPRESSED
        if self.key is None:
            return MAGIC + bytes((flags,)) + data
        head = bytes((flags | _SIGNED,))
        return b"".join((MAGIC, head, self._mac(head, data), data))

    def unpack(self, packet: bytes) -> bytes:
        """The bytes of a packet, its signature checked; raises UntrustedPayload."""
        if packet[: len(MAGIC)] != MAGIC or len(packet) < len(MAGIC) + 1:
            raise UntrustedPayload("this is no packet of redistq")
        at = len(MAGIC)
        head, flags = packet[at : at + 1], packet[at]
        at += 1
        if flags & _SIGNED:
            mac, data = packet[at : at + _MAC], packet[at + _MAC :]
            if self.key is not None and hmac.compare_digest(mac, self._mac(head, data)):
                pass
            elif not self.allow_unsigned:
                raise UntrustedPayload(
                    "the payload is signed with another key; give both sides the same one "
                    f"({ENV_KEY}, or signing_key=), or start the worker with --allow-pickle on a "
                    "server that only you can write to"
                )
        else:
            data = packet[at:]
            if not self.allow_unsigned:
                raise UntrustedPayload(
                    "the payload is not signed, and unpickling it would run whatever its writer "
                    f"chose; share a signing key ({ENV_KEY}, or signing_key=), or allow pickle"
                )
        return zlib.decompress(data) if flags & _COMPRESSED else data

    def name_for(self, text: str) -> str:
        """A name for a result that only holders of the same key share: 160 bits as text."""
        return hmac.new(self.key or b"unsigned", text.encode(), "sha256").hexdigest()[:40]

    def _mac(self, head: bytes, data: bytes) -> bytes:
        assert self.key is not None
        mac = hmac.new(self.key, head, "sha256")
        mac.update(data)
        return mac.digest()


def _pays(data: bytes) -> bool:
    """Whether compression is likely to save a tenth: tried on the first and a middle part."""
    middle = len(data) // 2
    probe = data[: _PROBE // 2] + data[middle : middle + _PROBE // 2]
    return len(zlib.compress(probe, 1)) < 0.9 * len(probe)


def dump(value: Any) -> bytes:
    """Any object as a pickle of protocol 5; what ``__main__`` defines travels by value.

    Raises PayloadError naming the part that cannot be pickled.
    """
    try:
        if _is_plain(value):
            return pickle.dumps(value, 5)
        return by_value(value)
    except Exception as error:
        raise PayloadError(what_cannot(value, error)) from error


def by_value(value: Any) -> bytes:
    """Any object as cloudpickle writes it; raises whatever its parts raise."""
    file = io.BytesIO()
    _pickler()(file, 5).dump(value)
    return file.getvalue()


@functools.cache
def _pickler() -> Any:
    """cloudpickle's pickler, which leaves functions the name of the file they stand in.

    From 3.1.3 on cloudpickle writes ``<dynamic-code>`` instead, and a traceback from a worker would
    show neither the file nor the line's text.
    """
    import cloudpickle

    reduce = cloudpickle.Pickler.dispatch_table[CodeType]

    def with_file(code: CodeType) -> Any:
        make, values, *rest = reduce(code)
        named = (code.co_filename if value == "<dynamic-code>" else value for value in values)
        return (make, tuple(named), *rest)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(
            {CodeType: with_file}, cloudpickle.Pickler.dispatch_table
        )

    return Pickler


def load(data: bytes) -> Any:
    """The object again. Only for data that ``Sealer.unpack`` let through."""
    return pickle.loads(data)


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Whether the standard pickler can be used: nothing in it can refer to ``__main__``."""
    if type(value) in _PLAIN:  # not subclasses, which a notebook's cell may have defined
        return True
    if depth and type(value) in (tuple, list) and len(value) <= 64:
        return all(_is_plain(item, depth - 1) for item in value)
    if depth and type(value) is dict and len(value) <= 64:
        return all(_is_plain(k, 0) and _is_plain(v, depth - 1) for k, v in value.items())
    if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        return not value.dtype.hasobject
    return False


def what_cannot(value: Any, error: BaseException | None, name: str = "") -> str:
    """Names the innermost object that cannot be pickled and the way to it."""
    path = _culprit(value, name, 6)
    where = f" at {path[0]}: {path[1]}" if path else ""
    return (
        f"the function or its arguments cannot be sent to a worker{where} ({error}); open files, "
        "connections and locks inside the function instead of passing them"
    )


def can_be_sent(value: Any) -> bool:
    """Whether a value can be pickled; found out by trying."""
    try:
        by_value(value)
    except Exception:
        return False
    return True


def _culprit(value: Any, path: str, depth: int) -> tuple[str, str] | None:
    if depth == 0 or can_be_sent(value):
        return None
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        parts = [(f"[{key!r:.40}]", item) for key, item in list(value.items())[:100]]
    elif isinstance(value, tuple | list | set):
        parts = [(f"[{i}]", item) for i, item in enumerate(list(value)[:100])]
    elif hasattr(value, "__code__"):
        code, cells = value.__code__, value.__closure__ or ()
        names = zip(code.co_freevars, cells, strict=False)
        parts = [(f" closure {name!r}", cell.cell_contents) for name, cell in names]
        scope = value.__globals__
        parts += [(f" global {name!r}", scope[name]) for name in code.co_names if name in scope]
    elif hasattr(value, "__dict__"):
        parts = [(f".{name}", item) for name, item in vars(value).items()]
    label = path or f"{getattr(value, '__qualname__', type(value).__name__)}"
    for name, part in parts:
        if found := _culprit(part, label + name, depth - 1):
            return found
    return label, f"{type(value).__module__}.{type(value).__qualname__}"


def user_key(home: Path) -> bytes:
    """This user's own signing key, made on first use in ``home`` and readable by nobody else."""
    path = home / "signing.key"
    while True:
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = home / f".signing.key.{os.getpid()}.{secrets.token_hex(4)}"
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(draft, path)  # fails when another process was first: then theirs counts
            except FileExistsError:
                pass
            finally:
                draft.unlink()
            continue
        if len(key) < 16:
            raise ConfigurationError(f"{path} is damaged: delete it, and a new key is made")
        return key


def key_from(given: str | bytes | None) -> bytes | None:
    """A signing key from an argument or the environment; None when there is none.

    Raises ConfigurationError for one that is too short to protect anything.
    """
    given = given if given is not None else os.environ.get(ENV_KEY)
    if not given:
        return None
    key = given.encode() if isinstance(given, str) else given
    if len(key) < 16:
        raise ConfigurationError("a signing key has at least 16 bytes: secrets.token_hex(32)")
    return key


PYTHON = (sys.version_info.major, sys.version_info.minor)
