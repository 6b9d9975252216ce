"""Crash points: a worker dies at a point, and what it leaves is what a real one leaves."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from redistq import ConfigurationError, Registry, TaskContext
from redistq.testing import TestQueue


@pytest.fixture
def charged(registry: Registry) -> list[Any]:
    """What the handlers ``charge``, ``acharge`` and ``steps`` have done."""
    done: list[Any] = []

    @registry.task
    def charge(payload: Any, context: TaskContext) -> int:
        done.append(payload)
        context.spawn("receipt", payload)
        return len(done)

    registry.task(name="receipt")(lambda payload: payload)

    @registry.task
    async def acharge(payload: Any) -> int:
        await asyncio.sleep(0)
        done.append(payload)
        return len(done)

    @registry.task
    def steps(payload: Any, context: TaskContext) -> Any:
        first = context.step("first", done.append, "first")
        context.step("second", done.append, "second")
        return first

    return done


@pytest.mark.parametrize(
    ("when", "point", "times_run", "states"),
    [
        ("before", "fetch", 1, ["succeeded"]),
        ("after", "fetch", 1, ["succeeded"]),
        ("before", "run", 1, ["crashed", "succeeded"]),
        ("after", "run", 2, ["crashed", "succeeded"]),
        ("before", "settle", 2, ["crashed", "succeeded"]),
        ("after", "settle", 1, ["crashed"]),
    ],
)
@pytest.mark.parametrize("name", ["charge", "acharge"])
def test_what_a_death_leaves(
    queue: TestQueue,
    charged: list[Any],
    name: str,
    when: str,
    point: str,
    times_run: int,
    states: list[str],
) -> None:
    """How often the handler ran, and that its outcome counted once, with its children."""
    task_id = queue.producer.add_task(name, 1)
    crash = queue.crash_before if when == "before" else queue.crash_after
    with crash(point, task=None if point == "fetch" else name):
        runs = queue.drain()
    assert runs.of(name).states == states
    assert charged == [1] * times_run
    assert queue.producer.get_task(task_id).state == "succeeded"
    assert runs.names.count("receipt") == (name == "charge")
    assert queue.tasks() == []


def test_a_death_in_a_coroutine_test(queue: TestQueue, charged: list[Any]) -> None:
    """The same in ``adrain``."""
    queue.producer.add_task("acharge", 1)
    queue.producer.add_task("charge", 2)

    async def scene() -> None:
        with queue.crash_before("settle", times=2):
            assert (await queue.adrain()).states.count("crashed") == 2

    asyncio.run(scene())
    assert sorted(charged) == [1, 1, 2, 2]


@pytest.mark.parametrize(("when", "expected"), [("before", 2), ("after", 1)])
def test_a_death_at_a_step(queue: TestQueue, charged: list[Any], when: str, expected: int) -> None:
    """A step that was kept is not run again; one that was not is."""
    queue.producer.add_task("steps")
    crash = queue.crash_before if when == "before" else queue.crash_after
    with crash("step:second"):
        assert queue.drain().states == ["crashed", "succeeded"]
    assert charged.count("first") == 1
    assert charged.count("second") == expected


def test_a_machine_that_dies_is_missed_after_its_lease(
    queue: TestQueue, charged: list[Any]
) -> None:
    """Without a report nothing comes back before the lease is over."""
    queue.producer.add_task("charge", 1)
    with queue.crash_after("run", reported=False):
        assert queue.drain().states == ["crashed"]
    assert queue.drain() == []
    queue.clock.advance(5)
    assert queue.drain() == []
    assert queue.run_for(6).of("charge").states == ["succeeded"]


def test_a_task_that_kills_again_and_again_is_a_dead_letter(url: str) -> None:
    """Recoveries are counted and end, as in production."""
    with TestQueue({"kills": len}, url=url, max_recoveries=2) as queue:
        task_id = queue.producer.add_task("kills", "abc")
        with queue.crash_after("run", times=3):
            assert queue.drain().states == ["crashed"] * 3
        assert queue.producer.get_task(task_id).state == "failed"


def test_a_schedule_fires_once_whatever_dies(queue: TestQueue, charged: list[Any]) -> None:
    """A scheduler that dies before or after it fired."""
    queue.producer.schedules.set("daily", every=86_400, task="charge", payload=1)
    queue.clock.advance(days=1, seconds=1)
    with queue.crash_after("fire"), queue.crash_before("fire"):
        assert queue.run_for(60).of("charge").states == ["succeeded"]


def test_a_point_that_is_never_reached_is_said(queue: TestQueue, charged: list[Any]) -> None:
    """Else a test would pass that tested nothing."""
    queue.producer.add_task("charge", 1)
    with (
        pytest.raises(AssertionError, match="no worker died before step:fist: it was never"),
        queue.crash_before("step:fist"),
    ):
        queue.drain()
    with pytest.raises(ConfigurationError, match="is no crash point: fetch, run"):
        queue.crash_before("setle").__enter__()


def test_a_handler_that_takes_every_error_dies_too(queue: TestQueue, registry: Registry) -> None:
    """Even ``except BaseException`` does not keep its worker alive."""
    done = []

    @registry.task
    def stubborn(payload: Any, context: TaskContext) -> str:
        try:
            context.step("one", done.append, 1)
        except BaseException:
            return "alive"
        return "done"

    queue.producer.add_task("stubborn")
    with queue.crash_after("step"):
        runs = queue.drain()
    assert runs.states == ["crashed", "succeeded"]
    assert runs.results == ["done"]


def test_no_thread_is_left(url: str) -> None:
    """Of workers that died."""
    before = threading.active_count()
    with TestQueue({"a": len}, url=url) as queue:
        queue.producer.add_task("a", "abc")
        with queue.crash_after("run"):
            queue.drain()
    assert threading.active_count() == before
