"""Blobs: functions and large arguments, stored once under the hash of their content, expiring.

Used by clients (put) and by the worker's handler for function calls (get). A blob is a packet of
pickling.py, bound to its kind and its name, which is a keyed hash of what is in it: whoever wrote
it, another blob in its place is refused.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict
from typing import Any

from .broker import Broker
from .errors import PayloadTooLarge, UntrustedPayload
from .keys import QueueKeys
from .pickling import MAX_PACKET_BYTES, Kind, Sealer, is_old

BLOB_TTL_S = 7 * 86_400
"""Seconds that a blob is kept after it was last asked for: a week, as results of batches are."""
MAX_BLOB_BYTES = MAX_PACKET_BYTES
"""Largest argument that travels through the server (which holds at most 512 MB in a value)."""
RENEW_S = 86_400.0
"""Seconds after which a blob in use is renewed."""
_TOO_LARGE = "write the data to a file or an object store that workers can read, and pass its path"
CACHE_BYTES = 256 * 1024 * 1024


class BlobMissing(LookupError):
    """A blob has expired or was never stored."""


class Blobs:
    """Content-addressed packets of one queue; safe to use from several threads."""

    def __init__(self, broker: Broker, keys: QueueKeys, sealer: Sealer) -> None:
        self._broker, self._keys, self._sealer = broker, keys, sealer
        self._stored: OrderedDict[str, float] = OrderedDict()
        self._cache: OrderedDict[tuple[Kind, str], bytes] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def put(self, kind: Kind, data: Any, keep_s: float = BLOB_TTL_S) -> str:
        """Store bytes, or memory, packed and signed, unless the server has them; answers their
        name.

        Raises PayloadTooLarge beyond MAX_BLOB_BYTES.
        """
        name, now = self._sealer.name_of(kind, data), time.monotonic()
        # What was stored to be kept longer (a delayed call) serves for shorter too.
        ends = now + max(keep_s, BLOB_TTL_S)
        if self._stored.get(name, -math.inf) > ends - RENEW_S:
            return name
        key, seconds = self._keys.blob(name), int(max(keep_s, BLOB_TTL_S))
        packet = self._sealer.pack(kind, name, bytes(data))
        if len(packet) > MAX_BLOB_BYTES:
            raise PayloadTooLarge(len(packet), MAX_BLOB_BYTES, _TOO_LARGE)
        if not self._broker.call(("EXPIRE", key, seconds)):
            self._broker.call(("SET", key, packet, "EX", seconds))
        with self._lock:
            self._stored[name] = ends
            if len(self._stored) > 10_000:
                self._stored.popitem(last=False)
        return name

    def forget(self) -> None:
        """After the server may have lost its memory: store again what is used again."""
        with self._lock:
            self._stored.clear()

    def after_fork(self) -> None:
        """In a forked process, where a thread that is not there may have held the lock."""
        self._lock = threading.Lock()

    def argument(self, name: str) -> bytes:
        """The bytes of an argument, or of a part of one; see ``get``."""
        return self.get("argument", name)

    def get(self, kind: Kind, name: str) -> bytes:
        """The bytes of a blob, their signature checked; raises BlobMissing or UntrustedPayload.

        What was checked once is kept, up to CACHE_BYTES in all.
        """
        place = (kind, name)
        with self._lock:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
        packet: bytes | None = self._broker.call(("GET", self._keys.blob(name)))
        if packet is None:
            raise BlobMissing(
                "a function or large argument of this task is no longer on the server (kept "
                f"{BLOB_TTL_S // 86_400} days); submit it again"
            )
        if is_old(packet) and digest_of(packet) != name:
            raise UntrustedPayload(f"a stored {kind} is not what its name says")
        data = self._sealer.unpack(kind, name, packet, old=True)
        with self._lock:
            if place not in self._cache and len(data) <= CACHE_BYTES // 2:
                self._cache[place] = data
                self._cached += len(data)
                while self._cached > CACHE_BYTES:
                    _, old = self._cache.popitem(last=False)
                    self._cached -= len(old)
        return data


def digest_of(packet: bytes) -> str:
    """The name of a blob of the last release: 160 bits of BLAKE2b of its packet, as text."""
    return hashlib.blake2b(packet, digest_size=20).hexdigest()
