"""What may not run yet, on a Cluster: all keys of a queue share a slot, and each script runs there.

A cluster of one node refuses what several would: a script or command whose keys are in two slots.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.servers import Server, available, free_port

from redistq import (
    Client,
    TaskCancelled,
    TaskContext,
    TaskMonitor,
    TaskProducer,
    TaskWorker,
    Unique,
)
from redistq.handlers import Registry


@pytest.fixture(params=available())
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a cluster whose one node has all slots."""
    options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
    node = Server(request.param, args=options)
    while not 0 < node.port <= 55_000:  # its bus has the port that is higher by ten thousand
        node.port = free_port()
    with node as server:
        with server.client() as client:
            for start in range(0, 16_384, 1_024):
                client.execute_command("CLUSTER", "ADDSLOTS", *range(start, start + 1_024))
            deadline = time.monotonic() + 20
            while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
                assert time.monotonic() < deadline, "the cluster has no slots"
                time.sleep(0.05)  # its own clock tells it ten times a second
        yield f"redis+cluster://127.0.0.1:{server.port}"


def total(payload: Any, context: TaskContext) -> Any:
    """The sum of what its parents returned, and of the payload."""
    return sum(context.results()) + payload


def parent_of_two(payload: Any, context: TaskContext) -> Any:
    """A task that leaves two children, one after the other."""
    first = context.spawn("echo", payload)
    context.spawn("total", 10, after=first, task_id="grandchild")
    return payload


def test_everything_that_waits_is_let_in(cluster: str) -> None:
    """Limits, order, parents, unique keys, groups, priorities and children, over all lanes."""
    handlers = {"echo": lambda p: p, "total": total, "parent": parent_of_two}
    with (
        TaskProducer(url=cluster, stream="jobs") as producer,
        TaskProducer(url=cluster, stream="jobs!high") as urgent,
    ):
        producer.limits.set("k", at_most=1)
        producer.limits.set("r:*", rate=50)
        limited = [producer.add_task("echo", n, limits=["k", "r:1"]) for n in range(4)]
        limited.append(urgent.add_task("echo", 4, limits="k", priority=3))
        ordered = [producer.add_task("echo", n, order="o", group="g") for n in range(3)]
        unique = producer.add_task("echo", 1, unique="u", delay=0.2)
        pushed = producer.add_task("echo", 2, unique=Unique("u", conflict="push"), delay=0.3)
        assert (pushed, pushed.outcome) == (unique, "pushed")
        summed = producer.add_task("total", 100, after=[*limited[:4], *ordered])
        failing = producer.add_task("total", None, after=limited[0], retries=0)
        never = producer.add_task("echo", 0, after=failing)
        spawning = producer.add_task("parent", 5)
        assert urgent.get_task(limited[4]).state == "waiting"
        with producer.graph("graph") as graph:
            parts = [graph.add("echo", n) for n in range(5)]
            end = graph.add("total", 0, after=parts)
        with TaskWorker(url=cluster, queues=["jobs!high", "jobs"], task_handlers=handlers, lease=2):
            assert [producer.get_result(i, 20) for i in limited[:4]] == [0, 1, 2, 3]
            assert urgent.get_result(limited[4], 20) == 4
            assert [producer.get_result(i, 20) for i in ordered] == [0, 1, 2]
            assert producer.get_result(unique, 20) == 2
            assert producer.get_result(summed, 20) == 100 + 6 + 3
            with pytest.raises(TaskCancelled, match=f"{failing} failed"):
                producer.get_result(never, 20)
            assert producer.get_result(spawning, 20) == 5
            assert producer.get_result("grandchild", 20) == 15
            assert producer.get_result(end, 20) == 10
            assert graph.counts()["succeeded"] == 6
        limit = producer.limits.get("k")
        assert (limit.in_use, limit.waiting) == (0, 0)
        assert producer.snapshot().waiting == 0


def durable(payload: Any, context: TaskContext) -> Any:
    """A step, a sleep and an event."""
    made = context.step("made", lambda: payload)
    context.sleep(0.05)
    return [made, context.wait_for("go", 20)]


def test_steps_and_events(cluster: str) -> None:
    """In two lanes, which share their events."""
    handlers = {"durable": durable}
    with (
        TaskProducer(url=cluster, stream="jobs") as producer,
        TaskProducer(url=cluster, stream="jobs!high") as urgent,
        TaskWorker(url=cluster, queues=["jobs!high", "jobs"], task_handlers=handlers, lease=2),
    ):
        one, two = producer.add_task("durable", 1), urgent.add_task("durable", 2)
        deadline = time.monotonic() + 20
        while len(producer.steps(one)) + len(urgent.steps(two)) < 6:
            assert time.monotonic() < deadline, "they do not wait"
            time.sleep(0.01)
        assert producer.send_event("go", "one", task=one) == 1
        assert producer.get_result(one, 20) == [1, "one"]
        assert producer.send_event("go", "all") == 1
        assert urgent.get_result(two, 20) == [2, "all"]


def test_what_happens_is_told_and_functions_run_at_their_times(cluster: str) -> None:
    """Events, schedules in code and of a client, and another function under a batch."""
    registry = Registry()

    @registry.task(name="tick", every=0.2)
    def tick(payload: Any) -> None:
        pass

    key = "a signing key for tests only"
    with (
        Client(cluster, queue="jobs", signing_key=key, shared=True) as client,
        TaskWorker(
            url=cluster,
            queue="jobs",
            task_handlers=registry,
            signing_key=key.encode().hex(),
            threads=2,
        ),
        TaskMonitor(url=cluster, stream="jobs") as monitor,
    ):

        def report() -> str:
            return "made"

        client.every("0 6 * * mon", tz="Europe/Berlin")(report)
        assert client.schedules["report"].run_now().result(20) == "made"
        batch = client.options(delay=0.3).map_batch(lambda n: n, range(5), progress=False)
        assert batch.update(lambda n: -n) == 2
        assert batch.results(20) == [0, -1, -2, -3, -4]
        assert set(batch.versions().values()) == {2}
        client.schedules.delete("report")
        assert client.schedules["tick"].source.startswith("code ")
        ends = {event.id for event in monitor.events(follow=False) if event.final}
        assert len(ends) >= 6
        client.schedules.delete("tick")


def numbers(payload: int) -> Iterator[int]:
    """A handler that yields."""
    yield from range(payload)


def test_streams(cluster: str) -> None:
    """What a task yields is in its queue's slot, in each lane, and read there."""
    with (
        TaskProducer(url=cluster, stream="jobs") as producer,
        TaskProducer(url=cluster, stream="jobs!high") as urgent,
        TaskWorker(
            url=cluster, queues=["jobs!high", "jobs"], task_handlers={"numbers": numbers}, lease=2
        ),
    ):
        for one in (producer, urgent):
            task = one.add_task("numbers", 20_000)
            assert list(one.stream(task, timeout=20)) == list(range(20_000))
            assert list(one.stream(task, 19_998)) == [19_998, 19_999]
