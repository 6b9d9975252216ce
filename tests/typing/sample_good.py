"""Code of an application that type checkers accept: calls of tasks, and what they return."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_type

from redistq import Registry, TaskContext, TaskHandle, TaskProducer, chain, task
from redistq.flows import Signature

registry = Registry()


@dataclass
class Order:
    number: int
    when: dt.datetime


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task(retries=5, timeout=30)
def charge(order: Order, *, currency: str = "EUR") -> list[str]:
    return [f"{order.number} {currency}"]


@registry.task
async def fetch(url: str, context: TaskContext | None = None) -> bytes:
    return url.encode()


@registry.task(name="slow-fetch")
async def slow_fetch(url: str) -> bytes:
    return url.encode()


@task
def days(first: dt.date) -> Iterator[dt.date]:
    yield first


@task
def nothing() -> None: ...


def here() -> None:
    assert_type(add(1, 2), int)
    assert_type(add(1, b=2), int)
    assert_type(add.delay(1), TaskHandle[int])
    assert_type(add.delay(1, b=2).result(timeout=10), int)
    assert_type(add.options(delay=5, unique="x").delay(1).result(), int)
    assert_type(charge.delay(Order(1, dt.datetime.now()), currency="USD").result(), list[str])
    assert_type(fetch.delay("x").result(), bytes)
    assert_type(add.task_name, str)
    assert_type(add.map([1, 2]), Sequence[TaskHandle[int]])
    assert_type(add.starmap([(1, 2)])[0].result(), int)
    assert_type(nothing.delay(), TaskHandle[None])
    assert_type(add.s(1), Signature)
    days.delay(dt.date.today()).stream()
    producer = TaskProducer()
    with producer.active():
        producer.add_task(add, {"args": [1]}, after=add.delay(1))
        producer.add_flow(chain(add.s(1, 2), add.s(3), nothing))
    number: float = add.delay(1).result()
    print(number, add.__name__, add.delay(1).id.outcome, add.delay(1).state)


async def with_await() -> None:
    assert_type(await fetch("x"), bytes)
    handle = await fetch.adelay("x")
    assert_type(handle, TaskHandle[bytes])
    assert_type(await handle, bytes)
    assert_type(await handle.aresult(timeout=3), bytes)
    assert_type(await (await slow_fetch.options(retries=1).adelay(url="x")), bytes)
    assert_type(await (await add.adelay(1, 2)), int)
    assert_type(await add.amap([1, 2]), Sequence[TaskHandle[int]])
    assert_type(await (await add.astarmap([(1, 2)]))[0], int)
