"""TaskWorker: the worker that applications start, and ``python -m redistq.worker``.

It puts the parts together (processor, scoreboard, supervisor) and has no work of its own.
"""

from __future__ import annotations

import base64
import importlib
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..connection.broker import Broker
from ..errors import ConfigurationError, RedistqError
from ..handlers import Handler, Registry, default_registry
from ..logger import logger
from ..protocol.commands import Commands, new_consumer_name
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys, without_priority
from ..protocol.options import wait_seconds
from ..system.processes import START_TIMEOUT_S, Helper, import_path
from .scoreboard import Scoreboard
from .settings import WorkerSettings
from .supervisor import how_it_ended, sign_off, warn_about_server

log = logger("redistq.worker")

ENV_KEY = "REDISTQ_SIGNING_KEY"

Handlers = Mapping[str, Callable[..., Any]]


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

    Worker processes start in ``folder`` (default: where this process is then).

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
        **options: Any,
    ) -> None:
        self._folder = folder
        self.settings = WorkerSettings.of(
            {"queue": stream, "group": group, "threads": thread_count, **options}
        )
        if isinstance(processes, bool) or not isinstance(processes, int) or processes < 0:
            raise ConfigurationError(f"processes is a whole number, 0 or more: {processes!r}")
        self.processes = processes
        self.registry = registry_from(default_registry if task_handlers is None else task_handlers)
        if not (self.registry or self.settings.allow_pickle or self.settings.signing_key):
            raise ConfigurationError(
                "a worker needs handlers: task_handlers={'name': function}, or functions "
                "decorated with @task that are imported before the worker is made"
            )
        self.address = address or resolve(url, redis_host, redis_port, db, password)
        self._commands = self.settings.commands_for(self.address)
        self._processor: Any = None
        self._scoreboard: Scoreboard | None = None
        self._broker: Broker | None = None
        self._sidecar: Helper | None = None
        self._sidecar_watch: threading.Thread | None = None
        self._lock = threading.RLock()
        self._life = threading.RLock()  # held through a start or a stop, which thus take turns
        self._stopped = threading.Event()
        self._stopped.set()
        self.consumer = ""
        self.fault = ""
        """Why the worker stopped by itself; empty while it has not."""
        self._details: dict[str, Any] = {}

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> TaskWorker:
        """Start to fetch and run tasks; returns when the worker is ready. Safe to call twice.

        Raises ServerUnavailable when the server does not answer, and ConfigurationError when
        child processes cannot load the handlers.
        """
        with self._life:
            if not self._stopped.is_set():
                return self
            self._stopped.clear()
            try:
                self._start()
            except BaseException:
                self._stopped.set()
                raise
            return self

    def _start(self) -> None:
        broker = self._broker = Broker(self.address, slot_key=self._commands[0].keys.stream)
        try:
            broker.call(("PING",))
            warn_about_server(broker)
            if self.processes:
                self._start_supervised()
                return
        except BaseException:
            broker.close()
            raise
        self.consumer = new_consumer_name(socket.gethostname())
        try:
            self._scoreboard = Scoreboard.create(
                self.settings.scoreboard_slots, len(self.settings.queues)
            )
            supervisor = self._new_sidecar()  # it loads its modules while we load ours
        except BaseException:
            broker.close()
            raise
        try:
            from .processor import Processor

            registry = with_function_calls(self.registry, self.settings, broker, self._commands)
            self._details = announce(broker, self._commands, self.settings, self.consumer, registry)
            self._introduce_beside(supervisor)
            self.fault = ""
            self._processor = Processor(
                *(self.settings, registry, broker, self._commands, self.consumer, self._scoreboard),
                on_fault=self._on_fault,
            )
            self._processor.start()
        except BaseException:
            self._end_sidecar(0)
            self._scoreboard.close()
            broker.close()
            raise

    def _new_sidecar(self) -> Helper:
        fds = [] if self._scoreboard is None else [self._scoreboard.descriptor]
        supervisor = self._sidecar = Helper("redistq.worker.sidecar", fds, self._folder)
        return supervisor

    def _introduce(self, supervisor: Helper, spec: dict[str, Any]) -> None:
        """Say what it is to keep, and wait until it does; raises ConfigurationError if it cannot.

        It then is watched, and replaced should it die before us.
        """
        supervisor.introduce(
            {
                "settings": self.settings.as_dict(),
                "address": self.address.as_dict(),
                "parent": os.getpid(),
                "log_level": logging.getLevelName(log.getEffectiveLevel()),
                **spec,
            }
        )
        news = supervisor.news(START_TIMEOUT_S)
        if news is None or not news.get("ready"):
            code = supervisor.process.poll()
            silent = f"gave no answer for {START_TIMEOUT_S:g} s"
            why = silent if code is None else how_it_ended(code)
            self._end_sidecar(0)
            raise ConfigurationError(
                "the worker processes could not start: "
                + ((news or {}).get("failure") or f"the supervisor process {why}")
            )
        supervisor.ignore_news()
        self._sidecar_watch = threading.Thread(
            target=self._watch_sidecar,
            args=(supervisor,),
            name="redistq-supervisor-watch",
            daemon=True,
        )
        self._sidecar_watch.start()

    def _introduce_beside(self, supervisor: Helper) -> None:
        assert self._scoreboard is not None
        self._introduce(
            supervisor,
            {
                "consumer": self.consumer,
                "scoreboard": self._scoreboard.descriptor,
                "details": self._details,
            },
        )

    def _start_supervised(self) -> None:
        from ..functions.pickling import by_value

        try:
            pickled = by_value(dict(self.registry))
        except Exception as error:
            raise ConfigurationError(
                f"the handlers cannot be sent to child processes: {error}; define them in a "
                "module, or use threads (processes=0)"
            ) from error
        secret = None
        if "multiprocessing" in sys.modules:
            # As multiprocessing's own children know it: by it they may talk to our Managers.
            import multiprocessing

            secret = multiprocessing.current_process().authkey.hex()
        self._introduce(
            self._new_sidecar(),
            {
                "children": self.processes,
                "child_spec": {
                    "handlers": base64.b64encode(pickled).decode(),
                    "path": import_path(),
                    "log_level": logging.getLevelName(log.getEffectiveLevel()),
                    "authkey": secret,
                },
            },
        )

    def _watch_sidecar(self, supervisor: Helper) -> None:
        """A supervisor that dies while its worker lives is replaced well within the lease."""
        code, pause = supervisor.process.wait(), 0.5
        with self._lock:
            if self._stopped.is_set() or self._sidecar is not supervisor:
                return
            log.warning("the supervisor process %s; starting another", how_it_ended(code))
        supervisor.let_go()
        while not self._stopped.is_set():
            try:
                if self.processes:
                    self._start_supervised()
                else:
                    self._introduce_beside(self._new_sidecar())
            except (OSError, RedistqError) as error:
                log.error("no supervisor could be started, tasks here may run twice: %s", error)
                self._stopped.wait(pause)
                pause = min(pause * 2, 30.0)
                continue
            if self._stopped.is_set():  # stopped while it started
                self._end_sidecar(0)
            return

    def stop(self, timeout: float | None = None) -> bool:
        """Stop: running tasks finish within ``timeout`` seconds, unstarted ones go back uncounted.

        Answers whether every started task came to its end. One that did not is run again by
        another worker; in a thread of this process it cannot be ended, and its outcome will not
        count. Safe to call twice, or before start. Default: ``shutdown_timeout``.
        """
        timeout = wait_seconds(self.settings.shutdown_timeout if timeout is None else timeout)
        assert timeout is not None
        with self._life:
            return self._stop(timeout)

    def _stop(self, timeout: float) -> bool:
        with self._lock:
            if self._stopped.is_set():
                return True
            self._stopped.set()
        finished = self._processor.stop(timeout) if self._processor is not None else True
        code = self._end_sidecar(timeout if self.processes else 5.0)
        if self._scoreboard is not None:
            if code is None:
                self._report_by_ourselves()
            if finished:
                self._scoreboard.unmap()
            else:
                self._scoreboard.close()  # a handler that does not end still writes to it
        if self._broker is not None:
            self._broker.close()
        self._processor = self._scoreboard = None
        return finished if not self.processes else code == 0

    def _on_fault(self, reason: str) -> None:
        """The processor in this process cannot go on. The process is the application's and goes on;
        the worker stops: its heartbeat ends and its tasks go back."""
        self.fault = reason
        log.critical("the worker of queue %s stops by itself: %s", self.settings.queue, reason)
        threading.Thread(target=self.stop, name="redistq-worker-stop", daemon=True).start()

    def _end_sidecar(self, timeout: float) -> int | None:
        """Have the supervisor end; its exit code, or None when it was gone or had to be killed."""
        supervisor, self._sidecar = self._sidecar, None
        if supervisor is None:
            return None
        supervisor.tell(f"stop {timeout}")
        supervisor.let_go()
        code: int | None = None
        try:
            code = supervisor.process.wait(timeout + 15)
        except subprocess.TimeoutExpired:
            supervisor.process.kill()
            supervisor.process.wait()
        supervisor.ignore_news()
        if (
            self._sidecar_watch is not None
            and self._sidecar_watch is not threading.current_thread()
        ):
            self._sidecar_watch.join(5)
        return code if code is not None and code >= 0 else None

    def _report_by_ourselves(self) -> None:
        """The supervisor did not report us; do it here, so that nobody waits for the lease."""
        assert self._broker is not None
        assert self._scoreboard is not None
        try:
            started = self._scoreboard.running()
            sign_off(self._broker, self._commands, self.settings, self.consumer, started)
        except RedistqError as error:
            log.warning("worker %s could not sign off: %s", self.consumer, error)

    def run(self) -> bool:
        """Start, work until SIGTERM or SIGINT, stop; a second signal ends the process at once.

        For the main thread of a program. Answers what ``stop`` answers.
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


def registry_from(source: Handlers | Registry | list[str]) -> Registry:
    """Handlers by name: from a mapping, a registry, or ``package.module[:registry]`` targets.

    Raises ConfigurationError when a target cannot be imported or holds no handler.
    """
    if isinstance(source, Registry):
        source.warn_of_skipped()
        return source
    if isinstance(source, Mapping):
        registry = Registry()
        for name, function in source.items():
            registry.add(name, function)
        return registry
    registry = Registry()
    for target in source:
        for name, handler in _load_target(target).items():
            registry.add(name, handler)
    return registry


def _load_target(target: str) -> Registry:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigurationError(
                f"there is no module {module_name!r} here; run from the folder that holds it, or "
                "install it"
            ) from error
        raise
    if not attribute:
        if not default_registry:
            raise ConfigurationError(
                f"{module_name} registers no task: decorate a function with @task (from redistq "
                f"import task), or name its registry: {module_name}:registry"
            )
        default_registry.warn_of_skipped()
        return default_registry
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Registry):
        found.warn_of_skipped()
        return found
    if isinstance(found, Mapping) and found:
        return registry_from(found)
    raise ConfigurationError(f"{target} is no Registry and no mapping of names to functions")


def with_function_calls(
    registry: Registry, settings: WorkerSettings, broker: Broker, queues: Sequence[Commands]
) -> Registry:
    """The handlers, and the one for functions that clients send where those can be trusted.

    They can when they sign with our key, when the server is the embedded one (whose users share a
    key of their own), or when ``allow_pickle`` says that everybody on this server can.
    """
    key = bytes.fromhex(settings.signing_key) if settings.signing_key else None
    embedded = broker.address.embedded
    if key is None and not embedded and not settings.allow_pickle and ENV_KEY not in os.environ:
        return registry
    from ..functions.blobs import Blobs
    from ..functions.call import QueueStore, with_calls
    from ..functions.output import LogSink
    from ..functions.signing import Signer, key_from, user_key

    if key is None and (key := key_from(None)) is None and embedded:
        from ..connection.embedded import default_home

        key = user_key(default_home())
    signer = Signer(key, allow_unsigned=settings.allow_pickle)
    # Tasks of a priority use the functions and arguments of the queue they belong to.
    clustered = broker.address.clustered
    stores: dict[str, QueueStore] = {}
    for queue in settings.queues:
        keys = QueueKeys(without_priority(queue), clustered=clustered)
        blobs = next((s.blobs for s in stores.values() if s.logs_prefix == keys.logs_prefix), None)
        stream = QueueKeys(queue, clustered=clustered).stream
        stores[queue] = QueueStore(blobs or Blobs(broker, keys, signer), keys.logs_prefix, stream)
    return with_calls(registry, signer, stores, LogSink(broker, queues[0].keys))


def announce(
    broker: Broker,
    queues: Sequence[Commands],
    settings: WorkerSettings,
    consumer: str,
    handlers: Mapping[str, Handler],
) -> dict[str, Any]:
    """Register a worker process; warns when the queue's other workers have other settings.

    Answers the details it registered: its supervisor registers them again should the server lose
    them.
    """
    from .. import __version__

    details = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "version": __version__,
        "threads": settings.threads,
        "slots": slots_of(settings, handlers),
        "group": settings.group,
        "names": "\n".join(sorted(handlers)),
    }
    if settings.home:
        details["home"] = settings.home
    for commands in queues:
        if missing := Commands.read_rights(broker.call(commands.rights(consumer))):
            raise ConfigurationError(
                "the server's ACL forbids what a worker does: "
                + ", ".join(missing[:10])
                + ("" if len(missing) <= 10 else f" and {len(missing) - 10} more")
                + "; allow its user these commands on these keys and channels (ACL SETUSER)"
            )
    for queue, commands in zip(settings.queues, queues, strict=True):
        reply = broker.call(commands.register(consumer, settings.lease_ms, details))
        _compare(settings, queue, reply[0].decode(), int(reply[1]))
    return details


def slots_of(settings: WorkerSettings, handlers: Mapping[str, Handler]) -> int:
    """How many tasks a worker process runs at a time."""
    kinds = {handler.is_async for handler in handlers.values()}
    return settings.threads * (False in kinds) + settings.async_concurrency * (True in kinds)


def _compare(settings: WorkerSettings, queue: str, group: str, lease_ms: int) -> None:
    """Warn when a queue's other workers have another group or lease."""
    if group != settings.group:
        log.warning(
            "this worker's group is %r, the other workers of queue %r use %r: each group takes the "
            "other's tasks away; start all with the same group",
            settings.group,
            queue,
            group,
        )
    if lease_ms != settings.lease_ms:
        log.warning(
            "this worker's lease is %g s, the other workers of queue %r use %g s; start all with "
            "the same lease",
            settings.lease,
            queue,
            lease_ms / 1000,
        )
