"""Soft and hard time limits: what is told to end, what is killed, and what has more time."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import Command, history, until, worker_commands

from redistq import (
    ConfigurationError,
    Registry,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    TimeLimitExceeded,
)
from redistq.client import Client

registry = Registry()

JOBS = '''
import asyncio
import ctypes
import os
import time

from redistq import Registry

registry = Registry()


def block(seconds):
    """Native code with the interpreter's lock held: nothing can be raised here."""
    ctypes.PyDLL(None).sleep(int(seconds))


@registry.task(retries=0, hard_timeout=0.5)
def blocks(payload):
    block(payload)


@registry.task(retries=2, backoff=0)
def blocks_once(payload, context):
    if context.attempt == 1:
        block(payload)
    return [context.attempt, context.recovered, os.getpid()]


@registry.task(retries=5, backoff=0, never_retry=TimeoutError)
def blocks_for_good(payload):
    block(payload)


@registry.task(retries=0)
async def holds_the_loop(payload, context):
    block(payload)


@registry.task
def neighbour(payload, context):
    time.sleep(payload)
    return context.recovered


@registry.task(retries=0, hard_timeout=0.5)
def asks_for_more(payload, context):
    end = time.monotonic() + payload
    while time.monotonic() < end:
        if context.remaining < 0.3:
            context.extend(0.5)
        time.sleep(0.05)
    return "done"


@registry.task
def double(payload):
    return 2 * payload
'''


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Command]]:
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs:registry", "--threads", "2") as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


# -- hard limits -----------------------------------------------------------------------------------


def test_a_task_past_its_hard_limit_has_failed(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """By a clear error, and no recovery is counted."""
    one = start()
    task_id = producer.add_task("blocks", 60)
    with pytest.raises(TaskFailed, match=r"the hard time limit of 0\.5 s has passed"):
        producer.get_result(task_id, 15)
    assert history(db, task_id) == ["failed"]
    assert (producer.get_task(task_id).error or {})["type"] == "TimeLimitExceeded"
    one.says("exceeded a time limit; starting another")
    assert producer.get_result(producer.add_task("double", 2), 15) == 4
    assert producer.replay(task_id) == 1, "a dead letter with its payload"
    until(lambda: history(db, task_id) == ["failed"] * 2, "it has failed once more", 15)


@pytest.mark.parametrize("gate", [{}, {"limits": "one", "unique": "u"}])
def test_it_is_tried_again_as_its_policy_says(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis, gate: dict[str, Any]
) -> None:
    """The attempt is counted; what else ran in the process is recovered."""
    start()
    other = producer.add_task("neighbour", 1)
    task_id = producer.add_task("blocks_once", 60, hard_timeout=0.5, **gate)
    attempt, recovered, _ = producer.get_result(task_id, 15)
    assert (attempt, recovered) == (2, 0)
    assert history(db, task_id) == ["retried", "succeeded"]
    assert producer.get_result(other, 15) in (0, 1)
    if gate:
        assert not db.exists("unique:tasks"), "the key is given back"


@pytest.mark.parametrize("name", ["blocks_for_good", "holds_the_loop"])
def test_what_its_policy_does_not_retry_ends(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis, name: str
) -> None:
    """TimeLimitExceeded is a TimeoutError; a coroutine that holds up its loop is killed too."""
    start()
    task_id = producer.add_task(name, 60, timeout=0.2, hard_timeout=0.4)
    with pytest.raises(TaskFailed, match="the hard time limit"):
        producer.get_result(task_id, 15)
    assert history(db, task_id) == ["failed"]


def test_a_task_that_somebody_wishes_to_end_is_cancelled_then(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """It is not tried again."""
    start()
    task_id = producer.add_task("blocks_once", 60, hard_timeout=1.5)
    until(lambda: producer.get_task(task_id).state == "running", "a start")
    assert producer.cancel(task_id, running="ask") == {task_id: "asked"}
    until(lambda: producer.get_task(task_id).state == "cancelled", "the end")
    assert history(db, task_id) == ["cancelled"]


def test_more_time_moves_the_hard_limit(
    start: Callable[..., Command], producer: TaskProducer
) -> None:
    """As often as the handler asks for it."""
    start()
    assert producer.get_result(producer.add_task("asks_for_more", 2), 15) == "done"


def test_a_call_past_its_hard_limit_raises_it(url: str) -> None:
    """In the client that sent it, by its own type."""
    with Client(url, signing_key="a signing key for tests only") as client:
        client.start_workers(1)

        def block() -> None:
            import ctypes

            ctypes.PyDLL(None).sleep(60)

        with pytest.raises(TimeLimitExceeded, match=r"hard time limit of 0\.5 s"):
            client.options(hard_timeout=0.5).submit(block).result(20)
        assert client.submit(os.getpid).result(20)


# -- soft limits -----------------------------------------------------------------------------------

kept: list[TaskContext] = []


@registry.task(retries=0, timeout=0.3)
def tidies_up(payload: Any, context: TaskContext) -> Any:
    """Is told, and says how it ends."""
    try:
        while True:
            time.sleep(0.01)
    except TimeLimitExceeded:
        return context.remaining > 3


@registry.task(retries=0, timeout=0.3)
def takes_more(payload: float, context: TaskContext) -> Any:
    """Another thread gives it more time."""
    left: list[float] = []
    helper = threading.Thread(target=lambda: left.append(context.extend(payload)))
    helper.start()
    helper.join()
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        time.sleep(0.01)
    return [left[0], context.remaining]


@registry.task(retries=0, timeout=0.3)
async def takes_more_async(payload: float, context: TaskContext) -> Any:
    import asyncio

    left = context.extend(payload)
    await asyncio.sleep(0.8)
    return [left, context.remaining]


@registry.task(retries=0)
def unlimited(payload: Any, context: TaskContext) -> Any:
    kept.append(context)
    return [context.remaining == math.inf, context.extend(5) == math.inf]


@pytest.fixture
def worker(url: str) -> Iterator[TaskWorker]:
    with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
        yield worker


def test_a_handler_that_is_told_may_tidy_up(worker: TaskWorker, producer: TaskProducer) -> None:
    """Until the hard limit, five seconds later by default."""
    assert producer.get_result(producer.add_task("tidies_up"), 10) is True


@pytest.mark.parametrize("name", ["takes_more", "takes_more_async"])
def test_more_time_moves_the_soft_limit(
    worker: TaskWorker, producer: TaskProducer, name: str
) -> None:
    """From any thread; too little of it ends as before, and says how long it was in all."""
    first, last = producer.get_result(producer.add_task(name, 2), 10)
    assert 2 < first <= 2.3
    assert 1 < last < 1.6
    with pytest.raises(TaskFailed, match=r"the time limit of 0\.5 s has passed"):
        producer.get_result(producer.add_task(name, 0.2), 10)


def test_without_limits_nothing_is_extended(worker: TaskWorker, producer: TaskProducer) -> None:
    """Nor after the end of a task that had one, whose slot is another's."""
    assert producer.get_result(producer.add_task("unlimited"), 10) == [True, True]
    producer.get_result(producer.add_task("unlimited", timeout=60), 10)
    left = kept[-1].remaining
    assert kept[-1].extend(1_000) <= left
    with pytest.raises(ConfigurationError, match="the extension of a time limit"):
        kept[-1].extend(-1)


# -- what is refused -------------------------------------------------------------------------------


def test_a_hard_limit_below_the_soft_one_is_refused(producer: TaskProducer) -> None:
    """At the call, wherever both are given."""
    with pytest.raises(ConfigurationError, match=r"hard_timeout of .*below its timeout"):
        producer.add_task("x", timeout=5, hard_timeout=4)
    with pytest.raises(ConfigurationError, match="hard_timeout of task 'x'"):
        Registry().task(name="x", timeout=5, hard_timeout=4)(lambda payload: None)
    with pytest.raises(ConfigurationError, match="hard_timeout"):
        producer.add_task("x", hard_timeout=0)


@pytest.mark.parametrize(
    ("handler", "given", "wanted"),
    [
        ((None, None), (None, None), (None, None)),
        ((3, None), (None, None), (3, 8)),
        ((3, 4), (None, None), (3, 4)),
        ((3, 4), (9, None), (9, 14)),
        ((3, 40), (9, None), (9, 40)),
        ((None, 4), (None, None), (None, 4)),
        ((3, None), (None, 7), (3, 7)),
        ((9, 20), (None, 7), (9, 7)),
    ],
)
def test_a_task_s_limits_come_before_its_handler_s(handler: Any, given: Any, wanted: Any) -> None:
    """A longer soft limit moves the handler's hard one; what a task says holds."""
    from redistq.protocol.options import TaskOptions
    from redistq.worker.terms import Terms

    options = TaskOptions(timeout=given[0], hard_timeout=given[1])
    terms = Terms.of(options, *handler, "0")
    assert (terms.timeout, terms.hard_timeout) == wanted
