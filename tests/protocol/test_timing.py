"""When schedules fire: cron in time zones, over changes of the clock in both directions, intervals,
and what is due after a time without a scheduler."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from redistq import ConfigurationError
from redistq.protocol.timing import COUNTED, Timing

BERLIN = "Europe/Berlin"


def ms(text: str, tz: str = "UTC") -> int:
    """A moment that a clock of the zone shows, unless it says its offset."""
    moment = datetime.fromisoformat(text)
    return int(
        (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(tz))).timestamp() * 1000
    )


def shown(timing: Timing, start: str, n: int) -> list[str]:
    """The next times after a moment, as clocks of the zone show them."""
    times = timing.times(ms(start, timing.tz))
    zone = ZoneInfo(timing.tz)
    found = [datetime.fromtimestamp(next(times) / 1000, zone) for _ in range(n)]
    return [f"{moment:%m-%d %H:%M:%S%z}" for moment in found]


@pytest.mark.parametrize(
    ("cron", "tz", "start", "wanted"),
    [
        # the clock goes from 2 to 3: a time in the gap is the gap's end
        (
            *("30 2 * * *", BERLIN, "2026-03-28T12:00"),
            ["03-29 03:00:00+0200", "03-30 02:30:00+0200"],
        ),
        # several times in the gap are one, also with seconds, which cronsim alone leaves out
        (
            *("0 */20 2 * * *", BERLIN, "2026-03-28T12:00"),
            ["03-29 03:00:00+0200", "03-30 02:00:00+0200"],
        ),
        # that one is not doubled by a time that is really then
        (
            *("30 2,3 * * *", BERLIN, "2026-03-28T12:00"),
            ["03-29 03:00:00+0200", "03-29 03:30:00+0200"],
        ),
        ("0 2,3 * * *", BERLIN, "2026-03-28T12:00", ["03-29 03:00:00+0200", "03-30 02:00:00+0200"]),
        # the clock goes from 3 to 2: what comes twice comes once, the first time
        (
            *("30 2 * * *", BERLIN, "2026-10-24T12:00"),
            ["10-25 02:30:00+0200", "10-26 02:30:00+0100"],
        ),
        (
            *("15 30 2 * * *", BERLIN, "2026-10-24T12:00"),
            ["10-25 02:30:15+0200", "10-26 02:30:15+0100"],
        ),
        # also when it is looked at in between
        ("30 2 * * *", BERLIN, "2026-10-25T02:45:00+02:00", ["10-26 02:30:00+0100"]),
        ("30 2 * * *", BERLIN, "2026-10-25T02:15:00+01:00", ["10-26 02:30:00+0100"]),
        # every hour is every hour, by the real time
        (
            *("30 * * * *", BERLIN, "2026-10-25T01:45:00+02:00"),
            ["10-25 02:30:00+0200", "10-25 02:30:00+0100", "10-25 03:30:00+0100"],
        ),
        (
            *("30 * * * *", BERLIN, "2026-03-29T00:45"),
            ["03-29 01:30:00+0100", "03-29 03:30:00+0200"],
        ),
        # a change by half an hour; a zone west of Greenwich; one that changes at midnight
        (
            *("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00"),
            ["10-04 02:30:00+1100", "10-05 02:15:00+1100"],
        ),
        (
            *("30 2 * * sun", "America/New_York", "2026-03-07T12:00"),
            ["03-08 03:00:00-0400", "03-15 02:30:00-0400"],
        ),
        (
            *("0 0 * * *", "America/Santiago", "2026-09-05T12:00"),
            ["09-06 01:00:00-0300", "09-07 00:00:00-0300"],
        ),
        # names, words, the last day, leap days
        ("@monthly", "UTC", "2026-01-02T00:00", ["02-01 00:00:00+0000"]),
        ("0 6 * * MON-FRI", "UTC", "2026-11-27T07:00", ["11-30 06:00:00+0000"]),
        ("0 0 L * *", "UTC", "2028-02-01T00:00", ["02-29 00:00:00+0000"]),
        ("*/2 * * * * *", "UTC", "2026-11-27T07:00:01", ["11-27 07:00:02+0000"]),
    ],
)
def test_cron_over_changes_of_the_clock(cron: str, tz: str, start: str, wanted: list[str]) -> None:
    """A time that the clock leaves out is the end of the gap, one that it repeats comes once."""
    assert shown(Timing.of(cron, None, tz), start, len(wanted)) == wanted


def test_a_year_has_one_run_a_day_in_every_zone_and_each_is_found_from_anywhere() -> None:
    """365 days, 365 runs, two of them in gaps or repeated hours; and what comes next does not
    depend on where one starts to look."""
    dice = random.Random(1)
    for tz in (BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"):
        timing = Timing.of(f"{dice.randrange(60)} {dice.choice([0, 1, 2, 3])} * * *", None, tz)
        start, end = ms("2026-01-01T12:00", tz), ms("2027-01-01T12:00", tz)
        times = []
        for at_ms in timing.times(start):
            if at_ms > end:
                break
            times.append(at_ms)
        days = {datetime.fromtimestamp(at / 1000, ZoneInfo(tz)).date() for at in times}
        assert len(times) == len(days) == 365, tz
        for _ in range(300):
            look = dice.randrange(start, times[-1])
            assert timing.after(look) == next(at for at in times if at > look)


def test_an_interval_counts_from_its_anchor_and_knows_no_zone() -> None:
    """Every so often, in ms, whatever clocks do; a time that is one is not its own next."""
    timing = Timing.of(None, "90m", BERLIN)
    anchor = ms("2026-03-29T00:00:00.123")
    assert timing.after(anchor, anchor) == anchor + 5_400_000
    assert timing.after(anchor + 5_399_999, anchor) == anchor + 5_400_000
    assert timing.after(anchor + 5_400_000, anchor) == anchor + 10_800_000
    assert timing.after(anchor - 1, anchor) == anchor
    assert Timing.of(None, 0.25).every_ms == 250


def test_what_is_due_after_a_day_a_year_and_a_moment() -> None:
    """The latest of them, in order, and how many came before; bounded however long it was."""
    minutely = Timing.of("* * * * *", None)
    now = ms("2026-11-27T00:00:30")
    first = now - 30_000 - 86_400_000
    found, earlier = minutely.due(first, now, 0, 1000)
    assert (len(found), earlier) == (1000, 441)
    assert found[-1] == now - 30_000
    assert found == sorted(set(found))
    assert minutely.due(first, now, 0, 1) == ([now - 30_000], 1440)
    assert minutely.due(now - 30_000, now, 0, 1000) == ([now - 30_000], 0)
    secondly = Timing.of("* * * * * *", None)
    found, earlier = secondly.due(now - 31_536_000_000, now, 0, 1000)
    assert found == list(range(now - 999_000, now + 1, 1000))
    assert earlier >= COUNTED
    rare = Timing.of("0 0 29 2 *", None)
    leap = ms("2024-02-29T00:00")
    assert rare.due(leap, ms("2026-01-01T00:00"), 0, 1) == ([leap], 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cron": "0 6 * *"}, "Wrong number of fields.*five fields"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "0 6 * * funday"}, "Bad day-of-week"),
        ({"cron": ""}, "no cron expression"),
        ({"cron": 5}, "cron is text, not 5"),
        ({"cron": "0 0 31 2 *"}, "never fires: none of its months has such a day.*or L"),
        ({"cron": "0 0 31 4,6 *"}, "never fires"),
        ({"cron": "0 0 * * *", "tz": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ({"cron": "0 0 * * *", "tz": "../etc/passwd"}, "tz is the name of a time zone"),
        ({"cron": "0 0 * * *", "tz": "Europe"}, "tz is the name of a time zone"),
        ({"cron": "0 0 * * *", "tz": None}, "tz is the name of a time zone"),
        ({"every": 0}, "every is 0.1 seconds or more, not 0"),
        ({"every": 0.05}, "every is 0.1 seconds or more"),
        ({"every": "soon"}, "every is"),
        ({"every": float("nan")}, "every is"),
        ({}, "either cron=.* or every=.*neither"),
        ({"cron": "* * * * *", "every": 5}, "not both"),
    ],
)
def test_what_is_no_rule_is_an_error_that_says_what_is(given: dict[str, Any], words: str) -> None:
    """It names the next step."""
    with pytest.raises(ConfigurationError, match=words):
        Timing.of(given.get("cron"), given.get("every"), given.get("tz", "UTC"))


def test_a_rule_is_written_read_and_said() -> None:
    """As itself, and in words."""
    for timing, words in (
        (Timing.of("0 6 * * mon", None, BERLIN), "At 06:00 on Monday (Europe/Berlin)"),
        (Timing.of("  0   6 * * mon ", None), "At 06:00 on Monday (UTC)"),
        (Timing.of(None, 90), "every 90 s"),
        (Timing.of(None, "2h"), "every 2 h"),
        (Timing.of(None, 0.5), "every 0.5 s"),
    ):
        assert Timing.read(timing.written()) == timing
        assert timing.words == words
    assert Timing.of("@daily", None).cron == "0 0 * * *"


def test_how_late_is_missed_depends_on_the_interval() -> None:
    """A minute, or one interval where that is shorter."""
    now = ms("2026-11-27T00:00")
    assert Timing.of("0 0 * * *", None).grace_ms(now) == 60_000
    assert Timing.of("*/20 * * * * *", None).grace_ms(now) == 20_000
    assert Timing.of(None, 5).grace_ms(now, now) == 5000
    assert Timing.of(None, 5).again_ms(now, now) == 5000
    assert Timing.of(None, 0.5).again_ms(now, now) == 1000
    assert Timing.of("@daily", None).again_ms(now) == 10_000


def test_times_are_the_same_as_counting_seconds() -> None:
    """Against the naive way, of all seconds of a day: which walls of the clock match."""
    timing = Timing.of("10,40 */7 5-9 * * *", None, BERLIN)
    start = datetime(2026, 6, 1, tzinfo=UTC)
    wanted = []
    for at in range(86_400):
        local = (start + timedelta(seconds=at)).astimezone(ZoneInfo(BERLIN))
        if local.second in (10, 40) and local.minute % 7 == 0 and 5 <= local.hour <= 9:
            wanted.append(int((start + timedelta(seconds=at)).timestamp() * 1000))
    times = timing.times(int(start.timestamp() * 1000) - 1)
    assert [next(times) for _ in wanted] == wanted
