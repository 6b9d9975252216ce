"""Python objects as bytes that may cross a shared server: pickled, compressed, signed.

Used by clients and by the worker's handler for function calls. It never talks to a server, and
never unpickles what is not signed with its key unless it was told that anything is welcome:
unpickling runs code that whoever wrote the bytes has chosen.

A packet is ``\\0rq2``, one byte of flags (1 compressed, 2 signed), 32 bytes of HMAC-SHA256 when
signed, and the data. No JSON text begins with a zero byte, so the two kinds of payload cannot be
taken for each other.

The signature says what a packet is and where it belongs: its kind (each has a key derived from the
shared one) and its context, which is the task for calls, results and errors, and the name for
functions and arguments. So whoever can write to the server, but has no key, can put no packet in
another's place.

Packets of the last release (``\\0rq1``) say neither. They are read where the reader cannot know
that its peer was a newer one, and answered in kind: an unbound call never gets a bound answer.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import importlib
import io
import os
import pickle
import random
import secrets
import sys
import zlib
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar, Literal, get_args

from ..errors import ConfigurationError, PayloadError, PayloadTooLarge, UntrustedPayload
from ..logger import logger
from ..protocol.codec import DEFAULT_MAX_BYTES
from ..system import private
from .local_modules import IMPORTS, imported_names
from .reducers import Reducers, Sendable

log = logger("redistq.pickling")

Kind = Literal["call", "result", "error", "argument", "function", "modules"]
"""What a packet is; none is taken for another."""

MAGIC = b"\0rq2"
OLD_MAGIC = b"\0rq1"
_COMPRESSED, _SIGNED = 1, 2
_MAC = 32
_PROBE = 65_536
COMPRESS_FROM = 16_384
"""Bytes from which compression is tried; below, the server's round trip costs more."""
ENV_KEY = "REDISTQ_SIGNING_KEY"
KEY_FILE = "signing.key"
ENV_REFUSE_OLD = "REDISTQ_REFUSE_RQ1"
"""Set to 1: packets of the last release are refused."""

MAX_PACKET_BYTES = 256 * 1024 * 1024
"""Largest packet that travels through the server (which holds at most 512 MB in a value)."""
_UNPACKED: dict[Kind, int] = {
    "call": 32 * DEFAULT_MAX_BYTES,
    "error": 8 * DEFAULT_MAX_BYTES,
    "result": 4 * MAX_PACKET_BYTES,
    "argument": 4 * MAX_PACKET_BYTES,
    "function": 4 * MAX_PACKET_BYTES,
    "modules": 4 * MAX_PACKET_BYTES,
}
"""Most bytes of a packet's data, whatever it was compressed to: kept when it is packed, and thus
no harm to anybody when it is unpacked."""

_PLAIN = (int, float, str, bytes, bool, type(None), complex)


class Signer:
    """Packs and unpacks objects. ``key`` signs; without one only ``allow_unsigned`` lets any in."""

    def __init__(self, key: bytes | None = None, *, allow_unsigned: bool = False) -> None:
        self.key, self.allow_unsigned = key, allow_unsigned
        self._refuse_old = os.environ.get(ENV_REFUSE_OLD, "") not in ("", "0")
        self._macs: dict[Kind, Any] = {}
        self._names = b"unsigned"
        if key is not None:
            # Derived, not the key itself: what the last release signed is no signature of ours.
            for kind in get_args(Kind):
                own = hmac.digest(key, b"redistq rq2 " + kind.encode(), "sha256")
                self._macs[kind] = hmac.new(own, digestmod="sha256")
            self._names = hmac.digest(key, b"redistq rq2 names", "sha256")

    def pack(self, kind: Kind, context: str, data: bytes, *, old: bool = False) -> bytes:
        """Bytes as a packet of that kind which is good in that context alone: compressed when that
        pays, signed when there is a key. ``old`` is the last release's format, bound to nothing.

        Raises PayloadTooLarge for what nobody would unpack.
        """
        if len(data) > _UNPACKED[kind]:
            raise PayloadTooLarge(len(data), _UNPACKED[kind], _TOO_LARGE)
        flags = 0
        if len(data) >= COMPRESS_FROM and _pays(data):
            data, flags = zlib.compress(data, 1), _COMPRESSED
        magic = OLD_MAGIC if old else MAGIC
        if self.key is None:
            return magic + bytes((flags,)) + data
        flags |= _SIGNED
        mac = self._old_mac(flags, data) if old else self._mac(kind, context, flags, data)
        return b"".join((magic, bytes((flags,)), mac, data))

    def unpack(self, kind: Kind, context: str, packet: bytes, *, old: bool = False) -> bytes:
        """The data of a packet of that kind for that context; raises UntrustedPayload.

        With ``old`` a packet of the last release will do, which says of neither.
        """
        magic = packet[: len(MAGIC)]
        at = len(MAGIC) + 1
        if magic not in (MAGIC, OLD_MAGIC) or len(packet) < at:
            raise UntrustedPayload(f"this is no packet of redistq, but a {kind} is one")
        if magic == OLD_MAGIC:
            self._check_old(kind, old)
        flags = packet[at - 1]
        if flags & _SIGNED:
            mac, data = packet[at : at + _MAC], packet[at + _MAC :]
            if not self.allow_unsigned:
                if self.key is None:
                    good = b""
                elif magic == OLD_MAGIC:
                    good = self._old_mac(flags, data)
                else:
                    good = self._mac(kind, context, flags, data)
                if not hmac.compare_digest(mac, good):
                    raise UntrustedPayload(
                        f"this {kind} is signed with another key, or for something else: give "
                        f"both sides the same key ({ENV_KEY}, or signing_key=), or start the "
                        "worker with --allow-pickle on a server that only you can write to; where "
                        "the keys are the same, somebody has changed what is on the server"
                    )
        else:
            data = packet[at:]
            if not self.allow_unsigned:
                raise UntrustedPayload(
                    f"this {kind} is not signed, and unpickling it would run whatever its writer "
                    f"chose; share a signing key ({ENV_KEY}, or signing_key=), or allow pickle"
                )
        return _unpacked(kind, data) if flags & _COMPRESSED else data

    def name_for(self, text: str) -> str:
        """A name for a result that only holders of the same key share: 160 bits as text."""
        return self._name(text.encode(), b"result")

    def name_of(self, kind: Kind, data: bytes) -> str:
        """The name of a function or argument: a keyed hash of its content, 160 bits as text."""
        return self._name(data, kind.encode())

    def _name(self, data: bytes, person: bytes) -> str:
        return hashlib.blake2b(data, digest_size=20, key=self._names, person=person).hexdigest()

    def _mac(self, kind: Kind, context: str, flags: int, data: bytes) -> bytes:
        where = context.encode("utf-8", "surrogateescape")
        mac = self._macs[kind].copy()
        mac.update(b"%d:%b%c" % (len(where), where, flags))
        mac.update(data)
        digest: bytes = mac.digest()
        return digest

    def _old_mac(self, flags: int, data: bytes) -> bytes:
        assert self.key is not None
        mac = hmac.new(self.key, bytes((flags,)), "sha256")
        mac.update(data)
        return mac.digest()

    def _check_old(self, kind: Kind, wanted: bool) -> None:
        if not wanted:
            raise UntrustedPayload(
                f"this {kind} is signed as the last release did, for any task (rq1), and was sent "
                "by this one: somebody has changed what is on the server"
            )
        if self._refuse_old:
            raise UntrustedPayload(
                f"this {kind} is in the last release's format (rq1), which {ENV_REFUSE_OLD} "
                "refuses: upgrade redistq where it came from"
            )
        _warn_of_old(kind)


@functools.cache
def _warn_of_old(kind: Kind) -> None:
    log.warning(
        "read the %s of a task in the last release's format (rq1), bound to none: upgrade clients "
        "and workers, and then set %s=1: the next release will not read it",
        *(kind, ENV_REFUSE_OLD),
    )


def is_old(packet: bytes) -> bool:
    """Whether a packet is in the last release's format."""
    return packet[: len(OLD_MAGIC)] == OLD_MAGIC


def is_packet(body: bytes) -> bool:
    """Whether bytes are a packet of ours, of whatever worth, and no JSON."""
    return body[: len(MAGIC)] in (MAGIC, OLD_MAGIC)


def task_context(stream: str, task_id: str) -> str:
    """The context of what belongs to one task of the queue with that stream."""
    return f"{stream}\n{task_id}"  # a stream's name has no white space


_TOO_LARGE = "write the data to a file or an object store that workers can read, and pass its path"


def _unpacked(kind: Kind, data: bytes) -> bytes:
    """Decompressed, but never more than a packet of that kind may hold."""
    limit, opened = _UNPACKED[kind], zlib.decompressobj()
    try:
        whole = opened.decompress(data, limit + 1)
    except zlib.error as error:
        raise UntrustedPayload(f"this {kind} is damaged: {error}") from error
    if len(whole) <= limit and not opened.eof:
        raise UntrustedPayload(f"this {kind} is damaged: its end is missing")
    if len(whole) > limit:
        raise UntrustedPayload(
            f"this {kind} holds more than the {limit:,} bytes that redistq ever packs in one"
        )
    return whole


def _pays(data: bytes) -> bool:
    """Whether compression is likely to save a tenth: tried on the first and a middle part."""
    middle = len(data) // 2
    probe = data[: _PROBE // 2] + data[middle : middle + _PROBE // 2]
    return len(zlib.compress(probe, 1)) < 0.9 * len(probe)


class Seen:
    """What a pickle refers to: ``modules`` that it needs where it is read, or that its functions
    import, and random ``generators`` that it holds by value."""

    __slots__ = ("generators", "modules")

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.generators: list[Any] = []


def dump(value: Any, seen: Seen | None = None) -> bytes:
    """Any object as a pickle of protocol 5; what ``__main__`` defines travels by value.

    ``seen`` is told what it refers to. Raises PayloadError naming the part that cannot be pickled.
    """
    try:
        if _is_plain(value):
            return pickle.dumps(value, 5)
        return by_value(value, seen)
    except Exception as error:
        raise PayloadError(what_cannot(value, error)) from error


def by_value(value: Any, seen: Seen | None = None) -> bytes:
    """Any object as cloudpickle writes it; raises whatever its parts raise."""
    file = io.BytesIO()
    own = pickler()(file, 5)
    own.seen = seen
    own.dump(value)
    return file.getvalue()


@functools.cache
def pickler() -> Any:
    """cloudpickle's pickler, which leaves functions the name of the file they stand in.

    From 3.1.3 on cloudpickle writes ``<dynamic-code>`` instead, and a traceback from a worker would
    show neither the file nor the line's text.
    """
    import cloudpickle

    reduce = cloudpickle.Pickler.dispatch_table[CodeType]
    decide = cloudpickle.Pickler.reducer_override

    def with_file(code: CodeType) -> Any:
        make, values, *rest = reduce(code)
        named = (code.co_filename if value == "<dynamic-code>" else value for value in values)
        return (make, tuple(named), *rest)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = Reducers(
            {CodeType: with_file}, cloudpickle.Pickler.dispatch_table
        )
        seen: Seen | None = None

        def reducer_override(self, obj: Any) -> Any:
            kind, seen = type(obj), self.seen
            if kind is FunctionType or kind is type:
                how = decide(self, obj)
                if seen is not None and how is NotImplemented:
                    seen.modules.add(obj.__module__)  # by its name, so it is imported there
                return how
            if kind is CodeType:
                if seen is not None and IMPORTS in obj.co_code:
                    seen.modules.update(imported_names(obj))
                return NotImplemented
            if kind is ModuleType:
                if seen is not None:
                    seen.modules.add(obj.__name__)
                return NotImplemented
            if issubclass(kind, random.Random) or kind.__module__ in _RANDOM_MODULES:
                if (where := _global_generator(obj)) is not None:
                    return where
                if seen is not None and is_generator(obj):
                    seen.generators.append(obj)
            how = decide(self, obj)
            if seen is not None and how is NotImplemented and issubclass(kind, type):
                seen.modules.add(obj.__module__)  # a class of another metaclass
            return how

    return Pickler


_RANDOM_MODULES = frozenset({"numpy.random._generator", "numpy.random.mtrand", "torch", "torch._C"})


def is_generator(value: Any) -> bool:
    """Whether a value is a generator of random numbers, whose copies repeat each other."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__}
    return not names.isdisjoint(
        {
            "random.Random",
            "numpy.random._generator.Generator",
            "numpy.random.mtrand.RandomState",
            "torch._C.Generator",
            "torch.Generator",
        }
    ) and not isinstance(value, random.SystemRandom)


def _global_generator(value: Any) -> Any:
    """How to refer to the generator behind ``random.random`` or ``numpy.random.rand``: each
    process has one of its own, seeded anew, and a copy of ours would repeat itself in all."""
    if value is getattr(random, "_inst", None):
        return (_attribute_of, ("random", "_inst"))
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is not None and value is getattr(mtrand, "_rand", None):
        return (_attribute_of, ("numpy.random.mtrand", "_rand"))
    return None


def _attribute_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def error_by_value(error: BaseException, limit: int) -> bytes:
    """An exception in at most about ``limit`` bytes, with its own type; parts that cannot be sent,
    or are large, as text. Raises whatever its type raises when that cannot be sent."""
    try:
        whole = by_value(error)
        if len(whole) <= limit:
            return whole
    except Exception:
        pass  # an open connection or a lock, kept as an attribute

    def is_small(value: Any) -> bool:
        try:
            return len(by_value(value)) <= limit // 8
        except Exception:
            return False

    return by_value(Sendable(error, is_small))


def load(data: bytes) -> Any:
    """The object again. Only for data that ``Signer.unpack`` let through."""
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
    """This user's own signing key, made on first use in ``home`` and readable by nobody else.

    Raises ConfigurationError for a folder or a key that others can write, and where none can be
    made.
    """
    home = private.whole(home)
    path = home / KEY_FILE
    try:
        private.make_folder(home)
        folder = private.open_folder(home)
        try:
            key = _made_key(folder, path)
        finally:
            if folder >= 0:
                os.close(folder)
    except OSError as error:
        raise ConfigurationError(
            f"no signing key can be kept in {home} ({error}): set {ENV_KEY}, pass signing_key=, or "
            f"set {private.ENV_HOME} to a folder of your own"
        ) from error
    if len(key) < 16:
        raise ConfigurationError(f"{path} is damaged: delete it, and a new key is made")
    return key


def _made_key(folder: int, path: Path) -> bytes:
    while True:
        try:
            return private.read_secret(folder, path.name, path)
        except FileNotFoundError:
            # When another process was first, theirs counts.
            with contextlib.suppress(FileExistsError):
                private.make_secret(folder, path.name, path, secrets.token_bytes(32))


def key_from(given: str | bytes | None) -> bytes | None:
    """A signing key from an argument or the environment; None when there is none.

    Raises ConfigurationError for one that is no text or bytes, or too short to protect anything.
    """
    given = given if given is not None else os.environ.get(ENV_KEY)
    if not given:
        return None
    key = given.encode() if isinstance(given, str) else given
    if not isinstance(key, bytes) or len(key) < 16:
        raise ConfigurationError("a signing key has at least 16 bytes: secrets.token_hex(32)")
    return key


PYTHON = (sys.version_info.major, sys.version_info.minor)
