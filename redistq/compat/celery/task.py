"""Task: a function that an app knows by name, under Celery's attributes and methods."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ...errors import Retry as _Retry
from ..unsupported import NotSupported
from .canvas import Signature, group
from .exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from .request import Request, request_of, running
from .shared import current_app

if TYPE_CHECKING:
    from .app import Celery
    from .result import Result

_KEPT = object()


class Task:
    """The base of tasks; ``@app.task(base=...)`` takes a class below it.

    Calling a task runs its function here; ``delay`` and ``apply_async`` send it to a worker.
    """

    name: ClassVar[str] = ""
    app: ClassVar[Celery]
    max_retries: int | None = 3
    default_retry_delay: float = 180
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: ClassVar[dict[str, Any]] = {}
    retry_backoff: bool | int = False
    retry_backoff_max: int = 600
    retry_jitter: bool = True
    rate_limit: str | int | float | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    ignore_result: bool | None = None
    queue: str | None = None
    priority: int | None = None
    expires: Any = None
    throws: tuple[type[BaseException], ...] = ()
    serializer: str | None = None
    typing: bool = True
    abstract = True
    MaxRetriesExceededError = MaxRetriesExceededError

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The task's function."""
        raise NotImplementedError("a task defines run")

    # What a class below may define.

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before the function."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called when it has returned."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when it has failed for good."""

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when it is to be tried again."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called at the end of each attempt."""

    # -- running it ------------------------------------------------------------------------------

    @property
    def request(self) -> Request:
        """What is known of the run that this is code of."""
        return request_of(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = running.set((self, Request(self, args, kwargs)))
        try:
            return self.run(*args, **kwargs)
        finally:
            running.reset(token)

    def delay(self, *args: Any, **kwargs: Any) -> Result:
        """Send it with these arguments; return its result, to be waited for."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Result:
        """Send it: see docs/migrating.md for the options that hold."""
        self._check(args or (), kwargs or {})
        return Signature(self, args, kwargs, app=self.app).apply_async(**options)

    def _check(self, args: Any, kwargs: Any) -> None:
        """Raise TypeError where the function would not take these arguments."""
        if self.typing:
            import inspect

            inspect.signature(self.run).bind(*args, **kwargs)

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Result:
        """Run it here, as a worker would; return its result."""
        return Signature(self, args, kwargs, app=self.app).apply(**options)

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """Return a signature with these arguments."""
        return Signature(self, args, kwargs, app=self.app)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """Return a signature that takes nothing of what comes before it."""
        return Signature(self, args, kwargs, immutable=True, app=self.app)

    def signature(self, args: Any = None, *rest: Any, **kwargs: Any) -> Signature:
        """Return a signature: args, kwargs, and options."""
        return Signature(self, args, *rest, **{"app": self.app, **kwargs})

    subtask = signature

    def map(self, it: Iterable[Any]) -> Signature:
        """Return a signature of one task that calls this one with each item."""
        return Signature("celery.map", (), {"task": self.s(), "it": list(it)}, app=self.app)

    def starmap(self, it: Iterable[Any]) -> Signature:
        """Return a signature of one task that calls this one with each tuple."""
        return Signature("celery.starmap", (), {"task": self.s(), "it": list(it)}, app=self.app)

    def chunks(self, it: Iterable[Any], n: int) -> group:
        """Return a group of tasks that call this one with ``n`` tuples each."""
        items = list(it)
        return group([self.starmap(items[at : at + n]) for at in range(0, len(items), n)])

    def AsyncResult(self, task_id: str, **_: Any) -> Result:
        """Return the result of a task of this name by its id."""
        return self.app.AsyncResult(
            task_id, task_name=self.name, queue=self.app.queue_of(self.name)
        )

    # -- in a run --------------------------------------------------------------------------------

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: Any = _KEPT,
        **options: Any,
    ) -> Retry:
        """Raise what lets the task be tried again, after ``countdown`` seconds or
        ``default_retry_delay``; where it was tried ``max_retries`` times, raise ``exc`` or
        MaxRetriesExceededError."""
        request = self.request
        if request.called_directly:
            raise exc or Retry("Task can be retried", None)
        for given, have in ((args, request.args), (kwargs, request.kwargs)):
            if given is not None and type(have)(given) != have:
                raise NotSupported(
                    "retry with other arguments",
                    "send the task anew, self.apply_async(...), and raise Ignore()",
                )
        if options.get("queue") not in (None, request.delivery_info.get("routing_key")):
            raise NotSupported("retry in another queue", "send the task anew, with queue=...")
        most = self.max_retries if max_retries is _KEPT or max_retries is None else max_retries
        when = countdown if eta is None else eta
        if when is None:
            when = self.default_retry_delay
        if most is not None and request.retries + 1 > most:
            if exc is not None:
                raise exc
            raise MaxRetriesExceededError(
                f"Can't retry {self.name}[{request.id}] args:{tuple(request.args)} "
                f"kwargs:{request.kwargs}",
                task_args=request.args,
                task_kwargs=request.kwargs,
            )
        made = Retry(exc=exc, when=when, is_eager=request.is_eager)
        if throw:
            raise made from exc
        return made

    def replace(self, sig: Signature) -> NoReturn:
        """Let a signature take this task's place: its last task's result is this one's."""
        raise Replaced(sig)

    def add_to_chord(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse what changes a chord that runs."""
        raise NotSupported("add_to_chord", "return self.replace(chord(...)) from the task before")

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **_: Any
    ) -> None:
        """Say how far the task is: of ``meta`` current (or done) and total, as numbers, and the
        state's name as the words beside them."""
        context = self.request.context
        if task_id not in (None, self.request.id):
            raise NotSupported("update_state of another task", "let it say how far it is itself")
        meta = meta if isinstance(meta, dict) else {}
        done = next((meta[name] for name in ("current", "done") if name in meta), 0)
        total = meta.get("total")
        rest = meta.keys() - {"current", "done", "total", "status", "description", "percent"}
        if rest or not isinstance(done, int | float):
            raise NotSupported(
                f"update_state with {', '.join(sorted(rest)) or 'a current that is no number'}",
                "say current and total, or let the task yield what others read meanwhile",
            )
        words = str(meta.get("status") or meta.get("description") or state or "")
        if context is not None:
            context.progress(done, total or None, words)

    def start_strategy(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse what belongs to Celery's workers."""
        raise NotSupported("a strategy of a task", "write it as a function")

    def __reduce__(self) -> Any:
        return _task_named, (self.name,)

    def __repr__(self) -> str:
        return f"<@task: {self.name}>"


class Replaced(Exception):
    """A signature takes the place of the task that runs."""

    def __init__(self, sig: Signature) -> None:
        self.sig = sig
        super().__init__(f"replaced by {sig!r}")


def _task_named(name: str) -> Any:
    return current_app().task_named(name)


def with_retries(task: Task) -> Callable[..., Any]:
    """Return a task's function with what ``autoretry_for`` says."""
    if not task.autoretry_for:
        return task.run

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return task.run(*args, **kwargs)
        except (Ignore, Reject, Replaced, _Retry):
            raise
        except Exception as error:
            kind = type(error)
            if issubclass(kind, tuple(task.dont_autoretry_for)) or not issubclass(
                kind, tuple(task.autoretry_for)
            ):
                raise
            given = dict(task.retry_kwargs)
            if task.retry_backoff:
                given["countdown"] = _backoff(task)
            raise task.retry(exc=error, throw=False, **given) from error

    return run


def _backoff(task: Task) -> int:
    factor = int(max(1, task.retry_backoff))
    seconds = min(int(task.retry_backoff_max), factor * 2 ** min(task.request.retries, 32))
    return random.randrange(seconds + 1) if task.retry_jitter else seconds
