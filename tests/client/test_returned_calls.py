"""Functions that return a flow: it takes the place of their call, whose future gets its end.

The flow's calls are packed and signed by the worker that ran the function.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from support.clients import KEY, serving, session
from support.workers import until

from redistq import (
    Client,
    ConfigurationError,
    PayloadError,
    TaskCancelled,
    TaskWorker,
    UntrustedPayload,
)
from redistq.flows import chain, chord, group, map_reduce, sig


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def fail(_: Any = None) -> None:
    raise ZeroDivisionError("no")


def flow_of(what: str, n: int = 3) -> Any:
    """Returns the flow of that name."""
    return {
        "one": lambda: sig(add, n),
        "chain": lambda: chain(sig(add, n), add, sig(add, 10)),
        "chord": lambda: chord(group(sig(add, k) for k in range(n)), sum),
        "tree": lambda: map_reduce(add, range(9), sum, fan_in=3),
        "closure": lambda: sig(lambda x: x * n, 2),
        "nested": lambda: chain(sig(add, n), sig(flow_of, "chain")),
        "deep": lambda: sig(flow_of, "nested", n),
        "array": lambda: chain(sig(numpy.ones, 100_000), numpy.sum),
        "keywords": lambda: sig(add, 1, b=n).options(retries=1, name="of its own"),
        "keys": lambda: sig(add, n).options(limits="some", expires="1h"),
        "fails": lambda: chain(sig(add, 1), fail),
        "fails early": lambda: chain(sig(fail), add),
        "group": lambda: group(sig(add, 1), sig(add, 2)),
        "cache": lambda: sig(add, 1).options(cache=10),
        "unique": lambda: sig(add, 1).options(unique="x"),
        "high": lambda: sig(add, 1).options(priority="high"),
        "ids": lambda: sig("named").options(task_id="x"),
        "lock": lambda: sig(add, threading.Lock()),
        "later": lambda: sig(add, 1).options(delay="1h"),
    }[what]()


def taken(what: str, n: int) -> Any:
    """As the last of a chain."""
    return flow_of(what, n)


@pytest.mark.parametrize(
    ("what", "result"),
    [
        *(("one", 4), ("chain", 15), ("chord", 6), ("tree", 45), ("closure", 6)),
        *(("array", 100_000.0), ("keywords", 4), ("keys", 4)),
    ],
)
def test_the_future_gets_what_the_flow_comes_to(client: Client, what: str, result: Any) -> None:
    """By the same future, awaited too, and as an argument of another call."""
    future = client.submit(flow_of, what)
    assert client.submit(add, future).result(20) == result + 1
    assert future.result(20) == result

    async def awaited() -> Any:
        return await client.submit(flow_of, what)

    assert asyncio.run(awaited()) == result


def test_a_call_of_the_flow_may_return_another(client: Client) -> None:
    """Each takes the place of the one before, and the first future gets the end."""
    assert client.submit(flow_of, "nested").result(20) == 16
    assert client.submit(flow_of, "deep", 5).result(20) == 18
    assert client.run(chain(sig(add, 1), sig(taken, "one"))).result(20) == 3


def test_batches_and_graphs_have_such_calls(client: Client) -> None:
    """A batch counts the call once; a node's result is the flow's."""
    batch = client.map_batch(flow_of, ["one", "chain", "chord"], progress=False)
    assert batch.results(20) == [4, 15, 6]
    assert batch.counts()["succeeded"] == 3
    with client.graph("returned") as graph:
        node = graph.submit(flow_of, "chain")
        after = graph.submit(add, node)
    assert (node.result(20), after.result(20)) == (15, 16)


def test_its_error_is_the_last_ones_own(client: Client) -> None:
    """With type and report, signed for the call; what fails before the last cancels it."""
    future = client.submit(flow_of, "fails")
    with pytest.raises(ZeroDivisionError, match="no"):
        future.result(20)
    assert future.report["type"].endswith("ZeroDivisionError")
    assert "in fail" in future.report["traceback"]
    with pytest.raises(TaskCancelled):
        client.submit(flow_of, "fails early").result(20)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("group", "ends in one task, and this one in 2"),
        ("cache", "has no cache"),
        ("unique", "has no unique"),
        ("high", "has no priority"),
        ("ids", "leave out task_id"),
        ("lock", "cannot be sent"),
    ],
)
def test_what_cannot_be_a_flow_is_an_error_of_the_function(
    client: Client, what: str, words: str
) -> None:
    """It says what to do, and nothing is left behind."""
    with pytest.raises((ConfigurationError, PayloadError), match=words):
        client.submit(flow_of, what).result(20)


def test_one_of_several_calls_in_a_task_returns_none(client: Client) -> None:
    """Its task has the results of the others to give."""
    with pytest.raises(ConfigurationError, match="one of several calls"):
        list(client.map(flow_of, ["one", "one"], chunksize=2))


def test_it_waits_and_is_cancelled_like_others(client: Client) -> None:
    """While the flow goes on the call is waiting."""
    future = client.submit(flow_of, "later")
    until(lambda: future.queue.watch(future.task_id).state == "waiting", "it continues")
    (waits,) = client.broker.call(("ZRANGE", "delayed:tasks", 0, -1))
    opts = client.broker.call(("HGET", client.keys.task(waits.decode()), "opts"))
    assert json.loads(opts)["home"] == session(client).settings.home.name
    assert future.cancel()


def test_named_tasks_may_be_in_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between calls, and as the end: their results are JSON, which a signed call hands on."""
    monkeypatch.setenv("REDISTQ_SIGNING_KEY", KEY)
    handlers = {"double": lambda payload: 2 * payload}

    def with_names(last: bool) -> Any:
        parts = [sig("double", 21), sig(add)]
        return chain(*(parts[:1] if last else parts))

    with (
        TaskWorker(address=client.address, stream="names", task_handlers=handlers),
        Client(address=client.address, queue="names", signing_key=KEY, shared=True) as own,
    ):
        assert own.submit(with_names, True).result(20) == 42
        assert own.submit(with_names, False).result(20) == 43


def test_other_priorities(client: Client) -> None:
    """The flow stays in the queue of its call."""
    high = client.options(priority="high")
    assert high.submit(flow_of, "chord").result(20) == 6


def test_only_the_workers_answer_is_taken(client: Client) -> None:
    """The result of another call in its place is refused, as for any call."""
    stolen = client.submit(add, 1)
    stolen.result(20)
    future = client.submit(flow_of, "chain")
    future.result(20)
    record = client.keys.task(future.task_id)
    other = client.broker.call(("HGET", client.keys.task(stolen.task_id), "result"))
    client.broker.call(("HSET", record, "result", other))
    with pytest.raises(UntrustedPayload):
        client.future(future.task_id).result(20)
    assert session(client).signer.key is not None
