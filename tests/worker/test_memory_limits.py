"""Limits of memory: the task that passes its own fails with both figures, its neighbours go on."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from support.workers import Command, history, registered, until, worker_commands

from redistq import Client, ConfigurationError, MemoryLimitExceeded, TaskFailed, TaskProducer
from redistq.worker import killing
from redistq.worker.heartbeat import ManagedProcess
from redistq.worker.scoreboard import Scoreboard

JOBS = """
import asyncio
import os
import time
from pathlib import Path

from redistq import MemoryLimitExceeded, Registry

registry = Registry()


def take(megabytes):
    found = b"x" * (megabytes * 1_000_000)
    time.sleep(30)
    return len(found)


@registry.task(memory="100MB", retries=0)
def greedy(megabytes):
    return take(megabytes)


@registry.task(retries=2, backoff=0)
def greedy_once(megabytes, context):
    if context.attempt == 1:
        take(megabytes)
    return context.attempt


@registry.task(retries=5, memory="100MB", never_retry=MemoryLimitExceeded)
async def greedy_loop(megabytes):
    return take(megabytes)


@registry.task(memory="150MB")
def modest(megabytes):
    return len(b"x" * (megabytes * 1_000_000))


@registry.task
def neighbour(path, context):
    while context.recovered == 0 and not Path(path).exists():
        time.sleep(0.01)
    return context.recovered
"""


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Command]]:
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs:registry", "--threads", "2") as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.mark.parametrize("name", ["greedy", "greedy_loop"])
def test_a_task_past_its_limit_has_failed(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis, name: str
) -> None:
    """By an error with both figures; the log has them too, and a fresh process goes on."""
    one = start()
    task_id = producer.add_task(name, 300)
    with pytest.raises(
        TaskFailed, match=r"grew by \d{3} MB while it ran, past its limit of 100 MB"
    ):
        producer.get_result(task_id, 20)
    assert history(db, task_id) == ["failed"]
    assert (producer.get_task(task_id).error or {})["type"] == "MemoryLimitExceeded"
    one.says("exceeded a limit of memory; starting another")
    assert re.search(r"past its limit of memory, 100 MB: it grew by \d{3} MB: killing", one.output)
    assert producer.get_result(producer.add_task("modest", 10), 20) == 10_000_000


def test_it_is_tried_again_as_its_policy_says(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """With a limit of the task's own; the attempt is counted."""
    start()
    task_id = producer.add_task("greedy_once", 300, memory="100MB")
    assert producer.get_result(task_id, 20) == 2
    assert history(db, task_id) == ["retried", "succeeded"]


def test_neighbours_go_on_however_often_it_happens(
    start: Callable[..., Command], producer: TaskProducer, tmp_path: Path, db: redis.Redis
) -> None:
    """They know that they have begun before, and are no dead letters by it."""
    one = start("--max-recoveries", "0")
    beside = producer.add_task("neighbour", str(tmp_path / "go"))
    until(lambda: db.xpending("tasks", "workers")["pending"], "it runs")
    with pytest.raises(TaskFailed, match="past its limit"):
        producer.get_result(producer.add_task("greedy", 300), 20)
    assert producer.get_result(beside, 20) == 1
    assert one.process.poll() is None


def test_a_limit_counts_from_what_the_process_had(
    start: Callable[..., Command], producer: TaskProducer
) -> None:
    """What others left behind is not the task's."""
    start("--threads", "1")
    for _ in range(3):
        assert producer.get_result(producer.add_task("modest", 100), 20) == 100_000_000


def test_a_function_has_a_limit(url: str) -> None:
    """Of client.options; a limit that is none is refused."""

    def take() -> int:
        import time

        found = b"x" * 300_000_000
        time.sleep(30)
        return len(found)

    with Client(url) as client:
        client.start_workers(1)
        future = client.options(memory="100MB").submit(take)
        with pytest.raises(MemoryLimitExceeded, match="past its limit of 100 MB"):
            future.result(20)
        with pytest.raises(ConfigurationError, match="memory is a number of bytes, or a size"):
            client.options(memory="much")


def test_a_kill_by_others_is_told_from_ours(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """SIGKILL that the supervisor did not send is said as such."""
    one = start()
    (pid,) = registered(db).values()
    import os

    os.kill(pid, signal.SIGKILL)
    one.says("was killed by SIGKILL, which its supervisor did not send; starting another")


def test_a_kill_by_the_kernel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel counts what it kills for want of memory."""
    counts = iter([3, 3, 4])
    monkeypatch.setattr(killing, "kills_for_want_of_memory", lambda: next(counts))
    ends = killing.Ends()
    board = Scoreboard.create(1)
    try:
        member = ManagedProcess("w", board)
        assert ends.words(member, -9) == "was killed by SIGKILL, which its supervisor did not send"
        assert "by the kernel, which was out of memory (OOM)" in ends.words(member, -9)
        assert ends.words(member, -11) == "was killed by SIGSEGV"
        member.killed = "exceeded a limit"
        assert ends.words(member, -9) == "exceeded a limit"
    finally:
        board.unmap()
