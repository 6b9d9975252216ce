"""Reading what a task yields: from any index, while it runs or afterwards; no polling.

``ItemReader`` is the reading itself, written once as operations (see sansio.py): a page of items at
a time, or one blocking read for what comes next and for the task's end. ``ItemStream`` is what
users iterate over; ``AsyncItemStream`` its ``await`` twin. Each has a connection of its own from
the first time it waits until its end.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..codecs.sealing import Seal
from ..connection.broker import Broker
from ..errors import (
    ConfigurationError,
    ItemsGone,
    RedistqError,
    ResultTimeout,
    ServerUnavailable,
    StreamRestarted,
    UnknownTask,
)
from ..protocol.codec import loads
from ..protocol.commands import SETTLED, Commands
from ..protocol.items import PAGE_BYTES, Chunk, Page, chunk_of, read_page
from ..protocol.options import MAX_COUNT, count, shown, wait_seconds
from ..protocol.plain_commands import Command, read_streams
from ..protocol.replies import UNREADABLE, unexpected
from .results import LOOK_AGAIN_S, outcome
from .sansio import NOTICE_S, Inbox, Operation, ReadInbox, run, run_async

if TYPE_CHECKING:
    from ..connection.async_broker import AsyncBroker

PATIENT_S = 120.0
"""Seconds that a reader waits for a server that is away."""
_CURSOR = re.compile(r"(\d{1,15})-(\d{1,15})")


class ReadNext(ReadInbox):
    """A step: wait for the next chunk of a task, or a notification of its end."""

    __slots__ = ("_after", "_key")

    def __init__(self, inbox: Inbox, seconds: float, key: str, after: str) -> None:
        super().__init__(inbox, seconds)
        self._key = key
        self._after = after

    def command(self) -> Command:
        """Return the blocking read."""
        block = max(1, int(self.block_s * 1000))
        keys = {self.inbox.key: self.inbox.last, self._key: self._after}
        return read_streams(keys, 1, block)

    def read(self, reply: Any) -> Any:
        """Return the chunk in a reply to ``command``, or None; the inbox moves on."""
        chunk = None
        try:
            for key, entries in reply or ():
                if key == self._key.encode():
                    chunk = chunk_of(*entries[0])
                else:
                    super().read([[key, entries]])
        except UNREADABLE as error:
            raise unexpected(self.command(), reply) from error
        return chunk


class ItemReader:
    """Reads the items of one task for one reader.

    What it has read counts once ``page`` has returned it: one that is interrupted is as it was.
    """

    def __init__(
        self,
        task_id: str,
        commands: Commands,
        start: int | str,
        restarts: bool,
        timeout: float | None,
        seal: Seal,
    ) -> None:
        self._task_id = task_id
        self._seal = seal
        self._commands = commands
        self._restarts = restarts
        self.make: Callable[[Any], Any] | None = None
        """What makes an item of its JSON; None: it is that."""
        self._timeout = wait_seconds(timeout)
        self.inbox = Inbox.new(commands.keys)
        self.generation = 0
        """Of the items that are read; 0: whichever there is."""
        self.index = 0
        """The index of the next item."""
        if isinstance(start, str) and (found := _CURSOR.fullmatch(start)) is not None:
            self.generation = int(found[1])
            self.index = int(found[2])
        elif isinstance(start, str):
            raise ConfigurationError(
                f"start is the index of an item, or the cursor of a stream, not {shown(start)}"
            )
        else:
            self.index = count("start", start, least=0, most=MAX_COUNT)
        self._taken = 0  # bytes of the generation that were given
        self._reported = 0
        self._known = 0  # the index at which its items end, as far as is known
        self._watched = -math.inf  # when the inbox was left to be notified
        self._state = "queued"
        self._answered = 0.0
        self._asked: float | None = None  # since when the next items are waited for
        self.patient = True
        """Whether ``page`` waits as long as it takes, or returns no items after NOTICE_S."""

    def page(self) -> Operation[list[Any] | None]:
        """Return the next items, one or more; None at the end of a task that has succeeded.

        Raises TaskFailed, TaskCancelled, UnknownTask, StreamRestarted, ItemsGone or ResultTimeout.
        """
        self._answered = time.monotonic()
        started = self._asked = self._asked or self._answered
        items = yield from self._next(started)
        if items is None or items:
            self._asked = None
        return items

    def _next(self, started: float) -> Operation[list[Any] | None]:
        while True:
            try:
                page = read_page((yield self._question()))
                self._answered = time.monotonic()
                self._reported = self._taken
                if self._is_of_another(page):
                    if marker := self._restart(page.standing.generation):
                        return marker
                    continue
                if items := self._found(page):
                    return items
                if page.state in SETTLED:
                    return (yield from self._ended(page))
                chunk = yield from self._wait(started)
            except ServerUnavailable as error:
                self._bear(error, started)
                continue
            if chunk is not None and (items := self._items_of([chunk])):
                return items
            if chunk is None and not self.patient:
                return []

    def _bear(self, error: ServerUnavailable, started: float) -> None:
        """Raise the error once the server has been away for too long."""
        now = time.monotonic()
        late = self._timeout is not None and now - started > self._timeout
        if late or now - self._answered > PATIENT_S:
            raise error
        self._watched = -math.inf  # a server that begins anew knows no address

    def _question(self) -> Command:
        taken = str(self._taken) if self._taken > self._reported else ""
        generation = str(self.generation or "")
        return self._commands.read_items(self._task_id, generation, self.index, taken, PAGE_BYTES)

    def _is_of_another(self, page: Page) -> bool:
        """Return whether the items are of another generation than those read so far."""
        there = bool(page.standing.generation or page.state or page.entry)
        return there and self.generation not in (0, page.standing.generation)

    def _restart(self, generation: int) -> list[Any]:
        """Begin again with the first of another generation; return what says so, nothing where no
        item was given. Raises StreamRestarted where that is not wanted."""
        given = self.index
        if given and not self._restarts:
            raise StreamRestarted(self._task_id, given)
        self.generation = generation
        self.index = self._taken = self._reported = self._known = 0
        return [StreamRestarted(self._task_id, given)] if given else []

    def _found(self, page: Page) -> list[Any]:
        """Return the items in a page; raises ItemsGone and UnknownTask."""
        standing = page.standing
        self._known = standing.next
        self.generation = self.generation or standing.generation
        if items := self._items_of(page.chunks):
            return items
        if self.index < standing.next:
            first = standing.first if self.index < standing.first else standing.next
            raise ItemsGone(self._task_id, self.index, first)
        if not (page.state or page.entry):
            raise UnknownTask(self._task_id)
        return []

    def _items_of(self, chunks: list[Chunk]) -> list[Any]:
        """Return the items of chunks from the next one on, none of those that do not follow."""
        items: list[Any] = []
        index = self.index
        taken = self._taken
        for chunk in chunks:
            if chunk.generation != (self.generation or chunk.generation):
                break
            if not chunk.first <= index < chunk.first + chunk.count:
                break
            found = self._decoded(chunk)
            items += found[index - chunk.first :] if index > chunk.first else found
            index = chunk.first + chunk.count
            taken = chunk.to
        if items:
            self.generation = chunks[0].generation
            self.index = index
            self._taken = taken
        return items

    def _decoded(self, chunk: Chunk) -> list[Any]:
        """Return the items of a chunk."""
        try:
            place = (str(chunk.generation), str(chunk.first))
            body = self._seal.open_of_task("items", self._task_id, chunk.body, *place)
            items: list[Any] = loads(body)
        except ValueError as error:
            raise RedistqError(
                f"what task {self._task_id} yields is no JSON: of a function call it is read with "
                f"client.future({self._task_id!r}).stream()"
            ) from error
        return items if self.make is None else list(map(self.make, items))

    def _ended(self, page: Page) -> Operation[list[Any] | None]:
        """Return None for a task that has succeeded; raises its error for any other."""
        state, result, error, _, reason = yield self._commands.end_of(self._task_id)
        if state == b"succeeded":
            if result is not None:
                result = self._seal.open_of_task("result", self._task_id, result)
            if not page.standing.generation and result not in (None, b'{"items":0}'):
                raise RedistqError(
                    f"task {self._task_id} has no stream: its handler yielded nothing, and "
                    "get_result asks for what it returned"
                )
            return None
        words = (state or b"").decode()
        if words not in SETTLED:
            raise UnknownTask(self._task_id)
        body = (error or b"null") if words == "failed" else reason or b""
        outcome(self._task_id, words, body, self._seal)
        return None

    def _wait(self, started: float) -> Operation[Chunk | None]:
        """Wait for what comes next; raises ResultTimeout."""
        now = time.monotonic()
        if now - self._watched > LOOK_AGAIN_S:
            command = self._commands.watch(self._task_id, self.inbox.name)
            watched = Commands.read_watch((yield command))
            self._watched = now
            self._state = watched.state
            if watched.state in SETTLED or watched.record.get("state") == b"succeeded":
                return None
            if watched.state == "unknown":
                raise UnknownTask(self._task_id)
        left = math.inf if self._timeout is None else started + self._timeout - time.monotonic()
        if left <= 0:
            self._asked = None
            raise ResultTimeout(self._task_id, self._timeout or 0.0, self._state)
        if not self.patient:
            left = min(left, NOTICE_S)
        key = self._commands.keys.items(self._task_id)
        after = f"{self.generation}-{self._known - 1}" if self._known else "0-0"
        chunk: Chunk | None = yield ReadNext(self.inbox, left, key, after)
        return chunk


class _Items:
    """The items that were read and not given yet, and where a reader is."""

    def __init__(self, reader: ItemReader) -> None:
        self._reader = reader
        self._left: Iterator[Any] = iter(())
        self._count = 0  # of those that were not given
        self._ended = False

    def convert(self, make: Callable[[Any], Any] | None) -> None:
        """Let ``make`` make each item of its JSON; None: it is given as it is."""
        self._reader.make = make

    @property
    def position(self) -> int:
        """The index of the next item."""
        return self._reader.index - self._count

    @property
    def cursor(self) -> str:
        """The same as text, by which another reader goes on (``start=cursor``) as long as the task
        has not begun anew."""
        return f"{self._reader.generation}-{self.position}"

    def _take(self, page: list[Any] | None) -> None:
        if page is None:
            self._ended = True
            return
        self._left = iter(page)
        self._count = len(page)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of task {self._reader._task_id} at {self.position}>"


class ItemStream(_Items, Iterator[Any]):
    """What a task yields, item by item, each as soon as it is there.

    It ends when the task has succeeded and all its items were given; where the task fails or is
    cancelled its error is raised, after its items. For one thread at a time.
    """

    def __init__(self, reader: ItemReader, broker: Broker) -> None:
        super().__init__(reader)
        self._broker = broker

    def __iter__(self) -> ItemStream:
        return self

    def __next__(self) -> Any:
        for item in self._left:
            self._count -= 1
            return item
        while not self._ended:
            try:
                self._take(self._page())
            except ResultTimeout:
                raise  # it may be asked again
            except Exception:
                self.close()
                raise
            for item in self._left:
                self._count -= 1
                return item
        self.close()
        raise StopIteration

    def _page(self) -> list[Any] | None:
        return run(self._broker, self._reader.page())

    def close(self) -> None:
        """End the reading; the task goes on. Safe to call twice."""
        self._ended = True
        self._left = iter(())
        connection = self._reader.inbox.connection
        if connection is not None:
            connection.close()

    def __enter__(self) -> ItemStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncItemStream(_Items, AsyncIterator[Any]):
    """As ItemStream, for ``async for``; a wait that is cancelled loses no item."""

    def __init__(self, reader: ItemReader, broker: AsyncBroker) -> None:
        super().__init__(reader)
        self._broker = broker

    def __aiter__(self) -> AsyncItemStream:
        return self

    async def __anext__(self) -> Any:
        for item in self._left:
            self._count -= 1
            return item
        while not self._ended:
            try:
                self._take(await run_async(self._broker, self._reader.page()))
            except ResultTimeout:
                raise
            except Exception:
                await self.aclose()
                raise
            for item in self._left:
                self._count -= 1
                return item
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the reading; the task goes on. Safe to call twice."""
        self._ended = True
        self._left = iter(())
        connection = self._reader.inbox.async_connection
        if connection is not None:
            await connection.close()

    async def __aenter__(self) -> AsyncItemStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
