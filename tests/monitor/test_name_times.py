"""Histograms of waiting and run time by name: out of the history, each attempt once, bounded."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from redistq import Registry, TaskMonitor
from redistq.monitor import name_times
from redistq.monitor.metrics import MetricsServer, _times_by
from redistq.monitor.name_times import NameTimes
from redistq.testing import TestQueue


@pytest.fixture
def queue(url: str) -> Iterator[TestQueue]:
    """A queue with a quick task, a slow one, and one that is tried twice."""
    registry = Registry()
    registry.task(name="quick")(lambda payload: payload)
    registry.task(name="slow")(lambda payload: time.sleep(0.03))

    @registry.task(retries=1, backoff=1, jitter=0)
    def fails(payload: Any) -> None:
        raise ValueError

    with TestQueue(registry, url=url) as queue:
        yield queue


@pytest.fixture
def times(queue: TestQueue) -> NameTimes:
    """The histograms of that queue."""
    return _times_by(queue.monitor)


def counts(times: NameTimes) -> dict[str, int]:
    """How many attempts of each name were counted."""
    return {name: sum(histogram.counts) for name, histogram in times.ran.items()}


def test_each_attempt_is_counted_once(queue: TestQueue, times: NameTimes) -> None:
    """What ended before the first scrape is not, and a retry is one more."""
    add = queue.producer.add_task
    add("quick")
    queue.drain()
    times.tick()
    assert counts(times) == {}
    for name in ("quick", "quick", "slow", "fails"):
        add(name)
    queue.drain()
    times.tick()
    times.tick()
    assert counts(times) == {"quick": 2, "slow": 1, "fails": 1}
    queue.run_for(2)
    times.tick()
    assert counts(times) == {"quick": 2, "slow": 1, "fails": 2}
    assert times.missed == 0


def test_waits_and_runs_are_told_apart(queue: TestQueue, times: NameTimes) -> None:
    """A task that was ready for a minute before its handler took 30 ms; a delay is no wait."""
    times.tick()
    queue.producer.add_task("slow")
    queue.producer.add_task("quick", delay=3600)
    queue.clock.advance(60)
    queue.drain()
    queue.clock.advance(3540)
    queue.drain()
    times.tick()
    assert 59.9 < times.waited["slow"].total < 61
    assert 0.03 <= times.ran["slow"].total < 1
    assert times.waited["quick"].total < 1
    buckets = dict(times.waited["slow"].cumulative())
    assert (buckets["30.0"], buckets["300.0"], buckets["+Inf"]) == (0, 1, 1)


def test_more_than_a_page_is_read_in_pages(
    queue: TestQueue, times: NameTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that came between two scrapes counts."""
    monkeypatch.setattr(name_times, "FIRST", 3)
    monkeypatch.setattr(name_times, "PAGE", 4)
    times.tick()
    queue.producer.add_tasks([("quick", n) for n in range(17)])
    queue.drain()
    times.tick()
    assert counts(times) == {"quick": 17}


def test_what_the_history_dropped_is_said(
    queue: TestQueue, times: NameTimes, db: redis.Redis
) -> None:
    """Not counted, but how many they were is known."""
    times.tick()
    queue.producer.add_tasks([("quick", n) for n in range(10)])
    queue.drain()
    db.xtrim(f"history:{queue.name}", maxlen=4, approximate=False)
    times.tick()
    assert (counts(times), times.missed) == ({"quick": 4}, 6)


def test_names_are_bounded(
    queue: TestQueue, times: NameTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond are together ``other``; the figures of the first go on."""
    monkeypatch.setattr(name_times, "MOST_NAMES", 1)
    times.tick()
    for name in ("quick", "slow", "fails", "quick"):
        queue.producer.add_task(name)
        queue.drain()
    times.tick()
    assert counts(times) == {"quick": 2, "other": 2}


def test_prometheus_reads_them(queue: TestQueue, url: str) -> None:
    """Two families of histograms with buckets, count and sum by queue and name."""
    server = MetricsServer(TaskMonitor(url=url, stream=queue.name), 0)
    try:
        urllib.request.urlopen(server.url, timeout=10).read()
        queue.producer.add_tasks([("quick", 1), ("quick", 2)])
        queue.drain()
        with urllib.request.urlopen(server.url, timeout=10) as reply:
            text = reply.read().decode()
    finally:
        server.stop()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in ("redistq_task_run_seconds", "redistq_task_waiting_seconds"):
        assert families[name].type == "histogram"
        samples = {s.name: s for s in families[name].samples if "le" not in s.labels}
        count = samples[f"{name}_count"]
        assert (count.value, count.labels) == (2, {"queue": queue.name, "name": "quick"})
        assert samples[f"{name}_sum"].value > 0
    unobserved = families["redistq_unobserved_attempts"].samples
    assert [s.value for s in unobserved if s.name.endswith("_total")] == [0]
