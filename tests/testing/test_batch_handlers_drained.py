"""Batch handlers and middleware in a queue for tests: as in a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from redistq import Registry, TaskContext
from redistq.testing import TestQueue


@pytest.fixture
def batches(url: str) -> Iterator[tuple[TestQueue, list[list[int]]]]:
    """A queue with batch handlers, sync and async, and the batches that they were given."""
    registry = Registry()
    given: list[list[int]] = []

    @registry.task(batch=3, within=60)
    def many(payloads: list[int]) -> list[int]:
        given.append(list(payloads))
        return [n * 2 for n in payloads]

    @registry.task(batch=3, within=60)
    async def amany(payloads: list[int]) -> list[int]:
        given.append(list(payloads))
        return [n * 2 for n in payloads]

    registry.task(name="note")(lambda payload: payload)
    with TestQueue(registry, url=url) as queue:
        yield queue, given


@pytest.mark.parametrize("name", ["many", "amany"])
def test_batches_are_gathered(batches: tuple[TestQueue, list[list[int]]], name: str) -> None:
    """As many as are there, up to the handler's; nobody waits. Others run in their turn."""
    queue, given = batches
    for n in range(4):
        queue.producer.add_task(name, n)
        queue.producer.add_task("note", n)
    runs = queue.drain(check=True)
    assert given == [[0, 1, 2], [3]]
    assert runs.of(name).results == [0, 2, 4, 6]
    assert runs.of("note").results == [0, 1, 2, 3]
    given.clear()
    for n in range(2):
        queue.producer.add_task(name, n)
    assert asyncio.run(queue.adrain(check=True)).results == [0, 2]
    assert given == [[0, 1]]


def test_a_batch_whose_worker_dies_runs_one_by_one(
    batches: tuple[TestQueue, list[list[int]]],
) -> None:
    """As any task does whose worker died."""
    queue, given = batches
    for n in range(3):
        queue.producer.add_task("many", n)
    with queue.crash_before("settle"):
        states = queue.drain().states
    assert states == ["crashed"] * 3 + ["succeeded"] * 3
    assert given == [[0, 1, 2], [0], [1], [2]]


def test_what_was_read_for_a_batch_goes_back(batches: tuple[TestQueue, list[list[int]]]) -> None:
    """When the drain ends before its turn."""
    queue, _ = batches
    for name in ("many", "note", "many"):
        queue.producer.add_task(name, 1)
    assert queue.drain(1).names == ["many", "many"]
    assert queue.producer.snapshot().pending == 0
    assert queue.drain().names == ["note"]


def test_hooks_are_told_before_the_drain_returns(url: str) -> None:
    """Those of middleware, around an attempt and after its settlement."""
    registry = Registry()
    told: list[Any] = []

    class Watching:
        def run(self, context: TaskContext, payload: Any, next: Any) -> Any:
            told.append("before")
            return next(payload)

        def on_settled(self, settled: Any) -> None:
            told.append((settled.state, settled.name))

    registry.middleware(Watching())
    registry.task(name="note")(lambda payload: payload)
    with TestQueue(registry, url=url) as queue:
        queue.producer.add_task("note", 1)
        assert queue.drain(check=True).results == [1]
        assert told == ["before", ("succeeded", "note")]
