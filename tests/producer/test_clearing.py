"""Emptying a queue: cancelled with what waits for limits and parents, or waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.workers import until

from redistq import AsyncTaskProducer, RedistqError, TaskProducer, TaskWorker


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer of an empty queue."""
    with TaskProducer(url=url) as producer:
        yield producer


def fill(producer: TaskProducer, url: str) -> list[str]:
    """Queued, delayed and waiting tasks of all priorities."""
    producer.limits.set("k", at_most=1)
    ids = [producer.add_task("work", n, limits="k") for n in range(3)]
    ids += producer.add_tasks([("work", n) for n in range(5)])
    ids += [producer.add_task("work", delay=60), producer.add_task("work", after=ids[0])]
    for lane in ("high", "low"):
        with TaskProducer(url=url, stream=f"tasks!{lane}") as other:
            ids.append(other.add_task("work"))
            ids.append(other.add_task("work", limits="k"))
            ids.append(other.add_task("work", delay=60))
    return ids


def test_purging_a_queue_cancels_all_that_has_not_started(producer: TaskProducer, url: str) -> None:
    """Of all priorities, whatever it waits for; no slot stays taken, and a second call finds
    nothing."""
    ids = fill(producer, url)
    counts = producer.purge_queue()
    assert counts == {"waiting": 5, "delayed": 3, "queued": 8}
    assert sum(counts.values()) == len(ids)
    shot = producer.snapshot()
    assert (shot.ready, shot.delayed, shot.waiting) == (0, 0, 0)
    assert producer.get_task(ids[1]).state == "cancelled"
    stands = producer.limits.get("k")
    assert stands is not None
    assert (stands.in_use, stands.waiting) == (0, 0)
    assert producer.purge_queue() == {"waiting": 0, "delayed": 0, "queued": 0}


def test_purging_leaves_what_runs_and_dead_letters(producer: TaskProducer, url: str) -> None:
    """A running task goes on, holds its slot until its end, and its result counts."""
    started, go_on = threading.Event(), threading.Event()

    def work(payload: Any) -> str:
        if payload == "bad":
            raise ValueError("no")
        started.set()
        go_on.wait(30)
        return "done"

    producer.limits.set("k", at_most=1)
    with TaskWorker(url=url, task_handlers={"work": work}, thread_count=1):
        producer.add_task("work", "bad", retries=0)
        until(lambda: producer.snapshot().dead == 1, "it has failed")
        ids = [producer.add_task("work", n, limits="k") for n in range(3)]
        assert started.wait(15)
        assert producer.purge_queue() == {"waiting": 2, "delayed": 0, "queued": 0}
        assert producer.get_task(ids[0]).state == "running"
        go_on.set()
        assert producer.get_result(ids[0], timeout=15) == "done"
    assert producer.snapshot().dead == 1


def test_many_tasks_are_purged_in_bounded_calls(producer: TaskProducer, db: redis.Redis) -> None:
    """Two hundred a call, timers left alone."""
    producer.limits.set("k", at_most=1)
    producer.add_tasks({"type": "work", "limits": "k"} for _ in range(700))
    producer.add_tasks({"type": "work", "delay": 60} for _ in range(450))
    db.zadd("delayed:tasks", {"\nrate\nx": 1, "\nmore\nx": 2**41})
    assert producer.purge_queue() == {"waiting": 699, "delayed": 450, "queued": 1}
    assert db.zcard("delayed:tasks") == 2
    assert db.zcard("waiting:tasks") == 0


def test_draining_ends_when_the_last_task_has(producer: TaskProducer, url: str) -> None:
    """With those that wait for limits and parents; adding goes on meanwhile."""
    producer.limits.set("k", at_most=1)
    seen: list[int] = []
    parents = [producer.add_task("work", limits="k") for _ in range(4)]
    producer.add_task("work", after=parents)
    assert producer.drain(0) is False
    with TaskWorker(url=url, task_handlers={"work": lambda _: None}, thread_count=2):
        assert producer.drain("20s", seen.append) is True
    assert seen[-1] == 0
    assert seen == sorted(seen, reverse=True)
    assert producer.snapshot().counters["succeeded"] == 5


def test_the_async_producer_does_the_same(url: str) -> None:
    """The same counts."""

    async def empty() -> tuple[dict[str, int], bool]:
        async with AsyncTaskProducer(url=url) as producer:
            await producer.add_tasks([("work", n) for n in range(3)])
            return await producer.purge_queue(), await producer.drain(1)

    assert asyncio.run(empty()) == ({"waiting": 0, "delayed": 0, "queued": 3}, True)


# -- slots -----------------------------------------------------------------------------------------


def test_slots_of_trimmed_entries_are_given_back(
    producer: TaskProducer, db: redis.Redis, url: str
) -> None:
    """In as many steps as the stream needs."""
    producer.limits.set("k", at_most=2100)
    ids = producer.add_tasks({"type": "work", "limits": ["k", "ü: x"]} for _ in range(2105))
    assert producer.limits.recount() == {}
    db.xtrim("tasks", maxlen=2050, approximate=False)
    assert producer.limits.recount() == {"k": (2100, 2050), "ü: x": (2100, 2050)}
    assert producer.limits.recount() == {}
    assert producer.get_task(ids[-1]).state == "queued"
    db.delete("tasks")

    async def recount() -> dict[str, tuple[int, int]]:
        async with AsyncTaskProducer(stream="tasks", url=url) as other:
            return await other.limits.recount()

    assert asyncio.run(recount()) == {"k": (2055, 0), "ü: x": (2055, 0)}
    state = producer.limits.get("k")
    assert state is not None
    assert state.in_use == 0


def test_slots_that_cannot_be_counted_now_are_left(producer: TaskProducer, db: redis.Redis) -> None:
    """While a worker runs what was deleted, and where more waits than is to be looked at."""
    producer.limits.set("k", at_most=1)
    producer.add_tasks({"type": "work", "limits": "k"} for _ in range(9))
    with pytest.raises(RedistqError, match=r"more than are looked at in one step, 5: recount"):
        producer.limits.recount(most=5)
    db.xgroup_create("tasks", "workers", id="0")
    ((_, ((entry, _),)),) = db.xreadgroup("workers", "w", {"tasks": ">"})
    db.xdel("tasks", entry)
    with pytest.raises(RedistqError, match=r"still run tasks whose entries were deleted \(1\)"):
        producer.limits.recount()
    db.xack("tasks", "workers", entry)
    assert producer.limits.recount() == {"k": (1, 0)}
