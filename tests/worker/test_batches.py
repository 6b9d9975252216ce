"""Batch handlers: many tasks in one call, each with an end of its own; with real workers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import history, processor_of, until, worker_commands

from redistq import (
    ArgumentError,
    BatchContext,
    BatchErrors,
    CancelRequested,
    ConfigurationError,
    Fail,
    Middleware,
    Registry,
    Retry,
    Snooze,
    TaskCancelled,
    TaskContext,
    TaskExpired,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)

BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])


def batch_of(
    work: Callable[[list[Any], BatchContext], Any], is_async: bool, **options: Any
) -> Registry:
    """A registry with one batch handler, plain or async, that does that."""
    registry = Registry()
    options = {"batch": 100, "within": 0.2, "retries": 2, "backoff": 0.01, "jitter": 0} | options
    if is_async:

        @registry.task(name="save", **options)
        async def save_async(payloads: list[Any], context: BatchContext) -> Any:
            await asyncio.sleep(0)
            return work(payloads, context)

    else:

        @registry.task(name="save", **options)
        def save(payloads: list[Any], context: BatchContext) -> Any:
            return work(payloads, context)

    return registry


@BOTH
def test_tasks_are_gathered_and_each_has_its_own_result(
    url: str, db: redis.Redis, is_async: bool
) -> None:
    """250 tasks in three calls, of 100 at most; each settled once."""
    sizes: list[int] = []

    def work(payloads: list[Any], context: BatchContext) -> list[Any]:
        sizes.append(len(payloads))
        assert context.items == payloads
        return [2 * n for n in payloads]

    registry = batch_of(work, is_async)
    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(250)])
        with TaskWorker(url=url, task_handlers=registry, thread_count=1):
            assert [door.get_result(task_id, 10) for task_id in ids] == [2 * n for n in range(250)]
    assert sum(sizes) == 250
    assert max(sizes) == 100
    assert len(sizes) <= 4
    assert int(db.hget("counters:tasks", "succeeded") or 0) == 250


@BOTH
def test_half_a_batch_waits_no_longer_than_its_time(url: str, is_async: bool) -> None:
    """A lone task runs after `within` seconds, and not before."""
    registry = batch_of(lambda payloads, context: payloads, is_async, within=0.3)
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=registry):
        door.get_result(door.add_task("save", 0), 10)
        began = time.monotonic()
        assert door.get_result(door.add_task("save", 1), 10) == 1
        assert 0.28 < time.monotonic() - began < 2.0


@BOTH
def test_each_task_ends_by_its_own_error(url: str, db: redis.Redis, is_async: bool) -> None:
    """One is retried, one snoozed, one fails; the others succeed with their results."""
    sizes: list[int] = []

    def work(payloads: list[Any], context: BatchContext) -> list[Any]:
        sizes.append(len(payloads))
        errors: dict[int, BaseException] = {}
        for at, (name, one) in enumerate(zip(payloads, context, strict=True)):
            if name == "retry" and one.attempt == 1:
                errors[at] = Retry(delay=0.01)
            if name == "error" and one.attempt <= 2:
                errors[at] = ValueError("for now")
            if name == "fails":
                errors[at] = Fail("for good")
            if name == "snooze" and len(sizes) == 1:
                errors[at] = Snooze(0.01)
        raise BatchErrors(errors, [f"{name}!" for name in payloads])

    names = ("fine", "retry", "error", "fails", "snooze", "too")
    with TaskProducer(url=url) as door:
        ids = dict(zip(names, door.add_tasks([("save", name) for name in names]), strict=True))
        with TaskWorker(url=url, task_handlers=batch_of(work, is_async)):
            for name in names:
                if name == "fails":
                    with pytest.raises(TaskFailed, match="for good"):
                        door.get_result(ids[name], 10)
                else:
                    assert door.get_result(ids[name], 10) == f"{name}!"
    assert sizes[0] == 6
    ends = {name: history(db, task_id) for name, task_id in ids.items()}
    assert ends == {
        "fine": ["succeeded"],
        "retry": ["retried", "succeeded"],
        "error": ["retried", "retried", "succeeded"],
        "fails": ["failed"],
        "snooze": ["snoozed", "succeeded"],
        "too": ["succeeded"],
    }


@BOTH
def test_any_other_error_is_that_of_all(url: str, db: redis.Redis, is_async: bool) -> None:
    """Each goes on by its own attempts: one that has no retries left fails, others come again."""
    calls: list[int] = []

    def work(payloads: list[Any], context: BatchContext) -> None:
        calls.append(len(payloads))
        if len(calls) == 1:
            raise ValueError("all of them")

    with TaskProducer(url=url) as door:
        last = door.add_task("save", 0, retries=0)
        ids = [door.add_task("save", n) for n in range(3)]
        with TaskWorker(url=url, task_handlers=batch_of(work, is_async)):
            assert [door.get_result(task_id, 10) for task_id in ids] == [None] * 3
            with pytest.raises(TaskFailed, match="all of them"):
                door.get_result(last, 10)
    assert calls[0] == 4
    assert [history(db, task_id) for task_id in ids] == [["retried", "succeeded"]] * 3


@BOTH
@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1], "a result for each payload, 3 here, or None, not 1 results"),
        ({"a": 1}, "or None, not {'a': 1}"),
        (BatchErrors({5: ValueError()}), "error for item 5, and the batch has 3 items"),
    ],
    ids=["short", "dict", "beyond"],
)
def test_what_says_nothing_of_each_task_fails_them(
    url: str, is_async: bool, returned: Any, words: str
) -> None:
    """With the reason, and no second try: the handler has run."""

    def work(payloads: list[Any], context: BatchContext) -> Any:
        if isinstance(returned, BatchErrors):
            raise returned
        return returned

    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=batch_of(work, is_async)):
            for task_id in ids:
                with pytest.raises(TaskFailed, match=words):
                    door.get_result(task_id, 10)


def test_one_result_that_is_no_json_fails_its_task_alone(url: str) -> None:
    """The others have theirs."""
    registry = batch_of(lambda payloads, context: [1, object(), 3], False)
    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=registry):
            assert (door.get_result(ids[0], 10), door.get_result(ids[2], 10)) == (1, 3)
            with pytest.raises(TaskFailed, match="cannot be written as JSON"):
                door.get_result(ids[1], 10)


def test_a_payload_that_cannot_be_read_fails_its_task_alone(url: str) -> None:
    """It is not among the payloads."""
    registry = batch_of(lambda payloads, context: [len(payloads)] * len(payloads), False)
    with TaskProducer(url=url) as door:
        door.broker.call(door.commands.enqueue_one("bad", "save", b"{", "", ""))
        ids = door.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=registry):
            assert [door.get_result(task_id, 10) for task_id in ids] == [3, 3, 3]
            with pytest.raises(TaskFailed, match="CorruptPayload"):
                door.get_result("bad", 10)


@dataclass
class Row:
    """What a batch handler takes many of."""

    id: int
    when: date


@BOTH
def test_items_are_converted_one_by_one(url: str, is_async: bool) -> None:
    """By what the list is annotated with; one that does not fit fails alone, and so do results."""
    registry = Registry()

    def made(rows: list[Row]) -> list[Row]:
        assert all(type(row) is Row and type(row.when) is date for row in rows)
        return [Row(row.id + 1, row.when) for row in rows]

    if is_async:

        @registry.task(name="save", batch=10)
        async def save_async(rows: list[Row]) -> list[Row]:
            return made(rows)

        added: Any = save_async
    else:

        @registry.task(name="save", batch=10)
        def save(rows: list[Row]) -> list[Row]:
            return made(rows)

        added = save

    day = date(2024, 2, 29)
    with TaskProducer(url=url) as door:
        door.add_task("save", {"id": 1, "when": "2024-02-29"})
        with door.active(), pytest.raises(ArgumentError, match="rows of task 'save'"):
            added.delay("no row")
        with door.active():
            handle = added.delay(Row(1, day))
        wrong = door.add_task("save", "no row")
        with TaskWorker(url=url, task_handlers=registry, processes=1):
            assert door.get_result(handle.id, 20) == {"id": 2, "when": "2024-02-29"}
            with pytest.raises(TaskFailed, match="rows of task 'save'"):
                door.get_result(wrong, 20)


def test_an_expired_task_is_none_of_the_batch(url: str) -> None:
    """It ends as expired when the batch begins, and the others run."""
    began, goes_on = threading.Event(), threading.Event()

    def work(payloads: list[Any], context: BatchContext) -> list[Any]:
        if payloads == ["first"]:
            began.set()
            goes_on.wait(20)
        return payloads

    registry = batch_of(work, False, within=0.0)
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=registry, thread_count=1):
        door.add_task("save", "first")
        assert began.wait(10)
        late = door.add_task("save", "late", expires=0.1)
        fine = door.add_task("save", "fine")
        time.sleep(0.3)  # its time passes
        goes_on.set()
        assert door.get_result(fine, 10) == "fine"
        with pytest.raises(TaskExpired):
            door.get_result(late, 10)


@BOTH
def test_cancelling_one_task_leaves_the_others_alone(url: str, is_async: bool) -> None:
    """Its context says so; what the handler makes of it is its own end, or the task succeeds."""
    began, asked = threading.Event(), threading.Event()

    def work(payloads: list[Any], context: BatchContext) -> list[Any]:
        began.set()
        asked.wait(20)
        until(lambda: context.contexts[1].cancelled, "the wish has come")
        assert not context.contexts[0].cancelled
        raise BatchErrors({1: CancelRequested("stopped")}, payloads)

    registry = batch_of(work, is_async)
    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=registry):
            assert began.wait(10)
            assert door.cancel(ids[1], running="ask") == {ids[1]: "asked"}
            asked.set()
            assert [door.get_result(ids[at], 10) for at in (0, 2)] == [0, 2]
            with pytest.raises(TaskCancelled, match="stopped"):
                door.get_result(ids[1], 10)


@BOTH
def test_a_task_that_still_waits_for_company_is_cancelled_at_once(url: str, is_async: bool) -> None:
    """It is held, and has not started."""
    registry = batch_of(lambda payloads, context: payloads, is_async, within=30)
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=registry) as worker:
        task_id = door.add_task("save", 1)
        until(lambda: processor_of(worker).fetcher.held, "it is held")
        assert door.cancel(task_id, running="ask") == {task_id: "asked"}
        with pytest.raises(TaskCancelled):
            door.get_result(task_id, 10)


@BOTH
def test_the_first_time_limit_of_its_tasks_is_that_of_the_batch(
    url: str, db: redis.Redis, is_async: bool
) -> None:
    """It is raised in the handler; each task is tried again by its own attempts."""
    calls: list[int] = []
    registry = Registry()
    options: Any = {"batch": 10, "within": 0.1, "retries": 1, "backoff": 0.01, "timeout": 30}

    def spin() -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.005)

    if is_async:

        @registry.task(name="save", **options)
        async def save_async(payloads: list[Any]) -> Any:
            calls.append(len(payloads))
            if len(calls) == 1:
                await asyncio.sleep(20)
            return payloads

    else:

        @registry.task(name="save", **options)
        def save(payloads: list[Any]) -> Any:
            calls.append(len(payloads))
            if len(calls) == 1:
                spin()
            return payloads

    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", 0), {"type": "save", "payload": 1, "timeout": 0.3}])
        with TaskWorker(url=url, task_handlers=registry):
            assert [door.get_result(task_id, 15) for task_id in ids] == [0, 1]
    assert calls[0] == 2
    assert [history(db, task_id) for task_id in ids] == [["retried", "succeeded"]] * 2


@BOTH
def test_half_a_batch_goes_back_when_the_worker_stops(
    url: str, db: redis.Redis, is_async: bool
) -> None:
    """Uncounted: nothing of it had started."""
    registry = batch_of(lambda payloads, context: payloads, is_async, within=30)
    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(20)])
        with TaskWorker(url=url, task_handlers=registry) as worker:
            until(lambda: len(processor_of(worker).fetcher.held) == 20, "all are held")
        assert [door.get_task(task_id).state for task_id in ids] == ["queued"] * 20
        assert {fields["attempt"] for _, fields in db.xrange("tasks")} == {"1"}
        assert {fields["recovered"] for _, fields in db.xrange("tasks")} == {"0"}
        short = batch_of(lambda payloads, context: payloads, is_async, within=0.0)
        with TaskWorker(url=url, task_handlers=short):
            assert [door.get_result(task_id, 10) for task_id in ids] == list(range(20))


def test_no_more_is_held_than_a_batch_while_all_runners_work(url: str) -> None:
    """Of a thousand, as many as two threads run and one batch beside: the rest is for others."""
    goes_on = threading.Event()

    def work(payloads: list[Any], context: BatchContext) -> list[Any]:
        goes_on.wait(30)
        return payloads

    registry = batch_of(work, False, batch=10)
    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(1000)])
        with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
            held = processor_of(worker).fetcher.held
            until(lambda: len(held) >= 30, "two run, and one waits")
            time.sleep(0.3)  # time enough to read more, if it did
            assert len(held) == 30
            goes_on.set()
            assert [door.get_result(task_id, 20) for task_id in ids] == list(range(1000))


def test_plain_tasks_of_the_same_worker_go_on(url: str) -> None:
    """Neither kind holds up the other, whatever the mixture."""
    registry = batch_of(lambda payloads, context: payloads, False, batch=50, within=0.05)

    @registry.task
    def echo(payload: Any) -> Any:
        return payload

    with TaskProducer(url=url) as door:
        items = [("save" if n % 3 else "echo", n) for n in range(2_000)]
        ids = door.add_tasks(items)
        with TaskWorker(url=url, task_handlers=registry, thread_count=2):
            assert [door.get_result(task_id, 20) for task_id in ids] == list(range(2_000))


def test_what_nobody_can_start_goes_to_other_workers(url: str, db: redis.Redis) -> None:
    """A batch that waits behind a long one is offered, and another worker runs it."""
    goes_on = threading.Event()
    ran: list[str] = []

    def of(name: str, blocks: bool) -> Registry:
        def work(payloads: list[Any], context: BatchContext) -> list[Any]:
            ran.extend(name for _ in payloads)
            if blocks:
                goes_on.wait(30)
            return payloads

        return batch_of(work, False, batch=5, within=0.05)

    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(10)])
        with TaskWorker(url=url, task_handlers=of("a", True), thread_count=1) as first:
            until(lambda: len(processor_of(first).fetcher.held) == 10, "one holds all")
            second = TaskWorker(url=url, task_handlers=of("b", False), thread_count=1).start()
            until(lambda: ran.count("b") == 5, "the other has run what waited")
            goes_on.set()
            assert [door.get_result(task_id, 10) for task_id in ids] == list(range(10))
            second.stop()


def test_a_pause_gives_back_what_is_gathered(url: str) -> None:
    """And after it all of them run."""
    registry = batch_of(lambda payloads, context: payloads, False, within=1.0)
    with TaskProducer(url=url) as door, TaskWorker(url=url, task_handlers=registry) as worker:
        ids = door.add_tasks([("save", n) for n in range(5)])
        held = processor_of(worker).fetcher.held
        until(lambda: held, "they are held")
        door.pause()
        until(lambda: not held, "they went back")
        assert {door.get_task(task_id).state for task_id in ids} == {"queued"}
        door.resume()
        assert [door.get_result(task_id, 10) for task_id in ids] == list(range(5))


@BOTH
def test_children_are_spawned_with_their_own_task_alone(url: str, is_async: bool) -> None:
    """Those of a task that fails are not there."""

    def work(payloads: list[Any], context: BatchContext) -> list[Any]:
        for one, payload in zip(context.contexts, payloads, strict=True):
            one.spawn("echo", payload, task_id=f"child-{payload}")
        raise BatchErrors({1: Fail("no")}, payloads)

    registry = batch_of(work, is_async)

    @registry.task
    def echo(payload: Any) -> Any:
        return payload

    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=registry):
            with pytest.raises(TaskFailed):
                door.get_result(ids[1], 10)
            assert door.get_result("child-0", 10) == 0
            assert door.get_result("child-2", 10) == 2
    with TaskProducer(url=url) as door, pytest.raises(Exception, match="child-1"):
        door.get_task("child-1")


def test_a_batch_handler_has_no_steps(url: str) -> None:
    """It is said what to do instead."""

    def work(payloads: list[Any], context: BatchContext) -> None:
        context.contexts[0].step("a", print)

    with TaskProducer(url=url) as door:
        task_id = door.add_task("save", 1, retries=0)
        with (
            TaskWorker(url=url, task_handlers=batch_of(work, False)),
            pytest.raises(TaskFailed, match="spawn tasks of another name"),
        ):
            door.get_result(task_id, 10)


def test_middleware_stands_around_the_whole_batch_and_hears_of_each_task(url: str) -> None:
    """One run for all; hooks with the context of each."""

    class Notes(Middleware):
        def __init__(self) -> None:
            self.runs: list[tuple[Any, Any]] = []
            self.heard: list[Any] = []

        def run(self, context: Any, payload: Any) -> Generator[Any, Any, Any]:
            self.runs.append((type(context), payload))
            yield

        def on_start(self, context: TaskContext) -> None:
            self.heard.append(context.task_id)

        def on_success(self, context: TaskContext, result: Any) -> None:
            self.heard.append((context.task_id, result))

        def on_failure(self, context: TaskContext, error: BaseException) -> None:
            self.heard.append((context.task_id, type(error)))

    def work(payloads: list[Any], context: BatchContext) -> list[Any]:
        raise BatchErrors({1: Fail("no")}, payloads)

    notes = Notes()
    with TaskProducer(url=url) as door:
        ids = door.add_tasks([("save", n) for n in range(3)])
        with TaskWorker(url=url, task_handlers=batch_of(work, False), middleware=[notes]):
            assert door.get_result(ids[2], 10) == 2
    assert notes.runs == [(BatchContext, [0, 1, 2])]
    assert notes.heard == [*ids, (ids[0], 0), (ids[1], Fail), (ids[2], 2)]


@pytest.mark.parametrize(
    ("options", "function", "words"),
    [
        ({"batch": 5}, lambda a, b: a, "takes arguments"),
        ({"batch": 5}, lambda: None, "takes arguments"),
        ({"batch": 0}, lambda rows: rows, "batch is a whole number, 1 or more"),
        ({"batch": 1001}, lambda rows: rows, "at most 1,000"),
        ({"batch": 5, "within": 61}, lambda rows: rows, "at most 60 seconds"),
        ({"within": 1}, lambda rows: rows, "give batch"),
    ],
)
def test_what_cannot_be_a_batch_handler_is_refused(options: Any, function: Any, words: str) -> None:
    """Where it is written."""
    with pytest.raises(ConfigurationError, match=words):
        Registry().task(name="save", **options)(function)


def test_a_generator_is_no_batch_handler() -> None:
    """It streams."""
    with pytest.raises(ConfigurationError, match="and yields"):

        @Registry().task(batch=5)
        def save(rows: list[Any]) -> Generator[int, None, None]:
            yield 1


def test_errors_of_a_batch_are_exceptions_by_position() -> None:
    """Anything else is a mistake that is said at once."""
    for wrong in ({-1: ValueError()}, {"a": ValueError()}, {True: ValueError()}, {0: "no"}):
        with pytest.raises(TypeError, match="BatchErrors takes"):
            BatchErrors(wrong)  # type: ignore[arg-type]


# -- workers that die ------------------------------------------------------------------------------

KILLERS = """
import os, signal, time
from redistq import task, BatchErrors

def note(kind, payload):
    with open("ran.txt", "a") as file:
        file.write(f"{kind} {payload}\\n")

@task(batch=20, within=0.3, retries=0)
def save(payloads, context):
    for payload in payloads:
        note("began", payload)
    if "poison" in payloads:
        os.kill(os.getpid(), signal.SIGKILL)
    return payloads

@task(batch=20, within=0.3, retries=0)
async def asave(payloads, context):
    for payload in payloads:
        note("began", payload)
    if "poison" in payloads:
        os.kill(os.getpid(), signal.SIGKILL)
    return payloads

@task(batch=20, within=0.3, hard_timeout=0.7, retries=1, backoff=0.01)
def stuck(payloads):
    for payload in payloads:
        note("began", payload)
    if len(payloads) > 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, [])
        time.sleep(30)
    return payloads
"""


@pytest.mark.parametrize("name", ["save", "asave"])
def test_a_task_that_kills_its_worker_takes_no_other_along_for_good(
    url: str, db: redis.Redis, tmp_path: Path, name: str
) -> None:
    """Each is recovered on its own; afterwards they run one by one, and only the one that kills
    again and again ends as dead. Nothing is lost, nothing settled twice."""
    (tmp_path / "jobs.py").write_text(KILLERS)
    with (
        TaskProducer(url=url) as door,
        worker_commands(tmp_path, url, "jobs", "--max-recoveries", "2") as start,
    ):
        ids = door.add_tasks([(name, n) for n in range(10)])
        poison = door.add_task(name, "poison")
        ids += door.add_tasks([(name, n) for n in range(10, 15)])
        start()
        assert [door.get_result(task_id, 60) for task_id in ids] == list(range(15))
        with pytest.raises(TaskFailed, match="died"):
            door.get_result(poison, 60)
    for task_id in ids:
        assert history(db, task_id) == ["recovered", "succeeded"]
    assert history(db, poison)[-1] == "failed"
    assert int(db.hget("counters:tasks", "succeeded") or 0) == 15
    assert db.xlen("tasks") == 0


def test_a_batch_beyond_its_hard_limit_ends_each_by_its_own_attempts(
    url: str, db: redis.Redis, tmp_path: Path
) -> None:
    """The process is killed; those with retries left come again, the other fails."""
    (tmp_path / "jobs.py").write_text(KILLERS)
    with TaskProducer(url=url) as door, worker_commands(tmp_path, url) as start:
        last = door.add_task("stuck", "last", retries=0)
        again = door.add_task("stuck", "again")
        start()
        with pytest.raises(TaskFailed, match="hard time limit"):
            door.get_result(last, 60)
        assert door.get_result(again, 60) == "again"
    assert history(db, again) == ["retried", "succeeded"]


@pytest.mark.parametrize("name", ["save", "asave"])
def test_batches_survive_workers_that_are_killed_again_and_again(
    url: str, db: redis.Redis, tmp_path: Path, name: str
) -> None:
    """Killed from outside while they work: every task has one end, and its result."""
    import os
    import signal

    from support.workers import registered

    (tmp_path / "jobs.py").write_text(
        KILLERS.replace("return payloads", "time.sleep(.02); return payloads")
    )
    count = 1_500
    with TaskProducer(url=url) as door, worker_commands(tmp_path, url) as start:
        start("--processes", "2", "--max-recoveries", "50")
        ids = door.add_tasks([(name, n) for n in range(count)])
        for _ in range(4):
            done = int(db.hget("counters:tasks", "succeeded") or 0)
            until(
                lambda done=done: (
                    int(db.hget("counters:tasks", "succeeded") or 0) >= min(done + 50, count)
                ),
                "some have ended",
                60,
            )
            for pid in registered(db).values():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                break
        assert [door.get_result(task_id, 90) for task_id in ids] == list(range(count))
    assert int(db.hget("counters:tasks", "succeeded") or 0) == count
    assert db.xlen("tasks") == 0
