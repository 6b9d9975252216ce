"""Results that waiting calls need are read together, before these start: what is read, and by whom.

The worker has one thread and reads calls that wait in a paused queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import numpy
import pytest
from support.clients import KEY, asked, producer_of, serving
from support.workers import until

from redistq import Client, TaskFuture, UntrustedPayload
from redistq.functions import ahead
from redistq.functions.ahead import Lookahead
from redistq.functions.references import Reference
from redistq.functions.results import SMALL, ResultReader
from redistq.functions.signing import Signer, task_context


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with one worker of one thread."""
    with serving(1) as client:
        yield client


def append(parts: list[Any], more: Any) -> list[Any]:
    """What changes its argument, which is its own."""
    parts.append(more)
    return parts


def held_up(client: Client, calls: list[tuple[Any, ...]]) -> list[TaskFuture]:
    """Submit calls of ``append`` that the worker reads all at once."""
    for _ in range(20):  # it knows how short they are
        client.submit(append, client.submit(list), 0).result(20)
    with producer_of(client) as producer:
        producer.pause()
        until(lambda: wait([client.submit(list)], 0.1).not_done, "the worker has heard of it")
        futures = [client.submit(append, *args) for args in calls]
        length = ("XLEN", client.keys.stream)
        until(lambda: client.broker.call(length) > len(calls), "they are there")
        producer.resume()
    return futures


def test_many_are_read_together_and_each_has_its_own(client: Client) -> None:
    """One that changes what it was given changes no other's."""
    parents = [client.submit(list, "ab") for _ in range(5)]
    for parent in parents:
        parent.result(20)
    before = asked(client, "hstrlen")
    futures = held_up(client, [(parents[i % 5], i) for i in range(60)])
    assert [future.result(20) for future in futures] == [["a", "b", i] for i in range(60)]
    assert asked(client, "hstrlen") > before


def test_a_lone_call_reads_only_its_own(client: Client) -> None:
    """Nobody waits behind it: it asks for no sizes first."""
    first = client.submit(list, "ab")
    first.result(20)
    before = asked(client, "hstrlen")
    assert client.submit(append, first, 1).result(20) == ["a", "b", 1]
    assert asked(client, "hstrlen") == before


def test_large_results_and_those_that_unpack_large_are_read_by_their_own_task(
    client: Client,
) -> None:
    """A worker's memory does not fill with what no task uses yet."""
    large = client.submit(lambda: [numpy.random.default_rng(1).bytes(2 * SMALL)])
    zeros = client.submit(lambda: [bytes(20 * SMALL)])
    sizes = [len(large.result(20)[0]), len(zeros.result(20)[0])]
    futures = held_up(client, [(large, 1), (zeros, 2)] * 10)
    found = [(len(future.result(20)[0]), future.result(20)[1]) for future in futures]
    assert found == [(sizes[0], 1), (sizes[1], 2)] * 10


def test_a_forged_result_is_refused_and_only_there(client: Client) -> None:
    """What is read ahead is checked as what a task reads itself."""
    good, other = client.submit(list, "ab"), client.submit(list, "cd")
    assert (good.result(20), other.result(20)) == (["a", "b"], ["c", "d"])
    records = [client.keys.task(future.task_id) for future in (good, other)]
    stolen = client.broker.call(("HGET", records[0], "result"))
    client.broker.call(("HSET", records[1], "result", stolen))
    futures = held_up(client, [(other, 1)] + [(good, i) for i in range(20)])
    with pytest.raises(UntrustedPayload):
        futures[0].result(20)
    assert [future.result(20)[-1] for future in futures[1:]] == list(range(20))


def test_what_unpacks_large_is_left_alone() -> None:
    """However small it is on the server."""
    signer = Signer(KEY.encode())
    reference = Reference("call", "normal", "call-1")
    context = task_context("tasks", "call-1")

    class Stored(ResultReader):
        packet = b""

        def read_small(self, references: Any, most: int) -> dict[Reference, bytes]:
            return dict.fromkeys(references, self.packet)

    reader = Stored(None, "tasks", signer)  # type: ignore[arg-type]
    lookahead = Lookahead(signer, lambda: ())
    cases: list[tuple[bytes, dict[Reference, bytes]]] = [(b"x", {reference: b"x"})]
    for data, found in [*cases, (bytes(20 * SMALL), {})]:
        reader.packet = signer.pack("result", context, data)
        assert len(reader.packet) < SMALL
        assert lookahead._read(reader, [reference]) == found


def test_bounds_of_what_is_held() -> None:
    """What is read ahead is little beside a worker's memory."""
    assert ahead.MOST_BYTES <= 4 * 1024 * 1024
    assert ahead.MOST_CALLS <= ahead.MOST_RESULTS <= 1_000
