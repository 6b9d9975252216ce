"""What functions yield, read by their clients: signed, of any kernel, while they run or later."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, gate, producer_of, serving
from support.workers import until

from redistq import (
    Client,
    ConfigurationError,
    ItemTooLarge,
    PayloadError,
    RedistqError,
    ResultTimeout,
    StreamRestarted,
    TaskCancelled,
    TaskFailed,
    UntrustedPayload,
    current_task,
    task,
)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with serving(2) as client:
        yield client


def numbers(total: int) -> Iterator[int]:
    yield from range(total)


async def anumbers(total: int) -> Any:
    for n in range(total):
        yield n


def slowly(total: int) -> Iterator[int]:
    for n in range(total):
        yield n
        time.sleep(0.02)


@task(name="stream-named")
def named(payload: int) -> Iterator[int]:
    yield from range(payload)


def record(client: Any, future: Any) -> dict[str, str]:
    """The record of a future's task."""
    raw = client.broker.call(("HGETALL", client.keys.task(future.task_id)))
    text = [part.decode("utf-8", "replace") for part in raw]
    return dict(zip(text[::2], text[1::2], strict=True))


# -- client.stream ------------------------------------------------------------------------------


def test_items_of_a_function(client: Any) -> None:
    """Of any kind of generator, of any objects; its result is how many there are."""

    class Own:
        def __init__(self, n: int) -> None:
            self.n = n

    def objects(total: int) -> Iterator[Any]:
        yield from (Own(n) for n in range(total))

    def iterator(total: int) -> Any:
        return map(str, range(total))

    for function in (numbers, anumbers):
        future = client.stream(function, 20_000)
        items = future.stream()
        assert [next(items) for _ in range(19_990)] == list(range(19_990))
        cursor = items.cursor
        assert list(future) == list(range(20_000))
        assert future.result(10) == 20_000
        assert list(future.stream(19_990)) == list(range(19_990, 20_000))
        assert list(client.future(future.task_id).stream(cursor)) == list(range(19_990, 20_000))
    assert [own.n for own in client.stream(objects, 3)] == [0, 1, 2]
    assert list(client.stream(iterator, 3)) == ["0", "1", "2"]
    assert list(client.stream(numbers, 0)) == []
    assert list(client.options(priority="high").stream(numbers, 3)) == [0, 1, 2]


def test_what_is_yielded_is_as_it_was_then(client: Any) -> None:
    """Though the function goes on to change it."""

    def growing(total: int) -> Iterator[list[int]]:
        values: list[int] = []
        for n in range(total):
            values.append(n)
            yield values

    assert list(client.stream(growing, 3)) == [[0], [0, 1], [0, 1, 2]]


def test_async_for(client: Any) -> None:
    """In an event loop, which goes on meanwhile; a wait that is cancelled loses nothing."""

    async def main() -> None:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        beating = asyncio.create_task(beat())
        assert [item async for item in client.stream(slowly, 20)] == list(range(20))
        assert beats > 20
        items = client.stream(slowly, 30).stream()
        seen: list[int] = []

        async def read() -> None:
            async for item in items:
                seen.append(item)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.3)
        seen += [item async for item in items]
        assert seen == list(range(30))
        with pytest.raises(ZeroDivisionError):
            _ = [item async for item in client.stream(dividing, 3)]
        beating.cancel()

    asyncio.run(main())


def dividing(total: int) -> Iterator[float]:
    for n in reversed(range(total)):
        yield 1 / n


def test_errors_are_the_functions_own(client: Any) -> None:
    """After its items; what is no generator is an error that says what to do."""
    future = client.stream(dividing, 3)
    items = future.stream()
    assert [next(items), next(items)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(items)
    with pytest.raises(ConfigurationError, match=r"takes a function that yields.*returned int"):
        list(client.stream(abs, -1))
    with pytest.raises(TypeError, match=r"client\.stream\(fn, \.\.\.\)"):
        client.stream(3)
    with pytest.raises(RedistqError, match="has no stream"):
        list(client.submit(abs, -1).stream())

    def bad(total: int) -> Iterator[Any]:
        yield 1
        yield threading.Lock() if total else b"x" * 9_000_000

    for total, kind in ((0, ItemTooLarge), (1, PayloadError)):
        with pytest.raises(kind):
            list(client.stream(bad, total))


def test_cancelling_ends_it(client: Any) -> None:
    """A function that never ends, in a thread or a loop of its own."""

    def endless() -> Iterator[int]:
        while True:
            yield 1
            time.sleep(0.001)

    async def aendless() -> Any:
        while True:
            yield 1
            await asyncio.sleep(0.001)

    for function in (endless, aendless):
        future = client.stream(function)
        items = future.stream()
        assert [next(items) for _ in range(5)] == [1] * 5
        future.cancel(running="ask")
        with pytest.raises(TaskCancelled):
            set(items)
    future = client.options(delay=600).stream(numbers, 3)
    assert future.cancel()
    with pytest.raises(TaskCancelled):
        list(future)


def test_a_wait_for_an_item_is_bounded(client: Any, tmp_path: Path) -> None:
    """By the time that is given; the item may be asked for again, from another thread too."""
    wait, let_go = gate(tmp_path)

    def held() -> Iterator[str]:
        yield "first"
        yield wait()

    items = client.stream(held).stream(timeout=0.3)
    assert next(items) == "first"
    with pytest.raises(ResultTimeout):
        next(items)

    async def main() -> None:
        with pytest.raises(ResultTimeout):
            await anext(items)
        let_go()
        assert [item async for item in items] == ["went"]

    asyncio.run(main())


def test_named_tasks(client: Any) -> None:
    """Their items are JSON, also of a future that is asked for by its id."""
    future = client.submit("stream-named", 5)
    assert list(future.stream(1)) == [1, 2, 3, 4]
    assert future.result(10) == {"items": 5}
    assert list(client.future(future.task_id).stream()) == list(range(5))
    assert list(client.stream("stream-named", 2)) == [0, 1]
    with producer_of(client) as producer:
        assert list(producer.stream(future.task_id)) == list(range(5))
        call = client.stream(numbers, 3)
        assert list(call) == [0, 1, 2]
        with pytest.raises(RedistqError, match=r"client\.future\('call-.*'\)\.stream\(\)"):
            list(producer.stream(call.task_id))


def test_a_function_goes_on_where_it_was(client: Any, tmp_path: Path) -> None:
    """By ``current_task()``; one that does not ask begins anew."""

    def going_on(path: str) -> Iterator[int]:
        context = current_task()
        for n in range(context.stream_position, 50):
            yield n
            if n == 30 and context.attempt == 1:
                raise OSError("once")

    def anew() -> Iterator[int]:
        for n in range(3):
            yield 10 * current_task().attempt + n
        if current_task().attempt == 1:
            time.sleep(0.3)
            raise OSError("once")

    client = client.options(retries=1)
    future = client.stream(going_on, str(tmp_path))
    assert list(future) == list(range(50))
    assert future.result(20) == 50
    future = client.stream(anew)
    seen = list(future.stream(restarts=True))
    assert [item for item in seen if not isinstance(item, StreamRestarted)] == [
        *(10, 11, 12, 20, 21, 22)
    ]
    assert future.result(20) == 3


def test_from_another_kernel(client: Any) -> None:
    """With the id alone, while it runs."""
    code = (
        "import sys; from redistq import Client\n"
        "with Client(sys.argv[1], signing_key=sys.argv[2]) as client:\n"
        "    print(list(client.future(sys.argv[3]).stream(10)))"
    )
    future = client.stream(slowly, 30)
    args = (client.address.url, KEY, future.task_id)
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == str(list(range(10, 30))), done.stderr


def test_items_that_others_wrote_are_refused(client: Any) -> None:
    """Each chunk is signed for its place: it is good at no other, and nothing else is."""
    future = client.stream(numbers, 100_000)
    assert sum(1 for _ in future) == 100_000
    key = client.keys.items(future.task_id)
    entries = client.broker.call(("XRANGE", key, "-", "+"))
    first, second = entries[0][1][5], entries[1][1][5]
    for body in (second, b"[1]", b"\0rq2\0" + first[37:], first[:-1] + b"x"):
        client.broker.call(("DEL", key))
        client.broker.call(("XADD", key, entries[0][0], "n", "100000", "to", "9", "body", body))
        with pytest.raises(UntrustedPayload):
            list(future.stream())
    with (
        Client(client.address.url, signing_key="another key of somebody") as other,
        pytest.raises((UntrustedPayload, TaskFailed)),
    ):
        list(other.future(future.task_id).stream())


def test_a_cached_stream(client: Any) -> None:
    """It is another call than the one whose result is the list."""
    cached = client.options(cache="1h")
    assert cached.submit(numbers, 7).result(10) == list(range(7))
    for _ in range(2):
        future = cached.stream(numbers, 7)
        assert list(future) == list(range(7))
        assert future.result(10) == 7


# -- client.submit --------------------------------------------------------------------------------


def test_a_submitted_generator_has_its_list_and_a_stream(client: Any) -> None:
    """The result is what it was; who reads has items before, from whichever place they come."""
    for function in (numbers, anumbers):
        future = client.submit(function, 100)
        assert future.result(10) == list(range(100))
        assert list(future.stream(90)) == list(range(90, 100))
        assert list(future.stream(200)) == []
    future = client.submit(slowly, 60)
    items = future.stream()
    seen = [next(items)]
    assert not future.done()
    seen += items
    assert seen == list(range(60))
    assert future.result(10) == list(range(60))
    assert int(record(client, future)["items"].split()[1]) > 10


def test_without_a_reader_nothing_of_it_is_written(client: Any) -> None:
    """A call that nobody reads costs the server nothing more."""
    future = client.submit(slowly, 20)
    assert future.result(10) == list(range(20))
    assert not {"items", "items_read"} & record(client, future).keys()
    assert client.broker.call(("EXISTS", client.keys.items(future.task_id))) == 0


def test_a_submitted_generator_that_fails(client: Any) -> None:
    """Its items come before its error, where somebody reads."""

    def fails(pause: float) -> Iterator[int]:
        yield from range(10)
        time.sleep(pause)
        raise ValueError("at last")

    for pause in (0.1, 0.6):
        items = client.submit(fails, pause).stream()
        seen: list[int] = []
        with pytest.raises(ValueError, match="at last"):
            seen.extend(items)
        assert seen == list(range(10))


def test_items_that_cannot_be_sent_alone_are_in_the_result(client: Any) -> None:
    """A large one ends the streaming, not the call; the rest comes with the result."""

    def large(pause: float) -> Iterator[Any]:
        yield "small"
        time.sleep(pause)
        yield b"x" * 9_000_000
        time.sleep(pause)
        yield "last"

    future = client.submit(large, 0.4)
    assert [len(item) for item in future.stream()] == [5, 9_000_000, 4]


def test_another_attempt_of_a_submitted_generator(client: Any, tmp_path: Path) -> None:
    """Who read items of the first hears that it began anew; the result is the second's."""

    def flaky(pause: float) -> Iterator[int]:
        for n in range(5):
            yield 10 * current_task().attempt + n
        if current_task().attempt == 1:
            time.sleep(pause)
            raise OSError("once")

    future = client.options(retries=1).submit(flaky, 0.6)
    strict, told = future.stream(), future.stream(restarts=True)
    for items in (strict, told):
        assert [next(items) for _ in range(5)] == [10, 11, 12, 13, 14]
    with pytest.raises(StreamRestarted):
        next(strict)
    marker, *rest = told
    assert isinstance(marker, StreamRestarted)
    assert rest == [20, 21, 22, 23, 24] == future.result(20) == list(future.stream())


def test_maps_are_as_they_were(client: Any) -> None:
    """Generators in a map or a batch come back as lists."""
    assert list(client.map(numbers, [1, 2])) == [[0], [0, 1]]
    assert list(client.map(numbers, [1, 2], chunksize=2)) == [[0], [0, 1]]
    assert client.map_batch(numbers, [1, 2], progress=False).results(20) == [[0], [0, 1]]


def test_a_killed_worker_process(client: Any, tmp_path: Path) -> None:
    """The next attempt goes on after what is there: no gap, no repeat."""

    def dies(path: str) -> Iterator[int]:
        import os

        context = current_task()
        for n in range(context.stream_position, 200):
            yield n
            if n == 100 and context.recovered == 0:
                until_there = Path(path)
                until_there.touch()
                time.sleep(0.3)
                os.kill(os.getpid(), 9)

    future = client.stream(dies, str(tmp_path / "there"))
    assert list(future) == list(range(200))
    until(lambda: (tmp_path / "there").exists(), "it was killed")
    assert future.result(20) == 200
