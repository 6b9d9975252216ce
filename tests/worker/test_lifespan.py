"""Lifespans: what a worker process has from its start to its end, entered once and left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import Command, until, worker_commands

from redistq import ConfigurationError, Registry, TaskContext, TaskProducer, TaskWorker
from redistq.worker import provided

JOBS = """
import asyncio, os, sys, threading, time
import redis
from redistq import lifespan, task

out = redis.Redis.from_url(os.environ["JOBS_URL"], decode_responses=True, socket_timeout=None)

def say(*words):
    out.rpush("said", " ".join(map(str, words)))

@lifespan
def first():
    say("first starts")
    if os.environ.get("FAILS") == "start":
        raise ValueError("there is no licence")
    if os.environ.get("FAILS") == "second process" and out.incr("starts") == 2:
        raise ValueError("the port is taken")
    try:
        yield {"pid": os.getpid(), "one": 1}
    finally:
        say("first ends")
        if os.environ.get("FAILS") == "end":
            raise ValueError("it cannot be closed")
        if os.environ.get("FAILS") == "hang at the end":
            say("hangs")
            out.blpop("go", 0)

@lifespan
async def second(state):
    say("second starts with", state["one"])
    loop = asyncio.get_running_loop()
    if os.environ.get("FAILS") == "second hangs":
        say("hangs")
        await loop.create_future()
    yield {"loop": loop}
    assert asyncio.get_running_loop() is loop
    say("second ends")

@task
def one(payload, context):
    assert context.state["pid"] == os.getpid()
    return context.state["one"]

@task
def waits(payload, context):
    say("runs")
    out.blpop("go", 30)
    say("returns")
"""
IN_LOOP = """
import asyncio
from jobs import *

@task
async def in_loop(payload, context):
    return context.state["loop"] is asyncio.get_running_loop()
"""


@pytest.fixture
def jobs(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules of handlers that talk to the test through the server."""
    monkeypatch.setenv("JOBS_URL", url)
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "more.py").write_text(IN_LOOP)
    return tmp_path


@pytest.fixture
def worker(jobs: Path, url: str) -> Iterator[Callable[..., Command]]:
    """Starts ``python -m redistq.worker jobs``, ready when it returns."""
    with worker_commands(jobs, url, "jobs", "--lease", "2") as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


def said(db: redis.Redis) -> list[str]:
    """What the lifespans and handlers of a worker process have said so far."""
    return db.lrange("said", 0, -1)  # type: ignore[return-value]


def hears(db: redis.Redis, what: str) -> None:
    """Wait until a lifespan or handler has said that."""
    until(lambda: what in said(db), f"{what!r}", 20)


# -- in processes ----------------------------------------------------------------------------------


def test_lifespans_are_entered_before_the_first_task_and_left_when_it_drains(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    task = producer.add_task("one")
    running = worker()
    assert producer.get_result(task, timeout=10) == 1
    assert said(db) == ["first starts", "second starts with 1"]
    waits = producer.add_task("waits")
    hears(db, "runs")
    running.send(signal.SIGTERM)
    running.says("draining")
    db.rpush("go", "on")
    assert running.wait() == 0
    assert said(db)[2:] == ["runs", "returns", "second ends", "first ends"]
    assert producer.get_task(waits).state == "succeeded"


def test_async_lifespans_run_in_the_loop_of_the_async_handlers(
    worker: Callable[..., Command], producer: TaskProducer
) -> None:
    worker(module="more")
    assert producer.get_result(producer.add_task("in_loop"), timeout=10) is True


def test_a_start_that_fails_ends_the_worker_with_code_2_and_the_reason(
    worker: Callable[..., Command], db: redis.Redis
) -> None:
    running = worker("--processes", "2", ready=False, FAILS="start")
    assert running.wait() == 2
    assert "the lifespan jobs.first failed at its start: ValueError: there is no licence" in (
        running.output
    )
    assert "def first" not in running.output
    assert 'raise ValueError("there is no licence")' in running.output  # where, too
    assert 1 <= said(db).count("first starts") <= 2  # never again


def test_one_process_that_fails_at_the_start_ends_the_worker_and_the_others_in_order(
    worker: Callable[..., Command], db: redis.Redis
) -> None:
    running = worker("--processes", "3", ready=False, FAILS="second process")
    assert running.wait() == 2
    assert "ValueError: the port is taken" in running.output
    assert said(db).count("first ends") == said(db).count("first starts") - 1
    assert int(db.get("starts") or 0) <= 3  # never again


def test_a_start_that_hangs_ends_by_the_start_timeout_and_says_where(
    worker: Callable[..., Command], db: redis.Redis
) -> None:
    running = worker("--start-timeout", "0.5", ready=False, FAILS="second hangs")
    assert running.wait() == 2
    assert "the lifespan jobs.second did not start within 0.5 s" in running.output
    assert "await loop.create_future()" in running.output
    assert said(db)[-1] == "first ends"  # what had been entered was left


def test_a_worker_that_starts_can_be_told_to_end(
    worker: Callable[..., Command], db: redis.Redis
) -> None:
    running = worker(ready=False, FAILS="second hangs")
    hears(db, "hangs")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert said(db)[-1] == "first ends"


def test_an_end_that_raises_is_logged(worker: Callable[..., Command], db: redis.Redis) -> None:
    running = worker(FAILS="end")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert "jobs.first raised when it was left" in running.output
    assert "ValueError: it cannot be closed" in running.output
    assert said(db)[-2:] == ["second ends", "first ends"]


def test_an_end_that_hangs_is_bounded_by_the_shutdown_timeout(
    worker: Callable[..., Command], db: redis.Redis
) -> None:
    running = worker("--shutdown-timeout", "0.5", FAILS="hang at the end")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert "jobs.first: not left within" in running.output
    assert 'out.blpop("go", 0)' in running.output


def test_a_killed_process_leaves_nothing_and_the_next_one_enters_anew(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    worker()
    hears(db, "second starts with 1")
    task = producer.add_task("waits")
    hears(db, "runs")
    pid = next(int(row["pid"]) for row in map(db.hgetall, db.keys("worker:tasks:*")))
    os.kill(pid, signal.SIGKILL)
    until(lambda: said(db).count("second starts with 1") == 2, "another process", 20)
    db.rpush("go", "on")
    producer.get_result(task, timeout=20)
    assert "first ends" not in said(db)


# -- in this process -------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Registry:
    """Handlers of their own for each test."""
    found = Registry()

    @found.task
    def state(payload: Any, context: TaskContext) -> Any:
        found = context.state
        return dict(found) if isinstance(found, Mapping) else repr(found)

    return found


@pytest.mark.parametrize("processes", [0, 1])
def test_workers_of_an_application_have_lifespans_too(
    registry: Registry, url: str, producer: TaskProducer, processes: int, db: redis.Redis
) -> None:
    worker = TaskWorker(url=url, task_handlers=registry, processes=processes, lease=2)

    @worker.lifespan
    async def own() -> AsyncIterator[dict[str, int]]:
        import redis

        out = redis.Redis.from_url(url)
        yield {"own": 1}
        out.rpush("said", "own ends")
        out.close()

    @registry.lifespan
    def shared() -> Iterator[dict[str, int]]:
        yield {"shared": 2}

    with worker:
        assert producer.get_result(producer.add_task("state"), timeout=20) == {
            "shared": 2,
            "own": 1,
        }
        with pytest.raises(ConfigurationError, match="before it starts"):
            worker.lifespan(own)
    assert said(db) == ["own ends"]
    assert len(registry.lifespans) == 1  # the other belongs to the worker


@pytest.mark.parametrize("processes", [0, 1])
def test_a_start_that_fails_raises_in_the_application(
    registry: Registry, url: str, processes: int
) -> None:
    @registry.lifespan
    def broken() -> Iterator[None]:
        raise OSError("no such host")
        yield

    worker = TaskWorker(url=url, task_handlers=registry, processes=processes)
    with pytest.raises(ConfigurationError, match="broken failed at its start: OSError: no such"):
        worker.start()
    assert not worker.running
    registry.lifespans = ()
    with worker:  # it can be started again
        assert worker.running


def test_what_was_entered_before_a_start_that_fails_is_left(registry: Registry, url: str) -> None:
    left = []

    @registry.lifespan
    @contextlib.contextmanager
    def works() -> Iterator[None]:
        yield
        left.append("works")

    @registry.lifespan
    def broken() -> Iterator[None]:
        raise OSError("no such host")
        yield

    with pytest.raises(ConfigurationError) as raised:
        TaskWorker(url=url, task_handlers=registry).start()
    assert isinstance(raised.value.__cause__, OSError)
    assert left == ["works"]


class Pool:
    """A context manager that is no generator."""

    left = False

    async def __aenter__(self) -> Pool:
        self.loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert asyncio.get_running_loop() is self.loop
        Pool.left = True

    def __repr__(self) -> str:
        return "a pool"


def test_an_object_that_is_yielded_is_the_state(
    registry: Registry, url: str, producer: TaskProducer
) -> None:
    registry.lifespan(Pool)
    with TaskWorker(url=url, task_handlers=registry):
        assert producer.get_result(producer.add_task("state"), timeout=10) == "a pool"
    assert Pool.left


def test_without_lifespans_the_state_is_empty(
    registry: Registry, url: str, producer: TaskProducer
) -> None:
    with TaskWorker(url=url, task_handlers=registry):
        assert producer.get_result(producer.add_task("state"), timeout=10) == {}


def test_a_start_that_is_slow_is_said_with_where_it_stands(
    registry: Registry,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(provided, "SLOW_S", 0.05)
    go = threading.Event()

    def has_said(record: logging.LogRecord) -> bool:
        if "has not started after" in record.getMessage():
            go.set()
        return True

    logging.getLogger("redistq.worker").addFilter(has_said)

    @registry.lifespan
    def slow() -> Iterator[None]:
        assert go.wait(20), "it was not said"
        yield

    @registry.lifespan
    async def slow_too() -> AsyncIterator[None]:
        go.clear()
        while not go.is_set():
            await asyncio.sleep(0.01)  # it stands here
        yield

    try:
        with TaskWorker(url=url, task_handlers=registry):
            pass
    finally:
        logging.getLogger("redistq.worker").removeFilter(has_said)
    texts = [r.getMessage() for r in caplog.records if "has not started" in r.getMessage()]
    assert 'assert go.wait(20), "it was not said"' in texts[0]
    assert "await asyncio.sleep(0.01)  # it stands here" in texts[-1]


def test_a_start_that_hangs_and_ends_later_is_left(registry: Registry, url: str) -> None:
    go, left = threading.Event(), threading.Event()

    @registry.lifespan
    def hangs() -> Iterator[None]:
        assert go.wait(20)
        yield
        left.set()

    worker = TaskWorker(url=url, task_handlers=registry, start_timeout=0.1)
    with pytest.raises(ConfigurationError, match=r"did not start within 0\.1 s"):
        worker.start()
    go.set()
    assert left.wait(10)


def test_an_end_that_hangs_in_a_thread_does_not_hold_up_the_application(
    registry: Registry, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    @registry.lifespan
    def hangs() -> Iterator[None]:
        yield
        assert go.wait(20)

    worker = TaskWorker(url=url, task_handlers=registry).start()
    begun = time.monotonic()
    worker.stop(0.2)
    assert time.monotonic() - begun < 10
    assert "hangs: not left within" in caplog.text
    assert "assert go.wait(20)" in caplog.text
    go.set()


def test_what_is_no_lifespan_is_said_at_once(registry: Registry) -> None:
    async def returns() -> None:
        return None

    def takes_two(a: Any, b: Any) -> Iterator[None]:
        yield

    with pytest.raises(ConfigurationError, match="let it yield once"):
        registry.lifespan(returns)
    with pytest.raises(ConfigurationError, match="takes nothing, or one argument"):
        registry.lifespan(takes_two)
    with pytest.raises(ConfigurationError, match="yields once, not 3"):
        registry.lifespan(3)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("yielded", "words"),
    [
        (({"a": 1}, {"a": 2}), "yields 'a', as one before it does"),
        (({"a": 1}, object()), "let each yield a mapping"),
        ((object(), {"a": 1}), "let each yield a mapping"),
    ],
)
def test_states_that_do_not_go_together_are_refused(
    registry: Registry, url: str, yielded: tuple[Any, Any], words: str
) -> None:
    def declare(value: Any) -> None:
        @registry.lifespan
        def one() -> Iterator[Any]:
            yield value

    for value in yielded:
        declare(value)
    with pytest.raises(ConfigurationError, match=words):
        TaskWorker(url=url, task_handlers=registry).start()


def test_what_returns_no_context_manager_is_said(registry: Registry, url: str) -> None:
    @registry.lifespan
    def returns() -> dict[str, int]:
        return {"a": 1}

    with pytest.raises(ConfigurationError, match="returned dict, which is no context manager"):
        TaskWorker(url=url, task_handlers=registry).start()


def test_a_lifespan_that_is_defined_again_replaces_itself(registry: Registry) -> None:
    namespace: dict[str, Any] = {"registry": registry, "__name__": "cells"}
    for _ in range(2):
        exec("@registry.lifespan\ndef model(): yield", namespace)
    assert [one.function for one in registry.lifespans] == [namespace["model"]]
