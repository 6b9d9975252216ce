"""The options of a task: named, checked, written into its entry and read back here, and only here.

Used by producers, clients, batches and handlers, which take options, and by workers, which read
them. Entries may be written by hand, or in other languages: they are read with the same checks
(checks.py, whose names are here too).
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from ..errors import ConfigurationError, Unreadable
from ..system.memory import size
from .checks import MAX_COUNT as MAX_COUNT
from .checks import MAX_SECONDS as MAX_SECONDS
from .checks import MAX_WAIT_S as MAX_WAIT_S
from .checks import Seconds as Seconds
from .checks import check_setup
from .checks import count as count
from .checks import is_count as is_count
from .checks import milliseconds as milliseconds
from .checks import moment as moment
from .checks import seconds as seconds
from .checks import shown as shown
from .checks import taken as taken
from .checks import unknown_option as unknown_option
from .checks import wait_seconds as wait_seconds
from .codec import dumps
from .headers import checked_headers, headers_in
from .keys import at_priority
from .resources import Resources, as_mapping, needed

if TYPE_CHECKING:
    from .gate import Group, Key, Limits, Parents, UniqueKey

Function = TypeVar("Function", bound=Callable[..., Any])

# -- what may be set -------------------------------------------------------------------------------


class HandlerGate(TypedDict, total=False):
    """When a task may run: what ``@task`` takes of it, too. See gate.py, and docs/gate.md."""

    limits: Limits | None
    order: Key | None
    group: Group | None
    unique: UniqueKey | None
    expires: Seconds | None


class HandlerKeywords(HandlerGate, total=False):
    """When a task may run, as ``@task`` says it; None: not given."""

    priority: int | None


class GateKeywords(HandlerGate, total=False):
    """When a task may run; None: not given."""

    after: Parents | None


class DeclaredKeywords(TypedDict, total=False):
    """What ``@task`` takes for a schedule that is declared in code; None: not given."""

    cron: str | None
    every: Seconds | None
    tz: str | None
    payload: Any
    missed: str | None
    overlap: str | None


class NeedKeywords(TypedDict, total=False):
    """What a task needs of the worker that runs it; None: not given."""

    memory: int | str | None
    resources: Mapping[str, float] | None


class BatchKeywords(TypedDict, total=False):
    """What ``@task`` takes for a function that is given many tasks at once; None: not given."""

    batch: int | None
    within: Seconds | None


class TaskDecoratorKeywords(
    HandlerKeywords, DeclaredKeywords, NeedKeywords, BatchKeywords, total=False
):
    """The options of ``@task`` that are no option of its handler."""


class ScheduleKeywords(HandlerKeywords, NeedKeywords, total=False):
    """The options that a schedule takes for its tasks; None: not given."""

    retries: int | None
    timeout: Seconds | None
    hard_timeout: Seconds | None
    result_ttl: Seconds | None
    headers: Mapping[str, str] | None


class TaskKeywords(ScheduleKeywords, total=False):
    """The options that a producer takes for a task; None: not given."""

    after: Parents | None
    delay: Seconds | None


class CallKeywords(GateKeywords, NeedKeywords, total=False):
    """The options that a client takes for its calls; None: not given."""

    retries: int
    delay: Seconds | None
    timeout: Seconds | None
    hard_timeout: Seconds | None
    priority: str | int | None
    name: str | None
    result_ttl: Seconds | None
    cache: Seconds | None
    logs: bool | Literal["only"]
    setup: Callable[[], Any] | None
    headers: Mapping[str, str] | None


class Attachments(TypedDict, total=False):
    """What redistq itself writes beside the options that were given: see TaskOptions."""

    gate: str | None
    inbox: str | None
    batch: str | None
    home: str | None
    headers: Mapping[str, str] | None


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retries": count,
    "delay": seconds,
    "execute_at": moment,
    "timeout": partial(seconds, positive=True),
    "hard_timeout": partial(seconds, positive=True),
    "result_ttl": seconds,
    "cache": seconds,
    "headers": checked_headers,
    "memory": size,
    "resources": needed,
    "takes": taken,
}
"""What checks an option's value: it is given what the option is called, and the value."""
OPTIONS_OF_TASKS = frozenset({*TaskKeywords.__annotations__, "execute_at", "takes"})
OPTIONS_OF_GATE = frozenset({*GateKeywords.__annotations__, "priority"})
"""Those of a task that gate.py reads and writes."""
OPTIONS_OF_CALLS = frozenset(CallKeywords.__annotations__)
_IN_ENTRIES = ("retries", "timeout", "hard_timeout", "result_ttl", "memory")
NO_LIMIT = math.inf
"""The time limit of a task that has none, whatever its handler says."""
FORMAT = 1
"""The version of the entry format (docs/format.md); ``v`` in options that need a higher one."""
_UPGRADE = "it was added by a newer release of redistq: upgrade this worker"
REMEMBERED_BYTES = 1024
"""Longest options that are remembered once they were read; those of thousands of calls of one
client, or of one batch, are the same."""


def checked(given: Mapping[str, Any], whose: str = "") -> dict[str, Any]:
    """Return options with their values checked, durations in seconds; None stays None.

    Raises ConfigurationError that names the option, and ``whose`` it is.
    """
    return {
        name: _CHECKS[name](f"the {name} of {whose}" if whose else name, value)
        if value is not None and name in _CHECKS
        else value
        for name, value in given.items()
    }


def check_limits(options: Mapping[str, Any], what: str) -> None:
    """Raise ConfigurationError when a process would be killed before its handler may tidy up; the
    options are checked."""
    soft, hard = options.get("timeout"), options.get("hard_timeout")
    if soft is not None and hard is not None and hard < soft:
        raise ConfigurationError(
            f"the hard_timeout of {what}, {hard:g} s, is below its timeout, {soft:g} s: it would "
            "be killed before it is told to end; make it longer, or give only one of them"
        )


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of one task; None: what its handler says holds, or there is no such thing.

    ``headers`` are text by name, for the handler and for what stands around it. ``inbox`` gets a
    notification of the task's end, and ``batch`` counts it; ``home`` is where it belongs. ``gate``
    says when it may run: see gate.py.
    """

    retries: int | None = None
    timeout: float | None = None
    hard_timeout: float | None = None
    result_ttl: float | None = None
    memory: int | None = None
    resources: Resources | None = None
    delay: float | None = None
    execute_at: float | None = None
    inbox: str | None = None
    batch: str | None = None
    home: str | None = None
    headers: Mapping[str, str] | None = None
    gate: str | None = None
    takes: str | None = None
    """Which results of the tasks it ran after are its last argument: see flows.py."""

    @classmethod
    def of(cls, given: Mapping[str, Any], what: str) -> TaskOptions:
        """Return the options that a caller gives to ``what``, without those of the gate; raises
        ConfigurationError."""
        if not OPTIONS_OF_TASKS.issuperset(given):
            wrong = next(name for name in given if name not in OPTIONS_OF_TASKS)
            raise unknown_option(what, wrong, OPTIONS_OF_TASKS)
        if given.get("delay") is not None and given.get("execute_at") is not None:
            raise ConfigurationError("give either delay or execute_at, not both")
        if not OPTIONS_OF_GATE.isdisjoint(given):
            given = {name: given[name] for name in given if name not in OPTIONS_OF_GATE}
        given = checked(given)
        if "hard_timeout" in given:
            check_limits(given, what)
        return cls(**given)

    @classmethod
    def read(cls, opts: bytes) -> TaskOptions:
        """Return the options that stand in an entry, of whatever origin.

        Raises ValueError or TypeError for what would fail later, when the handler has run; names
        that are unknown here are passed over.
        """
        return _read(opts) if len(opts) <= REMEMBERED_BYTES else _read.__wrapped__(opts)

    def written(self, **more: Unpack[Attachments]) -> bytes:
        """Return the options as they stand in the task's entry; empty where there are none."""
        return _written(self, self.result_ttl, more)

    def kept(self, seconds: float) -> TaskOptions:
        """Return these options with the result kept so long, where nothing is said."""
        return self if self.result_ttl is not None else replace(self, result_ttl=seconds)

    @property
    def due(self) -> str:
        """When the task is due, as ``enqueue`` takes it: '' now, '+N' in N ms, 'N' at N ms."""
        if self.execute_at is not None:
            return str(milliseconds(self.execute_at))
        return _due_after(self.delay)

    def timeout_or(self, usual: float | None) -> float | None:
        """Return the time limit in seconds where the handler's is ``usual``."""
        if self.timeout is None:
            return usual
        return None if self.timeout == NO_LIMIT else self.timeout

    def retries_or(self, usual: int) -> int:
        """Return the number of retries where the handler's is ``usual``."""
        return usual if self.retries is None else self.retries

    def result_ttl_or(self, usual: str) -> str:
        """Return the life of the result in ms, as text, where the handler's is ``usual``."""
        return usual if self.result_ttl is None else str(milliseconds(self.result_ttl))


NO_OPTIONS = TaskOptions()
"""Those of most tasks."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The options of a client's calls; see Client.options."""

    retries: int = 0
    delay: float | None = None
    timeout: float | None = None
    hard_timeout: float | None = None
    name: str | None = None
    result_ttl: float | None = None
    cache: float | None = None
    memory: int | None = None
    resources: Resources | None = None
    logs: bool | Literal["only"] = False
    setup: Callable[[], Any] | None = None
    priority: str = "normal"
    headers: Mapping[str, str] | None = None
    gate: Mapping[str, Any] = field(default_factory=dict)
    """Those of the gate, as they were given, with a priority that is a number: see gate.py."""

    def changed(self, given: Mapping[str, Any]) -> CallOptions:
        """Return these options with some changed; raises ConfigurationError."""
        for name in given:
            if name not in OPTIONS_OF_CALLS:
                raise unknown_option("a call", name, OPTIONS_OF_CALLS)
        changes = checked(given)
        count("retries", changes.get("retries", 0))  # None is no number of them
        check_setup(changes.get("setup"))
        gate = {name: changes.pop(name) for name in GateKeywords.__annotations__ if name in changes}
        if changes.get("priority") is None:
            changes.pop("priority", None)
        elif isinstance(changes["priority"], int):  # a place in line, not a queue of its own
            gate["priority"] = changes.pop("priority")
        else:
            at_priority("", str(changes["priority"]))  # raises where there is no such priority
        whole = {**self.gate, **gate}
        kept = {name: value for name, value in whole.items() if value is not None}
        options = replace(self, **changes, gate=kept)
        limits = {"timeout": options.timeout, "hard_timeout": options.hard_timeout}
        check_limits(limits, "a call")
        return options

    def written(self, **more: Unpack[Attachments]) -> bytes:
        """Return the options as they stand in a call's entry; a result that is to answer later
        calls is kept as long."""
        return _written(self, self.result_ttl if self.cache is None else self.cache, more)

    def kept(self, seconds: float) -> CallOptions:
        """Return these options with results kept so long, where none is set."""
        return self if self.result_ttl is not None else replace(self, result_ttl=seconds)

    def of_schedule(self) -> dict[str, Any]:
        """Return these options as a schedule takes them for its tasks; raises ConfigurationError
        for those that say when a call runs."""
        if self.delay is not None or self.cache is not None:
            raise ConfigurationError("a schedule has no delay and no cache: it says when it runs")
        own = (*_IN_ENTRIES, "headers")
        whole = {**{name: getattr(self, name) for name in own}, **self.gate}
        if self.resources is not None:
            whole["resources"] = as_mapping(self.resources)
        return {name: value for name, value in whole.items() if value is not None}

    @property
    def result_is_kept(self) -> bool:
        """Return whether the result is to be there after its client has it."""
        return self.result_ttl is not None or self.cache is not None

    @property
    def due(self) -> str:
        """When a call is due, as ``enqueue`` takes it."""
        return _due_after(self.delay)


def listed(keywords: Any) -> Callable[[Function], Function]:
    """Make ``help()``, editors and notebooks list the keywords of a TypedDict, where a function
    takes them as ``**options``."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, kind in keywords.__annotations__.items():
            annotation = getattr(kind, "__forward_arg__", kind)
            option = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            shown.append(option)
        vars(function)["__signature__"] = signature.replace(parameters=shown)
        return function

    return decorate


def addresses(opts: bytes) -> tuple[str, str]:
    """Return the inbox and the batch that get to know of a task's end, also where its other options
    cannot be read; '' for what does not read as one."""
    try:
        found = _found(opts) if opts else {}
    except Exception:  # anyone may have written them
        return "", ""
    return found.get("inbox", ""), found.get("batch", "")


def gate_of(opts: bytes) -> str:
    """Return what stands in an entry of when its task may run, also where its other options cannot
    be read; '' for nothing."""
    if b'"gate"' not in opts:
        return ""
    try:
        gate = json.loads(opts)["gate"]
    except Exception:  # anyone may have written them
        return ""
    return gate if isinstance(gate, str) else ""


def _due_after(delay: float | None) -> str:
    return "" if delay is None else f"+{milliseconds(delay)}"


def _written(
    options: TaskOptions | CallOptions, result_ttl: float | None, more: Attachments
) -> bytes:
    headers = more.pop("headers", options.headers)
    numbers = (options.retries, options.timeout, options.hard_timeout, result_ttl)
    needs = (options.memory, options.resources)
    written: tuple[tuple[str, Any], ...] = tuple(more.items())
    if isinstance(options, TaskOptions) and options.takes is not None:
        written = (*written, ("takes", options.takes))
    if not headers:
        return _encode(*numbers, *needs, written)
    # Behind all that scripts look for: no text of a user's stands before it.
    return _encode.__wrapped__(*numbers, *needs, (*written, ("headers", dict(headers))))


@lru_cache(maxsize=512)  # those of one client's calls are the same
def _encode(
    retries: int | None,
    timeout: float | None,
    hard_timeout: float | None,
    result_ttl: float | None,
    memory: int | None,
    resources: Resources | None,
    more: tuple[tuple[str, Any], ...],
) -> bytes:
    opts = {name: value for name, value in more if value is not None}
    if retries is not None:
        opts["retries"] = retries
    if timeout is not None:
        opts["timeout"] = timeout
    if hard_timeout is not None:
        opts["hard_timeout"] = hard_timeout
    if result_ttl is not None:
        opts["result_ttl"] = result_ttl
    if memory is not None:
        opts["memory"] = memory
    if resources is not None:
        opts["resources"] = as_mapping(resources)
    return dumps(opts) if opts else b""


def _found(opts: bytes) -> dict[str, Any]:
    """What stands in an entry, when the addresses in it can be sent back."""
    found = json.loads(opts)
    try:
        (found.get("inbox", "") + found.get("batch", "")).encode()
    except (AttributeError, TypeError):
        raise TypeError(f"its options are not sound: {found!r:.200}") from None
    return found  # type: ignore[no-any-return]


@lru_cache(maxsize=512)
def _read(opts: bytes) -> TaskOptions:
    found = _found(opts)
    if found.get("v", FORMAT) > FORMAT:
        raise Unreadable("the options of a task", f"format {found['v']}", _UPGRADE)
    numbers = {name: found[name] for name in _IN_ENTRIES if name in found}
    for name, value in numbers.items():
        if isinstance(value, str):
            raise ConfigurationError(f"in an entry {name} is a number, not {shown(value)}")
        if value is None and name in ("timeout", "hard_timeout"):
            numbers[name] = NO_LIMIT if name == "timeout" else None
        else:
            numbers[name] = _CHECKS[name](name, value)
    home = found.get("home")
    gate = found.get("gate")
    resources = found.get("resources")
    return TaskOptions(
        **numbers,
        resources=None if resources is None else needed("resources", resources),
        inbox=found.get("inbox") or None,
        batch=found.get("batch") or None,
        home=home if isinstance(home, str) else None,
        headers=headers_in(found) if "headers" in found or "trace" in found else None,
        gate=gate if isinstance(gate, str) else None,
        takes=taken("takes", found["takes"]) if "takes" in found else None,
    )
