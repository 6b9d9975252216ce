"""Producers, with and without ``await``: adding, waiting, and when the server fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from support.servers import Server, free_port
from support.workers import Proxy, command, commands_in, history, lapse, processor_of, until

from redistq import (
    AsyncTaskProducer,
    ConfigurationError,
    PayloadError,
    PayloadTooLarge,
    Registry,
    ResultTimeout,
    ServerFull,
    ServerUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    UnknownTask,
)
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.connection.transport import SocketTransport, Transport
from redistq.producer.guess import HABIT, RECENT
from redistq.producer.results import INBOX_KEPT

registry = Registry()
go = threading.Event()


@registry.task
def add_one(payload: int) -> int:
    return payload + 1


@registry.task
def big(payload: int) -> str:
    return "x" * payload


@registry.task(retries=0)
def fails(payload: Any) -> None:
    raise ValueError(payload)


@registry.task
def waits(payload: Any) -> Any:
    assert go.wait(30)
    return payload


@pytest.fixture(autouse=True)
def not_yet() -> Iterator[None]:
    """Handlers that wait do so until the test lets them go, and never beyond it."""
    go.clear()
    yield
    go.set()


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def worker(url: str) -> Iterator[TaskWorker]:
    """A worker of four threads for the default server."""
    with TaskWorker(url=url, task_handlers=registry, lease=2) as worker:
        yield worker
        go.set()


def stored(db: redis.Redis) -> list[str]:
    """The ids in the stream, in order."""
    entries: Any = db.xrange("tasks")
    return [fields["id"] for _, fields in entries]


# -- adding ----------------------------------------------------------------------------------------


def test_a_task_is_stored_when_add_task_returns(producer: TaskProducer, db: redis.Redis) -> None:
    """The id that is returned is in the stream with its payload, and its state is queued."""
    task_id = producer.add_task("send", {"to": "ü"})
    ((_, fields),) = db.xrange("tasks")
    assert fields == {
        "id": task_id,
        "name": "send",
        "payload": '{"to":"ü"}',
        "attempt": "1",
        "recovered": "0",
        "opts": "",
    }
    status = producer.get_task(task_id)
    assert (status.state, status.settled) == ("queued", False)


def test_a_decorated_function_names_its_task(producer: TaskProducer, db: redis.Redis) -> None:
    """The function itself may stand for its name; one that is not decorated may not."""
    producer.add_task(add_one, 1)
    producer.add_tasks([(add_one, 2), {"type": add_one, "payload": 3}])
    assert [fields["name"] for _, fields in db.xrange("tasks")] == ["add_one"] * 3
    with pytest.raises(ConfigurationError, match="decorated with @task"):
        producer.add_task(stored, 1)


def test_bulk_adds_keep_their_order(producer: TaskProducer, db: redis.Redis) -> None:
    """Pairs, lists and mappings from any iterable are added in order, many to a call."""
    before: Any = db.info("commandstats")
    ids = producer.add_tasks(("a", n) for n in range(1001))
    assert stored(db) == ids
    after: Any = db.info("commandstats")
    calls = after["cmdstat_evalsha"]["calls"] - before.get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert calls <= 10
    mixed = producer.add_tasks([("b", 1), ["b", 2], {"type": "b", "task_id": "mine", "retries": 0}])
    assert mixed[2] == "mine"
    assert stored(db)[1001:] == mixed
    assert producer.add_tasks([]) == []


def test_a_mapping_takes_every_option(producer: TaskProducer, db: redis.Redis) -> None:
    """delay, execute_at, timeout and result_ttl of an item are as add_task's."""
    soon = datetime.now(UTC) + timedelta(seconds=100)
    ids = producer.add_tasks(
        [
            {"type": "a", "payload": 1, "delay": 60},
            {"type": "a", "execute_at": soon},
            {"type": "a", "timeout": 5, "result_ttl": 0, "retries": 2},
        ]
    )
    assert stored(db) == [ids[2]]
    due: Any = db.zrange("delayed:tasks", 0, -1, withscores=True)
    assert [task_id for task_id, _ in due] == ids[:2]
    assert due[1][1] == pytest.approx(soon.timestamp() * 1000, abs=1)
    ((_, fields),) = db.xrange("tasks")
    assert fields["opts"] == '{"retries":2,"timeout":5.0,"result_ttl":0.0}'


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ("a", ConfigurationError, "pair or a mapping"),
        (("a",), ConfigurationError, "pair or a mapping"),
        ({"payload": 1}, ConfigurationError, "needs the key 'type'"),
        ({"type": "a", "paylod": 1}, ConfigurationError, "'paylod'; did you mean 'payload'"),
        (("", 1), ConfigurationError, "one line of 1 to 200"),
        (("a\nb", 1), ConfigurationError, "one line of 1 to 200"),
        (("a", {1, 2}), PayloadError, "cannot be written as JSON"),
        (("a", object()), PayloadError, "cannot be written as JSON"),
        (("a", "x" * 2000), PayloadTooLarge, "the limit is 1,000"),
        ({"type": "a", "delay": -1}, ConfigurationError, "delay"),
        ({"type": "a", "delay": float("nan")}, ConfigurationError, "delay"),
        ({"type": "a", "delay": "1"}, ConfigurationError, "delay"),
        ({"type": "a", "retries": -1}, ConfigurationError, "retries"),
        ({"type": "a", "retries": True}, ConfigurationError, "retries"),
        ({"type": "a", "timeout": "x"}, ConfigurationError, "timeout"),
        ({"type": "a", "timeout": 0}, ConfigurationError, "timeout"),
        ({"type": "a", "result_ttl": -1}, ConfigurationError, "result_ttl"),
        ({"type": "a", "task_id": ""}, ConfigurationError, "task_id"),
        ({"type": "a", "task_id": 7}, ConfigurationError, "task_id"),
        ({"type": "a", "delay": 1, "execute_at": 2}, ConfigurationError, "not both"),
        ({"type": "a", "execute_at": datetime(2030, 1, 1)}, ConfigurationError, "time zone"),
    ],
    ids=lambda value: (
        value.__name__ if isinstance(value, type) else str(value)[:40].split(" at ")[0]
    ),
)
def test_one_bad_item_stores_nothing(
    url: str, db: redis.Redis, bad: Any, error: type[Exception], words: str
) -> None:
    """Every item is checked before the first is sent, in either producer."""
    with (
        TaskProducer(url=url, max_payload_bytes=1000) as producer,
        pytest.raises(error, match=words),
    ):
        producer.add_tasks([("good", n) for n in range(500)] + [bad])
    awaited = AsyncTaskProducer(url=url, max_payload_bytes=1000)
    with pytest.raises(error, match=words):
        asyncio.run(awaited.add_tasks([("good", 1), bad]))
    assert db.dbsize() == 0


def test_times_are_epoch_seconds_or_aware_datetimes(
    producer: TaskProducer, db: redis.Redis
) -> None:
    """Both mean the same instant in any zone; the past means now; a naive datetime is refused."""
    at = time.time() + 3600
    zone = timezone(timedelta(hours=-7))
    ids = [
        producer.schedule_task("a", 1, at),
        producer.schedule_task("a", 1, datetime.fromtimestamp(at, UTC)),
        producer.schedule_task("a", 1, datetime.fromtimestamp(at, zone), retries=1),
    ]
    due: Any = db.zrange("delayed:tasks", 0, -1, withscores=True)
    assert {task_id for task_id, _ in due} == set(ids)
    assert max(score for _, score in due) - min(score for _, score in due) <= 1
    assert due[0][1] == pytest.approx(at * 1000, abs=2)
    past = producer.schedule_task("a", 1, time.time() - 10)
    assert stored(db) == [past]
    for bad in (datetime(2030, 1, 1), "tomorrow", float("nan"), True):
        with pytest.raises(ConfigurationError, match="execute_at"):
            producer.schedule_task("a", 1, bad)  # type: ignore[arg-type]


def test_an_id_of_ones_own_is_stored_once(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis
) -> None:
    """Adding a known id again is answered and changes nothing, before and after it ran."""
    for _ in range(3):
        assert producer.add_task("add_one", 1, task_id="mine") == "mine"
    assert producer.add_tasks([{"type": "add_one", "payload": 7, "task_id": "mine"}]) == ["mine"]
    assert producer.get_result("mine", 10) == 2
    assert producer.add_task("add_one", 100, task_id="mine") == "mine"
    assert producer.add_task("add_one", 100, task_id="mine", delay=5) == "mine"
    assert producer.get_result("mine", 10) == 2
    assert history(db, "mine") == ["succeeded"]
    assert db.zcard("delayed:tasks") == 0


@pytest.mark.parametrize("own_id", ["mine", None])
def test_a_lost_answer_does_not_double_a_task(
    server: Server, db: redis.Redis, own_id: str | None
) -> None:
    """The request is sent again after the connection failed, and stored once."""
    with Proxy(server.port) as proxy, TaskProducer(url=proxy.url) as producer:
        producer.add_task("first")
        proxy.lose()
        task_id = producer.add_task("second", task_id=own_id)
        assert proxy.lost == 1
        proxy.lose()
        ids = producer.add_tasks([("third", n) for n in range(1000)])
        assert proxy.lost == 2
        assert stored(db)[1:] == [task_id, *ids]


def test_lost_answers_do_not_double_awaited_tasks(server: Server, db: redis.Redis) -> None:
    """As the producer without await."""

    async def main(proxy: Proxy) -> list[str]:
        async with AsyncTaskProducer(url=proxy.url) as producer:
            first = await producer.add_task("first")
            proxy.lose()
            second = await producer.add_task("second")
            proxy.lose()
            return [first, second, *await producer.add_tasks([("third", n) for n in range(500)])]

    with Proxy(server.port) as proxy:
        ids = asyncio.run(main(proxy))
        assert proxy.lost == 2
    assert stored(db) == ids


# -- waiting ---------------------------------------------------------------------------------------


def test_waiting_for_a_result_does_not_poll(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis
) -> None:
    """While get_result waits, the server sees only heartbeats, and the answer comes at once."""
    producer.get_result(producer.add_task("add_one", 1), 10)
    task_id = producer.add_task("waits", 5)
    answers: list[tuple[float, Any]] = []

    def wait() -> None:
        answers.append((producer.get_result(task_id, 20), time.monotonic()))

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: db.hexists("waiters:tasks", task_id), "get_result waits")
    assert commands_in(db, lapse(1.0)) < 60  # polling would be hundreds
    at = time.monotonic()
    go.set()
    thread.join(10)
    ((answer, came),) = answers
    assert answer == 5
    assert came - at < 0.5


def test_many_threads_wait_with_one_producer(producer: TaskProducer, worker: TaskWorker) -> None:
    """Sixteen threads add and wait at the same time, each for its own tasks."""
    wrong: list[Any] = []

    def use(base: int) -> None:
        for n in range(base, base + 20):
            answer = producer.get_result(producer.add_task("add_one", n), 20)
            if answer != n + 1:
                wrong.append((n, answer))

    threads = [threading.Thread(target=use, args=(1000 * t,)) for t in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_many_wait_for_the_same_task(producer: TaskProducer, worker: TaskWorker) -> None:
    """Every thread and every producer that waits for one task is told its result."""
    task_id = producer.add_task("waits", "all")
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(producer.get_result(task_id, 20)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(producer._guess._free) == 0, "all of them wait")
    go.set()
    for thread in threads:
        thread.join(20)
    assert answers == ["all"] * 5


def test_a_wait_ends_when_its_time_is_over(producer: TaskProducer, worker: TaskWorker) -> None:
    """ResultTimeout comes in time, says how the task stands, and the task may be asked again."""
    other = TaskProducer(url=producer.address.url, stream="other")
    alone = other.add_task("a")
    with pytest.raises(ResultTimeout, match=r"still queued.* is a worker running") as nobody:
        other.get_result(alone, 0.2)
    other.close()
    assert isinstance(nobody.value, TimeoutError)
    task_id = producer.add_task("waits", 1)
    until(lambda: producer.get_task(task_id).state == "running", "its start")
    for timeout in (0.0, 0.3):
        started = time.monotonic()
        with pytest.raises(ResultTimeout, match="still running"):
            producer.get_result(task_id, timeout)
        assert timeout <= time.monotonic() - started < timeout + 1
    go.set()
    assert producer.get_result(task_id, 10) == 1


def test_an_id_that_nobody_knows_is_said_at_once(producer: TaskProducer) -> None:
    """UnknownTask, whether asked for a result or for the status."""
    for ask in (producer.get_result, producer.get_task):
        with pytest.raises(UnknownTask, match="no task with id 'nobody'"):
            ask("nobody")


@pytest.mark.parametrize("size", [10, 20_000, 3_000_000])
def test_results_of_any_size_come_back(
    producer: TaskProducer, worker: TaskWorker, size: int
) -> None:
    """A result that does not ride along in the inbox is read from the record."""
    producer.pause()
    task_id = producer.add_task("big", size)
    threading.Timer(0.2, producer.resume).start()
    assert len(producer.get_result(task_id, 20)) == size
    assert len(producer.get_result(task_id, 0)) == size


def opts_of(db: redis.Redis, task_id: str) -> str:
    """The options of the one task in the stream, which must be this."""
    ((_, fields),) = db.xrange("tasks")
    assert fields["id"] == task_id
    return str(fields["opts"])


def looks_at_records(db: redis.Redis) -> int:
    """How often the server was asked for a record."""
    stats: Any = db.info("commandstats")
    return int(stats.get("cmdstat_hgetall", {"calls": 0})["calls"])


def wait_for_each(producer: TaskProducer, count: int = HABIT) -> None:
    """Make a habit of waiting for every task that is added."""
    for n in range(count):
        assert producer.get_result(producer.add_task("add_one", n), 10) == n + 1


def test_who_waits_for_every_task_spares_the_question(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis
) -> None:
    """After a few tasks that were all waited for, a result comes without a look at the record."""
    wait_for_each(producer)
    looks = looks_at_records(db)
    wait_for_each(producer, 10)
    assert looks_at_records(db) - looks <= 2  # a busy machine may be slower than the guess
    producer._guess.waited = -1000  # no habit
    looks = looks_at_records(db)
    wait_for_each(producer, 10)
    assert looks_at_records(db) - looks == 10
    producer._guess.waited = HABIT
    with pytest.raises(TaskFailed, match="on purpose"):
        producer.get_result(producer.add_task("fails", "on purpose"), 10)
    assert len(producer.get_result(producer.add_task("big", 20_000), 10)) == 20_000
    assert producer._guess.waited == HABIT


def test_the_address_of_a_waiter_stands_beside_the_other_options(
    producer: TaskProducer, db: redis.Redis
) -> None:
    """It goes along with a task added now under an id of our own, and with no other."""
    producer._guess.waited = HABIT
    for options, expected in (
        ({}, {"inbox"}),
        ({"retries": 1, "timeout": 5}, {"retries", "timeout", "inbox"}),
        ({"task_id": "mine"}, set()),
    ):
        task_id = producer.add_task("a", 1, **options)  # type: ignore[arg-type]
        found = opts_of(db, task_id)
        assert set(json.loads(found or "{}")) == expected
        db.xtrim("tasks", maxlen=0)


def test_a_habit_of_waiting_ends(producer: TaskProducer, db: redis.Redis) -> None:
    """Who adds many tasks and waits for none leaves no more than a few notes behind."""
    producer._guess.waited = HABIT
    for n in range(3 * RECENT):
        producer.add_task("a", n)
    told = ["inbox" in fields["opts"] for _, fields in db.xrange("tasks")]
    assert told == [True] * (RECENT + 1) + [False] * (2 * RECENT - 1)
    assert len(producer._guess.recent) == RECENT


def test_a_note_that_never_comes_is_not_waited_for(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis
) -> None:
    """A server that lost the note, or all of its memory, is asked for the record soon."""
    wait_for_each(producer)
    task_id = producer.add_task("add_one", 5)
    inbox = producer._guess.recent[task_id]
    assert inbox is not None
    until(lambda: db.xlen(inbox.key), "the note")
    db.delete(inbox.key)
    assert producer.get_result(task_id, 10) == 6
    producer.pause()
    task_id = producer.add_task("add_one", 5)
    db.flushall()
    with pytest.raises(UnknownTask):
        producer.get_result(task_id, 10)


def test_a_wait_that_outlasts_the_guess_goes_on(producer: TaskProducer, worker: TaskWorker) -> None:
    """A long task is told all the same, its time limit kept."""
    wait_for_each(producer)
    task_id = producer.add_task("waits", "long")
    with pytest.raises(ResultTimeout, match="still running"):
        producer.get_result(task_id, 0.4)
    threading.Timer(0.5, go.set).start()
    assert producer.get_result(task_id, 10) == "long"


def test_a_cancelled_task_ends_a_wait(producer: TaskProducer) -> None:
    """Whoever waits for a task that is cancelled gets TaskCancelled."""
    task_id = producer.add_task("a", delay=100)
    threading.Timer(0.2, producer.cancel, [task_id]).start()
    with pytest.raises(TaskCancelled):
        producer.get_result(task_id, 10)
    with pytest.raises(TaskCancelled):
        producer.get_result(task_id)


def test_inboxes_do_not_grow_for_ever(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis
) -> None:
    """What was read from an inbox is deleted now and then, and all of it expires."""
    for n in range(INBOX_KEPT + 50):
        task_id = producer.add_task("add_one", n, delay=0.001)  # so that the wait comes first
        assert producer.get_result(task_id, 10) == n + 1
    (inbox,) = db.scan_iter("inbox:tasks:*")
    assert int(db.xlen(inbox)) < INBOX_KEPT
    assert 0 < int(db.ttl(inbox)) <= 3600


def test_dead_letters_are_read_by_the_page(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis
) -> None:
    """One question brings many, as get_task shows them, whole payloads too; an end is an end."""
    payloads = [1, "x" * 197, "y" * 198, "z" * 100_000]
    ids = [producer.add_task("fails", payload, retries=0) for payload in payloads]
    until(lambda: db.zcard("dead:tasks") == len(ids), "all of them have failed")
    db.config_resetstat()
    letters = {letter.id: letter for letter in producer.dead_letters()}
    stats: Any = db.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] <= 2  # with one that was unknown
    assert letters == {task_id: producer.get_task(task_id) for task_id in ids}
    assert [letters[task_id].payload for task_id in ids] == payloads
    assert [letter.id for letter in producer.dead_letters(2)] == list(letters)[:2]
    db.delete(f"task:tasks:{ids[0]}")
    assert {letter.id for letter in producer.dead_letters()} == set(ids[1:])
    assert producer.dead_letters(0) == []


def test_an_interrupted_wait_leaves_the_producer_usable(
    producer: TaskProducer, worker: TaskWorker
) -> None:
    """Ctrl-C in get_result: the next calls get their own answers."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        task_id = producer.add_task("waits", "late")
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupt):
            producer.get_result(task_id, 10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert producer.get_result(producer.add_task("add_one", 1), 10) == 2
    go.set()
    assert producer.get_result(task_id, 10) == "late"


# -- faults of the server --------------------------------------------------------------------------


def test_a_server_that_is_away_is_an_error_in_bounded_time() -> None:
    """Every call raises ServerUnavailable within the timeout; a bulk call tells its ids."""
    with TaskProducer(url=f"redis://127.0.0.1:{free_port()}/0", timeout=0.5) as producer:
        calls: list[Callable[[], Any]] = [
            lambda: producer.add_task("a"),
            lambda: producer.add_tasks([("a", 1)]),
            lambda: producer.get_result("x", 5),
            lambda: producer.cancel("x"),
            producer.snapshot,
            producer.dead_letters,
        ]
        for call in calls:
            started = time.monotonic()
            with pytest.raises(ServerUnavailable, match="is the server up"):
                call()
            assert time.monotonic() - started < 2
        with pytest.raises(ServerUnavailable) as failure:
            producer.add_tasks([("a", n) for n in range(3)])
        assert failure.value.task_ids is not None
        assert len(failure.value.task_ids) == 3


def test_an_awaited_call_to_a_server_that_is_away_ends_as_well() -> None:
    """As the producer without await."""

    async def main() -> None:
        url = f"redis://127.0.0.1:{free_port()}/0"
        async with AsyncTaskProducer(url=url, timeout=0.5) as producer:
            calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                lambda: producer.add_task("a"),
                lambda: producer.add_tasks([("a", 1)]),
                lambda: producer.get_result("x", 5),
            ]
            for call in calls:
                started = time.monotonic()
                with pytest.raises(ServerUnavailable):
                    await call()
                assert time.monotonic() - started < 2

    asyncio.run(main())


def test_a_server_that_hangs_is_an_error_in_bounded_time(
    private_server: Callable[..., Server],
) -> None:
    """A stopped server process, which accepts connections and answers nothing, is unavailable."""
    server = private_server()
    with TaskProducer(url=server.url, timeout=0.5) as producer:
        producer.add_task("a")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(ServerUnavailable):
                producer.add_task("a")
            assert time.monotonic() - started < 5
        finally:
            os.kill(server.pid, signal.SIGCONT)
        producer.add_task("a")


def test_the_ids_of_a_failed_bulk_call_can_be_added_again(
    private_server: Callable[..., Server],
) -> None:
    """After ServerUnavailable in the middle the same items with their ids are stored once."""
    server = private_server(appendonly=True, appendfsync="always")
    with TaskProducer(url=server.url, timeout=0.5) as producer:
        items = [("a", "x" * 2000)] * 5000

        def stopping() -> Iterator[Any]:
            for n, item in enumerate(items):
                if n == len(items) - 1:
                    killer.start()
                yield item

        killer = threading.Timer(0.005, server.kill)
        ids = None
        try:
            producer.add_tasks(stopping())
        except ServerUnavailable as error:  # unless it was faster than the kill
            ids = error.task_ids
        killer.join()
        server.start()
        if ids is not None:
            again = [
                {"type": name, "payload": payload, "task_id": task_id}
                for (name, payload), task_id in zip(items, ids, strict=True)
            ]
            assert producer.add_tasks(again) == ids
        with server.client() as client:
            assert client.xlen("tasks") == len(items)


def test_scripts_that_the_server_forgot_are_sent_again(
    producer: TaskProducer, worker: TaskWorker, db: redis.Redis
) -> None:
    """SCRIPT FLUSH between any two calls is not noticed, in bulk calls either."""
    for n in range(5):
        db.script_flush()
        ids = producer.add_tasks([("add_one", n)] * 600)
        db.script_flush()
        assert producer.get_result(ids[-1], 10) == n + 1
    assert producer.snapshot().counters["succeeded"] > 0


def test_a_wait_survives_a_restart_of_the_server(private_server: Callable[..., Server]) -> None:
    """get_result goes on after the server was killed and came back with its data."""
    server = private_server(appendonly=True, appendfsync="always")
    answers: list[Any] = []
    with (
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=server.url, task_handlers=registry, lease=2),
        server.client() as client,
    ):
        task_id = producer.add_task("waits", 3)
        thread = threading.Thread(target=lambda: answers.append(producer.get_result(task_id, 30)))
        thread.start()
        until(lambda: client.hexists("waiters:tasks", task_id), "get_result waits")
        server.kill()
        server.start()
        go.set()
        thread.join(30)
        assert answers == [3]


def drained(producer: TaskProducer) -> bool:
    """Whether nothing waits and nothing runs."""
    now = producer.snapshot()
    return now.ready == now.pending == 0


def test_a_full_server_stores_nothing_and_says_so(private_server: Callable[..., Server]) -> None:
    """Beyond maxmemory, ServerFull names the way out, and what is stored can still be run."""
    server = private_server(maxmemory="8mb")
    with TaskProducer(url=server.url) as producer:
        added: list[str] = []

        def fill() -> None:
            for _ in range(1000):
                added.append(producer.add_task("add_one", 1, task_id=f"{len(added)}"))
                added.append(producer.add_task("echo", "x" * 50_000, task_id=f"{len(added)}"))

        with pytest.raises(ServerFull, match="raise maxmemory"):
            fill()
        with server.client() as client:
            assert client.xlen("tasks") == len(added)
            client.config_set("maxmemory", "5mb")  # nothing at all fits in any more
        handlers = {"add_one": add_one, "echo": lambda payload: None}
        with TaskWorker(url=server.url, task_handlers=handlers, lease=2, result_ttl=0):
            until(lambda: drained(producer), "the full server drains")
            with server.client() as client:
                client.config_set("maxmemory", "20mb")
            again = producer.add_task("add_one", 1, result_ttl=60)
            assert producer.get_result(again, 10) == 2


# -- life ------------------------------------------------------------------------------------------


def test_close_may_be_called_twice_and_use_opens_again(producer: TaskProducer) -> None:
    """A closed producer that is used again opens a new connection."""
    producer.add_task("a")
    producer.close()
    producer.close()
    assert producer.snapshot().ready == 1
    assert "TaskProducer(queue='tasks'" in repr(producer)


def test_a_forked_process_uses_its_own_connections(
    tmp_path: Path, url: str, worker: TaskWorker
) -> None:
    """After os.fork parent and child share neither connections nor ids nor answers."""
    program = """
import os
from redistq import TaskProducer
producer = TaskProducer()
assert producer.get_result(producer.add_task("add_one", 1, delay=0.05), 10) == 2
pid = os.fork()
base = 1000 if pid else 2000
for n in range(base, base + 200):
    task = producer.add_task("add_one", n)
    assert producer.get_result(task, 10) == n + 1, n
    if n % 10 == 0:
        task = producer.add_task("add_one", n, delay=0.002)
        assert producer.get_result(task, 10) == n + 1, n
if pid == 0:
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
print("both done")
"""
    with command(tmp_path, "-c", program, url=url) as one:
        assert one.wait() == 0, one.output
        assert "both done" in one.output


# -- await -----------------------------------------------------------------------------------------


def test_the_awaited_producer_does_what_the_other_does(url: str, worker: TaskWorker) -> None:
    """Every method of AsyncTaskProducer has its twin's effect."""

    async def main() -> None:
        async with AsyncTaskProducer(url=url) as producer:
            one = await producer.add_task(add_one, 1)
            ids = await producer.add_tasks([("add_one", n) for n in range(300)])
            later = await producer.schedule_task("add_one", 5, time.time() + 0.05)
            assert await producer.get_result(one, 10) == 2
            assert await producer.get_result(later, 10) == 6
            answers = await asyncio.gather(*(producer.get_result(i, 10) for i in ids))
            assert answers == [n + 1 for n in range(300)]
            bad = await producer.add_task("fails", "why")
            with pytest.raises(TaskFailed, match="ValueError: why"):
                await producer.get_result(bad, 10)
            assert [letter.id for letter in await producer.dead_letters()] == [bad]
            assert await producer.replay(bad) == 1
            with pytest.raises(TaskFailed):
                await producer.get_result(bad, 10)
            assert await producer.purge() == 1
            with pytest.raises(UnknownTask):
                await producer.get_task(bad)
            await producer.pause()
            assert (await producer.snapshot()).paused
            delayed = await producer.add_task("add_one", 1, delay=100)
            assert await producer.cancel(delayed) == {delayed: "cancelled"}
            with pytest.raises(TaskCancelled):
                await producer.get_result(delayed)
            await producer.resume()
            with pytest.raises(ResultTimeout):
                await producer.get_result(await producer.add_task("waits"), 0.1)

    asyncio.run(main())


def test_a_cancelled_await_leaves_the_producer_usable(
    url: str, worker: TaskWorker, db: redis.Redis
) -> None:
    """Waits and calls that are cancelled at any moment cost nobody else its answer."""

    async def main() -> None:
        async with AsyncTaskProducer(url=url) as producer:
            waiting = await producer.add_task("waits", "late")
            for n in range(30):
                wait = asyncio.create_task(producer.get_result(waiting, 10))
                call = asyncio.create_task(producer.add_task("add_one", 1000))
                await asyncio.sleep(n * 0.0002)
                wait.cancel()
                call.cancel()
                for cancelled in (wait, call):
                    with contextlib.suppress(asyncio.CancelledError):
                        await cancelled
                task_id = await producer.add_task("add_one", n)
                assert await producer.get_result(task_id, 10) == n + 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await producer.get_result(waiting)
            go.set()
            assert await producer.get_result(waiting, 10) == "late"

    asyncio.run(main())
    until(lambda: len(db.client_list()) < 15, "its connections are closed")


def test_one_awaited_producer_serves_one_loop_after_another(url: str, worker: TaskWorker) -> None:
    """Each asyncio.run() gets its own connections, for waiting, too."""
    producer = AsyncTaskProducer(url=url)

    async def once(n: int) -> Any:
        return await producer.get_result(await producer.add_task("add_one", n, delay=0.05), 10)

    assert [asyncio.run(once(n)) for n in range(3)] == [1, 2, 3]
    asyncio.run(producer.close())
    asyncio.run(producer.close())


def test_without_the_insides_it_knows_a_wire_uses_the_client_library(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version of redis-py that hides its socket, or has no hiredis, works as well."""
    monkeypatch.setattr(
        "redistq.connection.connection.transport_over", lambda connection: Transport(connection)
    )
    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=registry, lease=2) as worker,
    ):
        wait_for_each(producer, 10)
        ids = producer.add_tasks(("add_one", n) for n in range(1000))
        assert [producer.get_result(i, 20) for i in ids] == list(range(1, 1001))
        assert len(producer.get_result(producer.add_task("big", 300_000), 10)) == 300_000
        with pytest.raises(TaskFailed, match="on purpose"):
            producer.get_result(producer.add_task("fails", "on purpose"), 10)
        assert type(producer.broker._idle[-1]._transport) is Transport
        assert processor_of(worker).lost == 0


@pytest.mark.parametrize("direct", [True, False])
def test_some_small_calls_share_a_round_trip(
    url: str, db: redis.Redis, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order; and all of them once more, should the connection end between, or one be refused."""
    if not direct:
        monkeypatch.setattr("redistq.connection.connection.transport_over", Transport)
    with TaskProducer(url=url) as producer:
        broker = producer.broker
        for _ in range(2):
            answers = broker.call_all([("ECHO", str(n)) for n in range(300)])
            assert answers == [str(n).encode() for n in range(300)]
            db.client_kill_filter(_type="normal", skipme=True)
        db.set("text", "x")
        commands = [("ECHO", "1"), ("HGET", "text", "field"), ("ECHO", "2")]
        with pytest.raises(ConfigurationError):
            broker.call_all(commands)
        assert broker.call(("ECHO", "3")) == b"3"  # no answer of another call is left there


def test_the_wire_of_a_plain_connection_is_direct(producer: TaskProducer) -> None:
    """With hiredis and a socket no layer stands between; a call keeps its time limit."""
    producer.add_task("a")
    line = producer.broker._idle[-1]._transport
    assert type(line) is SocketTransport
    sock = producer.broker._idle[-1]._link._sock
    seconds, micros = struct.unpack(
        "ll", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    )
    assert seconds + micros / 1e6 == pytest.approx(producer.timeout, abs=0.01)


def test_answers_left_unread_are_not_taken_for_others(url: str) -> None:
    """Calls made while the answers of many others are being read get their own answers."""
    broker = Broker(Address(url))
    many = broker.call_many(("ECHO", str(n)) for n in range(10))
    assert next(many) == b"0"
    assert next(many) == b"1"
    assert broker.call(("ECHO", "between")) == b"between"
    other = broker.call_many(("ECHO", f"other {n}") for n in range(3))
    assert list(other) == [b"other 0", b"other 1", b"other 2"]
    assert list(many) == [str(n).encode() for n in range(2, 10)]
    left = broker.call_many(("ECHO", str(n)) for n in range(10))
    assert next(left) == b"0"
    del left
    assert broker.call(("ECHO", "after")) == b"after"
    broker.close()
