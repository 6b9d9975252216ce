"""What handlers yield: it comes to readers at once, whole and in order, whatever ends early."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import Proxy, processor_of, until

from redistq import (
    AsyncTaskProducer,
    ConfigurationError,
    ItemsGone,
    ItemTooLarge,
    RedistqError,
    ResultTimeout,
    Retry,
    StreamRestarted,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    UnknownTask,
)
from redistq.worker import item_writer, streaming

MB = 1024 * 1024


def numbers(payload: int) -> Iterator[int]:
    """So many numbers."""
    yield from range(payload)


async def anumbers(payload: int) -> AsyncIterator[int]:
    """The same, in the event loop, which waits for nothing."""
    for n in range(payload):
        yield n


def wraps(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as users write them."""

    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


class Numbers:
    """A handler that is an object."""

    def __call__(self, payload: int, context: TaskContext) -> Iterator[int]:
        yield from range(payload)


class Gate:
    """A handler that yields as far as it is let."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.yielded = 0
        self.ends: list[str] = []

    def handler(self, payload: int) -> Iterator[int]:
        """Yields numbers, one for each step that it is given."""
        try:
            for n in range(payload):
                while not self.steps.acquire(timeout=0.01):
                    pass
                yield n
                self.yielded += 1
        finally:
            self.ends.append("tidied up")

    def let(self, count: int) -> None:
        """Give it so many more steps."""
        self.steps.release(count)


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def serve(url: str) -> Iterator[Callable[..., TaskWorker]]:
    """Starts workers in this process."""
    workers: list[TaskWorker] = []

    def start(**handlers: Any) -> TaskWorker:
        options = handlers.pop("options", {})
        worker = TaskWorker(url=url, task_handlers=handlers, **options)
        workers.append(worker)
        return worker.start()

    yield start
    for worker in workers:
        worker.stop()


# -- items come --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handler",
    [numbers, anumbers, wraps(numbers), wraps(anumbers), Numbers()],
    ids=["function", "async", "decorated", "async decorated", "object"],
)
def test_items_come_whole_and_in_order(
    producer: TaskProducer, serve: Callable[..., TaskWorker], handler: Any
) -> None:
    """From any index, as often as one likes; the result says how many there were."""
    serve(job=handler)
    for total in (0, 1, 30_000):
        task = producer.add_task("job", total)
        assert list(producer.stream(task)) == list(range(total))
        assert producer.get_result(task, 10) == {"items": total}
        assert list(producer.stream(task, total // 2)) == list(range(total // 2, total))
        assert list(producer.stream(task, total + 5)) == []


def test_a_plain_handler_is_as_it_was(
    producer: TaskProducer, serve: Callable[..., TaskWorker], db: redis.Redis
) -> None:
    """Nothing of a stream is made for it, and its stream is an error that says so."""
    serve(job=lambda payload: payload, eager=wraps(lambda payload: list(numbers(payload))))
    task = producer.add_task("job", 1)
    with pytest.raises(RedistqError, match="has no stream"):
        list(producer.stream(task))
    assert db.keys("items:*") == []
    assert producer.get_result(producer.add_task("eager", 3), 10) == [0, 1, 2]


def test_each_item_comes_at_once(producer: TaskProducer, serve: Callable[..., TaskWorker]) -> None:
    """A reader that came before the task was run has the first item while the second is not made;
    another one begins where it left."""
    gate = Gate()
    task = producer.add_task("job", 3)
    items = producer.stream(task, timeout=10)
    serve(job=gate.handler)
    gate.let(1)
    began = time.monotonic()
    assert next(items) == 0
    assert time.monotonic() - began < 5
    gate.let(1)
    assert next(items) == 1
    assert items.position == 2
    other = producer.stream(task, items.cursor)
    gate.let(1)
    assert list(other) == [2]
    assert list(items) == [2]


def test_an_item_that_does_not_come_in_time(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """The error is that of other waits, and the next item may be asked for again."""
    gate = Gate()
    serve(job=gate.handler)
    task = producer.add_task("job", 2)
    items = producer.stream(task, timeout=0.2)
    with pytest.raises(ResultTimeout, match=r"still (queued|running) after 0.2 s"):
        next(items)
    gate.let(2)
    assert list(producer.stream(task, timeout=10)) == [0, 1]
    assert list(items) == [0, 1]


def test_readers_with_await(url: str, serve: Callable[..., TaskWorker]) -> None:
    """As without; a wait that is cancelled loses no item."""
    gate = Gate()
    serve(job=gate.handler, anumbers=anumbers)

    async def main() -> None:
        async with AsyncTaskProducer(url=url) as producer:
            task = await producer.add_task("anumbers", 5_000)
            assert [item async for item in producer.stream(task, 10)] == list(range(10, 5_000))
            task = await producer.add_task("job", 3)
            items = producer.stream(task)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(items), 0.2)
            gate.let(3)
            assert [item async for item in items] == [0, 1, 2]
            with pytest.raises(UnknownTask):
                await anext(producer.stream("nobody"))

    asyncio.run(main())


def test_two_readers_each_have_all(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """A slow one as well as a fast one, and one that came late."""
    serve(job=numbers)
    task = producer.add_task("job", 50_000)
    first, second = producer.stream(task), producer.stream(task)
    pairs = list(zip(first, second, strict=True))
    assert pairs == [(n, n) for n in range(50_000)]
    assert list(producer.stream(task, 49_990)) == list(range(49_990, 50_000))


def test_a_task_in_a_lane_streams(url: str) -> None:
    """Its items are beside its record, under the lane's name."""
    with (
        TaskProducer(url=url, stream="tasks!high") as producer,
        TaskWorker(url=url, queues=["tasks!high", "tasks"], task_handlers={"job": numbers}),
    ):
        assert list(producer.stream(producer.add_task("job", 10))) == list(range(10))


def test_an_unknown_task(producer: TaskProducer) -> None:
    """It has no stream; a start that is none is refused at the call."""
    with pytest.raises(UnknownTask, match="nobody"):
        list(producer.stream("nobody"))
    for start in (-1, "x", 1.5, "1-"):
        with pytest.raises(ConfigurationError, match="start"):
            producer.stream("nobody", start)  # type: ignore[arg-type]


# -- how tasks end -------------------------------------------------------------------------------


def test_an_error_comes_after_the_items(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """All that were yielded before it are there."""

    def fails(payload: int) -> Iterator[int]:
        yield from range(payload)
        raise ValueError("at last")

    async def afails(payload: int) -> AsyncIterator[int]:
        for n in range(payload):
            yield n
        raise ValueError("at last")

    serve(fails=fails, afails=afails)
    for name in ("fails", "afails"):
        task = producer.add_task(name, 1_000, retries=0)
        seen: list[int] = []
        with pytest.raises(TaskFailed, match="at last"):
            seen.extend(producer.stream(task))
        assert seen == list(range(1_000))


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_a_generator_that_never_ends_is_cancelled(
    producer: TaskProducer, serve: Callable[..., TaskWorker], kind: str
) -> None:
    """Its finally blocks run; the reader has what was yielded, and hears of it."""
    tidied: list[str] = []

    def endless(payload: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
                time.sleep(0.001)
        finally:
            tidied.append("thread")

    async def aendless(payload: Any) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            tidied.append("loop")

    serve(job=endless if kind == "thread" else aendless)
    task = producer.add_task("job")
    items = producer.stream(task)
    assert [next(items) for _ in range(20)] == [1] * 20
    assert producer.cancel(task, running="ask") == {task: "asked"}
    seen: list[int] = []
    with pytest.raises(TaskCancelled):
        seen.extend(items)
    assert set(seen) <= {1}
    assert tidied == [kind]


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_a_time_limit_strikes_while_nobody_reads(
    producer: TaskProducer, serve: Callable[..., TaskWorker], kind: str
) -> None:
    """The handler waits for readers when it has much; its limit ends that, and it can tidy up."""
    seen: list[str] = []

    def much(payload: Any, context: TaskContext) -> Iterator[str]:
        context.stream_bounds(window=MB)
        try:
            while True:
                yield "x" * 100_000
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    async def amuch(payload: Any, context: TaskContext) -> AsyncIterator[str]:
        context.stream_bounds(window=MB)
        try:
            while True:
                yield "x" * 100_000
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    serve(job=much if kind == "thread" else amuch)
    task = producer.add_task("job", timeout=0.5, retries=0)
    with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
        producer.get_result(task, 20)
    assert seen == ["TimeLimitExceeded" if kind == "thread" else "CancelledError"]
    read: list[str] = []
    with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
        read.extend(producer.stream(task))
    assert 10 <= len(read) < 40


def test_a_handler_may_answer_what_is_raised_at_its_yield(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """What cannot be sent is an error there: it can yield something else instead."""

    def careful(payload: Any) -> Iterator[Any]:
        for item in (1, {1, 2}, "x" * (9 * MB), 2):
            try:
                yield item
            except (ItemTooLarge, RedistqError) as error:
                yield type(error).__name__

    def careless(payload: Any) -> Iterator[Any]:
        yield 1
        yield payload or object()

    serve(careful=careful, careless=careless)
    task = producer.add_task("careful")
    assert list(producer.stream(task)) == [1, "ResultError", "ItemTooLarge", 2]
    for error in ("ResultError", "written as JSON"):
        task = producer.add_task("careless", retries=0)
        with pytest.raises(TaskFailed, match=error):
            list(producer.stream(task))


# -- attempts ------------------------------------------------------------------------------------


def test_another_attempt_begins_anew(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """A reader that had items hears of it, or is told by an item; one that had none reads on."""
    again = threading.Event()

    def flaky(payload: int, context: TaskContext) -> Iterator[str]:
        for n in range(payload):
            yield f"{context.attempt}:{n}"
        if context.attempt == 1:
            again.wait(10)
            raise Retry(0)

    serve(job=flaky)
    task = producer.add_task("job", 3)
    strict, told = producer.stream(task), producer.stream(task, restarts=True)
    for items in (strict, told):
        assert [next(items) for _ in range(3)] == ["1:0", "1:1", "1:2"]
    cursor = told.cursor
    again.set()
    with pytest.raises(StreamRestarted, match="began anew after 3 of its items"):
        next(strict)
    marker, *rest = told
    assert isinstance(marker, StreamRestarted)
    assert marker.position == 3
    assert rest == ["2:0", "2:1", "2:2"] == list(producer.stream(task))
    with pytest.raises(StreamRestarted):
        list(producer.stream(task, cursor))


def test_another_attempt_goes_on_where_it_was(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """Where it asks for the position; it may even come to its end without another item."""

    def resuming(payload: int, context: TaskContext) -> Iterator[int]:
        first = context.stream_position
        assert first == (context.attempt - 1) * 10
        yield from range(first, min(first + 10, payload))
        assert context.stream_position == min(first + 10, payload)
        if first + 10 <= payload:
            raise Retry(0)

    serve(job=resuming)
    for total in (25, 30):
        task = producer.add_task("job", total, retries=9)
        assert list(producer.stream(task)) == list(range(total))
        assert producer.get_result(task) == {"items": total}


def test_an_attempt_that_yields_nothing_leaves_nothing(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """What the one before had yielded is no part of its stream."""

    def once(payload: Any, context: TaskContext) -> Iterator[int]:
        if context.attempt == 1:
            yield 1
            raise Retry(0)

    serve(job=once)
    task = producer.add_task("job")
    assert producer.get_result(task, 10) == {"items": 0}
    assert list(producer.stream(task)) == []


def test_an_attempt_whose_lease_was_lost_adds_nothing(
    producer: TaskProducer, serve: Callable[..., TaskWorker], db: redis.Redis
) -> None:
    """It ends at its next yields, and ``except Exception`` does not hold it up."""
    gate = Gate()
    ends: list[str] = []

    def handler(payload: Any, context: TaskContext) -> Iterator[int]:
        while True:
            try:
                yield 1
                gate.steps.acquire(timeout=0.02)
            except Exception:
                pass
            except BaseException as error:
                ends.append(type(error).__name__)
                raise

    worker = serve(job=handler)
    task = producer.add_task("job")
    items = producer.stream(task)
    next(items)
    ((entry, _),) = db.xrange("tasks")
    db.xclaim("tasks", "workers", "somebody", 0, [entry])
    until(lambda: ends == ["LeaseLost"], "the handler ends")
    count = int(db.hget(f"task:tasks:{task}", "items").split()[1])
    until(lambda: processor_of(worker).lost == 1, "its outcome does not count")
    assert int(db.hget(f"task:tasks:{task}", "items").split()[1]) == count


# -- bounds --------------------------------------------------------------------------------------


def test_a_handler_waits_while_nobody_reads(
    producer: TaskProducer, serve: Callable[..., TaskWorker], db: redis.Redis
) -> None:
    """What is unread is bounded; a reader lets it go on, and reads all of it."""
    made: list[int] = []

    def much(payload: int, context: TaskContext) -> Iterator[str]:
        context.stream_bounds(window=2 * MB, keep=3 * MB)
        for n in range(payload):
            yield f"{n:06}" + "x" * 10_000
            made.append(n)

    serve(job=much)
    task = producer.add_task("job", 2_000)
    until(lambda: len(made) > 250, "the window is full")
    time.sleep(0.3)
    held = len(made)
    assert held < 420  # the window, and what is on its way
    items = producer.stream(task)
    first = [next(items) for _ in range(150)]
    del items  # a reader that dies
    until(lambda: len(made) > held, "it goes on as far as was read")
    rest = producer.stream(task, 150)
    assert [int(item[:6]) for item in (*first, *rest)] == list(range(2_000))
    assert producer.get_result(task, 10) == {"items": 2_000}
    assert sum(len(chunk["body"]) for _, chunk in db.xrange(f"items:tasks:{task}")) < 4 * MB
    with pytest.raises(ItemsGone, match=r"item 50 of task .* is no longer kept") as gone:
        list(producer.stream(task, 50))
    first_index = gone.value.first
    kept = [int(item[:6]) for item in producer.stream(task, first_index)]
    assert kept == list(range(first_index, 2_000))


def test_without_a_window_the_oldest_go(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """A handler that never waits for readers keeps the last of what it has yielded."""

    def much(payload: int, context: TaskContext) -> Iterator[str]:
        context.stream_bounds(window=None, keep=MB)
        for n in range(payload):
            yield f"{n:06}" + "x" * 10_000

    serve(job=much)
    task = producer.add_task("job", 1_000)
    assert producer.get_result(task, 20) == {"items": 1_000}
    with pytest.raises(ItemsGone) as gone:
        list(producer.stream(task))
    first = gone.value.first
    assert 850 < first < 920
    assert [int(i[:6]) for i in producer.stream(task, first)] == list(range(first, 1_000))


@pytest.mark.parametrize("ttl", [0, 30])
def test_items_expire_with_the_result(
    producer: TaskProducer, serve: Callable[..., TaskWorker], db: redis.Redis, ttl: int
) -> None:
    """A little earlier; where the result is not kept, with the id. A task that runs keeps them."""
    gate = Gate()
    serve(job=gate.handler)
    task = producer.add_task("job", 2, result_ttl=ttl)
    items = producer.stream(task)
    gate.let(1)
    assert next(items) == 0
    assert db.pttl(f"items:tasks:{task}") > 29 * 86_400_000
    gate.let(1)
    assert list(items) == [1]
    life = db.pttl(f"items:tasks:{task}")
    assert 0 < life <= (ttl or 60) * 1000
    assert life <= db.pttl(f"task:tasks:{task}") + 1000
    assert list(producer.stream(task)) == [0, 1]
    db.delete(f"items:tasks:{task}")
    with pytest.raises(ItemsGone):
        list(producer.stream(task))


def test_bounds_that_are_none(producer: TaskProducer, serve: Callable[..., TaskWorker]) -> None:
    """They are refused at the call."""

    def bad(payload: Any, context: TaskContext) -> Iterator[int]:
        context.stream_bounds(window=payload)
        yield 1

    serve(job=bad)
    for window in (0, -1, "x", 1.5):
        task = producer.add_task("job", window, retries=0)
        with pytest.raises(TaskFailed, match="window"):
            producer.get_result(task, 10)


# -- the event loop, the server ------------------------------------------------------------------


def test_a_generator_does_not_hold_up_the_event_loop(
    producer: TaskProducer, serve: Callable[..., TaskWorker]
) -> None:
    """One that waits for nothing, or for its readers, lets others have their turn."""
    turns: list[float] = []

    async def beat(payload: Any) -> int:
        while True:
            turns.append(time.perf_counter())
            await asyncio.sleep(0.001)

    async def much(payload: int, context: TaskContext) -> AsyncIterator[str]:
        context.stream_bounds(window=MB)
        for _ in range(payload):
            yield "x" * 50

    serve(beat=beat, anumbers=anumbers, much=much)
    ticker = producer.add_task("beat")
    until(lambda: len(turns) > 5, "it beats")
    task = producer.add_task("anumbers", 200_000)
    held = producer.add_task("much", 100_000)
    assert sum(1 for _ in producer.stream(task)) == 200_000
    before = len(turns)
    until(lambda: len(turns) > before + 50, "it beats while another waits for readers")
    assert sum(1 for _ in producer.stream(held)) == 100_000
    producer.cancel(ticker, running="ask")
    gaps = sorted(b - a for a, b in itertools.pairwise(turns))
    assert gaps[int(len(gaps) * 0.9)] < 0.1


def test_a_server_that_is_away_costs_nothing(
    private_server: Callable[..., Server],
) -> None:
    """Writers and readers wait for it; nothing is missing, and nothing comes twice."""
    server = private_server()
    with (
        Proxy(server.port) as proxy,
        TaskProducer(url=proxy.url, timeout=1) as producer,
        TaskWorker(url=proxy.url, task_handlers={"job": slow}, lease=30),
    ):
        task = producer.add_task("job", 300)
        seen = []
        for item in producer.stream(task):
            seen.append(item)
            if item in (50, 150):
                proxy.cut()
            if item == 200:
                with server.client() as admin:
                    admin.execute_command("CLIENT", "PAUSE", 3_000, "ALL")
        assert seen == list(range(300))


def slow(payload: int) -> Iterator[int]:
    """Numbers, one a few milliseconds."""
    for n in range(payload):
        yield n
        time.sleep(0.005)


@pytest.mark.parametrize("verb", ["append_items", "read_items"])
def test_an_answer_that_is_lost_is_asked_for_again(server: Server, verb: str) -> None:
    """The script knows what it has."""
    with (
        Proxy(server.port) as proxy,
        TaskProducer(url=server.url if verb == "append_items" else proxy.url) as producer,
        TaskWorker(
            url=proxy.url if verb == "append_items" else server.url,
            task_handlers={"job": slow},
        ),
    ):
        task = producer.add_task("job", 400)
        seen = []
        for item in producer.stream(task):
            seen.append(item)
            if not item % 40:
                proxy.lose(lambda data: b"kept" in data or b"body" in data)
        assert seen == list(range(400))
        assert proxy.lost > 2


def test_a_full_server_lets_tasks_wait(private_server: Callable[..., Server]) -> None:
    """Beyond its maxmemory nothing is added; there is room again, and all of it is there."""
    server = private_server()
    with (
        server.client() as admin,
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=server.url, task_handlers={"job": slow}),
    ):
        task = producer.add_task("job", 200)
        items = producer.stream(task)
        seen = [next(items)]
        admin.config_set("maxmemory", 1)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.5, "some time")
        admin.config_set("maxmemory", 0)
        assert [*seen, *items] == list(range(200))


def test_rights_that_are_missing_are_the_tasks_error(server: Server, db: redis.Redis) -> None:
    """A worker's user who may no longer write items: the task fails and says what is missing."""
    db.execute_command(*["ACL", "SETUSER", "law", "reset", "on", ">pw", "~*", "&*", "+@all"])
    url = f"redis://law:pw@127.0.0.1:{server.port}/0"
    gate = Gate()
    with (
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=url, task_handlers={"job": gate.handler}),
    ):
        task = producer.add_task("job", 100, retries=0)
        gate.let(1)
        items = producer.stream(task)
        assert next(items) == 0
        db.execute_command(
            *("ACL", "SETUSER", "law", "resetkeys", "~tasks*", "~*:tasks", "~task:*"),
            *("~worker:*", "~inbox:*", "~batch:*", "~settled:*", "~wishes:*", "~dependants:*"),
            *("~waiting:*",),
        )
        gate.let(5)
        time.sleep(0.3)
        gate.let(90)
        with pytest.raises(TaskFailed, match=r"(?s)items:tasks|permission|ACL"):
            list(items)


def test_the_writer_says_once_that_nobody_reads(
    producer: TaskProducer,
    serve: Callable[..., TaskWorker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And which task it is."""
    monkeypatch.setattr(item_writer, "SAY_S", 0.1)

    def much(payload: Any, context: TaskContext) -> Iterator[str]:
        context.stream_bounds(window=MB)
        for _ in range(60):
            yield "x" * 100_000

    serve(job=much)
    task = producer.add_task("job")
    until(lambda: "nobody reads what it yields" in caplog.text, "it is said")
    assert sum(1 for _ in producer.stream(task)) == 60
    assert caplog.text.count("nobody reads") == 1
    assert task in caplog.text


def test_items_of_a_silent_task_are_kept_for_longer(
    producer: TaskProducer,
    serve: Callable[..., TaskWorker],
    db: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task that yields nothing for weeks keeps what it has yielded."""
    monkeypatch.setattr(item_writer, "RENEW_S", 0.0)
    monkeypatch.setattr(item_writer, "LOOK_S", 0.05)
    gate = Gate()
    serve(job=gate.handler)
    task = producer.add_task("job", 2)
    items = producer.stream(task)
    gate.let(1)
    assert next(items) == 0
    db.pexpire(f"items:tasks:{task}", 60_000)
    until(lambda: db.pttl(f"items:tasks:{task}") > 100_000, "its life is longer again")
    gate.let(1)
    assert list(items) == [1]
    assert streaming.LIFE_MS > 100_000
