"""One deadline for a call, few connections for many threads, odd messages, and names of queues."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.clients import session
from support.servers import Server, clients_at
from support.workers import until

from redistq import (
    AsyncTaskProducer,
    Client,
    ConfigurationError,
    RedistqError,
    ServerUnavailable,
    TaskMonitor,
    TaskProducer,
    TaskScheduler,
    TaskWorker,
)
from redistq.connection.broker import KEPT_IDLE
from redistq.protocol.keys import QueueKeys

TIMEOUT_S, SLACK_S = 1.0, 0.6
"""What a call is given, and what a busy machine may add to it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes no longer."""
    at = time.monotonic()
    yield
    assert time.monotonic() - at < seconds + SLACK_S


# -- one deadline ----------------------------------------------------------------------------------


class Silent:
    """A server that takes connections and reads, and answers a little of each answer, or nothing;
    ``drip``: a byte now and then, so that no single wait is long."""

    def __init__(self, answers: bytes = b"", drip: float = 0.0, reads: bool = True) -> None:
        self._answers, self._drip, self._reads = answers, drip, reads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._ended = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._reads and client.recv(65536):
                if self._answers:
                    client.sendall(self._answers)
                while self._drip and not self._ended.wait(self._drip):
                    client.sendall(b"x")

    def close(self) -> None:
        self._ended.set()
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.mark.parametrize(
    "how",
    [
        {},  # accepts and never answers
        {"answers": b"$100\r\nhalf"},
        {"answers": b"+OK\r\n" * 3 + b"$100\r\n", "drip": 0.2},
        {"reads": False},
    ],
    ids=["nothing", "half", "drip", "deaf"],
)
def test_a_call_to_a_server_that_does_not_answer_ends_in_time(how: dict[str, Any]) -> None:
    """Connecting, authentication, sending and waiting share one deadline."""
    silent = Silent(**how)
    try:
        with TaskProducer(url=silent.url, timeout=TIMEOUT_S) as producer:
            calls: list[Callable[[], Any]] = [
                lambda: producer.add_task("a"),
                lambda: producer.add_tasks([("a", "x" * 500_000)] * 20),
                lambda: producer.get_result("x", timeout=60),
            ]
            for call in calls:
                with within(TIMEOUT_S), pytest.raises(ServerUnavailable):
                    call()

        async def awaited() -> None:
            async with AsyncTaskProducer(url=silent.url, timeout=TIMEOUT_S) as producer:
                with within(TIMEOUT_S), pytest.raises(ServerUnavailable):
                    await producer.add_task("a")

        asyncio.run(awaited())
    finally:
        silent.close()


def test_a_server_that_stops_in_the_midst_ends_every_kind_of_call_in_time(
    private_server: Callable[..., Server],
) -> None:
    """Also with connections that are open, bulk calls of many portions, and a client's batches."""
    server = private_server()
    with (
        TaskProducer(url=server.url, timeout=TIMEOUT_S) as producer,
        TaskMonitor(url=server.url, timeout=TIMEOUT_S) as monitor,
        Client(server.url, signing_key="k" * 32, timeout=TIMEOUT_S) as client,
    ):
        waiting = producer.add_task("a")
        batch = client.map_batch(abs, range(3), name="stopped", progress=False)
        calls: list[tuple[float, Callable[[], Any]]] = [
            (TIMEOUT_S, lambda: producer.add_task("a")),
            (TIMEOUT_S, lambda: producer.add_tasks([("a", n) for n in range(3000)])),
            (TIMEOUT_S, lambda: producer.cancel("a")),
            (TIMEOUT_S, lambda: producer.get_result(waiting, timeout=30)),
            (TIMEOUT_S, lambda: producer.get_result(waiting, timeout=0.2)),
            (TIMEOUT_S, monitor.snapshot),
            (TIMEOUT_S, lambda: client.map_batch(abs, range(3), progress=False)),
            (TIMEOUT_S, lambda: batch.results(timeout=0.5)),
        ]
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for most, call in calls:
                with within(most), pytest.raises(ServerUnavailable):
                    call()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        producer.cancel(waiting)
        batch.cancel()


def test_a_wait_ends_in_time_though_the_server_stops_during_it(
    private_server: Callable[..., Server],
) -> None:
    """The caller's own limit holds, not the one of a single call."""
    server = private_server()
    with TaskProducer(url=server.url, timeout=10) as producer:
        waiting = producer.add_task("a")
        stop = threading.Timer(0.3, os.kill, (server.pid, signal.SIGSTOP))
        stop.start()
        try:
            with within(TIMEOUT_S), pytest.raises(RedistqError):
                producer.get_result(waiting, timeout=TIMEOUT_S)
        finally:
            stop.join()
            os.kill(server.pid, signal.SIGCONT)


def test_a_name_that_cannot_be_looked_up_ends_a_call_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resolver that hangs is no reason to hang."""
    hangs = threading.Event()

    def look_up(*_: Any, **__: Any) -> Any:
        hangs.wait(5)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with (
            TaskProducer(url="redis://somewhere.invalid:6379", timeout=TIMEOUT_S) as producer,
            within(TIMEOUT_S),
            pytest.raises(ServerUnavailable),
        ):
            producer.add_task("a")
    finally:
        hangs.set()


# -- connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
def test_threads_share_connections(url: str, db: redis.Redis, at_once: bool) -> None:
    """A thread that has ended leaves none behind, and a burst of threads leaves few."""
    before = clients_at(db)  # of tests before, which nothing has collected yet
    with TaskProducer(url=url) as producer:
        start = threading.Barrier(60 if at_once else 1)

        def add() -> None:
            start.wait()
            producer.add_task("a")

        threads = [threading.Thread(target=add) for _ in range(60)]
        for thread in threads:
            thread.start()
            if not at_once:
                thread.join()
        for thread in threads:
            thread.join()
        most = KEPT_IDLE if at_once else 1
        until(lambda: len(clients_at(db) - before) <= most, "the end of the other connections")
        assert producer.snapshot().ready == 60


def test_many_awaited_calls_share_connections(url: str, db: redis.Redis) -> None:
    """A thousand calls at once are no thousand connections."""

    before = clients_at(db)

    async def main() -> None:
        async with AsyncTaskProducer(url=url) as producer:
            ids = await asyncio.gather(*(producer.add_task("a", n) for n in range(500)))
            assert len(set(ids)) == 500
            assert (await producer.snapshot()).ready == 500
            assert len(clients_at(db) - before) <= KEPT_IDLE

    asyncio.run(main())


# -- odd messages ----------------------------------------------------------------------------------

ODD: list[dict[Any, Any]] = [
    {"x": "y"},
    {"id": b"\xff\xfe", "state": "succeeded", "body": "1"},
    {"id": "ID", "state": "sideways", "body": "1"},
    {"id": "ID", "state": b"\xff", "body": "1"},
    {"id": "ID", "state": "succeeded", "body": "no json"},
    {"id": "ID", "state": "failed", "body": "[1]"},
    {"id": "ID", "state": "failed"},
]


def test_odd_messages_in_an_inbox_are_passed_over(
    url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may write to the server may write there; the true result comes all the same."""
    with TaskProducer(url=url) as producer:
        task_id = producer.add_task("double", 2)
        found: list[Any] = []
        waiter = threading.Thread(target=lambda: found.append(producer.get_result(task_id, 20)))
        waiter.start()
        inbox = until(lambda: db.hget("waiters:tasks", task_id), "the waiter's address")
        for odd in ODD:
            db.xadd(
                f"inbox:tasks:{inbox}", {k: task_id if v == "ID" else v for k, v in odd.items()}
            )
        with TaskWorker(url=url, task_handlers={"double": lambda n: n * 2}):
            waiter.join(20)
        assert found == [4]
        assert sum("tell of no task" in r.getMessage() for r in caplog.records) == 1


def test_odd_messages_do_not_stop_a_clients_futures(url: str, db: redis.Redis) -> None:
    """Those that tell of no task are passed over; a future never waits for ever."""
    with Client(url, signing_key="k" * 32) as futures:
        first = futures.submit("double", 1)
        for odd in ODD[:4]:
            db.xadd(session(futures).exchange.presence.inbox.key, odd)
        second = futures.submit("double", 2)
        with TaskWorker(url=url, task_handlers={"double": lambda n: n * 2}):
            assert first.result(20) == 2
            assert second.result(20) == 4
            forged = futures.submit("double", 3)
            body = {"id": forged.task_id, "state": "succeeded", "body": "no json"}
            db.xadd(session(futures).exchange.presence.inbox.key, body)
            with contextlib.suppress(Exception):  # the truth or an error, whichever came first
                assert forged.result(20) == 6
            assert forged.done()


def said_of_overwriting(caplog: pytest.LogCaptureFixture) -> int:
    """How often it was said."""
    return sum("no inbox" in record.getMessage() for record in caplog.records)


def test_an_inbox_that_somebody_overwrote_costs_a_client_a_second(
    url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A string where a client's inbox was: said in one warning, removed, and the results come from
    the tasks' records."""
    with Client(url, signing_key="k" * 32) as futures:
        waiting = [futures.submit("double", n) for n in range(3)]
        key = session(futures).exchange.presence.inbox.key
        with TaskWorker(url=url, task_handlers={"double": lambda n: n * 2}) as worker:
            assert [future.result(20) for future in waiting] == [0, 2, 4]
            worker.stop()
            waiting = [futures.submit("double", n) for n in range(3)]
            time.sleep(0.1)  # the blocking read begins; nothing tells of it
            db.delete(key)
            db.set(key, "not an inbox")
        with TaskWorker(url=url, task_handlers={"double": lambda n: n * 2}):
            with within(1.5):
                assert [future.result(20) for future in waiting] == [0, 2, 4]
            assert futures.submit("double", 4).result(20) == 8
        assert db.type(key) == "stream"
        assert said_of_overwriting(caplog) == 1
        assert "is away" not in caplog.text


@pytest.mark.parametrize("awaited", [False, True])
def test_an_inbox_that_somebody_overwrote_costs_a_producer_a_second(
    url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture, awaited: bool
) -> None:
    """The same for who waits for one result, with and without ``await``."""

    async def wait_for(task_id: str) -> Any:
        async with AsyncTaskProducer(url=url) as producer:
            return await producer.get_result(task_id, 20)

    with TaskProducer(url=url) as producer:
        task_id = producer.add_task("double", 2)
        found: list[Any] = []

        def wait() -> None:
            found.append(
                asyncio.run(wait_for(task_id)) if awaited else producer.get_result(task_id, 20)
            )

        waiter = threading.Thread(target=wait)
        waiter.start()
        inbox = until(lambda: db.hget("waiters:tasks", task_id), "the waiter's address")
        db.set(f"inbox:tasks:{inbox}", "not an inbox")
        with TaskWorker(url=url, task_handlers={"double": lambda n: n * 2}), within(1.5):
            waiter.join(20)
        assert found == [4]
        assert said_of_overwriting(caplog) == 1


def test_an_overwritten_inbox_stops_no_producer_that_empties_it(url: str, db: redis.Redis) -> None:
    """It is emptied now and then before a wait, and may be anything by then."""
    handlers = {"double": lambda n: n * 2}
    with TaskProducer(url=url) as producer, TaskWorker(url=url, task_handlers=handlers):
        assert producer.get_result(producer.add_task("double", 1), 20) == 2
        (inbox,) = producer._guess._free
        inbox.kept = 1_000
        db.delete(inbox.key)
        db.set(inbox.key, "not an inbox")
        assert producer.get_result(producer.add_task("double", 2, delay=0.1), 20) == 4


# -- names -----------------------------------------------------------------------------------------

WRONG_NAMES = ["", " ", "a b", "a:b", "a\nb", "a\0", "\ud800", "{}", "a{b", "{a}{b}", "}a{"]
WRONG_NAMES += ["a!", "!high", "a!normal", "a!b!low", "x" * 300, "a\x7f", "a\u2028b"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_queues_name_is_checked_by_all(url: str, name: str, db: redis.Redis) -> None:
    """What would share keys with another queue, or cannot be sent, is refused with the rule."""
    makers: list[Callable[[], Any]] = [
        lambda: TaskProducer(url=url, stream=name),
        lambda: AsyncTaskProducer(url=url, stream=name),
        lambda: TaskWorker(url=url, stream=name, task_handlers={"a": print}),
        lambda: TaskWorker(url=url, queues=["tasks", name], task_handlers={"a": print}),
        lambda: TaskScheduler(url=url, stream=name),
        lambda: TaskMonitor(url=url, stream=name),
        lambda: Client(url, queue=name, signing_key="k" * 32),
    ]
    for make in makers:
        with pytest.raises(ConfigurationError, match="no queue's name"):
            make()
    assert db.dbsize() == 0


@pytest.mark.parametrize("name", ["tasks", "a.b-c_d/e", "{jobs}a", "{jobs}!high", "a!low", "Ünï"])
def test_other_names_are_allowed(name: str) -> None:
    """Letters of any alphabet, signs, one hash tag, a priority."""
    assert QueueKeys(name).stream == name
    assert QueueKeys(name, clustered=True).stream.count("{") == 1


@pytest.mark.parametrize(
    "key",
    ["", "tasks", "delayed:other", "task:tasks:1", "dead:tasks", "wake:x", "a b", "a\n", "\ud800"],
)
def test_a_delayed_key_is_no_other_key(url: str, key: str) -> None:
    """Delayed tasks in a key that holds something else would be lost."""
    with pytest.raises(ConfigurationError, match="delayed"):
        TaskProducer(url=url, delayed_key=key)
    assert QueueKeys("tasks", "later").delayed == "later"
    assert QueueKeys("tasks", "delayed:tasks").delayed == "delayed:tasks"
