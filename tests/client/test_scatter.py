"""Values that are stored once and stand for themselves in any call; results as a stream."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.clients import KEY, gate, serving, session
from support.workers import until

from redistq import Client, ConfigurationError, PayloadError


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def total(data: Any, plus: int = 0) -> int:
    """The sum of what is given: an array, or a dict of one."""
    found = data["array"] if isinstance(data, dict) else data
    return int(found.sum()) + plus


def is_kept(client: Client, name: str) -> bool:
    """Whether the server keeps a value for somebody who needs it."""
    blob = session(client).keys.blob(name)
    return bool(client.broker.call(("EXISTS", f"{blob}:user")))


def test_a_scattered_value_is_an_argument_anywhere(client: Client) -> None:
    """Alone and inside others, in each way to call."""
    array = np.arange(100_000)
    expected = int(array.sum())
    with client.scatter(array) as data:
        assert "ndarray, 800 kB" in repr(data)
        assert client.submit(total, data).result(30) == expected
        assert client.submit(total, {"array": data}, plus=1).result(30) == expected + 1
        assert list(client.map(total, [data] * 4, range(4))) == [expected + i for i in range(4)]
        assert list(client.map(total, [data] * 4, range(4), chunksize=2))[3] == expected + 3
        assert client.map_batch(total, [data, {"array": data}]).results(30) == [expected] * 2
        lazy = client.lazy(total)
        assert lazy({"array": data}).compute() == expected
        with client.graph("of-scattered") as graph:
            first = graph.submit(total, data)
            last = graph.submit(total, {"array": data}, first)
        assert last.result(30) == 2 * expected


def test_a_frame_arrives_as_it_was(client: Client) -> None:
    """Each call has a copy of its own."""
    frame = pd.DataFrame({"x": range(30_000), "w": ["a"] * 30_000})

    def changed(df: pd.DataFrame) -> tuple[int, int]:
        first = int(df["x"].iloc[0])
        df.loc[0, "x"] = 99
        return first, len(df)

    with client.scatter(frame) as data:
        assert list(client.map(changed, [data] * 6)) == [(0, 30_000)] * 6


def test_it_is_stored_once_and_kept_while_somebody_needs_it(client: Client, tmp_path: Path) -> None:
    """A call that was sent before the release still gets it."""
    wait, go = gate(tmp_path)

    def late(data: Any, _: object) -> int:
        return int(data.sum())

    data = client.scatter(np.ones(50_000))
    again = client.scatter(np.ones(50_000))
    assert data.name == again.name
    future = client.submit(late, data, client.submit(wait))
    data.release()
    data.release()
    assert is_kept(client, again.name)
    again.release()
    assert is_kept(client, again.name)
    go()
    assert future.result(30) == 50_000
    until(lambda: not is_kept(client, data.name), "the value is dropped")


def test_a_handle_that_is_gone_is_released(client: Client) -> None:
    """With the next end of a call."""
    data = client.scatter(np.ones(50_001))
    name = data.name
    del data
    gc.collect()
    client.submit(total, np.ones(50_002)).result(30)
    until(lambda: not is_kept(client, name), "the value is dropped")


def test_what_cannot_be_taken_is_said(client: Client, url: str) -> None:
    """Released, of another client, gone from the server, in a function, or no value to send."""
    data = client.scatter(np.ones(10))
    other = Client(url, signing_key=KEY)
    with pytest.raises(ConfigurationError, match="of another client"):
        other.submit(total, data)
    other.close()
    with pytest.raises(PayloadError, match="give it as an argument"):
        client.submit(lambda: data)
    session(client).blobs.forget()
    client.broker.call(("DEL", session(client).keys.blob(data.name)))
    with pytest.raises(ConfigurationError, match="not on the server"):
        client.submit(total, data)
    data.release()
    with pytest.raises(ConfigurationError, match="scatter it again"):
        client.submit(total, [data])
    with pytest.raises(PayloadError):
        client.scatter(threading.Lock())


# -- map_stream ------------------------------------------------------------------------------------


def test_a_stream_of_results_takes_few_items_ahead(client: Client) -> None:
    """From a generator without an end; closing it ends the work."""
    taken = []

    def endless() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    results = client.map_stream(lambda n: n * n, endless(), window=10)
    for n, found in zip(range(50), results, strict=False):
        assert found == n * n
        assert len(taken) <= n + 11
    results.close()


def test_a_result_is_given_before_the_next_item_is_there(client: Client) -> None:
    """Where items come slowly, results do not wait for the window to be full."""
    given = threading.Event()
    taken = []

    def slow() -> Iterator[int]:
        for n in range(1, 1000):
            taken.append(n)
            yield n
            if given.wait(0.02):
                return

    for _ in client.map_stream(abs, slow(), window=1000):
        given.set()
    assert len(taken) < 900


def test_the_first_error_of_a_stream_ends_it(client: Client) -> None:
    """In its place; errors of the iterable are its own."""

    def inverse(n: int) -> float:
        return 1 / n

    results = client.map_stream(inverse, [1, 2, 0, 4], window=2)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(ConfigurationError, match="window"):
        client.map_stream(abs, [1], window=0)
    assert list(client.map_stream(pow, [2, 3], [3, 2])) == [8, 9]
    assert list(client.map_stream(abs, [])) == []


def test_errors_of_a_stream_are_skipped_or_given(client: Client) -> None:
    """In order or as they end, alone or in chunks: each call has an end of its own."""

    def inverse(n: int) -> float:
        return 1 / n

    items = [1, 2, 0, 4, 5]
    for chunksize in (1, 2):
        given = partial(client.map_stream, inverse, window=4, chunksize=chunksize)
        assert list(given(items, on_error="skip")) == [1, 0.5, 0.25, 0.2]
        found = list(given(items, on_error="return"))
        assert isinstance(found.pop(2), ZeroDivisionError)
        assert found == [1, 0.5, 0.25, 0.2]
        assert sorted(given(items, on_error="skip", ordered=False)) == [0.2, 0.25, 0.5, 1]
        with pytest.raises(ZeroDivisionError):
            list(given(items, ordered=False))
    with pytest.raises(ConfigurationError, match="does not fit into a window of 5"):
        client.map_stream(inverse, items, chunksize=6, window=5)
    with pytest.raises(ConfigurationError, match="on_error"):
        client.map_stream(inverse, items, on_error="ignore")
    with pytest.raises(TypeError, match=r"range\(5\)"):
        client.map_stream(inverse, 5)  # type: ignore[arg-type]


def test_results_of_a_stream_come_as_they_are_there(client: Client, tmp_path: Path) -> None:
    """A slow call holds up nothing; a timeout ends the stream, and what has not started."""
    wait, go = gate(tmp_path)

    def first_is_slow(n: int) -> int:
        if n == 0:
            wait()
        return n

    with client.map_stream(first_is_slow, range(6), ordered=False) as results:
        assert sorted(next(results) for _ in range(5)) == [1, 2, 3, 4, 5]
        go()
        assert list(results) == [0]
    for ordered in (True, False):
        results = client.map_stream(time.sleep, [0.3] * 50, timeout=0.05, ordered=ordered)
        with pytest.raises(TimeoutError, match=r"after 0\.05 s"):
            next(results)
        assert list(results) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_a_result_is_given_while_the_next_item_is_awaited(client: Client, ordered: bool) -> None:
    """An item that takes its time holds up no result; a wait that is cancelled ends no source, and
    the end of the stream does."""
    source = ""

    async def main() -> None:
        more = asyncio.Event()

        async def numbers() -> AsyncIterator[int]:
            nonlocal source
            try:
                yield 1
                yield 2
                await more.wait()
                yield 3
                await asyncio.Event().wait()
            finally:
                source = "ended"

        async with client.map_stream(abs, numbers(), ordered=ordered, timeout=20) as stream:
            assert {await anext(stream), await anext(stream)} == {1, 2}
            for last in (False, True):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.05)
                assert source == ""
                if not last:
                    more.set()
                    assert await anext(stream) == 3
        assert source == "ended"

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_stream_is_read_in_an_event_loop(client: Client) -> None:
    """Of items that come with await, too; a wait that is cancelled takes nothing away."""

    async def numbers() -> AsyncIterator[int]:
        for n in range(20):
            yield n
            await asyncio.sleep(0)

    async def main() -> None:
        for ordered in (True, False):
            stream = client.map_stream(pow, numbers(), [2] * 15, window=4, ordered=ordered)
            assert sorted([found async for found in stream]) == [n * n for n in range(15)]
        slow = client.map_stream(time.sleep, [0.3], timeout=30)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(slow), 0.01)
        assert await anext(slow) is None
        async with client.map_stream(time.sleep, [0.3] * 9, timeout=0.05) as late:
            with pytest.raises(TimeoutError, match=r"after 0\.05 s"):
                await anext(late)

    asyncio.run(main())
    with pytest.raises(TypeError, match="async for"):
        next(client.map_stream(abs, numbers()))
