"""Session: what one client has open, and what lives as long as anything of it is wanted.

Made by clients. The client itself is a face for users: futures and batches that are outstanding
hold the session, and with it the workers that were started, also where the client is held nowhere.

``Exchange`` puts together what takes calls to the server and their ends to the futures, and starts
its two threads with the first call: one sends (sender.py), one reads the inbox (results.py). They
know the session only through futures and batches that are outstanding, so that a client held
nowhere else can go. ``StartedWorkers`` are the client's own processes on this machine.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import slots
from ..codecs.codec import Codec
from ..connection.address import Address
from ..connection.broker import Broker
from ..display.notebook import say
from ..display.text import plural
from ..errors import ConnectionLost, RedistqError, UnknownTask
from ..functions.blobs import Blobs
from ..functions.packing import Packer
from ..functions.signing import Signer
from ..functions.spill import Spill
from ..logger import logger
from ..middleware import Layers
from ..protocol.commands import Commands
from ..protocol.homes import Home
from ..protocol.keys import PRIORITIES, QueueKeys, at_priority
from ..system.cores import cores
from ..worker.settings import WorkerSettings
from ..worker.worker import TaskWorker
from . import at_exit
from .futures import TaskFuture
from .pending import Pending, TaskWatcher
from .queues import ClientQueue, Presence
from .results import ResultListener
from .sender import Outgoing, Sender
from .settling import disown

if TYPE_CHECKING:
    from ..elsewhere.place import Place
    from ..elsewhere.pods import Pods
    from ..elsewhere.workers import RemoteWorkers
    from .batch import Batch

    Workers = TaskWorker | RemoteWorkers | Pods

log = logger("redistq.client")

FAREWELL_S = 1.0
"""Seconds that the end of a client may take to remove its inbox."""
SHORT_S = 1.0
"""Seconds up to which a wait is too short to ask the server why nothing came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """How a client was made: enough to make another one like it."""

    address: Address
    queue: str
    group: str
    key: bytes
    allow_pickle: bool
    max_payload_bytes: int
    timeout: float
    shared: bool
    """Whether any worker may run the calls."""
    home: Home
    """Where calls belong; see homes.py."""
    layers: Layers = ()
    """What stands around the tasks that are added, the outermost first."""
    codec: Codec | None = None
    """What seals named tasks."""
    spill: Spill | None = None
    """Where large arguments and results of calls go instead of to the server."""

    @property
    def stream(self) -> str:
        """The queue's name on the server."""
        return QueueKeys(self.queue, clustered=self.address.clustered).stream


class Session:
    """One client's connection, queues, threads and workers. Safe to use from several threads."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.keys = QueueKeys(settings.queue, clustered=settings.address.clustered)
        self.signer = Signer(settings.key, allow_unsigned=settings.allow_pickle)
        self.broker = Broker(settings.address, slot_key=self.keys.stream, timeout=settings.timeout)
        spill = settings.spill
        self.blobs = Blobs(self.broker, self.keys, self.signer, spill)
        said = spill.written() if spill is not None and spill.results else None
        self.packer = Packer(self.blobs, self.signer, settings.max_payload_bytes, said)
        self.exchange = Exchange(self.broker, self.keys, self.signer, self.blobs)
        self.workers = StartedWorkers()
        self.open_batches: set[tuple[str, str]] = set()
        """Priority and id of batches started here whose end was not seen."""
        self.queues: dict[str, ClientQueue] = {}
        """Those that were used, by priority."""
        self._lock = threading.Lock()
        self._reference = weakref.ref(self)
        self._finalizer = weakref.finalize(
            self, _let_go, self.exchange, self.workers, self.broker, self.pid
        )
        at_exit.watch(self)

    def queue(self, priority: str = "normal") -> ClientQueue:
        """Return the queue of the tasks of a priority; see ``keys.at_priority``."""
        return self.queues.get(priority) or self._open_queue(priority)

    def _open_queue(self, priority: str) -> ClientQueue:
        keys = self.keys
        if priority != "normal":
            keys = QueueKeys(at_priority(keys.stream, priority))
        with self._lock:
            if priority not in self.queues:
                self.queues[priority] = ClientQueue(
                    self._reference,
                    self.broker,
                    Commands(keys, self.settings.group),
                    self.settings.home,
                    priority,
                    self.signer,
                    self.settings.codec,
                )
            return self.queues[priority]

    def again(self) -> Callable[[], Session]:
        """Return what makes another session like this one, and does not hold this one."""
        return functools.partial(Session, self.settings)

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """See Client.shutdown."""
        exchange = self.exchange
        exchange.pending.refuse()
        if cancel_futures:
            exchange.cancel(exchange.pending.outstanding())
        # A future's callback cannot wait for futures.
        if wait and not exchange.pending.is_own_thread():
            self._finish()
        elif not exchange.pending.ended.is_set():
            threading.Thread(target=self._finish, name="redistq-shutdown", daemon=True).start()

    def _finish(self) -> None:
        if not self.exchange.pending.ended.is_set():
            with slots.lent():
                wait(self.exchange.pending.outstanding())
        self.close()

    def close(self) -> None:
        """See Client.close."""
        self.exchange.pending.refuse()
        for worker in self.workers.take():
            worker.stop()
        self.exchange.end()
        self._finalizer.detach()
        self.broker.close()


def _let_go(exchange: Exchange, workers: StartedWorkers, broker: Broker, pid: int) -> None:
    """Send what was submitted, and end threads and workers: the session is gone, or the program
    ends. Called from anywhere, even from the session's own threads, so it waits for none."""
    if os.getpid() != pid:
        return  # a forked process: nothing of this is its own
    try:
        exchange.end(join=False)
    except Exception:  # broad: at the end of a program nothing may be raised, whatever is lost
        pass
    leaving = workers.take()

    def stop() -> None:
        for worker in leaving:
            worker.stop()
        broker.close()

    try:
        threading.Thread(target=stop, name="redistq-farewell", daemon=True).start()
    except RuntimeError:
        pass  # the interpreter ends: its workers see that by themselves


class Exchange:
    """Outbox, inbox and outstanding futures; safe to use from several threads, across a fork."""

    def __init__(self, broker: Broker, keys: QueueKeys, signer: Signer, blobs: Blobs) -> None:
        self._broker = broker
        self._blobs = blobs
        self.pending = Pending()
        self.presence = Presence(broker, keys)
        self.watcher = TaskWatcher(broker, self.pending, self.presence, signer, blobs)
        self.sender = Sender(broker, self.pending, self.presence, self.watcher)
        self.listener = ResultListener(
            broker, self.pending, self.presence, self.watcher, self.sender, blobs
        )
        _exchanges.add(self)

    def _start(self) -> None:
        """Start the threads, where they do not run yet."""
        pending = self.pending
        with pending.lock:
            if pending.threads or pending.closed:
                return
            mark = self.presence.inbox.name[-6:]
            for target, role in ((self.sender.run, "send"), (self.listener.run, "inbox")):
                name = f"redistq-{role}-{mark}"
                pending.threads.append(threading.Thread(target=target, name=name, daemon=True))
            for thread in pending.threads:
                thread.start()

    # -- calls -----------------------------------------------------------------------------------

    def send(self, item: Outgoing, future: TaskFuture) -> None:
        """Take a call to the server. Raises RuntimeError after the end."""
        if not self.pending.threads:
            self._start()
        self.sender.send(item, future)

    def send_many(self, items: Sequence[tuple[Outgoing, TaskFuture]], *, more: bool) -> None:
        """Take calls to the server, in their order; where ``more`` are to come soon, beside the
        caller. Raises RuntimeError after the end."""
        if not self.pending.threads:
            self._start()
        self.sender.send_many(items, more=more)

    def expect(self, future: TaskFuture) -> None:
        """Resolve a future whose task was sent before. Raises RuntimeError after the end."""
        self._start()
        with self.pending.lock:
            if self.pending.closed:
                raise RuntimeError("the client is closed")
            self.pending.add(future)
        self.presence.begin()
        watched = self.watcher.watch(future.queue, future.task_id)
        if watched.state == "unknown":  # no notification of it will come
            self.pending.fail(future.task_id, UnknownTask(future.task_id))
        else:
            self.watcher.take(future.task_id, watched)

    def expect_all(self, futures: Sequence[TaskFuture]) -> None:
        """Resolve futures whose tasks were sent before, and asked for together. Raises RuntimeError
        after the end."""
        self._start()
        with self.pending.lock:
            if self.pending.closed:
                raise RuntimeError("the client is closed")
            for future in futures:
                self.pending.add(future)
        self.presence.begin()
        self.watcher.look_at([future.task_id for future in futures])

    def cancel(self, futures: Iterable[TaskFuture], wish: str = "") -> None:
        """Cancel those that no worker has; each of these is cancelled before this returns.
        ``wish``: of the others, as Commands.cancel."""
        self.sender.cancel(futures, wish)

    def why_waiting(
        self, queue: ClientQueue, waited: float, names: Iterable[str] = (), task_id: str = ""
    ) -> str:
        """Return why nothing came in ``waited`` seconds; after a short wait nothing is asked."""
        if waited < SHORT_S or not self.listener.server_answers:
            return queue.diagnosis.reason
        wanted = {*names, *self.pending.wanted().get(queue, ())}
        return self.listener.ask(queue, wanted, task_id)

    # -- batches ---------------------------------------------------------------------------------

    def want(self, queue: ClientQueue, batch_id: str) -> None:
        """Leave in a batch's record that its results are wanted here."""
        if not self.pending.closed:
            self._start()
            self.presence.begin()
            queue.broker.call(queue.commands.want_batch(batch_id, self.presence.inbox.name))

    def hold(self, batch: Batch, *, begun: bool) -> None:
        """See ResultListener.hold."""
        if not self.pending.closed:
            self._start()
            self.listener.hold(batch, begun=begun)

    # -- the end ---------------------------------------------------------------------------------

    def end(self, *, join: bool = True) -> None:
        """Send what waits, and resolve no more futures; safe to call twice, from any thread."""
        pending = self.pending
        pending.refuse()
        started = time.monotonic()
        if not pending.ended.is_set():
            self.sender.flush(patient=True)
        pending.ended.set()
        self._wake()
        for thread in list(pending.threads) if join else ():
            while thread.is_alive() and not pending.is_own_thread():
                self._wake()
                thread.join(0.05)
        if pending.threads and self.listener.server_answers:
            # All expires by itself: no reason to wait for a server that has kept us waiting.
            self._blobs.drop_unneeded(started + FAREWELL_S)
            with contextlib.suppress(RedistqError, ConnectionLost, OSError):
                self.presence.end(started + FAREWELL_S)
        self.listener.let_all_go()
        for future in pending.outstanding():
            why = RedistqError(
                f"the client was closed before task {future.task_id} had ended; the task goes on: "
                f"Client(...).future({future.task_id!r}) asks for it"
            )
            pending.fail(future.task_id, why)

    def _wake(self) -> None:
        connection = self.presence.inbox.connection
        if connection is not None:
            connection.interrupt()
        self.sender.wake()

    def after_fork(self) -> None:
        """Begin anew in a forked process, which has neither the threads nor the futures."""
        orphans = self.pending.outstanding_unlocked()
        parts: tuple[Callable[[], None], ...] = (
            self.pending.reset,
            self.presence.reset,
            self.watcher.reset,
            self.sender.reset,
            self.listener.reset,
            self._blobs.after_fork,
        )
        for reset in parts:
            reset()
        for future in orphans:
            disown(future)


_exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()


def _after_fork() -> None:
    for exchange in list(_exchanges):
        exchange.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class StartedWorkers:
    """Workers in the order in which they were started; those that have stopped are forgotten."""

    def __init__(self) -> None:
        self._started: list[tuple[Workers, object]] = []
        """With what was asked for at the start of each."""

    def new(
        self,
        settings: ClientSettings,
        processes: int | None,
        threads: int,
        handlers: Any,
        options: dict[str, Any],
    ) -> TaskWorker:
        """Return workers of this client, not started yet; None processes: one a core."""
        queues = [at_priority(settings.stream, priority) for priority in PRIORITIES]
        options.setdefault("queues", queues)
        return TaskWorker(
            stream=settings.stream,
            group=settings.group,
            task_handlers=handlers,
            thread_count=threads,
            processes=cores() if processes is None else processes,
            address=settings.address,
            signing_key=settings.key.hex(),
            folder=settings.home.folder,
            **{"codec": settings.codec, **options},
        )

    def new_elsewhere(
        self,
        settings: ClientSettings,
        place: Place,
        processes: int | None,
        threads: int,
        handlers: Any,
        options: dict[str, Any],
    ) -> RemoteWorkers | Pods:
        """Return workers of this client on other machines, not started yet."""
        queues = [at_priority(settings.stream, priority) for priority in PRIORITIES]
        options.setdefault("queues", queues)
        made = WorkerSettings.of(
            {
                "queue": settings.stream,
                "group": settings.group,
                "threads": threads,
                "signing_key": settings.key.hex(),
                "codec": settings.codec,
                **options,
            }
        )
        from ..elsewhere.kubernetes import Kubernetes
        from ..elsewhere.pods import Pods
        from ..elsewhere.workers import RemoteWorkers

        if isinstance(place, Kubernetes):
            made = replace(made, home="")  # the command runs everybody's calls
            return Pods(place, settings.address, made, processes)
        return RemoteWorkers(place, settings.address, made, processes, handlers)

    def start(self, worker: Workers, wish: object) -> None:
        """Start workers, as ``wish`` asks for; returns when they are ready.

        Where others run that were asked for in the same words, it says so: a cell that is run twice
        is hardly meant to double them.
        """
        alike = sum(other.processes for other, before in self._running() if before == wish)
        worker.start()
        self._started = [*self._running(), (worker, wish)]
        if alike:
            say(
                f"the same call has started {plural(alike, 'worker')} before: with these "
                f"there are {self.processes}; client.stop_workers() ends all that this client has "
                "started",
                log,
            )

    def _running(self) -> list[tuple[Workers, object]]:
        return [(worker, wish) for worker, wish in self._started if worker.running]

    @property
    def running(self) -> bool:
        """Whether any of them runs."""
        return bool(self._running())

    @property
    def processes(self) -> int:
        """How many processes run."""
        return sum(worker.processes for worker, _ in self._running())

    @property
    def slots(self) -> int:
        """How many tasks they run at a time; without any, the number of cores."""
        return sum(w.processes * w.settings.threads for w, _ in self._running()) or cores()

    def take(self) -> list[Workers]:
        """Return all of them, for the caller to stop; there are none here any more."""
        taken = [worker for worker, _ in self._started]
        self._started.clear()
        return taken
