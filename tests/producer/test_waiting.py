"""Who waits is told why nothing comes: once, in one line that names the next step, and not at all
while workers are at it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.clients import KEY, gate, producer_of, session
from support.servers import Server
from support.workers import until

from redistq import AsyncTaskProducer, Client, ResultTimeout, TaskProducer, TaskWorker
from redistq.producer import diagnosis as waiting

SOON = 0.3
"""What stands for three seconds here."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody asks soon."""
    monkeypatch.setattr(waiting, "WAIT_S", SOON)
    monkeypatch.setattr(waiting, "FRESH_S", 0.0)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said while waiting, line by line."""
    caplog.set_level(logging.WARNING, "redistq.client")
    return lambda: [r.getMessage() for r in caplog.records if "still waiting" in r.getMessage()]


@pytest.fixture
def idle(url: str) -> Iterator[Client]:
    """A client without workers."""
    client = Client(url, signing_key=KEY)
    yield client
    client.close()


def drop(waited: Callable[[], Any], seconds: float) -> None:
    """Wait in a thread for so long, and leave the wait to itself."""
    threading.Thread(target=_quietly, args=(waited,), daemon=True).start()
    time.sleep(seconds)  # nothing happens: that is what is looked at


def _quietly(waited: Callable[[], Any]) -> None:
    try:
        waited()
    except BaseException:
        pass  # the client is closed in the end


async def _await(what: Any) -> Any:
    return await what


WAITS: dict[str, Callable[[Client], Any]] = {
    "result": lambda c: c.submit(abs, -1).result(),
    "exception": lambda c: c.submit(abs, -1).exception(),
    "wait": lambda c: concurrent.futures.wait([c.submit(abs, -1)]),
    "as_completed": lambda c: list(concurrent.futures.as_completed([c.submit(abs, -1)])),
    "map": lambda c: list(c.map(abs, [-1])),
    "await": lambda c: asyncio.run(_await(c.submit(abs, -1))),
    "high": lambda c: c.options(priority="high").submit(abs, -1).result(),
    "named": lambda c: c.submit("resize", {}).result(),
    "again": lambda c: c.future(c.submit(abs, -1).task_id).result(),
    "batch": lambda c: c.map_batch(abs, [-1]).results(),
    "batch.wait": lambda c: c.map_batch(abs, [-1]).wait(),
    "batch.as_completed": lambda c: list(c.map_batch(abs, [-1]).as_completed()),
    "await batch": lambda c: asyncio.run(_await(c.map_batch(abs, [-1]))),
}


@pytest.mark.parametrize("kind", WAITS)
def test_without_workers_every_wait_of_a_client_says_so_once(
    kind: str, idle: Client, said: Callable[[], list[str]]
) -> None:
    """Whatever is waited with, one line names the queue, the server and what starts workers."""
    queue = "tasks!high" if kind == "high" else "tasks"
    drop(lambda: WAITS[kind](idle), SOON)
    until(said, "a word")
    time.sleep(4 * SOON)  # long enough for it to be asked again
    (line,) = said()
    assert f"no worker serves queue {queue!r} of redis://127.0.0.1" in line
    assert "client.start_workers()" in line
    assert f"redistq worker MODULE --queue {queue}`" in line


@pytest.mark.parametrize("kind", ["producer", "async producer"])
def test_without_workers_a_producer_says_so(
    kind: str, url: str, said: Callable[[], list[str]]
) -> None:
    """One line, and the same reason in the error at last."""
    if kind == "producer":
        with TaskProducer(url=url) as producer, pytest.raises(ResultTimeout) as late:
            producer.get_result(producer.add_task("resize"), timeout=1.2)
    else:

        async def ask() -> None:
            async with AsyncTaskProducer(url=url) as producer:
                await producer.get_result(await producer.add_task("resize"), timeout=1.2)

        with pytest.raises(ResultTimeout) as late:
            asyncio.run(ask())
    (line,) = said()
    assert "no worker serves queue 'tasks'" in line
    assert "`redistq worker MODULE --queue tasks`" in line
    assert "still queued after 1.2 s: no worker serves" in str(late.value)
    assert late.value.reason
    assert late.value.reason in line


@pytest.mark.parametrize(
    ("names", "start"), [("w1", "the only worker of"), ("w1 w2", "all 2 workers of")]
)
def test_workers_that_are_silent_are_not_said_to_be_missing(
    names: str, start: str, idle: Client, db: redis.Redis, said: Callable[[], list[str]]
) -> None:
    """Whose heartbeats are overdue is there, and may come back: a server that refuses writes for a
    while refuses heartbeats too, and then another worker would not help."""
    db.zadd("workers:tasks", dict.fromkeys(names.split(), 1))
    with pytest.raises(ResultTimeout):
        idle.submit(abs, -1).result(4 * SOON)
    (line,) = said()
    assert f"{start} queue 'tasks' of redis://127.0.0.1" in line
    assert "silent: dead, cut off, or the server refuses their heartbeats" in line
    assert "client.start_workers()" in line


def test_a_timeout_gives_the_reason(idle: Client) -> None:
    """Of a future, a map and a batch: what is waited for, for how long, and why nothing came."""
    future, batch = idle.submit(abs, -1), idle.map_batch(abs, [-1, -2], name="pair")
    for wait in (
        lambda: future.result(1.0),
        lambda: future.exception(1.0),
        lambda: list(idle.map(abs, [-1], timeout=1.0)),
    ):
        with pytest.raises(ResultTimeout, match=r"pending after \d.*: no worker serves"):
            wait()
    with pytest.raises(
        ResultTimeout, match=r"batch pair .*0 of 2 tasks have ended.*: no worker serves"
    ):
        batch.wait(1.0)


def test_a_short_timeout_asks_nobody(idle: Client, db: redis.Redis) -> None:
    """Who polls with result(0) costs the server nothing."""
    future = idle.submit(abs, -1)
    until(lambda: db.xlen("tasks") == 1, "the call to be sent")
    before: Any = db.info("commandstats")["cmdstat_evalsha"]["calls"]
    for _ in range(50):
        with pytest.raises(TimeoutError, match="pending after 0 s"):
            future.result(0)
    after: Any = db.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert after - before <= 1


def test_a_misspelt_name_is_said_among_many_that_end(
    idle: Client, url: str, said: Callable[[], list[str]]
) -> None:
    """The workers know another name that is near; other results go on coming meanwhile."""
    with TaskWorker(url=url, task_handlers={"send": abs}):
        missing, end = idle.submit("sendd", 1), threading.Event()

        def others() -> None:
            while not end.is_set():
                idle.submit("send", -1).result(10)

        busy = threading.Thread(target=others)
        busy.start()
        try:
            until(said, "a word")
        finally:
            end.set()
            busy.join()
        with pytest.raises(ResultTimeout, match="knows no task 'sendd'"):
            missing.result(1)
        (line,) = said()  # while the worker is there: that it has left would be another word
    assert "the only worker of queue 'tasks' knows no task 'sendd'; did you mean 'send'?" in line


def test_workers_without_the_key_are_said(
    idle: Client, url: str, said: Callable[[], list[str]]
) -> None:
    """A worker that runs named tasks only leaves function calls alone."""
    with TaskWorker(url=url, task_handlers={"send": abs}, unknown_grace=30):
        drop(lambda: idle.submit(abs, -1).result(), SOON)
        until(said, "a word")
    assert "knows no function calls" in said()[0]
    assert "REDISTQ_SIGNING_KEY" in said()[0]


def test_workers_of_other_folders_are_said(
    idle: Client, url: str, said: Callable[[], list[str]], tmp_path: Path, monkeypatch: Any
) -> None:
    """Workers that belong to another notebook's folder leave our calls alone."""
    monkeypatch.chdir(tmp_path)
    with Client(url, signing_key=KEY) as other:
        other.start_workers(1)
        drop(lambda: idle.submit(abs, -1).result(), SOON)
        until(said, "a word")
    assert "runs function calls of other folders" in said()[0]
    assert f"not of {idle.home.folder}" in said()[0]


def test_a_paused_queue_is_said(idle: Client, said: Callable[[], list[str]]) -> None:
    """Whatever workers there are: none of them starts anything."""
    with producer_of(idle) as producer:
        producer.pause()
    drop(lambda: idle.submit(abs, -1).result(), SOON)
    until(said, "a word")
    assert "queue 'tasks'" in said()[0]
    assert "is paused; resume()" in said()[0]


def test_busy_workers_are_no_reason(
    idle: Client, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    """A long call, and calls behind it: silence, and a plain timeout."""
    idle.start_workers(1)
    wait_for_it, let_go = gate(tmp_path)
    futures = [idle.submit(wait_for_it), idle.submit(abs, -1)]
    batch = idle.map_batch(abs, [-1])
    with pytest.raises(ResultTimeout, match=r"pending after 1.5 s$"):
        futures[1].result(1.5)
    with pytest.raises(ResultTimeout, match=r"after 1 s$"):
        batch.wait(1)
    assert said() == []
    let_go()
    assert futures[1].result(20) == 1


def test_it_is_said_again_when_it_happens_again(
    idle: Client, said: Callable[[], list[str]]
) -> None:
    """Workers came and went: that is news."""
    future = idle.submit(abs, -1)
    until(lambda: len(said()) == 1, "a word")
    workers = idle.start_workers(1)
    assert future.result(20) == 1
    workers.stop()
    idle.submit(abs, -2)
    until(lambda: len(said()) == 2, "a word again")


def test_results_that_come_ask_nothing(idle: Client, db: redis.Redis) -> None:
    """While results come no question is asked, however many calls wait."""
    idle.start_workers(1)
    assert idle.submit(abs, -1).result(20) == 1
    questions: list[float] = []
    session(idle).queue().diagnosis.ask = lambda names: questions.append(time.monotonic()) or ""  # type: ignore
    futures = [idle.submit(time.sleep, 0.01) for _ in range(100)]
    concurrent.futures.wait(futures)
    assert questions == []


def test_a_server_that_refuses_the_question_ends_no_wait(private_server: Any) -> None:
    """A producer that may not look at workers waits on, and times out in plain words."""
    server: Server = private_server()
    with server.client() as db:
        db.execute_command(
            *("ACL", "SETUSER", "narrow", "on", ">secret", "+@all"),
            *("~tasks", "~task:*", "~inbox:*", "~waiters:*", "~delayed:*", "&*"),
        )
    url = server.url.replace("redis://", "redis://narrow:secret@")
    with (
        TaskProducer(url=url) as producer,
        pytest.raises(ResultTimeout, match=r"still queued after 1.2 s$"),
    ):
        producer.get_result(producer.add_task("resize"), timeout=1.2)


def test_a_cancelled_task_says_so(idle: Client) -> None:
    """CancelledError has words."""
    future = idle.submit(abs, -1)
    assert future.cancel()
    for wait in (future.result, future.exception):
        with pytest.raises(concurrent.futures.CancelledError, match="was cancelled before"):
            wait()


def test_calls_that_stand_before_ours_are_said(
    idle: Client, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a client left that is gone is said when workers are started, once, and never our own."""
    left = [idle.submit(abs, -n) for n in range(3)]
    until(lambda: session(idle).queue().snapshot().ready == 3, "all to be sent")
    with Client(url, signing_key=KEY) as other:
        other.start_workers(1)
        (line,) = [r.getMessage() for r in caplog.records if "before yours" in r.getMessage()]
        assert line.startswith("3 tasks of other clients, the oldest from ")
        assert [future.result(20) for future in left] == [0, 1, 2]
        own = [idle.submit(time.sleep, 0.2) for _ in range(3)]
        idle.start_workers(1)
        assert [future.result(20) for future in own] == [None] * 3
    assert len([r for r in caplog.records if "before yours" in r.getMessage()]) == 1


def test_a_future_that_waits_shows_why(idle: Client, said: Callable[[], list[str]]) -> None:
    """Its text gives the reason once it is known."""
    future = idle.submit(abs, -1)
    assert repr(future).endswith("pending>")
    until(said, "a word")
    assert "pending: no worker serves queue 'tasks'" in repr(future)
