"""What becomes of a task when something breaks after its handler ended, and of a worker whose
threads end unasked.

Each task ends in one place with its waiters told, and the worker goes on with the others, or says
that it cannot and gives them back.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.clients import serving
from support.servers import Server
from support.workers import command, processor_of, registered, until

from redistq import (
    ConfigurationError,
    Registry,
    Retry,
    Snooze,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    tracing,
)
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.functions.output import LogSink
from redistq.handlers import RetryPolicy
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.worker.attempt import Attempt
from redistq.worker.executor import Executor
from redistq.worker.outcome import Outcome
from redistq.worker.processor import EXIT_FAULT, Processor
from redistq.worker.queues import Delivery, WorkerQueue
from redistq.worker.scoreboard import Scoreboard
from redistq.worker.settings import WorkerSettings

registry = Registry()


# -- outcomes that cannot be booked as they are ----------------------------------------------------


class Policy(RetryPolicy):
    """A policy with a mistake in it."""

    def wants(self, error: BaseException) -> bool:
        raise LookupError("the policy is broken")


class EndlessPolicy(RetryPolicy):
    def delay(self, attempt: int) -> float:
        return float("nan")


class Exits(dict[str, Any]):
    """A result that ends the program when it is written."""

    def items(self) -> Any:
        raise SystemExit("while it is written")

    def __len__(self) -> int:
        return 1


class Attributes(Exception):
    """Has every attribute, and none of use."""

    def __getattr__(self, name: str) -> Any:
        return None


class Refusing(Exception):
    """Refuses to be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)

    __str__ = __repr__ = __eq__ = __hash__ = __getattribute__  # type: ignore[assignment]


class Pretending(Exception):
    """Claims to be of another class."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("of no class")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int = 5


class MyRetry(Retry):
    """Made without its base's constructor, and changed afterwards."""

    def __init__(self) -> None:
        self.delay = "5"  # type: ignore[assignment]


def mutated(error: Any) -> Any:
    error.delay = object()
    return error


BREAKS: dict[str, tuple[Callable[[], Any], str, str]] = {
    # what the handler does: raise or return it, what the task fails with, and what is its cause
    "delay of text": (lambda: Retry(delay="5"), "InvalidDelay", ""),  # type: ignore[arg-type]
    "delay of nan": (lambda: Retry(delay=float("nan")), "InvalidDelay", ""),
    "delay without end": (lambda: Retry(delay=float("inf")), "InvalidDelay", ""),
    "a huge delay": (lambda: Retry(delay=10**400), "InvalidDelay", ""),
    "delay of no kind": (lambda: Snooze(object()), "InvalidDelay", ""),  # type: ignore[arg-type]
    "snooze None": (lambda: Snooze(None), "InvalidDelay", ""),  # type: ignore[arg-type]
    "changed later": (lambda: mutated(Snooze(1)), "InvalidDelay", "Snooze"),
    "its own Retry": (MyRetry, "InvalidDelay", "MyRetry"),
    "attributes": (lambda: Attributes("boom"), "Attributes", ""),
    "refusing": (Refusing, "Refusing", ""),
    "pretending": (lambda: Pretending("boom"), "Pretending", ""),
    "frozen": (Frozen, "Frozen", ""),
    "group": (lambda: ExceptionGroup("g", [Refusing(), Retry(0)]), "ExceptionGroup", ""),
    "exit in a group": (lambda: BaseExceptionGroup("g", [SystemExit()]), "BaseExceptionGroup", ""),
    "recursion": (lambda: RecursionError("deep"), "RecursionError", ""),
    "result": (lambda: Exits(a=1), "SystemExit", ""),
    "colliding keys": (lambda: {1: 2, "1": 3}, "ResultError", ""),
}


def _act(how: str) -> Any:
    made = BREAKS[how][0]()
    if issubclass(type(made), BaseException):  # isinstance() would ask it
        raise made
    return made


@registry.task(retries=0)
def breaks(how: str) -> Any:
    return _act(how)


@registry.task(retries=0)
async def async_breaks(how: str) -> Any:
    return _act(how)


def _with(policy: RetryPolicy, is_async: bool) -> Callable[[Any], Any]:
    def fails(payload: Any) -> None:
        raise ValueError("the handler's own")

    async def async_fails(payload: Any) -> None:
        raise ValueError("the handler's own")

    function = async_fails if is_async else fails
    name = f"{'async_' if is_async else ''}{type(policy).__name__}"
    registry.add(name, function, policy=policy)
    return function


for _policy in (Policy(), EndlessPolicy()):
    _with(_policy, False), _with(_policy, True)


@registry.task
def echo(payload: Any) -> Any:
    return payload


@registry.task
async def async_echo(payload: Any) -> Any:
    return payload


@pytest.fixture(scope="module")
def shared_server(valkey_server: Server) -> Server:
    """The session's server, emptied once for this module."""
    valkey_server.flush()
    return valkey_server


@pytest.fixture(scope="module")
def worker(shared_server: Server) -> Iterator[TaskWorker]:
    """One worker for all tests of outcomes: none of them may end a thread of it."""
    with TaskWorker(
        url=shared_server.url, stream="outcomes", task_handlers=registry, thread_count=1
    ) as running:
        yield running


@pytest.fixture(scope="module")
def producer(worker: TaskWorker) -> Iterator[TaskProducer]:
    with TaskProducer(address=worker.address, stream="outcomes") as made:
        yield made


@pytest.mark.parametrize("kind", ["", "async_"], ids=["sync", "async"])
@pytest.mark.parametrize("how", BREAKS)
def test_a_task_whose_outcome_cannot_be_kept_fails_with_that_fault(
    producer: TaskProducer, how: str, kind: str
) -> None:
    """It is failed, its waiter is told, it can be replayed, and the next task runs."""
    task_id = producer.add_task(f"{kind}breaks", how, retries=2 if how == "its own Retry" else 0)
    with pytest.raises(TaskFailed) as caught:
        producer.get_result(task_id, 10)
    _, fault, cause = BREAKS[how]
    assert caught.value.type == fault
    assert caught.value.message
    assert not cause or f"{cause}" in caught.value.traceback
    assert producer.get_task(task_id).state == "failed"
    assert producer.replay(task_id) == 1
    assert producer.get_result(producer.add_task(f"{kind}echo", how), 10) == how


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(("Policy", "LookupError"), ("async_Policy", "LookupError")),
        *(("EndlessPolicy", "ValueError"), ("async_EndlessPolicy", "ValueError")),
    ],
)
def test_a_broken_policy_is_the_fault_and_the_handlers_error_its_cause(
    producer: TaskProducer, name: str, fault: str
) -> None:
    """Whoever looks at the failure sees both."""
    with pytest.raises(TaskFailed) as caught:
        producer.get_result(producer.add_task(name, retries=3), 10)
    assert caught.value.type == fault
    assert "ValueError: the handler's own" in caught.value.traceback
    assert "direct cause" in caught.value.traceback


@pytest.mark.parametrize("delay", [-1, -0.5, float("-inf")])
def test_a_delay_below_zero_is_at_once(delay: float) -> None:
    """A moment that has just passed, as a handler may compute it, is no mistake."""
    assert Retry(delay).delay == Snooze(delay).delay == 0


@pytest.mark.parametrize("option", ["retry_on", "never_retry"])
@pytest.mark.parametrize("given", ["ValueError", ("KeyError",), [ValueError, "x"], int, None, 5])
def test_retry_options_that_are_no_exception_types_are_refused(option: str, given: Any) -> None:
    """The mistake shows where it was made, not when the first task fails."""
    with pytest.raises(ConfigurationError, match=option):
        Registry().task(**{option: given})  # type: ignore[call-overload]


def test_several_exception_types_may_come_in_any_collection() -> None:
    """A type alone, a tuple, a list, a set."""
    for given in (ValueError, (ValueError,), [ValueError], {ValueError}):
        assert RetryPolicy(retry_on=given).wants(ValueError())  # type: ignore[arg-type]
        assert not RetryPolicy(never_retry=given).wants(ValueError())  # type: ignore[arg-type]


def test_faults_of_function_calls_reach_their_future() -> None:
    """Errors that refuse to be looked at, in a submitted function, are told like any other."""

    def fail(how: str) -> None:
        class Shy(Exception):
            def __getattribute__(self, name: str) -> Any:
                raise SystemExit(name)

            __str__ = __repr__ = __reduce__ = __getattribute__  # type: ignore[assignment]

        class Local:
            def __repr__(self) -> str:
                raise SystemExit("a local variable")

        seen = Local()
        assert seen is not None
        if how == "shy":
            raise Shy
        if how == "delay":
            raise Retry(delay="5")  # type: ignore[arg-type]
        raise ValueError("plain")

    with serving(1) as client:
        for how, kind in (("shy", "Shy"), ("delay", "InvalidDelay"), ("plain", "ValueError")):
            error = client.options(retries=2).submit(fail, how).exception(20)
            assert kind in f"{type(error).__name__} {getattr(error, 'type', '')}"
        assert client.submit(abs, -2).result(10) == 2


# -- what is registered is what is called ----------------------------------------------------------


def plus_one(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(payload: int) -> Any:
        return function(payload) + 1

    return wrapper


def injecting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(payload: int) -> Any:
        return function(payload, 10)

    return wrapper


def injecting_whatever_comes(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs, extra=10)

    return wrapper


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def _alone(payload: int) -> int:
    return payload


def _with_extra(payload: int, extra: int) -> int:
    return payload + extra


def _with_named_extra(payload: int, *, extra: int) -> int:
    return payload + extra


def _with_context(payload: int, context: Any) -> int:
    return payload + int(context.attempt)


def _typed(payload: int, about: TaskContext | None = None) -> int:
    assert about is not None
    return payload + about.attempt


@pytest.mark.parametrize(
    ("decorate", "inner", "result"),
    [
        (plus_one, _alone, 6),
        (injecting, _with_extra, 15),
        (injecting_whatever_comes, _with_extra, 15),
        (injecting_whatever_comes, _with_named_extra, 15),
        (passing_on, _alone, 5),
        (passing_on, _with_context, 6),
        (passing_on, _typed, 6),
        (lambda function: passing_on(passing_on(function)), _with_context, 6),
        (lambda function: plus_one(passing_on(function)), _alone, 6),
        (lambda function: passing_on(plus_one(function)), _alone, 6),
    ],
)
def test_decorators_below_and_above_task_run(
    url: str, decorate: Any, inner: Callable[..., Any], result: int
) -> None:
    """The wrapper is what runs, with the arguments its own signature asks for."""

    handlers = Registry()
    handlers.add("below", decorate(inner))
    names = ["below"]
    if inner is _alone:  # @task asks the function that it is given, so that one must be a handler
        handlers.add("above", decorate(Registry().task(retries=0)(inner)))
        names.append("above")
    with TaskWorker(url=url, task_handlers=handlers, thread_count=1), TaskProducer(url=url) as door:
        for name in names:
            assert door.get_result(door.add_task(name, 5), 10) == result


def test_a_wrapper_around_a_decorated_task_keeps_its_options() -> None:
    """What @task was given holds for the function that a decorator above it made."""
    inner = Registry().task(retries=0, timeout=7)(_alone)
    handlers = Registry({"job": plus_one(inner)})
    assert handlers["job"].policy.retries == 0
    assert handlers["job"].timeout == 7
    assert handlers["job"].function(5) == 6


_skipping = Registry()


@plus_one
@_skipping.task
def skipped(payload: int) -> int:
    return payload


@_skipping.task
@plus_one
def run_whole(payload: int) -> int:
    return payload


def test_decorators_that_do_not_run_are_named(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A decorator above @task is not part of what was registered: a worker says so when it is
    made, and what to do; one below it, or a function passed on, is nothing to speak of."""
    TaskWorker(url=url, task_handlers=_skipping)
    assert [record.args for record in caplog.records] == [("skipped", "skipped")]
    caplog.clear()
    TaskWorker(url=url, task_handlers={"skipped": skipped})
    assert not caplog.records


# -- context variables -----------------------------------------------------------------------------

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def test_context_variables_end_with_their_task(url: str) -> None:
    """What a handler sets is not there for the next task of its thread or event loop."""
    handlers = Registry()

    @handlers.task
    def sets(payload: str) -> str:
        before = tenant.get()
        tenant.set(payload)
        return before

    @handlers.task
    async def async_sets(payload: str) -> str:
        before = tenant.get()
        tenant.set(payload)
        await asyncio.sleep(0)
        assert tenant.get() == payload
        return before

    options: dict[str, Any] = {"thread_count": 1, "async_concurrency": 2}
    with TaskWorker(url=url, task_handlers=handlers, **options), TaskProducer(url=url) as door:
        for name in ("sets", "async_sets"):
            ids = door.add_tasks([(name, f"t{n}") for n in range(20)])
            assert {door.get_result(task_id, 10) for task_id in ids} == {"nobody"}


# -- logging and tracing that fail -----------------------------------------------------------------


class _Tenant(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return bool(record.tenant)  # type: ignore[attr-defined]


class _Exits(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        sys.exit(3)


@pytest.fixture(params=["filter", "handler", "factory"])
def broken_logging(request: pytest.FixtureRequest) -> Iterator[None]:
    """Logging that fails for whoever logs."""
    root, added, factory = logging.getLogger(), _Exits(), logging.getLogRecordFactory()
    level = logging.getLogger("redistq").level
    logging.getLogger("redistq").setLevel(logging.DEBUG)
    if request.param == "filter":
        added = logging.StreamHandler()  # type: ignore[assignment]
        added.addFilter(_Tenant())
    if request.param == "factory":
        logging.setLogRecordFactory(lambda *args: 1 / 0)  # type: ignore[arg-type,return-value]
    else:
        root.addHandler(added)
    yield
    root.removeHandler(added)
    logging.setLogRecordFactory(factory)
    logging.getLogger("redistq").setLevel(level)


def processor_threads() -> set[int]:
    """The threads of all crews in this process."""
    parts = tuple(f"redistq-{part}-" for part in ("run", "fetch", "settle", "loop", "watch"))
    return {t.ident or 0 for t in threading.enumerate() if t.name.startswith(parts)}


@pytest.mark.usefixtures("broken_logging")
def test_logging_that_fails_costs_no_thread(
    url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks fail, are retried and succeed as ever, and the lines go to standard error."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handlers = Registry()

    @handlers.task(retries=1, backoff=0.01)
    def fails(payload: Any) -> None:
        raise ValueError("told")

    @handlers.task(retries=0)
    async def async_fails(payload: Any) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "the loop complains"})
        raise ValueError("told")

    with TaskWorker(url=url, task_handlers=handlers, thread_count=2), TaskProducer(url=url) as door:
        before = processor_threads()
        for name in ("fails", "async_fails") * 3:
            with pytest.raises(TaskFailed, match="told"):
                door.get_result(door.add_task(name), 10)
        assert before == processor_threads() != set()
    assert "failed for good: ValueError: told (logging failed:" in capfd.readouterr().err


def test_tracing_that_fails_costs_no_task(url: str) -> None:
    """A span processor that raises when a span ends loses the span, not the task or its result."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")

    class Broken(trace.SpanProcessor):  # type: ignore[misc]
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if "start" in self.breaks:
                raise RuntimeError("no span")

        def on_end(self, span: Any) -> None:
            raise SystemExit("no span")

        breaks = "end"

    provider, broken = trace.TracerProvider(), Broken()
    provider.add_span_processor(broken)
    tracing.enable(provider)
    try:
        with TaskWorker(url=url, task_handlers=registry), TaskProducer(url=url) as door:
            for broken.breaks in ("end", "start and end"):
                for name in ("echo", "async_echo"):
                    assert door.get_result(door.add_task(name, 5), 10) == 5
                with pytest.raises(TaskFailed, match="boom"):
                    door.get_result(door.add_task("breaks", "attributes"), 10)
    finally:
        tracing.disable()


# -- the event loop --------------------------------------------------------------------------------


def test_what_an_async_handler_starts_cannot_end_the_event_loop(url: str) -> None:
    """sys.exit in a task that a handler made, loop.stop, cancelling everything: others go on."""
    handlers, started = Registry(), threading.Event()

    async def leave() -> None:
        sys.exit(3)

    @handlers.task(retries=0)
    async def gathers(payload: Any) -> None:
        await asyncio.gather(leave())

    @handlers.task(retries=0)
    async def lets_go(payload: Any) -> str:
        payload["task"] = asyncio.create_task(leave())
        await asyncio.sleep(0.05)
        return "done"

    @handlers.task(retries=0)
    async def stops(payload: Any) -> str:
        asyncio.get_running_loop().stop()
        return "stopped"

    @handlers.task(retries=0)
    async def cancels_all(payload: Any) -> str:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        return "cancelled"

    @handlers.task(retries=0)
    async def waits(payload: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    @handlers.task
    async def ok(payload: Any) -> Any:
        return payload

    with TaskWorker(url=url, task_handlers=handlers) as worker, TaskProducer(url=url) as door:
        with pytest.raises(TaskFailed, match="SystemExit"):
            door.get_result(door.add_task("gathers"), 10)
        assert door.get_result(door.add_task("lets_go", {}), 10) == "done"
        assert door.get_result(door.add_task("stops"), 10) == "stopped"
        waiting = door.add_task("waits")
        assert started.wait(10)
        assert door.get_result(door.add_task("cancels_all"), 10) == "cancelled"
        with pytest.raises(TaskFailed, match="CancelledError"):
            door.get_result(waiting, 10)
        ids = door.add_tasks([("ok", n) for n in range(300)])  # more than there are places
        assert [door.get_result(task_id, 10) for task_id in ids] == list(range(300))
        assert worker.running
        assert not worker.fault


DEAF = """
import gc, os, signal, socket, threading, time
from redistq import task

def strikes(*_):
    raise RuntimeError("the alarm of a module")

signal.signal(signal.SIGALRM, strikes)

@task(retries=0)
def harms(payload):
    if payload == "alarm":
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.2)
    elif payload == "closes sockets":
        for each in gc.get_objects():
            if type(each) is socket.socket:
                each.close()
    else:
        for fd in os.listdir("/proc/self/fd"):
            try:
                if "socket" in os.readlink(f"/proc/self/fd/{fd}"):
                    os.close(int(fd))
            except OSError:
                pass
    return os.getpid()

@task
def sync_pid(payload):
    return os.getpid()

@task
async def async_pid(payload):
    return os.getpid()
"""


@pytest.mark.parametrize("harm", ["alarm", "closes sockets", "closes descriptors"])
def test_what_a_handler_does_to_its_process_holds_up_nobody(
    url: str, tmp_path: Path, harm: str
) -> None:
    """A signal handler that raises in the main thread, sockets that are closed, the one that wakes
    the event loop among them: the process goes on with threads and loop alike."""
    if harm == "closes descriptors" and not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors cannot be listed here")
    (tmp_path / "jobs.py").write_text(DEAF)
    args = ("-m", "redistq.worker", "jobs", "--threads", "2")
    with command(tmp_path, *args, url=url) as worker, TaskProducer(url=url) as door:
        worker.says("ready:")
        pid = door.get_result(door.add_task("sync_pid"), 20)
        assert door.get_result(door.add_task("async_pid"), 20) == pid
        assert door.get_result(door.add_task("harms", harm), 20) == pid
        for name in ("sync_pid", "async_pid", "async_pid"):
            assert door.get_result(door.add_task(name), 20) == pid
        if harm == "alarm":
            worker.says("raised by a signal handler")


@registry.task(timeout=0.2, retries=0)
def limited(payload: float) -> float:
    end = time.monotonic() + payload
    while time.monotonic() < end:
        pass
    return payload


def test_time_limits_hold_where_no_more_threads_are_to_be_had(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What watches them runs before the first task: none fails for want of a thread."""
    with (
        TaskWorker(url=url, task_handlers=registry, thread_count=1),
        TaskProducer(url=url) as door,
        monkeypatch.context() as patch,
    ):
        patch.setattr(threading.Thread, "start", no_more_threads)
        assert door.get_result(door.add_task("limited", 0), 20) == 0
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            door.get_result(door.add_task("limited", 30), 20)


def no_more_threads(thread: threading.Thread) -> None:
    """As ``Thread.start`` beyond the limit of a user or container."""
    raise RuntimeError("can't start new thread")


def test_what_a_task_prints_needs_no_thread(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for a client are sent at the task's end, at the latest."""
    keys, broker = QueueKeys("tasks"), Broker(Address(url))
    sink = LogSink(broker, keys)
    try:
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
        sink.put(keys.logs("a"), "out", "a line")
        sink.flush()
        assert broker.call(("XLEN", keys.logs("a"))) == 1
    finally:
        broker.close()


# -- a worker that cannot go on --------------------------------------------------------------------


ENDS = """
import ctypes, threading
from redistq import task

@task(retries=0)
def ends(payload):
    for thread in threading.enumerate():
        own = thread is threading.current_thread()
        if thread.name.startswith(f"redistq-{payload}") and not own:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    return payload

@task(timeout=50)
def limited(payload):
    return payload

@task
async def hello(payload):
    return payload
"""


@pytest.mark.parametrize("role", ["fetch", "settle", "run", "limits"])
def test_a_thread_that_ends_unasked_ends_its_process(
    url: str, tmp_path: Path, db: redis.Redis, role: str
) -> None:
    """The process says why and exits with a code of its own; another takes its place and works."""
    (tmp_path / "jobs.py").write_text(ENDS)
    args = ("-m", "redistq.worker", "jobs", "--threads", "2", "--lease", "2")
    with command(tmp_path, *args, url=url) as worker, TaskProducer(url=url) as door:
        worker.says("ready:")
        (first,) = registered(db).values()
        assert door.get_result(door.add_task("limited", 1), 20) == 1  # the watcher of limits runs
        door.add_task("ends", role)

        def said() -> bool:
            # A thread that waits ends when it has something to do.
            door.add_tasks([("limited", 0)] * 8 + [("hello", 0)])
            return "cannot go on" in worker.output

        until(said, "the end of the thread", 30)
        worker.says(f"exited with code {EXIT_FAULT}", 30)
        until(lambda: set(registered(db).values()) - {first}, "another process", 30)
        assert door.get_result(door.add_task("limited", 2), 30) == 2


def test_a_worker_inside_a_program_stops_and_says_so(
    url: str, caplog: pytest.LogCaptureFixture, db: redis.Redis
) -> None:
    """The program goes on, ``running`` and ``fault`` tell, and its tasks go to others."""
    worker = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2).start()
    consumer = worker.consumer
    processor_of(worker).executor.times = None  # a mistake of ours, in the fetcher
    with TaskProducer(url=url) as door:
        task_id = door.add_task("echo", 7)
        until(lambda: not worker.running, "its end", 20)
        assert "fetch" in worker.fault
        assert "cannot go on" in caplog.text
        until(lambda: consumer not in registered(db), "its leave", 20)
        worker.stop()
        with TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2) as other:
            assert door.get_result(task_id, 20) == 7
            assert not other.fault
        assert worker.start().running  # and it may be started again
        assert not worker.fault
        worker.stop()


def _refusing(refused: Callable[[Any], Exception | None]) -> type[Broker]:
    class Refusing(Broker):
        def call(self, command: Any) -> Any:
            if error := refused(command):
                raise error
            return super().call(command)

    return Refusing


_made: list[Processor] = []


@pytest.fixture(autouse=True)
def no_processor_is_left() -> Iterator[None]:
    """One that a failed test left would take the tasks of those that follow."""
    yield
    while _made:
        left = _made.pop()
        left.stop(0.1)
        left.broker.close()


def _processor(
    url: str, tmp_path: Path, refused: Callable[[Any], Exception | None]
) -> tuple[Processor, list[str]]:
    """A processor whose server refuses some calls, and why it could not go on."""
    broker, calls = _refusing(refused)(Address(url)), Commands(QueueKeys())
    faults: list[str] = []
    settings = WorkerSettings(lease=2, threads=1)
    scoreboard = Scoreboard.create(200)
    _made.append(Processor(settings, registry, broker, [calls], "me", scoreboard, faults.append))
    return _made[-1], faults


def _settles(command: Any, task_id: str) -> bool:
    return any(part in (task_id, task_id.encode()) for part in command) and "failed" not in command


def test_an_outcome_that_cannot_be_sent_fails_alone(
    url: str, tmp_path: Path, db: redis.Redis
) -> None:
    """Others of the same call are settled; the one ends as failed with the reason."""

    def refused(command: Any) -> Exception | None:
        return TypeError("not this one") if _settles(command, "odd") else None

    processor, faults = _processor(url, tmp_path, refused)
    processor.start()
    with TaskProducer(url=url) as door:
        door.add_tasks([{"type": "echo", "payload": n, "task_id": f"t{n}"} for n in range(9)])
        door.add_task("echo", 1, task_id="odd")
        assert [door.get_result(f"t{n}", 10) for n in range(9)] == list(range(9))
        with pytest.raises(TaskFailed, match="not this one"):
            door.get_result("odd", 10)
    assert processor.stop(5)
    processor.broker.close()
    assert not faults


def test_an_outcome_that_the_server_refuses_ends_the_processor_and_is_charged(
    url: str, tmp_path: Path
) -> None:
    """The others are settled meanwhile; after a lease the scoreboard says which task it was."""

    def refused(command: Any) -> Exception | None:
        return redis.ResponseError("odd") if any("odd" in str(part) for part in command) else None

    processor, faults = _processor(url, tmp_path, refused)
    with TaskProducer(url=url) as door:
        door.add_task("echo", 1, task_id="odd")
        entry = door.get_task("odd") and redis.Redis.from_url(url).xrange("tasks")[0][0].decode()
        processor.start()
        door.add_tasks([{"type": "echo", "payload": n, "task_id": f"t{n}"} for n in range(9)])
        assert [door.get_result(f"t{n}", 10) for n in range(9)] == list(range(9))
        until(lambda: faults, "the fault", 20)
    assert "refuses an outcome" in faults[0]
    assert processor.scoreboard.running() == [entry]


def test_settling_that_hangs_ends_the_processor(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settling call that never comes back is seen from outside."""
    monkeypatch.setattr("redistq.worker.processor.SLACK_S", 0.1)
    go = threading.Event()

    def refused(command: Any) -> Exception | None:
        if _settles(command, "odd"):
            go.wait(30)
        return None

    processor, faults = _processor(url, tmp_path, refused)
    processor.broker.timeout = 0.5
    processor.start()
    with TaskProducer(url=url) as door:
        door.add_task("echo", 1, task_id="odd")
        until(lambda: faults, "the fault", 20)
        assert "no outcome could be settled" in faults[0]
        go.set()
        assert door.get_result("odd", 10) == 1


# -- entries that others wrote ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "opts",
    [
        '{"inbox":[]}',
        '{"inbox":"\\ud800"}',
        '{"batch":"\\ud800"}',
        '{"batch":{}}',
        '{"inbox":null}',
        '{"retries":null}',
        "[1]",
        '"x"',
        "5",
        "{",
        "[" * 5000,
    ],
)
def test_an_entry_with_odd_options_fails_alone(
    worker: TaskWorker, producer: TaskProducer, shared_server: Server, opts: str
) -> None:
    """Its neighbours run, and its waiters are told."""
    with shared_server.client() as db:
        fields = {"id": f"odd {opts[:20]}", "name": "echo", "payload": "1"}
        db.xadd("outcomes", {**fields, "attempt": "1", "recovered": "0", "opts": opts})
        assert producer.get_result(producer.add_task("echo", 2), 10) == 2
        until(lambda: db.exists(f"task:outcomes:odd {opts[:20]}"), "its end")
    with pytest.raises(TaskFailed) as caught:
        producer.get_result(f"odd {opts[:20]}", 10)
    assert caught.value.type == "CorruptPayload"
    assert caught.value.message


def test_an_async_entry_with_its_fields_in_another_order_runs(
    producer: TaskProducer, shared_server: Server
) -> None:
    """An entry is read by the names of its fields, also to see whether the event loop runs it."""
    fields = {"opts": "", "recovered": "0", "attempt": "1", "payload": "3"}
    with shared_server.client() as db:
        db.xadd("outcomes", {**fields, "name": "async_echo", "id": "other order"})
        until(lambda: db.exists("task:outcomes:other order"), "its end")
    assert producer.get_result("other order", 10) == 3


def test_what_is_shown_while_an_entry_is_opened() -> None:
    """A payload that ends the process when it is read is charged: its entry stands on the
    scoreboard."""
    scoreboard = Scoreboard.create(2)
    queue = WorkerQueue("tasks", Commands(QueueKeys()), scoreboard, 0)
    shown: list[list[str]] = []

    class Looking(Executor):
        """Notes what the scoreboard shows while it opens an entry."""

        def open(self, task: Delivery) -> Attempt | Outcome:
            shown.append(scoreboard.running())
            return super().open(task)

    executor = Looking(WorkerSettings(), registry, "me", scoreboard, {}, None)
    fields = [b"id", b"x", b"name", b"echo", b"payload", b"1", b"attempt", b"1"]
    task = (b"1-0", [*fields, b"recovered", b"0", b"opts", b""], queue)
    assert json.loads(executor.runner(0)(task).args[6]) == 1
    assert asyncio.run(executor.run_async((b"2-0", [b"id", b"x"], queue), 1)).entry == b"2-0"
    assert shown == [["1-0"], ["2-0"]]
    assert scoreboard.running() == []
    scoreboard.unmap()
