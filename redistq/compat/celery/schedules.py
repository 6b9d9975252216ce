"""crontab and schedule, as ``beat_schedule`` has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ...errors import ConfigurationError
from ..unsupported import NotSupported

Field = str | int | Iterable[int]


@dataclass(frozen=True)
class crontab:
    """Times by the clock, as Celery's; ``cron`` has the line that says the same."""

    minute: Field = "*"
    hour: Field = "*"
    day_of_week: Field = "*"
    day_of_month: Field = "*"
    month_of_year: Field = "*"
    cron: str = ""

    def __post_init__(self) -> None:
        days = _field(self.day_of_month), _field(self.day_of_week)
        if "*" not in (days[0][:1], days[1][:1]):
            raise NotSupported(
                "a crontab with both day_of_month and day_of_week",
                "give one of them, and let the task look at the other",
            )
        parts = (_field(self.minute), _field(self.hour), days[0])
        line = " ".join((*parts, _field(self.month_of_year), days[1]))
        object.__setattr__(self, "cron", line)


@dataclass(frozen=True)
class schedule:
    """Every so many seconds, or a timedelta."""

    run_every: float | timedelta

    @property
    def seconds(self) -> float:
        """The interval in seconds."""
        every = self.run_every
        return every.total_seconds() if isinstance(every, timedelta) else float(every)


def solar(*_: Any, **__: Any) -> Any:
    """Refuse what redistq has no clock for."""
    raise NotSupported("a solar schedule", "use crontab, or let a task put itself off (eta=...)")


def timing_of(given: Any, zone: str) -> dict[str, Any]:
    """Return a schedule's time as ``@task`` takes it: cron and tz, or every."""
    if isinstance(given, crontab):
        return {"cron": given.cron, "tz": zone}
    if isinstance(given, schedule):
        return {"every": given.seconds}
    if isinstance(given, timedelta):
        return {"every": given.total_seconds()}
    if isinstance(given, int | float) and not isinstance(given, bool):
        return {"every": float(given)}
    if hasattr(given, "_orig_minute"):
        raise ConfigurationError(
            "this is a crontab of celery itself: from redistq.compat.celery import crontab"
        )
    raise ConfigurationError(
        f"a schedule is a number of seconds, a timedelta or a crontab, not {given!r:.60}"
    )


def _field(given: Field) -> str:
    if isinstance(given, str):
        return given.replace(" ", "") or "*"
    if isinstance(given, int):
        return str(given)
    return ",".join(str(number) for number in sorted(given))
