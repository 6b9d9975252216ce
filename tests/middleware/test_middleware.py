"""Middleware: what stands around adding and running, and what hears of it, with real workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
import redis
from support.workers import history, processor_of, until

from redistq import (
    AsyncTaskProducer,
    ConfigurationError,
    Fail,
    Middleware,
    NewTask,
    Registry,
    Retry,
    Settled,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)


class Noting(Middleware):
    """Notes everything it sees."""

    def __init__(self, name: str = "", seen: list[Any] | None = None) -> None:
        self.name = name
        self.seen: list[Any] = [] if seen is None else seen
        self.settled: list[Settled] = []

    def enqueue(self, task: NewTask, next: Callable[[NewTask], str]) -> str:
        self.seen.append(f"{self.name} adds")
        task_id = next(task)
        assert task_id == task.id
        self.seen.append(f"{self.name} added")
        return task_id

    def run(self, context: TaskContext, payload: Any) -> Generator[Any, Any, Any]:
        self.seen.append(f"{self.name} before")
        try:
            yield
        finally:
            self.seen.append(f"{self.name} after")

    def on_start(self, context: TaskContext) -> None:
        self.seen.append(f"{self.name} start {context.attempt}")

    def on_success(self, context: TaskContext, result: Any) -> None:
        self.seen.append(f"{self.name} success {result}")

    def on_failure(self, context: TaskContext, error: BaseException) -> None:
        self.seen.append(f"{self.name} failure {type(error).__name__}")

    def on_retry(self, context: TaskContext, error: BaseException, seconds: float) -> None:
        self.seen.append(f"{self.name} retry {type(error).__name__} {seconds:g}")

    def on_settled(self, settled: Settled) -> None:
        self.settled.append(settled)


def handlers() -> Registry:
    """A registry of plain and async handlers."""
    registry = Registry()

    @registry.task(retries=2, backoff=0.01, jitter=0)
    def echo(payload: Any) -> Any:
        return payload

    @registry.task(retries=2, backoff=0.01, jitter=0)
    async def async_echo(payload: Any) -> Any:
        return payload

    @registry.task(retries=1, backoff=0.01, jitter=0)
    def breaks(payload: Any) -> Any:
        raise ValueError(payload)

    @registry.task(retries=1, backoff=0.01, jitter=0)
    async def async_breaks(payload: Any) -> Any:
        raise ValueError(payload)

    return registry


@pytest.mark.parametrize("name", ["echo", "async_echo"])
def test_the_first_added_is_the_outermost(url: str, name: str) -> None:
    """The worker's stands around the registry's; hooks are told in the same order."""
    seen: list[Any] = []
    registry = handlers()
    registry.middleware(Noting("c", seen), Noting("d", seen))
    mine = [Noting("a", seen), Noting("b", seen)]
    with (
        TaskProducer(url=url, middleware=mine) as producer,
        TaskWorker(url=url, task_handlers=registry, middleware=mine),
    ):
        assert producer.get_result(producer.add_task(name, 5), 10) == 5
    assert seen[:4] == ["a adds", "b adds", "b added", "a added"]
    assert seen[4:8] == [f"{one} start 1" for one in "abcd"]
    assert seen[8:16] == [*(f"{one} before" for one in "abcd"), *(f"{one} after" for one in "dcba")]
    assert seen[16:] == [f"{one} success 5" for one in "abcd"]


@pytest.mark.parametrize("name", ["breaks", "async_breaks"])
def test_hooks_hear_of_retries_failures_and_what_the_server_accepted(
    url: str, db: redis.Redis, name: str
) -> None:
    """An attempt that is tried again, the one that is not; each settlement once, in order."""
    note = Noting()
    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=handlers(), middleware=[note]),
    ):
        task_id = producer.add_task(name, "no")
        with pytest.raises(TaskFailed, match="no"):
            producer.get_result(task_id, 10)
        until(lambda: len(note.settled) == 2, "both settlements are told")
    told = [one for one in note.seen if "before" not in one and "after" not in one]
    assert told == [" start 1", " retry ValueError 0.01", " start 2", " failure ValueError"]
    assert [(s.state, s.attempt, s.accepted) for s in note.settled] == [
        ("retried", 1, True),
        ("failed", 2, True),
    ]
    assert {(s.task_id, s.name, s.queue) for s in note.settled} == {(task_id, name, "tasks")}


class Wrong(Middleware):
    """Raises wherever it only looks on."""

    def on_start(self, context: TaskContext) -> None:
        raise ValueError("start")

    def on_success(self, context: TaskContext, result: Any) -> None:
        raise SystemExit("success")

    def on_failure(self, context: TaskContext, error: BaseException) -> None:
        raise KeyError("failure")

    def on_retry(self, context: TaskContext, error: BaseException, seconds: float) -> None:
        raise BaseException("retry")

    def on_settled(self, settled: Settled) -> None:
        raise RuntimeError("settled")


def test_hooks_that_raise_lose_fail_and_double_nothing(
    url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind is logged once, and the tasks go their way."""
    caplog.set_level(logging.ERROR, "redistq.middleware")
    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=handlers(), middleware=[Wrong()]),
    ):
        for name in ("echo", "async_echo"):
            ids = producer.add_tasks([(name, n) for n in range(20)])
            assert [producer.get_result(task_id, 10) for task_id in ids] == list(range(20))
            assert {tuple(history(db, task_id)) for task_id in ids} == {("succeeded",)}
        for name in ("breaks", "async_breaks"):
            task_id = producer.add_task(name, "told")
            with pytest.raises(TaskFailed, match="told"):
                producer.get_result(task_id, 10)
            assert history(db, task_id) == ["retried", "failed"]
        said = [record.getMessage() for record in caplog.records if "Wrong" in record.getMessage()]
        until(lambda: len(said) >= 4, "the hooks were told")
    said = [record.getMessage() for record in caplog.records if "Wrong" in record.getMessage()]
    for hook in ("on_start", "on_success", "on_failure", "on_retry", "on_settled"):
        assert sum(f"Wrong.{hook} raised" in line for line in said) == 1


class Changing(Middleware):
    """Changes payloads and results, and refuses some."""

    def enqueue(self, task: NewTask, next: Callable[[NewTask], str]) -> str:
        if task.payload == "refuse":
            raise PermissionError("not this one")
        if task.payload == "drop":
            return ""
        task.payload = {"in": task.payload}
        task.headers["by"] = "changing"
        return next(task)

    def run(self, context: TaskContext, payload: Any) -> Generator[Any, Any, Any]:
        if payload["in"] == "late":
            raise Fail("not run")
        try:
            result = yield payload["in"]
        except ValueError:
            return "mended"
        return {"out": result, "by": context.headers["by"]}


@pytest.mark.parametrize("name", ["echo", "async_echo"])
def test_layers_change_what_goes_in_and_comes_out(url: str, name: str) -> None:
    """Payload, headers and result; an error it handles is a success; what it refuses is refused."""
    change = Changing()
    with (
        TaskProducer(url=url, middleware=[change]) as producer,
        TaskWorker(url=url, task_handlers=handlers(), middleware=[change]),
    ):
        made = producer.get_result(producer.add_task(name, 5), 10)
        assert made == {"out": 5, "by": "changing"}
        breaks = name.replace("echo", "breaks")
        assert producer.get_result(producer.add_task(breaks, 5), 10) == "mended"
        with pytest.raises(PermissionError, match="not this one"):
            producer.add_task(name, "refuse")
        with pytest.raises(ConfigurationError, match="called next 0 times"):
            producer.add_task(name, "drop")
        with pytest.raises(PermissionError):
            producer.add_tasks([(name, 1), (name, "refuse")])
        with pytest.raises(TaskFailed, match="not run"):
            producer.get_result(producer.add_task(name, "late"), 10)
        ids = producer.add_tasks([(name, n) for n in range(3)])
        assert [producer.get_result(i, 10)["out"] for i in ids] == [0, 1, 2]


def test_the_awaited_producer_has_the_same_layers(url: str) -> None:
    """AsyncTaskProducer passes tasks through them as TaskProducer does."""
    import asyncio

    change = Changing()

    async def add() -> Any:
        producer = AsyncTaskProducer(url=url, middleware=[change])
        with pytest.raises(PermissionError):
            await producer.add_task("echo", "refuse")
        found = await producer.get_result(await producer.add_task("echo", 1), 10)
        await producer.close()
        return found

    with TaskWorker(url=url, task_handlers=handlers(), middleware=[change]):
        assert asyncio.run(add()) == {"out": 1, "by": "changing"}


def test_plain_and_async_layers_stand_around_what_is_like_them(url: str) -> None:
    """With next: a plain one around plain functions, an async one around async ones."""

    class Plain(Middleware):
        def run(self, context: TaskContext, payload: Any, next: Any) -> Any:
            return next(payload + 1) * 10

    class Async(Middleware):
        async def run(self, context: TaskContext, payload: Any, next: Any) -> Any:
            return await next(payload + 1) * 10

    for name, layer, other in (("echo", Plain(), Async()), ("async_echo", Async(), Plain())):
        one = {name: handlers()[name].function}
        with (
            TaskProducer(url=url) as producer,
            TaskWorker(url=url, task_handlers=one, middleware=[layer]),
        ):
            assert producer.get_result(producer.add_task(name, 1), 10) == 20
        with pytest.raises(ConfigurationError, match="write it with yield"):
            TaskWorker(url=url, task_handlers=one, middleware=[other]).start()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Noting, "an object, not a class"),
        (object(), "has none of the methods"),
        (
            type("Typo", (Middleware,), {"on_sucess": lambda self: None})(),
            "did you mean on_success",
        ),
        (type("Few", (Middleware,), {"run": lambda self: None})(), r"\(context, payload, next\)"),
    ],
)
def test_what_is_no_middleware_is_refused_at_once(url: str, wrong: Any, words: str) -> None:
    """By producers, workers and registries alike."""
    with pytest.raises(ConfigurationError, match=words):
        TaskProducer(url=url, middleware=[wrong])
    with pytest.raises(ConfigurationError, match=words):
        TaskWorker(url=url, task_handlers=handlers(), middleware=[wrong])
    with pytest.raises(ConfigurationError, match=words):
        Registry().middleware(wrong)


def test_hooks_that_await_are_refused(url: str) -> None:
    """No loop runs them."""

    class Awaits(Middleware):
        async def on_start(self, context: TaskContext) -> None:  # type: ignore[override]
            """Nothing."""

    with pytest.raises(ConfigurationError, match="plain function"):
        Registry().middleware(Awaits())


def test_a_layer_that_does_not_yield_once_fails_the_attempt(url: str) -> None:
    """And says what is wrong with it."""

    class Never(Middleware):
        def run(self, context: TaskContext, payload: Any) -> Generator[Any, Any, Any]:
            if payload == "twice":
                yield
                yield
            return
            yield

    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=handlers(), middleware=[Never()]),
    ):
        for payload, words in (("never", "without a yield"), ("twice", "yields twice")):
            for name in ("echo", "async_echo"):
                with pytest.raises(TaskFailed, match=words):
                    producer.get_result(producer.add_task(name, payload, retries=0), 10)


def test_an_outcome_that_is_refused_is_told_as_such(url: str, db: redis.Redis) -> None:
    """The lease was lost meanwhile: on_settled hears that it did not count."""
    note, began, goes_on = Noting(), threading.Event(), threading.Event()
    registry = Registry()

    @registry.task
    def work(payload: Any) -> str:
        began.set()
        goes_on.wait(20)
        return "late"

    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=registry, middleware=[note]) as worker,
    ):
        task_id = producer.add_task("work")
        assert began.wait(10)
        commands = processor_of(worker).fetcher.queues[0].commands
        (entry,) = [
            row["message_id"] for row in db.xpending_range("tasks", commands.group, "-", "+", 9)
        ]
        db.xack("tasks", commands.group, entry)
        goes_on.set()
        until(lambda: note.settled, "the refusal is told")
    assert note.settled == [Settled(task_id, "work", "tasks", 1, "succeeded", False)]


def test_a_hook_that_takes_long_holds_up_no_settlement(url: str) -> None:
    """on_settled has a thread of its own; at the end what is left is told within the time."""
    goes_on = threading.Event()

    class Slow(Middleware):
        told = 0

        def on_settled(self, settled: Settled) -> None:
            goes_on.wait(20)
            Slow.told += 1

    with TaskProducer(url=url) as producer:
        worker = TaskWorker(url=url, task_handlers=handlers(), middleware=[Slow()]).start()
        ids = producer.add_tasks([("echo", n) for n in range(50)])
        assert [producer.get_result(task_id, 10) for task_id in ids] == list(range(50))
        goes_on.set()
        assert worker.stop()
    assert Slow.told == 50


def test_a_retry_asked_for_by_a_layer_is_one(url: str, db: redis.Redis) -> None:
    """What run raises is the attempt's: a Retry is tried again."""

    class Again(Middleware):
        def run(self, context: TaskContext, payload: Any) -> Generator[Any, Any, Any]:
            if context.attempt == 1:
                raise Retry(delay=0.01)
            yield

    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=handlers(), middleware=[Again()]),
    ):
        task_id = producer.add_task("echo", 1)
        assert producer.get_result(task_id, 10) == 1
        assert history(db, task_id) == ["retried", "succeeded"]


def test_middleware_goes_along_into_worker_processes(url: str, db: redis.Redis) -> None:
    """With processes, too, and around handlers that are registered after it."""
    registry = Registry()

    class Ten(Middleware):
        def run(self, context: TaskContext, payload: Any) -> Generator[Any, Any, Any]:
            result = yield
            return result * 10

    registry.middleware(Ten())

    @registry.task
    def late(payload: Any) -> Any:
        return payload

    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=registry, processes=1, middleware=[Ten()]),
    ):
        assert producer.get_result(producer.add_task("late", 1), 20) == 100


def test_calls_of_clients_have_the_middleware_of_worker_and_registry(url: str) -> None:
    """Around a function, too, whatever else the worker has; an async layer is left out there."""
    from redistq import Client

    seen: list[Any] = []

    class Async(Middleware):
        async def run(self, context: TaskContext, payload: Any, next: Any) -> Any:
            return await next(payload)

    registry = Registry()
    registry.middleware(Noting("r", seen), Async())
    worker = TaskWorker(
        url=url,
        task_handlers=registry,
        middleware=[Noting("w", seen)],
        signing_key=(b"k" * 32).hex(),
    )

    @worker.lifespan
    def nothing() -> Generator[None, None, None]:
        yield

    with Client(url, signing_key="k" * 32) as client, worker:
        assert client.submit(len, "abc").result(20) == 3
    assert [one for one in seen if "before" in one or "after" in one] == [
        *("w before", "r before", "r after", "w after")
    ]
