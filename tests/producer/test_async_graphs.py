"""Graphs of named tasks with ``await``: what TaskProducer.graph promises, in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.servers import Server
from support.workers import until

from redistq import (
    AsyncTaskGraph,
    AsyncTaskProducer,
    ConfigurationError,
    PayloadError,
    ResultTimeout,
    TaskContext,
    TaskProducer,
    TaskWorker,
    limit,
)
from redistq.errors import UnknownBatch
from redistq.flows import chord, group, sig
from redistq.handlers import Registry

let_go = threading.Event()
broken = threading.Event()
registry = Registry()


@registry.task
def number(payload: Any) -> Any:
    return payload


@registry.task
def total(payload: Any, context: TaskContext) -> Any:
    return sum(context.results())


@registry.task
def slow(payload: Any) -> Any:
    let_go.wait(20)
    return payload


@registry.task(retries=0)
def fail(payload: Any) -> Any:
    if broken.is_set():
        raise ValueError("no")
    return payload


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server, and a worker with two threads."""
    with Server() as server, TaskWorker(url=server.url, task_handlers=registry, thread_count=2):
        yield server.url


@pytest.fixture(autouse=True)
def unlocked() -> None:
    let_go.clear()
    broken.clear()


async def added(graph: AsyncTaskGraph, count: int = 4) -> str:
    """A graph of some numbers and their sum; the sum's id."""
    async with graph:
        parts = [graph.add("number", n) for n in range(count)]
        return graph.add("total", after=parts)


def test_a_graph_is_written_waited_for_and_looked_at(url: str) -> None:
    """The block adds without await; what it made is sent at its end."""

    async def all_of_it() -> None:
        producer = AsyncTaskProducer(url=url)
        graph = producer.graph("sums")
        last = await added(graph)
        assert await graph.wait(10) is graph
        assert await producer.get_result(last, 5) == 6
        assert await graph.done()
        assert (await graph.counts())["succeeded"] == await graph.total() == 5
        frame = await graph.nodes()
        assert list(frame["state"]) == ["succeeded"] * 5
        assert frame["parents"][4] == [0, 1, 2, 3]
        assert (await graph.summary()).layers == 2
        assert [node.name for node in await graph.shape(10)] == ["number"] * 4 + ["total"]
        await producer.close()

    asyncio.run(all_of_it())
    with TaskProducer(url=url) as producer:
        assert producer.graph("sums").counts()["succeeded"] == 5


def test_made_again_it_runs_what_is_not_done(url: str) -> None:
    """As a graph of another producer does; another size needs another name."""

    async def twice() -> None:
        producer = AsyncTaskProducer(url=url)
        await (await _sent(producer, "again")).wait(10)
        again = await _sent(producer, "again")
        assert again.reused == 5
        with pytest.raises(ConfigurationError, match="choose another name"):
            await added(producer.graph("again"), 7)
        with pytest.raises(UnknownBatch):
            await producer.graph("nobody").counts()
        await producer.close()

    asyncio.run(twice())


async def _sent(producer: AsyncTaskProducer, name: str) -> AsyncTaskGraph:
    graph = producer.graph(name)
    await added(graph)
    return graph


def test_it_is_cancelled_resumed_and_deleted(url: str) -> None:
    """What waits is cancelled, what runs ends; a resumption runs it in order."""

    async def held() -> None:
        producer = AsyncTaskProducer(url=url)
        async with producer.graph("held") as graph:
            first = graph.add("slow", 1)
            graph.add("total", after=first)
            graph.add("number", 3, after=[first], delay=1)
        until(lambda: TaskProducer(url=url).graph("held").states_at([0]) == ["running"], "it runs")
        assert await graph.states_at([0, 1]) == ["running", "waiting"]
        with pytest.raises(ResultTimeout, match=r"graph held was still unfinished \(0 of 3"):
            await graph.wait(0.1)
        with pytest.raises(ConfigurationError, match="are running"):
            await graph.delete()
        let_go.set()
        await graph.wait(10)
        assert (await graph.counts())["cancelled"] == 2
        assert await graph.resume() == 2
        await graph.wait(20)
        assert (await graph.counts())["succeeded"] == 3
        await graph.delete()
        with pytest.raises(UnknownBatch):
            await graph.counts()
        await producer.close()

    asyncio.run(held())


def test_of_another_program_it_resumes_what_failed(url: str) -> None:
    """And says where that is not enough."""

    async def found() -> None:
        producer = AsyncTaskProducer(url=url)
        broken.set()
        async with producer.graph("found") as graph:
            graph.add("fail", 7)
        await graph.wait(10)
        broken.clear()
        other = producer.graph("found")
        assert await other.resume() == 1
        await other.wait(10)
        assert (await other.counts())["succeeded"] == 1
        async with producer.graph("lost") as graph:
            graph.add("number", 1, delay="1h")
        assert await graph.cancel() == 1
        with pytest.raises(ConfigurationError, match="is not kept"):
            await producer.graph("lost").resume()
        await producer.close()

    asyncio.run(found())


def test_an_error_in_the_block_sends_nothing(url: str) -> None:
    """Options and payloads are checked where a task is added; rules are declared at the end."""

    async def wrong() -> None:
        producer = AsyncTaskProducer(url=url)
        graph = producer.graph("wrong")

        async def written() -> None:
            async with graph:
                graph.add("number", 1)
                graph.add("number", object())

        with pytest.raises(PayloadError):
            await written()
        with pytest.raises(UnknownBatch):
            await graph.counts()
        with pytest.raises(ConfigurationError, match="while it is open"):
            graph.add("number", 1)
        async with producer.graph("ruled") as graph:
            graph.add("number", 1, limits=limit("ruled", at_most=3))
            graph.add_flow(chord(group(sig("number", n) for n in range(3)), "total"))
        await graph.wait(10)
        assert (await producer.limits.get("ruled")).at_most == 3
        await producer.close()

    asyncio.run(wrong())


def test_a_wait_that_is_cancelled_leaves_the_graph_alone(url: str) -> None:
    """Its connection is closed, and others go on."""

    async def cancelled() -> None:
        producer = AsyncTaskProducer(url=url)
        async with producer.graph("left") as graph:
            graph.add("slow", 1)
        wait = asyncio.create_task(graph.wait())
        await asyncio.sleep(0.2)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        let_go.set()
        await graph.wait(10)
        assert (await graph.counts())["succeeded"] == 1
        await producer.close()

    asyncio.run(cancelled())


def test_a_large_graph_is_read_in_pages(url: str) -> None:
    """Hundreds of states, many in a round trip; other calls get their own answers."""

    async def large() -> None:
        producer = AsyncTaskProducer(url=url)
        async with producer.graph("large") as graph:
            for n in range(450):
                graph.add("number", n)
        await graph.wait(20)
        looks = [graph.states_at(range(450)) for _ in range(5)]
        assert await asyncio.gather(*looks) == [["succeeded"] * 450] * 5
        assert await producer.get_result(graph.task_id(449), 5) == 449
        await producer.close()

    asyncio.run(large())
