"""Tasks that submit tasks and wait for them: a slot that waits is lent, so that no pool starves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import serving
from support.workers import until

from redistq import Client, RedistqError, TaskProducer, TaskWorker, slots
from redistq.handlers import Registry


@pytest.fixture(scope="module")
def single() -> Iterator[Client]:
    """A client with one worker process of one thread."""
    with serving(1) as client:
        yield client


def inside(url: str, wait: Callable[[Any, Any], Any]) -> Callable[[int], int]:
    """A function that calls itself by tasks, as deep as it is told, and waits in some way."""

    def deep(n: int) -> int:
        import redistq

        if n == 0:
            return 0
        client = redistq.Client(url, signing_key="a signing key for tests only")
        try:
            return 1 + wait(client, (deep, n - 1))
        finally:
            client.close()

    return deep


def by_result(client: Any, call: Any) -> Any:
    return client.submit(*call).result()


def by_timeout(client: Any, call: Any) -> Any:
    return client.submit(*call).result(60)


def by_exception(client: Any, call: Any) -> Any:
    future = client.submit(*call)
    assert future.exception() is None
    return future.result()


def by_map(client: Any, call: Any) -> Any:
    return list(client.map(call[0], [call[1]] * 2))[1]


def by_wait(client: Any, call: Any) -> Any:
    import concurrent.futures

    future = client.submit(*call)
    concurrent.futures.wait([future])
    return future.result()


def by_as_completed(client: Any, call: Any) -> Any:
    import concurrent.futures

    futures = [client.submit(*call) for _ in range(2)]
    return [future.result() for future in concurrent.futures.as_completed(futures)][1]


def by_batch(client: Any, call: Any) -> Any:
    return client.map_batch(call[0], [call[1]] * 2).results()[1]


def by_await(client: Any, call: Any) -> Any:
    import asyncio

    async def main() -> Any:
        return await asyncio.gather(client.submit(*call), client.submit(*call))

    return asyncio.run(main())[1]


def by_shutdown(client: Any, call: Any) -> Any:
    future = client.submit(*call)
    client.shutdown()
    return future.result()


def by_threads(client: Any, call: Any) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: client.submit(*call).result(), range(2)))[1]


WAYS = [
    *(by_result, by_timeout, by_exception, by_map, by_wait, by_as_completed, by_batch),
    *(by_await, by_shutdown, by_threads),
]


@pytest.mark.parametrize("way", WAYS)
def test_a_task_may_wait_for_its_own_tasks(single: Client, way: Any) -> None:
    """Three deep on one slot, however it waits; afterwards the process runs one at a time again."""
    deep = inside(single.server.url, way)  # type: ignore[attr-defined]
    assert single.submit(deep, 3).result(30) == 3


def test_slots_come_back(single: Client, tmp_path: Path) -> None:
    """After tasks that waited, no more run at a time than there are threads."""
    url = single.server.url  # type: ignore[attr-defined]

    def parent(n: int) -> int:
        import redistq

        client = redistq.Client(url, signing_key="a signing key for tests only")
        try:
            return sum(client.submit(abs, -n).result() for _ in range(20))
        finally:
            client.close()

    assert list(single.map(parent, [1, 2, 3])) == [20, 40, 60]

    def alone(n: int) -> int:
        import os
        import time

        path = str(tmp_path / "running")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # fails while another runs
        time.sleep(0.02)
        os.unlink(path)
        return n

    assert list(single.map(alone, range(20))) == list(range(20))


def test_too_many_waits_fail_in_words(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no slot left to lend, the wait ends at once with an error that says what to do."""
    monkeypatch.setattr(slots, "MOST", 3)

    registry = Registry()

    @registry.task(retries=0)
    def chain(n: int) -> int:
        with TaskProducer(url=url) as producer:
            return 1 + producer.get_result(producer.add_task("chain", n - 1)) if n else 0

    with (
        TaskWorker(url=url, task_handlers=registry, thread_count=1),
        TaskProducer(url=url) as producer,
    ):
        assert producer.get_result(producer.add_task("chain", 3), timeout=20) == 3
        with pytest.raises(RedistqError, match=r"no slot left: .* start more worker processes"):
            producer.get_result(producer.add_task("chain", 4), timeout=20)
        assert producer.get_result(producer.add_task("chain", 2), timeout=20) == 2


def test_without_a_thread_for_it_a_slot_is_not_lent(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started, a task that waits keeps its slot and goes on without."""
    start, refused = threading.Thread.start, []

    def no_more(thread: threading.Thread) -> None:
        if thread.name.startswith("redistq-run-") and refuse.is_set():
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    refuse = threading.Event()
    monkeypatch.setattr(threading.Thread, "start", no_more)
    registry = Registry()

    @registry.task(retries=0)
    def parent(n: int) -> int:
        with TaskProducer(url=url) as producer:
            return 1 + producer.get_result(producer.add_task("child", n), timeout=20)

    @registry.task(retries=0)
    def child(n: int) -> int:
        return n

    with (
        TaskWorker(url=url, task_handlers=registry, thread_count=2),
        TaskProducer(url=url) as producer,
    ):
        refuse.set()
        assert [
            producer.get_result(producer.add_task("parent", n), timeout=20) for n in range(3)
        ] == [1, 2, 3]
        assert refused
        refuse.clear()
        assert producer.get_result(producer.add_task("parent", 5), timeout=20) == 6


def test_a_time_limit_strikes_while_a_task_waits(single: Client) -> None:
    """A parent with a time limit is ended by it, not with its whole process."""
    url = single.server.url  # type: ignore[attr-defined]

    def parent() -> str:
        import os

        import redistq

        client = redistq.Client(url, queue="nobody", signing_key="a signing key for tests only")
        try:
            client.submit(abs, -1).result()
        except redistq.TimeLimitExceeded:
            return str(os.getpid())
        finally:
            client.close()
        return "the wait ended"

    before = single.submit(os.getpid).result(20)
    assert single.options(timeout=1).submit(parent).result(20) == str(before)


def test_a_task_may_wait_for_one_that_timed_out(single: Client) -> None:
    """The child's own TimeoutError is its error, not the end of the wait's time."""
    url = single.server.url  # type: ignore[attr-defined]

    def child() -> None:
        raise TimeoutError("of its own")

    def parent() -> str:
        import redistq

        client = redistq.Client(url, signing_key="a signing key for tests only")
        try:
            return str(client.submit(child).exception(10))
        finally:
            client.close()

    assert single.submit(parent).result(20) == "of its own"


def test_a_stop_does_not_wait_for_what_waits(url: str, tmp_path: Path) -> None:
    """Stopped while a task waits for another that cannot come: within the time given, and the task
    goes back."""
    started = threading.Event()

    def parent(_: Any) -> None:
        with TaskProducer(url=url, stream="nobody") as producer:
            started.set()
            producer.get_result(producer.add_task("x"))

    worker = TaskWorker(url=url, task_handlers={"parent": parent}, thread_count=1).start()
    with TaskProducer(url=url) as producer:
        task_id = producer.add_task("parent")
        assert started.wait(20)
        assert worker.stop(0.5) is False
        until(lambda: producer.get_task(task_id).state == "queued", "the task to be back")
        with TaskProducer(url=url, stream="nobody") as other:  # lets the thread end
            child = other.broker.call(("XRANGE", "nobody", "-", "+"))[0][1][1].decode()
            other.cancel(child)
