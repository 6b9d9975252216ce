"""Tasks with arguments: bound at the call, written as JSON, and the function called with them."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

import redistq
from redistq import (
    ArgumentError,
    AsyncTaskProducer,
    ConfigurationError,
    Registry,
    TaskContext,
    TaskFailed,
    TaskHandle,
    TaskProducer,
    TaskWorker,
    limit,
)
from redistq.handlers import Handler
from redistq.producer import active

registry = Registry()
task = registry.task
runs: list[str] = []


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task
def ping() -> str:
    return "pong"


@task
def one(payload: Any) -> Any:
    return payload


@task
def by_name(*, left: int, right: int = 2) -> list[int]:
    return [left, right]


@task
def many(first: int, second: int, *rest: int, **more: int) -> Any:
    return [first, second, list(rest), more]


@task
def with_context(context: TaskContext, x: int, *, y: int = 2) -> list[Any]:
    return [context.task_id, x, y]


@task
def context_last(x: int, y: int = 5, ctx: Any = None) -> list[Any]:
    return [x, y, ctx.task_id]


@task
def only_context(context: TaskContext) -> str:
    return context.task_id


@task
def positional(a: int, b: int = 7, context: Any = None, /, c: int = 8) -> list[Any]:
    return [a, b, context.task_id, c]


@task
async def in_loop(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a * b


@task
def count(n: int, by: int) -> Iterator[int]:
    yield from range(0, n * by, by)


@task
def outer(a: int, b: int) -> list[str]:
    return [str(add.delay(a, b)), current_queue()]


@task
async def outer_async(a: int, b: int) -> list[str]:
    return [str(await add.adelay(a, b)), current_queue()]


@task
def spawning(a: int, b: int) -> str:
    payload = {"args": [a], "kwargs": {"b": b}}
    return redistq.current_task().spawn(add, payload)


@task(retries=3, backoff=0)
def counted(a: int, b: int = 1) -> None:
    runs.append("run")
    raise ValueError("again")


@task(limits="tenant:{tenant}", unique=lambda found: f"bill-{found['tenant']}")
def bill(tenant: str, amount: int = 1) -> str:
    return tenant


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return ["timed", function(*args, **kwargs)]

    return run


@task
@timed
def decorated(a: int, b: int = 3) -> int:
    return a + b


def current_queue() -> str:
    return redistq.current_task().queue


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer, producer.active():
        yield producer


@contextmanager
def working(url: str, stream: str = "tasks", handlers: Any = registry) -> Iterator[TaskWorker]:
    with TaskWorker(url=url, stream=stream, task_handlers=handlers) as worker:
        yield worker


# -- at the call -----------------------------------------------------------------------------------


def test_wrong_arguments_are_a_type_error_in_pythons_words(
    producer: TaskProducer, db: redis.Redis
) -> None:
    """The same words as of a call of the function; nothing is stored."""
    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"c": 2}), ((1,), {"a": 2})):
        with pytest.raises(TypeError) as wrong:
            add(*args, **kwargs)
        with pytest.raises(TypeError) as refused:
            add.delay(*args, **kwargs)
        assert str(refused.value) == str(wrong.value)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'left'"):
        by_name.delay()
    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
        ping.delay(1)
    with pytest.raises(TypeError, match="payload"):
        one.delay()
    assert not db.exists("tasks")


def test_arguments_are_written_as_json(producer: TaskProducer, db: redis.Redis) -> None:
    """One documented form: args and kwargs, as they were given."""
    add.delay(2, b=3)
    ping.delay()
    one.delay({"x": 1})
    one.delay(payload=[2])
    payloads = [json.loads(fields["payload"]) for _, fields in db.xrange("tasks")]
    assert payloads == [
        {"args": [2], "kwargs": {"b": 3}},
        {"args": [], "kwargs": {}},
        {"x": 1},
        [2],
    ]


def test_options_go_with_the_task(producer: TaskProducer, db: redis.Redis) -> None:
    """Those of add_task, once for many calls; one that there is none of is named."""
    later = add.options(delay=60, task_id="mine")
    assert str(later.delay(1)) == "mine"
    assert producer.get_task("mine").state == "delayed"
    assert later.delay(1).outcome == "known"
    assert add.options(retries=1).options(timeout=3).task_name == "add"
    with pytest.raises(ConfigurationError, match="retires"):
        add.options(retires=1)


def test_keys_look_their_names_up_in_the_arguments(producer: TaskProducer, db: redis.Redis) -> None:
    """By name or by position, and with their defaults."""
    first = bill.delay("acme")
    assert bill.delay(tenant="acme").id == first.id
    assert bill.delay(tenant="acme").outcome == "joined"
    assert (
        bill.options(unique="other", limits=limit("{amount}")).delay("acme", 3).outcome == "added"
    )
    assert {"ktenant:acme", "stenant:acme"} & set(db.hkeys("limits:tasks"))


def test_a_payload_that_is_no_call_is_refused(producer: TaskProducer, db: redis.Redis) -> None:
    """add_task with the function checks what it is given, and says what to write."""
    with pytest.raises(ArgumentError, match=r"which 5 is not: add it with add\.delay"):
        producer.add_task(add, 5)
    with pytest.raises(ArgumentError, match="missing 1 required positional argument"):
        producer.add_task(add, {"args": []})
    with pytest.raises(ArgumentError, match="unexpected keyword"):
        producer.add_tasks([(add, {"args": [1], "kwargs": {"z": 1}})])
    with pytest.raises(ArgumentError, match="missing"):
        producer.add_task(add)
    assert not db.exists("tasks")
    producer.add_task(add, {"args": [1]})
    producer.add_task(ping)
    assert db.xlen("tasks") == 2


def test_the_function_stays_what_it_is() -> None:
    """It is called here as ever, and what takes no attributes stays plain."""

    class Known:
        options = "mine"

        def __call__(self, payload: Any) -> None: ...

    known = Known()
    assert Registry().task(name="known")(known) is known
    assert known.options == "mine"
    assert add(2, 3) == 5
    assert add.__name__ == "add"
    assert add.task_name == "add"
    Registry().task(name="len")(len)
    Registry().task(name="method")([].append)


@pytest.mark.parametrize(
    ("function", "is_call"),
    [
        (lambda payload: None, False),
        (lambda payload, context: None, False),
        (lambda payload, ctx=None: None, False),
        (lambda payload, **more: None, False),
        (lambda *args: None, False),
        (lambda *args, **kwargs: None, False),
        (functools.partial(lambda payload, session: None, session=1), False),
        (print, False),
        (lambda: None, True),
        (lambda context: None, True),
        (lambda a, b: None, True),
        (lambda a, b=1: None, True),
        (lambda *, a: None, True),
        (lambda **more: None, True),
    ],
)
def test_the_signature_says_what_a_handler_takes(
    function: Callable[..., Any], is_call: bool
) -> None:
    """One parameter beside the context takes the payload; more, named ones or none are a call."""
    assert Handler.of("name", function).is_call is is_call


def test_a_context_that_is_annotated_as_data_is_an_argument() -> None:
    """A parameter that happens to be called so."""

    def explain(question: str, context: str) -> None: ...

    handler = Handler.of("explain", explain)
    assert handler.is_call
    assert not handler.wants_context


# -- where tasks go --------------------------------------------------------------------------------


def test_configure_says_where_tasks_of_the_program_go(
    url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a program; nothing is connected before the first task, and a block comes before it."""
    monkeypatch.setattr(active, "_program", None)
    redistq.configure("redis://nowhere.invalid:1/0", stream="other")
    redistq.configure(url, stream="programs")
    add.delay(1)
    with TaskProducer(url=url, stream="block") as producer, producer.active():
        add.delay(1)
    add.delay(1)
    assert (db.xlen("programs"), db.xlen("block")) == (2, 1)
    with pytest.raises(ConfigurationError, match="'strem'; it takes those of TaskProducer"):
        redistq.configure(url, strem="x")
    active._program.producer().close()


def test_a_twin_is_as_its_producer(url: str) -> None:
    """The producer that is made of another has all of its options."""
    with TaskProducer(url=url, stream="other", timeout=3, max_payload_bytes=100) as producer:
        options = producer.options()
        given = {*TaskProducer.OPTIONS, "address"} - {"redis_host", "redis_port", "db", "url"}
        assert options.keys() == given - {"password"}
        twin = active.Target.of(producer)
        assert twin.producer() is producer
        twin._own = None
        with twin.producer() as other:
            assert other is not producer
            assert other.options() == options


def test_a_program_that_says_nothing_uses_the_usual_server(
    url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TaskProducer() does: REDISTQ_URL, and the queue's usual name."""
    monkeypatch.setattr(active, "_program", None)
    monkeypatch.setenv("REDISTQ_URL", url)
    add.delay(1)
    assert db.xlen("tasks") == 1
    active._program.producer().close()


def test_a_forked_process_adds_tasks_too(producer: TaskProducer, db: redis.Redis) -> None:
    """By connections of its own."""
    add.delay(1)
    pid = os.fork()
    if not pid:
        try:
            add.delay(2)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    add.delay(3)
    assert [json.loads(f["payload"])["args"] for _, f in db.xrange("tasks")] == [[1], [2], [3]]


# -- on the worker ---------------------------------------------------------------------------------


def test_a_worker_calls_the_function_with_its_arguments(url: str, producer: TaskProducer) -> None:
    """By position and by name, variable ones, none at all; a context wherever it stands."""
    with working(url):
        assert add.delay(2, b=3).result(10) == 5
        assert add.delay(b=3, a=2).result(10) == 5
        assert ping.delay().result(10) == "pong"
        assert one.delay({"args": [1]}).result(10) == {"args": [1]}
        assert by_name.delay(left=1).result(10) == [1, 2]
        assert many.delay(1, 2, 3, 4, x=5).result(10) == [1, 2, [3, 4], {"x": 5}]
        handle: TaskHandle[Any]
        for handle, rest in (
            (with_context.delay(1, y=3), [1, 3]),
            (with_context.delay(x=1), [1, 2]),
        ):
            assert handle.result(10) == [handle.id, *rest]
        handle = context_last.delay(1)
        assert handle.result(10) == [1, 5, handle.id]
        handle = context_last.delay(1, 2)
        assert handle.result(10) == [1, 2, handle.id]
        handle = only_context.delay()
        assert handle.result(10) == handle.id
        handle = positional.delay(1, c=2)
        assert handle.result(10) == [1, 7, handle.id, 2]
        assert in_loop.delay(6, b=7).result(10) == 42
        assert decorated.delay(1).result(10) == ["timed", 4]
        assert list(count.delay(3, 2).stream(timeout=10)) == [0, 2, 4]


def test_handles_have_an_await_twin(url: str) -> None:
    """adelay adds by a producer of the loop; a handle is awaited, whoever made it."""

    async def main() -> None:
        async with AsyncTaskProducer(url=url) as producer:
            with producer.active():
                handle = await add.adelay(4, 5)
                assert await handle == 9
                assert await handle.astate() == "succeeded"
                assert await handle.acancel() == "succeeded"
                assert await handle.aprogress() is None
                found = await count.adelay(2, 3)
                assert [item async for item in found.astream(timeout=10)] == [0, 3]
                later = await add.options(delay=60).adelay(1)
                assert await later.acancel() == "cancelled"

    with working(url):
        asyncio.run(main())


def test_a_handle_says_how_its_task_stands(url: str, producer: TaskProducer) -> None:
    """State, cancel, progress; and it stands for its task where one is named."""
    handle = add.options(delay=60).delay(1)
    assert handle.state == "delayed"
    assert handle.progress() is None
    assert handle.cancel() == "cancelled"
    first = add.delay(1)
    child = add.options(after=first).delay(2)
    assert child.state == "waiting"
    assert {first, child, first} == {child, first}
    with working(url):
        assert child.result(10) == 3


def test_a_task_adds_others_to_its_own_queue(url: str, db: redis.Redis) -> None:
    """By the worker's connections, whatever the program says."""
    with (
        TaskProducer(url=url, stream="mine") as producer,
        producer.active(),
        working(url, "mine"),
    ):
        for handle in (outer.delay(2, 3), outer_async.delay(2, 3)):
            child, queue = handle.result(10)
            assert queue == "mine"
            assert producer.get_result(child, 10) == 5


def test_a_task_with_arguments_is_spawned(url: str, producer: TaskProducer) -> None:
    """context.spawn takes the function, as add_task does."""
    with working(url):
        assert producer.get_result(spawning.delay(4, 5).result(10), 10) == 9


def test_what_does_not_fit_fails_for_good(url: str, producer: TaskProducer) -> None:
    """From other programs, too: no attempt more, and Python's words."""
    runs.clear()
    with working(url):
        task_id = producer.add_task("counted", {"args": [1, 2, 3]})
        with pytest.raises(TaskFailed, match="ArgumentError: the arguments of task 'counted'"):
            producer.get_result(task_id, 10)
        assert runs == []
        assert producer.get_task(task_id).attempt == 1
        with pytest.raises(TaskFailed, match="again"):
            counted.delay(1).result(10)
        assert len(runs) == 4


def test_a_payload_of_before_is_taken_for_the_first_argument(
    url: str, producer: TaskProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """And the worker says so once."""
    caplog.set_level(logging.WARNING, "redistq.worker")
    with working(url):
        for number in (1, 2):
            assert producer.get_result(producer.add_task("add", number), 10) == number + 1
    said = [record for record in caplog.records if "takes arguments" in record.message]
    assert len(said) == 1
    assert "add.delay" in said[0].message
