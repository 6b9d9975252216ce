"""The rights in docs/operations.md: enough for all that redistq does, and no more.

A tour of everything is made as a user who has exactly these, on every server there is.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import redis
from support.clients import KEY
from support.gate import HandMade
from support.servers import FLAVOURS, Server
from support.workers import Command, registered, until

from redistq import (
    AsyncTaskProducer,
    Client,
    RedistqError,
    TaskFailed,
    TaskMonitor,
    TaskProducer,
    TaskScheduler,
)
from redistq.protocol.keys import QueueKeys

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
USER, PASSWORD = "queue-user", "pw"
# What is asked for only to warn of settings, or to say who asks; all works without.
WELCOME = {"info", "config", "config|get", "client", "client|setinfo"}
HANDLERS = """
import time
from redistq import Retry, Snooze, task

@task
def quick(payload): return payload

@task(retries=1, backoff=0.05, jitter=0)
def flaky(payload, context):
    if context.attempt == 1: raise ValueError("once")
    return context.attempt

@task
def later(payload, context):
    import os
    path = payload + "/seen"
    if not os.path.exists(path):
        open(path, "w").close()
        raise Snooze(0.05)
    return "awake"

@task
def durable(payload, context):
    made = context.step("made", lambda: payload)
    context.sleep(0.05)
    return [made, context.wait_for("go", 20), context.wait_for("never", 0, default=None)]

@task(retries=0)
def doomed(payload): raise ValueError("always")

@task
def kills_once(payload):
    import os
    path = payload + "/killed"
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), 9)
    return "again"
"""


def rules() -> list[str]:
    """The words of the rights in the guide, in order."""
    section = GUIDE.read_text(encoding="utf-8").partition("\n## Rights\n")[2].partition("\n## ")[0]
    return [word for line in re.findall(r"^    (.*)$", section, re.M) for word in line.split()]


@pytest.fixture(params=FLAVOURS)
def guarded(request: pytest.FixtureRequest, private_server: Callable[..., Server]) -> Server:
    """A server of each kind with a user who has the rights of the guide."""
    server = private_server(request.param)
    with server.client() as db:
        allow(db, rules())
        db.config_resetstat()
    return server


def allow(db: redis.Redis, words: list[str]) -> None:
    db.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *words)


def url_of(server: Server) -> str:
    return server.url.replace("//", f"//{USER}:{PASSWORD}@")


def denied(db: redis.Redis) -> set[str]:
    """What the user was refused, as the server remembers it."""
    log: list[dict[str, Any]] = db.acl_log()
    return {
        f"{row['reason']} {row['object']}" for row in log if row["object"].lower() not in WELCOME
    }


@pytest.fixture
def worker(guarded: Server, tmp_path: Path) -> Iterator[Command]:
    """The command with two processes, for the queue and its priorities."""
    (tmp_path / "jobs.py").write_text(HANDLERS)
    queues = [word for name in ("tasks!high", "tasks", "tasks!low") for word in ("--queue", name)]
    command = Command(
        tmp_path,
        *("-m", "redistq.worker", "jobs", "--processes", "2", "--lease", "2", *queues),
        url=url_of(guarded),
        REDISTQ_SIGNING_KEY=KEY,
    )
    command.says("ready")
    yield command
    command.send(signal.SIGTERM)
    assert command.process.wait(30) == 0
    assert "Traceback" not in command.output
    assert "ACL" not in command.output


def test_the_rights_in_the_guide_are_enough_for_everything(
    guarded: Server, worker: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Producers, clients, workers, monitors and operators: nothing is refused, and no right is
    left that none of them used."""
    url, folder = url_of(guarded), str(tmp_path)
    with guarded.client() as db:
        with TaskProducer(url=url) as producer:
            tour_of_tasks(producer, db, folder)
        tour_of_schedules(url)
        asyncio.run(tour_with_await(url))
        with Client(url, signing_key=KEY) as client:
            tour_of_calls(client)
            HandMade(db).some_of_everything()
            tour_of_views(client, url)
        TaskScheduler(url=url).start().stop()
        worker.send(signal.SIGTERM)
        worker.process.wait(30)
        assert denied(db) == set()
        used = {name.removeprefix("cmdstat_") for name in db.info("commandstats")}
        used |= {name.partition("|")[0] for name in used}
    granted = [word[1:] for word in rules() if word.startswith("+")]
    needless = [name for name in granted if not {name, name.partition("|")[0]} & used]
    assert needless == []


def tour_of_schedules(url: str) -> None:
    """Every way of a periodic task, and a scheduler that fires."""
    with (
        TaskProducer(url=url) as producer,
        TaskScheduler(url=url),
        TaskMonitor(url=url) as monitor,
    ):
        schedules = producer.schedules
        schedules.set("s", every=0.2, task="quick", limits="scheduled")
        until(lambda: schedules["s"].fired >= 1, "it fires")
        schedules.pause("s")
        schedules.resume("s")
        schedules.run_now("s")
        assert len(schedules.backfill("s", time.time() - 5, time.time())) > 20
        assert set(schedules.all()) == {"s"}
        assert len(monitor.tick().schedules) == len(monitor.records.schedules()) == 1
        schedules.delete("s")


def tour_of_tasks(producer: TaskProducer, db: redis.Redis, folder: str) -> None:
    """Every way of a task by name."""

    def result(name: str, payload: Any = None, **how: Any) -> Any:
        return producer.get_result(producer.add_task(name, payload, **how), timeout=20)

    assert result("quick", 1) == 1
    assert result("quick", "x" * 50_000) == "x" * 50_000
    assert result("quick", 1, delay=0.1) == 1
    assert result("flaky") == 2
    assert result("later", folder) == "awake"
    assert result("kills_once", folder) == "again"
    tour_of_steps(producer)
    assert len(producer.add_tasks([("quick", n) for n in range(50)])) == 50
    producer.add_task("nobody-has-it")
    dead = producer.add_task("doomed")
    with pytest.raises(TaskFailed):
        producer.get_result(dead, timeout=20)
    assert producer.get_task(dead).state == "failed"
    assert [letter.id for letter in producer.dead_letters()] == [dead]
    assert producer.replay(dead) == 1
    with pytest.raises(TaskFailed):
        producer.get_result(dead, timeout=20)
    assert producer.replay() == 1
    with pytest.raises(TaskFailed):
        producer.get_result(dead, timeout=20)
    assert producer.purge(dead) == 1
    producer.broker.call(("XADD", "tasks", "*", "no", "task"))
    until(lambda: producer.snapshot().dead == 1, "the corrupt entry is set aside")
    assert producer.purge() == 1
    producer.pause()
    far = producer.add_task("quick", 1, delay=600)
    assert producer.cancel(far) == {far: "cancelled"}

    def taken_back() -> bool:
        waiting = producer.add_task("quick", 1)
        return producer.cancel(waiting)[waiting] == "cancelled"

    until(taken_back, "a task that waits is cancelled, once no worker takes any more")
    producer.resume()
    # A worker of another machine that died: its lease runs out.
    db.zadd("workers:tasks", {"gone": 1})
    until(lambda: "gone" not in registered(db), "the dead worker is taken off", 20)


def tour_of_steps(producer: TaskProducer) -> None:
    """Steps, sleeps and events."""
    for task in (None, "durable-1"):
        task_id = producer.add_task("durable", 1, task_id=f"durable-{1 if task else 0}")
        until(lambda t=task_id: len(producer.steps(t)) == 3, "it waits")
        assert producer.send_event("go", "went", task=task) == 1
        assert producer.get_result(task_id, timeout=20) == [1, "went", None]
        producer.broker.call(("DEL", producer.keys.event_prefix + "go"))


async def tour_with_await(url: str) -> None:
    """The same by an awaited producer."""
    async with AsyncTaskProducer(url=url) as producer:
        assert await producer.get_result(await producer.add_task("quick", 4), timeout=20) == 4


def tour_of_calls(client: Client) -> None:
    """Every way of a function."""
    client.start_workers(1)
    assert client.submit(abs, -1).result(20) == 1
    assert list(client.map(abs, [-1, -2], chunksize=2)) == [1, 2]
    assert client.submit(len, b"x" * 200_000).result(20) == 200_000
    assert len(client.submit(bytes, 400_000).result(20)) == 400_000
    assert list(client.stream(lambda total: (yield from range(total)), 3)) == [0, 1, 2]
    for priority in ("high", "low"):
        assert client.options(priority=priority).submit(abs, -1).result(20) == 1
        batch = client.options(priority=priority).map_batch(abs, [-1], progress=False)
        assert batch.results(20) == [1]
        batch.delete()
    for _ in range(2):
        assert client.options(cache="1d").submit(abs, -3).result(20) == 3
    talking = client.options(logs=True).submit(print, "said")
    talking.result(20)
    assert until(lambda: talking.logs() == "said", "its output is kept")
    assert list(talking.logs(follow=True)) == ["said"]
    assert client.submit(time.sleep, 1.1).result(20) is None  # by now the inbox is trimmed
    late = client.options(delay=600).submit(abs, -1)
    assert late.cancel()
    failing = client.submit(divmod, 1, 0)
    assert isinstance(failing.exception(20), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        failing.rerun_here()
    assert isinstance(failing.replay().exception(20), ZeroDivisionError)
    assert not failing.running()
    batch = client.map_batch(lambda n: 1 // n, [1, 0], name="tour", progress=False)
    batch.results(20, on_error="skip")
    assert list(client.batch("tour").failures()["error"]) == ["ZeroDivisionError"]
    batch.retry_failed()
    batch.wait(20)
    assert client.map_batch(lambda n: 1 // n, [1, 0], name="tour", progress=False).wait(20)
    batch.cancel()
    batch.delete()
    grown = client.map_batch(abs, [1], name="grown", progress=False)
    grown.extend([-2])
    assert grown.results(20) == [1, 2]
    limited = client.options(limits="tour")
    for _ in range(2):
        batch = limited.map_batch(lambda n: 1 // n, [1, 0], name="limited", progress=False)
        assert batch.wait(20)
    batch.delete()
    with Client(client.address.url, signing_key=KEY) as other:
        other.options(delay=600).submit(abs, -1)
        other.close()
    assert client.drop_leftovers() == 1


def tour_of_views(client: Client, url: str) -> None:
    """Every look: frames, figures, dashboards."""
    from redistq.cli.monitor import main as monitor_command
    from redistq.dashboard import Dashboard

    with TaskMonitor(url=url) as monitor:
        task_id = client.submit(abs, -1).task_id
        for name in dir(TaskMonitor):
            if name.startswith("get_"):
                getattr(monitor, name)(*([task_id] if name == "get_task" else []))
        assert monitor.producer.get_task("l1").why
        monitor.snapshot()
        monitor.tick()
    assert Dashboard(client)._repr_html_()
    for command in ("stats", "recent", "workers", "dead"):
        assert monitor_command([command, "--url", url]) == 0


BEYOND: list[tuple[Any, ...]] = [
    *[("GET", "other"), ("SET", "other", 1), ("DEL", "x:tasks:y"), ("GET", "shop:tasks:1")],
    *[("SET", "tasksother", 1), ("GET", "config:tasks"), ("XADD", "other", "*", "a", "b")],
    *[("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", "0"), ("RANDOMKEY",), ("DBSIZE",)],
    *[("CONFIG", "GET", "requirepass"), ("CONFIG", "SET", "save", "")],
    *[("ACL", "LIST"), ("ACL", "SETUSER", "me"), ("SHUTDOWN",), ("BGSAVE",), ("SLOWLOG", "GET")],
    *[("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", "1")],
    *[("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("FUNCTION", "FLUSH"), ("MODULE", "LIST")],
    *[("REPLICAOF", "NO", "ONE"), ("MONITOR",), ("SWAPDB", "0", "1"), ("LATENCY", "RESET")],
    *[("MIGRATE", "127.0.0.1", "1", "", "0", "10", "KEYS", "tasks"), ("RENAME", "tasks", "b")],
    *[("PUBLISH", "news", "x"), ("SUBSCRIBE", "news"), ("PSUBSCRIBE", "*")],
    *[("EVAL", "return redis.call('GET','other')", "0"), ("SORT", "tasks", "GET", "other")],
    *[("EVAL", "return redis.call('FLUSHALL')", "0"), ("XGROUP", "DESTROY", "tasks", "workers")],
]


NO = ("NOPERM", "permission", "ACL failure", "The user executing the script", "unknown command")


def test_the_rights_in_the_guide_allow_no_more(guarded: Server) -> None:
    """No other key, no other channel, nothing about the server itself."""
    allowed = []
    for command in BEYOND:
        with redis.Redis.from_url(url_of(guarded), socket_timeout=5) as user:
            try:
                user.execute_command(*command)
                allowed.append(command)
            except redis.exceptions.ResponseError as error:
                if not any(word in str(error) for word in NO):
                    raise
    assert allowed == []


def test_the_keys_in_the_guide_are_those_of_a_queue() -> None:
    """One pattern a key, and none else; of the priorities, which end in a name, one for all."""
    keys = QueueKeys("tasks")
    wanted = {"~tasks"}
    for field in fields(QueueKeys):
        value = getattr(keys, field.name)
        if field.name not in ("stream", "delayed_key", "clustered", "channel"):
            wanted.add(f"~{value}*" if field.name.endswith("_prefix") else f"~{value}")
    given = {word for word in rules() if word.startswith("~")}
    assert {word for word in given if "!" not in word} == wanted
    assert {word for word in given if "!" in word} == {"~tasks!*", "~*:tasks!*"}
    assert {word for word in rules() if word.startswith("&")} == {"&wake:tasks", "&wake:tasks!*"}


def test_a_right_that_is_missing_is_said(guarded: Server) -> None:
    """The message names what was refused and where the list is."""
    with guarded.client() as db:
        allow(db, [word for word in rules() if word != "+xadd"])
    with (
        TaskProducer(url=url_of(guarded), timeout=2) as producer,
        pytest.raises(RedistqError, match=r"xadd|docs/operations\.md"),
    ):
        producer.add_task("quick")
