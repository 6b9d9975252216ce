"""Rules and pauses of task names, for tasks that were added without the name's key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.workers import lapse, processor_of, registered, until

from redistq import Registry, TaskProducer, TaskWorker

registry = Registry()
go = threading.Event()
lock = threading.Lock()
at_once = 0
most = 0
ran: list[Any] = []


@registry.task
def job(payload: Any) -> Any:
    """Counts how many of it run at a time."""
    global at_once, most
    with lock:
        at_once += 1
        most = max(most, at_once)
    lapsed = lapse(0.02)
    until(lapsed, "a moment")
    with lock:
        at_once -= 1
        ran.append(payload)
    return payload


@registry.task
def blocks(payload: Any) -> None:
    go.wait(20)


@registry.task
def other(payload: Any) -> Any:
    return payload


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    global most
    go.clear()
    ran.clear()
    most = 0
    with TaskProducer(url=url) as producer:
        yield producer
    go.set()


def told(worker: TaskWorker) -> frozenset[bytes]:
    """The names that a worker in this process knows of."""
    return processor_of(worker).fetcher.queues[0].gated_names


def test_a_paused_name_is_not_started_and_others_are(url: str, producer: TaskProducer) -> None:
    """At once, not with the next heartbeat; what is added before and after it waits, and runs when
    it goes on."""
    with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
        producer.get_result(producer.add_task("job", "first"), timeout=5)
        producer.limits.pause("name:job")
        until(lambda: told(worker) == {b"job"}, "the worker hears of it", 2)
        ids = [producer.add_task("job", k) for k in range(5)]
        assert producer.get_result(producer.add_task("other", 1), timeout=5) == 1
        until(lambda: all(producer.get_task(i).state == "waiting" for i in ids), "all wait")
        assert ran == ["first"]
        producer.limits.resume("name:job")
        assert [producer.get_result(i, timeout=5) for i in ids] == list(range(5))
        until(lambda: told(worker) == frozenset(), "the worker hears of it", 2)


def test_a_limit_of_a_name_holds_for_tasks_without_a_key(url: str, producer: TaskProducer) -> None:
    """At most two at a time, whatever the threads; each runs once."""
    ids = [producer.add_task("job", k) for k in range(30)]
    producer.limits.set("name:job", at_most=2)
    with TaskWorker(url=url, task_handlers=registry, thread_count=8) as worker:
        until(lambda: told(worker) == {b"job"} or len(ran) == 30, "the worker hears of it", 5)
        for task_id in ids:
            producer.get_result(task_id, timeout=10)
    assert sorted(ran) == list(range(30))
    state = producer.limits.get("name:job")
    assert state is not None
    assert (state.in_use, state.waiting) == (0, 0)


def test_a_known_limit_is_never_exceeded(url: str, producer: TaskProducer) -> None:
    """Once its worker knows of it, not one more is started than there is room for."""
    with TaskWorker(url=url, task_handlers=registry, thread_count=8) as worker:
        producer.limits.set("name:job", at_most=2)
        until(lambda: told(worker) == {b"job"}, "the worker hears of it", 2)
        ids = producer.add_tasks([("job", k) for k in range(20)])
        for task_id in ids:
            producer.get_result(task_id, timeout=10)
    assert most == 2


def test_what_a_worker_holds_unstarted_goes_back(url: str, producer: TaskProducer) -> None:
    """Its only thread is busy; what waited behind it is not started after the pause."""
    with TaskWorker(url=url, task_handlers=registry, thread_count=1) as worker:
        for task_id in producer.add_tasks([("other", k) for k in range(50)]):
            producer.get_result(task_id, timeout=5)  # it knows how short these are
        blocker = producer.add_task("blocks")
        until(lambda: producer.get_task(blocker).state == "running", "its thread is busy")
        ids = producer.add_tasks([("other", k) for k in range(3)])
        until(lambda: processor_of(worker).runners.ready, "it holds some")
        producer.limits.pause("name:other")
        until(lambda: told(worker) == {b"other"}, "the worker hears of it", 2)
        until(lambda: all(producer.get_task(i).state == "waiting" for i in ids), "all wait")
        go.set()
        producer.get_result(blocker, timeout=5)
        assert all(producer.get_task(i).state == "waiting" for i in ids)


def test_worker_processes_hear_of_names_too(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """Also one that starts later, by its first heartbeat."""
    producer.limits.pause("name:_echo")
    with TaskWorker(url=url, task_handlers={"_echo": _echo, "other": _echo}, processes=1):
        until(lambda: registered(db), "it is there")
        producer.get_result(producer.add_task("other", 1), timeout=10)
        until(lapse(0.5), "the first heartbeat is over")
        task_id = producer.add_task("_echo", 2)
        until(lambda: producer.get_task(task_id).state == "waiting", "it waits")
        producer.limits.resume("name:_echo")
        assert producer.get_result(task_id, timeout=5) == 2


def _echo(payload: Any) -> Any:
    return payload
