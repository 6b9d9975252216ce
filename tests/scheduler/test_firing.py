"""Schedules fire: on time, each occurrence once, whoever calls, dies, or calls late."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.schedules import occurrences, record, shift
from support.servers import Server
from support.workers import commands_in, history, lapse, until

from redistq import Registry, TaskProducer, TaskScheduler, TaskWorker
from redistq.protocol.commands import SCHEDULES_TIMER, Commands
from redistq.protocol.keys import QueueKeys

DAY_MS = 86_400_000


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def scheduler(url: str) -> Iterator[TaskScheduler]:
    """A scheduler that does something only when it is told to."""
    scheduler = TaskScheduler(url=url)
    yield scheduler
    scheduler._broker.close()


def now_ms(db: redis.Redis) -> int:
    seconds, micros = db.time()
    return int(seconds * 1000 + micros // 1000)


def test_every_second_a_task_runs_once(url: str, producer: TaskProducer, db: redis.Redis) -> None:
    """A worker with its scheduler runs each occurrence, at its time, with the payload it was given;
    the id says when that is."""
    ran: list[tuple[str, Any, float]] = []

    def job(payload: Any, context: Any) -> None:
        ran.append((context.task_id, payload, time.time()))

    with TaskWorker(url=url, task_handlers={"job": job}):
        made = producer.schedules.set("tick", every=0.3, task="job", payload={"empty": [], "n": 1})
        until(lambda: len(ran) >= 5, "five runs")
    first = made.anchor_ms + 300
    for n, (task_id, payload, at) in enumerate(ran):
        assert task_id == f"tick@{first + 300 * n}"
        assert payload == {"empty": [], "n": 1}
        assert -0.01 < at - (first + 300 * n) / 1000 < 0.25
    stands = producer.schedules["tick"]
    assert stands.fired >= 5
    assert (stands.skipped, stands.fault) == (0, "")
    assert stands.last_id == f"tick@{stands.last_ms}"


def test_ten_schedulers_fire_each_occurrence_once(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """They race for many schedules; nothing is doubled, left out or out of order."""
    schedulers = [TaskScheduler(url=url).start() for _ in range(10)]
    try:
        for n in range(8):
            producer.schedules.set(
                f"s{n}", every=0.1 + n / 50, task="job", overlap="allow", missed="all"
            )
        until(lapse(3), "they fire")
        for n in range(8):
            producer.schedules.pause(f"s{n}")
    finally:
        for scheduler in schedulers:
            scheduler.stop()
    for schedule in producer.schedules:
        found = occurrences(db, schedule.name)
        every = schedule.timing.every_ms
        assert len(found) >= 3000 / every - 3
        assert found == [schedule.anchor_ms + every * (n + 1) for n in range(len(found))]
        assert schedule.fired == len(found)


def test_a_fire_that_is_sent_again_or_late_changes_nothing(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler
) -> None:
    """Two schedulers have computed the same; one of them comes after the next occurrence, and one
    after the schedule was changed, paused, deleted or made again."""
    calls: list[Any] = []
    send = scheduler._broker.call

    def remember(command: Any) -> Any:
        calls.append(command)
        return send(command)

    scheduler._firing._call = remember
    made = producer.schedules.set("s", every="1h", task="job", overlap="allow")
    shift(db, "s", -3_700_000)
    assert scheduler.promote_due() == 1
    before = record(db, "s")
    for _ in range(2):
        assert Commands.read_fire(send(calls[0])).outcome == "stale"
    assert record(db, "s") == before
    assert occurrences(db, "s") == [made.next_ms - 3_700_000]
    changes: list[Callable[[], Any]] = [
        lambda: producer.schedules.set("s", every="1h", task="job", payload=1, overlap="allow"),
        lambda: producer.schedules.pause("s"),
        lambda: producer.schedules.delete("s"),
        lambda: producer.schedules.set("s", every="1h", task="job", overlap="allow"),
    ]
    for change in changes:
        change()
        assert Commands.read_fire(send(calls[0])).outcome in ("stale", "unknown")
    assert len(occurrences(db, "s")) == 1


def test_a_scheduler_that_dies_before_it_fires_is_replaced(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler
) -> None:
    """What promote has named and nobody fired is named again, after a second or one interval, ten
    seconds at most; the occurrence comes late, and once."""
    commands = Commands(QueueKeys("tasks"))
    producer.schedules.set("s", every=2, task="job")
    producer.schedules.set("rare", cron="0 0 1 1 *", task="job")
    shift(db, "s", -2100)
    shift(db, "rare", now_ms(db) - record(db, "rare")["next"] - 5)
    done = Commands.read_promote(scheduler._broker.call(commands.promote()))
    assert set(done.schedules) == {"s", "rare"}
    again = Commands.read_promote(scheduler._broker.call(commands.promote()))
    assert not again.schedules  # those that race with it find nothing
    assert again.next_due_ms is not None
    assert 1900 < again.next_due_ms - done.now_ms <= 2001
    assert 9900 < db.zscore("due:tasks", "rare") - done.now_ms <= 10_001
    assert not occurrences(db, "s")
    with scheduler:
        until(lambda: occurrences(db, "s"), "it is fired by another", 4)


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("once", 1), ("all", 24)])
def test_after_a_day_without_a_scheduler(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler, missed: str, count: int
) -> None:
    """None of the missed runs, the latest, or all of them, in order; then it goes on as ever."""
    producer.schedules.set("s", every="1h", task="job", overlap="allow", missed=missed)
    there = shift(db, "s", -DAY_MS - 90_000)
    assert scheduler.promote_due() == count
    times = [there["next"] + n * 3_600_000 for n in range(24)]
    assert occurrences(db, "s") == times[24 - count :]
    after = producer.schedules["s"]
    assert after.next_ms == there["next"] + DAY_MS
    assert (after.fired, after.skipped) == (count, 24 - count)
    assert scheduler.promote_due() == 0
    shift(db, "s", now_ms(db) - after.next_ms - 50)  # on time: the next one runs, whatever is said
    assert scheduler.promote_due() == 1


def test_a_minute_late_is_not_missed(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler
) -> None:
    """With missed="skip" what is late by less than a minute, or an interval, runs."""
    producer.schedules.set("s", cron="0 0 1 1 *", task="job", overlap="allow", missed="skip")
    for late, runs in ((50_000, 1), (70_000, 0)):
        shift(db, "s", now_ms(db) - late - record(db, "s")["next"], "next")
        assert scheduler.promote_due() == runs


def test_what_was_missed_is_made_up_for_up_to_a_thousand(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The latest thousand run, in order; the log says how many do not."""
    producer.schedules.set("s", every=10, task="job", overlap="allow", missed="all")
    there = shift(db, "s", -DAY_MS)
    with caplog.at_level(logging.WARNING, "redistq.scheduler"):
        assert scheduler.promote_due() == 1000
    assert occurrences(db, "s") == [there["next"] + 10_000 * (7640 + n) for n in range(1000)]
    stands = producer.schedules["s"]
    assert (stands.fired, stands.skipped) == (1000, 7640)
    assert [r.getMessage() for r in caplog.records] == [
        "schedule s of tasks: 7640 occurrences that were missed are left out; the latest 1000 run"
    ]


def test_a_crash_amid_many_missed_ones_leaves_the_rest(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler
) -> None:
    """Each call fires some and moves on: whoever comes next goes on there."""
    producer.schedules.set("s", every=60, task="job", overlap="allow", missed="all")
    there = shift(db, "s", -12 * 3_600_000)
    send, sent = scheduler._broker.call, 0

    def dies(command: Any) -> Any:
        nonlocal sent
        answer = send(command)
        sent += 1
        if sent == 3:
            raise MemoryError("dies")
        return answer

    scheduler._firing._call = dies
    with pytest.raises(MemoryError):
        scheduler.promote_due()
    assert 100 < len(occurrences(db, "s")) < 720
    scheduler._firing._call = send
    shift(db, "s", 0)
    scheduler.promote_due()
    assert occurrences(db, "s") == [there["next"] + 60_000 * n for n in range(720)]


def test_overlap(url: str, producer: TaskProducer, db: redis.Redis) -> None:
    """While a task runs: the next is skipped; or one waits until it ends; or all run."""
    go = threading.Event()

    def job(payload: Any) -> None:
        go.wait(20)

    with TaskWorker(url=url, task_handlers={"job": job}, threads=40):
        for overlap in ("skip", "queue", "allow"):
            producer.schedules.set(overlap, every=0.2, task="job", overlap=overlap)

        def fired(name: str) -> int:
            return producer.schedules[name].fired

        until(lambda: fired("allow") >= 8, "eight beside each other")
        assert fired("skip") == 1
        assert fired("queue") == 2
        assert producer.schedules["skip"].skipped >= 6
        until(lambda: producer.snapshot().waiting == 1, "one waits for its turn")
        for name in ("skip", "queue", "allow"):
            producer.schedules.pause(name)
        go.set()
        until(lambda: producer.drain(0), "all end")
    assert fired("queue") == 2


def test_what_was_missed_is_made_up_for_one_after_another(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """All of it, also where tasks may not overlap: no two run at once, nor beside the next."""
    running: list[str] = []
    ran: list[str] = []
    most = 0

    def job(payload: Any, context: Any) -> None:
        nonlocal most
        running.append(context.task_id)
        most = max(most, len(running))
        time.sleep(0.02)
        ran.append(running.pop())

    for overlap in ("skip", "queue"):
        producer.schedules.set(overlap, every=1, task="job", missed="all", overlap=overlap)
        shift(db, overlap, -30_000)
        with TaskWorker(url=url, task_handlers={"job": job}, threads=8):
            until(lambda: len(ran) >= 31, "all of them, and one on time", 20)
            producer.schedules.pause(overlap)
            until(lambda: producer.drain(0), "all end")
        times = [int(task_id.rpartition("@")[2]) for task_id in ran]
        assert times == [times[0] + 1000 * n for n in range(len(times))]
        assert most == 1
        assert producer.schedules[overlap].skipped == 0
        ran.clear()


def test_a_task_that_is_tried_again_still_keeps_the_next_out(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """It has not ended while it waits for its retry; once it has failed, the next one runs."""
    runs: list[str] = []

    def job(payload: Any, context: Any) -> None:
        runs.append(context.task_id)
        raise ValueError("no")

    registry = Registry()
    registry.task(retries=2, backoff=0.3, jitter=0)(job)
    with TaskWorker(url=url, task_handlers=registry):
        producer.schedules.set("s", every=0.2, task="job")
        until(lambda: len(set(runs)) >= 2, "the second occurrence")
        producer.schedules.pause("s")
    assert runs[:4] == [runs[0]] * 3 + [runs[3]]
    assert runs[3] != runs[0]


def test_the_timer_comes_back_when_somebody_took_it(
    url: str, producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler
) -> None:
    """A scheduler of an older release drops the timer that it does not know, and a hand may delete
    the set: the next look puts it back."""
    producer.schedules.set("s", every="1h", task="job")
    due = db.zscore("delayed:tasks", SCHEDULES_TIMER)
    db.zrem("delayed:tasks", SCHEDULES_TIMER)
    assert scheduler.promote_due() == 0
    assert db.zscore("delayed:tasks", SCHEDULES_TIMER) == due
    assert producer.snapshot().delayed == 0
    assert producer.drain(0)
    assert producer.purge_queue() == {"waiting": 0, "delayed": 0, "queued": 0}
    assert db.zscore("delayed:tasks", SCHEDULES_TIMER) == due


def test_a_record_that_cannot_be_read_holds_up_no_other(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is named in the log, once, and left alone; so is one whose zone this machine lacks."""
    for name in ("bad", "good", "zone", "later"):
        producer.schedules.set(name, every="1h", task="job", overlap="allow")
        shift(db, name, -3_600_500)
    db.hset("schedules:tasks", "bad", "nonsense")
    value = db.hget("schedules:tasks", "zone")
    odd = value.replace(
        json.dumps('{"every": 3600000}'), json.dumps('{"cron": "* * * * *", "tz": "Mars/Olympus"}')
    )
    assert odd != value
    db.hset("schedules:tasks", "zone", odd)
    with caplog.at_level(logging.ERROR, "redistq.scheduler"):
        assert scheduler.promote_due() == 2
        shift(db, "zone", 0)
        assert scheduler.promote_due() == 0
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2
    assert any(re.match("schedule bad of tasks is due: the record", line) for line in said)
    assert any("Mars/Olympus" in line for line in said)
    assert db.zscore("due:tasks", "bad") is None
    assert set(producer.schedules.all()) == {"good", "later", "zone"}


def test_an_occurrence_that_cannot_be_stored_is_tried_again(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its schedule says why, and it comes once the cause is removed."""
    producer.schedules.set("s", every="1h", task="job", overlap="allow")
    there = shift(db, "s", -3_600_500)
    db.set(f"task:tasks:s@{there['next']}", "something else")
    with caplog.at_level(logging.ERROR, "redistq.scheduler"):
        assert scheduler.promote_due() == 0
    assert "could not be stored: WRONGTYPE" in caplog.text
    stands = producer.schedules["s"]
    assert "WRONGTYPE" in stands.fault
    assert stands.next_ms == there["next"]
    assert db.zscore("due:tasks", "s") > now_ms(db) + 8000
    db.delete(f"task:tasks:s@{there['next']}")
    shift(db, "s", 0)
    assert scheduler.promote_due() == 1
    assert producer.schedules["s"].fault == ""


def test_a_full_server_loses_no_occurrence(private_server: Callable[..., Server]) -> None:
    """Nothing is added while it is full; then the occurrence comes."""
    server = private_server()
    with (
        server.client() as admin,
        redis.Redis(port=server.port, protocol=2, decode_responses=True) as db,
        TaskProducer(url=server.url) as producer,
        TaskScheduler(url=server.url) as scheduler,
    ):
        producer.schedules.set("s", every="1h", task="job", overlap="allow")
        admin.config_set("maxmemory", "1")
        with pytest.raises(Exception, match="maxmemory"):
            producer.schedules.set("t", every="1h", task="job")
        admin.config_set("maxmemory", "0")
        there = shift(db, "s", 1500 - 3_600_000)
        admin.config_set("maxmemory", "1")
        until(lapse(2.5), "it is due")
        assert not occurrences(db, "s")
        assert record(db, "s")["next"] == there["next"]
        admin.config_set("maxmemory", "0")
        until(lambda: occurrences(db, "s") == [there["next"]], "it comes", 15)
        del scheduler


def test_a_schedule_of_a_priority_is_fired_by_its_schedulers(url: str, db: redis.Redis) -> None:
    """Its tasks go to that priority; all priorities know the schedule, and any of them may run,
    pause or take it over."""
    with (
        TaskProducer(url=url, stream="tasks!high") as high,
        TaskProducer(url=url) as normal,
        TaskScheduler(url=url, stream="tasks!high"),
    ):
        high.schedules.set("s", every=0.2, task="job", overlap="allow")
        until(lambda: db.xlen("tasks!high") >= 2, "they fire")
        assert db.zscore("delayed:tasks!high", SCHEDULES_TIMER)
        assert db.zscore("delayed:tasks", SCHEDULES_TIMER) is None
        assert normal.schedules["s"].queue == "tasks!high"
        normal.schedules.pause("s")
        length = db.xlen("tasks!high")
        made = normal.schedules.run_now("s")
        assert made.queue == "tasks!high"
        assert db.xlen("tasks!high") == length + 1
        assert not db.exists("due:tasks!high", "tasks")
        normal.schedules.resume("s")
        until(lambda: db.xlen("tasks!high") > length + 1, "it goes on")
        normal.schedules.set("s", every=0.2, task="job", overlap="allow")
        assert db.zscore("due:tasks!high", "s") is None
        with TaskScheduler(url=url):
            until(lambda: db.xlen("tasks") >= 1, "it is the other's now")


def test_a_thousand_schedules_cost_an_idle_queue_nothing(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """No command more than without them, while none is due."""
    for n in range(1000):
        producer.schedules.set(f"s{n}", cron="0 0 1 1 *", task="job", tz="Europe/Berlin")
    with TaskScheduler(url=url), TaskScheduler(url=url):
        until(lapse(1), "they sleep")
        assert commands_in(db, lapse(3)) <= 3
        assert len(producer.schedules.all()) == 1000
        assert producer.snapshot().delayed == 0


def test_many_that_are_due_at_once_all_fire(
    producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler
) -> None:
    """Several hundred at the same time, page by page."""
    for n in range(230):
        producer.schedules.set(f"s{n}", every="1h", task="job")
        shift(db, f"s{n}", -3_600_100)
    assert scheduler.promote_due() == 230
    assert db.xlen("tasks") == 230
    assert db.zscore("delayed:tasks", SCHEDULES_TIMER) > now_ms(db)


def test_an_occurrence_goes_through_the_gate(
    url: str, producer: TaskProducer, db: redis.Redis, scheduler: TaskScheduler
) -> None:
    """Limits, retries, expiry and results of its tasks are those that were given."""
    producer.limits.set("api", at_most=1)
    for name in ("a", "b"):
        producer.schedules.set(
            name, every="1h", task="job", limits={"api": 1}, retries=7, expires=600, result_ttl=5
        )
        shift(db, name, -3_600_100)
    assert scheduler.promote_due() == 2
    assert db.xlen("tasks") == 1
    assert db.zcard("waiting:tasks") == 1
    entries: Any = db.xrange("tasks")
    opts = json.loads(entries[0][1]["opts"])
    assert (opts["retries"], opts["result_ttl"]) == (7, 5)
    (deadline,) = re.findall(r"^x (\d+)$", opts["gate"], re.M)
    assert 590_000 < int(deadline) - now_ms(db) <= 600_000
    with TaskWorker(url=url, task_handlers={"job": lambda payload: "done"}):
        until(lambda: db.zcard("waiting:tasks") == 0, "both run")
        until(lambda: history(db, entries[0][1]["id"]) == ["succeeded"], "the first has")
