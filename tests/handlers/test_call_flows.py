"""Flows of tasks with arguments: parts by ``task.s(...)``, results as the last argument."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from redistq import (
    ArgumentError,
    ConfigurationError,
    Registry,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    chain,
    chord,
    map_reduce,
    sig,
)
from redistq.flows import Flow

registry = Registry()
task = registry.task


@task(retries=0)
def add(a: int, b: int) -> int:
    return a + b


@task
def square(x: int) -> int:
    return x * x


@task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@task
async def total_in_loop(numbers: list[int], plus: int = 0) -> int:
    return sum(numbers) + plus


@task
def reading(payload: Any, context: TaskContext) -> Any:
    return [payload, context.results()]


@task
def no_room() -> str:
    return "done"


@task
def week_later(day: dt.date) -> dt.date:
    return day + dt.timedelta(days=7)


@task
def returning(a: int, b: int) -> Any:
    return chain(add.s(a, b), add.s(100))


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer, producer.active():
        yield producer


@pytest.mark.parametrize(
    ("flow", "result"),
    [
        (chain(add.s(2, 3), add.s(10)), 15),
        (chain(add.s(2, 3), square, square.s()), 625),
        (chain(add.s(a=2, b=3), no_room.s()), "done"),
        (chain(square.s(3), square.s(4)), 16),
        (chord([square.s(1), square.s(2), add.s(3, 4)], total.s()), 12),
        (chord([square.s(1), square.s(2)], total_in_loop.s()), 5),
        (map_reduce(square, [1, 2, 3], total), 14),
        (map_reduce(square, range(6), total, fan_in=2), 55),
        (chain(square.s(2), reading.s("x")), ["x", [4]]),
        (chain(square.s(2), reading.s()), [None, [4]]),
        (chain(sig("square", 2), sig("reading", 1)), [1, [4]]),
        (chain(square.s(2), add.s(5).options(takes="nothing", retries=0)), None),
        (chain(week_later.s(dt.date(2026, 1, 1)), week_later.s()), "2026-01-15"),
        (returning.s(1, 2), 103),
    ],
    ids=repr,
)
def test_a_flow_hands_results_on(url: str, producer: TaskProducer, flow: Flow, result: Any) -> None:
    """As the last argument where there is room for one more; what reads them, reads them."""
    if result is None:
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
            producer.add_flow(flow)
        return
    with TaskWorker(url=url, task_handlers=registry):
        *_, last = producer.add_flow(flow)
        assert producer.get_result(last, 10) == result
        with producer.graph("flow") as graph:
            *_, last = graph.add_flow(flow)
        assert producer.get_result(last, 10) == result


def test_a_flow_of_wrong_arguments_is_refused_before_anything_is_sent(
    producer: TaskProducer, db: redis.Redis
) -> None:
    """As at a call."""
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        producer.add_flow(chain(add.s(1, 2), add.s(1, 2, 3)))
    with pytest.raises(ArgumentError, match="argument a of task 'add'"):
        producer.add_flow(chain(add.s(1, 2), add.s("x")))
    with pytest.raises(ConfigurationError, match="takes is one of result, results, nothing"):
        producer.add_flow(chain(add.s(1, 2), add.s(1, 2).options(takes="all")))
    assert not db.exists("tasks")


def test_a_result_that_does_not_fit_fails_what_takes_it(url: str, producer: TaskProducer) -> None:
    """It is an argument like any other."""
    with TaskWorker(url=url, task_handlers=registry):
        *_, last = producer.add_flow(chain(no_room.s(), add.s(1)))
        with pytest.raises(TaskFailed, match="argument b of task 'add'"):
            producer.get_result(last, 10)


def test_parts_of_a_flow_keep_their_ids(url: str, producer: TaskProducer) -> None:
    """What follows a part waits for its own id; conditions that would be lost are refused."""
    first, last = producer.add_flow(chain(square.options(task_id="mine").s(3), add.s(1)))
    assert first == "mine"
    with pytest.raises(ConfigurationError, match=r"its own after= has no place.*chain\(group"):
        producer.add_flow(chain(square.s(2), add.options(after=first).s(1)))
    with TaskWorker(url=url, task_handlers=registry):
        assert producer.get_result(last, 10) == 10


async def added_with_await() -> tuple[list[int], list[int]]:
    """What ``amap`` and ``astarmap`` of the tasks here give."""
    with pytest.raises(TypeError, match="missing"):
        await add.amap([1])
    squares = await square.amap(range(3))
    sums = await add.options(retries=1).astarmap([(1, 2), (3, 4)])
    return [await handle for handle in squares], [await handle for handle in sums]


def test_many_calls_go_together(url: str, producer: TaskProducer, db: redis.Redis) -> None:
    """A handle each, in order; one wrong item, and none is sent."""
    with pytest.raises(ArgumentError, match="argument b of task 'add'"):
        add.starmap([(1, 2), (1, "x")])
    with pytest.raises(TypeError, match="missing"):
        add.map([1])
    with pytest.raises(ConfigurationError, match="task_id"):
        square.options(task_id="x").map([1])
    assert not db.exists("tasks")
    before = db.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    squares = square.map(range(300))
    after = db.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert after - before <= 4
    sums = add.options(retries=1).starmap([(1, 2), (3, 4)])
    options: Any = db.xrange("tasks")[-1][1]["opts"]
    assert json.loads(options)["retries"] == 1
    with TaskWorker(url=url, task_handlers=registry):
        assert [handle.result(10) for handle in squares] == [n * n for n in range(300)]
        assert [handle.result(10) for handle in sums] == [3, 7]
        assert asyncio.run(added_with_await()) == ([0, 1, 4], [3, 7])


def test_a_schedule_of_a_task_with_arguments(url: str, producer: TaskProducer) -> None:
    """Set by hand, and declared: its payload holds the arguments."""
    producer.schedules.set("sums", every=3600, task=add, payload={"args": [1], "kwargs": {"b": 2}})
    producer.schedules.set("nothing", every=3600, task=no_room)
    with pytest.raises(ArgumentError, match="missing 1 required"):
        producer.schedules.set("wrong", every=3600, task=add, payload={"args": [1]})
    with TaskWorker(url=url, task_handlers=registry):
        for name, result in (("sums", 3), ("nothing", "done")):
            assert producer.get_result(producer.schedules.run_now(name), 10) == result
