"""What middleware is: the class to derive from, what its methods are given, and what is refused."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..context import TaskContext
from ..errors import ConfigurationError

HOOKS = ("on_start", "on_success", "on_failure", "on_retry", "on_settled")
"""What only looks on: an error in one of these changes nothing for the task."""
_METHODS = ("enqueue", "run", *HOOKS)


@dataclass(slots=True)
class NewTask:
    """A task that is about to be added, as ``enqueue`` of middleware sees it.

    ``payload``, ``headers`` and ``options`` (those of ``add_task`` that were given) may be changed.
    Of a function call that a Client sends only the headers can be: its ``payload`` is None. Where a
    client sends many calls at once, one stands for all of them, and ``id`` is empty.
    """

    id: str
    name: str
    queue: str
    payload: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one attempt, when the server has said so.

    ``state`` is succeeded, failed, cancelled, expired, retried, snoozed, or what the task waits for
    (sleep, event). ``accepted`` is False where the outcome did not count: the lease was lost, and
    the task is another worker's.
    """

    task_id: str
    name: str
    queue: str
    attempt: int
    state: str
    accepted: bool


class Middleware:
    """What stands around adding and running tasks; derive from it and write any of its methods.

    ``enqueue`` and ``run`` are layers: the first that was added is the outermost. They may change
    what goes in and comes out, and refuse by raising an error: it is that of the caller, or of the
    attempt. All others look on: what they raise is logged, once for each kind, and changes nothing.

    ``run`` is written in one of three ways:

    - ``def run(self, context, payload)`` with one ``yield``, around all handlers: it yields, with a
      payload to hand on instead where it wants another; is sent the result, or has the handler's
      error raised at the ``yield``; and may return another result.
    - ``def run(self, context, payload, next)``, around plain functions: ``return next(payload)``.
    - ``async def run(self, context, payload, next)``, around ``async def`` handlers:
      ``return await next(payload)``.
    """

    if TYPE_CHECKING:
        run: Callable[..., Any]

    def enqueue(self, task: NewTask, next: Callable[[NewTask], str]) -> str:
        """Stand around the checks of a new task, before anything is sent: ``next(task)`` makes them
        and returns its id. The task is sent afterwards, together with others of the same call."""
        return next(task)

    def on_start(self, context: TaskContext) -> None:
        """An attempt begins."""

    def on_success(self, context: TaskContext, result: Any) -> None:
        """The handler has returned; the outcome has yet to be settled."""

    def on_failure(self, context: TaskContext, error: BaseException) -> None:
        """The attempt failed, and the task ends with it."""

    def on_retry(self, context: TaskContext, error: BaseException, seconds: float) -> None:
        """The attempt failed, and is tried again in so many seconds."""

    def on_settled(self, settled: Settled) -> None:
        """The server has accepted an attempt's outcome, or refused it, since the lease was lost.

        Not called when the process ends before that. Called in a thread of its own, in order.
        """


Layers = tuple[Middleware, ...]
"""Middleware in its order, the outermost first."""


def has(middleware: object, method: str) -> bool:
    """Return whether middleware has a method of its own."""
    found = getattr(type(middleware), method, None)
    return found is not None and found is not getattr(Middleware, method, None)


def checked_middleware(given: Iterable[Middleware]) -> Layers:
    """Return middleware in its order; raises ConfigurationError for what is none."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigurationError(f"middleware is a list of objects, not {given!r:.100}")
    return tuple(_checked(one) for one in given)


def _checked(one: Any) -> Middleware:
    if isinstance(one, type):
        raise ConfigurationError(
            f"middleware is an object, not a class: give {one.__name__}(), not {one.__name__}"
        )
    kind = type(one).__name__
    for name in dir(type(one)):
        if name.startswith("on_") and name not in HOOKS and isinstance(one, Middleware):
            near = difflib.get_close_matches(name, HOOKS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigurationError(
                f"middleware has no hook {name}, as {kind} has; {hint}The hooks are "
                f"{', '.join(HOOKS)}"
            )
    if not any(has(one, name) for name in _METHODS):
        raise ConfigurationError(
            f"{one!r:.100} is no middleware: it has none of the methods {', '.join(_METHODS)}"
        )
    for name in ("enqueue", *HOOKS):
        if inspect.iscoroutinefunction(getattr(one, name, None)):
            raise ConfigurationError(
                f"{kind}.{name} is a plain function: it only takes a moment, and no event loop "
                "runs it; what awaits belongs into async def run"
            )
    if has(one, "run"):
        how_run(one)
    return one  # type: ignore[no-any-return]


def how_run(one: Middleware) -> str:
    """Return how ``run`` is written: "yields", "plain" or "async"; raises ConfigurationError."""
    run = one.run
    how = "yields" if inspect.isgeneratorfunction(run) else "plain"
    if inspect.iscoroutinefunction(run):
        how = "async"
    wanted = 2 if how == "yields" else 3
    try:
        inspect.signature(run).bind(*range(wanted))
    except TypeError:
        parameters = "(context, payload)" if how == "yields" else "(context, payload, next)"
        raise ConfigurationError(
            f"{type(one).__name__}.run is called with {parameters}, which its signature "
            f"{inspect.signature(run)} does not allow; see redistq.Middleware"
        ) from None
    except ValueError:
        pass  # no signature to look at
    return how
