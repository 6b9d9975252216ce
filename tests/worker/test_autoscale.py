"""Worker processes by backlog: more where work takes long, fewer without any, no flapping."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from support.workers import Command, registered, until, worker_commands

from redistq import ConfigurationError, TaskProducer
from redistq.worker import autoscale
from redistq.worker.autoscale import LOOK_S, Autoscale, Load
from redistq.worker.settings import WorkerSettings

JOBS = """
import time
from pathlib import Path

from redistq import task


@task
def rest(seconds):
    time.sleep(seconds)


@task
def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.01)
"""

BRISK = """
from redistq.worker import autoscale, main

autoscale.LOOK_S, autoscale.SETTLE_S, autoscale.CALM_S = 0.5, 1.5, 3.0
raise SystemExit(main())
"""
"""The command of a worker, which looks more often and waits less between its decisions."""


class Simulated:
    """A queue into which so many tasks come a second, each of one second; ten slots a process."""

    def __init__(self, least: int, most: int) -> None:
        self.scale = Autoscale(least, most)
        self.now = 1000.0
        self.processes = least
        self.waiting = 0.0
        self.changes: list[tuple[float, int]] = []

    def go(self, seconds: float, per_second: float) -> None:
        """Let time pass."""
        for _ in range(int(seconds / LOOK_S)):
            self.now += LOOK_S
            capacity = 10.0 * self.processes
            self.waiting += per_second * LOOK_S
            done = min(self.waiting, capacity * LOOK_S)
            self.waiting -= done
            load = Load(int(self.waiting), done / LOOK_S, int(done / LOOK_S), 10)
            wanted = self.scale.decide(self.now, self.processes, load)
            if wanted != self.processes:
                self.changes.append((self.now, wanted))
            self.processes = wanted


def test_more_processes_until_the_backlog_shrinks() -> None:
    """And no more than asked for; each decision has some time to show."""
    queue = Simulated(2, 8)
    queue.go(120, 70)
    assert queue.processes in (7, 8)
    times = [at for at, _ in queue.changes]
    assert all(b - a >= autoscale.SETTLE_S for a, b in itertools.pairwise(times))
    queue.go(600, 0)
    assert queue.processes == 2, "one by one, when there is nothing to do"
    steps = [n for _, n in queue.changes]
    assert all(a - b == 1 for a, b in itertools.pairwise(steps) if b < a)


@pytest.mark.parametrize("per_second", [5, 15, 19, 21, 29, 31, 45, 59, 61, 79, 200])
def test_a_steady_load_settles(per_second: float) -> None:
    """It ends with a number that stays, whatever the load is."""
    queue = Simulated(2, 8)
    queue.go(900, per_second)
    settled = len(queue.changes)
    queue.go(3600, per_second)
    assert len(queue.changes) <= settled + 1, queue.changes


def test_waves_do_not_make_it_flap() -> None:
    """Where a process is missed soon after it went, the next goes later and later."""
    queue = Simulated(1, 8)
    for _ in range(60):
        queue.go(40, 60)
        queue.go(80, 1)
    late = [at for at, _ in queue.changes if at > queue.now - 3600]
    assert len(late) <= 40, "less than a change in a minute"


def test_nothing_is_read_into_no_figures() -> None:
    """A queue that nobody can run is no reason for more processes."""
    scale = Autoscale(1, 4)
    for at in range(10):
        assert scale.decide(float(at), 1, Load(1000, 0.0, 0, 4)) == 1
    for at in range(10, 12):
        wanted = scale.decide(float(at), 1, Load(1000, 0.0, 4, 4))
    assert wanted == 2, "all slots are taken by tasks that take long"


@pytest.mark.parametrize("wrong", ["8,2", "0,3", "2", "a,b", (1, 2, 3), 5, "1,1001"])
def test_bounds_are_checked(wrong: object) -> None:
    """By an error that shows how they are written."""
    with pytest.raises(ConfigurationError, match="autoscale is the least and the most"):
        WorkerSettings(autoscale=wrong)  # type: ignore[arg-type]


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Command]]:
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "brisk.py").write_text(BRISK)
    with worker_commands(tmp_path, url, "jobs", "--threads", "2", program="brisk") as start:
        yield start


def test_a_real_backlog(
    start: Callable[..., Command], url: str, tmp_path: Path, db: redis.Redis
) -> None:
    """The command starts more processes, and the log says why with figures."""
    one = start("--autoscale", "1,3")
    assert "ready: 1 process " in one.output
    with TaskProducer(url=url) as producer:
        producer.add_tasks([("rest", 0.2) for _ in range(500)])
        one.says("autoscale: 2 processes instead of 1 (from 1 to 3):")
        until(lambda: len(registered(db)) == 3, "all are there", 60)
        said = (
            r"autoscale: 3 processes instead of 2 \(from 1 to 3\): \d+ tasks wait, [\d.]+ s of work"
        )
        assert re.search(said + r" at [\d.]+ a second; \d run here in 4 slots", one.output)
        producer.purge_queue()
        assert producer.drain(timeout=20)
        go = tmp_path / "go"
        running = producer.add_task("wait_for", str(go))
        one.says("autoscale: 2 processes instead of 3", 60)
        one.says("is one too many: it drains")
        until(lambda: len(registered(db)) == 2, "one has drained", 20)
        assert producer.get_task(running).state == "running", "not the one that had work"
        go.touch()
        producer.get_result(running, 20)
    one.send(15)
    assert one.wait() == 0
