"""Blobs: functions and large arguments, stored once under the hash of their content, expiring.

Used by clients (``put``) and by the worker's handler for function calls (``get``). A blob is a
packet of signing.py, bound to its kind and its name, which is a keyed hash of what is in it:
whoever wrote it, another blob in its place is refused.

A hundred calls that each carry one array inside a dict, a bound method, a closure or joblib's
batches would else carry a hundred copies. So ``dump_parted`` leaves the large parts of an object
out of its pickle, wherever in it they stand, and ``load_whole`` puts them in again. Parts are the
memory of arrays (whatever hands its memory to pickle protocol 5: numpy, pandas, scipy, Arrow) and
long ``bytes`` and ``str``; an object that occurs twice in one pickle stays one object.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import pickle
import secrets
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from ..connection.broker import Broker
from ..errors import PayloadError, PayloadTooLarge, RedistqError, UntrustedPayload
from ..logger import logger
from ..protocol.commands import MAX_TASKS, Command, Commands
from ..protocol.keys import DEFAULT_GROUP, QueueKeys
from ..protocol.pieces import Memory, Pieces
from . import spill as spilled
from .pickling import Seen, load, pickler, what_cannot
from .signing import MAX_PACKET_BYTES, TOO_LARGE, Kind, Signer, is_old
from .spill import Spill

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
CACHE_BYTES = 256 * 1024 * 1024
"""Most bytes of blobs, and of functions, that a worker process keeps."""
_REMEMBERED = 10_000
"""Names of which it is remembered that they were dropped, or lent, once."""
DEAR = 8 * 1024 * 1024
"""Bytes from which an argument is dear to send, as is one that was dropped and is put again. It is
asked first whether the server has it, and it is kept there briefly when nobody needs it any more.
All others are sent at once, and go with their last call: arrays that one call takes each would fill
the server."""
_DROP_MANY = 32
"""Blobs that are dropped together while others are needed still."""
LARGE = 64 * 1024
"""Parts, and arguments, of this many bytes or more are stored once."""

Store = Callable[[Any], str]
"""Stores a part, given as bytes or as its memory, and returns the name of its content."""


class BlobMissing(LookupError):
    """A blob has expired or was never stored."""


class Blobs:
    """Content-addressed packets of one queue; safe to use from several threads."""

    def __init__(
        self, broker: Broker, keys: QueueKeys, signer: Signer, spill: Spill | None = None
    ) -> None:
        """``spill`` says where large arguments go instead of to the server."""
        self._broker = broker
        self._signer = signer
        self._spill = spill
        self._stream = keys.stream
        self._stored: OrderedDict[str, float] = OrderedDict()
        self._cache: OrderedDict[tuple[Kind, str], Memory] = OrderedDict()
        self._lent: OrderedDict[str, None] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()
        self._commands = Commands(keys, DEFAULT_GROUP)
        self._moving = threading.Lock()  # held while a thread stores or drops
        self._begin_as_user()

    def _begin_as_user(self) -> None:
        self._me = secrets.token_hex(8)
        self._later: deque[list[str]] = deque()
        self._users: Counter[str] = Counter()
        self._arguments: dict[str, bool] = {}  # those among them, and whether they are dear
        self._dropped: OrderedDict[str, None] = OrderedDict()  # arguments that were, once
        self._failed: OrderedDict[str, None] = OrderedDict()  # for whose calls no drop waits
        self._left: OrderedDict[str, None] = OrderedDict()  # what others need
        self._unneeded: dict[str, int] = {}  # how long they are kept, ms

    def put(
        self,
        kind: Kind,
        data: Any,
        keep_s: float = BLOB_TTL_S,
        needs: list[str] | None = None,
        name: str = "",
    ) -> str:
        """Store bytes, or memory, packed and signed, unless the server has them; return their
        name.

        It is kept for ``keep_s``. With ``needs``, to which its name is added, ``drop`` says when
        it is needed no more. ``name`` is the one that it returned for the same bytes before.
        Raises PayloadTooLarge beyond MAX_BLOB_BYTES.
        """
        name = name or self._signer.name_of(kind, data)
        now = time.monotonic()
        self.require((name,), needs)
        dear = kind != "argument" or self._is_dear(name, memoryview(data).nbytes)
        # What was stored to be kept longer (a delayed call) serves for shorter too.
        ends = now + max(keep_s, BLOB_TTL_S)
        if self._stored.get(name, -math.inf) > ends - RENEW_S:
            return name
        with self._moving:
            self._store(kind, name, data, int(max(keep_s, BLOB_TTL_S)), dear)
            with self._lock:
                self._stored[name] = ends
                if len(self._stored) > _REMEMBERED:
                    self._stored.popitem(last=False)
        return name

    def _is_dear(self, name: str, size: int) -> bool:
        """Note that an argument is put; return whether it is dear to send."""
        with self._lock:
            dear = size >= DEAR or name in self._dropped
            if name not in self._failed:
                self._arguments[name] = dear
        return dear

    def _store(self, kind: Kind, name: str, data: Any, seconds: int, dear: bool) -> None:
        hold = self._commands.hold(name, self._me, seconds * 1000, BRIEF_S * 1000)
        if dear and memoryview(data).nbytes >= LARGE and self._broker.call(hold):
            return
        packet: bytes | Pieces
        if self._spill is not None and kind == "argument" and self._spill.takes_argument(len(data)):
            file = spilled.argument_file(self._stream, name)
            packet = spilled.put(self._spill, self._signer, kind, name, (data,), file)
        else:
            packet = self._signer.pack_memory(kind, name, (data,))
        if len(packet) > MAX_BLOB_BYTES:
            raise PayloadTooLarge(len(packet), MAX_BLOB_BYTES, TOO_LARGE)
        # Needed by nobody at first: should we die here, it goes soon.
        store = self._commands.store_blob(name, packet, BRIEF_S)
        drops = self._drops()
        for _ in range(3):
            # In one round trip, and what nobody needs any more with it.
            if self._broker.call_all((store, hold, *drops))[1]:
                return
        raise RedistqError(
            f"{self._broker.address} loses what it has just stored: is it full, and its "
            "maxmemory-policy not noeviction?"
        )

    def require(self, names: Iterable[str], needs: list[str] | None) -> None:
        """Count one more use of blobs that were put."""
        with self._lock:
            for name in names:
                self._users[name] += 1
                if needs is not None:
                    needs.append(name)

    def use(self, names: Sequence[str], keep_s: float, needs: list[str]) -> None:
        """Count one more use of blobs that were put, and have them kept for ``keep_s``; raises
        BlobMissing."""
        ends = time.monotonic() + keep_s
        self.require(names, needs)
        for name in names:
            if self._stored.get(name, -math.inf) > ends - RENEW_S:
                continue
            hold = self._commands.hold(name, self._me, int(keep_s) * 1000, BRIEF_S * 1000)
            with self._moving:
                if not self._broker.call(hold):
                    raise BlobMissing(name)
            with self._lock:
                self._stored[name] = ends

    def drop_later(self, needs: list[str]) -> None:
        """As ``drop``, with the next use of this; safe where the garbage collector calls."""
        self._later.append(needs)

    def drop(self, needs: Iterable[str], *, together: bool = False) -> None:
        """Count one use less; what nobody else needs goes, or expires soon.

        ``together``: with what is needed no more a moment later, where more is in use. Whoever says
        so calls ``drop_unneeded`` after a while.
        """
        while self._later:
            with contextlib.suppress(IndexError):  # another thread was quicker
                needs = [*needs, *self._later.popleft()]
        with self._lock:
            for name in needs:
                self._users[name] -= 1
                if not self._users[name]:
                    dear = self._forget_user(name)
                    self._stored.pop(name, None)
                    if name not in self._left:
                        self._unneeded[name] = BRIEF_S * 1000 if dear else 0
            wait = together and self._arguments and len(self._unneeded) < _DROP_MANY
        if not wait:
            self.drop_unneeded()

    def _forget_user(self, name: str) -> bool:
        """Forget that somebody needs a blob; return whether it is dear to send."""
        del self._users[name]
        dear = self._arguments.pop(name, True)
        if not dear:
            _remember(self._dropped, name)
        return dear

    def leave(self, needs: Iterable[str]) -> None:
        """Count one use less of what others need from now on: it is kept for its time."""
        with self._lock:
            for name in needs:
                self._users[name] -= 1
                _remember(self._left, name)
                if not self._users[name]:
                    self._forget_user(name)

    def keep_for_replay(self, needs: Iterable[str]) -> None:
        """Keep what failed tasks need for as long as they are kept themselves."""
        ttl_ms = DEAD_TTL_S * 1000
        names = set(needs)
        with self._lock:
            for name in names:
                _remember(self._failed, name)
                self._arguments.pop(name, None)
        try:
            for _ in self._broker.call_many(
                self._commands.hold(name, self._me, ttl_ms, BRIEF_S * 1000) for name in names
            ):
                pass
        except Exception as error:  # whoever has an error must get it
            log.debug("what failed tasks need stays for a week only: %s", error)

    def drop_unneeded(self, deadline: float | None = None) -> None:
        """Tell the server what nobody needs any more, unless a thread stores something just now:
        no thread waits for a large upload, and the next to store tells it too. ``deadline``: as of
        Broker.call."""
        while self._unneeded and self._moving.acquire(blocking=False):
            try:
                for drop in self._drops():
                    self._broker.call(drop, deadline)
            except Exception as error:  # whoever has a result must get it
                log.debug("what nobody needs any more stays for a week: %s", error)
            finally:
                self._moving.release()

    def _drops(self) -> list[Command]:
        """Return what tells the server what nobody needs any more."""
        with self._lock:
            gone = {name: ms for name, ms in self._unneeded.items() if name not in self._users}
            self._unneeded.clear()
        drops = []
        for kept_ms in set(gone.values()):
            names = [name for name, ms in gone.items() if ms == kept_ms]
            for start in range(0, len(names), MAX_TASKS):
                part = names[start : start + MAX_TASKS]
                drops.append(self._commands.drop(part, self._me, kept_ms))
        return drops

    def forget(self) -> None:
        """After the server may have lost its data: store again what is used again.

        It may have lost the end of a call as well, and make that call again: what nobody needs any
        more, and the server has not been told of, is kept briefly.
        """
        with self._lock:
            self._stored.clear()
            self._unneeded = dict.fromkeys(self._unneeded, BRIEF_S * 1000)

    def after_fork(self) -> None:
        """Begin anew in a forked process, which is another user than its parent.

        A thread that is not there any more may have held a lock.
        """
        self._lock = threading.Lock()
        self._moving = threading.Lock()
        self._begin_as_user()
        self._stored.clear()

    def argument(self, name: str, own: bool = False) -> Memory:
        """Return the bytes of an argument, or of a part of one; see ``get``.

        With ``own`` they are the caller's, who may change them. What only one call takes, which is
        the usual, is not copied: kept for others is what is asked for a second time.
        """
        if not own:
            return self.get("argument", name)
        with self._lock:
            known = self._cache.get(("argument", name))
            again = known is not None or name in self._lent
            _remember(self._lent, name)
        if again:
            return bytearray(self.get("argument", name))
        return self._read("argument", name)

    def get(self, kind: Kind, name: str) -> Memory:
        """Return the bytes of a blob, their signature checked; raises BlobMissing or
        UntrustedPayload.

        What was checked once is kept, up to CACHE_BYTES in all.
        """
        place = (kind, name)
        with self._lock:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
        data = self._read(kind, name)
        with self._lock:
            if place not in self._cache and len(data) <= CACHE_BYTES // 2:
                self._cache[place] = data
                self._cached += len(data)
                while self._cached > CACHE_BYTES:
                    _, old = self._cache.popitem(last=False)
                    self._cached -= len(old)
        return data

    def _read(self, kind: Kind, name: str) -> Memory:
        packet: bytes | bytearray | None = self._broker.call(self._commands.blob(name))
        if packet is None:
            raise BlobMissing(
                "a function or large argument of this task is no longer on the server (kept until "
                f"it has succeeded, {BLOB_TTL_S // 86_400} days at most); submit it again"
            )
        if is_old(packet) and digest_of(packet) != name:
            raise UntrustedPayload(f"a stored {kind} is not what its name says")
        return spilled.opened(self._signer, kind, name, packet, old=True)


def _remember(names: OrderedDict[str, None], name: str) -> None:
    names[name] = None
    if len(names) > _REMEMBERED:
        names.popitem(last=False)


def digest_of(packet: Memory) -> str:
    """Return the name of a blob of the last release: 160 bits of BLAKE2b of its packet, as text."""
    return hashlib.blake2b(packet, digest_size=20).hexdigest()


# -- large parts of objects ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parted:
    """The pickle of an object some of whose parts are stored elsewhere."""

    data: bytes


def dump_parted(
    value: Any, store: Store, seen: Seen | None = None, *, shared: bool = False
) -> Parted:
    """Return a pickle of protocol 5 without the large parts of ``value``, which are stored.

    What it refers to is added to ``seen``. ``shared``: many calls will take it, so who reads it
    keeps it. Raises PayloadError naming what cannot be pickled, and
    whatever ``store`` raises.
    """
    file = io.BytesIO()
    try:
        own = _parting_pickler()(file, store, "memory" if shared else "own")
        own.seen = seen
        own.dump(value)
    except RedistqError:
        raise
    except Exception as error:  # whatever the value's parts raise
        raise PayloadError(what_cannot(value, error)) from error
    return Parted(file.getvalue())


@functools.cache
def _parting_pickler() -> Any:
    class Pickler(pickler()):  # type: ignore[misc]
        def __init__(self, file: Any, store: Store, writable: str) -> None:
            super().__init__(file, 5)
            self._store = store
            self._writable = writable

        # Asked of every object; most are none of these three.
        def persistent_id(self, obj: Any) -> tuple[str, str] | None:
            kind = type(obj)
            if kind is pickle.PickleBuffer:
                try:
                    memory = obj.raw()
                except BufferError:
                    return None  # not in one piece: pickle copies it
                if memory.nbytes < LARGE:
                    return None
                name = self._store(memory)
                return ("constant" if memory.readonly else self._writable, name)
            if kind is bytes and len(obj) >= LARGE:
                return ("bytes", self._store(obj))
            if kind is str and len(obj) >= LARGE:
                return ("text", self._store(obj.encode("utf-8", "surrogatepass")))
            return None

    return Pickler


class Fetch(Protocol):
    """Finds the bytes of an argument, or of a part of one, by their name. With ``own`` they are the
    caller's to change."""

    def __call__(self, name: str, own: bool = False) -> Memory:
        """Return them."""


_fetch: ContextVar[Fetch] = ContextVar("fetch")


def load_whole(data: Memory, fetch: Fetch) -> Any:
    """Return the object of a pickle, with its parts put in where it was parted, and the values that
    were scattered before."""
    token = _fetch.set(fetch)
    try:
        value = load(data)
        return value if type(value) is not Parted else load_parted(value, fetch)
    finally:
        _fetch.reset(token)


def load_parted(parted: Parted, fetch: Fetch) -> Any:
    """Return the object, with its parts put in."""
    token = _fetch.set(fetch)
    try:
        return _Unpickler(io.BytesIO(parted.data), fetch).load()
    finally:
        _fetch.reset(token)


def stored_value(name: str) -> Any:
    """Return a value that was scattered, where an object is loaded in which it stands."""
    fetch = _fetch.get()
    return load_whole(fetch(name), fetch)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, fetch: Fetch) -> None:
        super().__init__(file)
        self._fetch = fetch

    def persistent_load(self, pid: tuple[str, str]) -> Any:
        kind, name = pid
        if kind == "own":
            data = self._fetch(name, own=True)
            return bytearray(data) if memoryview(data).readonly else data
        data = self._fetch(name)
        if kind == "memory":
            return bytearray(data)  # a copy: whoever changes it changes only their own
        if kind == "constant":
            return memoryview(data).toreadonly()
        return str(data, "utf-8", "surrogatepass") if kind == "text" else bytes(data)
