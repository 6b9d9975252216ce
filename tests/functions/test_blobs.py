"""How long functions and large arguments stay on the server: while somebody needs them."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from support.clients import KEY, gate, serving, session
from support.workers import until

from redistq import Client, compute
from redistq.client import growth, lazy
from redistq.functions import blobs
from redistq.functions.blobs import BLOB_TTL_S, BRIEF_S, DEAD_TTL_S, LARGE
from redistq.protocol.plain_commands import read_info
from redistq.worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def array() -> Any:
    return numpy.frombuffer(os.urandom(2 * LARGE), dtype="uint8")


def nth(data: Any, n: int) -> int:
    return int(data[n])


def seconds(client: Client) -> list[int]:
    """How long each function and argument is still kept."""
    keys = client.broker.call(("KEYS", "blob:*"))
    stored = [key for key in keys if not key.endswith(b":user")]
    return sorted(client.broker.call(("TTL", key)) for key in stored)


@pytest.fixture
def clean(client: Client) -> Client:
    """The client, with nothing of earlier calls on its server."""
    for key in client.broker.call(("KEYS", "blob:*")):
        client.broker.call(("UNLINK", key))
    session(client).blobs.forget()
    return client


WAYS: dict[str, Callable[[Client, Any], Any]] = {
    "submit": lambda c, x: c.submit(len, x).result(20),
    "submit, in a dict": lambda c, x: c.submit(len, {"x": x}).result(20),
    "by name": lambda c, x: c.submit(lambda *, data: len(data), data=x).result(20),
    "map": lambda c, x: list(c.map(lambda one, n: n, [x] * 5, range(5))),
    "map in chunks": lambda c, x: list(c.map(lambda one, n: n, [x] * 5, range(5), chunksize=2)),
    "a batch": lambda c, x: c.map_batch(len, [x, x, [x]]).results(),
    "a frame": lambda c, x: c.map_frame(
        lambda part: part.head(1), pandas.DataFrame({"x": x}), chunks=1
    ),
    "cached": lambda c, x: c.options(cache=60).submit(len, x).result(20),
    "computed together": lambda c, x: compute([c.lazy(nth)(x, n) for n in range(5)], timeout=20),
}


def large_ones(client: Client) -> dict[bytes, int]:
    """For how many seconds each large function and argument is still kept."""
    keys = client.broker.call(("KEYS", "blob:*"))
    large = [key for key in keys if client.broker.call(("STRLEN", key)) >= LARGE]
    return {key: client.broker.call(("TTL", key)) for key in large}


@pytest.mark.parametrize("way", WAYS)
def test_arguments_of_finished_calls_leave_at_once(clean: Client, way: str) -> None:
    """Once the results are here; what a small function needs may stay, it costs nothing."""
    WAYS[way](clean, array())
    assert large_ones(clean) == {}


@pytest.mark.parametrize("way", ["submit", "a batch"])
def test_what_is_dear_to_send_again_is_kept_briefly(
    clean: Client, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument of many megabytes, of calls that are done."""
    monkeypatch.setattr(blobs, "DEAR", LARGE)
    WAYS[way](clean, array())
    left = large_ones(clean).values()
    assert left
    assert max(left) <= BRIEF_S


def test_what_is_put_a_second_time_is_not_sent_a_third(clean: Client) -> None:
    """One call after another takes the same array: it is kept for the next."""
    x = array()
    before = clean.broker.call(("INFO", "stats"))
    for _ in range(8):
        assert clean.submit(len, x).result(20) == 2 * LARGE
    after = clean.broker.call(("INFO", "stats"))
    received = [read_info(info)["total_net_input_bytes"] for info in (before, after)]
    assert 2 * len(x) < int(received[1]) - int(received[0]) < 3 * len(x)
    assert [left <= BRIEF_S for left in large_ones(clean).values()] == [True]


def test_what_is_needed_no_more_goes_while_others_are_needed(clean: Client, tmp_path: Path) -> None:
    """Drops wait for each other while calls end, but not for a call that takes long."""
    wait_for_it, let_go = gate(tmp_path)
    slow = clean.submit(lambda x: wait_for_it() and len(x), array())
    assert clean.submit(len, array()).result(20) == 2 * LARGE
    until(lambda: len(large_ones(clean)) == 1, "that of the call which runs")
    let_go()
    assert slow.result(20) == 2 * LARGE
    assert large_ones(clean) == {}


def test_a_closure_with_much_in_it_is_kept_for_its_next_call(clean: Client) -> None:
    """A function is not dropped with its call."""
    x = array()
    assert clean.submit(lambda: len(x)).result(20) == 2 * LARGE
    assert large_ones(clean)


def test_used_again_it_is_kept_again(clean: Client) -> None:
    """While the call waits, for a week."""
    x = array()
    assert clean.submit(len, x).result(20) == 2 * LARGE
    waiting = clean.options(delay=3600).submit(len, x)
    until(lambda: max(seconds(clean)) > BLOB_TTL_S - 60, "a week")
    assert waiting.cancel()
    until(lambda: max(seconds(clean)) <= BRIEF_S, "no need of it once it was cancelled")


def test_two_calls_with_one_argument_need_it_until_both_are_done(
    clean: Client, tmp_path: Path
) -> None:
    """The first that is done does not take it away."""
    wait_for_it, let_go = gate(tmp_path)
    x = array()
    slow = clean.submit(lambda x: wait_for_it() and len(x), x)
    assert clean.submit(len, x).result(20) == 2 * LARGE
    assert max(seconds(clean)) > BLOB_TTL_S - 60
    let_go()
    assert slow.result(20) == 2 * LARGE
    assert [left for left in seconds(clean) if left > BRIEF_S] == []


def test_the_function_of_calls_sent_together_stays_for_all(clean: Client, tmp_path: Path) -> None:
    """The first that is done does not take it away."""
    wait_for_it, let_go = gate(tmp_path)
    with clean.graph() as graph:
        done = graph.map(nth, [array(), array()], [1, 2])
        late = graph.submit(nth, [graph.submit(wait_for_it)], 0)
    assert len(compute(done, timeout=20)) == 2
    session(clean).blobs.drop_unneeded()
    assert sum(left > BLOB_TTL_S - 60 for left in seconds(clean)) >= 2, "both functions"
    let_go()
    with pytest.raises(ValueError, match="went"):
        late.compute(20)


def test_a_later_call_of_a_computation_takes_what_the_first_has_taken(
    clean: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of calls that are computed together some may be done before others are sent."""
    monkeypatch.setattr(lazy, "_PORTION", 1)
    x = array()
    calls = [clean.lazy(nth)(x, n) for n in (1, 2)]

    def one_by_one() -> Iterator[lazy.LazyCall]:
        yield calls[0]
        assert calls[0].compute(20) == x[1]
        session(clean).blobs.drop_unneeded()
        yield calls[1]

    lazy.send_all(one_by_one())
    assert calls[1].compute(20) == x[2]
    assert large_ones(clean) == {}


def test_what_a_batch_is_extended_by_outlasts_what_it_had(
    clean: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be seen to have ended just before the new items are there."""
    batch = clean.map_batch(len, [array()])
    assert batch.results(20) == [2 * LARGE]
    real = growth.grow

    def grow(*given: Any) -> Any:
        batch.look()
        return real(*given)

    monkeypatch.setattr(growth, "grow", grow)
    batch.extend([array()])
    assert batch.results(20) == [2 * LARGE] * 2
    assert large_ones(clean) == {}


def test_what_the_server_was_not_told_of_before_a_failover_stays_for_a_while(
    clean: Client,
) -> None:
    """The other server may not know of the end of the call, and make it again."""
    blobs = session(clean).blobs
    needs: list[list[str]] = [[], []]
    name, _ = (blobs.put("argument", os.urandom(LARGE), needs=each) for each in needs)
    blobs.drop(needs[0], together=True)
    assert clean.broker.call(("TTL", clean.keys.blob(name))) > BLOB_TTL_S - 60
    blobs.forget()
    blobs.drop(needs[1])
    assert 0 < clean.broker.call(("TTL", clean.keys.blob(name))) <= BRIEF_S


def test_a_client_that_is_closed_leaves_nothing_of_calls_that_are_done(clean: Client) -> None:
    """What was to be dropped with more is dropped at its end."""
    other = Client(clean.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    assert other.submit(abs, -1).result(20) == 1
    blobs = session(other).blobs
    session(other).exchange.pending.ended.set()  # nobody hears of the end of the next calls
    needs: list[list[str]] = [[], []]
    done, waits = (blobs.put("argument", os.urandom(LARGE), needs=each) for each in needs)
    blobs.drop(needs[0], together=True)
    other.close()
    left = [clean.broker.call(("EXISTS", clean.keys.blob(name))) for name in (done, waits)]
    assert left == [0, 1]


AGAIN: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "replay": (
        lambda c, fn, x: failing(c.submit(fn, x)),
        lambda _, failed: failed.replay().result(20),
    ),
    "another client": (
        lambda c, fn, x: failing(c.submit(fn, x)),
        lambda other, failed: other.future(failed.task_id).replay().result(20),
    ),
    "retry_failed": (
        lambda c, fn, x: c.map_batch(fn, [x]).wait(20),
        lambda _, batch: batch.retry_failed() and batch.results(20)[0],
    ),
    "a lazy call that takes another's result": (
        lambda c, fn, x: c.lazy(last)(c.lazy(fn)(x), x).graph().wait(20),
        lambda _, graph: graph.resume() and graph.results(20)[0],
    ),
    "a graph": (
        lambda c, fn, x: graph_of(c, fn, x).wait(20),
        lambda _, graph: graph.resume() and graph.results(20)[0],
    ),
}


def last(size: int, data: Any) -> int:
    return size if len(data) == size else 0


def graph_of(client: Client, fn: Any, x: Any) -> Any:
    with client.graph("failing") as graph:
        graph.submit(last, graph.submit(fn, x), x)
    return graph


def failing(future: Any) -> Any:
    assert isinstance(future.exception(20), LookupError)
    return future


@pytest.mark.parametrize("way", AGAIN)
def test_what_failed_is_made_again_with_its_arguments(
    clean: Client, tmp_path: Path, way: str
) -> None:
    """Calls with the same argument that succeeded before and after took nothing away."""
    path, x = tmp_path / "mended", array()

    def size(data: Any, path: str = str(path)) -> int:
        if not os.path.exists(path):
            raise LookupError
        return len(data)

    other = Client(clean.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    try:
        assert clean.submit(len, x).result(20) == 2 * LARGE
        fail, again = AGAIN[way]
        failed = fail(clean, size, x)
        for client in (clean, other):
            assert client.submit(len, x).result(20) == 2 * LARGE
        assert [left > BRIEF_S for left in large_ones(clean).values()] == [True]
        path.touch()
        assert again(other, failed) == 2 * LARGE
    finally:
        other.close()


WAITING: dict[str, Callable[[Client, Any, Any], Any]] = {
    "after another": lambda c, wait, x: c.options(after=[c.submit(wait, x)]).submit(last, 1, x),
    "takes the result of another": lambda c, wait, x: c.submit(last, c.submit(wait, x), x),
    "under a limit": lambda c, wait, x: [
        c.options(order="one").submit(wait, x),
        c.options(order="one").submit(last, 1, x),
    ][1],
}


@pytest.mark.parametrize("way", WAITING)
def test_what_waits_keeps_its_arguments(clean: Client, tmp_path: Path, way: str) -> None:
    """While others that take the same come to their ends, of this client and of another."""
    wait_for_it, let_go = gate(tmp_path)
    x = array()
    other = Client(clean.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    try:
        waiting = WAITING[way](clean, lambda data: wait_for_it() and len(data), x)
        for client in (clean, other):
            assert client.submit(len, x).result(20) == 2 * LARGE
        assert [left > BRIEF_S for left in large_ones(clean).values()] == [True]
        let_go()
        assert waiting.result(20) in (0, 2 * LARGE)
    finally:
        other.close()


def test_another_client_still_needs_it(clean: Client) -> None:
    """Whoever is not alone leaves it to the others, in whatever order they came and went."""
    x = array()
    other = Client(clean.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    try:
        waiting = other.options(delay=3600).submit(len, x)
        until(lambda: seconds(clean), "the argument")
        assert clean.submit(len, x).result(20) == 2 * LARGE
        assert max(seconds(clean)) > BLOB_TTL_S - 60
        assert waiting.cancel()
        clean.submit(len, x).result(20)
        assert max(seconds(clean)) > BLOB_TTL_S - 60, "nobody knows who else there was"
    finally:
        other.close()


def test_whoever_comes_first_after_the_last_user_may_drop_it_again(
    clean: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that runs its cell again after a restart does not leave it for a week."""
    monkeypatch.setattr(blobs, "DEAR", LARGE)
    x = array()
    clean.submit(len, x).result(20)
    other = Client(clean.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    try:
        other.submit(len, x).result(20)
        assert [left <= BRIEF_S for left in large_ones(clean).values()] == [True]
    finally:
        other.close()


def test_a_failed_call_keeps_its_arguments(clean: Client) -> None:
    """It can be run here and sent again; a batch keeps those of all its items."""
    x = array()

    def fail(x: Any) -> None:
        raise LookupError(f"{len(x)} bytes")

    future = clean.submit(fail, x)
    assert isinstance(future.exception(20), LookupError)
    batch = clean.map_batch(fail, [array(), array()])
    batch.wait(20)
    clean.submit(len, x).result(20)
    assert len([left for left in seconds(clean) if left > DEAD_TTL_S - 60]) >= 4
    assert WorkerSettings().dead_ttl == DEAD_TTL_S, "as long as the dead letters"
    assert "bytes" in str(future.replay().exception(20))
    assert not session(clean).blobs._arguments, "drops of others wait for none of them"


def test_a_client_that_closes_early_leaves_what_waits(clean: Client) -> None:
    """Its task goes on elsewhere."""
    x = array()
    other = Client(clean.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    task_id = other.options(delay=1).submit(len, x).task_id
    other.close()
    assert max(seconds(clean)) > BLOB_TTL_S - 60
    assert clean.future(task_id).result(20) == 2 * LARGE


def test_what_the_server_lost_is_stored_again(clean: Client) -> None:
    """Nobody believes that a blob which was dropped is still there."""
    x = array()
    for _ in range(3):
        assert clean.submit(len, x).result(20) == 2 * LARGE
        for key in clean.broker.call(("KEYS", "blob:*")):
            if clean.broker.call(("TTL", key)) <= BRIEF_S:
                clean.broker.call(("UNLINK", key))


@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_result_that_map_gave_is_not_kept(client: Client, chunksize: int) -> None:
    """The standard library's test_free_reference."""

    class Thing:
        pass

    kept = 0
    for thing in client.map(lambda _: Thing(), range(5), chunksize=chunksize):
        reference = weakref.ref(thing)
        del thing
        gc.collect()
        kept += reference() is not None
    assert kept == 0


def test_many_threads_share_arguments(client: Client) -> None:
    """Stored and dropped by several at once: no call misses what it needs."""
    from concurrent.futures import ThreadPoolExecutor

    arrays = [array() for _ in range(3)]

    def work(n: int) -> int:
        return int(client.submit(len, [arrays[n % 3], n]).result(30))

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(work, range(120))) == {2}
    assert not session(client).blobs._users.keys() & session(client).blobs._unneeded


def test_what_was_left_to_others_is_kept_for_its_time(clean: Client) -> None:
    """A worker that sends calls of a flow does not see when they have ended."""
    blobs = session(clean).blobs
    needs: list[str] = []
    name = blobs.put("argument", b"left", needs=needs)
    blobs.leave(needs)
    assert name not in blobs._users
    assert clean.broker.call(("TTL", clean.keys.blob(name))) > 6 * 86_400
    needs = []
    assert blobs.put("argument", b"left", needs=needs) == name
    blobs.drop(needs)
    assert clean.broker.call(("TTL", clean.keys.blob(name))) > 6 * 86_400
