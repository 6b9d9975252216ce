"""Tasks that are not started by their deadline: their worker looks at the clock of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.workers import history, processor_of, until

from redistq import Registry, TaskExpired, TaskProducer, TaskWorker
from redistq.errors import ServerUnavailable
from redistq.worker.clock import ServerClock

registry = Registry()
go = threading.Event()
seen: list[Any] = []


@registry.task
def blocks(payload: Any) -> None:
    seen.append("blocks")
    go.wait(20)


@registry.task
def quick(payload: Any) -> Any:
    seen.append(payload)
    return payload


@registry.task
async def quick_async(payload: Any) -> Any:
    seen.append(payload)
    return payload


@registry.task(retries=1, backoff=0)
def twice(payload: float) -> str:
    """Its second attempt begins after the deadline."""
    seen.append(payload)
    if len(seen) == 1:
        time.sleep(payload)
        raise ValueError
    return "done"


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    go.clear()
    seen.clear()
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.mark.parametrize("name", ["quick", "quick_async"])
def test_a_task_that_waits_too_long_expires_when_its_turn_comes(
    url: str, producer: TaskProducer, db: redis.Redis, name: str
) -> None:
    """It is not run; its end is counted, kept and told, and its keys are free."""
    late = producer.add_task(name, "late", expires=0.1, limits="k")
    in_time = producer.add_task(name, "in time", expires=60, limits="k")
    time.sleep(0.2)
    with TaskWorker(url=url, task_handlers=registry):
        assert producer.get_result(in_time, timeout=5) == "in time"
        with pytest.raises(TaskExpired, match="not started by its deadline"):
            producer.get_result(late, timeout=5)
    assert seen == ["in time"]
    assert history(db, late) == ["expired"]
    assert db.hget("counters:tasks", "expired") == "1"
    assert producer.get_task(late).state == "expired"
    assert db.hget("limits:tasks", "sk") is None


def test_what_was_fetched_in_time_and_waits_behind_others_expires_too(
    url: str, producer: TaskProducer
) -> None:
    """The time counts at which it would start."""
    with TaskWorker(url=url, task_handlers=registry, thread_count=1) as worker:
        producer.add_task("blocks")
        until(lambda: seen, "its only thread is busy")
        late = producer.add_task("quick", "late", expires=0.4)
        time.sleep(0.6)
        go.set()
        with pytest.raises(TaskExpired):
            producer.get_result(late, timeout=5)
        assert worker.running
    assert seen == ["blocks"]


def test_a_second_attempt_has_been_started_in_time(url: str, producer: TaskProducer) -> None:
    """The deadline is of the first."""
    with TaskWorker(url=url, task_handlers=registry):
        assert (
            producer.get_result(producer.add_task("twice", 0.4, expires=0.3), timeout=5) == "done"
        )


def test_a_worker_that_meets_no_deadline_asks_for_no_clock(
    url: str, producer: TaskProducer
) -> None:
    """Plain tasks, and gated ones without, cost no question."""
    with TaskWorker(url=url, task_handlers=registry) as worker:
        producer.get_result(producer.add_task("quick", 1), timeout=5)
        producer.get_result(producer.add_task("quick", 1, limits="k"), timeout=5)
        clock: Any = processor_of(worker).executor._clock
        assert clock._ask_at == 0
        producer.get_result(producer.add_task("quick", 1, expires=60), timeout=5)
        assert clock._ask_at > time.monotonic() + 50


class Deaf:
    """A broker that hears nothing, and counts."""

    asked = 0

    def call(self, command: Any, deadline: float | None = None) -> Any:
        self.asked += 1
        raise ServerUnavailable("away")


def test_without_an_answer_nothing_has_passed() -> None:
    """The task runs, as it would without a clock; the server is not asked for each."""
    broker = Deaf()
    clock = ServerClock(broker)  # type: ignore[arg-type]
    assert [clock.has_passed(1) for _ in range(5)] == [False] * 5
    assert broker.asked == 1
