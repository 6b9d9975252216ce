"""Packets: bytes that may cross a shared server, compressed and signed, and the keys they are
signed with.

Used by clients and by the worker's handler for function calls. It never talks to a server, and
lets nothing through that is not signed with its key, unless unsigned data is allowed:
unpickling runs code that whoever wrote the bytes has chosen.

A packet is ``\\0rq2``, one byte of flags (1 compressed, 2 signed, 4 named, 8 aligned, 16 note), 32
bytes of HMAC-SHA256 when signed, zeros up to the 64th byte when aligned, and the data. No JSON text
begins with a zero byte, so the two kinds of payload cannot be taken for each other.

What is large is not copied: its packet is Pieces, and its data aligned, so that arrays can lie in
the memory that it was read into. A stored value whose packet is ``named`` has no signature beside
its name, which is one: a keyed hash of the data, which so is hashed once on each side. A ``note``
stands for data that is elsewhere (spill.py).

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
import os
import secrets
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, overload

from ..errors import ConfigurationError, PayloadTooLarge, UntrustedPayload
from ..logger import logger
from ..protocol.codec import DEFAULT_MAX_BYTES
from ..protocol.pieces import Memory, Pieces
from ..system import private
from ..system.private import ENV_KEY

log = logger("redistq.pickling")

Kind = Literal[
    "call",
    "result",
    "error",
    "argument",
    "function",
    "modules",
    "step",
    "event",
    "version",
    "items",
    "scheduled",
]
"""What a packet is; none is taken for another."""
MAGIC = b"\0rq2"
OLD_MAGIC = b"\0rq1"
_COMPRESSED = 1
_SIGNED = 2
_NAMED = 4
_ALIGNED = 8
_NOTE = 16
_MAC = 32
_USUAL = MAGIC + bytes((_SIGNED,))
"""How a packet begins that is neither compressed nor anything else out of the ordinary."""
_USUAL_DATA_AT = len(_USUAL) + _MAC
_DATA_AT = 64
"""Where the data of an aligned packet begins."""
STORED: frozenset[Kind] = frozenset({"argument", "function", "modules"})
"""Kinds whose context is their name, which ``name_of`` made of their data."""
LARGE = 65_536
"""Bytes from which a packet's data is not copied."""
COMPRESS_FROM = 16_384
"""Bytes from which compression is tried; below, the server's round trip costs more."""
_SAMPLES = 4
_SAMPLE = 1024
_LONG_SAMPLE = 32_768
_IN_A_ROW = 3
"""After so many large values of a kind that did not pay, most are judged by short samples."""
_LOOK_AGAIN = 16
"""Of how many of those one is judged by long samples all the same."""
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
    "step": DEFAULT_MAX_BYTES,
    "event": DEFAULT_MAX_BYTES,
    "version": DEFAULT_MAX_BYTES,
    "items": 4 * DEFAULT_MAX_BYTES,
    "scheduled": 32 * DEFAULT_MAX_BYTES,
}
"""Most bytes of a packet's data, whatever it was compressed to: kept when it is packed, and thus
no harm to anybody when it is unpacked."""
TOO_LARGE = (
    "give the client a place for large values (spill=), or write the data to a file or an object "
    "store that workers can read, and pass its path"
)


class Signer:
    """Packs and unpacks objects. ``key`` signs; without one only ``allow_unsigned`` lets any in."""

    def __init__(self, key: bytes | None = None, *, allow_unsigned: bool = False) -> None:
        self.key = key
        self.allow_unsigned = allow_unsigned
        self._refuse_old = os.environ.get(ENV_REFUSE_OLD, "") not in ("", "0")
        self._unpaid: dict[Kind, int] = {}  # large values in a row that did not pay
        self._macs: dict[Kind, Any] = {}
        self._name_macs: dict[Kind, Any] = {}
        self._names = b"unsigned"
        if key is not None:
            # Derived, not the key itself: what the last release signed is no signature of ours.
            for kind in get_args(Kind):
                own = hmac.digest(key, b"redistq rq2 " + kind.encode(), "sha256")
                self._macs[kind] = _keyed(own)
            self._names = hmac.digest(key, b"redistq rq2 names", "sha256")
        for stored in STORED:
            own = hmac.digest(self._names, stored.encode(), "sha256")
            self._name_macs[stored] = _keyed(own)

    def pack(self, kind: Kind, context: str, data: bytes, *, old: bool = False) -> bytes:
        """Return bytes as a packet of that kind which is good in that context alone.

        It is compressed when that pays, and signed when there is a key. ``old`` is the last
        release's format, bound to nothing.

        Raises PayloadTooLarge for what nobody would unpack.
        """
        if len(data) > _UNPACKED[kind]:
            raise PayloadTooLarge(len(data), _UNPACKED[kind], TOO_LARGE)
        pays = len(data) >= COMPRESS_FROM and self._pays(kind, data)
        return self._packed(kind, context, data, compressed=pays, old=old)

    def _packed(
        self, kind: Kind, context: str, data: bytes, *, compressed: bool, old: bool = False
    ) -> bytes:
        flags = 0
        if compressed:
            data = zlib.compress(data, 1)
            flags = _COMPRESSED
        magic = OLD_MAGIC if old else MAGIC
        if self.key is None:
            return magic + bytes((flags,)) + data
        flags |= _SIGNED
        mac = self._old_mac(flags, data) if old else self._mac(kind, context, flags, data)
        return b"".join((magic, bytes((flags,)), mac, data))

    def pack_memory(
        self, kind: Kind, context: str, parts: Sequence[Memory], *, bounded: bool = True
    ) -> bytes | Pieces:
        """As ``pack``, for data that lies in several places: what is not worth compressing is not
        copied. ``context`` is the name where that kind is STORED. What is not ``bounded`` may have
        any size."""
        if len(parts) == 1 and type(parts[0]) is bytes and len(parts[0]) < LARGE:
            return self.pack(kind, context, parts[0])
        size = sum(map(len, parts))
        fits = size <= _UNPACKED[kind]
        if bounded and not fits:
            raise PayloadTooLarge(size, _UNPACKED[kind], TOO_LARGE)
        if fits and size < LARGE:
            return self.pack(kind, context, b"".join(parts))
        if fits and self._pays(kind, max(parts, key=len)):
            return self._packed(kind, context, b"".join(parts), compressed=True)
        flags = _ALIGNED
        if self.key is None:
            return Pieces((_aligned(MAGIC + bytes((flags,))), *parts))
        if kind in STORED:
            return Pieces((_aligned(MAGIC + bytes((flags | _NAMED,))), *parts))
        flags |= _SIGNED
        mac = self._mac(kind, context, flags, *parts)
        return Pieces((_aligned(MAGIC + bytes((flags,)) + mac), *parts))

    def _pays(self, kind: Kind, data: Memory) -> bool:
        """Return whether compression is likely to save a tenth.

        Tried first on four samples of 1 kB, from the beginning to the end. Where that saves too
        little, what repeats may lie further apart: then on two of 32 kB, which takes longer than to
        send half a megabyte. Values of one kind are often alike: after three large ones in a row
        that did not pay, only one of 16 has the long samples, until one pays again.
        """
        if _saves(data, _SAMPLES, _SAMPLE):
            self._unpaid[kind] = 0
            return True
        unpaid = self._unpaid.get(kind, 0)
        large = len(data) >= LARGE
        if large and unpaid >= _IN_A_ROW and (unpaid - _IN_A_ROW) % _LOOK_AGAIN:
            self._unpaid[kind] = unpaid + 1
            return False
        pays = _saves(data, 2, _LONG_SAMPLE)
        if large:
            self._unpaid[kind] = 0 if pays else unpaid + 1
        return pays

    def pack_note(self, kind: Kind, context: str, note: bytes) -> bytes:
        """Return a packet that stands for data of that kind which is elsewhere."""
        if self.key is None:
            return b"%b%c%b" % (MAGIC, _NOTE, note)
        flags = _NOTE | _SIGNED
        return b"%b%c%b%b" % (MAGIC, flags, self._mac(kind, context, flags, note), note)

    def note_in(self, kind: Kind, context: str, packet: Memory) -> bytes | None:
        """Return what ``pack_note`` was given; None for any other packet. Raises
        UntrustedPayload."""
        if not is_note(packet):
            return None
        if packet[len(MAGIC)] & ~(_NOTE | _SIGNED):
            raise UntrustedPayload(_of_another_key(kind))
        return self.unpack(kind, context, bytes(packet), note=True)

    @overload
    def unpack(
        self, kind: Kind, context: str, packet: bytes, *, old: bool = False, note: bool = False
    ) -> bytes: ...

    @overload
    def unpack(
        self, kind: Kind, context: str, packet: Memory, *, old: bool = False, note: bool = False
    ) -> Memory: ...

    def unpack(
        self, kind: Kind, context: str, packet: Memory, *, old: bool = False, note: bool = False
    ) -> Memory:
        """Return the data of a packet of that kind for that context; raises UntrustedPayload.

        That of a bytearray is a memoryview of it, where it is not compressed. With ``old`` a
        packet of the last release will do, which says of neither.
        """
        if type(packet) is not bytes:
            packet = memoryview(packet)
        elif is_usual(packet) and self.key and not (note or self.allow_unsigned):
            found = packet[_USUAL_DATA_AT:]
            signed = self._mac(kind, context, _SIGNED, found)
            if hmac.compare_digest(packet[len(_USUAL) : _USUAL_DATA_AT], signed):
                return found
            raise UntrustedPayload(_of_another_key(kind))
        magic = bytes(packet[: len(MAGIC)])
        at = len(MAGIC) + 1
        if magic not in (MAGIC, OLD_MAGIC) or len(packet) < at:
            raise UntrustedPayload(f"this is no packet of redistq, but a {kind} is one")
        if magic == OLD_MAGIC:
            self._check_old(kind, old)
        flags = packet[at - 1]
        if bool(flags & _NOTE) is not note:
            raise UntrustedPayload(f"the {kind} is elsewhere, and none belongs there")
        if flags & _NAMED:
            data = packet[_DATA_AT:]
            if not self.allow_unsigned:
                self._check_name(kind, context, data)
        elif flags & _SIGNED:
            mac = packet[at : at + _MAC]
            data = packet[_DATA_AT if flags & _ALIGNED else at + _MAC :]
            if not self.allow_unsigned:
                if self.key is None:
                    good = b""
                elif magic == OLD_MAGIC:
                    good = self._old_mac(flags, data)
                else:
                    good = self._mac(kind, context, flags, data)
                if not hmac.compare_digest(mac, good):
                    raise UntrustedPayload(_of_another_key(kind))
        else:
            data = packet[_DATA_AT if flags & _ALIGNED else at :]
            if not self.allow_unsigned:
                raise UntrustedPayload(
                    f"this {kind} is not signed, and unpickling it would run whatever its writer "
                    f"chose; share a signing key ({ENV_KEY}, or signing_key=), or allow pickle"
                )
        return _unpacked(kind, data) if flags & _COMPRESSED else data

    def name_for(self, text: str) -> str:
        """Return a name for a result that only holders of the same key share: 160 bits as text."""
        key, person = self._names, b"result"
        return hashlib.blake2b(text.encode(), digest_size=20, key=key, person=person).hexdigest()

    def name_of(self, kind: Kind, data: Memory) -> str:
        """Return the name of a function or argument: 160 bits of HMAC-SHA256 of its content.

        Of hashes this is the fastest where processors have instructions for it, as most have.
        """
        mac = self._name_macs[kind].copy()
        mac.update(data)
        name: str = mac.hexdigest()[:40]
        return name

    def _check_name(self, kind: Kind, name: str, data: Memory) -> None:
        """Raise UntrustedPayload where data is not what a name was made of, with our key."""
        if self.key is None or kind not in STORED:
            raise UntrustedPayload(_of_another_key(kind))
        if not hmac.compare_digest(self.name_of(kind, data).encode(), name.encode()):
            raise UntrustedPayload(_of_another_key(kind))

    def _mac(self, kind: Kind, context: str, flags: int, *parts: Memory) -> bytes:
        where = context.encode("utf-8", "surrogateescape")
        mac = self._macs[kind].copy()
        mac.update(b"%d:%b%c" % (len(where), where, flags))
        for data in parts:
            mac.update(data)
        digest: bytes = mac.digest()
        return digest

    def _old_mac(self, flags: int, data: Memory) -> bytes:
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
        kind,
        ENV_REFUSE_OLD,
    )


def _of_another_key(kind: Kind) -> str:
    return (
        f"this {kind} is signed with another key, or for something else: give both sides the same "
        f"key ({ENV_KEY}, or signing_key=), or start the worker with --allow-pickle on a server "
        "that only you can write to; where the keys are the same, somebody has changed what is on "
        "the server"
    )


def _keyed(key: bytes) -> Any:
    """Return an HMAC-SHA256 with that key, to be copied. The one inside of hmac's is copied and
    updated in half the time; where there is none, hmac's own."""
    made = hmac.new(key, digestmod="sha256")
    return getattr(made, "_hmac", None) or made


def _aligned(head: bytes) -> bytes:
    return head.ljust(_DATA_AT, b"\0")


def is_note(packet: Memory) -> bool:
    """Return whether a packet says where its data is, instead of holding it."""
    if is_usual(packet):
        return False
    flags = packet[len(MAGIC) : len(MAGIC) + 1]
    return bytes(packet[: len(MAGIC)]) == MAGIC and bool(flags and flags[0] & _NOTE)


def is_old(packet: Memory) -> bool:
    """Return whether a packet is in the last release's format."""
    return packet[: len(OLD_MAGIC)] == OLD_MAGIC


def is_usual(packet: Memory) -> bool:
    """Return whether a packet is signed and holds its data, as it is: as most do."""
    return packet[: len(_USUAL)] == _USUAL


def is_packet(body: Memory) -> bool:
    """Return whether bytes are a packet of ours, of whatever worth, and no JSON."""
    return body[: len(MAGIC)] in (MAGIC, OLD_MAGIC)


def is_compressed(packet: Memory) -> bool:
    """Return whether a packet's data is larger than it looks."""
    flags = packet[len(MAGIC) : len(MAGIC) + 1]
    return bool(flags and flags[0] & _COMPRESSED)


def task_context(stream: str, task_id: str) -> str:
    """Return the context of what belongs to one task of the queue with that stream."""
    return f"{stream}\n{task_id}"  # a stream's name has no white space


def batch_context(stream: str, batch_id: str) -> str:
    """Return the context of what belongs to one batch of the queue with that stream."""
    return f"{stream}\n\n{batch_id}"  # no task's id begins with a line feed


def _unpacked(kind: Kind, data: Memory) -> bytes:
    """Return the data decompressed, but never more than a packet of that kind may hold."""
    limit = _UNPACKED[kind]
    opened = zlib.decompressobj()
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


def _saves(data: Memory, count: int, size: int) -> bool:
    """Return whether compression saves a tenth of so many samples of so many bytes at most, from
    the beginning of the data to its end."""
    size = min(size, len(data) // count)
    step = (len(data) - size) // (count - 1)
    probe = b"".join([data[step * i : step * i + size] for i in range(count)])
    return len(zlib.compress(probe, 1)) < 0.9 * len(probe)


def user_key(home: Path) -> bytes:
    """Return this user's own signing key, made on first use and readable by nobody else.

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
    """Return a signing key from an argument or the environment; None when there is none.

    Raises ConfigurationError for one that is no text or bytes, or too short to protect anything.
    """
    given = given if given is not None else os.environ.get(ENV_KEY)
    if not given:
        return None
    key = given.encode() if isinstance(given, str) else given
    if not isinstance(key, bytes) or len(key) < 16:
        raise ConfigurationError("a signing key has at least 16 bytes: secrets.token_hex(32)")
    return key
