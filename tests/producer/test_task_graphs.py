"""Graphs of named tasks: written, sent in few calls, read by handlers, found again by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.servers import Server
from support.workers import until

from redistq import (
    ConfigurationError,
    PayloadError,
    ResultTimeout,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)
from redistq.errors import UnknownBatch
from redistq.flows import chain, chord, group, map_reduce, sig
from redistq.handlers import Registry

let_go = threading.Event()
broken = threading.Event()
seen: list[Any] = []


def number(payload: Any) -> Any:
    return payload


def total(payload: Any, context: TaskContext) -> Any:
    seen.append((context.task_id, context.parents))
    return sum(context.results()) + (payload or 0)


def given(payload: Any, context: TaskContext) -> Any:
    return context.results()


def one(payload: str, context: TaskContext) -> Any:
    return context.result(payload)


def slow(payload: Any) -> Any:
    let_go.wait(20)
    return payload


def fail(payload: Any) -> Any:
    if broken.is_set():
        raise ValueError("told to")
    return payload


@pytest.fixture(scope="module")
def producer() -> Iterator[TaskProducer]:
    """A producer, and a worker in this process."""
    registry = Registry()
    for handler in (number, total, given, one, slow):
        registry.add(handler.__name__, handler)
    registry.task(name="fail", retries=0)(fail)
    with (
        Server() as server,
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=server.url, task_handlers=registry, lease=2, thread_count=4),
    ):
        yield producer


@pytest.fixture(autouse=True)
def unlocked() -> None:
    """Each test begins with nothing held and nothing broken."""
    let_go.clear()
    broken.clear()
    seen.clear()


def test_handlers_read_the_results_of_those_before_them(producer: TaskProducer) -> None:
    """In the order in which they were given; ids are known before anything is sent."""
    with producer.graph("sums") as graph:
        ones = [graph.add("number", i) for i in range(10)]
        end = graph.add("total", 100, after=ones)
        last = graph.add("given", after=[end, ones[3]])
        assert graph.task_id(11) == last == "sums:11"
    assert graph.wait(20).counts()["succeeded"] == 12
    assert producer.get_result(last, 5) == [145, 3]
    assert seen == [("sums:10", ones)]


def test_what_needs_not_succeed(producer: TaskProducer) -> None:
    """Policies: after any end, after a failure; the result of what failed is None."""
    broken.set()
    with producer.graph("policies") as graph:
        good, bad = graph.add("number", 1), graph.add("fail", 2)
        anyway = graph.add("given", after={good: "success", bad: "end"})
        instead = graph.add("number", "mended", after={bad: "failure"})
        never = graph.add("number", after={good: "failure"})
        with pytest.raises(ConfigurationError, match="'success', 'end' or 'failure'"):
            graph.add("number", after={good: "perhaps"})
    counts = graph.wait(20).counts()
    assert (counts["succeeded"], counts["failed"], counts["cancelled"]) == (3, 1, 1)
    assert producer.get_result(anyway, 5) == [1, None]
    assert producer.get_result(instead, 5) == "mended"
    states = dict(zip(graph.nodes()["id"], graph.nodes()["reason"], strict=True))
    assert states[never] == f"parent {good} succeeded"


def test_the_result_of_any_task(producer: TaskProducer) -> None:
    """``context.result`` reads one by its id; one that is not there, or failed, is an error."""
    task = producer.add_task("number", {"x": 1})
    assert producer.get_result(task, 10) == {"x": 1}
    assert producer.get_result(producer.add_task("one", task), 10) == {"x": 1}
    with pytest.raises(TaskFailed, match="no task with id 'nobody'"):
        producer.get_result(producer.add_task("one", "nobody", retries=0), 10)
    assert producer.get_result(producer.add_task("given"), 10) == []


def test_many_tasks_are_few_requests(producer: TaskProducer) -> None:
    """Of a bounded size each, by tasks and by edges."""
    with producer.graph("large") as graph:
        before: list[str] = []
        for layer in range(20):
            before = [
                graph.add("number", i, after=[before[i], before[i - 1]] if layer else None)
                for i in range(100)
            ]
        plan = graph._open_plan
        assert len([*plan._requests(producer.commands, None)]) == 10
    assert graph.wait(60).counts()["succeeded"] == 2000
    with producer.graph("dense") as graph:
        ones = [graph.add("number", i) for i in range(1000)]
        for _ in range(20):
            graph.add("number", after=ones)
        assert len([*graph._open_plan._requests(producer.commands, None)]) == 5 + 4
    assert graph.wait(60).counts()["succeeded"] == 1020


def test_a_graph_is_found_again_by_its_name(producer: TaskProducer) -> None:
    """By another program: it looks, waits, cancels, and lets failed tasks run again."""
    broken.set()
    with producer.graph("found") as graph:
        bad = graph.add("fail", 7)
    graph.wait(10)
    other = producer.graph("found")
    assert other.total == len(other) == 1
    assert other.counts()["failed"] == 1
    broken.clear()
    assert other.resume() == 1
    assert other.wait(10).counts()["succeeded"] == 1
    assert producer.get_result(bad, 5) == 7
    with pytest.raises(UnknownBatch):
        producer.graph("nobody").counts()
    with pytest.raises(ConfigurationError, match="without spaces"):
        producer.graph("with space")


def test_a_graph_waits_and_is_cancelled(producer: TaskProducer) -> None:
    """A wait has its limit; what waits is cancelled, what runs ends."""
    with producer.graph("held") as graph:
        first = graph.add("slow", 1)
        graph.add("total", after=first)
        graph.add("number", 3, after=[first], delay=1)
    until(lambda: graph.states_at([0]) == ["running"], "the first runs")
    with pytest.raises(ResultTimeout, match=r"graph held was still unfinished \(0 of 3"):
        graph.wait(0.1)
    assert graph.states_at([1, 2]) == ["waiting", "waiting"]
    assert graph.cancel() == 2
    let_go.set()
    assert graph.wait(10).counts()["cancelled"] == 2
    graph.resume()
    assert graph.wait(20).counts()["succeeded"] == 3
    graph.delete()


def test_however_parents_are_written_it_is_the_same_graph(producer: TaskProducer) -> None:
    ways: list[Any] = [list, tuple, lambda ids: dict.fromkeys(ids, "success"), iter]
    for at, way in enumerate(ways):
        with producer.graph("written") as graph:
            ids = [graph.add("number", k) for k in range(3)]
            both = graph.add("total", after=way(ids[:2]))
            last = graph.add("total", 5, after=ids[2] if at % 2 else [ids[2]])
            graph.add("given", after=[both, last])
        assert graph.wait(timeout=20).counts()["succeeded"] == 6
        assert graph.reused == (6 if at else 0)
        assert [node.parents for node in graph.shape(9)][3:5] == [(0, 1), (2,)]
    assert producer.get_result(graph.task_id(5), timeout=20) == [1, 7]


def test_a_task_outside_may_be_before_or_after(producer: TaskProducer) -> None:
    """Ids of other tasks of the queue are parents, too."""
    outside = producer.add_task("number", 5)
    with producer.graph("outside") as graph:
        inside = graph.add("total", after=outside)
    assert producer.get_result(inside, 10) == 5
    after = producer.add_task("given", after=[inside, outside])
    assert producer.get_result(after, 10) == [5, 5]


def test_a_graph_may_be_before_a_task(producer: TaskProducer) -> None:
    """As a parent a graph is a batch: what is after it runs when all of it has succeeded."""
    with producer.graph("before") as graph:
        for number in range(3):
            graph.add("number", number)
    after = producer.add_task("number", 7, after=graph)
    assert producer.get_result(after, 10) == 7
    assert producer.get_task(after).state == "succeeded"
    assert graph.counts()["succeeded"] == 3


def test_errors_come_where_a_task_is_added(producer: TaskProducer) -> None:
    """Before anything is sent."""
    with producer.graph("errors") as graph:
        graph.add("number")
        with pytest.raises(PayloadError):
            graph.add("number", object())
        with pytest.raises(ConfigurationError, match="after takes tasks' ids"):
            graph.add("number", after=3)
        with pytest.raises(ConfigurationError, match="has no option 'retry'"):
            graph.add("number", retry=3)
    assert graph.wait(10).counts()["total"] == 1


def test_flows_of_named_tasks(producer: TaskProducer) -> None:
    """Sent in one call, in a graph or without one; the last id is that of the end."""
    ids = producer.add_flow(chain(sig("number", 1), group("total", sig("total", 10)), "given"))
    assert producer.get_result(ids[-1], 10) == [1, 11]
    ids = producer.add_flow(chord([sig("number", 2), "number"], "given"))
    assert producer.get_result(ids[-1], 10) == [2, None]
    with producer.graph("flow") as graph:
        nodes = graph.add_flow(map_reduce("number", range(30), "total", fan_in=5))
    assert producer.get_result(nodes[-1], 20) == sum(range(30))
    with pytest.raises(TypeError, match="one payload"):
        sig("number", 1, 2)


def test_none_is_what_the_handler_says(producer: TaskProducer) -> None:
    """In a graph, alone and in a list alike; what is given comes before it."""
    own = Registry()

    @own.task(name="one", limits="own", retries=0)
    def limited(payload: Any) -> Any: ...

    def keys_of(options: dict[str, Any]) -> list[str]:
        with producer.graph(f"limits-{len(options)}-{options.get('limits')}") as graph:
            task_id = graph.add(limited, "a", delay="1h", **options)
        ids = [task_id, producer.add_task(limited, "a", delay="1h", **options)]
        opts = [producer.broker.call(("HGET", f"task:tasks:{i}", "opts")) for i in ids]
        return [json.loads(text)["gate"] for text in opts]

    assert keys_of({}) == ["k1 own"] * 2
    assert keys_of({"limits": None}) == ["k1 own"] * 2
    assert keys_of({"limits": "other"}) == ["k1 other"] * 2
