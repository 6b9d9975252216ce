"""Worker processes are killed between any two items: no reader misses one, and none comes twice.

So many kills as REDISTQ_KILLS says, by default a few.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.clients import KEY
from support.workers import Command, alive, registered, until, worker_commands

from redistq import Client, StreamRestarted, TaskProducer, current_task

KILLS = int(os.environ.get("REDISTQ_KILLS", "8"))
JOBS = """
import asyncio
import random
import time
from redistq import task

def pause():
    return random.choice([0, 0, 0.001, 0.004])

@task(retries=0)
def going_on(payload, context):
    for n in range(context.stream_position, payload):
        yield [n, "x" * (n % 50)]
        time.sleep(pause())

@task(retries=0)
async def agoing_on(payload, context):
    for n in range(context.stream_position, payload):
        yield [n, "x" * (n % 50)]
        await asyncio.sleep(pause())

@task(retries=0)
def anew(payload, context):
    for n in range(payload):
        yield [n, context.recovered]
        time.sleep(pause())
"""
WORKER = ("--processes", "3", "--threads", "3", "--lease", "4", "--max-recoveries", "10000")


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Command]]:
    """Starts a worker of three processes, ready when it returns."""
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs", *WORKER) as started:
        yield started


def call(total: int) -> Iterator[tuple[int, str]]:
    """A function of a client that goes on where it was."""
    for n in range(current_task().stream_position, total):
        yield n, "x" * (n % 50)
        time.sleep(random.choice([0, 0, 0.001, 0.004]))


class Readers:
    """Threads that add tasks one after the other and read each to its end."""

    def __init__(self) -> None:
        self.streams = 0
        self.items = 0
        self.restarts = 0
        self.faults: list[str] = []
        self.enough = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, read: Callable[[], tuple[Any, int]]) -> None:
        """Read streams until it is enough; ``read`` begins one and says how many items it has."""

        def run() -> None:
            try:
                while not self.enough.is_set():
                    self._check(*read())
            except BaseException as error:
                self.faults.append(repr(error))

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def _check(self, items: Any, total: int) -> None:
        expected = 0
        for item in items:
            if isinstance(item, StreamRestarted):
                self.restarts += 1
                expected = 0
                continue
            if item[0] != expected:
                self.faults.append(f"{items}: {item[0]} where {expected} belongs")
                return
            expected += 1
            self.items += 1
        if expected != total:
            self.faults.append(f"{items}: ended after {expected} of {total}")
        self.streams += 1

    def end(self, timeout: float) -> None:
        """Let them come to their ends."""
        self.enough.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"a stream does not end: {self.faults}"


def living(db: redis.Redis) -> list[int]:
    """The pids of the worker processes that live."""
    return [pid for pid in sorted(registered(db).values()) if alive(pid)]


@pytest.mark.timeout(120 + 5 * KILLS)
def test_streams_of_killed_workers_are_whole(
    url: str, db: redis.Redis, start: Callable[..., Command]
) -> None:
    """Handlers in threads and in the event loop, and functions, that go on or begin anew; readers
    that come early, late, or in the midst."""
    seed = int(os.environ.get("REDISTQ_SEED", "0")) or random.randrange(1 << 30)
    print(f"REDISTQ_SEED={seed}")
    chance = random.Random(seed)
    command = start(REDISTQ_SIGNING_KEY=KEY)
    readers = Readers()
    with TaskProducer(url=url) as producer, Client(url, signing_key=KEY, shared=True) as client:

        def named(name: str, total: int, late: float = 0) -> tuple[Any, int]:
            task = producer.add_task(name, total)
            time.sleep(late)
            return producer.stream(task, restarts=True), total

        readers.begin(lambda: named("going_on", 400))
        readers.begin(lambda: named("going_on", 300, late=0.4))
        readers.begin(lambda: named("agoing_on", 400))
        readers.begin(lambda: named("anew", 120))
        readers.begin(lambda: named("anew", 60, late=0.2))
        readers.begin(lambda: (client.stream(call, 300).stream(), 300))
        until(lambda: readers.streams >= 2, "some have come to their end", 30)
        for kill in range(1, KILLS + 1):
            time.sleep(chance.uniform(0, 0.3))
            least = readers.items + chance.randrange(60)
            until(lambda least=least: readers.items >= least, "items come", 60)
            children = until(lambda: living(db), "a process is there", 30)
            os.kill(chance.choice(children), signal.SIGKILL)
            if kill % 50 == KILLS % 50 // 2:
                os.kill(command.pid, signal.SIGKILL)
                command = start(REDISTQ_SIGNING_KEY=KEY)
            assert readers.faults == []
            print(f"kill {kill}: {readers.streams} streams, {readers.items} items", flush=True)
        readers.end(120)
    print(f"{KILLS} kills: {readers.streams} streams of {readers.items} items")
    print(f"{readers.restarts} began anew under their readers")
    assert readers.faults == []
    assert readers.streams > KILLS / 4
    recovered = int(db.hget("counters:tasks", "recovered") or 0)
    assert recovered > 0, "none was killed while it ran"
