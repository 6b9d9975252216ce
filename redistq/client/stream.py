"""Reading what a client's task yields: signed items of function calls, JSON of named tasks.

``FutureStream`` is what futures give: it is read by ``for`` in the thread that iterates, and by
``async for`` in short-lived threads, a page of items each. Where the result of the call is the list
of its items, they come from the stream while it runs, and the rest from the result.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from .. import slots
from ..errors import ItemsGone, RedistqError, ResultTimeout, TaskCancelled, UntrustedPayload
from ..functions.signing import is_packet
from ..functions.streams import CallItems, items_in
from ..producer.items import ItemReader, ItemStream
from ..producer.sansio import Operation
from ..protocol.commands import SETTLED
from ..protocol.items import Chunk, Page
from .awaiting import kept_awake
from .outcomes import unpickled

if TYPE_CHECKING:
    from .futures import TaskFuture


class WithStream:
    """What a future can do with what its task yields."""

    __slots__ = ()

    def stream(
        self: Any, start: int | str = 0, *, restarts: bool = False, timeout: float | None = None
    ) -> FutureStream:
        """Return what the task yields, for ``for`` or ``async for``: from the item with the index
        ``start`` on, while it runs or afterwards. See TaskProducer.stream for the rest; where the
        task fails, its own error is raised after its items."""
        return FutureStream(self, start, restarts, timeout)


class FutureReader(ItemReader):
    """Reads the items of a client's task."""

    def __init__(
        self, future: TaskFuture, start: int | str, restarts: bool, timeout: float | None
    ) -> None:
        queue = future.queue
        super().__init__(future.task_id, queue.commands, start, restarts, timeout, queue.seal)
        self._origin = future.origin
        self._items = CallItems(queue.signer, queue.context_of(future.task_id))
        self._last: Page | None = None
        self._gone: ItemsGone | None = None

    def _decoded(self, chunk: Chunk) -> list[Any]:
        if not is_packet(chunk.body):
            if self._origin == "call":
                raise UntrustedPayload(
                    f"what task {self._task_id} yields is not signed: somebody has changed what is "
                    "on the server"
                )
            return super()._decoded(chunk)
        if self._origin == "named":
            raise UntrustedPayload(
                f"what task {self._task_id} yields is a pickle, where JSON belongs"
            )
        items: list[Any] = unpickled(self._items.opened(chunk), items_in)
        return items

    def _ended(self, page: Page) -> Operation[list[Any] | None]:
        self._last = page  # the future knows how the task has ended
        yield from ()
        return None

    def _found(self, page: Page) -> list[Any]:
        if _are_of_another_attempt(page):
            return []
        try:
            return super()._found(page)
        except ItemsGone as error:
            if page.state not in SETTLED:
                raise
            self._gone = error  # they may be in the result
            return []

    def rest(self, result: Any) -> list[Any]:
        """Return the items that stand in the result alone; raises StreamRestarted, and RedistqError
        for a task that has yielded nothing."""
        page = self._last
        assert page is not None
        standing = page.standing
        if isinstance(result, list):
            marker: list[Any] = []
            if _are_of_another_attempt(page) and self.generation:
                marker = self._restart(0)
            rest = result[self.index :]
            self.index = max(self.index, len(result))
            return marker + rest
        if self._gone is not None:
            raise self._gone
        if not standing.generation and result not in (0, {"items": 0}):
            raise RedistqError(
                f"task {self._task_id} has no stream: it yielded nothing, and its result is "
                f"{type(result).__name__}"
            )
        return []


def _are_of_another_attempt(page: Page) -> bool:
    """Return whether the items that are there are not those of the attempt that has succeeded:
    those are in its result alone."""
    standing = page.standing
    return page.state == "succeeded" and standing.generation > 0 and standing.entry != page.entry


class FutureStream(ItemStream, AsyncIterator[Any]):
    """What a task yields, for ``for`` and ``async for``; see ItemStream."""

    _reader: FutureReader

    def __init__(
        self, future: TaskFuture, start: int | str, restarts: bool, timeout: float | None
    ) -> None:
        super().__init__(FutureReader(future, start, restarts, timeout), future.queue.broker)
        self._future = future
        self._sent = False
        self._is_last = False
        self._coming: Future[list[Any] | None] | None = None

    def _page(self) -> list[Any] | None:
        future = self._future
        if not self._sent:
            if (session := future._held) is not None:
                session.exchange.sender.flush(patient=True)
            self._sent = True
        if self._is_last:
            return None
        page = super()._page()
        if page is None:
            self._is_last = True
            try:
                page = self._reader.rest(future.result())
            except CancelledError:
                raise TaskCancelled(future.task_id, future._why) from None
        return page

    # -- async for -------------------------------------------------------------------------------

    def __aiter__(self) -> FutureStream:
        return self

    async def __anext__(self) -> Any:
        for item in self._left:
            self._count -= 1
            return item
        self._reader.patient = False  # an abandoned wait ends by itself
        with kept_awake(), slots.lent():
            while not self._ended:
                await self._take_next()
                for item in self._left:
                    self._count -= 1
                    return item
        self.close()
        raise StopAsyncIteration

    async def _take_next(self) -> None:
        if self._coming is None:
            self._coming = _in_thread(self._page)
        try:
            # Shielded: what is being read when a wait is cancelled is there for the next one.
            page = await asyncio.shield(asyncio.wrap_future(self._coming))
        except (asyncio.CancelledError, ResultTimeout):
            if self._coming.done():
                self._coming = None
            raise
        except Exception:
            self._coming = None
            self.close()
            raise
        self._coming = None
        self._take(page)

    async def aclose(self) -> None:
        """As ``close``."""
        self.close()

    async def __aenter__(self) -> FutureStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _in_thread(work: Callable[[], list[Any] | None]) -> Future[list[Any] | None]:
    """Return the future of work that is done in a thread of its own."""
    coming: Future[list[Any] | None] = Future()

    def run() -> None:
        try:
            found = work()
        except BaseException as error:  # raised again where it is awaited
            coming.set_exception(error)
        else:
            coming.set_result(found)

    threading.Thread(target=run, name="redistq-stream", daemon=True).start()
    return coming
