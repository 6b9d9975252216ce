"""Worker processes that are replaced when they have done enough, or grown: a fresh one first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from support.workers import Command, alive, registered, until, worker_commands

from redistq import ConfigurationError, TaskProducer
from redistq.system.memory import in_words, resident, size
from redistq.worker.settings import WorkerSettings

JOBS = """
import os
import time
from pathlib import Path

from redistq import task

kept = []


@task
def pid(payload):
    return os.getpid()


@task
def grow(megabytes):
    kept.append(b"x" * (megabytes * 1_000_000))
    return os.getpid()


@task
def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.01)
    return os.getpid()
"""


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Command]]:
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs", "--threads", "2") as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


def run(producer: TaskProducer, name: str, payload: object = None) -> int:
    """The process that ran a task of that name."""
    found = producer.get_result(producer.add_task(name, payload), 20)
    assert isinstance(found, int)
    return found


def test_a_process_that_has_done_its_tasks_is_replaced(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """The fresh one is ready before the old one goes, and the log says the figure."""
    one = start("--max-tasks", "5")
    first = run(producer, "pid")
    while "another is started for it" not in one.output:
        assert run(producer, "pid") == first
    one.says("was replaced: it drains")
    assert first in registered(db).values() or not alive(first)
    assert len(set(registered(db).values()) - {first}) == 1, "the other one was ready before"
    until(lambda: not alive(first), "the old one ends", 20)
    assert run(producer, "pid") != first
    assert re.search(
        rf"worker process {first} has settled [\d,]+ tasks \(max_tasks 5\)", one.output
    )
    one.says(f"worker process {first}, which was replaced, has ended")
    assert not db.xpending("tasks", "workers")["pending"]


def test_a_process_that_has_grown_is_replaced_and_finishes_what_it_runs(
    start: Callable[..., Command], producer: TaskProducer, tmp_path: Path
) -> None:
    """Its running task ends in it, however long that takes; all others run in the fresh one."""
    one = start("--max-rss", "220MB")
    go = tmp_path / "go"
    long = producer.add_task("wait_for", str(go))
    old = run(producer, "grow", 230)
    one.says("was replaced: it drains")
    assert re.search(rf"process {old} has \d+ MB of memory \(max_rss 220 MB\)", one.output)
    assert all(run(producer, "pid") != old for _ in range(5))
    assert alive(old)
    go.touch()
    assert producer.get_result(long, 20) == old
    until(lambda: not alive(old), "the old one ends", 20)


def test_one_at_a_time(
    start: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """Never fewer serve than were asked for, and never two more."""
    one = start("--processes", "2", "--max-tasks", "20")
    first = set(registered(db).values())
    assert len(first) == 2
    while any(map(alive, first)):
        run(producer, "pid")
        serving = [pid for pid in registered(db).values() if alive(pid)]
        assert 2 <= len(serving) <= 4
    until(lambda: len(registered(db)) == 2, "two serve", 20)
    assert one.process.poll() is None


def test_a_limit_below_what_a_process_begins_with_is_said(
    start: Callable[..., Command], producer: TaskProducer
) -> None:
    """Nothing is replaced for ever."""
    one = start("--max-rss", "1MB")
    one.says("is less than a worker process has when it starts")
    first = run(producer, "pid")
    assert run(producer, "pid") == first


def test_a_drain_is_cut_short_when_the_worker_ends(
    start: Callable[..., Command], producer: TaskProducer, tmp_path: Path, db: redis.Redis
) -> None:
    """What still ran in the old process runs again in another worker."""
    one = start("--max-rss", "220MB", "--shutdown-timeout", "1")
    go = tmp_path / "go"
    long = producer.add_task("wait_for", str(go))
    old = run(producer, "grow", 230)
    one.says("was replaced: it drains")
    one.send(15)
    assert one.wait(20) == 1
    assert not alive(old)
    go.touch()
    start()
    assert producer.get_result(long, 20) != old


def test_a_draining_process_whose_supervisor_dies_ends_within_its_lease(
    start: Callable[..., Command], producer: TaskProducer, tmp_path: Path
) -> None:
    """Nobody sends its heartbeat any more: its task is another's."""
    one = start("--max-rss", "220MB", "--lease", "2")
    producer.add_task("wait_for", str(tmp_path / "never"))
    old = run(producer, "grow", 230)
    one.says("was replaced: it drains")
    one.process.kill()
    until(lambda: not alive(old), "it ends", 10)


def test_sizes() -> None:
    """As people write them, and as they read them."""
    assert [size("x", s) for s in (5, "5", "2GB", "1.5 GiB", "512Mi", "3k")] == [
        *(5, 5, 2_000_000_000, 1_610_612_736, 536_870_912, 3000)
    ]
    assert in_words(1_500_000_000) == "1.5 GB"
    assert in_words(231_000_000) == "231 MB"
    assert (resident() or 0) > 1_000_000
    assert resident(os.getpid()) is not None
    for wrong in ("", "2 apples", 0, -1, True, None, "1PB"):
        with pytest.raises(ConfigurationError, match="max_rss is a number of bytes, or a size"):
            size("max_rss", wrong)
    with pytest.raises(ConfigurationError, match="max_tasks is a whole number"):
        WorkerSettings(max_tasks=0)
