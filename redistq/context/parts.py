"""What a context needs of the worker that runs its task, as protocols: the worker gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Parents(Protocol):
    """What reads the parents of a task, as its context knows it."""

    @property
    def ids(self) -> list[str]:
        """Their ids."""

    def results(self) -> list[Any]:
        """Return their results."""

    def result(self, task_id: str) -> Any:
        """Return the result of one."""


class Items(Protocol):
    """What an attempt yields, on its way to the server; the worker's."""

    def position(self) -> int:
        """Return the index of the next item."""

    def bound(self, window: int | None, keep: int) -> None:
        """Set how much is kept."""

    def begin(
        self,
        encode: Callable[[Any], bytes],
        join: Callable[[list[bytes], int, int], bytes],
    ) -> None:
        """Take items from now on; the server is asked first how far they are."""

    def collect(
        self,
        encode: Callable[[Any], bytes],
        join: Callable[[list[bytes], int, int], bytes],
    ) -> Collecting:
        """Take items that are all in the task's result, from now on."""

    def put(self, item: Any) -> None:
        """Take an item; waits while there is no room."""

    def put_now(self, item: Any) -> bool:
        """Take an item; return whether there is room for the next."""

    async def room(self) -> None:
        """Wait for room, in an event loop."""

    def end(self, *, failed: bool) -> int:
        """Have all items on the server; return how many there are."""

    async def aend(self, *, failed: bool) -> int:
        """As ``end``, in an event loop."""


class Collecting(Protocol):
    """Items that are all in the result, which readers have before; the worker's."""

    items: list[Any]

    def end(self, *, failed: bool) -> None:
        """No more come."""


class Running(Protocol):
    """What an attempt says of itself while it runs; the worker's."""

    def progress(self, done: float, total: float | None, text: str) -> None:
        """Note how far it is."""

    def save(self, cursor: Any) -> None:
        """Note where another attempt would go on."""

    def cursor(self) -> Any:
        """Return what was noted last, by this attempt or one before."""

    def extend(self, seconds: float) -> float:
        """Move its time limits; return the seconds that remain."""

    @property
    def remaining(self) -> float:
        """The seconds that remain."""


class Steps(Protocol):
    """What keeps the steps of a task; the worker's."""

    def step(self, name: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See TaskContext."""

    async def astep(self, name: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See TaskContext."""

    def sleep(self, seconds: Any) -> None:
        """See TaskContext."""

    async def asleep(self, seconds: Any) -> None:
        """See TaskContext."""

    def wait_for(self, event: str, timeout: Any, default: Any) -> Any:
        """See TaskContext."""

    async def await_for(self, event: str, timeout: Any, default: Any) -> Any:
        """See TaskContext."""

    def use(self, codec: Any) -> None:
        """Write and read steps as function calls do."""


class Spawner(Protocol):
    """What keeps the tasks that an attempt spawns; the worker's."""

    def spawn(
        self,
        type: str | Callable[..., Any],
        payload: Any,
        task_id: str | None,
        in_batch: bool,
        given: Mapping[str, Any],
    ) -> str:
        """Keep a task; return its id."""
