"""Tasks that kill their process, and a supervisor that breaks or dies: who is charged, who
waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import Command, alive, history, registered, until, worker_commands

from redistq import TaskFailed, TaskProducer
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.worker.settings import WorkerSettings
from redistq.worker.supervisor import Supervisor

JOBS = """
import os, signal, time
import redis
from redistq import task

out = redis.Redis.from_url(os.environ["JOBS_URL"], decode_responses=True)

@task
def double(payload):
    return payload * 2

@task
def naps(payload, context):
    out.rpush("started", context.task_id)
    time.sleep(payload)
    return context.recovered

@task
async def async_naps(payload, context):
    import asyncio
    await asyncio.sleep(payload)
    return context.recovered

@task
def dies(payload, context):
    time.sleep(payload)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def worker(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Command]]:
    """Starts ``python -m redistq.worker jobs``, ready when it returns."""
    monkeypatch.setenv("JOBS_URL", url)
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url) as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


def held_back(producer: TaskProducer, add: Callable[[], Any]) -> Any:
    """What ``add`` adds while the queue is paused: one read then takes all of it."""
    producer.pause()
    time.sleep(0.2)
    added = add()
    producer.resume()
    return added


@pytest.mark.parametrize("kind", ["naps", "async_naps"])
def test_a_killer_takes_its_neighbours_along_only_once(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis, kind: str
) -> None:
    """What ran beside it is run apart from it afterwards, however often it kills."""
    worker("--threads", "4", "--async-concurrency", "4", "--max-recoveries", "3")
    naps, killer = held_back(
        producer,
        lambda: (
            producer.add_tasks([(kind, 0.4)] * 3),
            producer.add_task("dies", 0.1),
        ),
    )
    with pytest.raises(TaskFailed, match="WorkerLost"):
        producer.get_result(killer, 40)
    assert [producer.get_result(task, 20) for task in naps] == [1, 1, 1]
    for task in naps:
        assert history(db, task) == ["recovered", "succeeded"]


def test_a_suspect_does_not_hold_up_others_for_long(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """A long task whose worker died has company again after a while."""
    worker("--threads", "2")
    long_one = producer.add_task("naps", 8)
    until(lambda: db.lpop("started") == long_one, "its start")
    (pid,) = registered(db).values()
    os.kill(pid, signal.SIGKILL)
    until(lambda: db.lpop("started") == long_one, "its second start")
    at = time.monotonic()
    assert producer.get_result(producer.add_task("double", 2), 10) == 4
    assert time.monotonic() - at < 4
    assert producer.get_result(long_one, 20) == 1


def test_killers_do_not_hold_up_a_healthy_batch(
    worker: Callable[..., Command], producer: TaskProducer
) -> None:
    """A process that a task killed is started again at once while others settle their work."""
    worker("--processes", "2", "--threads", "1", "--max-recoveries", "2")
    killers = [producer.add_task("dies", 0) for _ in range(4)]
    healthy = producer.add_tasks([("naps", 0.1)] * 60)
    at = time.monotonic()
    assert [producer.get_result(task, 90) for task in healthy] == [0] * 60
    for task in killers:
        with pytest.raises(TaskFailed, match="WorkerLost"):
            producer.get_result(task, 90)
    assert time.monotonic() - at < 90  # with pauses that double it took minutes


def test_a_killed_supervisor_charges_nothing_that_had_not_started(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """Its processes sign off themselves: what waits goes back uncounted, before the lease ends."""
    supervisor = worker("--threads", "1", "--lease", "4")
    for n in range(40):
        producer.get_result(producer.add_task("double", n), 10)
    busy, behind = held_back(
        producer,
        lambda: (
            producer.add_task("naps", 6),
            producer.add_tasks([("double", n) for n in range(30)]),
        ),
    )
    until(lambda: db.lpop("started") == busy, "the start")
    children = list(registered(db).values())
    supervisor.send(signal.SIGKILL)
    at = time.monotonic()
    until(lambda: not any(alive(pid) for pid in children), "the end of its processes")
    until(lambda: not registered(db), "their sign-off", 1)
    assert time.monotonic() - at < 4
    worker("--threads", "1", "--lease", "4")
    assert [producer.get_result(task, 20) for task in behind] == [n * 2 for n in range(30)]
    assert {tuple(history(db, task)) for task in behind} == {("succeeded",)}
    assert history(db, busy)[:1] == ["recovered"]


def test_a_supervisor_goes_on_after_any_error(url: str, db: redis.Redis) -> None:
    """What breaks in its loop is logged; it beats again, and ends when it is told to."""
    supervisor = Supervisor(WorkerSettings(lease=1.0, scheduler=False), Address(url))
    beats = []

    def beat() -> None:
        beats.append(time.monotonic())
        supervisor.heartbeat.send_soon()
        raise RuntimeError("broken")

    supervisor.heartbeat.send = beat  # type: ignore[method-assign]
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(supervisor.run()), name="redistq-supervisor"
    )
    thread.start()
    until(lambda: len(beats) >= 3, "three beats")
    supervisor.request_stop(0.0)
    thread.join(10)
    assert codes == [0]


def test_a_dead_process_is_reported_when_the_server_is_back(
    url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor alone knows what had been started; it tells it as soon as it is heard."""
    from redistq.errors import ServerUnavailable

    broker = Broker(Address(url))
    calls = Commands(QueueKeys("tasks"))
    broker.call(calls.create_group())
    broker.call(calls.register("gone", 60_000, {"host": "here"}))
    with TaskProducer(url=url) as producer:
        ids = producer.add_tasks([("double", n) for n in range(3)])
    entries = [entry.decode() for entry, _ in broker.call(calls.fetch("gone", 3, None))[0][1]]
    supervisor = Supervisor(WorkerSettings(scheduler=False), Address(url))
    real, refused = supervisor._broker.call, []

    def away(*args: Any) -> Any:
        if len(refused) < 2:
            refused.append(args)
            raise ServerUnavailable("away")
        return real(*args)

    monkeypatch.setattr(supervisor._broker, "call", away)
    supervisor._deaths.add("gone", entries[:1])
    thread = threading.Thread(target=supervisor.run, name="redistq-supervisor")
    thread.start()
    until(lambda: not db.exists("worker:tasks:gone"), "the report")
    supervisor.request_stop(0.0)
    thread.join(10)
    broker.close()
    assert len(refused) == 2
    found: Any = db.xrange("tasks")
    assert {f["id"]: f["recovered"] for _, f in found} == dict(zip(ids, "100", strict=True))
