"""Results of calls over an iterable that need not end: few calls are under way at a time.

``ResultStream`` is what Client.map_stream returns. An item is taken from the iterable only when
there is room for its call, where results are asked for (in that thread, or that event loop), so
what is held here and on the server is bounded.

What comes next, an item, the end of a call or a result to give, is decided in one place; ``for``
and ``async for`` wait for it in their own ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, cast

from .. import slots
from ..errors import ConfigurationError, RedistqError, TaskCancelled, TimeLimitExceeded
from ..protocol.options import count
from .awaiting import countdown, kept_awake
from .futures import TaskFuture, cancel_all
from .outcomes import check_on_error
from .submission import check_items

Row = tuple[Any, ...]
"""The arguments of one call."""
Submit = Callable[[Sequence[Row]], TaskFuture]
"""Sends the calls of some rows as one task: of one alone as a call, whose result it has; of several
as a chunk, which has the list of theirs."""


class _Word(Enum):
    """What comes next, where it is not the end of a call."""

    GIVE = "a result is there"
    ROW = "the next row of the iterables is needed"
    END = "all results were given"


@dataclass(frozen=True, slots=True)
class How:
    """How a stream is given; see Client.map_stream."""

    window: int = 1000
    chunksize: int = 1
    ordered: bool = True
    on_error: str = "raise"

    def __post_init__(self) -> None:
        count("window", self.window, least=1)
        count("chunksize", self.chunksize, least=1)
        check_on_error(self.on_error)
        if self.chunksize > self.window:
            raise ConfigurationError(
                f"a chunk of {self.chunksize:,} items does not fit into a window of "
                f"{self.window:,}: give a larger window, or a smaller chunksize"
            )


class ResultStream(Iterator[Any], AsyncIterator[Any]):
    """The results of Client.map_stream, for ``for`` or ``async for``.

    ``close()``, the end of its ``with`` block, an error that it raises, and an interrupt of ``for``
    cancel what has not started. A wait of ``async for`` that is cancelled leaves it as it is. For
    one thread or event loop at a time.
    """

    def __init__(
        self,
        submit: Submit,
        iterables: Sequence[Iterable[Any] | AsyncIterable[Any]],
        how: How,
        timeout: float | None,
    ) -> None:
        self._timeout = timeout
        self._left = countdown(timeout)
        self._calls = _Ordered() if how.ordered else _Completed()
        self._submit = submit
        self._how = how
        self._sources = [_source(one) for one in iterables]
        self._row: list[Any] = []
        """What was taken of the next row."""
        self._chunk: list[Row] = []
        """Rows of the next chunk."""
        self._has_more = True
        self._given: deque[Any] = deque()
        """Results that can be given at once."""
        self._asking: asyncio.Task[bool] | None = None
        """What asks for the next row, where items come with ``async for``."""

    # -- what is done, without waiting -----------------------------------------------------------

    def _next(self) -> _Word | Future[Any]:
        """Take what has ended, until there is a result to give; return what comes next: the end of
        a call, or a word."""
        calls, how = self._calls, self._how
        while not self._given:
            has_room = self._has_more and len(calls) + len(self._chunk) < how.window
            # What is there is given before the next item is asked for, which may take long.
            if calls and calls.has_ended():
                self._take(*calls.pop())
            elif calls and not has_room:
                return calls.next_end()
            else:
                return _Word.ROW if self._has_more else _Word.END
        return _Word.GIVE

    def _take(self, future: TaskFuture, rows: Sequence[Row]) -> None:
        """Take the end of a call; raises its error where that was asked for."""
        on_error = self._how.on_error
        if on_error == "raise" or (error := future.failure()) is None:
            result = future.result()
            self._given.extend([result] if len(rows) == 1 else result)
        elif len(rows) > 1 and not isinstance(error, TaskCancelled):
            # The chunk has ended with the error of one: each of its calls gets an end of its own.
            self._calls.put_first([(self._submit([row]), [row]) for row in rows])
        elif on_error == "return":
            self._given.extend([error] * len(rows))

    def _add(self, row: Row | None) -> None:
        """Add a row to the next chunk, and send that when it is complete; None: there are no
        more."""
        if row is None:
            self._has_more = False
        else:
            self._chunk.append(row)
        if self._chunk and (row is None or len(self._chunk) == self._how.chunksize):
            chunk, self._chunk = self._chunk, []
            self._calls.put(self._submit(chunk), chunk)

    def _taken(self) -> Row:
        row, self._row = tuple(self._row), []
        return row

    # -- for -------------------------------------------------------------------------------------

    def __iter__(self) -> ResultStream:
        return self

    def __next__(self) -> Any:
        try:
            while True:
                match self._next():
                    case _Word.GIVE:
                        return self._given.popleft()
                    case _Word.END:
                        break
                    case _Word.ROW:
                        self._add(self._next_row())
                    case Future() as end:
                        self._wait(end)
        except BaseException:  # an interrupt, too: nothing is left behind
            self.close()
            raise
        raise StopIteration

    def _next_row(self) -> Row | None:
        while len(self._row) < len(self._sources):
            source = self._sources[len(self._row)]
            if isinstance(source, AsyncIterator):
                raise TypeError(
                    "items that come with async for need it here, too: async for result"
                )
            try:
                self._row.append(next(source))
            except StopIteration:
                return None
        return self._taken()

    def _wait(self, end: Future[Any]) -> None:
        try:
            slots.wait(partial(Future.exception, end), self._left(), end.done)
        except CancelledError:
            pass  # that is an end, too
        except TimeLimitExceeded:
            raise  # of the task that waits here
        except TimeoutError:
            self._raise_if_late()

    def _raise_if_late(self) -> None:
        """Raise ResultTimeout, which says why nothing comes; not where that came just now."""
        if not self._calls.has_ended():
            raise self._calls.oldest()._timed_out(self._timeout)

    # -- async for -------------------------------------------------------------------------------

    def __aiter__(self) -> ResultStream:
        return self

    async def __anext__(self) -> Any:
        try:
            while True:
                match self._next():
                    case _Word.GIVE:
                        return self._given.popleft()
                    case _Word.END:
                        break
                    case _Word.ROW:
                        await self._row_or_end()
                    case Future() as end:
                        await self._wait_async(end)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    async def _row_or_end(self) -> None:
        """Wait for the next row, or for the end of a call where that comes first."""
        if not any(isinstance(source, AsyncIterator) for source in self._sources):
            self._add(self._next_row())
            return
        if self._asking is None:
            self._asking = asyncio.ensure_future(_filled(self._row, self._sources))
            await asyncio.sleep(0)  # most items are there at once
        asking = self._asking
        if not asking.done():
            waits: set[asyncio.Future[Any]] = {asking}
            if self._calls:
                waits.add(_in_loop(self._calls.next_end()))
            with kept_awake(), slots.lent() if self._calls else contextlib.nullcontext():
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            self._asking = None
            self._add(self._taken() if asking.result() else None)

    async def _wait_async(self, end: Future[Any]) -> None:
        with kept_awake(), slots.lent():
            try:
                await asyncio.wait_for(_in_loop(end), self._left())
            except TimeoutError:
                self._raise_if_late()

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Give no more results, and cancel what has not started; safe to call twice."""
        self._has_more = False
        self._chunk.clear()
        self._given.clear()
        self._calls.cancel()
        asking, self._asking = self._asking, None
        if asking is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                asking.get_loop().call_soon_threadsafe(asking.cancel)

    async def aclose(self) -> None:
        """As ``close``; no item is asked for any more after it."""
        asking = self._asking
        self.close()
        if asking is not None:
            await asyncio.wait([asking])

    def __enter__(self) -> ResultStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> ResultStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # broad: at the end of a process anything may be gone
            self.close()


def _source(items: Any) -> Iterator[Any] | AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        return aiter(items)
    check_items(items, "map_stream")
    source: Iterator[Any] = iter(items)
    return source


async def _filled(row: list[Any], sources: Sequence[Iterator[Any] | AsyncIterator[Any]]) -> bool:
    """Add to a row what the sources have next; return whether all had something. No part of the
    stream, which ends when nobody holds it."""
    for source in sources[len(row) :]:
        try:
            row.append(await anext(source) if isinstance(source, AsyncIterator) else next(source))
        except (StopIteration, StopAsyncIteration):
            return False
    return True


def _in_loop(end: Future[Any]) -> asyncio.Future[None]:
    """Return what ends in this event loop when a call does."""
    loop = asyncio.get_running_loop()
    awaited: asyncio.Future[None] = loop.create_future()

    def ended(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the wait is over
            loop.call_soon_threadsafe(_wake, awaited)

    end.add_done_callback(ended)
    return awaited


def _wake(awaited: asyncio.Future[None]) -> None:
    if not awaited.done():
        awaited.set_result(None)


Calls = Sequence[tuple[TaskFuture, Sequence[Row]]]
"""Calls on their way, each with its rows."""


class _Ordered:
    """Calls whose results were not taken, in the order of their items."""

    def __init__(self) -> None:
        self._calls: deque[tuple[TaskFuture, Sequence[Row]]] = deque()
        self._items = 0

    def __len__(self) -> int:
        """How many items they have."""
        return self._items

    def put(self, future: TaskFuture, rows: Sequence[Row]) -> None:
        """Add the call of rows that follow."""
        self._items += len(rows)
        self._calls.append((future, rows))

    def put_first(self, calls: Calls) -> None:
        """Add calls of rows that come before all others."""
        self._items += sum(len(rows) for _, rows in calls)
        self._calls.extendleft(reversed(calls))

    def has_ended(self) -> bool:
        """Whether there is a call to be taken; there is one on its way at least."""
        return self._calls[0][0].done()

    def next_end(self) -> Future[Any]:
        """Return a future that ends when there is."""
        return self._calls[0][0]

    def pop(self) -> tuple[TaskFuture, Sequence[Row]]:
        """Take it; it is not kept: the caller has the only one."""
        future, rows = self._calls.popleft()
        self._items -= len(rows)
        return future, rows

    def oldest(self) -> TaskFuture:
        """Return the future that has been on its way for the longest time."""
        return self._calls[0][0]

    def cancel(self) -> None:
        """Cancel those that have not started, and forget all."""
        left = [future for future, _ in self._calls]
        self._calls.clear()
        self._items = 0
        with contextlib.suppress(RedistqError):
            cancel_all(left)


class _Completed(_Ordered):
    """The same, in the order of their ends."""

    def __init__(self) -> None:
        super().__init__()
        self._under_way: dict[TaskFuture, Sequence[Row]] = {}
        self._ended: deque[TaskFuture] = deque()
        self._signal: Future[None] | None = None
        self._lock = threading.Lock()

    def put(self, future: TaskFuture, rows: Sequence[Row]) -> None:
        self._items += len(rows)
        self._under_way[future] = rows
        future.add_done_callback(cast("Callable[[Future[Any]], None]", self._on_end))

    def put_first(self, calls: Calls) -> None:
        for future, rows in calls:
            self.put(future, rows)

    def _on_end(self, future: TaskFuture) -> None:
        """Note the end of a call; in the thread that has learned of it."""
        with self._lock:
            self._ended.append(future)
            signal, self._signal = self._signal, None
        if signal is not None:
            signal.set_result(None)

    def has_ended(self) -> bool:
        return bool(self._ended)

    def next_end(self) -> Future[Any]:
        signal: Future[None] = Future()
        with self._lock:
            if self._ended:
                signal.set_result(None)
            else:
                self._signal = signal
        return signal

    def pop(self) -> tuple[TaskFuture, Sequence[Row]]:
        future = self._ended.popleft()
        rows = self._under_way.pop(future)
        self._items -= len(rows)
        return future, rows

    def oldest(self) -> TaskFuture:
        return next(iter(self._under_way))

    def cancel(self) -> None:
        left = [future for future in self._under_way if not future.done()]
        self._under_way.clear()
        self._ended.clear()
        self._items = 0
        with contextlib.suppress(RedistqError):
            cancel_all(left)
