"""TestQueue: real tasks, run by the test in its own thread; and what it asserts of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import ANY

import pytest
import redis

from redistq import (
    ConfigurationError,
    RedistqError,
    Registry,
    Retry,
    Snooze,
    TaskContext,
    TaskProducer,
    chain,
    current_task,
    limit,
    sig,
)
from redistq.codecs import Codec, Encrypt, Keys
from redistq.producer.active import target
from redistq.testing import DrainFailed, TestQueue


def test_drain_runs_what_is_due_in_the_calling_thread(queue: TestQueue, registry: Registry) -> None:
    """In order, in this thread; the answer says what each came to, and the producer's results are
    there."""
    threads: list[Any] = []

    @registry.task
    def double(payload: int) -> int:
        threads.append(threading.current_thread())
        return 2 * payload

    ids = [queue.producer.add_task("double", n) for n in (1, 2)]
    queue.producer.add_task("double", 3, delay=60)
    runs = queue.drain()
    assert runs.ids == ids
    assert runs.states == ["succeeded", "succeeded"]
    assert runs.results == [2, 4]
    assert [run.payload for run in runs] == [1, 2]
    assert threads == [threading.current_thread()] * 2
    assert queue.producer.get_result(ids[1], timeout=1) == 4
    assert queue.drain() == []


def test_payloads_and_results_travel_as_json(queue: TestQueue, registry: Registry) -> None:
    """What JSON changes is changed, and what it cannot hold is refused, as in production."""

    @registry.task
    def kind(payload: Any) -> Any:
        assert payload == [1, 2]  # a tuple no more
        return {1}

    queue.producer.add_task("kind", (1, 2))
    (run,) = queue.drain()
    assert run.state == "failed"
    assert "set" in run.error


def test_the_most_urgent_run_first(url: str, queue: TestQueue, registry: Registry) -> None:
    """All priorities of the queue are drained."""
    registry.task(name="note")(lambda payload: payload)
    for lane in ("!low", "", "!high"):
        with TaskProducer(url=url, stream=queue.name + lane) as producer:
            producer.add_task("note", lane)
    assert queue.drain().results == ["!high", "", "!low"]


def test_at_most_so_many(queue: TestQueue, registry: Registry) -> None:
    """``max_tasks`` bounds a drain; what is left is run by the next."""
    registry.task(name="note")(lambda payload: payload)
    for n in range(3):
        queue.producer.add_task("note", n)
    assert queue.drain(2).results == [0, 1]
    assert queue.drain(max_tasks=5).results == [2]


def test_tasks_without_end_are_noticed(
    queue: TestQueue, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that adds itself is stopped with an error that says so."""
    monkeypatch.setattr("redistq.testing.queue.MOST_TASKS", 5)

    @registry.task
    def again(payload: int, context: TaskContext) -> None:
        context.spawn("again", payload + 1)

    queue.producer.add_task("again", 0)
    with pytest.raises(RedistqError, match="5 attempts were run and there is more"):
        queue.drain()


def test_spawned_tasks_and_flows_are_followed(queue: TestQueue, registry: Registry) -> None:
    """What a task spawns, and the flow that it returns, run in the same drain."""

    @registry.task
    def start(payload: int, context: TaskContext) -> Any:
        context.spawn("add", {"a": 10, "b": 1})
        return chain(sig("add", {"a": payload, "b": 1}), sig("last", None))

    registry.task(name="add")(lambda payload: payload["a"] + payload["b"])

    @registry.task
    def last(payload: Any, context: TaskContext) -> Any:
        return context.results()

    task_id = queue.producer.add_task("start", 1)
    runs = queue.drain(check=True)
    assert runs.names == ["start", "add", "add", "last"]
    assert runs[0].state == "continued"
    assert queue.producer.get_result(task_id, timeout=1) == [2]


def test_retries_snoozes_and_failures(queue: TestQueue, registry: Registry) -> None:
    """They are told from each other, and errors are shown with their lines."""

    @registry.task(retries=1)
    def shaky(payload: str) -> None:
        if payload == "snooze":
            raise Snooze(5)
        if payload == "retry":
            raise Retry(delay=5)
        raise KeyError(payload)

    for payload in ("snooze", "retry"):
        queue.producer.add_task("shaky", payload)
    queue.producer.add_task("shaky", "fail", retries=0)
    runs = queue.drain()
    assert runs.states == ["snoozed", "retried", "failed"]
    assert "raise KeyError(payload)" in runs[2].error
    assert runs.failed == [runs[2]]


def test_check_raises_on_failures(queue: TestQueue, registry: Registry) -> None:
    """With ``check`` failures come out of drain, with their tracebacks; all tasks ran."""
    ran = []

    @registry.task(retries=0)
    def mixed(payload: int) -> None:
        ran.append(payload)
        if payload == 1:
            raise ValueError("one is bad")

    for n in (1, 2):
        queue.producer.add_task("mixed", n)
    with pytest.raises(DrainFailed, match="ValueError: one is bad") as caught:
        queue.drain(check=True)
    assert ran == [1, 2]
    assert caught.value.runs.names == ["mixed"]


def test_a_task_without_a_handler_is_named(queue: TestQueue) -> None:
    """A name that nobody handles counts as a failure, which says so."""
    queue.producer.add_task("forgotten")
    assert queue.drain().states == ["unhandled"]
    queue.clock.advance(1)
    with pytest.raises(DrainFailed, match="no handler is registered under 'forgotten'"):
        queue.drain(check=True)


def test_handlers_may_come_later(queue: TestQueue, registry: Registry) -> None:
    """A handler that is registered between two drains is found by the second."""
    registry.task(name="first")(lambda payload: 1)
    queue.producer.add_task("first")
    assert queue.drain().results == [1]
    registry.task(name="second")(lambda payload: 2)
    queue.producer.add_task("second")
    assert queue.drain(check=True).results == [2]


def test_limits_pauses_and_unique_hold(queue: TestQueue, registry: Registry) -> None:
    """The gate is the real one: unique tasks join, a paused queue runs nothing, limits are kept."""
    registry.task(name="note")(lambda payload: payload)
    add = queue.producer.add_task
    assert add("note", 1, unique="k").outcome == "added"
    assert add("note", 2, unique="k").outcome == "joined"
    queue.producer.pause()
    assert queue.drain() == []
    queue.producer.resume()
    assert queue.drain().results == [1]
    for n in range(3):
        add("note", n, limits=limit("api", rate=1, per=60))
    assert queue.drain().results == [0]
    assert queue.run_for(minutes=2).results == [1, 2]


def test_calls_of_a_client(queue: TestQueue) -> None:
    """The client is a real one: functions are pickled, signed, run by drain; futures get their
    results."""
    base = 40
    first = queue.client.submit(lambda x: base + x, 2)
    second = queue.client.submit(lambda x: x * 2, first)
    many = [queue.client.submit(pow, n, 2) for n in range(50)]
    runs = queue.drain(check=True)
    assert len(runs) == 52
    assert (first.result(5), second.result(5)) == (42, 84)
    assert [future.result(5) for future in many] == [n * n for n in range(50)]
    assert runs.results[0] == 42


def test_a_call_that_waits_for_another_lets_it_run(queue: TestQueue) -> None:
    """A task may submit others and wait for them, as on a worker whose slot it lends."""
    _clients["here"] = queue.client
    outer = queue.client.submit(_outer, 3)
    assert queue.drain(check=True).names.count("redistq.call:pow") == 2
    assert outer.result(5) == 8 + 16


_clients: dict[str, Any] = {}


def _outer(n: int) -> int:
    futures = [_clients["here"].submit(pow, 2, n) for n in (n, n + 1)]
    return sum(future.result(10) for future in futures)


def test_coroutines_and_contexts(queue: TestQueue, registry: Registry) -> None:
    """``async def`` handlers run in a loop of the queue's, and code finds its task."""

    @registry.task
    async def aio(payload: int) -> Any:
        await asyncio.sleep(0)
        return [payload, current_task().task_id]

    task_id = queue.producer.add_task("aio", 7)
    assert queue.drain(check=True).results == [[7, task_id]]
    with pytest.raises(RedistqError):
        current_task()


def test_a_drain_in_a_coroutine(queue: TestQueue, registry: Registry) -> None:
    """``adrain`` runs ``async def`` handlers in the test's own loop, others in a thread."""
    loops = []
    threads = []

    @registry.task
    async def aio(payload: int) -> int:
        loops.append(asyncio.get_running_loop())
        return payload

    @registry.task
    def plain(payload: int) -> int:
        threads.append(threading.current_thread())
        return asyncio.run(_same(payload))  # as any thread may

    async def _same(payload: int) -> int:
        return payload

    async def scene() -> None:
        async with queue.async_producer() as producer:
            await producer.add_task("aio", 1)
            await producer.add_task("plain", 2)
            await producer.add_task("plain", 3, delay=60)
            runs = await queue.adrain(check=True)
            assert runs.results == [1, 2]
            assert loops == [asyncio.get_running_loop()]
            assert threads[0] is not threading.current_thread()
            assert (await queue.arun_for(minutes=1)).results == [3]

    asyncio.run(scene())


def test_streams_and_progress(queue: TestQueue, registry: Registry) -> None:
    """A generator's items are in its stream."""

    @registry.task
    def count(payload: int) -> Iterator[int]:
        yield from range(payload)

    task_id = queue.producer.add_task("count", 5000)
    queue.drain(check=True)
    assert list(queue.producer.stream(task_id)) == list(range(5000))


def test_time_limits_strike(queue: TestQueue, registry: Registry) -> None:
    """A soft limit ends a handler in the thread that drains."""

    @registry.task(retries=0, timeout=0.05)
    def forever(payload: Any) -> None:
        while True:
            threading.Event().wait(0.01)

    queue.producer.add_task("forever")
    (run,) = queue.drain()
    assert (run.state, "TimeLimitExceeded" in run.error) == ("failed", True)


def test_a_handler_cannot_drain(queue: TestQueue, registry: Registry) -> None:
    """A drain within a drain is refused with an error."""

    @registry.task(retries=0)
    def drains(payload: Any) -> None:
        queue.drain()

    queue.producer.add_task("drains")
    assert "is being drained" in queue.drain()[0].error


def test_nothing_is_left_behind(url: str, db: redis.Redis, registry: Registry) -> None:
    """Closed, a queue has no key and no thread; another queue's keys stay."""
    registry.task(name="note")(lambda payload: payload)
    before = threading.active_count()
    db.set("task:other:1", "stays")
    with TestQueue(registry, url=url) as queue, TestQueue(registry, url=url) as other:
        other.producer.add_task("note", 1)
        queue.producer.add_task("note", 1)
        queue.producer.add_task("note", 2, delay=9, unique="a")
        queue.client.submit(len, "abc")
        queue.drain()
        assert [task.payload for task in other.tasks()] == [1]
        queue.close()
        assert db.keys(f"*{queue.name}*") == []
        assert other.drain().results == [1]
    assert db.keys() == ["task:other:1"]
    assert threading.active_count() == before


def test_real_queues_have_their_own_clock(url: str, queue: TestQueue) -> None:
    """Another queue's scripts are the ones of production."""
    from redistq.protocol import scripts

    with TaskProducer(url=url) as producer:
        assert producer.commands.cancel(["a"], 1)[1] == scripts.load("cancel").sha
    assert queue.producer.commands.cancel(["a"], 1)[1] != scripts.load("cancel").sha


# -- what is enqueued ------------------------------------------------------------------------------


def test_assert_enqueued(queue: TestQueue, registry: Registry) -> None:
    """It finds tasks by name, function, payload, count and delay, wherever they are."""

    @registry.task
    def send(payload: Any) -> None: ...

    add = queue.producer.add_task
    add(send, {"to": "a", "n": 1})
    add(send, {"to": "b", "n": 2}, delay=60)
    add(send, {"to": "c", "n": 3}, after=[queue.assert_enqueued("send", delayed=60)[0].id])
    assert len(queue.assert_enqueued(send, count=3)) == 3
    queue.assert_enqueued("send", payload={"to": "a", "n": ANY}, count=1, delayed=False)
    queue.assert_enqueued("send", delayed=True, count=1)
    queue.assert_enqueued("send", delayed=timedelta(minutes=1), count=1)
    queue.assert_enqueued("send", delayed=queue.clock.now + timedelta(minutes=1), count=1)
    queue.assert_enqueued("receive", count=0)
    assert [task.state for task in queue.tasks()] == ["queued", "delayed", "waiting"]
    queue.run_for(minutes=2, check=True)
    queue.assert_enqueued("send", count=0)


def test_call_shaped_payloads(queue: TestQueue) -> None:
    """Arguments of calls are compared one by one."""
    queue.producer.add_task("elsewhere", {"args": [2], "kwargs": {"b": 3}})
    queue.assert_enqueued("elsewhere", args=(2,), kwargs={"b": 3})
    with pytest.raises(AssertionError, match="args=\\[3\\]"):
        queue.assert_enqueued("elsewhere", args=[3])


def test_delay_adds_here(queue: TestQueue, registry: Registry) -> None:
    """``task.delay`` and ``adelay`` of the program add to the test's queue; arguments are compared
    as they are bound."""

    @registry.task
    def move(x: int, times: int = 1, *, fast: bool = False) -> int:
        return x * times

    one = registry.task(name="one")(lambda text: text)
    handle = move.delay(3, times=2)
    asyncio.run(move.options(delay=60).adelay(4))
    queue.assert_enqueued(move, args=[3, 2], count=1)
    queue.assert_enqueued("move", kwargs={"x": 3, "times": 2, "fast": False})
    queue.assert_enqueued(move, args=[ANY], delayed=60)
    queue.assert_enqueued(move, args=[3, 3], count=0)
    one.delay("x")
    queue.assert_enqueued(one, args=["x"])
    queue.assert_enqueued("one", kwargs={"text": "x"})
    assert queue.drain(check=True).results == [6, "x"]
    assert handle.result(timeout=1) == 6
    queue.close()
    assert target().producer().keys.stream != queue.name


def test_delay_in_a_handler_adds_here(queue: TestQueue, registry: Registry) -> None:
    """What handlers add by ``delay`` is in the queue of their task."""

    @registry.task
    def first(n: int) -> None:
        second.delay(n + 1)

    second = registry.task(name="second")(lambda n: n)
    first.delay(1)
    assert queue.drain(check=True).names == ["first", "second"]


def test_calls_of_clients_are_found(queue: TestQueue) -> None:
    """A function that a client submitted stands for its calls."""
    queue.client.submit(_outer, 1)
    queue.assert_enqueued(_outer, count=1)


def test_what_is_there_instead_is_listed(queue: TestQueue) -> None:
    """A failed assertion lists the queue."""
    with pytest.raises(AssertionError, match="The queue is empty"):
        queue.assert_enqueued("send")
    queue.producer.add_task("send", {"to": "ann"})
    queue.producer.add_task("resize", 7, delay=30)
    with pytest.raises(AssertionError) as caught:
        queue.assert_enqueued("send", payload={"to": "bob"}, count=2)
    text = str(caught.value)
    assert "0 tasks are enqueued as (send, payload={'to': 'bob'}), 2 wanted." in text
    assert 'send  {"to": "ann"}  queued' in text
    assert "resize  7  delayed, due in 30" in text


def test_a_cluster_is_refused() -> None:
    """One server: its scripts read a clock of their own."""
    with pytest.raises(ConfigurationError, match="one server"):
        TestQueue({"a": len}, url="redis+cluster://localhost:1")


def test_what_a_codec_seals_is_read(url: str) -> None:
    """A queue with a codec: sealed on the server, plain for those who test."""
    codec = Codec(Encrypt(Keys({"one": "ab" * 32})), require="encrypted")
    with TestQueue({"double": lambda n: 2 * n}, url=url, codec=codec) as queue:
        queue.producer.add_task("double", 21)
        queue.producer.add_task("double", 4, delay=60, unique="k")
        queue.assert_enqueued("double", payload=21, count=1)
        queue.assert_enqueued("double", payload=4, delayed=60)
        with redis.Redis.from_url(url) as raw:
            ((_, fields),) = raw.xrange(queue.name)
        assert b"21" not in (fields[b"payload"], fields[b"payload"][-2:])
        (run,) = queue.drain(check=True)
        assert (run.payload, run.result) == (21, 42)
