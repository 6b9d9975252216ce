"""Lifespans and factories in a queue for tests: as in a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from redistq import ConfigurationError, Depends, Registry, TaskContext
from redistq.testing import TestQueue


def test_a_queue_for_tests_has_lifespans_and_what_factories_make(
    queue: TestQueue, registry: Registry
) -> None:
    said: list[str] = []

    @registry.lifespan
    async def pool() -> AsyncIterator[dict[str, Any]]:
        yield {"loop": asyncio.get_running_loop()}
        said.append("pool ends")

    def model() -> Iterator[str]:
        said.append("model")
        yield "model"
        said.append("model ends")

    async def session(model: str = Depends(model, scope="process")) -> AsyncIterator[str]:
        yield f"session of a {model}"
        said.append("session ends")

    @registry.task
    def plain(payload: Any, *, session: str = Depends(session)) -> str:
        return session

    @registry.task
    async def in_loop(payload: Any, context: TaskContext, session: str = Depends(session)) -> bool:
        return context.state["loop"] is asyncio.get_running_loop()

    queue.producer.add_task("plain", 1)
    queue.producer.add_task("in_loop", 1)
    assert queue.drain().results == ["session of a model", True]
    assert said == ["model", "session ends", "session ends"]
    with registry.override(model, lambda: "fake"):
        queue.producer.add_task("plain", 1)
        assert queue.drain().results == ["session of a fake"]
    queue.close()
    assert said[-2:] == ["model ends", "pool ends"]


def test_a_start_that_fails_is_raised_where_the_queue_is_drained(
    queue: TestQueue, registry: Registry
) -> None:
    @registry.lifespan
    def broken() -> Iterator[None]:
        raise OSError("no such host")
        yield

    @registry.task
    def plain(payload: Any) -> None: ...

    queue.producer.add_task("plain", 1)
    with pytest.raises(ConfigurationError, match="failed at its start: OSError"):
        queue.drain()
