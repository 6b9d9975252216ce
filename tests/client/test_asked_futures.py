"""Futures and batches whose tasks are asked to end while they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from support.clients import serving
from support.workers import until

from redistq import ConfigurationError, RedistqError, TaskCancelled, current_task


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with serving(2) as client:
        yield client


def nap(path: str) -> str:
    Path(path).touch()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.01)
    return "went on"


async def nap_async(path: str) -> str:
    Path(path).touch()
    await asyncio.sleep(20)
    return "went on"


def who() -> tuple[str, int, bool]:
    import redistq

    context = redistq.current_task()
    return context.task_id, context.attempt, context.cancelled


async def who_async() -> str:
    import redistq

    async def inner() -> str:
        return redistq.current_task().task_id

    return await asyncio.create_task(inner())


def looks(path: str) -> bool:
    import redistq

    try:
        nap(path)
    except redistq.CancelRequested:
        pass
    return redistq.current_task().cancelled


@pytest.mark.parametrize("function", [nap, nap_async])
def test_a_future_whose_function_runs_is_asked_to_end(
    client: Any, function: Any, tmp_path: Path
) -> None:
    """Its own end says that it did: cancelled, with the reason."""
    future = client.submit(function, str(tmp_path / "begun"))
    until((tmp_path / "begun").exists, "it runs")
    assert future.cancel() is False
    asked = future.cancel(running="ask")
    assert asked is False or future.cancelled()  # it may have ended before this answer came
    with pytest.raises(CancelledError, match="asked to end while it ran"):
        future.result(15)
    assert future.cancelled()
    with pytest.raises(ConfigurationError, match="'ask' or 'force'"):
        client.submit(abs, 1).cancel(running="please")


def test_a_task_with_two_futures_is_asked_to_end(client: Any, tmp_path: Path) -> None:
    """By either of them: with a wish it is the task that is meant, not the wait for it."""
    first = client.submit(nap, str(tmp_path / "begun"))
    second = client.future(first.task_id)
    until((tmp_path / "begun").exists, "it runs")
    second.cancel(running="ask")
    for future in (first, second):
        with pytest.raises(CancelledError, match="asked to end while it ran"):
            future.result(15)


def test_a_function_that_goes_on_has_succeeded(client: Any, tmp_path: Path) -> None:
    """What it returns is the future's result."""
    future = client.submit(looks, str(tmp_path / "begun"))
    until((tmp_path / "begun").exists, "it runs")
    future.cancel(running="ask")
    assert future.result(15) is True


def test_a_batch_is_asked_to_end(client: Any, tmp_path: Path) -> None:
    """What runs and what waits; its counts and errors say so."""
    batch = client.map_batch(nap, [str(tmp_path / str(k)) for k in range(20)])
    until(lambda: list(tmp_path.iterdir()), "some run")
    assert batch.cancel(running="ask") == 20
    batch.wait(15)
    assert batch.counts()["cancelled"] == 20
    errors = batch.results(on_error="return")
    assert all(isinstance(error, TaskCancelled) for error in errors)
    assert any("asked to end while it ran" in str(error) for error in errors)


def test_a_function_knows_its_task(client: Any) -> None:
    """current_task() is the context of the call, in threads and coroutines; outside there is
    none."""
    future = client.submit(who)
    assert future.result(10) == (future.task_id, 1, False)
    other = client.submit(who_async)
    assert other.result(10) == other.task_id
    with pytest.raises(RedistqError, match="no task runs here"):
        current_task()
