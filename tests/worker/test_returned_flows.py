"""Handlers that return a flow: it takes the place of their task, which ends as its last does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.workers import history, processor_of, registered, until

from redistq import (
    Registry,
    Retry,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    chain,
    chord,
    group,
    map_reduce,
    sig,
)
from redistq.connection.broker import Broker
from redistq.errors import ConnectionLost

registry = Registry()


@registry.task
def number(payload: int, context: TaskContext) -> int:
    return int(payload or 0) + sum(context.results())


@registry.task
def total(payload: Any, context: TaskContext) -> int:
    return sum(context.results())


@registry.task
def wrong(payload: Any) -> None:
    raise ValueError("no")


@registry.task(unique="only")
def only(payload: Any) -> None: ...


@registry.task
async def flow(payload: Any, context: TaskContext) -> Any:
    """Returns the flow that the payload names."""
    if payload == "retry once" and context.attempt == 1:
        raise Retry(0)
    if payload == "waits for itself":
        between = context.spawn("number", 1, after=context.task_id)
        return sig("number", 1).options(after=between)
    return {
        "one": lambda: sig("number", 1),
        "function": lambda: chain(sig(number, 1), number),
        "chain": lambda: chain(sig("number", 1), sig("number", 2), sig("number", 3)),
        "chord": lambda: chord(group(sig("number", n) for n in range(4)), "total"),
        "tree": lambda: map_reduce("number", range(9), "total", fan_in=3),
        "nested": lambda: chain(sig("flow", "chord"), sig("flow", "chain")),
        "again": lambda: sig("flow", "nested"),
        "fails": lambda: chain(sig("number", 1), sig("wrong").options(retries=0)),
        "fails early": lambda: chain(sig("wrong").options(retries=0), "number"),
        "retry once": lambda: sig("number", 1),
        "later": lambda: sig("number", 1).options(delay="1h"),
        "group": lambda: group(sig("number", n) for n in range(3)),
        "unknown function": lambda: sig(len, "a"),
        "ids": lambda: sig("number").options(task_id="x"),
        "unique": lambda: sig(only),
        "payload": lambda: sig("number", object()),
        "option": lambda: sig("number").options(retrys=1),
    }[payload]()


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def worker(url: str) -> Iterator[TaskWorker]:
    with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
        yield worker


@pytest.mark.parametrize(
    ("name", "result"),
    [
        *(("one", 1), ("function", 1), ("chain", 6), ("chord", 6), ("tree", 36)),
        *(("nested", 6), ("again", 6), ("retry once", 1)),
    ],
)
def test_the_task_ends_as_what_it_returned(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis, name: str, result: int
) -> None:
    """Its result is that of the last; it is counted, and told of, once."""
    task_id = producer.add_task("flow", name, result_ttl=60)
    assert producer.get_result(task_id, timeout=10) == result
    assert producer.get_task(task_id).state == "succeeded"
    assert [s for s in history(db, task_id) if s != "retried"] == ["continued", "succeeded"]
    assert not db.exists("waiting:tasks")


def test_others_wait_for_the_end_of_the_flow(worker: TaskWorker, producer: TaskProducer) -> None:
    """What depends on the task reads the flow's result; a result that is not kept reaches who
    waits."""
    first = producer.add_task("flow", "again")
    assert producer.get_result(producer.add_task("number", 1, after=first), timeout=10) == 7
    unkept = producer.add_task("flow", "chain", result_ttl=0)
    assert producer.get_result(producer.add_task("number", 1, after=unkept), timeout=10) == 7


def test_it_fails_as_what_it_returned(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis
) -> None:
    """A dead letter with its own payload, which a replay runs again; what is cancelled says why."""
    task_id = producer.add_task("flow", "fails")
    with pytest.raises(TaskFailed, match="no"):
        producer.get_result(task_id, timeout=10)
    assert db.hget(f"task:tasks:{task_id}", "payload") == '"fails"'
    early = producer.add_task("flow", "fails early")
    with pytest.raises(TaskCancelled, match=r"parent .* failed"):
        producer.get_result(early, timeout=10)
    producer.replay(task_id)
    until(lambda: history(db, task_id) == ["continued", "failed"] * 2, "it has failed again")


def test_while_it_waits_it_says_for_what(worker: TaskWorker, producer: TaskProducer) -> None:
    """And is cancelled like any that waits."""
    task_id = producer.add_task("flow", "later")
    until(lambda: producer.get_task(task_id).state == "waiting", "it waits")
    with pytest.raises(TimeoutError, match="waits for what it returned: "):
        producer.get_result(task_id, timeout=1)
    assert producer.cancel(task_id) == {task_id: "cancelled"}
    with pytest.raises(TaskCancelled):
        producer.get_result(task_id, timeout=5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("group", "ends in one task, and this one in 3: end it with a chord"),
        ("unknown function", "len"),
        ("ids", "leave out task_id"),
        ("unique", "not unique"),
        ("payload", "object"),
        ("option", "did you mean 'retries'"),
        ("waits for itself", "leave it out of after"),
    ],
)
def test_a_flow_that_cannot_end_the_task_fails_it(
    worker: TaskWorker, producer: TaskProducer, name: str, words: str
) -> None:
    """At once, with words on it, and without a child."""
    with pytest.raises(TaskFailed, match=words):
        producer.get_result(producer.add_task("flow", name, retries=0), timeout=10)
    assert producer.snapshot().counters == {"failed": 1}


def test_an_answer_that_is_lost_adds_the_flow_once(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is made again, and answered as the first time."""
    usual = Broker.call
    lost: list[Any] = []

    def call(self: Broker, command: Any, *args: Any) -> Any:
        answer = usual(self, command, *args)
        if "continued" in command and not lost:
            lost.append(command)
            raise ConnectionLost("on the way back")
        return answer

    monkeypatch.setattr(Broker, "call", call)
    task_id = producer.add_task("flow", "chain")
    assert producer.get_result(task_id, timeout=10) == 6
    assert lost
    assert processor_of(worker).settler.lost == 0
    assert producer.snapshot().counters == {"succeeded": 4}


def test_a_worker_that_is_killed_loses_no_flow(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """Neither before its task has returned, nor in the middle of what it returned."""
    handlers = {"two": _dies_and_returns, "step": _dies_once}
    with TaskWorker(url=url, task_handlers=handlers, processes=1):
        until(lambda: registered(db), "it is there")
        task_id = producer.add_task("two")
        assert producer.get_result(task_id, timeout=40) == [2, 1]
    assert int(db.hget("counters:tasks", "recovered") or 0) == 3
    assert producer.snapshot().counters["succeeded"] == 3


def _dies_once(payload: Any, context: TaskContext) -> Any:
    if not context.recovered:
        os.kill(os.getpid(), signal.SIGKILL)
    return [payload, *(len(result) for result in context.results())]


def _dies_and_returns(payload: Any, context: TaskContext) -> Any:
    _dies_once(payload, context)
    return chain(sig("step", 1), sig("step", 2))
