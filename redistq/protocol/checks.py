"""Checks: numbers, durations and moments as callers give them, each refused by its name.

Used by everything that takes options. A number that the server cannot hold would fail in the midst
of a script, together with the tasks around it; here it fails alone, at once, and by its name.
"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import re
import threading
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ..errors import ConfigurationError

Seconds = float | str
"""A number of seconds, or text such as "90s" or "1h30m"."""
MAX_SECONDS = 1_000_000_000.0
"""Longest duration: about 31 years. Every platform's clocks and every server can count it."""
MAX_WAIT_S = min(MAX_SECONDS, threading.TIMEOUT_MAX / 2)
"""Longest wait of a caller; some platforms can wait for no more than some weeks."""
TAKEN = ("result", "results", "nothing")
"""What a task may take of the results of the tasks that it runs after."""
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


def check_setup(setup: Any) -> None:
    """Raise ConfigurationError for what is no setup of calls; None is none."""
    if setup is None:
        return
    if not callable(setup):
        raise ConfigurationError(
            f"setup is a function that returns what calls share, not {shown(setup)}: "
            "setup=load_model, without a call"
        )
    if inspect.isgeneratorfunction(setup) or inspect.isasyncgenfunction(setup):
        raise ConfigurationError(
            "setup returns what calls share, and does not yield: what it holds goes when another "
            "takes its place; workers with handlers of their own have lifespans (docs/lifespan.md)"
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


def taken(option: str, given: Any) -> str | None:
    """Return which results a task takes as its last argument, checked; raises ConfigurationError.

    "result" is that of the task it runs after, "results" the list of those of all; "nothing": it
    takes none.
    """
    if given not in TAKEN:
        raise ConfigurationError(f"{option} is one of {', '.join(TAKEN)}, not {shown(given)}")
    return None if given == "nothing" else str(given)
