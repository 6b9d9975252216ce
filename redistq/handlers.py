"""What authors of tasks write: the ``@task`` decorator, registries, retry policies.

``RetryPolicy`` says when a failed attempt is tried again, and a ``Registry`` holds a ``Handler``
for each name of a task. Used by user code and by workers. It never talks to a server.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from .context import TaskContext
from .errors import ConfigurationError
from .logger import logger
from .protocol.gate import handler_gate
from .protocol.keys import check_line
from .protocol.options import (
    DeclaredKeywords,
    TaskDecoratorKeywords,
    check_limits,
    checked,
    count,
    listed,
    seconds,
    unknown_option,
)

if TYPE_CHECKING:
    from .protocol.declared import Declared

__all__ = ["Handler", "Registry", "default_registry", "task"]

log = logger("redistq.worker")

ExceptionTypes = tuple[type[BaseException], ...]
MAX_FACTOR = 1000.0
Function = TypeVar("Function", bound=Callable[..., Any])
_MARK = "__redistq_handler__"
_OF_SCHEDULES = frozenset(DeclaredKeywords.__annotations__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long after a failure a task is tried again.

    ``retries`` counts what comes after the first attempt: 3 means four attempts at most. The wait
    before retry n is ``backoff * factor ** (n - 1)`` seconds, at most ``backoff_cap``, shortened
    by a random part of up to ``jitter`` (0 to 1), so that tasks that failed together do not come
    back together. An exception in ``never_retry`` ends the task; one not in ``retry_on`` does too.
    """

    retries: int = 3
    backoff: float = 1.0
    backoff_cap: float = 600.0
    factor: float = 2.0
    jitter: float = 0.25
    retry_on: ExceptionTypes | type[BaseException] = (Exception,)
    never_retry: ExceptionTypes | type[BaseException] = ()

    def __post_init__(self) -> None:
        count("retries", self.retries)
        for name in ("backoff", "backoff_cap"):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))
        if not 1 <= self.factor <= MAX_FACTOR:
            raise ConfigurationError(f"factor is between 1 and {MAX_FACTOR:g}, not {self.factor}")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"jitter is between 0 and 1, not {self.jitter}")

        for name in ("retry_on", "never_retry"):
            object.__setattr__(self, name, _exception_types(name, getattr(self, name)))

    def wants(self, error: BaseException) -> bool:
        """Return whether this kind of error is worth another attempt."""
        # Its type, as an ``except`` clause asks: isinstance() would ask the error itself as well.
        kind = type(error)
        return issubclass(kind, self.retry_on) and not issubclass(kind, self.never_retry)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number ``attempt`` (from 1) failed."""
        # A power of 1100 overflows; far below that the cap rules anyway.
        raw = self.backoff * self.factor ** min(attempt - 1, 64)
        return float(min(raw, self.backoff_cap) * (1 - self.jitter * random.random()))


def _exception_types(option: str, given: Any) -> ExceptionTypes:
    """Exception types, given as one or as several; raises ConfigurationError for anything else."""
    types = tuple(given) if isinstance(given, tuple | list | set | frozenset) else (given,)
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigurationError(
                f"{option} is an exception type or several in a tuple, such as (ValueError, "
                f"OSError), not {kind!r:.60}"
            )
    return types


Waiting = tuple[bytes, str, list[bytes]]
"""A task that waits to run in a process: its entry, its queue, and the entry's fields as a flat
list."""


class LooksAhead:
    """A function of a handler that sees which tasks wait in its process, to prepare for them."""

    def look_by(self, waiting: Callable[[], Iterable[Waiting]]) -> None:
        """See by that function what waits, in order; called before the first task."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that runs tasks of one name, with its retry policy and limits.

    ``timeout`` is in seconds (None: no limit), and so is ``hard_timeout``, after which its process
    is killed (None: five seconds after ``timeout``); ``result_ttl`` is how many seconds a result is
    kept (None: the worker's setting; 0: results are not kept).
    """

    name: str
    function: Callable[..., Any]
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    result_ttl: float | None = None
    hard_timeout: float | None = None
    is_async: bool = False
    streams: bool = False
    """The function yields: its items are the task's stream."""
    wants_context: bool = False
    raw: bool = False
    """The function takes and returns bytes as they are, not JSON."""
    gate: Mapping[str, Any] | None = None
    """When a task may run that is added by the function itself: what ``@task`` says of it."""
    declared: Declared | None = None
    """When it is to run by itself."""

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], **options: Any) -> Handler:
        """Return a handler for ``function``, which takes the payload and may take a context.

        Raises ConfigurationError when the name or the signature cannot work.
        """
        check_line("a task's name", name)
        options = checked(options, f"task {name!r}")
        check_limits(options, f"task {name!r}")
        if not callable(function):
            raise ConfigurationError(f"the handler of task {name!r} is not callable: {function!r}")
        in_loop = _any(inspect.isasyncgenfunction, function)
        is_async = in_loop or inspect.iscoroutinefunction(function)
        is_async = is_async or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        return cls(
            name,
            function,
            is_async=is_async,
            streams=in_loop or _any(inspect.isgeneratorfunction, function),
            wants_context=_wants_context(name, function),
            **options,
        )


def _any(is_one: Callable[[Any], bool], function: Any) -> bool:
    """Return whether this holds for a function, what it wraps, or the call of an object."""
    try:
        inner = inspect.unwrap(function)
    except ValueError:  # it wraps itself
        inner = function
    call = getattr(function, "__call__", None)  # noqa: B004 - an object that is called
    return is_one(function) or is_one(inner) or is_one(call)


def _wants_context(name: str, function: Callable[..., Any]) -> bool:
    """Return whether a handler takes a second argument; one that cannot take the payload is
    refused.

    Asked of what is called, not of what it wraps: a decorator may give its function arguments
    that no task brings. One that passes on whatever it gets (``*args``) is asked for what it
    wraps, and gets the context where that says ``context`` or TaskContext.
    """
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return False  # some built-ins have no signature: they get the payload alone
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = [p for p in positional if p.default is p.empty]
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(required) > 2 or named or (not positional and not variable):
        raise ConfigurationError(
            f"the handler of task {name!r} is called with (payload) or (payload, context), "
            f"which its signature {signature} does not allow"
        )
    if len(required) == 2:
        return True
    if len(positional) > 1:
        return _is_context(positional[1])
    return variable and _passed_on_context(function)


def _is_context(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    return (
        parameter.name == "context"
        or kind is TaskContext
        or (isinstance(kind, str) and "TaskContext" in kind)
    )


def _passed_on_context(function: Any, depth: int = 20) -> bool:
    """Return whether a context that a wrapper passes on is wanted by what it wraps."""
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is None or not callable(wrapped) or not depth:
        return False
    try:
        parameters = list(inspect.signature(wrapped, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) > 1:
        return _is_context(positional[1]) or positional[1].name == "ctx"
    passes = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return passes and _passed_on_context(wrapped, depth - 1)


class Registry(Mapping[str, Handler]):
    """A set of handlers by task name; a second handler for a name is refused."""

    def __init__(self, handlers: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self._handlers: dict[str, Handler] = {}
        for name, function in (handlers or {}).items():
            self.add(name, function)

    def add(self, name: str, function: Callable[..., Any] | Handler, **options: Any) -> Handler:
        """Register ``function`` under ``name``; its own ``@task`` options are kept."""
        # The mark travels with functools.wraps: what is run is what was given, whatever a decorator
        # above @task made of the function, with the options that @task was given.
        marked = function if isinstance(function, Handler) else getattr(function, _MARK, None)
        called = function.function if isinstance(function, Handler) else function
        if isinstance(marked, Handler) and not options:
            handler = Handler.of(
                name,
                called,
                policy=marked.policy,
                timeout=marked.timeout,
                result_ttl=marked.result_ttl,
                hard_timeout=marked.hard_timeout,
                gate=marked.gate,
                declared=marked.declared,
            )
        else:
            handler = Handler.of(name, called, **options)
        known = self._handlers.get(name)
        if known is not None and _origin(known) != _origin(handler):
            raise ConfigurationError(
                f"two handlers want the task name {name!r}: {known.function!r} and "
                f"{handler.function!r}; give one of them another name"
            )
        self._handlers[name] = handler
        return handler

    @overload
    def task(self, function: Function, /) -> Function: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        retries: int = 3,
        backoff: float = 1.0,
        backoff_cap: float = 600.0,
        jitter: float = 0.25,
        retry_on: ExceptionTypes | type[BaseException] = (Exception,),
        never_retry: ExceptionTypes | type[BaseException] = (),
        timeout: float | None = None,
        hard_timeout: float | None = None,
        result_ttl: float | None = None,
        **options: Unpack[TaskDecoratorKeywords],
    ) -> Callable[[Function], Function]: ...
    @listed(TaskDecoratorKeywords)
    def task(
        self,
        function: Function | None = None,
        /,
        *,
        name: str | None = None,
        retries: int = 3,
        backoff: float = 1.0,
        backoff_cap: float = 600.0,
        jitter: float = 0.25,
        retry_on: ExceptionTypes | type[BaseException] = (Exception,),
        never_retry: ExceptionTypes | type[BaseException] = (),
        timeout: float | None = None,
        hard_timeout: float | None = None,
        result_ttl: float | None = None,
        **options: Unpack[TaskDecoratorKeywords],
    ) -> Any:
        """Register the decorated function as a handler; the function itself stays as it was.

        ``name`` defaults to the function's own. See RetryPolicy for the retry options and Handler
        for ``timeout``, ``hard_timeout`` and ``result_ttl`` (in seconds). ``limits``, ``order``,
        ``group``, ``unique``, ``expires`` and ``priority`` hold for tasks that are added by the
        function itself, ``producer.add_task(function, payload)``; names in braces in their keys
        are looked up in the payload: ``limits="tenant:{tenant}"``.

        ``cron`` or ``every`` let it run by itself, with ``payload``: the first worker that starts
        with it sets the schedule, of the task's name; ``tz``, ``missed`` and ``overlap`` are those
        of producer.schedules.set.

        What it returns is the task's result, JSON; a flow (``sig``, ``chain``, ``chord`` …) takes
        the task's place instead, which ends as the flow's last task does.
        """
        if function is not None and not callable(function):
            wanted = f"name={function!r}" if isinstance(function, str) else "name=..., retries=..."
            raise ConfigurationError(
                f"@task takes its options by name: write @task({wanted}), "
                f"not @task({function!r:.200})"
            )
        if unknown := options.keys() - TaskDecoratorKeywords.__annotations__.keys():
            raise unknown_option("@task", sorted(unknown)[0], _TASK_OPTIONS)
        declared = _declared({n: v for n, v in options.items() if n in _OF_SCHEDULES})
        gate = {n: v for n, v in options.items() if n not in _OF_SCHEDULES}
        asked = handler_gate(gate, "a task") if gate else None
        policy = RetryPolicy(
            retries=retries,
            backoff=backoff,
            backoff_cap=backoff_cap,
            jitter=jitter,
            retry_on=retry_on,
            never_retry=never_retry,
        )

        def register(function: Function) -> Function:
            handler = self.add(
                name or str(getattr(function, "__name__", "")),
                function,
                policy=policy,
                timeout=timeout,
                hard_timeout=hard_timeout,
                result_ttl=result_ttl,
                gate=asked or None,
                declared=declared,
            )
            try:
                setattr(function, _MARK, handler)
            except AttributeError:
                pass  # a built-in or bound method takes no mark; it is registered all the same
            return function

        return register if function is None else register(function)

    def add_handler(self, handler: Handler) -> None:
        """Register a handler that is complete as it is, in place of one of the same name."""
        self._handlers[handler.name] = handler

    def warn_of_skipped(self) -> None:
        """Say which decorators do not run in tasks: those above @task, which was given what is
        below it, on a function that stands in its module under its own name."""
        for handler in self._handlers.values():
            function: Any = handler.function
            found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
            for part in str(getattr(function, "__qualname__", "")).split("."):
                found = getattr(found, part, None)
            marked = getattr(found, _MARK, None)
            if isinstance(marked, Handler) and marked is handler and found is not function:
                log.warning(
                    "task %s runs without the decorators above @task on %s: put @task on top of "
                    "them, or give the worker the decorated function in task_handlers",
                    handler.name,
                    function.__qualname__,
                )

    def __getitem__(self, name: str) -> Handler:
        return self._handlers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)

    def __repr__(self) -> str:
        return f"Registry({', '.join(sorted(self._handlers)) or 'empty'})"


def handler_of(function: Any) -> Handler:
    """Return the handler that ``@task`` made of a function; raises ConfigurationError."""
    handler = getattr(function, _MARK, None)
    if not isinstance(handler, Handler):
        raise ConfigurationError(
            f"a task's type is a name or a function decorated with @task, not {function!r:.200}"
        )
    return handler


def named_and_given(
    function: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the task that a decorated function stands for, and the options of one that
    is added by it: those that are given come before what ``@task`` says of when it may run. Raises
    ConfigurationError."""
    handler = handler_of(function)
    if handler.gate:
        given = {**handler.gate, **{k: v for k, v in given.items() if v is not None}}
    return handler.name, given


def _declared(given: Mapping[str, Any]) -> Declared | None:
    """Return the schedule that ``@task`` declares; None for none. Raises ConfigurationError."""
    if not given:
        return None
    from .protocol.declared import Declared

    return Declared.of(given)


def _origin(handler: Handler) -> tuple[Any, Any]:
    """The same function defined again (a cell run twice, a module reloaded) replaces itself."""
    function = handler.function
    return getattr(function, "__module__", None), getattr(function, "__qualname__", id(function))


_TASK_OPTIONS = (
    *("name", "retries", "backoff", "backoff_cap", "jitter", "retry_on", "never_retry"),
    *("timeout", "hard_timeout", "result_ttl", *TaskDecoratorKeywords.__annotations__),
)

default_registry = Registry()
"""The registry that ``@task`` fills and that a worker uses when it is given no other."""

task = default_registry.task
