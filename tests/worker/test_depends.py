"""Depends: what factories make is given to handlers, once a task or once a process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import redis
from support.workers import Command, until, worker_commands

from redistq import (
    ConfigurationError,
    Depends,
    Fail,
    Registry,
    Retry,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)
from redistq.handlers.depends import Dependency

JOBS = """
import os, threading
import redis
from redistq import Depends, task

out = redis.Redis.from_url(os.environ["JOBS_URL"], decode_responses=True, socket_timeout=None)

def pool():
    out.rpush("said", f"pool of {os.getpid()}")
    yield {"pid": os.getpid()}
    out.rpush("said", "pool ends")

async def settings():
    return {"rate": 3}

@task
def charge(amount: int, pool=Depends(pool, scope="process"), settings=Depends(settings)):
    assert pool["pid"] == os.getpid()
    return amount * settings["rate"]
"""


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


class World:
    """Handlers of one test, what happened in order, and a worker in this process for them."""

    def __init__(self, url: str, producer: TaskProducer) -> None:
        self.registry = Registry()
        self.said: list[Any] = []
        self._url = url
        self._producer = producer

    def worker(self, **options: Any) -> TaskWorker:
        """A worker of these handlers."""
        return TaskWorker(url=self._url, task_handlers=self.registry, **options)

    def run(self, name: str, payload: Any = None, **options: Any) -> Any:
        """The result of a task, run by a worker that ends then."""
        with self.worker():
            return self.result(name, payload, **options)

    def result(self, name: str, payload: Any = None, **options: Any) -> Any:
        """The result of a task, which a worker of these runs."""
        return self._producer.get_result(self._producer.add_task(name, payload, **options), 20)


@pytest.fixture
def world(url: str, producer: TaskProducer) -> World:
    """Handlers of their own for a test."""
    return World(url, producer)


# -- what is given ---------------------------------------------------------------------------------


def test_what_a_factory_makes_is_given_to_a_handler(world: World) -> None:
    @world.registry.task
    def one(payload: int, ten: int = Depends(lambda: 10)) -> int:
        return payload + ten

    @world.registry.task
    def call(
        a: int,
        ten: Annotated[int, Depends(lambda: 10)],
        /,
        b: int = 1,
        *,
        six: int = Depends(lambda: 6),
    ) -> list[int]:
        return [a, ten, b, six]

    with world.worker():
        assert world.result("one", 1) == 11
        assert world.result("call", {"args": [1], "kwargs": {"b": 2}}) == [1, 10, 2, 6]
        assert world.result("call", {"args": [1]}) == [1, 10, 1, 6]
        with pytest.raises(TaskFailed, match="six"):  # it is no argument
            world.result("call", {"args": [1], "kwargs": {"six": 3}})


def test_parameters_that_are_given_are_no_arguments_of_delay(
    world: World, producer: TaskProducer
) -> None:
    @world.registry.task
    def call(a: int, ten: Annotated[int, Depends(lambda: 10)], b: int = 1) -> list[int]:
        return [a, ten, b]

    with producer.active(), world.worker():
        assert call.delay(1, b=3).result(10) == [1, 10, 3]  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            call.delay(1, ten=3)
    assert call(1, 2, 3) == [1, 2, 3]  # called here, all are given


def test_factories_take_what_others_make_and_the_context(world: World) -> None:
    @contextlib.contextmanager
    def connection() -> Iterator[str]:
        world.said.append("connects")
        yield "connection"
        world.said.append("disconnects")

    class Session:
        def __init__(self, connection: str = Depends(connection)) -> None:
            self.connection = connection

    def session(context: TaskContext, session: Session = Depends(Session)) -> Iterator[str]:
        world.said.append("begins")
        yield f"{context.name} {session.connection}"
        world.said.append("commits")

    @world.registry.task
    def call(
        connection: str = Depends(connection), session: str = Depends(session)
    ) -> tuple[str, str]:
        world.said.append("runs")
        return connection, session

    assert world.run("call") == ["connection", "call connection"]
    assert world.said == ["connects", "begins", "runs", "commits", "disconnects"]


def test_a_wrapper_that_passes_on_by_name_is_looked_through(world: World) -> None:
    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapped

    @world.registry.task
    @wrapper
    def one(payload: int, ten: int = Depends(lambda: 10)) -> int:
        return payload + ten

    assert world.run("one", 1) == 11


# -- async -----------------------------------------------------------------------------------------


def test_async_factories_run_in_the_loop_for_handlers_of_both_kinds(world: World) -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def scope(
        loop: asyncio.AbstractEventLoop = Depends(loop),
    ) -> AsyncIterator[asyncio.Task[Any] | None]:
        entered = asyncio.current_task()
        async with asyncio.timeout(60):  # must be left by the task that entered it
            yield entered
        assert asyncio.current_task() is entered
        assert asyncio.get_running_loop() is loop
        world.said.append("left")

    def plain() -> int:
        return 3

    @world.registry.task
    async def in_loop(
        loop: Any = Depends(loop), task: Any = Depends(scope), three: int = Depends(plain)
    ) -> bool:
        return loop is asyncio.get_running_loop() and task is asyncio.current_task()

    @world.registry.task
    def in_thread(loop: Any = Depends(loop), task: Any = Depends(scope)) -> bool:
        return bool(loop.is_running()) and task is not None

    with world.worker():
        assert world.result("in_loop") is True
        assert world.result("in_thread") is True
    assert world.said == ["left", "left"]


def test_a_worker_without_async_handlers_runs_async_factories(world: World) -> None:
    async def one() -> int:
        return 1

    async def two() -> AsyncIterator[int]:
        yield 2
        world.said.append("two ends")

    @world.registry.task
    def call(one: int = Depends(one), two: int = Depends(two, scope="process")) -> int:
        return one + two

    assert world.run("call") == 3
    assert world.said == ["two ends"]


# -- once a process --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_hundred_tasks_at_once_share_one_call_of_a_process_factory(
    world: World, producer: TaskProducer, is_async: bool
) -> None:
    begun = threading.Event()
    go = threading.Event()

    def settings() -> Iterator[int]:
        world.said.append("settings")
        yield 3
        world.said.append("settings end")

    def model(settings: int = Depends(settings, scope="process")) -> Iterator[list[int]]:
        world.said.append("loads")
        begun.set()
        assert go.wait(20)
        yield [settings]
        world.said.append("frees")

    if is_async:

        @world.registry.task(name="call")
        async def in_loop(n: int, *, model: list[int] = Depends(model, scope="process")) -> int:
            return id(model)
    else:

        @world.registry.task(name="call")
        def in_thread(n: int, *, model: list[int] = Depends(model, scope="process")) -> int:
            return id(model)

    with world.worker(thread_count=100) as worker:
        ids = producer.add_tasks([("call", n) for n in range(100)])
        assert begun.wait(20)
        processor = worker._running.threads.processor  # type: ignore[union-attr]
        running = processor.executor.wishes.running
        until(lambda: sum(a is not None for a in running) == 100, "all to wait for it", 20)
        go.set()
        assert len({producer.get_result(i, 20) for i in ids}) == 1
    assert world.said == ["settings", "loads", "frees", "settings end"]


def test_a_process_factory_that_fails_is_called_again_for_the_next_task(world: World) -> None:
    def model() -> str:
        world.said.append("loads")
        if len(world.said) == 1:
            raise OSError("no such file")
        return "model"

    @world.registry.task(retries=0)
    def call(model: str = Depends(model, scope="process")) -> str:
        return model

    with world.worker():
        with pytest.raises(TaskFailed, match="no such file"):
            world.result("call")
        assert world.result("call") == "model"
        assert world.result("call") == "model"
    assert world.said == ["loads", "loads"]


def test_a_time_limit_strikes_a_task_that_waits_and_leaves_the_making(world: World) -> None:
    go = threading.Event()

    def model() -> str:
        world.said.append("loads")
        assert go.wait(20)
        return "model"

    @world.registry.task(retries=0)
    def call(model: str = Depends(model, scope="process")) -> str:
        return model

    with world.worker():
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            world.result("call", timeout=0.2)
        go.set()
        assert world.result("call") == "model"
    assert world.said == ["loads"]


# -- how it ends -----------------------------------------------------------------------------------


def test_an_error_of_the_handler_is_seen_at_the_yield_and_cannot_be_swallowed(
    world: World, producer: TaskProducer
) -> None:
    def outer() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            world.said.append(f"outer saw {error}")

    async def inner() -> AsyncIterator[None]:
        try:
            yield
        except ValueError as error:
            world.said.append(f"inner saw {error}")
            raise

    @world.registry.task(retries=0)
    def call(a: None = Depends(outer), b: None = Depends(inner)) -> None:
        raise ValueError("mine")

    @world.registry.task(retries=0)
    async def in_loop(a: None = Depends(outer), b: None = Depends(inner)) -> None:
        raise ValueError("mine")

    with world.worker():
        for name in ("call", "in_loop"):
            with pytest.raises(TaskFailed, match="ValueError: mine"):
                world.result(name)
            assert world.said == ["inner saw mine", "outer saw mine"]
            world.said.clear()


def test_a_factory_that_raises_fails_the_attempt_with_a_note_and_is_retried_by_policy(
    world: World, producer: TaskProducer
) -> None:
    def connection() -> str:
        world.said.append("tries")
        raise OSError("refused")

    def session(connection: str = Depends(connection)) -> str:
        return connection

    @world.registry.task(retries=2, backoff=0.01, never_retry=(KeyError,))
    def call(session: str = Depends(session)) -> None:
        """Never reached."""

    with world.worker():
        task = producer.add_task("call")
        with pytest.raises(TaskFailed, match="OSError: refused"):
            producer.get_result(task, 20)
    error = producer.get_task(task).error
    assert error is not None
    assert "raised by the dependency" in error["traceback"]
    assert "connection" in error["traceback"]
    assert "the dependency tests.worker" not in error["traceback"].replace("connection", "")
    assert world.said == ["tries"] * 3


def test_an_end_that_raises_fails_a_task_whose_handler_succeeded(
    world: World, producer: TaskProducer
) -> None:
    def commits() -> Iterator[None]:
        yield
        raise OSError("cannot commit")

    @world.registry.task(retries=0)
    def call(session: None = Depends(commits)) -> int:
        return 1

    with world.worker():
        task = producer.add_task("call")
        with pytest.raises(TaskFailed, match="OSError: cannot commit"):
            producer.get_result(task, 20)
    error = producer.get_task(task).error
    assert error is not None
    assert "raised at the end of the dependency" in error["traceback"]


def test_what_a_factory_raises_on_purpose_is_heeded(world: World, producer: TaskProducer) -> None:
    def later(context: TaskContext) -> None:
        if context.attempt == 1:
            raise Retry(0.01)

    def never() -> None:
        raise Fail("not this one")

    @world.registry.task
    def again(gate: None = Depends(later)) -> str:
        return "done"

    @world.registry.task(retries=5)
    def fails(gate: None = Depends(never)) -> None:
        """Never reached."""

    with world.worker():
        assert world.result("again") == "done"
        with pytest.raises(TaskFailed, match="not this one"):
            world.result("fails")


def test_what_was_made_is_open_until_a_stream_has_ended(
    world: World, producer: TaskProducer
) -> None:
    def source() -> Iterator[list[int]]:
        yield [1, 2, 3]
        world.said.append("source ends")

    @world.registry.task
    def numbers(source: list[int] = Depends(source)) -> Iterator[int]:
        for number in source:
            world.said.append(number)
            yield number

    @world.registry.task
    async def more(source: list[int] = Depends(source)) -> AsyncIterator[int]:
        for number in source:
            world.said.append(number)
            yield number

    with world.worker():
        for name in ("numbers", "more"):
            assert list(producer.stream(producer.add_task(name))) == [1, 2, 3]
            until(lambda: len(world.said) == 4, "the end")
            assert world.said == [1, 2, 3, "source ends"]
            world.said.clear()


# -- what cannot be --------------------------------------------------------------------------------


def test_circles_are_refused_before_anything_runs(world: World) -> None:
    def a() -> None: ...
    def b(a: Any = Depends(a)) -> None: ...

    a.__defaults__ = (Dependency(b),)
    a.__code__ = b.__code__  # as ``def a(a=Depends(b))``

    @world.registry.task
    def call(a: Any = Depends(a)) -> None: ...

    with pytest.raises(ConfigurationError, match=r"task 'call' go in a circle: .*a -> .*b -> .*a"):
        world.worker().start()


def test_what_a_process_factory_cannot_have_is_refused(world: World) -> None:
    def one() -> None: ...
    def with_context(context: TaskContext) -> None: ...
    def with_task(one: Any = Depends(one)) -> None: ...
    def with_more(host: str) -> None: ...

    cases = [
        (with_context, "process", "cannot take the context of one task"),
        (with_task, "process", 'write one=Depends(.*one, scope="process")'),
        (with_more, "task", "takes 'host', which nothing gives"),
    ]
    for factory, scope, words in cases:
        registry = Registry()

        def call(it: Any = Depends(factory, scope=scope)) -> None: ...

        registry.add("call", call)
        world.registry = registry
        with pytest.raises(ConfigurationError, match=words):
            world.worker().start()


def test_slips_are_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match="Depends takes the factory, not what it makes"):
        Depends(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match='"task" or "process", not \'thread\''):
        Depends(int, scope="thread")


# -- for tests -------------------------------------------------------------------------------------


def test_a_factory_is_overridden_in_a_block(world: World) -> None:
    def model() -> str:
        return "large"

    def name(model: str = Depends(model, scope="process")) -> str:
        return f"the {model} one"

    @world.registry.task
    def call(name: str = Depends(name)) -> str:
        return name

    async def fake() -> str:
        return "fake"

    with world.worker():
        assert world.result("call") == "the large one"
        with world.registry.override(model, fake):
            assert world.result("call") == "the fake one"
            with world.registry.override(name, lambda: "none"):
                assert world.result("call") == "none"
            assert world.result("call") == "the fake one"
        assert world.result("call") == "the large one"
        with (
            pytest.raises(ConfigurationError, match="circle"),
            world.registry.override(model, name),
        ):
            pass
        assert world.result("call") == "the large one"


def test_worker_processes_that_start_in_the_block_heed_it_too(
    world: World, producer: TaskProducer, tmp_path: Path
) -> None:
    def model() -> str:
        return "large"

    @world.registry.task
    def call(model: str = Depends(model)) -> str:
        return model

    with world.registry.override(model, lambda: "fake"), world.worker(processes=1):
        assert world.result("call") == "fake"


# -- in processes ----------------------------------------------------------------------------------


@pytest.fixture
def worker(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Command]]:
    """Starts ``python -m redistq.worker jobs``, ready when it returns."""
    monkeypatch.setenv("JOBS_URL", url)
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs", "--lease", "2") as start:
        yield start


def test_each_worker_process_makes_its_own_and_ends_it_when_it_drains(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    running = worker("--processes", "2")
    deadline = time.monotonic() + 20
    while db.llen("said") < 2:  # until both have run one
        assert time.monotonic() < deadline
        assert producer.get_result(producer.add_task("charge", 2), 10) == 6
    running.process.terminate()
    assert running.wait() == 0
    said = db.lrange("said", 0, -1)
    assert len(set(said[:2])) == 2
    assert said[2:] == ["pool ends", "pool ends"]
