"""TaskHandle: a task that was added by its function, and its typed result.

Made by ``task.delay(...)``. It holds the id, and reaches the server by the producer that added the
task, or by that producer's ``await`` twin of the running loop.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import ResultError
from ..handlers import Handler
from ..handlers.conversion import result_converter
from ..protocol.progress import Progress
from .gated import TaskId
from .operations import Wish

if TYPE_CHECKING:
    from .active import Target
    from .items import AsyncItemStream, ItemStream

R = TypeVar("R", covariant=True)


class TaskHandle(Generic[R]):
    """One task, and its result of type ``R``: ``handle.result(timeout=10)``, ``await handle``.

    ``id`` is the TaskId that ``add_task`` returns. A handle stands for its task wherever one is
    named: ``after=handle``.
    """

    __slots__ = ("_handler", "_target", "id")

    def __init__(self, task_id: TaskId, handler: Handler, target: Target) -> None:
        self.id = task_id
        self._handler = handler
        self._target = target

    @property
    def task_id(self) -> str:
        """The id, as futures call it."""
        return self.id

    @property
    def outcome(self) -> str:
        """What the call did: "added", "known", "joined" …: see TaskId."""
        return self.id.outcome

    # -- here ------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> R:
        """Return the result, as soon as there is one; raises as TaskProducer.get_result."""
        return self._typed(self._target.producer().get_result(self.id, timeout))

    @property
    def state(self) -> str:
        """How the task stands: "queued", "running", "succeeded" …; asks the server."""
        return str(self._target.producer().get_task(self.id).state)

    def cancel(self, running: Wish = None) -> str:
        """Cancel the task, as TaskProducer.cancel; return what was done."""
        return self._target.producer().cancel(self.id, running=running)[self.id]

    def progress(self) -> Progress | None:
        """Return how far the task is; None while it has said nothing."""
        return self._target.producer().progress(self.id)

    def stream(self, start: int | str = 0, *, timeout: float | None = None) -> ItemStream:
        """Return what the task yields, as TaskProducer.stream."""
        found = self._target.producer().stream(self.id, start, timeout=timeout)
        found.convert(result_converter(self._handler, streams=True))
        return found

    # -- with await ------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, R]:
        return self.aresult().__await__()

    async def aresult(self, timeout: float | None = None) -> R:
        """As ``result``; ``await handle`` waits without a limit."""
        return self._typed(await self._target.async_producer().get_result(self.id, timeout))

    async def astate(self) -> str:
        """As ``state``."""
        return str((await self._target.async_producer().get_task(self.id)).state)

    async def acancel(self, running: Wish = None) -> str:
        """As ``cancel``."""
        found = await self._target.async_producer().cancel(self.id, running=running)
        return found[self.id]

    async def aprogress(self) -> Progress | None:
        """As ``progress``."""
        return await self._target.async_producer().progress(self.id)

    def astream(self, start: int | str = 0, *, timeout: float | None = None) -> AsyncItemStream:
        """As ``stream``, for ``async for``."""
        found = self._target.async_producer().stream(self.id, start, timeout=timeout)
        found.convert(result_converter(self._handler, streams=True))
        return found

    def _typed(self, result: Any) -> R:
        make = result_converter(self._handler)
        try:
            return result if make is None else make(result)  # type: ignore[no-any-return]
        except Exception as error:  # of validators, too
            raise ResultError(
                f"the result of task {self._handler.name!r} is not what its function says it "
                f"returns: {error}; read it as it is by get_result({str(self.id)!r})"
            ) from error

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"TaskHandle({self._handler.name}, {self.id!s})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)
