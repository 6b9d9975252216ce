"""TaskWorker: the worker that applications start, and ``python -m redistq.worker``.

It puts the parts together (processor, scoreboard, supervisor) and has no work of its own.
"""

from __future__ import annotations

import base64
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..codecs.codec import given_or_env
from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..handlers import Registry, default_registry
from ..logger import logger
from ..middleware import Middleware, checked_middleware
from ..protocol.commands import new_consumer_name
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE
from ..protocol.options import wait_seconds
from ..protocol.plain_commands import PING
from ..system.interpreter import import_path
from ..system.loops import OUTAGES
from .bootstrap import (
    Handlers,
    announce,
    registry_from,
    resources_of,
    warn_about_server,
    with_function_calls,
)
from .heartbeat import sign_off
from .pipe import Report
from .scoreboard import Scoreboard
from .settings import WorkerSettings
from .sidecar import Sidecar

if TYPE_CHECKING:
    from .processor import Processor

log = logger("redistq.worker")

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Threads:
    """What runs tasks in threads of this process."""

    processor: Processor
    scoreboard: Scoreboard
    consumer: str


@dataclass(frozen=True, slots=True)
class _Running:
    """What a worker has from its start to its end."""

    broker: Broker
    sidecar: Sidecar
    threads: _Threads | None
    """None where the sidecar has child processes for the tasks."""


class TaskWorker:
    """Runs tasks of one queue until stopped, each at least once, each settled exactly once.

    ``task_handlers`` maps task names to functions, or is a Registry; without it, the functions
    decorated with ``@task`` are used. A handler takes the payload and, if it has a second
    parameter, a TaskContext; it may be ``async def``.

    With ``processes=0`` tasks run in ``thread_count`` threads of this process; with more, in that
    many processes of ``thread_count`` threads each, which are restarted when they die. Either way
    the heartbeat comes from a process that runs no task, so a handler that holds the interpreter
    is not taken for dead.

    ``lease`` is how many seconds after its last heartbeat a worker counts as dead;
    ``result_ttl`` how many seconds results are kept; ``unknown_grace`` how long a task that no
    worker here has a handler for may wait for one that has. See WorkerSettings for the rest.
    Connection arguments are TaskProducer's.

    ``middleware`` stands around all its tasks, outside of what their registry has, in its order:
    see redistq.Middleware.

    Worker processes start in ``folder`` (default: where this process is then).

    ``codec`` opens what producers have sealed, and seals results and errors: see docs/codecs.md.

    Functions that a Client sends are run when ``signing_key`` (or ``REDISTQ_SIGNING_KEY``) is the
    client's, on the embedded server, which only this user can write to, or with ``allow_pickle``;
    otherwise such tasks wait for another worker: unpickling runs whatever their writer chose.
    """

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        group: str = DEFAULT_GROUP,
        task_handlers: Handlers | Registry | None = None,
        thread_count: int = 4,
        processes: int = 0,
        *,
        url: str | None = None,
        password: str | None = None,
        address: Address | None = None,
        folder: str | None = None,
        middleware: Iterable[Middleware] = (),
        **options: Any,
    ) -> None:
        self._folder = folder
        options["codec"] = given_or_env(options.get("codec"))
        self.settings = WorkerSettings.of(
            {"queue": stream, "group": group, "threads": thread_count, **options}
        )
        if isinstance(processes, bool) or not isinstance(processes, int) or processes < 0:
            raise ConfigurationError(f"processes is a whole number, 0 or more: {processes!r}")
        self.processes = processes
        if processes and self.settings.has:
            from .lots import check_devices

            check_devices(self.settings.has)
        self.registry = registry_from(default_registry if task_handlers is None else task_handlers)
        if layers := checked_middleware(middleware):
            self.registry = self.registry.surrounded(layers)
        self._own = Registry()  # has what was declared for this worker alone
        if not (self.registry or self.settings.allow_pickle or self.settings.signing_key):
            raise ConfigurationError(
                "a worker needs handlers: task_handlers={'name': function}, or functions "
                "decorated with @task that are imported before the worker is made"
            )
        self.address = address or resolve(url, redis_host, redis_port, db, password)
        self._commands = self.settings.commands_for(self.address)
        self._running: _Running | None = None
        self._processor: Processor | None = None  # of threads of this process
        self._life = threading.RLock()  # held through a start or a stop, which thus take turns
        self._stopped = threading.Event()
        self._stopped.set()
        self.consumer = ""
        self.fault = ""
        """Why the worker stopped by itself; empty while it has not."""

    def lifespan(self, function: Function, /) -> Function:
        """Have this worker's processes enter ``function`` before their first task, and leave it
        when they have drained; behind those of its registry. See Registry.lifespan.

        Raises ConfigurationError once the worker runs.
        """
        if self.running:
            raise ConfigurationError("a worker's lifespans are declared before it starts")
        return self._own.lifespan(function)

    def _all(self) -> Registry:
        """Return its handlers with all lifespans."""
        if not self._own.lifespans:
            return self.registry
        whole = Registry()
        whole.include(self.registry)
        whole.include(self._own)
        whole.layers = self.registry.layers  # for function calls; each handler has its own
        return whole

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> TaskWorker:
        """Start to fetch and run tasks; returns when the worker is ready. Safe to call twice.

        Raises ServerUnavailable when the server does not answer, and ConfigurationError when
        child processes cannot load the handlers, or when a lifespan fails or does not start within
        ``start_timeout`` seconds.
        """
        with self._life:
            if not self._stopped.is_set():
                return self
            self._stopped.clear()
            try:
                self._start()
            except BaseException:  # whatever it is, an interrupt too: it can be started again
                self._stopped.set()
                raise
            return self

    def _start(self) -> None:
        broker = Broker(self.address, slot_key=self._commands[0].keys.stream)
        try:
            broker.call(PING)
            warn_about_server(broker)
            start = self._start_children if self.processes else self._start_threads
            self._running = start(broker)
        except BaseException:  # whatever it is, an interrupt too: nothing is left open
            broker.close()
            raise

    def _start_threads(self, broker: Broker) -> _Running:
        """Run tasks in threads of this process, with a sidecar for the heartbeat."""
        self.consumer = new_consumer_name(socket.gethostname())
        scoreboard = self.settings.new_scoreboard()
        try:
            # It loads its modules while we load ours.
            sidecar = self._new_sidecar(scoreboard.descriptor, on_report=self._on_report)
        except BaseException:  # whatever it is, an interrupt too: nothing is left open
            scoreboard.close()
            raise
        try:
            from .processor import Processor

            registry = with_function_calls(self._all(), self.settings, broker, self._commands)
            self.fault = ""
            ledger = None
            if self.settings.has:
                from .lots import own_ledger

                ledger = own_ledger(self.settings.has)
            processor = Processor(
                self.settings,
                registry,
                broker,
                self._commands,
                self.consumer,
                scoreboard,
                on_fault=self._on_fault,
                ledger=ledger,
            )
            processor.open()
            try:
                details = announce(
                    broker,
                    self._commands,
                    self.settings,
                    self.consumer,
                    registry,
                    resources_of(ledger),
                )
                sidecar.introduce(
                    lambda: {
                        "consumer": self.consumer,
                        "scoreboard": scoreboard.descriptor,
                        "details": details,
                    }
                )
                self._processor = processor
                processor.start()
            except BaseException:  # whatever it is, an interrupt too
                processor.close(self.settings.shutdown_timeout)
                raise
        except BaseException:  # whatever it is, an interrupt too: no process is left behind
            sidecar.end(0)
            scoreboard.close()
            raise
        return _Running(broker, sidecar, _Threads(processor, scoreboard, self.consumer))

    def _start_children(self, broker: Broker) -> _Running:
        """Have a sidecar run tasks in child processes of its own."""
        sidecar = self._new_sidecar()
        try:
            sidecar.introduce(self._describe_children)
        except BaseException:  # whatever it is, an interrupt too: no process is left behind
            sidecar.end(0)
            raise
        return _Running(broker, sidecar, None)

    def _new_sidecar(
        self, *pass_fds: int, on_report: Callable[[Report], None] | None = None
    ) -> Sidecar:
        return Sidecar(
            self.settings,
            self.address,
            folder=self._folder,
            pass_fds=pass_fds,
            on_report=on_report,
            patience=self.settings.start_timeout if self._all().lifespans else 0.0,
        )

    def _on_report(self, report: Report) -> None:
        """Tell the threads of this process what their supervisor says of their tasks."""
        processor = self._processor
        if processor is None:
            return
        if report.cancel is not None:
            processor.cancel(*report.cancel)
        if report.names is not None:
            processor.gate_names(*report.names)

    def _describe_children(self) -> dict[str, Any]:
        """Return what the sidecar's child processes are to run."""
        from ..functions.pickling import by_value

        try:
            pickled = by_value(self._all())
        except Exception as error:  # what is pickled is the user's, and may raise anything
            raise ConfigurationError(
                f"the handlers cannot be sent to child processes: {error}; define them in a "
                "module, or use threads (processes=0)"
            ) from error
        secret = None
        if "multiprocessing" in sys.modules:
            # As multiprocessing's own children know it: by it they may talk to our Managers.
            import multiprocessing

            secret = multiprocessing.current_process().authkey.hex()
        return {
            "children": self.processes,
            "child_spec": {
                "handlers": base64.b64encode(pickled).decode(),
                "path": import_path(),
                "log_level": logging.getLevelName(log.getEffectiveLevel()),
                "authkey": secret,
            },
        }

    def stop(self, timeout: float | None = None) -> bool:
        """Stop: running tasks finish within ``timeout`` seconds, unstarted ones go back uncounted.

        Return whether every started task came to its end. One that did not is run again by
        another worker; in a thread of this process it cannot be ended, and its outcome will not
        count. Safe to call twice, or before start. Default: ``shutdown_timeout``.
        """
        seconds = wait_seconds(timeout)  # None, for ever, is no answer here
        with self._life:
            return self._stop(self.settings.shutdown_timeout if seconds is None else seconds)

    def _stop(self, timeout: float) -> bool:
        running = self._running
        if running is None:
            return True
        self._running = None
        self._stopped.set()
        try:
            running.sidecar.expect_end()
            if running.threads is None:
                return running.sidecar.end(timeout) == 0
            return self._stop_threads(running, running.threads, timeout)
        finally:
            running.broker.close()

    def _stop_threads(self, running: _Running, threads: _Threads, timeout: float) -> bool:
        finished = threads.processor.stop(timeout)
        if running.sidecar.end(5.0) is None:
            self._report_by_ourselves(running.broker, threads)
        if finished:
            threads.scoreboard.unmap()
        else:
            threads.scoreboard.close()  # a handler that does not end still writes to it
        return finished

    def _on_fault(self, reason: str) -> None:
        """Stop the worker, whose processor cannot go on: its heartbeat ends and its tasks go back.
        The process is the application's and goes on."""
        self.fault = reason
        log.critical("the worker of queue %s stops by itself: %s", self.settings.queue, reason)
        threading.Thread(target=self.stop, name="redistq-worker-stop", daemon=True).start()

    def _report_by_ourselves(self, broker: Broker, threads: _Threads) -> None:
        """Report this worker, which its supervisor did not, so that nobody waits for the lease."""
        started = threads.scoreboard.running()
        try:
            sign_off(broker, self._commands, self.settings, threads.consumer, started)
        except OUTAGES as error:
            log.warning("worker %s could not sign off: %s", threads.consumer, error)

    def run(self) -> bool:
        """Start, work until SIGTERM or SIGINT, stop; a second signal ends the process at once.

        For the main thread of a program. Returns what ``stop`` returns.
        """
        ended = threading.Event()
        before = {}

        def on_signal(*_: Any) -> None:
            if ended.is_set():
                os._exit(1)
            ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, on_signal)
        try:
            self.start()
            while not ended.wait(1.0) and self.running:
                pass
            return self.stop() and not self.fault
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped; see ``fault`` for one that stopped by itself."""
        return not self._stopped.is_set()

    def __enter__(self) -> TaskWorker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        how = f"processes={self.processes}, " if self.processes else ""
        return (
            f"TaskWorker(queue={self.settings.queue!r}, {how}threads={self.settings.threads}, "
            f"{'running' if self.running else 'stopped'}, url={str(self.address)!r})"
        )
