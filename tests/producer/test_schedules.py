"""producer.schedules: set, looked at, changed, paused, run now, backfilled and deleted."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from support.schedules import record, shift
from support.workers import until

from redistq import (
    AsyncTaskProducer,
    ConfigurationError,
    PayloadError,
    PayloadTooLarge,
    TaskProducer,
    TaskWorker,
    Unique,
    UnknownSchedule,
    task,
)
from redistq.producer import schedules as module


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


@task(name="reports.weekly", limits="reports", retries=1)
def weekly(payload: Any) -> None:
    """A decorated function."""


def test_a_schedule_is_set_and_read(producer: TaskProducer, db: redis.Redis) -> None:
    """What was given, in words, with its next time in its zone; one or all of them."""
    made = producer.schedules.set(
        "report", cron="0 6 * * mon", tz="Europe/Berlin", task="report", payload={"week": True}
    )
    assert producer.schedules.get("report") == made == producer.schedules["report"]
    assert (made.task, made.missed, made.overlap, made.paused) == ("report", "once", "skip", False)
    assert made.rule == "At 06:00 on Monday (Europe/Berlin)"
    assert json.loads(made.payload) == {"week": True}
    assert isinstance(made.next, datetime)
    assert (made.next.weekday(), made.next.hour, made.next.tzinfo) == (
        *(0, 6, ZoneInfo("Europe/Berlin")),
    )
    assert made.next > datetime.now(UTC)
    producer.schedules.set("other", every="15m", task=weekly, missed="all", overlap="queue")
    assert [s.name for s in producer.schedules] == ["other", "report"]
    other = producer.schedules["other"]
    assert other.task == "reports.weekly"
    assert "k1 reports" in json.loads(record(db, "other")["definition"])["opts"]
    assert set(producer.schedules.all()) == {"other", "report"}
    assert producer.schedules.get("no") is None
    assert json.dumps(made.written())


def test_set_again_it_goes_on(producer: TaskProducer, db: redis.Redis) -> None:
    """The same rule keeps its next time, however often it is set and whatever else changes: one
    that each start of a program declares fires all the same. Another rule counts from now."""

    def again(**changes: Any) -> Any:
        given = {"every": "1h", "task": "job", "payload": {"n": 1}, **changes}
        return producer.schedules.set("s", **given)

    first = again()
    shift(db, "s", -600_000, "next")
    for _ in range(3):
        same = again()
        assert (same.next_ms, same.version) == (first.next_ms - 600_000, first.version)
    for changes in ({"payload": {"n": 2}}, {"task": "other"}, {"retries": 3}, {"overlap": "allow"}):
        changed = again(**changes)
        assert changed.next_ms == first.next_ms - 600_000
        assert changed.version > same.version
        assert changed.anchor_ms == first.anchor_ms
        same = changed
    other = again(every="2h")
    assert other.next_ms > first.next_ms
    assert other.fired == 0


def test_a_pause_holds_until_it_is_ended(producer: TaskProducer, db: redis.Redis) -> None:
    """Also when the schedule is set again, as a deploy does; it goes on at its next time from then:
    what came during the pause was not missed."""
    producer.schedules.set("s", every="1h", task="job", missed="all")
    producer.schedules.pause("s")
    producer.schedules.pause("s")
    assert producer.schedules["s"].next is None
    assert producer.schedules.set("s", every="1h", task="job", payload=1).paused
    assert producer.schedules.set("s", every="3h", task="job", payload=1).paused
    assert not db.exists("due:tasks", "delayed:tasks")
    there = producer.schedules.set("s", every="1h", task="job", payload=1)
    value = db.hget("schedules:tasks", "s").replace(
        str(there.anchor_ms), str(there.anchor_ms - 36_000_000 - 5)
    )
    db.hset("schedules:tasks", "s", value.replace(str(there.next_ms), "1000"))
    producer.schedules.resume("s")
    stands = producer.schedules["s"]
    assert (stands.next_ms - stands.anchor_ms) % 3_600_000 == 0
    assert 0 < stands.next_ms - time.time() * 1000 <= 3_600_000
    before = stands
    producer.schedules.resume("s")  # it is not paused: nothing changes
    assert producer.schedules["s"] == before
    producer.schedules.pause("s")
    assert not producer.schedules.set("s", every="1h", task="job", payload=1, paused=False).paused
    assert producer.schedules.set("new", every=5, task="job", paused=True).paused
    assert db.zscore("due:tasks", "new") is None


def test_what_is_not_there_is_an_error_that_says_so(producer: TaskProducer) -> None:
    """Or False, where it was to be deleted."""
    for call in (
        producer.schedules.pause,
        producer.schedules.resume,
        producer.schedules.run_now,
        producer.schedules.__getitem__,
        lambda name: producer.schedules.backfill(name, 0, 1),
    ):
        with pytest.raises(UnknownSchedule, match=r"no schedule 'gone'.*all\(\)") as caught:
            call("gone")
        assert caught.value.name == "gone"
        assert isinstance(caught.value, LookupError)
    assert producer.schedules.delete("gone") is False


def test_deleted_it_leaves_nothing(producer: TaskProducer, db: redis.Redis) -> None:
    """But the tasks that it has added."""
    producer.schedules.set("s", every="1h", task="job")
    task_id = producer.schedules.run_now("s")
    assert producer.schedules.delete("s") is True
    assert not db.exists("schedules:tasks", "due:tasks", "delayed:tasks")
    assert producer.get_task(task_id).state == "queued"


def test_run_now(url: str, producer: TaskProducer) -> None:
    """One task at once, beside its times, also while it is paused; where tasks may not overlap, the
    one that has not ended is answered."""
    made = producer.schedules.set("s", every="1h", task="job", payload=7)
    producer.schedules.pause("s")
    first = producer.schedules.run_now("s")
    assert first.startswith("s@now-")
    assert first.outcome == "added"
    time.sleep(0.002)
    second = producer.schedules.run_now("s")
    assert (second, second.outcome) == (first, "joined")
    with TaskWorker(url=url, task_handlers={"job": lambda payload: payload + 1}):
        assert producer.get_result(first, 10) == 8
        third = producer.schedules.run_now("s")
        assert third != first
        assert producer.get_result(third, 10) == 8
    stands = producer.schedules["s"]
    assert (stands.fired, stands.next_ms, stands.last_id) == (2, made.next_ms, third)


def test_a_backfill_runs_what_was_missed_and_nothing_twice(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """The ids are those of the occurrences: what there is is known. One after another, where they
    may not overlap; what is to come is not made up for."""
    producer.schedules.set("s", cron="0 0 * * *", task="job", tz="Europe/Berlin")
    start = datetime(2026, 3, 27, 12, tzinfo=UTC)
    made = producer.schedules.backfill("s", start, start + timedelta(days=4))
    days = [datetime.fromtimestamp(int(i.partition("@")[2]) / 1000, UTC) for i in made]
    assert [f"{d:%d %H}" for d in days] == ["27 23", "28 23", "29 22", "30 22"]
    assert [task_id.outcome for task_id in made] == ["added"] * 4
    again = producer.schedules.backfill("s", start - timedelta(days=1), start + timedelta(days=3))
    assert [task_id.outcome for task_id in again] == ["added", *["known"] * 3]
    running: list[int] = []
    most = 0

    def job(payload: Any) -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        time.sleep(0.02)
        running.pop()

    with TaskWorker(url=url, task_handlers={"job": job}, threads=8):
        until(lambda: producer.drain(0), "all run")
    assert most == 1
    assert producer.schedules["s"].fired == 5
    assert producer.schedules.backfill("s", time.time() + 9e5, time.time() + 9e6) == []
    assert producer.schedules.backfill("s", start, start) == []
    producer.schedules.set("fast", every=1, task="job")
    with pytest.raises(ConfigurationError, match="at most 10,000 occurrences"):
        producer.schedules.backfill("fast", 0, time.time())
    begun = producer.schedules.set("all", every=60, task="job", overlap="allow").anchor_ms / 1000
    assert len(producer.schedules.backfill("all", begun - 86_430, begun - 30)) == 1440
    assert producer.snapshot().ready == 1440


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs task="),
        ({"task": ""}, "task's type is one line"),
        ({"task": "job", "missed": "twice"}, "missed is one of skip, once, all, not 'twice'"),
        ({"task": "job", "overlap": "no"}, "overlap is one of allow, skip, queue, not 'no'"),
        ({"task": "job", "delay": 5}, "a schedule has no delay"),
        ({"task": "job", "after": "x"}, "a schedule has no after"),
        ({"task": "job", "retry": 5}, "a schedule has no option 'retry'; did you mean 'retries'"),
        ({"task": "job", "retries": -1}, "retries is a whole number"),
        ({"task": "job", "limits": {"a": 0}}, "weight of 'a'"),
        ({"task": "job", "overlap": "skip", "unique": "u"}, "one unique key"),
        ({"task": len}, "a function decorated with @task"),
    ],
)
def test_a_bad_schedule_is_an_error_at_the_call(
    producer: TaskProducer, db: redis.Redis, given: dict[str, Any], words: str
) -> None:
    """It names the next step, and nothing is set."""
    with pytest.raises((ConfigurationError, TypeError, ValueError), match=words):
        producer.schedules.set("s", every=5, **given)
    assert not db.exists("schedules:tasks")


def test_other_errors_at_the_call(
    url: str, producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, rules, payloads, and too many schedules."""
    for name in ("", "x" * 171, "two\nlines", None):
        with pytest.raises(ConfigurationError, match="the name of a schedule"):
            producer.schedules.set(name, every=5, task="job")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="never fires"):
        producer.schedules.set("s", cron="0 0 31 2 *", task="job")
    with pytest.raises(ConfigurationError, match="did you mean 'Europe/Berlin'"):
        producer.schedules.set("s", cron="@daily", tz="Europe/Belin", task="job")
    with pytest.raises(PayloadError):
        producer.schedules.set("s", every=5, task="job", payload={1, 2})
    with TaskProducer(url=url, max_payload_bytes=100) as small, pytest.raises(PayloadTooLarge):
        small.schedules.set("s", every=5, task="job", payload="x" * 100)
    monkeypatch.setattr(module, "MOST_SCHEDULES", 1)
    producer.schedules.set("s", every=5, task="job")
    producer.schedules.set("s", every=6, task="job")
    with pytest.raises(ConfigurationError, match="a queue has at most"):
        producer.schedules.set("t", every=5, task="job")


def test_a_unique_key_of_ones_own_takes_the_place_of_overlap(producer: TaskProducer) -> None:
    """Where nothing is said of overlap."""
    made = producer.schedules.set("s", every=5, task="job", unique=Unique("u", "started"))
    assert made.overlap == "allow"
    assert producer.schedules.run_now("s").outcome == "added"
    time.sleep(0.002)
    assert producer.schedules.run_now("s").outcome == "joined"


def test_times_that_have_been_do_not_come_again(producer: TaskProducer, db: redis.Redis) -> None:
    """When the clock goes back after a fire, or the new server of a failover is behind, another
    rule goes on after the last occurrence; a clock that was a day ahead is forgotten."""
    now = int(time.time() * 1000)
    producer.schedules.set("s", cron="0 * * * *", task="job")
    for minute, ahead, wanted in ((7, 7_200_000, True), (11, 90_000_000, False)):
        value = db.hget("schedules:tasks", "s")
        line, _, payload = value.partition("\n")
        db.hset(
            *("schedules:tasks", "s"),
            json.dumps({**json.loads(line), "past": now + ahead}) + "\n" + payload,
        )
        made = producer.schedules.set("s", cron=f"{minute} * * * *", task="job")
        assert (made.next_ms > now + ahead) is wanted
        assert made.next_ms > now


def test_a_preview_sets_nothing(producer: TaskProducer, db: redis.Redis) -> None:
    """The next times, in the zone."""
    times = producer.schedules.preview("30 2 * * *", "Europe/Berlin", n=400)
    assert len(set(times)) == 400
    assert all(b - a > timedelta(hours=22) for a, b in itertools.pairwise(times))
    assert {t.hour for t in times} == {2, 3}  # one of them is at the end of a gap
    steps = producer.schedules.preview(every="90s", n=3)
    assert steps[2] - steps[0] == timedelta(seconds=180)
    assert len(producer.schedules.preview("@hourly")) == 5
    assert not db.exists("schedules:tasks")


def test_the_same_for_await(url: str) -> None:
    """Every method of the async twin."""

    async def tour() -> None:
        async with AsyncTaskProducer(url=url) as producer:
            schedules = producer.schedules
            made = await schedules.set("s", cron="@daily", task="job", payload=[])
            assert await schedules.get("s") == made
            assert [s.name async for s in schedules] == ["s"]
            await schedules.pause("s")
            assert (await schedules.all())["s"].paused
            await schedules.resume("s")
            assert (await schedules.run_now("s")).outcome == "added"
            start = datetime(2026, 1, 1, tzinfo=UTC)
            assert len(await schedules.backfill("s", start, start + timedelta(days=2))) == 3
            assert len(await schedules.preview("@daily", n=2)) == 2
            assert await schedules.delete("s") is True
            with pytest.raises(UnknownSchedule):
                await schedules.pause("s")

    asyncio.run(tour())
