"""Blobs: functions and large arguments, stored once under the hash of their content, expiring.

Used by clients (put) and by the worker's handler for function calls (get). A blob is a packet of
pickling.py; that it is what its name says is checked, whoever wrote it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from .broker import Broker
from .errors import PayloadTooLarge, UntrustedPayload
from .keys import QueueKeys

BLOB_TTL_S = 7 * 86_400
"""Seconds that a blob is kept after it was last asked for: a week, as results of batches are."""
MAX_BLOB_BYTES = 256 * 1024 * 1024
"""Largest argument that travels through the server (which holds at most 512 MB in a value)."""
CACHE_BYTES = 256 * 1024 * 1024


class BlobMissing(LookupError):
    """A blob has expired or was never stored."""


class Blobs:
    """Content-addressed values of one queue; safe to use from several threads."""

    def __init__(self, broker: Broker, keys: QueueKeys) -> None:
        self._broker, self._keys = broker, keys
        self._known: OrderedDict[str, None] = OrderedDict()
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def put(self, packet: bytes, digest: str | None = None) -> str:
        """Store a packet unless the server has it; answers its name.

        Raises PayloadTooLarge beyond MAX_BLOB_BYTES.
        """
        if len(packet) > MAX_BLOB_BYTES:
            raise PayloadTooLarge(len(packet), MAX_BLOB_BYTES)
        name = digest or digest_of(packet)
        if name in self._known:
            return name
        key = self._keys.blob(name)
        if not self._broker.call(("EXPIRE", key, BLOB_TTL_S)):
            self._broker.call(("SET", key, packet, "EX", BLOB_TTL_S))
        self._known[name] = None
        if len(self._known) > 10_000:
            self._known.popitem(last=False)
        return name

    def forget(self) -> None:
        """After the server lost its memory: store again what is used again."""
        self._known.clear()

    def get(self, name: str) -> bytes:
        """A packet by its name; raises BlobMissing, or UntrustedPayload when it is not what its
        name says."""
        with self._lock:
            if name in self._cache:
                self._cache.move_to_end(name)
                return self._cache[name]
        packet: bytes | None = self._broker.call(("GET", self._keys.blob(name)))
        if packet is None:
            raise BlobMissing(
                "a function or large argument of this task is no longer on the server (kept "
                f"{BLOB_TTL_S // 86_400} days); submit it again"
            )
        if digest_of(packet) != name:
            raise UntrustedPayload("a stored argument is not what its name says")
        with self._lock:
            if name not in self._cache and len(packet) <= CACHE_BYTES // 2:
                self._cache[name] = packet
                self._cached += len(packet)
                while self._cached > CACHE_BYTES:
                    _, old = self._cache.popitem(last=False)
                    self._cached -= len(old)
        return packet


def digest_of(packet: bytes) -> str:
    """The name of a packet: 160 bits of BLAKE2b, as text."""
    return hashlib.blake2b(packet, digest_size=20).hexdigest()
