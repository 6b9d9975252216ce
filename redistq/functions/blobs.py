"""Blobs: functions and large arguments, stored once under the hash of their content, expiring.

Used by clients (put) and by the worker's handler for function calls (get). A blob is a packet of
pickling.py, bound to its kind and its name, which is a keyed hash of what is in it: whoever wrote
it, another blob in its place is refused.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any

from ..connection.broker import Broker
from ..errors import PayloadTooLarge, RedistqError, UntrustedPayload
from ..logger import logger
from ..protocol.commands import MAX_TASKS, Commands
from ..protocol.keys import DEFAULT_GROUP, QueueKeys
from .parts import LARGE
from .signing import MAX_PACKET_BYTES, Kind, Signer, is_old

log = logger("redistq.client")

BLOB_TTL_S = 7 * 86_400
"""Seconds that a blob is kept while somebody may need it: a week, as results of batches are."""
DEAD_TTL_S = 30 * 86_400
"""Seconds that those of failed tasks are kept, as the tasks are (a worker's ``dead_ttl``)."""
BRIEF_S = 600
"""Seconds that a blob is kept once its only user needs it no more."""
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

    def __init__(self, broker: Broker, keys: QueueKeys, signer: Signer) -> None:
        self._broker = broker
        self._signer = signer
        self._stored: OrderedDict[str, float] = OrderedDict()
        self._cache: OrderedDict[tuple[Kind, str], bytes] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()
        self._commands = Commands(keys, DEFAULT_GROUP)
        self._moving = threading.Lock()  # held while the server hears who needs what
        self._be_somebody()

    def _be_somebody(self) -> None:
        self._me = secrets.token_hex(8)
        self._users: Counter[str] = Counter()
        self._unneeded: set[str] = set()

    def put(
        self, kind: Kind, data: Any, keep_s: float = BLOB_TTL_S, needs: list[str] | None = None
    ) -> str:
        """Store bytes, or memory, packed and signed, unless the server has them; answers their
        name.

        It is kept for ``keep_s``. With ``needs``, to which its name is added, ``drop`` says when
        it is needed no more. Raises PayloadTooLarge beyond MAX_BLOB_BYTES.
        """
        name, now = self._signer.name_of(kind, data), time.monotonic()
        self.require((name,), needs)
        # What was stored to be kept longer (a delayed call) serves for shorter too.
        ends = now + max(keep_s, BLOB_TTL_S)
        if self._stored.get(name, -math.inf) > ends - RENEW_S:
            return name
        with self._moving:
            self._store(kind, name, data, int(max(keep_s, BLOB_TTL_S)))
            with self._lock:
                self._stored[name] = ends
                if len(self._stored) > 10_000:
                    self._stored.popitem(last=False)
        self._tell()
        return name

    def _store(self, kind: Kind, name: str, data: Any, seconds: int) -> None:
        hold = self._commands.hold(name, self._me, seconds * 1000, BRIEF_S * 1000)
        if memoryview(data).nbytes >= LARGE and self._broker.call(hold):
            return
        packet = self._signer.pack(kind, name, bytes(data))
        if len(packet) > MAX_BLOB_BYTES:
            raise PayloadTooLarge(len(packet), MAX_BLOB_BYTES, _TOO_LARGE)
        # Needed by nobody at first: should we die here, it goes soon.
        store = self._commands.store_blob(name, packet, BRIEF_S)
        for _ in range(3):
            self._broker.call(store)
            if self._broker.call(hold):
                return
        raise RedistqError(
            f"{self._broker.address} loses what it has just stored: is it full, and its "
            "maxmemory-policy not noeviction?"
        )

    def require(self, names: Iterable[str], needs: list[str] | None) -> None:
        """Blobs that were put are needed once more."""
        with self._lock:
            for name in names:
                self._users[name] += 1
                if needs is not None:
                    needs.append(name)

    def drop(self, needs: Iterable[str]) -> None:
        """What was needed is needed no more: soon the server forgets what nobody else needs."""
        with self._lock:
            for name in needs:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name]
                    self._stored.pop(name, None)
                    self._unneeded.add(name)
        self._tell()

    def keep_for_replay(self, needs: Iterable[str]) -> None:
        """What failed tasks need is kept for as long as they are kept themselves."""
        ttl_ms, brief_ms = DEAD_TTL_S * 1000, BRIEF_S * 1000
        try:
            for _ in self._broker.call_many(
                self._commands.hold(name, self._me, ttl_ms, brief_ms) for name in set(needs)
            ):
                pass
        except Exception as error:  # whoever has an error must get it
            log.debug("what failed tasks need stays for a week only: %s", error)

    def _tell(self) -> None:
        # Whoever is storing something tells of ours, too: nobody waits for a large upload.
        while self._unneeded and self._moving.acquire(blocking=False):
            try:
                with self._lock:
                    gone = [name for name in self._unneeded if name not in self._users]
                    self._unneeded.clear()
                for start in range(0, len(gone), MAX_TASKS):
                    part = gone[start : start + MAX_TASKS]
                    self._broker.call(self._commands.drop(part, self._me, BRIEF_S * 1000))
            except Exception as error:  # whoever has a result must get it
                log.debug("what nobody needs any more stays for a week: %s", error)
            finally:
                self._moving.release()

    def forget(self) -> None:
        """After the server may have lost its memory: store again what is used again."""
        with self._lock:
            self._stored.clear()

    def after_fork(self) -> None:
        """In a forked process, where a thread that is not there may have held a lock, and which is
        another user than its parent."""
        self._lock, self._moving = threading.Lock(), threading.Lock()
        self._be_somebody()
        self._stored.clear()

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
        packet: bytes | None = self._broker.call(self._commands.blob(name))
        if packet is None:
            raise BlobMissing(
                "a function or large argument of this task is no longer on the server (kept "
                f"{BLOB_TTL_S // 86_400} days); submit it again"
            )
        if is_old(packet) and digest_of(packet) != name:
            raise UntrustedPayload(f"a stored {kind} is not what its name says")
        data = self._signer.unpack(kind, name, packet, old=True)
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
