"""The clock of a test's queue: all that goes by time goes by it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from redistq import ConfigurationError, EventTimeout, Registry, TaskContext, Unique, UnknownTask
from redistq.testing import TestQueue


@pytest.fixture
def note(registry: Registry) -> list[Any]:
    """What the handler ``note`` was given."""
    noted: list[Any] = []
    registry.task(name="note")(noted.append)
    return noted


def test_it_goes_on_by_itself_until_it_is_moved(queue: TestQueue) -> None:
    """It is the server's clock, then ahead of it."""
    real = datetime.now(UTC)
    assert abs(queue.clock.now - real) < timedelta(seconds=2)
    assert queue.clock.advance(hours=1) - real >= timedelta(hours=1)
    assert queue.clock.advance(timedelta(days=1)) - real < timedelta(days=1, hours=1, minutes=1)
    with pytest.raises(ConfigurationError):
        queue.clock.advance(-1)


def test_frozen_it_stands_still(queue: TestQueue, note: list[Any]) -> None:
    """Frozen, it moves only when it is moved; then it goes on from there."""
    with queue.clock.freeze(datetime(2024, 2, 29, 12, tzinfo=UTC)) as clock:
        assert clock.frozen
        now = clock.now
        queue.producer.add_task("note", 1, delay=0.05)
        time.sleep(0.1)
        assert queue.drain() == []
        assert clock.now == now == datetime(2024, 2, 29, 12, tzinfo=UTC)
        clock.advance(0.05)
        assert len(queue.drain(check=True)) == 1
    assert queue.clock.now - now < timedelta(seconds=5)
    time.sleep(0.002)
    assert queue.clock.now > now


def test_it_goes_back_only_before_the_queue_is_used(queue: TestQueue, note: list[Any]) -> None:
    """Ids of entries are times: they only grow."""
    queue.clock.move_to(datetime(1999, 12, 31, 23, 59, tzinfo=UTC))
    queue.producer.add_task("note", 1)
    with pytest.raises(ConfigurationError, match="goes only ahead"):
        queue.clock.move_to(datetime(1998, 1, 1, tzinfo=UTC))
    with pytest.raises(ConfigurationError, match="time zone"):
        queue.clock.move_to(datetime(2000, 1, 1))
    queue.clock.move_to(datetime(2000, 1, 1, tzinfo=UTC).timestamp())
    assert queue.drain(check=True).names == ["note"]


def test_delayed_tasks_follow_it(queue: TestQueue, note: list[Any]) -> None:
    """Both by delay and by an instant."""
    queue.producer.add_task("note", 1, delay=3600)
    queue.producer.schedule_task("note", 2, queue.clock.now + timedelta(hours=2))
    assert queue.drain() == []
    queue.clock.advance(hours=1)
    assert [run.payload for run in queue.drain()] == [1]
    assert [run.payload for run in queue.run_for(hours=1)] == [2]


def test_backoff_follows_it(queue: TestQueue, registry: Registry) -> None:
    """Retries come when their pause is over, not before."""

    @registry.task(retries=2, backoff=60, jitter=0)
    def fails(payload: Any) -> None:
        raise ValueError

    queue.producer.add_task("fails")
    assert queue.drain().states == ["retried"]
    queue.clock.advance(58)
    assert queue.drain() == []
    queue.clock.advance(2)
    assert queue.drain().states == ["retried"]
    assert queue.run_for(minutes=2).states == ["failed"]


def test_expiry_follows_it(queue: TestQueue, note: list[Any]) -> None:
    """What has not started by its deadline ends as expired."""
    queue.producer.add_task("note", 1, expires=60)
    queue.clock.advance(61)
    assert queue.drain().states == ["expired"]
    queue.producer.add_task("note", 2, expires=60)
    assert queue.drain().states == ["succeeded"]


def test_schedules_follow_it(queue: TestQueue, note: list[Any]) -> None:
    """``run_for`` fires each time of a schedule; a jump fires as ``missed`` says."""
    clock = queue.clock
    clock.move_to(datetime(2024, 3, 30, 22, 30, tzinfo=UTC))
    queue.producer.schedules.set("night", "30 2 * * *", task="note", tz="Europe/Berlin")
    runs = queue.run_for(days=2)
    # 02:30 does not exist on the 31st: it runs when the clocks have gone ahead.
    assert [run.id for run in runs] == [
        f"night@{int(datetime(2024, 3, 31, 1, 0, tzinfo=UTC).timestamp() * 1000)}",
        f"night@{int(datetime(2024, 4, 1, 0, 30, tzinfo=UTC).timestamp() * 1000)}",
    ]
    clock.advance(days=10)
    assert len(queue.drain()) == 1  # missed="once"


def test_debounce_follows_it(queue: TestQueue, note: list[Any]) -> None:
    """A unique key with a time is free when that is over."""
    add = queue.producer.add_task
    add("note", 1, unique=Unique("k", 60))
    queue.drain()
    assert add("note", 2, unique=Unique("k", 60)).outcome == "joined"
    queue.clock.advance(61)
    assert add("note", 3, unique=Unique("k", 60)).outcome == "added"


def test_steps_sleep_and_wait_by_it(queue: TestQueue, registry: Registry) -> None:
    """Durable sleeps and events with a limit."""

    @registry.task(retries=0)
    def order(payload: Any, context: TaskContext) -> Any:
        context.sleep(86_400)
        try:
            return context.wait_for("paid", timeout=3600)
        except EventTimeout:
            return "late"

    queue.producer.add_task("order")
    queue.producer.add_task("order", task_id="b")
    assert queue.drain().states == ["sleep", "sleep"]
    queue.clock.advance(days=1)
    assert queue.drain().states == ["event", "event"]
    queue.producer.send_event("paid", 5, task="b")
    assert queue.drain().results == [5]
    queue.clock.advance(hours=1)
    assert queue.drain().results == ["late"]


def test_results_live_by_it(queue: TestQueue, note: list[Any], db: redis.Redis) -> None:
    """What is kept for a time is gone when that is over."""
    task_id = queue.producer.add_task("note", 1, result_ttl=3600)
    queue.drain()
    queue.clock.advance(minutes=59)
    assert queue.producer.get_task(task_id).state == "succeeded"
    queue.clock.advance(minutes=2)
    with pytest.raises(UnknownTask):
        queue.producer.get_task(task_id)


def test_monitors_see_it(queue: TestQueue, note: list[Any]) -> None:
    """So that what they say of ages and due times is right."""
    queue.producer.add_task("note", 1, delay=7200)
    queue.clock.advance(hours=1)
    (row,) = queue.monitor.records.delayed()
    assert 3500 < row.due_in_ms / 1000 <= 3600
    assert abs(queue.monitor.now_ms() - queue.clock.now_ms) < 1000
    queue.producer.add_task("note", 2)
    queue.clock.advance(minutes=5)
    snapshot = queue.producer.snapshot()
    assert snapshot.ready == 1
    assert snapshot.oldest_ms is not None
    assert snapshot.now_ms - snapshot.oldest_ms >= 300_000
