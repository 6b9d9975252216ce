"""Priorities of a client's calls: order, batches, and what all priorities share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.clients import threads_of
from support.workers import until

from redistq import Client, ConfigurationError, TaskProducer


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A client without workers."""
    with Client(url, queue="jobs") as client:
        yield client


def test_urgent_calls_run_first(client: Client, db: redis.Redis) -> None:
    """With one worker and a backlog of every priority, high runs before normal before low."""
    futures = []
    for priority in ("low", "normal", "high"):
        submitting = client.options(priority=priority)
        futures += [submitting.submit(time.time_ns) for _ in range(5)]
    until(lambda: db.xlen("jobs!low") == db.xlen("jobs") == 5, "all calls are sent")
    client.start_workers(1)
    low, normal, high = ([future.result(20) for future in futures[i : i + 5]] for i in (0, 5, 10))
    # The worker may take one of each queue while it finds its pace.
    assert max(high) < sorted(normal)[1]
    assert max(normal) < sorted(low)[1]


def test_priorities_are_found_checked_and_end_with_the_client(client: Client) -> None:
    """The same priority is the same queue; an unknown one is refused; none outlives the client."""
    high = client.options(priority="high")
    first = high.submit(int)
    assert first.queue is client.options(priority="high", retries=2).submit(int).queue
    assert first.queue is high.options(retries=1).submit(int).queue
    assert high.options(priority="normal").submit(int).queue is client.submit(int).queue
    assert high.options(priority=None).submit(int).queue is first.queue
    client.start_workers(1)
    with pytest.raises(ConfigurationError, match="high, normal, low"):
        client.options(priority="urgent")
    client.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        high.submit(int)


def test_three_priorities_cost_no_more_than_one(client: Client, db: redis.Redis) -> None:
    """No thread, connection, inbox or sign of life of their own."""
    client.start_workers(1)

    def open_now() -> tuple[int, int, int, int]:
        rows: Any = db.client_list()
        ours = [t for t in threading.enumerate() if t.name.startswith("redistq-")]
        signs = list(db.scan_iter("client:*"))
        inboxes = {key.split(":")[1] for key in db.scan_iter("inbox:*")}
        assert inboxes <= {"jobs"}
        return len(ours), len(rows), len(signs), len(threads_of(client))

    def round_of(*priorities: str) -> None:
        for priority in priorities:
            submitting = client.options(priority=priority)
            assert submitting.submit(abs, -1).result(20) == 1
            assert submitting.map_batch(abs, [-2], progress=False).results(20) == [2]
            assert submitting.options(cache="1d").submit(abs, -3).result(20) == 3

    round_of("normal", "normal", "normal")
    before = open_now()
    round_of("high", "normal", "low")
    until(lambda: open_now() == before, "no thread, connection or key more")
    assert before[2:] == (1, 2)


def test_batches_and_large_arguments_of_any_priority(client: Client, db: redis.Redis) -> None:
    """A batch of high priority is found by its name alone, and functions are stored once."""
    client.start_workers(1)
    assert client.submit(len, "abc").result(20) == 3
    batch = client.options(priority="high").map_batch(len, ["a", "bb"], name="urgent")
    assert client.batch("urgent").results(20) == [1, 2]
    assert batch.counts()["succeeded"] == 2
    blobs: Any = db.keys("blob:*")
    assert len([key for key in blobs if not key.endswith(":user")]) == 1
    assert db.hget("counters:jobs!high", "succeeded") == "2"


def test_a_failed_urgent_call_is_looked_into_and_replayed(client: Client) -> None:
    """Post-mortem and replay of a call look where its priority put it."""
    client.start_workers(1)
    future = client.options(priority="low", logs=True).submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        future.result(20)
    with pytest.raises(ValueError, match="invalid literal"):
        future.rerun_here()
    with pytest.raises(ValueError, match="invalid literal"):
        future.replay().result(20)
    with TaskProducer(address=client.address, stream="jobs!low") as producer:
        assert producer.snapshot().dead == 1
