"""What running handlers say of themselves: how far they are, and where another attempt goes on."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import Command, processor_of, registered, until

from redistq import (
    ConfigurationError,
    Registry,
    Retry,
    Snooze,
    TaskContext,
    TaskProducer,
    TaskWorker,
    current_task,
)
from redistq.protocol.progress import Progress, read_progress, written
from redistq.worker.reporter import Report

registry = Registry()
gate = threading.Event()
said: list[Any] = []


@registry.task(backoff=0, retries=3)
def counts(payload: dict[str, Any], context: TaskContext) -> Any:
    """Goes on at its cursor and ends as the payload says, once."""
    start = context.cursor or 0
    said.append(start)
    for row in range(start, payload["rows"]):
        context.checkpoint(row + 1)
        context.progress(row + 1, payload["rows"], f"row {row}")
        if row + 1 == payload.get("stop") and len(said) == 1:
            error = payload["error"]
            raise {"retry": Retry(0), "snooze": Snooze(0.05), "fail": OSError("no")}[error]
    return start


@registry.task
async def counts_async(payload: int, context: TaskContext) -> Any:
    before = await context.acursor()
    current_task().progress(payload, 2 * payload)
    context.checkpoint({"at": payload})
    if before is None:
        raise Retry(0)
    return before


@registry.task
def waits(payload: Any, context: TaskContext) -> None:
    context.progress(*payload)
    gate.wait(20)


@registry.task
def silent(payload: Any, context: TaskContext) -> None:
    """Takes a context and says nothing."""


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    gate.clear()
    said.clear()
    yield
    gate.set()


@pytest.fixture
def work(url: str) -> Iterator[Callable[..., TaskWorker]]:
    """Start workers of this module's handlers."""
    workers: list[TaskWorker] = []

    def start(**options: Any) -> TaskWorker:
        worker = TaskWorker(url=url, task_handlers=registry, thread_count=2, **options)
        worker.start()
        workers.append(worker)
        return worker

    yield start
    gate.set()
    for worker in workers:
        worker.stop()


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


def progress_of(db: redis.Redis, task_id: str) -> Progress | None:
    raw: Any = db.hget(f"task:tasks:{task_id}", "progress")
    return read_progress(raw)


def test_a_running_task_shows_how_far_it_is(
    work: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis
) -> None:
    """With its total and text, since when it runs, and when it said so."""
    work()
    task_id = producer.add_task("waits", [3, 10, "the third\nof them"])
    found = until(lambda: progress_of(db, task_id), "a report")
    assert (found.done, found.total, found.text, found.attempt) == (3, 10, "the third of them", 1)
    assert found.fraction == 0.3
    assert time.time() - 30 < found.since <= found.at < time.time() + 30


def test_the_last_report_of_a_lone_task_is_there_at_its_end(
    work: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis
) -> None:
    """However short it is: the settlement does not overtake it."""
    work()
    for _ in range(3):
        said.clear()
        task_id = producer.add_task("counts", {"rows": 20})
        producer.get_result(task_id, 10)
        found = progress_of(db, task_id)
        assert found is not None
        assert found.done == 20
        time.sleep(1.1)  # calls of a second are counted


@pytest.mark.parametrize("error", ["retry", "snooze", "fail"])
def test_another_attempt_goes_on_where_the_last_one_was(
    work: Callable[..., TaskWorker], producer: TaskProducer, error: str
) -> None:
    """However it ended, and at once: no checkpoint is still on its way."""
    work()
    for stop in range(1, 20):
        said.clear()
        task_id = producer.add_task("counts", {"rows": 20, "stop": stop, "error": error})
        assert producer.get_result(task_id, 10) == stop


def test_coroutines_report_too(work: Callable[..., TaskWorker], producer: TaskProducer) -> None:
    """Their cursor is read off the event loop."""
    work()
    assert producer.get_result(producer.add_task("counts_async", 3), 10) == {"at": 3}


def test_a_dead_letter_that_is_replayed_goes_on(
    work: Callable[..., TaskWorker], producer: TaskProducer
) -> None:
    """A replay is another attempt; what has succeeded begins anew."""
    work()
    payload = {"rows": 5, "stop": 3, "error": "fail"}
    task_id = producer.add_task("counts", payload, retries=0)
    until(lambda: producer.get_task(task_id).state == "failed", "a dead letter")
    producer.replay(task_id)
    assert producer.get_result(task_id, 10) == 3


def test_reports_cost_a_process_four_calls_a_second(
    work: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis
) -> None:
    """Whatever its handlers say, and nothing when they say nothing."""
    worker = work()
    db.config_resetstat()
    ids = [producer.add_task("waits", [1]) for _ in range(2)]
    until(lambda: all(progress_of(db, id) for id in ids), "reports")
    reporter = processor_of(worker).reporter
    queue = processor_of(worker).fetcher.queues[0]
    entries = [str(db.hget(f"task:tasks:{id}", "entry")).encode() for id in ids]
    reports = [Report(reporter, queue, e, id, 1) for e, id in zip(entries, ids, strict=True)]
    calls: list[float] = []
    call = reporter._call

    def counted(*args: Any) -> None:
        calls.append(time.monotonic())
        call(*args)

    reporter._call = counted
    end = time.monotonic() + 2.5
    done = 0
    while time.monotonic() < end:
        done += 1
        for report in reports:
            report.progress(done, None, "")
        time.sleep(0.002)
    assert all(calls[k + 4] - calls[k] >= 1.0 for k in range(len(calls) - 4)), calls
    assert len(calls) >= 6, "some each second"
    until(lambda: all(progress_of(db, id)[0] == done for id in ids), "the last")  # type: ignore[index]


def test_handlers_that_say_nothing_cost_nothing(
    work: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis
) -> None:
    """No script call of reports, and no field in the record."""
    work()
    task_id = producer.add_task("silent", None)
    producer.get_result(task_id, 10)
    assert not {"progress", "checkpoint"} & db.hgetall(f"task:tasks:{task_id}").keys()


def test_what_a_worker_that_lost_its_lease_says_does_not_count(
    work: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis
) -> None:
    """Reports are fenced as settlements are."""
    worker = work()
    task_id = producer.add_task("waits", [1])
    until(lambda: progress_of(db, task_id), "a report")
    queue = processor_of(worker).fetcher.queues[0]
    entry = str(db.hget(f"task:tasks:{task_id}", "entry"))
    row = [entry, task_id, "1 9 9", 5, "", b"9"]
    broker = processor_of(worker).broker
    assert broker.call(queue.commands.report("another", [row])) == [1]
    assert broker.call(queue.commands.report("another", [row] * 3)) == [1, 2, 3]
    found = progress_of(db, task_id)
    assert found is not None
    assert found.done == 1
    assert not db.hexists(f"task:tasks:{task_id}", "checkpoint")


def test_a_worker_that_stops_leaves_the_last_checkpoint(
    tmp_path: Path, url: str, db: redis.Redis, producer: TaskProducer
) -> None:
    """Of a task that does not end in time, and of one that is killed at most half a second old."""
    (tmp_path / "jobs.py").write_text(
        "import time\nfrom redistq import task\n"
        "@task(name='long')\n"
        "def long(payload, context):\n"
        "    at = context.cursor or 0\n"
        "    open('seen', 'a').write(f'{at}\\n')\n"
        "    while at < 100_000:\n"
        "        at += 1\n"
        "        context.checkpoint(at)\n"
        "        time.sleep(0.001)\n"
    )
    arguments = ("-m", "redistq.worker", "jobs", "--shutdown-timeout", "0.2")
    task_id = producer.add_task("long", None)
    seen = tmp_path / "seen"

    def saved() -> int:
        return int(db.hget(f"task:tasks:{task_id}", "checkpoint") or 0)  # type: ignore[arg-type]

    def starts(count: int) -> list[int]:
        """Where each attempt began, once there are so many."""
        return until(
            lambda: seen.exists() and len(found := seen.read_text().split()) == count and found,
            "a start",
        )

    def run_until_saved(rows: int, begun: int, number: int) -> int:
        """Run a worker until a checkpoint is there, end it by a signal; the checkpoint then."""
        worker = Command(tmp_path, *arguments, url=url)
        try:
            starts(begun)
            until(lambda: saved() > rows, "a checkpoint")
            if number == signal.SIGKILL:
                os.kill(next(iter(registered(db).values())), number)
                starts(begun + 1)  # in another process, by the same supervisor
            worker.send(signal.SIGTERM)
            worker.wait()
        finally:
            worker.close()
        return saved()

    first = run_until_saved(300, 1, signal.SIGTERM)
    run_until_saved(first + 300, 2, signal.SIGKILL)
    begun = [int(n) for n in starts(3)]
    assert begun[:2] == [0, first]
    assert begun[2] > first + 300


BAD: list[tuple[Any, Any, Any]] = [
    *[(value, None, "") for value in (-1, math.nan, math.inf, "3", None, True, 2**70, [])],
    *[(1, value, "") for value in (0, -1, math.nan, math.inf, "3", False)],
    *[(1, 2, value) for value in (None, 3, b"")],
]


@pytest.mark.parametrize(("done", "total", "text"), BAD)
def test_what_is_no_progress_is_refused_at_the_call(done: Any, total: Any, text: Any) -> None:
    """By its name; nothing of it is kept."""
    report = Report(None, None, b"1-1", "a", 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"of a progress is"):
        report.progress(done, total, text)
    assert report.reported is None


@pytest.mark.parametrize("value", [0, 5, 0.25, Decimal("0.5"), 2**63])
def test_numbers_are_read_as_they_were_said(value: Any) -> None:
    """Of any kind, and with any text."""
    if isinstance(value, Decimal):
        value = float(value)
    report = Report(None, None, b"1-1", "a", 1)  # type: ignore[arg-type]
    report.progress(value, max(value, 1), "half \ud800 of\n\nit " + "x" * 500)
    numbers, text = written(report.reported, "3")
    found = read_progress(f"{numbers} 1000 2500 {text}")
    assert found is not None
    assert (found.done, found.total, found.attempt) == (value, max(value, 1), 3)
    assert found.text.startswith("half ? of it x")
    assert len(found.text) <= 200
    assert (found.since, found.at) == (1.0, 2.5)


@pytest.mark.parametrize("raw", [b"", b"1 2", b"1 nan - 1 1 ", b"\xff\xff", b"a b c d e f", None])
def test_what_is_no_report_reads_as_none(raw: Any) -> None:
    """Anyone may write to a record."""
    assert read_progress(raw) is None


@pytest.mark.parametrize("cursor", [{1, 2}, b"x", math.nan, "x" * 70_000, object()])
def test_what_is_no_checkpoint_is_refused_at_the_call(cursor: Any) -> None:
    """By a message that says what one is."""
    report = Report(None, None, b"1-1", "a", 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"a checkpoint"):
        report.save(cursor)


def test_a_context_made_by_hand_reports_nothing() -> None:
    """Handlers can be tested without a worker."""
    fields: dict[str, Any] = dict.fromkeys(("task_id", "name", "queue", "entry", "worker"), "")
    fields |= dict.fromkeys(("attempt", "recovered", "max_attempts"), 1)
    context = TaskContext(**fields, logger=None)  # type: ignore[arg-type]
    context.progress(1, 2, "x")
    context.checkpoint(3)
    assert context.cursor is None
    assert asyncio.run(context.acursor()) is None


def test_a_checkpoint_is_what_was_saved_not_what_it_became(
    every_server: Server,
) -> None:
    """A handler may go on changing what it saved."""
    report = Report(None, None, b"1-1", "a", 1)  # type: ignore[arg-type]
    cursor = {"rows": [1]}
    report.save(cursor)
    cursor["rows"].append(2)
    assert report.cursor() == {"rows": [1]}
    assert json.loads(report.checkpoint or b"") == {"rows": [1]}
