"""Tasks that are asked to end while they run: what handlers see, and how their tasks end."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.workers import history, lapse, processor_of, registered, until

from redistq import (
    AsyncTaskProducer,
    CancelRequested,
    ConfigurationError,
    Fail,
    Registry,
    Retry,
    Snooze,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
)
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.worker import wishes as wishes_module

registry = Registry()
gate = threading.Event()
seen: list[str] = []


def spin(context: TaskContext | None = None) -> None:
    """Run Python code until it is interrupted, or the context says so."""
    end = time.monotonic() + 20
    while time.monotonic() < end and not (context is not None and context.cancelled):
        time.sleep(0.005)


@registry.task
def spins(payload: Any) -> str:
    seen.append("runs")
    spin()
    return "went on"


@registry.task
async def sleeps(payload: Any) -> str:
    seen.append("runs")
    await asyncio.sleep(20)
    return "went on"


@registry.task
def looks(payload: Any, context: TaskContext) -> str:
    """A loop that asks by itself."""
    try:
        spin(context)
    except CancelRequested:
        spin(context)
    return f"cancelled: {context.cancelled}"


@registry.task
async def looks_async(payload: Any, context: TaskContext) -> str:
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        pass
    return f"cancelled: {context.cancelled}"


@registry.task(retries=3, backoff=0)
def raises(payload: str) -> None:
    """Answers the request with an error of its own."""
    try:
        spin()
    except CancelRequested:
        raise {
            "error": OSError("own"),
            "retry": Retry(0),
            "snooze": Snooze(0),
            "fail": Fail("own"),
        }[payload] from None


@registry.task(timeout=30)
def limited(payload: Any) -> None:
    spin()


@registry.task
def quick(payload: Any) -> Any:
    seen.append("quick")
    return payload


@registry.task
def short(payload: Any) -> int:
    return sum(range(300))


@registry.task
def blocks(payload: Any) -> str:
    seen.append("runs")
    gate.wait(20)
    return "done"


@registry.task(retries=3, backoff=0)
def fails_when_told(payload: Any) -> None:
    gate.wait(20)
    raise OSError("again")


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    gate.clear()
    seen.clear()
    yield
    gate.set()


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = Broker(Address(url))
    yield broker
    broker.close()


@pytest.fixture
def worker(url: str) -> Iterator[Callable[..., TaskWorker]]:
    """Start workers of these handlers; they are stopped at the end."""
    made: list[TaskWorker] = []

    def start(**options: Any) -> TaskWorker:
        made.append(TaskWorker(url=url, task_handlers=registry, **options).start())
        return made[-1]

    yield start
    gate.set()
    for one in made:
        one.stop(1)


def running(producer: TaskProducer, name: str, payload: Any = None, **options: Any) -> str:
    """A task whose handler is at work."""
    task_id = producer.add_task(name, payload, **options)
    until(lambda: producer.get_task(task_id).state == "running", f"{name} runs")
    time.sleep(0.1)  # handed over: its handler is called within this time
    return task_id


@pytest.mark.parametrize("wish", ["ask", "force"])
@pytest.mark.parametrize("name", ["spins", "sleeps", "limited"])
def test_a_running_task_that_is_asked_to_end_ends_as_cancelled(
    worker: Callable[..., TaskWorker],
    producer: TaskProducer,
    db: redis.Redis,
    name: str,
    wish: Any,
) -> None:
    """Within moments, not with the next heartbeat; once, and with the reason; the thread runs
    other tasks after it, and nothing is left of the wish."""
    started = worker(thread_count=1, lease=60)
    task_id = running(producer, name)
    asked_at = time.monotonic()
    assert producer.cancel(task_id) == {task_id: "running"}
    assert producer.cancel(task_id, running=wish) == {task_id: "asked"}
    with pytest.raises(TaskCancelled, match="asked to end while it ran") as caught:
        producer.get_result(task_id, timeout=15)
    assert time.monotonic() - asked_at < 5, "not with a heartbeat, one in 20 s"
    assert caught.value.reason == "asked to end while it ran"
    assert history(db, task_id) == ["cancelled"]
    assert producer.cancel(task_id, running=wish) == {task_id: "cancelled"}
    assert producer.get_result(producer.add_task("quick", 3), timeout=5) == 3
    assert db.hget("counters:tasks", "cancelled") == "1"
    until(lambda: not db.exists(f"wishes:tasks:{started.consumer}"), "the wish is forgotten")


@pytest.mark.parametrize("name", ["looks", "looks_async"])
def test_a_handler_that_catches_the_request_and_returns_has_succeeded(
    worker: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis, name: str
) -> None:
    """Its context says that it was asked, and its result counts."""
    started = worker()
    task_id = running(producer, name)
    producer.cancel(task_id, running="ask")
    assert producer.get_result(task_id, timeout=5) == "cancelled: True"
    assert producer.cancel(task_id, running="ask") == {task_id: "succeeded"}
    until(lambda: not db.exists(f"wishes:tasks:{started.consumer}"), "the wish is forgotten", 15)


@pytest.mark.parametrize("how", ["error", "retry", "snooze"])
def test_an_attempt_that_was_asked_to_end_is_not_tried_again(
    worker: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis, how: str
) -> None:
    """Whatever it raises: what would be put back is cancelled instead."""
    worker()
    task_id = running(producer, "raises", how)
    producer.cancel(task_id, running="ask")
    with pytest.raises(TaskCancelled):
        producer.get_result(task_id, timeout=5)
    assert history(db, task_id) == ["cancelled"]


def test_an_attempt_that_fails_for_good_has_failed(
    worker: Callable[..., TaskWorker], producer: TaskProducer
) -> None:
    """Its own verdict counts, for it ends the task as well."""
    worker()
    task_id = running(producer, "raises", "fail")
    producer.cancel(task_id, running="ask")
    with pytest.raises(TaskFailed, match="own"):
        producer.get_result(task_id, timeout=5)


def test_what_a_worker_holds_and_has_not_started_ends_without_running(
    worker: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis
) -> None:
    """Though its only thread is busy for long; what follows is run."""
    held = worker(thread_count=1)
    for task_id in producer.add_tasks([("short", k) for k in range(50)]):
        producer.get_result(task_id, timeout=5)  # it knows how short these are
    running(producer, "blocks")
    ids = producer.add_tasks([("short", k) for k in range(3)])

    until(lambda: processor_of(held).runners.ready, "it holds some, and has not started them")
    taken = [task_id for task_id in ids if producer.get_task(task_id).state == "running"]
    words = producer.cancel(*ids, running="ask")
    assert {words[task_id] for task_id in taken} <= {"asked"}
    for task_id in ids:
        with pytest.raises(TaskCancelled):
            producer.get_result(task_id, timeout=5)
    assert seen == ["runs"]
    gate.set()
    assert producer.get_result(producer.add_task("quick"), timeout=5) is None


def test_a_wish_that_the_worker_has_not_heard_of_stops_a_retry(
    worker: Callable[..., TaskWorker],
    producer: TaskProducer,
    broker: Broker,
    db: redis.Redis,
) -> None:
    """The server does not put the task back, and its worker ends it instead, with its inbox."""
    running_worker = worker()
    task_id = running(producer, "fails_when_told")
    processor_of(running_worker).executor.wishes.tell = lambda key: None  # deaf
    broker.call(Commands(QueueKeys("tasks")).cancel([task_id], wish="ask"))
    gate.set()
    with pytest.raises(TaskCancelled):
        producer.get_result(task_id, timeout=5)
    assert history(db, task_id) == ["cancelled"]


def test_a_lost_message_only_delays(
    worker: Callable[..., TaskWorker],
    producer: TaskProducer,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a channel that says nothing the next heartbeat tells it."""
    worker(lease=1.5)
    task_id = running(producer, "spins")
    calls = Commands(QueueKeys("tasks"))
    command = list(calls.cancel([task_id], wish="ask"))
    command[command.index("wake:tasks")] = "nobody-listens"
    broker.call(tuple(command))
    with pytest.raises(TaskCancelled):
        producer.get_result(task_id, timeout=5)


def test_tasks_of_several_queues_are_told_apart(
    worker: Callable[..., TaskWorker], url: str, producer: TaskProducer
) -> None:
    """Each wish is of one queue's entry."""
    worker(thread_count=2)
    worker(stream="other", thread_count=2)
    with TaskProducer(url=url, stream="other") as other:
        one = running(producer, "spins")
        two = running(other, "spins")
        producer.cancel(one, running="ask")
        with pytest.raises(TaskCancelled):
            producer.get_result(one, timeout=5)
        assert other.get_task(two).state == "running"
        other.cancel(two, running="ask")
        with pytest.raises(TaskCancelled):
            other.get_result(two, timeout=5)


def test_a_worker_process_ends_a_task_that_obeys(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """In processes of their own tasks are asked by the pipe; the process lives on."""
    handlers = {"nap": _nap, "spin": _spin_on}
    with TaskWorker(url=url, task_handlers=handlers, processes=1, thread_count=2):
        until(lambda: registered(db), "it is there")
        before = set(registered(db).values())
        ids = [running(producer, name) for name in ("nap", "spin")]
        assert set(producer.cancel(*ids, running="ask").values()) == {"asked"}
        for task_id in ids:
            with pytest.raises(TaskCancelled):
                producer.get_result(task_id, timeout=5)
        assert set(registered(db).values()) == before


def test_force_kills_the_process_of_a_task_that_does_not_obey(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """After five seconds; the task ends as cancelled, not as recovered, and its neighbour, which
    was in the same process, runs again."""
    handlers = {"hold": _hold, "nap": _nap_once}
    with TaskWorker(url=url, task_handlers=handlers, processes=1, thread_count=2):
        until(lambda: registered(db), "it is there")
        task_id = running(producer, "hold")
        producer.cancel(task_id, running="ask")
        until(lapse(1), "asking alone kills nothing")
        assert producer.get_task(task_id).state == "running"
        producer.cancel(task_id, running="force")
        with pytest.raises(TaskCancelled, match="its worker is gone"):
            producer.get_result(task_id, timeout=12)
        assert history(db, task_id) == ["cancelled"]
        assert producer.get_result(producer.add_task("nap", 0.0), timeout=10) == "napped"
        assert not db.keys("wishes:*")


def test_async_producers_ask_too(worker: Callable[..., TaskWorker], url: str) -> None:
    """The same words."""
    worker()

    async def ask() -> None:
        async with AsyncTaskProducer(url=url) as producer:
            task_id = await producer.add_task("sleeps")
            while (await producer.get_task(task_id)).state != "running":
                await asyncio.sleep(0.01)
            assert await producer.cancel(task_id, running="ask") == {task_id: "asked"}
            with pytest.raises(TaskCancelled):
                await producer.get_result(task_id, timeout=5)

    asyncio.run(ask())


def test_tasks_are_cancelled_by_name_and_batch(
    worker: Callable[..., TaskWorker], producer: TaskProducer
) -> None:
    """Those that wait, for a worker or their time, and those that run; the others are left."""
    worker(thread_count=2)
    ids = [running(producer, "spins") for _ in range(2)]
    late = producer.add_tasks([{"type": "spins", "delay": 600} for _ in range(450)])
    other = producer.add_task("quick", delay=600)
    assert producer.cancel_where(name="spin") == {}
    assert producer.cancel_where(name="spins", limit=100) == {"cancelled": 100}
    assert producer.cancel_where(name="spins") == {"cancelled": 350, "running": 2}
    assert producer.cancel_where(name="spins", running="ask") == {"asked": 2}
    for task_id in (*ids, late[0], late[-1]):
        with pytest.raises(TaskCancelled):
            producer.get_result(task_id, timeout=5)
    assert producer.get_task(other).state == "delayed"
    with pytest.raises(ConfigurationError, match="needs a name"):
        producer.cancel_where()


def test_an_unknown_wish_is_refused_at_the_call(producer: TaskProducer) -> None:
    """By name, before anything is sent."""
    with pytest.raises(ConfigurationError, match="'ask' or 'force'"):
        producer.cancel("a", running="now")  # type: ignore[arg-type]


def test_a_strike_that_comes_too_late_is_called_back(
    worker: Callable[..., TaskWorker], producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its thread goes on; and what has ended is struck no more, nor twice."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(wishes_module, "strike", lambda thread, kind: calls.append(("on", thread)))
    monkeypatch.setattr(wishes_module, "call_back", lambda thread: calls.append(("back", thread)))
    held = worker(thread_count=1)
    wishes = processor_of(held).executor.wishes
    task_id = running(producer, "blocks")
    (attempt,) = (a for a in wishes.running if a is not None)
    key = (attempt.entry, attempt.queue)
    for _ in range(3):
        producer.cancel(task_id, running="ask")
    until(lambda: calls, "it is struck")
    wishes.tell(key)
    gate.set()
    assert producer.get_result(task_id, timeout=5) == "done"
    assert producer.get_result(producer.add_task("quick", 1), timeout=5) == 1
    wishes.tell(key)
    thread = wishes.threads[0]
    assert calls == [("on", thread), ("back", thread)]
    assert not wishes.struck
    assert not wishes.waiting


def test_thousands_of_strikes_never_hit_another_task(
    worker: Callable[..., TaskWorker], producer: TaskProducer, db: redis.Redis
) -> None:
    """Short tasks that are asked to end at any moment end as succeeded or cancelled, never as
    anything else, and no thread is lost."""
    held = worker(thread_count=4)
    executor = processor_of(held).executor
    stop = threading.Event()

    def harass() -> None:
        while not stop.is_set():
            for attempt in executor.wishes.running:
                if attempt is not None:
                    executor.wishes.tell((attempt.entry, attempt.queue))

    thread = threading.Thread(target=harass, daemon=True)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        ids = producer.add_tasks([("short", k) for k in range(3_000)])
        counters = lambda: db.hgetall("counters:tasks")  # noqa: E731
        until(lambda: sum(map(int, counters().values())) >= len(ids), "all have ended", 60)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(usual)
    assert set(counters()) <= {"succeeded", "cancelled"}
    assert held.running
    assert not held.fault
    assert producer.get_result(producer.add_task("quick", 1), timeout=5) == 1


def _nap(payload: Any) -> None:
    import time

    for _ in range(2_000):
        time.sleep(0.01)


def _spin_on(payload: Any) -> None:
    while True:
        pass


def _hold(payload: Any) -> None:
    import time

    time.sleep(60)


def _nap_once(payload: float) -> str:
    import time

    time.sleep(payload)
    return "napped"
