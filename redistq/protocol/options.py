"""The options of a task: named, checked, written into its entry and read back here, and only here.

Used by producers, clients, batches and handlers, which take options, and by workers, which read
them. Entries may be written by hand, or in other languages: they are read with the same checks. A
number that the server cannot hold would fail in the midst of a script, together with the tasks
around it; here it fails alone, at once, and by its name.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
import numbers
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, TypedDict, TypeVar, Unpack

from ..errors import ConfigurationError
from .codec import dumps
from .keys import at_priority

Function = TypeVar("Function", bound=Callable[..., Any])

MAX_SECONDS = 1_000_000_000.0
"""Longest duration: about 31 years. Every platform's clocks and every server can count it."""
MAX_WAIT_S = min(MAX_SECONDS, threading.TIMEOUT_MAX / 2)
"""Longest wait of a caller; some platforms can wait for no more than some weeks."""
MAX_COUNT = 1_000_000
"""Highest number of retries."""
LATEST_S = 10_000_000_000.0
"""The last due time, in seconds since 1970: the year 2286."""
COUNT_DIGITS = 9
"""Most digits of a count in a stream entry."""

# -- numbers ---------------------------------------------------------------------------------------

_UNITS = {
    **dict.fromkeys(("ms",), 0.001),
    **dict.fromkeys(("s", "sec"), 1.0),
    **dict.fromkeys(("m", "min"), 60.0),
    "h": 3600.0,
    "d": 86_400.0,
    "w": 604_800.0,
}
_PART = r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|sec|s|min|m|h|d|w)"
_TEXT = re.compile(rf"(?:{_PART}\s*)+")


def seconds(what: str, value: Any, *, positive: bool = False) -> float:
    """Return a duration in seconds, from 0 (``positive``: above 0) to MAX_SECONDS; a number, or
    text such as "90s", "1m", "1h30m" or "7d".

    Raises ConfigurationError that names the option ``what``, the limit and the next step.
    """
    value = _from_text(value)
    if _is_number(value) and 0 <= value <= MAX_SECONDS and (value > 0 or not positive):
        return float(value)
    if positive:
        wanted = "a number of seconds above 0, or a time such as '90s', '1m' or '1h30m',"
        advice = "leave it out for no limit"
    else:
        wanted = "a number of seconds, 0 or more, or a time such as '90s', '1m' or '1h30m',"
        advice = "leave it out for the default"
    raise ConfigurationError(
        f"{what} is {wanted} and at most {MAX_SECONDS:,.0f} (31 years), not {shown(value)}; "
        + advice
    )


def count(what: str, value: Any, *, least: int = 0, most: int = MAX_COUNT) -> int:
    """Return a whole number from ``least`` to ``most``; raises ConfigurationError as ``seconds``
    does."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and least <= value <= most:
        return int(value)
    raise ConfigurationError(
        f"{what} is a whole number, {least} or more and at most {most:,}, not {shown(value)}"
    )


def wait_seconds(timeout: Any) -> float | None:
    """Return how long to wait, in seconds or as text ("90s"), as far as this platform can; None:
    for ever.

    Longer than that is as good as for ever, and below 0 is not at all. Raises ConfigurationError
    for what is no number.
    """
    if timeout is None:
        return None
    if type(timeout) in (int, float) and 0 <= timeout <= MAX_WAIT_S:
        return timeout  # type: ignore[no-any-return]  # the usual, asked for with every result
    timeout = _from_text(timeout)
    if not _is_number(timeout) or timeout != timeout:  # the last of NaN alone
        raise ConfigurationError(
            "a timeout is a number of seconds, a time such as '90s' or '1m', or None to wait for "
            f"ever, not {shown(timeout)}"
        )
    return float(min(max(timeout, 0), MAX_WAIT_S))


def milliseconds(duration: float) -> int:
    """Return a duration in whole milliseconds, rounded up: nothing is too early, and little is not
    none.

    The argument was checked before.
    """
    return math.ceil(round(duration * 1000, 6))


def moment(what: str, value: Any) -> float:
    """Return a moment (epoch seconds, or an aware datetime) as epoch seconds; one before 1970 is in
    the past like any other. Raises ConfigurationError."""
    at = value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigurationError(
                f"{what} is a datetime without a time zone, which could mean any hour; use an "
                "aware one: datetime.now(timezone.utc) + timedelta(...)"
            )
        at = value.timestamp()
    if not (_is_number(at) and at <= LATEST_S):
        raise ConfigurationError(
            f"{what} is a time as epoch seconds or an aware datetime, not after the year 2286: "
            f"{shown(value)}"
        )
    return float(max(at, 0))


def unknown_option(what: str, name: object, known: Iterable[str]) -> ConfigurationError:
    """Return the error of an option that there is not: it names one that is near, and all there
    are."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigurationError(
        f"{what} has no option {shown(name)}; {hint}the options are {', '.join(names)}"
    )


def is_count(text: bytes) -> bool:
    """Return whether a field of an entry is a count as the scripts read it: some digits, not too
    many."""
    return text.isdigit() and len(text) <= COUNT_DIGITS


def shown(value: Any) -> str:
    """Return a value that was refused, for a message; bounded, and without failing itself."""
    try:
        text = repr(value)
    except Exception:  # an integer of many digits, or anything's own __repr__
        text = f"one of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _from_text(value: Any) -> Any:
    """Return the seconds that a text such as "1h30m" names; anything else as it is."""
    if isinstance(value, str) and _TEXT.fullmatch(text := value.strip().lower()):
        return sum(float(n) * _UNITS[unit] for n, unit in re.findall(_PART, text))
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


# -- what may be set -------------------------------------------------------------------------------

Seconds = float | str
"""A number of seconds, or text such as "90s" or "1h30m"."""


class TaskKeywords(TypedDict, total=False):
    """The options that a producer takes for a task; None: not given."""

    retries: int | None
    delay: Seconds | None
    timeout: Seconds | None
    result_ttl: Seconds | None


class CallKeywords(TypedDict, total=False):
    """The options that a client takes for its calls; None: not given."""

    retries: int
    delay: Seconds | None
    timeout: Seconds | None
    priority: str | None
    name: str | None
    result_ttl: Seconds | None
    cache: Seconds | None
    logs: bool


class Attachments(TypedDict, total=False):
    """What redistq itself writes beside the options that were given: see TaskOptions."""

    inbox: str | None
    batch: str | None
    home: str | None
    trace: dict[str, str] | None


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retries": count,
    "delay": seconds,
    "execute_at": moment,
    "timeout": partial(seconds, positive=True),
    "result_ttl": seconds,
    "cache": seconds,
}
"""What checks an option's value: it is given what the option is called, and the value."""
OPTIONS_OF_TASKS = frozenset({*TaskKeywords.__annotations__, "execute_at"})
OPTIONS_OF_CALLS = frozenset(CallKeywords.__annotations__)
_IN_ENTRIES = ("retries", "timeout", "result_ttl")
NO_LIMIT = math.inf
"""The time limit of a task that has none, whatever its handler says."""
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


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of one task; None: what its handler says holds, or there is no such thing.

    ``inbox`` gets a notification of the task's end, and ``batch`` counts it; ``home`` is where it
    belongs, and ``trace`` the context of the span that created it.
    """

    retries: int | None = None
    timeout: float | None = None
    result_ttl: float | None = None
    delay: float | None = None
    execute_at: float | None = None
    inbox: str | None = None
    batch: str | None = None
    home: str | None = None
    trace: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], what: str) -> TaskOptions:
        """Return the options that a caller gives to ``what``; raises ConfigurationError."""
        if not OPTIONS_OF_TASKS.issuperset(given):
            wrong = next(name for name in given if name not in OPTIONS_OF_TASKS)
            raise unknown_option(what, wrong, OPTIONS_OF_TASKS)
        if given.get("delay") is not None and given.get("execute_at") is not None:
            raise ConfigurationError("give either delay or execute_at, not both")
        return cls(**checked(given))

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
    name: str | None = None
    result_ttl: float | None = None
    cache: float | None = None
    logs: bool = False
    priority: str = "normal"

    def changed(self, given: Mapping[str, Any]) -> CallOptions:
        """Return these options with some changed; raises ConfigurationError."""
        for name in given:
            if name not in OPTIONS_OF_CALLS:
                raise unknown_option("a call", name, OPTIONS_OF_CALLS)
        changes = checked(given)
        count("retries", changes.get("retries", 0))  # None is no number of them
        if changes.get("priority") is None:
            changes.pop("priority", None)
        else:
            at_priority("", str(changes["priority"]))  # raises where there is no such priority
        return replace(self, **changes)

    def written(self, **more: Unpack[Attachments]) -> bytes:
        """Return the options as they stand in a call's entry; a result that is to answer later
        calls is kept as long."""
        return _written(self, self.result_ttl if self.cache is None else self.cache, more)

    def kept(self, seconds: float) -> CallOptions:
        """Return these options with results kept so long, where none is set."""
        return self if self.result_ttl is not None else replace(self, result_ttl=seconds)

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


def is_gated(opts: bytes) -> bool:
    """Return whether the options of an entry say that its task holds keys of the gate."""
    return b'"gate"' in opts


def _due_after(delay: float | None) -> str:
    return "" if delay is None else f"+{milliseconds(delay)}"


def _written(
    options: TaskOptions | CallOptions, result_ttl: float | None, more: Attachments
) -> bytes:
    encode = _encode if more.get("trace") is None else _encode.__wrapped__
    return encode(options.retries, options.timeout, result_ttl, tuple(more.items()))


@lru_cache(maxsize=512)  # those of one client's calls are the same
def _encode(
    retries: int | None,
    timeout: float | None,
    result_ttl: float | None,
    more: tuple[tuple[str, Any], ...],
) -> bytes:
    opts = {name: value for name, value in more if value is not None}
    if retries is not None:
        opts["retries"] = retries
    if timeout is not None:
        opts["timeout"] = timeout
    if result_ttl is not None:
        opts["result_ttl"] = result_ttl
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
    numbers = {name: found[name] for name in _IN_ENTRIES if name in found}
    for name, value in numbers.items():
        if isinstance(value, str):
            raise ConfigurationError(f"in an entry {name} is a number, not {shown(value)}")
        if value is None and name == "timeout":
            numbers[name] = NO_LIMIT
        else:
            numbers[name] = _CHECKS[name](name, value)
    home = found.get("home")
    trace = found.get("trace")
    return TaskOptions(
        **numbers,
        inbox=found.get("inbox") or None,
        batch=found.get("batch") or None,
        home=home if isinstance(home, str) else None,
        trace=trace if isinstance(trace, dict) else None,
    )
