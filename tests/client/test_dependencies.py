"""Futures and batches as arguments: a call waits for what it needs, and takes results by reference.

What crosses to this process is looked at on the server and in the future itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, gate, serving, session
from support.servers import Server
from support.workers import until

from redistq import Client, ConfigurationError, PayloadError, RedistqError, TaskCancelled
from redistq.client import futures as futures_module
from redistq.client.futures import LATER
from redistq.client.settling import mark_cancelled
from redistq.flows import chain, chord, group, map_reduce, sig
from redistq.functions.fingerprint import fingerprint


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def fail(message: str = "no") -> None:
    raise ValueError(message)


# -- results by reference ------------------------------------------------------------------------


def test_a_future_is_an_argument(client: Client) -> None:
    """Positional or by keyword: the call gets the result."""
    first = client.submit(add, 1)
    assert client.submit(add, first, b=first).result(10) == 4


def test_a_future_stands_anywhere_in_the_arguments(client: Client) -> None:
    """In lists, tuples, sets of attributes, dicts and their keys, however deep."""

    class Holder:
        def __init__(self, value: Any) -> None:
            self.value = value

    def look(deep: Any, held: Holder) -> list[Any]:
        ((key, (inner,)),) = deep["x"][0].items()
        return [key, inner["y"], held.value]

    one, two = client.submit(add, 1), client.submit(add, 2)
    deep = {"x": [{one: ({"y": two},)}]}
    assert client.submit(look, deep, Holder(one)).result(10) == [2, 3, 2]


def test_the_same_future_twice_is_one_object(client: Client) -> None:
    """A result is read once for a task, as an object that occurs twice in a pickle is one."""
    one = client.submit(list, "ab")
    assert client.submit(lambda a, b: a is b[0], one, [one]).result(10)


def test_a_large_argument_may_hold_a_future(client: Client) -> None:
    """An argument that is stored apart, for its size, holds futures as any other."""
    parts = [b"x" * 200_000, client.submit(add, 1)]
    assert client.submit(lambda p: (len(p[0]), p[1]), parts).result(10) == (200_000, 2)


def test_a_call_waits_for_what_it_needs(client: Client, tmp_path: Path) -> None:
    """It does not run before, and runs at once when the other has ended."""
    wait_for_it, go = gate(tmp_path)
    slow = client.submit(wait_for_it)
    child = client.submit(str.upper, slow)
    found = until(lambda: child.queue.watch(child.task_id).state == "waiting", "it waits")
    assert found
    assert not child.running()
    go()
    assert child.result(10) == "WENT"


def test_a_long_chain(client: Client) -> None:
    """Hundreds of calls, each with the result of the one before, sent while none has ended."""
    last = client.submit(add, 0)
    for _ in range(300):
        last = client.submit(add, last)
    assert last.result(30) == 301


def test_map_over_futures(client: Client) -> None:
    """``map`` and ``map_batch`` take futures as items, in chunks too."""
    ones = [client.submit(add, i) for i in range(10)]
    assert list(client.map(add, ones, ones)) == [2 * i + 2 for i in range(10)]
    assert list(client.map(add, ones, chunksize=4)) == [i + 2 for i in range(10)]
    batch = client.map_batch(add, ones, progress=False)
    assert batch.results(10) == [i + 2 for i in range(10)]


def test_a_batch_as_an_argument_is_the_list_of_its_results(client: Client) -> None:
    """As an argument, and by ``then``."""
    batch = client.map_batch(add, range(250), progress=False)
    assert client.submit(sum, batch).result(20) == sum(range(1, 251))
    assert batch.then(lambda found, more: len(found) + more, 1).result(20) == 251


def test_no_large_result_passes_through_this_process(client: Client) -> None:
    """A large result that another call needs stays on the server, until it is asked for."""
    big = client.submit(bytes, 5_000_000)
    small = client.submit(len, big)
    assert small.result(10) == 5_000_000
    until(big.done, "the large one has ended")
    assert big._result is LATER
    assert big.state == "succeeded"
    assert "on the server" in big._repr_html_()
    assert len(big.result(10)) == 5_000_000
    assert len(asyncio.run(_awaited(client.submit(bytes, 1_000_000)))) == 1_000_000


async def _awaited(future: Any) -> Any:
    return await future


def test_a_parent_that_has_ended_long_ago_is_taken_along(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record may be gone; its result is here."""
    one = client.submit(add, 1)
    assert one.result(10) == 2
    client.broker.call(("UNLINK", client.keys.task(one.task_id)))
    monkeypatch.setattr(futures_module, "SURELY_KEPT_S", -1.0)
    assert client.submit(add, one).result(10) == 3


def test_a_parent_that_nobody_knows_is_an_error(client: Client) -> None:
    """A parent whose record is gone: the future has an error that names it, and nothing hangs."""
    one = client.submit(add, 1)
    assert one.result(10) == 2
    client.broker.call(("UNLINK", client.keys.task(one.task_id)))
    with pytest.raises(RedistqError, match=one.task_id):
        client.submit(add, one).result(10)


# -- parents that fail -----------------------------------------------------------------------------


def test_a_call_whose_parent_fails_never_runs(client: Client) -> None:
    """Its error names the parent and what it failed of; so does that of what depends on it in
    turn."""
    bad = client.submit(fail, "why not")
    child = client.submit(add, bad)
    grandchild = client.submit(add, child)
    for future in (child, grandchild):
        with pytest.raises(TaskCancelled) as caught:
            future.result(10)
        assert isinstance(caught.value, CancelledError)
        assert bad.task_id in str(caught.value)
        assert "ValueError: why not" in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)
        assert future.state == "cancelled"
        assert future.done()
    assert child.task_id in str(caught.value)
    with pytest.raises(TaskCancelled):
        asyncio.run(_awaited(client.submit(add, bad)))


def test_a_parent_that_has_failed_already(client: Client) -> None:
    """The same error as when it fails later."""
    bad = client.submit(fail)
    assert bad.exception(10) is not None
    with pytest.raises(TaskCancelled, match=f"parent {bad.task_id} failed: ValueError: no"):
        client.submit(add, bad).result(10)


def test_a_parent_that_is_cancelled(client: Client, tmp_path: Path) -> None:
    """Cancelling what waits cancels what depends on it."""
    wait_for_it, go = gate(tmp_path)
    slow = client.submit(wait_for_it)
    middle = client.submit(str.upper, slow)
    last = client.submit(str.lower, middle)
    assert middle.cancel()
    with pytest.raises(TaskCancelled, match=f"parent {middle.task_id} cancelled"):
        last.result(10)
    go()
    assert slow.result(10) == "went"


def test_a_parent_that_was_never_sent(client: Client) -> None:
    """Cancelled before it was sent, it cancels what depends on it as any other."""
    sender = session(client).exchange.sender
    assert client.submit(add, 0).result(10) == 1
    with sender._sending:  # whatever is submitted now waits in the outbox
        one = client.submit(add, 1)
        two = client.submit(add, one)
        assert session(client).exchange.pending.ids()
        taken = sender._withdrawn({one.task_id: one})
    assert taken == [one]
    mark_cancelled(one)
    sender.flush(patient=True)
    with pytest.raises(TaskCancelled, match=f"parent {one.task_id} cancelled"):
        two.result(10)


def test_many_that_depend_on_one_failure(client: Client) -> None:
    """Each is told, and the server is not asked for each."""
    bad = client.submit(fail)
    children = [client.submit(add, bad) for _ in range(300)]
    errors = [child.exception(20) for child in children]
    assert all("ValueError: no" in str(error) for error in errors)


# -- futures of others -----------------------------------------------------------------------------


def test_futures_of_another_client_and_priority(client: Client) -> None:
    """What is on the same queue may depend on one another, whoever sent it, at any priority."""
    with Client(address=client.address, signing_key=KEY) as other:
        one = other.submit(add, 1)
        high = other.options(priority="high").submit(add, one)
        low = client.options(priority="low").submit(add, high)
        again = client.future(one.task_id)
        assert client.submit(add, low, again).result(10) == 6


def test_a_future_of_another_server_or_queue_is_refused(client: Client) -> None:
    """At the call, in words that say where each is."""
    other = Client(address=client.address, signing_key=KEY, queue="elsewhere")
    with pytest.raises(ConfigurationError, match="elsewhere"):
        client.submit(add, other.submit(add, 1))
    other.close()
    with Server() as server:
        other = Client(server.url, signing_key=KEY)
        with pytest.raises(ConfigurationError, match=r"future\.result\(\)"):
            client.submit(add, other.submit(add, 1))
        other.close()


def test_a_future_in_a_function_or_a_result_is_refused(client: Client) -> None:
    """Only in arguments is there somebody who puts the result in."""
    one = client.submit(add, 1)
    with pytest.raises(PayloadError, match="give it as an argument"):
        client.submit(lambda: one)
    address, queue = client.address.url, client.keys.stream

    def answer() -> Any:
        from redistq import Client

        inner = Client(address, queue=queue, signing_key="a signing key for tests only")
        try:
            return inner.submit(abs, -1)
        finally:
            inner.close()

    with pytest.raises(PayloadError, match="give it as an argument"):
        client.submit(answer).result(20)


def test_what_cannot_be_sent_is_named_beside_a_future(client: Client) -> None:
    """The future is not blamed for another argument."""
    import threading

    with pytest.raises(PayloadError, match="lock"):
        client.submit(add, client.submit(add, 1), threading.Lock())


def test_a_cached_call_is_named_by_its_parents(client: Client) -> None:
    """The same parent is the same call; another parent is another."""
    cached = client.options(cache=600)
    one = cached.submit(add, 1)
    two = cached.submit(add, one)
    assert cached.submit(add, cached.submit(add, 1)).task_id == two.task_id
    assert cached.submit(add, cached.submit(add, 2)).task_id != two.task_id
    assert two.result(10) == 3
    assert fingerprint(add, (one,), {}) == fingerprint(add, (client.future(one.task_id),), {})


def test_rerun_here_reads_the_results(client: Client) -> None:
    """A failed call is made here with what it was given there."""

    def divide(a: int, b: int) -> float:
        return a / b

    bad = client.submit(divide, 1, client.submit(add, -1))
    assert isinstance(bad.exception(10), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        bad.rerun_here()


def test_nothing_is_left_of_what_depended(client: Client) -> None:
    """When all has ended no edge is left, and a parent's record expires as it would have."""
    one = client.submit(add, 1)
    children = [client.submit(add, one) for _ in range(20)]
    assert [child.result(10) for child in children] == [3] * 20
    key = client.keys.task(one.task_id)
    until(lambda: client.broker.call(("TTL", key)) > 0, "the parent's record expires")
    assert client.broker.call(("KEYS", "dependants:*")) == []
    assert client.broker.call(("HEXISTS", key, "readers")) == 0


# -- flows -----------------------------------------------------------------------------------------


def test_flows_of_functions(client: Client) -> None:
    """Each function takes the result of what comes before it as its last argument."""
    assert client.run(chain(sig(add, 1), sig(add, 5), add)).result(10) == 8
    assert client.run(chord([sig(add, 1), sig(add, 2)], sum)).result(10) == 5
    assert client.run(map_reduce(add, range(50), sum, fan_in=4)).result(20) == sum(range(1, 51))
    both = client.run(chain(sig(add, 1), group(sig(add, 10), sig(add, 20))))
    assert [future.result(10) for future in both] == [12, 22]


def test_session_is_held_no_longer_than_needed(client: Client) -> None:
    """Futures that have ended hold nothing of their parents."""
    one = client.submit(bytes, 10)
    two = client.submit(len, one)
    assert two.result(10) == 10
    assert two._held is None
    assert one.result(10) == bytes(10)
    assert len(session(client).exchange.pending) == 0
