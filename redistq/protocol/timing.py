"""When a schedule fires: a cron expression in a time zone, or every so often. Never talks to a
server; all times are ms since the epoch.

Cron is read by ``cronsim``, which is given times without a zone. A time that a clock change leaves
out becomes the end of the gap, and one that it repeats comes once, the first time. Only a rule for
every hour (``*`` as hour) follows the real time: it goes on through both.
"""

from __future__ import annotations

import difflib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from .checks import Seconds, milliseconds, seconds, shown

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from cronsim import CronSim

ZONE = "UTC"
"""The time zone where none is given."""
LEAST_EVERY_S = 0.1
"""Shortest interval of a schedule."""
GRACE_MS = 60_000
"""So late an occurrence is not missed yet; of a shorter interval, one interval."""
AGAIN_MS = 10_000
"""After that time a due schedule that nobody has fired is due again; sooner for short intervals."""
COUNTED = 10_000
"""Most occurrences that were missed which are counted one by one."""
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * sun",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_HELP = (
    "it has five fields, minute hour day month weekday, or six with the second before them: "
    "cron='0 6 * * mon' is Mondays at six, '*/15 * * * *' every quarter of an hour, "
    "'30 0 6 * * *' half a minute past six every day"
)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a schedule fires: by ``cron`` in the zone ``tz``, or every ``every_ms``."""

    cron: str = ""
    every_ms: int = 0
    tz: str = ZONE

    @classmethod
    def of(cls, cron: str | None, every: Seconds | None, tz: str = ZONE) -> Timing:
        """Return the timing that a caller gives; raises ConfigurationError for what is none, for a
        zone that there is not, and for a rule that never fires."""
        if (cron is None) == (every is None):
            raise ConfigurationError(
                "a schedule has either cron='0 6 * * mon' or every='15m'"
                + (", and neither was given" if cron is None else ", not both")
            )
        zone_of(tz)
        if every is not None:
            length = seconds("every", every)
            if length < LEAST_EVERY_S:
                raise ConfigurationError(
                    f"every is {LEAST_EVERY_S:g} seconds or more, not {shown(every)}"
                )
            return cls(every_ms=milliseconds(length))
        if not isinstance(cron, str):
            raise ConfigurationError(f"cron is text, not {shown(cron)}; {_HELP}")
        text = " ".join(cron.split())
        made = cls(cron=_NAMED.get(text.lower(), text), tz=tz)
        _reader(made.cron, datetime(2024, 1, 1))
        if made.after(946_684_800_000) is None:
            raise ConfigurationError(f"cron={text!r} never fires: no date is so")
        return made

    def written(self) -> str:
        """Return it as it stands in a schedule's record."""
        if self.every_ms:
            return json.dumps({"every": self.every_ms})
        return json.dumps({"cron": self.cron, "tz": self.tz})

    @classmethod
    def read(cls, text: str) -> Timing:
        """Return the timing that stands in a record; raises ValueError for what is none."""
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"no rule of a schedule: {text!r:.100}")
        return cls(found.get("cron", ""), int(found.get("every", 0)), found.get("tz", ZONE))

    def after(self, at_ms: int, anchor_ms: int = 0) -> int | None:
        """Return the first time it fires after a moment; None for never. An interval counts from
        ``anchor_ms``."""
        return next(self.times(at_ms, anchor_ms), None)

    def times(self, after_ms: int, anchor_ms: int = 0) -> Iterator[int]:
        """Yield the times at which it fires after a moment, without an end."""
        if self.every_ms:
            count = (after_ms - anchor_ms) // self.every_ms + 1
            while True:
                yield anchor_ms + count * self.every_ms
                count += 1
        last = after_ms
        for moment in self._moments(after_ms):
            if moment > last:
                yield moment
                last = moment

    def due(self, first_ms: int, now_ms: int, anchor_ms: int, most: int) -> tuple[list[int], int]:
        """Return the latest ``most`` times from ``first_ms``, which is one, until now; and how many
        earlier ones there are (of very many, at least so many)."""
        found = deque([first_ms], maxlen=most)
        seen = 1
        for at_ms in islice(self.times(first_ms, anchor_ms), COUNTED):
            if at_ms > now_ms:
                return list(found), seen - len(found)
            found.append(at_ms)
            seen += 1
        span = GRACE_MS
        while span < now_ms - first_ms:
            latest = list(self._between(now_ms - span, now_ms, anchor_ms))[-most:]
            if len(latest) == most:
                return latest, seen
            span *= 4
        return list(found), seen

    def grace_ms(self, at_ms: int, anchor_ms: int = 0) -> int:
        """Return how late the occurrence of that time may be without being missed."""
        following = self.after(at_ms, anchor_ms)
        return GRACE_MS if following is None else min(GRACE_MS, following - at_ms)

    def again_ms(self, at_ms: int, anchor_ms: int = 0) -> int:
        """Return after what time it is due again when whoever was to fire it has died."""
        return min(AGAIN_MS, max(1000, self.grace_ms(at_ms, anchor_ms)))

    @property
    def words(self) -> str:
        """The rule to read: 'every 15 min', 'At 06:00 on Monday (Europe/Berlin)'."""
        if self.every_ms:
            return f"every {_span(self.every_ms)}"
        try:
            said = _reader(self.cron, datetime(2024, 1, 1)).explain()
        except Exception:  # it explains no 6 fields in older versions
            said = self.cron
        return f"{said} ({self.tz})"

    def _between(self, after_ms: int, until_ms: int, anchor_ms: int) -> Iterator[int]:
        for at_ms in self.times(after_ms, anchor_ms):
            if at_ms > until_ms:
                return
            yield at_ms

    def _moments(self, after_ms: int) -> Iterator[int]:
        zone = zone_of(self.tz)
        here = _EPOCH + timedelta(milliseconds=after_ms)
        local = here.astimezone(zone)
        if self.tz == ZONE:
            yield from map(_ms, _reader(self.cron, here))
        elif _hourly(self.cron):
            yield from (_ms(found.astimezone(UTC)) for found in _reader(self.cron, local))
        else:
            for wall in _reader(self.cron, local.replace(tzinfo=None)):
                yield _ms(_instant(wall, zone))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _ms(moment: datetime) -> int:
    return round((moment - _EPOCH) / timedelta(milliseconds=1))


def _reader(cron: str, start: datetime) -> CronSim:
    """What reads an expression, from a moment on; raises ConfigurationError for what is none."""
    from cronsim import CronSim, CronSimError

    try:
        return CronSim(cron, start)
    except (CronSimError, ValueError, AssertionError) as error:
        words = str(error) or "it cannot be read"
        if words == "Bad day-of-month" and _days_read(cron):
            raise ConfigurationError(
                f"cron={cron!r:.100} never fires: none of its months has such a day; take a day "
                "that there is, or L for the last day of a month"
            ) from None
        raise ConfigurationError(
            f"cron={cron!r:.100} is no cron expression ({words}): {_HELP}"
        ) from None


def _days_read(cron: str) -> bool:
    """Whether the days alone can be read, so that it is the months which have none of them."""
    from cronsim.cronsim import CronSimError, Field

    try:
        Field.DAY.parse(cron.upper().split()[-3])
    except (CronSimError, LookupError):
        return False
    return True


@lru_cache(maxsize=256)
def _hourly(cron: str) -> bool:
    return len(_reader(cron, datetime(2024, 1, 1)).hours) == 24


@lru_cache(maxsize=256)
def zone_of(name: Any) -> ZoneInfo:
    """Return a time zone by its name; raises ConfigurationError where there is none."""
    from zoneinfo import ZoneInfo, available_timezones

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError, TypeError, AttributeError):
        pass
    known = available_timezones()
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    lacking = "" if known else "; this machine knows no zones: pip install tzdata"
    raise ConfigurationError(
        f"tz is the name of a time zone, such as 'Europe/Berlin' or 'UTC', not {shown(name)}; "
        f"{hint}zoneinfo.available_timezones() lists them{lacking}"
    )


def _instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment that a clock of the zone shows ``wall``: of two the first, and where the
    clock leaves it out, the end of that gap."""
    before = zone.utcoffset(wall)
    after = zone.utcoffset(wall.replace(fold=1))
    assert before is not None
    assert after is not None
    first = (wall - before).replace(tzinfo=UTC)
    if after <= before:
        return first
    low = (wall - after).replace(tzinfo=UTC)  # before the change; ``first`` is after it
    high = first
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=1) // 2)
        if middle.astimezone(zone).utcoffset() == after:
            high = middle
        else:
            low = middle
    return high


def _span(length_ms: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if length_ms % size == 0:
            return f"{length_ms // size} {unit}"
    return f"{length_ms / 1000:g} s"
