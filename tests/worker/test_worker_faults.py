"""Workers in this process when things break: their supervisor, their server, their connections."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import (
    Command,
    Proxy,
    alive,
    history,
    lapse,
    processor_of,
    registered,
    scoreboard_of,
    until,
)

from redistq import Registry, TaskProducer, TaskWorker
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.errors import ConnectionLost
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.worker.heartbeat import ManagedProcess
from redistq.worker.prefetch import PREFETCH_TASKS
from redistq.worker.processor import Processor
from redistq.worker.scoreboard import Scoreboard
from redistq.worker.settings import WorkerSettings
from redistq.worker.settler import LARGE_RESULT, UNSETTLED, Settler
from redistq.worker.supervisor import Supervisor

registry = Registry()
runs: dict[str, int] = {}
started, go = threading.Event(), threading.Event()


@registry.task
def add_one(payload: int) -> int:
    return payload + 1


@registry.task
def counted(payload: str) -> int:
    runs[payload] = runs.get(payload, 0) + 1
    return runs[payload]


@registry.task
def large(payload: int) -> str:
    return "x" * (LARGE_RESULT + payload)


@registry.task
def waits(payload: str) -> int:
    runs[payload] = runs.get(payload, 0) + 1
    started.set()
    assert go.wait(30)
    return runs[payload]


@registry.task
async def async_counted(payload: str) -> int:
    return counted(payload)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No test sees another's runs; whatever waits is let go at the end."""
    runs.clear()
    started.clear()
    go.clear()
    yield
    go.set()


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


def supervisor_of(worker: TaskWorker) -> int:
    """The pid of the process that beats for a worker."""
    assert worker._running is not None
    return worker._running.sidecar.pid


PROGRAM = """
import ctypes, os, sys, time
import redis
from redistq import TaskWorker

out = redis.Redis.from_url(os.environ["REDISTQ_URL"], decode_responses=True)

def waits(payload, context):
    out.rpush("runs:" + context.task_id, f"{context.attempt}/{context.recovered}")
    out.rpush("started", context.task_id)
    # Asked again and again: a blocking read of a killed program might take the word away.
    while not out.lpop("go:" + context.task_id):
        time.sleep(0.01)
    return "ran"

def holds(payload, context):
    out.rpush("runs:" + context.task_id, f"{context.attempt}/{context.recovered}")
    out.rpush("started", context.task_id)
    ctypes.PyDLL(None).usleep(int(payload * 1e6))
    return "held"

worker = TaskWorker(
    task_handlers={"waits": waits, "holds": holds}, thread_count=1, lease=float(sys.argv[1])
)
worker.start()
print("up", worker._running.sidecar.pid, flush=True)
{end}
"""


@pytest.fixture
def program(tmp_path: Path, url: str) -> Iterator[Callable[..., Command]]:
    """Starts a program with a TaskWorker inside; ready when it returns."""
    running: list[Command] = []

    def start(lease: float, end: str = "time.sleep(60)") -> Command:
        one = Command(tmp_path, "-c", PROGRAM.replace("{end}", end), str(lease), url=url)
        running.append(one)
        one.says("up ")
        return one

    yield start
    for one in running:
        one.close()


def supervisor_pid(one: Command) -> int:
    """The supervisor of the worker inside a program."""
    return int(one.output.split("up ")[1].split()[0])


def next_started(db: redis.Redis) -> str:
    """The next task of a program that says that it runs."""
    return str(until(lambda: db.lpop("started"), "a task to start", 15))


# -- the supervisor and its worker -----------------------------------------------------------------


def test_a_handler_that_holds_the_interpreter_is_not_run_twice(
    program: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """A program whose interpreter is held beyond the lease keeps its task: the supervisor beats."""
    program(1), program(1)
    task_id = producer.add_task("holds", 2.5)
    assert producer.get_result(task_id, 15) == "held"
    assert db.lrange(f"runs:{task_id}", 0, -1) == ["1/0"]
    assert history(db, task_id) == ["succeeded"]


def test_a_killed_program_is_reported_at_once_by_its_supervisor(
    program: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """kill -9 of a program with a worker inside: recovered long before the lease, supervisor
    gone."""
    one = program(60)
    supervisor = supervisor_pid(one)
    task_id = producer.add_task("waits")
    next_started(db)
    one.send(signal.SIGKILL)
    until(lambda: history(db, task_id) == ["recovered"], "the report", 3)
    until(lambda: not alive(supervisor), "the supervisor's end")
    assert registered(db) == {}
    program(60)
    assert next_started(db) == task_id
    db.rpush(f"go:{task_id}", 1)
    assert producer.get_result(task_id, 10) == "ran"
    assert db.lrange(f"runs:{task_id}", 0, -1) == ["1/0", "1/1"]


def test_a_program_that_simply_ends_leaves_nothing_behind(
    program: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """A program that forgets to stop its worker, or ends by an error, ends; so does its
    supervisor."""
    one = program(60, "out.blpop('end'); raise SystemExit(5)")
    supervisor = supervisor_pid(one)
    db.rpush("end", 1)
    assert one.wait() == 5
    until(lambda: not alive(supervisor), "the supervisor's end")
    assert registered(db) == {}


def test_a_worker_and_its_supervisor_killed_together_are_found_by_their_lease(
    program: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """kill -9 of both: another worker has the task within lease + 2 s."""
    one, _ = program(2), program(2)
    first = producer.add_task("waits")
    second = producer.add_task("waits")
    assert {next_started(db), next_started(db)} == {first, second}
    consumer = {pid: name for name, pid in registered(db).items()}[one.pid]
    os.kill(supervisor_pid(one), signal.SIGKILL)
    one.send(signal.SIGKILL)
    at = time.monotonic()
    db.rpush(f"go:{first}", 1, 1)
    db.rpush(f"go:{second}", 1, 1)  # the living one is free, and ready for the other
    lost = next_started(db)
    assert time.monotonic() - at < 4 + 4, "lease + 2 s, and some for a busy machine"
    assert producer.get_result(lost, 10) == "ran"
    assert history(db, lost) == ["recovered", "succeeded"]
    assert consumer not in registered(db)


def test_a_killed_supervisor_is_replaced_and_nothing_runs_twice(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """The worker starts another supervisor at once; its running task keeps its lease."""
    worker = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    other = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    with worker, other:
        task_id = producer.add_task("waits", "a")
        assert started.wait(10)
        for one in (worker, other):
            before = supervisor_of(one)
            os.kill(before, signal.SIGKILL)
            until(lambda w=one, b=before: supervisor_of(w) != b, "another supervisor")
        until(lapse(3.0), "longer than the lease")
        assert len(registered(db)) == 2
        go.set()
        assert producer.get_result(task_id, 10) == 1
        assert history(db, task_id) == ["succeeded"]
        assert producer.get_result(producer.add_task("add_one", 1, delay=0.05), 10) == 2
        assert worker.stop() is True


def test_an_orphaned_supervisor_notices_though_a_fork_holds_its_pipe(
    program: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """A process that the program forked, and that outlives it, does not keep its worker alive."""
    # Not os.fork, in which our side of the pipe is closed.
    fork = "pid = ctypes.PyDLL(None).fork()\nif pid == 0: out.rpush('forked', os.getpid())\n"
    end = fork + "time.sleep(60)"
    one = program(60, end)
    supervisor = supervisor_pid(one)
    left_behind = int(until(lambda: db.lpop("forked"), "the fork"))
    try:
        task_id = producer.add_task("waits")
        next_started(db)
        one.send(signal.SIGKILL)
        until(lambda: history(db, task_id) == ["recovered"], "the report", 5)
        until(lambda: not alive(supervisor), "the supervisor's end", 10)
        assert alive(left_behind)
    finally:
        os.kill(left_behind, signal.SIGKILL)


@pytest.mark.parametrize("again", [False, True], ids=["one signal", "two signals"])
def test_run_works_until_a_signal(
    program: Callable[..., Command], producer: TaskProducer, db: redis.Redis, again: bool
) -> None:
    """run() drains on SIGTERM and answers whether all came to an end; a second signal ends it."""
    one = program(60, "print('drained', worker.run(), flush=True)")
    task_id = producer.add_task("waits")
    next_started(db)
    if again:
        one.send(signal.SIGTERM)
        until(lambda: one.send(signal.SIGINT) or one.process.poll() is not None, "its end")
        assert one.wait() == 1
        until(lambda: history(db, task_id) == ["recovered"], "the report of its supervisor")
    else:
        one.send(signal.SIGTERM)
        db.rpush(f"go:{task_id}", 1)
        assert one.wait() == 0
        assert "drained True" in one.output
        assert history(db, task_id) == ["succeeded"]


def test_a_heartbeat_that_crosses_a_resume_does_not_pause_again(
    url: str, producer: TaskProducer
) -> None:
    """An answer that is older than the word "resumed" is looked at again, not believed."""
    supervisor = Supervisor(WorkerSettings(lease=60), Address(url))
    producer.pause()
    supervisor.heartbeat.send_if_due()
    assert supervisor.heartbeat.paused
    supervisor.heartbeat.heed(0, "resumed")
    supervisor.heartbeat.heed(0, "paused")
    real = supervisor._broker.call

    def crossing(command: Any) -> Any:
        answer = real(command)  # it still says: paused
        producer.resume()
        supervisor.heartbeat.heed(0, "resumed")
        supervisor._broker.call = real  # type: ignore[method-assign]
        return answer

    supervisor._broker.call = crossing  # type: ignore[method-assign]
    supervisor.heartbeat.send_if_due()
    supervisor.heartbeat.send_if_due()
    assert not supervisor.heartbeat.paused
    supervisor._broker.close()


def test_a_supervisor_that_takes_over_lifts_a_pause_that_is_over(url: str) -> None:
    """The one before it was killed while the queue was paused, and nobody heard the resume."""
    scoreboard = Scoreboard.create(1)
    scoreboard.paused = {0}
    supervisor = Supervisor(
        WorkerSettings(lease=60),
        Address(url),
        member=ManagedProcess("taken over", scoreboard, ready=True),
    )
    supervisor.heartbeat.send_if_due()
    assert scoreboard.paused == set()
    supervisor._broker.close()
    scoreboard.unmap()


def test_a_resume_that_nobody_heard_is_seen_all_the_same(
    server: Server, producer: TaskProducer
) -> None:
    """A word published while the supervisor was cut off counts when it listens again, at any
    lease."""
    with (
        Proxy(server.port) as proxy,
        TaskWorker(url=proxy.url, task_handlers=registry, lease=60) as worker,
        server.client() as client,
    ):
        producer.pause()
        until(lambda: scoreboard_of(worker).paused, "the pause")
        client.hset("meta:tasks", "paused", 0)  # a resume whose word was lost
        proxy.cut()
        assert producer.get_result(producer.add_task("add_one", 1), 10) == 2


def settler(worker: TaskWorker) -> Settler:
    """What settles the outcomes of a worker in this process."""
    found: Settler = processor_of(worker).settler
    return found


# -- the server ------------------------------------------------------------------------------------


def test_what_was_finished_while_the_server_was_away_is_settled_afterwards(
    private_server: Callable[..., Server],
) -> None:
    """A task that ends with the server down is settled once it is back, and is not run again."""
    server = private_server(appendonly=True, appendfsync="always")
    with (
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=server.url, task_handlers=registry, thread_count=2, lease=2) as worker,
    ):
        task_id = producer.add_task("waits", "a")
        queued = producer.add_tasks([("counted", f"q{n}") for n in range(50)])
        assert started.wait(10)
        for i in queued:
            producer.get_result(i, 10)
        server.kill()
        go.set()
        until(lambda: settler(worker).backlog or settler(worker).busy.locked(), "its end")
        until(lapse(2.5), "longer than the lease")
        server.start()
        assert producer.get_result(task_id, 20) == 1
        later = producer.add_tasks([("counted", f"l{n}") for n in range(50)])
        assert [producer.get_result(i, 10) for i in later] == [1] * 50
        with server.client() as client:
            assert history(client, task_id) == ["succeeded"]
        assert set(runs.values()) == {1}


def test_handlers_faster_than_the_server_do_not_run_away_from_it(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """While nothing can be settled, only so much is run, and only that is this worker's."""
    most = UNSETTLED + 2 * PREFETCH_TASKS + 1
    with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
        first = producer.add_tasks(("add_one", n) for n in range(2000))
        assert producer.get_result(first[-1], 20) == 2000  # it knows that they are short
        with settler(worker).busy:
            ids = producer.add_tasks(("add_one", n) for n in range(3 * most))
            until(lambda: settler(worker).backlog >= UNSETTLED, "enough of them")
            until(lapse(1), "as much as it would read")
            assert UNSETTLED <= settler(worker).backlog <= most
            assert producer.snapshot().pending <= most
        until(lambda: producer.snapshot().pending + producer.snapshot().ready == 0, "the end", 30)
        assert producer.get_result(ids[-1], 20) == 3 * most
    assert int(db.hget("counters:tasks", "succeeded") or 0) == 2000 + 3 * most


def test_large_results_are_not_piled_up(url: str, producer: TaskProducer, db: redis.Redis) -> None:
    """A runner with a large result settles it before it makes the next one."""
    with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
        first = producer.add_tasks(("add_one", n) for n in range(200))
        assert producer.get_result(first[-1], 20) == 200
        with settler(worker).busy:
            ids = producer.add_tasks(("large", n) for n in range(1, 20))
            until(lambda: settler(worker).backlog == 2, "one of each runner")
            until(lapse(0.5), "time for more")
            assert settler(worker).backlog == 2
        sizes = [len(producer.get_result(i, 20)) for i in ids]
    assert sizes == [LARGE_RESULT + n for n in range(1, 20)]


def test_nothing_is_lost_when_the_server_is_killed_again_and_again(
    private_server: Callable[..., Server],
) -> None:
    """Under load with three kills of the server, each task succeeds once."""
    server = private_server(appendonly=True, appendfsync="always")
    with (
        TaskProducer(url=server.url, timeout=30) as producer,
        TaskWorker(url=server.url, task_handlers=registry, lease=2),
    ):
        ids: list[str] = []
        for n in range(3):
            kind = "async_counted" if n == 1 else "counted"
            items = [(kind, f"{n}-{i}") for i in range(1500)]
            ids += producer.add_tasks(items)
            server.kill()
            server.start()
        for task_id in ids:
            assert producer.get_result(task_id, 30) >= 1
        counters = producer.snapshot().counters
        assert counters["succeeded"] == len(ids)
        assert counters.get("failed", 0) == 0
        with server.client() as client:
            events: Any = client.xrange("history:tasks")
            done = [fields["id"] for _, fields in events if fields["state"] == "succeeded"]
            assert sorted(done) == sorted(ids)
            assert client.xlen("tasks") == 0


@pytest.mark.parametrize("what", ["FLUSHDB", "SCRIPT FLUSH", "DESTROY", "DEL", "restart"])
def test_a_worker_lives_through_a_server_that_forgets(
    private_server: Callable[..., Server], what: str
) -> None:
    """After data, scripts, group or stream are gone the worker runs new tasks, known by name."""
    server = private_server()
    with (
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=server.url, task_handlers=registry, lease=2) as worker,
        server.client() as client,
    ):
        running = producer.add_task("waits", "a")
        assert started.wait(10)
        if what == "FLUSHDB":
            client.flushdb()
        elif what == "SCRIPT FLUSH":
            client.script_flush()
        elif what == "DESTROY":
            client.xgroup_destroy("tasks", "workers")
        elif what == "DEL":
            client.delete("tasks")
        else:
            server.restart()  # without persistence: it comes back empty
        ids = producer.add_tasks([("add_one", n) for n in range(20)])
        assert [producer.get_result(i, 15) for i in ids] == [n + 1 for n in range(20)]
        go.set()
        if what == "SCRIPT FLUSH":
            assert producer.get_result(running, 10) == 1
        assert producer.get_result(producer.add_task("add_one", 1, delay=0.05), 10) == 2
        if what in ("FLUSHDB", "restart"):
            until(lambda: list(registered(client).values()) == [os.getpid()], "it registers again")
        assert worker.stop() is True


def test_a_worker_stops_in_time_though_its_server_is_away(
    private_server: Callable[..., Server],
) -> None:
    """stop(timeout) with the server down takes the timeout and some seconds, not for ever."""
    server = private_server()
    worker = TaskWorker(url=server.url, task_handlers=registry, lease=2)
    with worker:
        server.kill()
        until(lapse(0.3), "the loss is noticed")
        at = time.monotonic()
        worker.stop(1)
        assert time.monotonic() - at < 12


# -- connections -----------------------------------------------------------------------------------


def test_a_lost_delivery_is_taken_up_again(server: Server, db: redis.Redis) -> None:
    """Tasks that the server delivered on a connection that died run at once, by the same worker."""
    with (
        Proxy(server.port) as proxy,
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=proxy.url, task_handlers=registry, lease=60) as worker,
    ):
        assert producer.get_result(producer.add_task("add_one", 1), 10) == 2
        for n in range(3):
            proxy.lose(lambda data: b"payload" in data)
            ids = producer.add_tasks([("counted", f"{n}-{i}") for i in range(10)])
            at = time.monotonic()
            assert [producer.get_result(i, 15) for i in ids] == [1] * 10
            assert time.monotonic() - at < 15, "long before the lease of 60 s"
            assert proxy.lost == n + 1
        assert {tuple(history(db, i)) for i in ids} == {("succeeded",)}
        assert processor_of(worker).lost == 0


def test_a_lost_answer_of_a_settlement_settles_once(server: Server, db: redis.Redis) -> None:
    """The settlement is sent again, answered as done, and counts once."""
    with (
        Proxy(server.port) as proxy,
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=proxy.url, task_handlers=registry, lease=60) as worker,
    ):
        for n in range(5):
            producer.pause()
            until(lambda: scoreboard_of(worker).paused, "the pause")
            task_id = producer.add_task("counted", str(n))
            producer.resume()
            until(lambda i=task_id: producer.get_task(i).settled, "its end")
        task_id = producer.add_task("waits", "a")
        assert started.wait(10)
        proxy.lose(lambda data: data in (b"*0\r\n", b"*-1\r\n"))  # nothing was lost, it says
        go.set()
        assert producer.get_result(task_id, 10) == 1
        until(lambda: proxy.lost == 1, "the lost answer")
        assert producer.get_result(producer.add_task("add_one", 1), 10) == 2
        assert history(db, task_id) == ["succeeded"]
        assert processor_of(worker).lost == 0
        assert producer.snapshot().counters["succeeded"] == 7


def test_connections_cut_at_any_moment_run_nothing_twice(server: Server, db: redis.Redis) -> None:
    """Two thousand tasks over connections that are cut all the time: each runs and counts once."""
    with (
        Proxy(server.port) as proxy,
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=proxy.url, task_handlers=registry, lease=60) as worker,
    ):
        ids: list[str] = []
        for n in range(20):
            ids += producer.add_tasks([("counted", f"{n}-{i}") for i in range(100)])
            until(lapse(0.01), "some work")
            proxy.cut()
        assert [producer.get_result(i, 30) for i in ids] == [1] * 2000
        assert set(runs.values()) == {1}
        assert producer.snapshot().counters["succeeded"] == 2000
        until(lambda: producer.snapshot().pending == 0, "nothing is left pending")
        assert processor_of(worker).lost == 0


# -- a late worker ---------------------------------------------------------------------------------


def test_the_outcome_of_a_worker_that_lost_its_lease_does_not_count(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """A task recovered from under a living worker is settled by its new owner alone."""
    first = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    with first:
        task_id = producer.add_task("waits", "a")
        assert started.wait(10)
        broker = Broker(Address(url))
        calls = Commands(QueueKeys())
        broker.call(calls.recover(5, consumer=first.consumer))
        broker.close()
        until(lambda: runs["a"] == 1 and producer.snapshot().pending >= 0, "the recovery")
        with TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2):
            until(lambda: runs["a"] == 2, "the second run")
            go.set()
            assert producer.get_result(task_id, 10) == 2
        until(lambda: processor_of(first).lost == 1, "the first run is told")
    assert history(db, task_id) == ["recovered", "succeeded"]
    assert producer.snapshot().counters["succeeded"] == 1


def test_a_tasks_that_was_settled_while_we_looked_is_not_taken_up(url: str, tmp_path: Path) -> None:
    """The list of what is pending may be older than a settlement: that is no lost delivery."""
    settings = WorkerSettings(lease=2, threads=1)
    broker, calls = Broker(Address(url)), Commands(QueueKeys())
    scoreboard = Scoreboard.create(200)

    class Late:
        """A connection whose answer arrives after the task was settled."""

        def __init__(self) -> None:
            entries = [(b"1-0", [b"id", b"x"]), (b"2-0", [b"id", b"y"])]
            self.pages: list[Any] = [[[b"tasks", entries]], []]

        def ask(self, command: Any, read: Callable[[Any], Any]) -> Any:
            held.pop((b"1-0", queue), None)
            return read(self.pages.pop(0))

    processor = Processor(settings, registry, broker, [calls], "me", scoreboard)
    fetcher, held = processor.fetcher, processor.fetcher.held
    (queue,) = fetcher.queues
    fetcher.accept([(b"1-0", [], queue)])
    processor.runners.take_unstarted()  # it runs
    fetcher.take_up_lost_answers(Late())  # type: ignore[arg-type]
    assert [task[0] for task in processor.runners.ready] == [b"2-0"]
    assert list(held) == [(b"2-0", queue)]
    broker.close()


def test_tasks_that_could_not_be_given_back_are_found_again(
    url: str, producer: TaskProducer, tmp_path: Path
) -> None:
    """A failed release forgets nothing: what is still pending for us is read again."""

    class Failing(Broker):
        def call(self, command: Any) -> Any:
            if self.failing:
                from redistq import ServerUnavailable

                raise ServerUnavailable("not now")
            return super().call(command)

        failing = False

    broker, calls = Failing(Address(url)), Commands(QueueKeys())
    scoreboard = Scoreboard.create(200)
    processor = Processor(
        WorkerSettings(lease=2, threads=1), registry, broker, [calls], "me", scoreboard
    )
    broker.call(calls.create_group())
    ids = producer.add_tasks([("add_one", n) for n in range(3)])
    wire = broker.connection(5)
    fetcher, reader, ready = processor.fetcher, processor.fetcher.reader, processor.runners.ready
    fetcher.accept(reader.read(wire, 10, 1))
    broker.failing = True
    fetcher.give_back()
    assert (len(ready), reader.look_again) == (0, True)
    broker.failing = False
    fetcher.take_up_lost_answers(wire)
    assert len(ready) == 3
    reader.look_again = False
    fetcher.give_back()
    assert (len(ready), len(fetcher.held), reader.look_again) == (0, 0, False)
    assert {producer.get_task(i).state for i in ids} == {"queued"}
    wire.close()
    with pytest.raises(ConnectionLost):
        wire.receive(0.1)
    broker.close()
