"""When calls may run: the gate's options of a client, for calls, tasks, batches and graphs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from support.clients import gate, producer_of, serving
from support.workers import until

from redistq import Client, ConfigurationError, TaskCancelled, TaskExpired, Unique, limit
from redistq.protocol.options import CallOptions


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def state_of(future: Any) -> str:
    state: str = future.queue.watch(future.task_id).state
    return state


def test_calls_run_after_others(client: Client, tmp_path: Path) -> None:
    """``after`` takes futures, ids and batches, and what is asked of each."""
    wait_for_it, go = gate(tmp_path)
    slow = client.submit(wait_for_it)
    bad = client.submit(int, "x")
    child = client.options(after={slow: "success", bad: "failure"}).submit(abs, -1)
    never = client.options(after=[slow.task_id, bad]).submit(abs, -2)
    batch = client.map_batch(abs, [-1, -2], progress=False)
    last = client.options(after=batch).submit(abs, -3)
    assert last.result(10) == 3
    assert state_of(child) == "waiting"
    go()
    assert child.result(10) == 1
    with pytest.raises(TaskCancelled, match=f"parent {bad.task_id} failed: ValueError"):
        never.result(10)
    with pytest.raises(ConfigurationError, match="'success', 'end' or 'failure'"):
        client.options(after={slow: "perhaps"}).submit(abs, -1)


def test_limits_hold_for_calls_and_batches(client: Client, tmp_path: Path) -> None:
    """One at a time under a key, which may be made of arguments by their names; a rule declared in
    code is set."""

    def touch(tenant: str) -> int:
        import os
        import time

        mine = tmp_path / f"{tenant}-{os.getpid()}"
        mine.touch()
        many = len([*tmp_path.glob(f"{tenant}-*")])
        time.sleep(0.02)
        mine.unlink()
        return many

    one = client.options(limits=limit("tenant:{tenant}", at_most=1))
    assert set(one.map(touch, ["a", "b"] * 10)) == {1}
    batch = one.map_batch(touch, ["a", "b"] * 5, progress=False)
    assert set(batch.results(20)) == {1}
    assert set(client.options(order="in order").map(touch, ["c"] * 6)) == {1}


def test_a_unique_call_joins_the_one_there_is(client: Client, tmp_path: Path) -> None:
    """The second future is that of the first call; one that runs again has its own."""
    wait_for_it, go = gate(tmp_path)
    unique = client.options(unique="report")
    first = unique.submit(wait_for_it)
    until(lambda: state_of(first) == "running", "it runs")
    second = unique.submit(wait_for_it)
    third = client.options(unique=Unique("report", conflict="again")).submit(str, 3)
    go()
    assert first.result(10) == second.result(10) == "went"
    assert second.task_id == first.task_id
    assert third.result(10) == "3"
    assert third.task_id != first.task_id
    assert unique.submit(str, 4).result(10) == "4"
    with pytest.raises(ConfigurationError, match="replaces nothing"):
        client.options(unique=Unique("x", conflict="replace")).submit(abs, 1)
    with pytest.raises(ConfigurationError, match="no unique key"):
        unique.map_batch(abs, [1])


def test_who_joins_may_leave_again(url: str) -> None:
    """Each future of a task is cancelled, whatever its priority; the last takes the task along."""
    with Client(url) as client:
        unique = client.options(unique="report", delay=60)
        first = unique.options(priority="high").submit(str, 1)
        until(lambda: state_of(first) == "delayed", "it is sent")
        second = unique.submit(str, 1)
        until(lambda: second.task_id == first.task_id, "it stands for the first")
        assert second.queue is first.queue
        assert not second.running()
        client.shutdown(cancel_futures=True)
        assert first.cancelled()
        assert second.cancelled()


def test_a_client_changes_limits(client: Client) -> None:
    """As a producer does."""
    client.limits.set("mine", at_most=1)
    mine = client.limits.get("mine")
    assert mine is not None
    assert mine.at_most == 1
    assert client.limits.delete("mine")


def test_a_call_expires(client: Client, tmp_path: Path) -> None:
    """One that has not started by its deadline fails with words; a batch counts it."""
    wait_for_it, go = gate(tmp_path)
    slow = client.options(limits="narrow").submit(wait_for_it)
    producer = producer_of(client)
    producer.limits.set("narrow", at_most=1)
    late = client.options(limits="narrow", expires=0.05).submit(abs, -1)
    batch = client.options(limits="narrow", expires=0.05).map_batch(abs, [-1], progress=False)
    time.sleep(0.1)  # their deadlines pass
    go()
    assert slow.result(10) == "went"
    with pytest.raises(TaskExpired, match="not started by its deadline") as caught:
        late.result(10)
    assert isinstance(caught.value, CancelledError)
    assert batch.wait(10).counts()["expired"] == 1
    with pytest.raises(TaskExpired):
        batch.results(5)
    producer.close()


def test_a_number_is_a_place_in_line(client: Client) -> None:
    """A priority that is a number stays in its queue; a word is a queue of its own."""
    assert client.options(priority=5).submit(abs, -1).result(10) == 1
    both = client.options(priority="high").options(priority=-5)._options
    assert (both.priority, both.gate) == ("high", {"priority": -5})
    with pytest.raises(ConfigurationError, match="priority"):
        client.options(priority=11).submit(abs, -1)
    assert CallOptions().changed({"order": "x"}).changed({"order": None}).gate == {}


def test_named_tasks_of_a_client_have_gates_too(client: Client) -> None:
    """Their keys are made of the payload."""
    future = client.options(limits=limit("host:{host}")).submit("fetch", {"host": "a"})
    until(lambda: client.broker.call(("HGET", client.keys.limits, "shost:a")) == b"1", "it is in")
    until(future.cancel, "it is cancelled: a worker that does not know it has it now and then")
    assert client.broker.call(("HGET", client.keys.limits, "shost:a")) is None


def test_graphs_take_the_options_of_calls(client: Client) -> None:
    """Limits of a node, and parents that are no arguments."""
    with client.graph("gated") as graph:
        first = graph.submit(abs, -1)
        second = graph.options(limits={"key": 2}, after=first).submit(abs, -2)
        with pytest.raises(ConfigurationError, match="no unique key"):
            graph.options(unique="x").submit(abs, -3)
        third = graph.after({second: "end"}).submit(abs, -3)
    graph.wait(10)
    assert third.result(5) == 3
    assert [node.parents for node in graph.shape(10)] == [(), (0,), (1,)]
