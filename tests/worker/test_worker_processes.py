"""Workers in processes of their own: the command, its signals and exit codes, and processes=N."""

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
from support.servers import Server, free_port
from support.workers import (
    Command,
    alive,
    command,
    history,
    lapse,
    registered,
    until,
    worker_commands,
)

from redistq import ConfigurationError, ServerUnavailable, TaskProducer, TaskWorker
from redistq.connection.address import Address
from redistq.worker.settings import WorkerSettings
from redistq.worker.supervisor import Supervisor

JOBS = '''
import ctypes, hashlib, os, signal, sys, time
import redis
from redistq import Registry, task

registry = Registry()
out = redis.Redis.from_url(
    os.environ["JOBS_URL"], decode_responses=True, socket_timeout=None
)

@task
@registry.task
def double(payload):
    return payload * 2

@registry.task
async def async_double(payload):
    return payload * 2

@registry.task
def waits(payload, context):
    """Says that it runs, then waits for a word."""
    out.rpush("started", context.task_id)
    out.rpush("runs:" + context.task_id, f"{context.attempt}/{context.recovered}/{os.getpid()}")
    answer = out.blpop("go:" + payload, 30)
    return os.getpid() if answer else 1 / 0

@registry.task
def holds(payload, context):
    """Sleeps in native code that keeps the interpreter's lock."""
    out.rpush("runs:" + context.task_id, f"{context.attempt}/{context.recovered}/{os.getpid()}")
    out.rpush("started", context.task_id)
    ctypes.PyDLL(None).usleep(int(payload * 1e6))
    return "held"

@registry.task(retries=0)
def dies(payload, context):
    out.rpush("runs:" + context.task_id, f"{context.attempt}/{context.recovered}/{os.getpid()}")
    os.kill(os.getpid(), signal.SIGKILL)

@registry.task(retries=0)
def hashes(payload):
    """One native call that takes for ever."""
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)

@registry.task(retries=0)
async def blocks(payload):
    time.sleep(payload)

@registry.task
def forks(payload, context):
    """Leaves a child behind that inherits all this process has open."""
    if os.fork() == 0:
        out.rpush("forked", os.getpid())
        time.sleep(60)
        os._exit(0)
    return waits(payload, context)
'''


@pytest.fixture
def jobs(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of handlers that talk to the test through the server."""
    monkeypatch.setenv("JOBS_URL", url)
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path


@pytest.fixture
def worker(jobs: Path, url: str) -> Iterator[Callable[..., Command]]:
    """Starts ``python -m redistq.worker jobs:registry``, ready when it returns."""
    with worker_commands(jobs, url, "jobs:registry", "--lease", "2") as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


def started(db: redis.Redis) -> str:
    """Wait for the next task that says that it runs; its id."""
    return str(until(lambda: db.lpop("started"), "a task to start", 15))


def runs(db: redis.Redis, task_id: str) -> list[str]:
    """attempt/recovered of every run of a task."""
    found: Any = db.lrange(f"runs:{task_id}", 0, -1)
    return [run.rpartition("/")[0] for run in found]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_runs_tasks_in_as_many_processes(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """Two processes register, share the work, and leave nothing behind after SIGTERM."""
    one = worker("--processes", "2", "--threads", "1")
    assert "ready: 2 processes of 1 threads for queue tasks" in one.output
    pids = set(registered(db).values())
    assert len(pids) == 2
    assert one.pid not in pids
    ids = [producer.add_task("waits", key) for key in "ab"]
    assert {started(db), started(db)} == set(ids)
    db.rpush("go:a", 1)
    db.rpush("go:b", 1)
    assert {producer.get_result(i, 10) for i in ids} == pids
    assert producer.get_result(producer.add_task("async_double", 4), 10) == 8
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    assert "SIGTERM: draining" in one.output
    assert not any(alive(pid) for pid in pids)
    assert registered(db) == {}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl-C"])
def test_a_signal_drains(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis, how: str
) -> None:
    """Running tasks finish, unstarted ones go back uncounted, and the exit code is 0."""
    one = worker("--threads", "1")
    for n in range(40):
        assert producer.get_result(producer.add_task("double", n), 10) == n * 2
    task_id = producer.add_task("waits", "a")
    behind = producer.add_tasks([("double", n) for n in range(20)])
    assert started(db) == task_id
    if how == "Ctrl-C":
        one.interrupt_group()
    else:
        one.send(getattr(signal, how))
    one.says("draining")
    # Whatever was fetched behind the running task is let go of before that ends.
    until(lambda: producer.snapshot().pending == 1, "only the running task is held")
    db.rpush("go:a", 1)
    assert one.wait() == 0
    assert producer.get_task(task_id).state == "succeeded"
    assert history(db, task_id) == ["succeeded"]
    assert {producer.get_task(i).state for i in behind} == {"queued"}
    assert {(e["attempt"], e["recovered"]) for _, e in db.xrange("tasks")} == {("1", "0")}


def test_a_second_signal_ends_at_once(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """The second SIGTERM kills: exit code 1, and the running task goes back, charged."""
    one = worker("--threads", "1", "--shutdown-timeout", "60")
    task_id = producer.add_task("waits", "a")
    started(db)
    (pid,) = registered(db).values()
    one.send(signal.SIGTERM)
    one.says("draining")
    at = time.monotonic()
    one.send(signal.SIGTERM)
    assert one.wait() == 1
    assert time.monotonic() - at < 3
    assert not alive(pid)
    ((_, entry),) = db.xrange("tasks")
    assert (entry["attempt"], entry["recovered"]) == ("1", "1")
    assert history(db, task_id) == ["recovered"]
    worker()
    db.rpush("go:a", 1)
    producer.get_result(task_id, 10)
    assert runs(db, task_id) == ["1/0", "1/1"]


def test_tasks_that_outlast_the_shutdown_timeout_are_cut_off(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """After --shutdown-timeout the exit code is 1 and the task is back in the queue."""
    one = worker("--threads", "1", "--shutdown-timeout", "0.5")
    task_id = producer.add_task("waits", "a")
    started(db)
    one.send(signal.SIGTERM)
    assert one.wait(10) == 1
    assert producer.get_task(task_id).state == "queued"
    assert history(db, task_id) == ["recovered"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nowhere"], 2, "there is no module 'nowhere' here"),
        (["broken"], 2, "ValueError: broken on import"),
        (["empty"], 2, "empty registers no task"),
        (["jobs:double"], 2, "jobs:double is no Registry and no mapping"),
        (["jobs:missing"], 2, "jobs:missing is no Registry"),
        (["jobs", "--lease", "0.1"], 2, "lease is at least 1 second"),
        (["jobs", "--url", "http://x"], 2, "is no server's URL"),
        (["jobs", "--processes", "0"], 2, "--processes is 1 or more"),
        (["jobs", "--url", "redis://127.0.0.1:1/0"], 1, "is the server up?"),
        ([], 2, "name a module with handlers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_said_and_ends(
    jobs: Path, url: str, args: list[str], code: int, words: str
) -> None:
    """A module, setting or server that cannot work ends the command with a message and a code."""
    (jobs / "broken.py").write_text("raise ValueError('broken on import')\n")
    (jobs / "empty.py").write_text("")
    with command(jobs, "-m", "redistq.worker", *args, url=url) as one:
        assert one.wait() == code, one.output
        assert words in one.output


def test_help_says_how_to_use_it(jobs: Path) -> None:
    """--help shows an example, where the server is looked for, the signals and the exit codes."""
    with command(jobs, "-m", "redistq.worker", "--help") as one:
        assert one.wait() == 0
        for words in ("@task", "$REDISTQ_URL", "SIGTERM", "exit codes: 0", "--lease", "(10)"):
            assert words in one.output


# -- the heartbeat ---------------------------------------------------------------------------------


def test_a_task_that_holds_the_interpreter_is_not_run_twice(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """Native code that starves a whole process beyond its lease does not make it a dead one."""
    worker("--lease", "1")
    worker("--lease", "1")
    task_id = producer.add_task("holds", 2.5)
    assert producer.get_result(task_id, 15) == "held"
    assert runs(db, task_id) == ["1/0"]
    assert history(db, task_id) == ["succeeded"]


# -- deaths ----------------------------------------------------------------------------------------


def test_a_killed_child_is_recovered_at_once_and_replaced(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """kill -9 of a child: its task runs again long before the lease is over, settled once."""
    one = worker("--threads", "1", "--lease", "60")
    task_id = producer.add_task("waits", "a")
    started(db)
    (pid,) = registered(db).values()
    os.kill(pid, signal.SIGKILL)
    at = time.monotonic()
    until(lambda: history(db, task_id) == ["recovered"], "the recovery")
    assert time.monotonic() - at < 2
    assert started(db) == task_id
    assert time.monotonic() - at < 5
    db.rpush("go:a", 1)
    new = producer.get_result(task_id, 10)
    assert new in registered(db).values()
    assert pid not in registered(db).values()
    assert runs(db, task_id) == ["1/0", "1/1"]
    assert history(db, task_id) == ["recovered", "succeeded"]
    assert "was killed by SIGKILL, which its supervisor did not send" in one.output
    one.says("has gone: 1 task recovered\n")


def test_a_task_that_kills_its_process_every_time_is_a_dead_letter(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """Beyond --max-recoveries it ends as WorkerLost; what waited beside it is not charged."""
    worker("--threads", "1", "--max-recoveries", "1")
    for n in range(40):
        producer.get_result(producer.add_task("double", n), 10)
    innocents = producer.add_tasks([("double", n) for n in range(5)])
    producer.pause()
    until(lambda: producer.snapshot().pending == 0, "the end of those")
    poison = producer.add_task("dies")
    behind = producer.add_tasks([("double", n) for n in range(30)])
    producer.resume()
    with pytest.raises(Exception, match=r"WorkerLost.*2 times in all"):
        producer.get_result(poison, 20)
    assert runs(db, poison) == ["1/0", "1/1"]
    assert history(db, poison) == ["recovered", "failed"]
    assert [producer.get_result(i, 10) for i in behind] == [n * 2 for n in range(30)]
    assert {tuple(history(db, i)) for i in (*innocents, *behind)} == {("succeeded",)}


def test_a_killed_supervisor_leaves_no_orphans(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """kill -9 of the command: its children end, and another worker has the task in lease + 2 s."""
    worker("--threads", "1", "--lease", "2")  # lives, and is busy with the first task
    busy = producer.add_task("waits", "a")
    assert started(db) == busy
    first = set(registered(db).values())
    two = worker("--threads", "1", "--processes", "2", "--lease", "2")
    ids = [producer.add_task("waits", key) for key in "bc"]
    assert {started(db), started(db)} == set(ids)
    children = set(registered(db).values()) - first
    assert len(children) == 2
    two.send(signal.SIGKILL)
    at = time.monotonic()
    until(lambda: not any(alive(pid) for pid in children), "the end of the children")
    db.rpush("go:a", 1)
    for _ in ids:
        task_id = started(db)
        assert time.monotonic() - at < 4 + 1, "lease + 2 s, and one for this machine"
        db.rpush("go:" + "bc"[ids.index(task_id)], 1)
        producer.get_result(task_id, 10)
    for task_id in ids:
        assert runs(db, task_id) == ["1/0", "1/1"]
        assert history(db, task_id) == ["recovered", "succeeded"]


def test_a_child_that_forked_is_still_seen_to_die(
    worker: Callable[..., Command], producer: TaskProducer, db: redis.Redis
) -> None:
    """A process that a handler forked, and that outlives it, delays nobody's recovery."""
    worker("--threads", "1", "--lease", "60")
    task_id = producer.add_task("forks", "a")
    left_behind = int(until(lambda: db.lpop("forked"), "a fork"))
    try:
        started(db)
        (pid,) = registered(db).values()
        os.kill(pid, signal.SIGKILL)
        at = time.monotonic()
        until(lambda: history(db, task_id) == ["recovered"], "the recovery")
        assert time.monotonic() - at < 2
    finally:
        os.kill(left_behind, signal.SIGKILL)
    os.kill(int(until(lambda: db.lpop("forked"), "another fork")), signal.SIGKILL)
    db.rpush("go:a", 1)
    producer.get_result(task_id, 10)


@pytest.mark.parametrize("task", ["hashes", "blocks"])
def test_native_code_past_its_limit_costs_the_child_its_life(
    jobs: Path, url: str, producer: TaskProducer, db: redis.Redis, task: str
) -> None:
    """A task that cannot be interrupted is killed with its process and ends as a dead letter."""
    (jobs / "quick.py").write_text(
        "import redistq.worker.limits\n"
        "redistq.worker.limits.HARD_LIMIT_GRACE = 0.3\n"
        "from jobs import registry\n"
    )
    options = ("--lease", "2", "--max-recoveries", "0")
    with command(jobs, "-m", "redistq.worker", "quick:registry", *options, url=url) as one:
        one.says("ready:")
        task_id = producer.add_task(task, 60, timeout=0.2, retries=0)
        with pytest.raises(Exception, match="TimeLimitExceeded: the hard time limit"):
            producer.get_result(task_id, 15)
        one.says("exceeded a time limit; starting another")
        assert producer.get_result(producer.add_task("double", 2), 15) == 4


def test_children_outlive_a_server_that_is_away(
    jobs: Path, private_server: Callable[..., Server]
) -> None:
    """With the server down and a child killed, the command keeps trying until both are back."""
    server = private_server(appendonly=True)
    with (
        command(
            jobs, "-m", "redistq.worker", "jobs:registry", "--lease", "2", url=server.url
        ) as one,
        server.client() as client,
    ):
        one.says("ready:")
        (pid,) = registered(client).values()
        server.stop()
        os.kill(pid, signal.SIGKILL)
        one.says("starting another")
        until(lapse(1.0), "some tries in vain")
        assert one.process.poll() is None
        server.start()
        with TaskProducer(url=server.url) as producer:
            assert producer.get_result(producer.add_task("double", 2), 40) == 4
        one.send(signal.SIGTERM)
        assert one.wait() == 0


# -- processes=N -----------------------------------------------------------------------------------


def double_here(payload: int) -> int:
    return payload * 2


def pid_here(payload: Any) -> int:
    time.sleep(payload)  # so that both processes take part
    return os.getpid()


def test_a_worker_of_processes_runs_functions_of_this_program(
    url: str, db: redis.Redis, producer: TaskProducer
) -> None:
    """Functions of this module, lambdas and closures run in child processes, until stop."""
    bound = 10

    def closure(payload: int) -> int:
        return payload + bound

    handlers = {"double": double_here, "closure": closure, "inc": lambda payload: payload + 1}
    worker = TaskWorker(url=url, task_handlers=handlers, processes=2, thread_count=1, lease=2)
    with worker:
        pids = set(registered(db).values())
        assert len(pids) == 2
        assert os.getpid() not in pids
        ids = producer.add_tasks([("double", 4), ("closure", 4), ("inc", 4)])
        assert [producer.get_result(i, 10) for i in ids] == [8, 14, 5]
        assert "processes=2" in repr(worker)
        assert worker.stop() is True
        assert worker.stop() is True
        assert not any(alive(pid) for pid in pids)
        assert registered(db) == {}


def test_handlers_that_children_cannot_load_are_named(jobs: Path, url: str) -> None:
    """start() raises ConfigurationError with the child's reason, or that of the pickling."""
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match="cannot be sent to child processes"):
        TaskWorker(url=url, task_handlers={"a": lambda p: lock}, processes=1).start()
    (jobs / "only_here.py").write_text(
        "import os\nif 'IN_CHILD' in os.environ: raise ValueError('not in a child')\n"
        "def f(payload): return 1\n"
    )
    code = (
        "import os, only_here\n"
        "from redistq import TaskWorker, ConfigurationError\n"
        "os.environ['IN_CHILD'] = '1'\n"
        "worker = TaskWorker(task_handlers={'f': only_here.f}, processes=1)\n"
        "try: worker.start()\n"
        "except ConfigurationError as error: print('refused:', error)\n"
        "print('running:', worker.running)\n"
    )
    with command(jobs, "-c", code, url=url) as one:
        assert one.wait() == 0
        assert "refused: the worker processes could not start: ValueError: not in a" in one.output
        assert "running: False" in one.output


def test_a_worker_of_processes_needs_a_server(jobs: Path) -> None:
    """Without a server start() raises ServerUnavailable in bounded time and may be tried again."""
    worker = TaskWorker(
        url=f"redis://127.0.0.1:{free_port()}/0", task_handlers={"d": double_here}, processes=1
    )
    started = time.monotonic()
    with pytest.raises(ServerUnavailable):
        worker.start()
    assert time.monotonic() - started < 15
    assert not worker.running


def test_children_end_with_the_program_that_started_them(
    jobs: Path, url: str, db: redis.Redis, producer: TaskProducer
) -> None:
    """kill -9 of a program with processes=2: supervisor and children end, running work is
    recovered."""
    code = (
        "import time, jobs\n"
        "from redistq import TaskWorker\n"
        "worker = TaskWorker(task_handlers=jobs.registry, processes=2, thread_count=1,\n"
        "                    lease=60, shutdown_timeout=0.2).start()\n"
        "print('up', worker._running.sidecar.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with command(jobs, "-c", code, url=url) as one:
        one.says("up")
        supervisor = int(one.output.split("up ")[1].split()[0])
        task_id = producer.add_task("waits", "a")
        started(db)
        children = set(registered(db).values())
        one.send(signal.SIGKILL)
        until(lambda: not alive(supervisor), "the supervisor's end")
        until(lambda: not any(alive(pid) for pid in children), "the children's end")
        assert history(db, task_id) == ["recovered"]
        assert producer.get_task(task_id).state == "queued"
        assert registered(db) == {}


def test_a_command_without_a_scheduler_hears_a_pause_at_once(
    worker: Callable[..., Command], producer: TaskProducer
) -> None:
    """With --no-scheduler pauses are heard when they are made, not with the next heartbeat."""
    one = worker("--no-scheduler", "--lease", "300")
    assert producer.get_result(producer.add_task("double", 1), 10) == 2
    producer.pause()
    one.says("queue tasks is paused", 5)
    waits = producer.add_task("double", 2)
    producer.resume()
    one.says("queue tasks is resumed", 5)
    assert producer.get_result(waits, 5) == 4


def test_a_supervisor_can_be_told_to_stop_before_it_runs(url: str) -> None:
    """request_stop before run ends it at once, with nothing left to do."""
    supervisor = Supervisor(WorkerSettings(lease=2), Address(url))
    supervisor.request_stop()
    assert supervisor.run() == 0
