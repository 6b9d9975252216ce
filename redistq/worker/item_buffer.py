"""The items of one attempt on their way to the server: put by its handler, taken by the writer's
thread (item_writer.py), kept here until the server has them.

While the attempt is too far ahead its next ``yield`` waits: in the thread that runs it, where a
time limit or a wish that it ends can strike, or in the event loop without holding that up.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..errors import RedistqError
from ..logger import logger
from ..protocol.items import CHUNK_BYTES

if TYPE_CHECKING:
    from .item_writer import ItemWriter
    from .queues import WorkerQueue
    from .streaming import AttemptItems

log = logger("redistq.worker")

LATEST_S = 0.05
"""Seconds after which an item is sent, however few there are."""
MOST_AHEAD = 1024 * 1024
"""Bytes that an attempt may be ahead of the server; then its next item waits."""
MOST_TAKEN = 1024 * 1024
"""Bytes of an attempt that are taken to be sent at a time, about."""
PAUSES_S = (0.02, 0.25)
"""Seconds until a chunk is sent again for which there was no room: at first, and at most."""
PATIENCE_S = 10.0
"""Seconds that an attempt which has failed waits for its last items to be on the server."""
STEP_S = 0.1
"""Longest single wait in a handler's thread: nothing strikes it in between."""

Encode = Callable[[Any], bytes]
Join = Callable[[list[bytes], int, int], bytes]
"""Makes a chunk of items, their generation, and the index of the first."""


class Chunk:
    """Items that were taken to be sent together."""

    __slots__ = ("body", "count", "first", "size")

    def __init__(self, first: int, items: int, body: bytes, size: int) -> None:
        self.first = first
        self.count = items
        self.body = body
        self.size = size
        """Bytes that they had in the buffer."""


class Yielded:
    """The items of one attempt that the server does not have yet.

    Put by the thread or loop that runs the handler, taken by the writer's thread. Each counter is
    written by one of the two, so neither needs a lock, which an exception that strikes the
    handler's thread could leave taken.
    """

    __slots__ = (
        *("_bell", "_buffer", "_chunks", "_count", "_encode", "_failed", "_first", "_join"),
        *("_old", "_pause_s", "_put", "_sent", "_taken", "_waiter", "_waits", "_writer"),
        *("attempt", "blocked_until", "done", "ended", "fault", "generation", "index", "queue"),
        *("renewed", "since", "told", "unread_since"),
    )

    def __init__(
        self,
        attempt: AttemptItems,
        queue: WorkerQueue,
        writer: ItemWriter,
        encode: Encode,
        join: Join,
    ) -> None:
        self.attempt = attempt
        self.queue = queue
        self._writer = writer
        self._encode = encode
        self._join = join
        self.generation = 0
        """That of its items; 0 before the first: the handler may ask where to go on until then."""
        self._first = 0
        self._old = False  # whether there are items of an attempt before
        self._buffer: deque[bytes] = deque()
        self._chunks: deque[Chunk] = deque()
        self._count = 0  # items that were put
        self._put = self._taken = self._sent = 0  # bytes
        self.index = 0
        """The index of the next item to be taken."""
        self.told = 0
        """Whether the writer knows that there is something (1), and that it is much (2)."""
        self.since = 0.0
        """When it was told, or took some last."""
        self.renewed = time.monotonic()
        """When anything was sent last."""
        self.blocked_until = 0.0
        """Until when nothing is sent, for want of room."""
        self.unread_since = 0.0
        """Since when there is none; 0: there is."""
        self._pause_s = 0.0
        self.ended = False
        """Whether no more items come."""
        self._failed = False
        self.done = False
        """Whether the server has all of them."""
        self.fault: BaseException | None = None
        """Why no more are taken."""
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._waits = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    # -- the handler's side ----------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The index of the next item to be put."""
        return self._first + self._count

    def put(self, item: Any) -> None:
        """See AttemptItems.put."""
        if not self.put_now(item):
            self._wait(self.has_room, math.inf)

    def put_now(self, item: Any) -> bool:
        """See AttemptItems.put_now."""
        if self.fault is not None:
            raise self.fault
        data = self._encode(item)
        if not self.generation:
            self._decide()
        self._buffer.append(data)
        self._count += 1
        self._put += len(data)
        if not self.told:
            self.told = 1
            self.since = time.monotonic()
            self._writer.add(self)
        elif self.told == 1 and self._put - self._taken >= CHUNK_BYTES:
            self.told = 2
            self._writer.ring()
        return self._put - self._sent < MOST_AHEAD

    def _decide(self) -> None:
        generation, self._first, self._old = self.attempt.where()
        self.index = self._first
        self.generation = generation

    def has_room(self) -> bool:
        """Return whether it is not far ahead of the server."""
        return self._put - self._sent < MOST_AHEAD // 2

    def _wait(self, ready: Callable[[], bool], until: float) -> None:
        """Wait in the handler's thread; raises what ends the stream."""
        self._waits = True
        while not ready() and self.fault is None and time.monotonic() < until:
            with contextlib.suppress(Empty):
                self._bell.get(timeout=STEP_S)
        self._waits = False
        if self.fault is not None:
            raise self.fault

    def wait_for_room(self, until: float) -> None:
        """Wait until it is not far ahead, or that time has come (monotonic)."""
        self._wait(self.has_room, until)

    async def room(self) -> None:
        """See AttemptItems.room."""
        await self._await(self.has_room)

    async def _await(self, ready: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while not ready() and self.fault is None:
            woken = loop.create_future()
            self._waiter = (loop, woken)
            if not ready() and self.fault is None:  # it may have come just before
                await woken
        self._waiter = None
        if self.fault is not None:
            raise self.fault

    def end(self, failed: bool) -> int:
        """See AttemptItems.end."""
        if self._close(failed):
            try:
                self._wait(self._is_done, time.monotonic() + PATIENCE_S if failed else math.inf)
            except BaseException:
                if not failed or self.fault is None:
                    raise
            finally:
                self._leave()
        return self.index

    async def aend(self, failed: bool) -> int:
        """See AttemptItems.aend."""
        if self._close(failed):
            try:
                async with asyncio.timeout(PATIENCE_S if failed else None):
                    await self._await(self._is_done)
            except BaseException as error:
                if not failed or not (self.fault is not None or isinstance(error, TimeoutError)):
                    raise
            finally:
                self._leave()
        return self.index

    def _is_done(self) -> bool:
        return self.done

    def _close(self, failed: bool) -> bool:
        """Let no more items come; return whether the server is still to hear of some."""
        if not (failed or self.generation):
            self._decide()
        self._failed = failed
        self.ended = True
        self.blocked_until = 0.0
        if not self._count and (failed or not self._old):
            return False
        self._writer.add(self)
        return True

    def drop(self) -> None:
        """Send nothing more."""
        self.done = True
        self._writer.forget(self)

    def _leave(self) -> None:
        if not self.done and self.fault is None:
            self.fault = RedistqError("this attempt has ended")  # nothing more is sent
            log.warning("task %s: the last of what it yielded could not be sent", self.attempt.id)
        self._writer.forget(self)

    # -- the writer's side -----------------------------------------------------------------------

    def due(self, now: float) -> float:
        """Return when something of it is to be sent; infinity: there is nothing."""
        if self.done or self.fault is not None:
            return math.inf
        if self._chunks:
            return self.blocked_until
        if self.ended or (self._buffer and self._put - self._taken >= CHUNK_BYTES):
            return 0.0
        at = self.since + LATEST_S
        return at if self._buffer or now < at else math.inf

    def rows(self) -> list[tuple[Any, ...]]:
        """Return what is to be sent, as ``append_items`` takes it: the same again until it was
        answered, or what has come since. None: all there is was sent."""
        if not self._chunks:
            self._take()
        attempt = self.attempt
        # The last of them are not held up: the task ends with them.
        window = "" if self.ended or attempt.window is None else attempt.window
        life_ms = attempt.life_ms(self.ended and not self._failed)
        head = (attempt.entry, attempt.id, self.generation)
        return [
            (*head, chunk.first, chunk.count, window, attempt.keep, life_ms, chunk.body)
            for chunk in self._chunks
        ]

    def _take(self) -> None:
        ended = self.ended  # before the buffer is looked at: nothing comes after it
        self.told = 1
        self.since = time.monotonic()
        total = 0
        buffer = self._buffer
        while buffer and total < MOST_TAKEN:
            items: list[bytes] = []
            size = 0
            while buffer and size < CHUNK_BYTES:
                data = buffer.popleft()
                size += len(data)
                items.append(data)
            self._taken += size
            total += size
            body = self._join(items, self.generation, self.index)
            self._chunks.append(Chunk(self.index, len(items), body, size))
            self.index += len(items)
        if ended and not self._chunks:
            if self._failed:
                self._finish()
            else:  # they are kept as long as the result from now on, and old ones go
                self._chunks.append(Chunk(self.index, 0, b"", 0))

    def kept(self) -> None:
        """The server has the first of what is to be sent."""
        chunk = self._chunks.popleft()
        self._sent += chunk.size
        self.renewed = time.monotonic()
        self.blocked_until = self._pause_s = self.unread_since = 0.0
        if self.ended and not self._chunks and not self._buffer:
            self._finish()
        self._wake()

    def _finish(self) -> None:
        self.done = True
        self._wake()

    def no_room(self) -> None:
        """There is no room for it; it is sent again in a moment."""
        now = time.monotonic()
        self._pause_s = min(max(2 * self._pause_s, PAUSES_S[0]), PAUSES_S[1])
        if not self.ended:
            self.blocked_until = now + self._pause_s
        self.unread_since = self.unread_since or now

    def renew(self) -> None:
        """Have what is there kept for longer."""
        if self.generation and not self._chunks and self.index > self._first:
            self._chunks.append(Chunk(self.index, 0, b"", 0))

    def fail(self, fault: BaseException) -> None:
        """Take no more items: the handler gets this error."""
        self.fault = fault
        self._wake()

    def _wake(self) -> None:
        if self._waits:
            self._bell.put(None)
        waiter = self._waiter
        if waiter is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                waiter[0].call_soon_threadsafe(_set, waiter[1])


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
