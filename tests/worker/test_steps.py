"""Durable steps in handlers: once for a task, however often it runs; sleeping, and events."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import history, processor_of, until

from redistq import (
    AsyncTaskProducer,
    EventTimeout,
    RedistqError,
    Registry,
    Retry,
    StepError,
    StepMismatch,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    Unique,
    UnknownTask,
    limit,
)
from redistq.errors import LeaseLost, Suspended

registry = Registry()
made: list[Any] = []
"""Every step that was run, in order."""
caught: list[BaseException] = []


def note(what: Any) -> Any:
    """A step: it is noted that it ran."""
    made.append(what)
    return what


async def anote(what: Any) -> Any:
    """The same for coroutines."""
    await asyncio.sleep(0)
    return note(what)


@registry.task(retries=3)
def order(payload: dict[str, Any], context: TaskContext) -> Any:
    """Two steps, with a first attempt that ends in between as the payload says."""
    first = context.step("charge", note, {"id": 1, "pair": (1, 2)})
    if payload.get("end") == "retry" and context.attempt == 1:
        raise Retry(0)
    if "sleep" in payload:
        context.sleep(payload["sleep"])
    if "wait" in payload:
        first["came"] = context.wait_for("paid", payload["wait"], default="nothing")
    return [first, context.step("ship", note, what="parcel")]


@registry.task(retries=3)
async def aorder(payload: dict[str, Any], context: TaskContext) -> Any:
    """The same, asynchronous."""
    first = await context.step("charge", anote, {"id": 1})
    second = await context.astep("look", note, "thread")
    if payload.get("end") == "retry" and context.attempt == 1:
        raise Retry(0)
    if "sleep" in payload:
        await context.asleep(payload["sleep"])
    if "wait" in payload:
        first["came"] = await context.await_for("paid", payload["wait"], default="nothing")
    return [first, second, await context.astep("ship", anote, what="parcel")]


@registry.task(retries=1)
def changed(payload: Any, context: TaskContext) -> None:
    """Another step in the same place, the second time."""
    context.step(f"step {context.attempt}", note, 1)
    raise Retry(0)


@registry.task
def does(payload: str, context: TaskContext) -> Any:
    """What is no step."""
    if payload == "nested":
        return context.step("outer", lambda: context.step("inner", note, 1))
    if payload == "large":
        return context.step("large", lambda: "x" * 1_100_000)
    if payload == "not JSON":
        return context.step("odd", lambda: object())
    if payload == "coroutine":
        return context.step("odd", lambda: anote(1))
    if payload == "many":
        for i in range(1001):
            context.step(f"s{i}", int)
    if payload == "much":
        for i in range(20):
            context.step(f"s{i}", lambda: "x" * 1_000_000)
    if payload == "name":
        return context.step("two\nlines", note, 1)
    if payload == "long sleep":
        context.sleep(-1)
    if payload == "raises":
        try:
            context.step("fails", int, "x")
        except ValueError:
            return context.step("then", note, "then")
    return None


@registry.task
async def on_loop(payload: Any, context: TaskContext) -> None:
    """Plain methods wait for a server."""
    if payload == "step":
        context.step("a", note, 1)
    if payload == "sleep":
        context.sleep(1)
    if payload == "wait":
        context.wait_for("paid")


@registry.task
def swallows(payload: Any, context: TaskContext) -> str:
    """Does not let Suspended through."""
    try:
        context.sleep(0.01)
    except BaseException as error:
        caught.append(error)
        try:
            context.step("after", note, 1)
        except BaseException as again:
            caught.append(again)
            if payload == "raise":
                raise ValueError("odd") from None
    return "done"


@registry.task
async def at_once(payload: Any, context: TaskContext) -> list[Any]:
    """Steps that run at the same time."""
    steps = (context.astep(f"s{i}", anote, i) for i in range(10))
    found: list[Any] = await asyncio.gather(*steps)
    if "sleep" in payload:
        async with asyncio.TaskGroup() as group:
            group.create_task(context.asleep(0.01))
    return found


@registry.task
def conversation(payload: Any, context: TaskContext) -> list[Any]:
    """Waits again and again for the same event."""
    found = []
    for _ in range(3):
        found.append(context.wait_for("say", 60))
    try:
        context.wait_for("never", "1s")
    except EventTimeout as error:
        found.append(str(error))
    return found


@registry.task
def in_turn(payload: Any, context: TaskContext) -> None:
    """Notes when it begins, sleeps, and notes its end."""
    context.step("begin", note, f"{payload} begins")
    context.sleep(0.1)
    context.step("end", note, f"{payload} ends")


@registry.task(timeout=0.8)
def long_in_all(payload: Any, context: TaskContext) -> int:
    """Half a second of work, three times, with a sleep between."""
    for number in range(3):
        context.step(f"work {number}", lambda: threading.Event().wait(0.5))
        context.sleep(0.01)
    return 3


@registry.task
def has_cursor(payload: Any, context: TaskContext) -> Any:
    """Saves where it is before it sleeps."""
    before = context.cursor
    context.checkpoint({"at": 5})
    context.sleep(0.01)
    return [before, context.step("cursor", lambda: context.cursor)]


@registry.task
def works_long(payload: Any, context: TaskContext) -> None:
    """A step that takes until it is interrupted."""

    def forever() -> None:
        note("started")
        while True:
            threading.Event().wait(0.01)

    context.step("forever", forever)


@registry.task
def loses(payload: Any, context: TaskContext) -> Any:
    """Its task is taken from its worker while the first attempt is in a step."""

    def step() -> str:
        if context.recovered == 0:
            assert context._steps is not None
            queue = context._steps._store._queue  # type: ignore[attr-defined]
            recover = queue.commands.recover(10, consumer=context.worker, started=[context.entry])
            queue.broker.call(recover)
        return f"recovered {context.recovered}"

    try:
        return context.step("lost", step)
    except LeaseLost as error:
        caught.append(error)
        raise


@registry.task
def waits_for_ever(payload: Any, context: TaskContext) -> Any:
    """For an event without a time limit."""
    return context.wait_for("some day")


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer of an empty queue."""
    made.clear()
    caught.clear()
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def worker(producer: TaskProducer, url: str) -> Iterator[TaskWorker]:
    """A worker of this process."""
    with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
        worker.start()
        yield worker


def ended(producer: TaskProducer, task_id: str) -> str:
    """The words of a task's failure."""
    with pytest.raises(TaskFailed) as failed:
        producer.get_result(task_id, 10)
    return str(failed.value)


@pytest.mark.parametrize("name", ["order", "aorder"])
def test_a_step_runs_once_however_often_the_task_runs(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis, name: str
) -> None:
    """The next attempt is given what the first one did, exactly."""
    task_id = producer.add_task(name, {"end": "retry"})
    result = producer.get_result(task_id, 10)
    assert history(db, task_id) == ["retried", "succeeded"]
    assert made[-1] == "parcel"
    assert len(made) == (2 if name == "order" else 3)
    assert result[-1] == "parcel"
    if name == "order":
        assert result[0] == {"id": 1, "pair": [1, 2]}
    kept = producer.steps(task_id)
    assert [step.kind for step in kept] == ["step"] * len(made)
    assert kept[0].name == "charge"
    assert kept[0].size > 10
    assert kept[0].run_time < 1


@pytest.mark.parametrize("name", ["order", "aorder"])
def test_a_task_sleeps_without_a_slot(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis, name: str
) -> None:
    """Ten sleep in two slots at the same time, each counts one attempt, and steps run once."""
    ids = [producer.add_task(name, {"sleep": 1}) for _ in range(10)]
    asleep = until(
        lambda: [s for s in map(producer.get_task, ids) if s.state == "delayed"][9:],
        "all of them sleep",
    )
    assert asleep[0].why.startswith("sleeps until 20")
    for task_id in ids:
        assert producer.get_result(task_id, 10)[-1] == "parcel"
        assert history(db, task_id) == ["snoozed", "succeeded"]
        assert producer.get_task(task_id).attempt == 1
    assert len(made) == 10 * (2 if name == "order" else 3)


@pytest.mark.parametrize("name", ["order", "aorder"])
def test_a_task_waits_for_an_event(producer: TaskProducer, worker: TaskWorker, name: str) -> None:
    """It goes on with what was sent; one that came before counts; one that does not come is the
    default."""
    task_id = producer.add_task(name, {"wait": 60})
    until(lambda: producer.get_task(task_id).state == "delayed", "it waits")
    assert producer.get_task(task_id).why.startswith("waits for event 'paid', until 20")
    with pytest.raises(TimeoutError, match="it waits for event 'paid'"):
        producer.get_result(task_id, 0.01)
    assert producer.send_event("paid", {"sum": [1, 2.5, None]}) == 1
    assert producer.get_result(task_id, 10)[0]["came"] == {"sum": [1, 2.5, None]}
    assert producer.get_result(producer.add_task(name, {"wait": 60}), 10)[0]["came"] == {
        "sum": [1, 2.5, None]
    }
    producer.broker.call(("DEL", producer.keys.event_prefix + "paid"))
    assert producer.get_result(producer.add_task(name, {"wait": 0}), 10)[0]["came"] == "nothing"
    late = producer.add_task(name, {"wait": 0.05})
    assert producer.get_result(late, 10)[0]["came"] == "nothing"
    assert [step.kind for step in producer.steps(late)][-2:] == ["timeout", "step"]


def test_messages_to_one_task_come_in_order(producer: TaskProducer, worker: TaskWorker) -> None:
    """None is lost or doubled, whoever else waits for the name."""
    other = producer.add_task("conversation")
    task_id = producer.add_task("conversation")
    for said in ("one", "two", "three"):
        producer.send_event("say", said, task=task_id)
    found = producer.get_result(task_id, 10)
    assert found == ["one", "two", "three", "event 'never' did not come within 1 s"]
    assert producer.get_task(other).state == "delayed"
    for number in range(3):
        until(lambda: producer.get_task(other).state == "delayed", "it waits")
        assert producer.send_event("say", number) == 1
        until(lambda n=number: len(producer.steps(other)) > n + 1, "it takes it")
    assert producer.get_result(other, 10)[:3] == [0, 1, 2]
    with pytest.raises(RedistqError, match="has succeeded: no event reaches it"):
        producer.send_event("say", 1, task=other)
    with pytest.raises(UnknownTask):
        producer.send_event("say", 1, task="nobody")


def test_the_same_in_an_event_loop(producer: TaskProducer, worker: TaskWorker, url: str) -> None:
    """AsyncTaskProducer has the same."""

    async def run() -> None:
        async with AsyncTaskProducer(url=url) as mine:
            task_id = await mine.add_task("order", {"wait": 60})
            while (await mine.get_task(task_id)).state != "delayed":
                await asyncio.sleep(0.01)
            assert await mine.send_event("paid", 5) == 1
            assert (await mine.get_result(task_id, 10))[0]["came"] == 5
            assert [step.name for step in await mine.steps(task_id)] == ["charge", "paid", "ship"]

    asyncio.run(run())


def test_steps_that_diverge_are_an_error_that_names_both(
    producer: TaskProducer, worker: TaskWorker
) -> None:
    """And no reason to try again."""
    words = ended(producer, producer.add_task("changed"))
    assert "step 1 of this task was step 'step 1'" in words
    assert "is step 'step 2' now" in words
    assert made == [1]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("nested", "begins within another step"),
        ("large", "1,048,576 can be kept"),
        ("not JSON", "'odd' came to object, which cannot be kept"),
        ("coroutine", "is to be awaited"),
        ("many", "at most 1,000 steps"),
        ("much", "more than 16,777,216 bytes"),
        ("name", "name of a step"),
        ("long sleep", "the time to wait"),
    ],
)
def test_what_is_no_step_is_a_clear_error(
    producer: TaskProducer, worker: TaskWorker, payload: str, words: str
) -> None:
    """It fails the task, and says why."""
    assert words in ended(producer, producer.add_task("does", payload, retries=0))
    assert made in ([], [1])


@pytest.mark.parametrize("payload", ["step", "sleep", "wait"])
def test_plain_methods_do_not_hold_up_an_event_loop(
    producer: TaskProducer, worker: TaskWorker, payload: str
) -> None:
    """They name their twin."""
    twin = {"step": "astep", "sleep": "asleep", "wait": "await_for"}[payload]
    task_id = producer.add_task("on_loop", payload, retries=0)
    assert f"await context.{twin}" in ended(producer, task_id)


def test_a_step_that_raises_is_not_kept(producer: TaskProducer, worker: TaskWorker) -> None:
    """Its error is the handler's to handle."""
    task_id = producer.add_task("does", "raises")
    assert producer.get_result(task_id, 10) == "then"
    assert [(step.number, step.name) for step in producer.steps(task_id)] == [(2, "then")]


@pytest.mark.parametrize("payload", ["return", "raise"])
def test_a_handler_that_keeps_suspended_to_itself_sleeps_all_the_same(
    producer: TaskProducer, worker: TaskWorker, payload: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it does then does not count, and no step begins; the log says so."""
    with caplog.at_level("WARNING"):
        assert producer.get_result(producer.add_task("swallows", payload), 10) == "done"
    assert [type(error) for error in caught] == [Suspended, Suspended]
    assert "let Suspended through" in caplog.text
    assert made == []


@pytest.mark.parametrize("payload", [{}, {"sleep": 1}])
def test_steps_at_the_same_time_keep_their_order(
    producer: TaskProducer, worker: TaskWorker, payload: dict[str, Any]
) -> None:
    """The order in which they begin; a sleep among others ends them all."""
    assert producer.get_result(producer.add_task("at_once", payload), 10) == list(range(10))
    assert sorted(made) == list(range(10))


def test_a_task_that_sleeps_is_cancelled(producer: TaskProducer, worker: TaskWorker) -> None:
    """As every task that waits."""
    task_id = producer.add_task("order", {"sleep": 60})
    until(lambda: producer.get_task(task_id).state == "delayed", "it sleeps")
    assert producer.cancel(task_id) == {task_id: "cancelled"}
    assert producer.get_task(task_id).state == "cancelled"


def test_a_limit_is_free_while_a_task_sleeps(producer: TaskProducer, worker: TaskWorker) -> None:
    """Two of a limit of one sleep at the same time; expires does not count any more."""
    one = limit("alone", at_most=1)
    ids = [producer.add_task("order", {"sleep": 1}, limits=one, expires=0.9) for _ in range(3)]
    until(lambda: [producer.get_task(i).state for i in ids] == ["delayed"] * 3, "all sleep")
    for task_id in ids:
        producer.get_result(task_id, 10)
    assert producer.limits.get("alone").in_use == 0


def test_a_strict_order_is_kept_while_its_first_sleeps(
    producer: TaskProducer, worker: TaskWorker
) -> None:
    """Nobody overtakes it."""
    ids = [producer.add_task("in_turn", n, order="one") for n in range(3)]
    for task_id in ids:
        producer.get_result(task_id, 10)
    assert made == [f"{n} {word}" for n in range(3) for word in ("begins", "ends")]


def test_a_task_that_sleeps_has_started(producer: TaskProducer, worker: TaskWorker) -> None:
    """Another of its unique key replaces neither its payload nor its time."""
    first = producer.add_task("order", {"sleep": 60}, unique="one")
    until(lambda: producer.get_task(first).state == "delayed", "it sleeps")
    due = producer.broker.call(("ZSCORE", producer.keys.delayed, first))
    for conflict in ("replace", "push"):
        other = producer.add_task("order", {}, unique=Unique("one", conflict=conflict), delay=1)
        assert (other, other.outcome) == (first, "joined")
    assert producer.get_task(first).payload == {"sleep": 60}
    assert producer.broker.call(("ZSCORE", producer.keys.delayed, first)) == due


def test_a_time_limit_is_for_each_attempt(producer: TaskProducer, worker: TaskWorker) -> None:
    """One of 0.8 s, and a second and a half of work in three attempts."""
    assert producer.get_result(producer.add_task("long_in_all"), 20) == 3


def test_a_checkpoint_is_there_after_a_sleep(producer: TaskProducer, worker: TaskWorker) -> None:
    """It is on the server before the task is put off."""
    assert producer.get_result(producer.add_task("has_cursor"), 10) == [{"at": 5}, {"at": 5}]


def test_a_step_is_interrupted_when_its_task_is_to_end(
    producer: TaskProducer, worker: TaskWorker
) -> None:
    """It is not kept, and the task ends as cancelled."""
    task_id = producer.add_task("works_long")
    until(lambda: made, "the step runs")
    assert producer.cancel(task_id, running="ask") == {task_id: "asked"}
    until(lambda: producer.get_task(task_id).state == "cancelled", "it ends")
    assert producer.steps(task_id) == []


def test_a_step_of_a_task_that_was_taken_away_is_not_kept(
    producer: TaskProducer, worker: TaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempt stops at once, and what it came to does not count."""
    task_id = producer.add_task("loses")
    assert producer.get_result(task_id, 20) == "recovered 1"
    assert [type(error) for error in caught] == [LeaseLost]
    until(lambda: "the lease was lost" in caplog.text, "the late outcome is refused")


def test_a_wait_may_have_no_end(producer: TaskProducer, worker: TaskWorker) -> None:
    """It is no due task for decades, and the queue goes on beside it."""
    task_id = producer.add_task("waits_for_ever")
    until(lambda: producer.get_task(task_id).state == "delayed", "it waits")
    assert producer.get_task(task_id).why == "waits for event 'some day'"
    assert producer.get_result(producer.add_task("order", {"sleep": 0.01}), 10)
    assert producer.send_event("some day", "came") == 1
    assert producer.get_result(task_id, 10) == "came"


def test_replay_goes_on_after_the_steps_or_forgets_them(
    producer: TaskProducer, worker: TaskWorker
) -> None:
    """By choice."""
    other = producer.add_task("changed")
    ended(producer, other)
    assert producer.replay(other) == 1
    until(lambda: producer.get_task(other).state == "failed", "it fails again")
    assert made == [1]  # "step 1" is there
    assert producer.replay(other, forget_steps=True) == 1
    until(lambda: len(made) == 2, "its first step runs again")


def test_a_step_survives_a_server_that_is_away(
    private_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    """What a step came to waits in the worker until the server is back."""
    server = private_server()
    away, back = threading.Event(), threading.Event()
    mine = Registry()

    @mine.task
    def job(payload: Any, context: TaskContext) -> Any:
        def stop() -> str:
            away.set()
            back.wait(10)
            return "made"

        made.append(1)
        return context.step("stop", stop)

    made.clear()
    with (
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=server.url, task_handlers=mine, lease=30) as worker,
    ):
        worker.start()
        processor_of(worker).broker.timeout = 0.3
        task_id = producer.add_task("job")
        assert away.wait(10)
        os.kill(server.pid, signal.SIGSTOP)
        back.set()
        until(lambda: "waits for the server" in caplog.text, "the step waits")
        os.kill(server.pid, signal.SIGCONT)
        assert producer.get_result(task_id, 10) == "made"
        assert made == [1]


def test_a_context_made_by_hand_has_no_steps() -> None:
    """It says so."""
    context = TaskContext(
        "id", "n", "q", 1, 0, 1, "1-1", "w", logging.LoggerAdapter(logging.getLogger("x"), {})
    )
    with pytest.raises(RedistqError, match="made by hand"):
        context.step("a", int)


def test_a_mismatch_says_which_kinds() -> None:
    """A sleep is no step, and no wait."""
    error = StepMismatch(3, "a sleep", "step 'x'")
    assert (error.number, error.recorded, error.wanted) == (3, "a sleep", "step 'x'")
    assert issubclass(StepMismatch, StepError)
