"""How far a task is: as its handler says it, as it travels, and as it is read again.

Used by workers, which write it, and by producers, clients and monitors, which read it. It stands in
the field ``progress`` of the task's record: ``<attempt> <done> <total> <since> <at> <text>``.
``since`` is when the attempt began and ``at`` when it said so, in ms by the server's clock, and
``total`` is ``-`` where there is none. What a handler says is checked at its call, so that no later
step can fail on it.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from .checks import shown

MOST = 2**63
"""Largest number that may be reported."""
MAX_TEXT = 200
"""Characters of a text that are kept."""
MAX_CHECKPOINT = 64 * 1024
"""Largest checkpoint in bytes, as JSON."""

Reported = tuple[float, float | None, str]
"""What a handler said last: done, total, text."""


class Progress(NamedTuple):
    """How far a task is; times are seconds since 1970 by the server's clock."""

    done: float
    total: float | None
    text: str
    since: float
    """When the attempt that says so began."""
    at: float
    """When it said so."""
    attempt: int = 1

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None where no total is known."""
        return None if self.total is None else min(self.done / self.total, 1.0)

    @property
    def rate(self) -> float | None:
        """How much is done in a second, on average since the attempt began; None at first."""
        passed = self.at - self.since
        return self.done / passed if passed > 0 and self.done > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds that are left at that rate, counted from ``at``; None where nothing is known."""
        rate = self.rate
        if self.total is None or rate is None:
            return None
        return max(self.total - self.done, 0.0) / rate


def checked(done: Any, total: Any, text: Any) -> Reported:
    """Return what a handler reports as it is kept; raises ConfigurationError.

    Numbers of other libraries are taken as what they are worth.
    """
    right = _number("done", done, "0 or more")
    if right < 0:
        raise _wrong("done", done, "0 or more")
    whole = None if total is None else _number("total", total, "above 0")
    if whole is not None and whole <= 0:
        raise _wrong("total", total, "above 0")
    if not isinstance(text, str):
        raise ConfigurationError(f"the text of a progress is text, not {shown(text)}")
    return right, whole, text


def _number(what: str, value: Any, wanted: str) -> float:
    found: float = math.nan
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        found = int(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        found = float(value)
    if not -MOST <= found <= MOST:  # NaN is neither
        raise _wrong(what, value, wanted)
    return found


def _wrong(what: str, value: Any, wanted: str) -> ConfigurationError:
    advice = "; leave it out where it is not known" if what == "total" else ""
    return ConfigurationError(
        f"{what} of a progress is a number, {wanted}, not {shown(value)}{advice}"
    )


def written(reported: Reported | None, attempt: str) -> tuple[str, str]:
    """Return the numbers and the text of a report, as ``report`` takes them."""
    if reported is None:
        return "", ""
    done, total, text = reported
    line = " ".join(text[:MAX_TEXT].split()) if text else ""
    line = line.encode("utf-8", "replace").decode()
    return f"{attempt} {done!r} {'-' if total is None else repr(total)}", line


def read_progress(raw: bytes | str | None) -> Progress | None:
    """Return what stands in a record; None where nothing does, or something else."""
    if not raw:
        return None
    line = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    try:
        attempt, done, total, since, at, text = line.split(" ", 5)
        return Progress(
            _read(done),
            None if total == "-" else _read(total),
            text,
            int(since) / 1000,
            int(at) / 1000,
            int(attempt),
        )
    except ValueError:
        return None


def _read(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MOST:
        raise ValueError(text)
    return int(text) if text.isdigit() else value
