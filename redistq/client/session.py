"""Session: what one client has open, and what lives as long as anything of it is wanted.

Made by clients. The client itself is a face for users: futures and batches that are outstanding
hold the session, and with it the workers that were started, also where nobody holds the client.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass

from .. import slots
from ..connection.address import Address
from ..connection.broker import Broker
from ..functions.blobs import Blobs
from ..functions.signing import Signer
from ..protocol.commands import Commands
from ..protocol.homes import Home
from ..protocol.keys import QueueKeys, at_priority
from . import at_exit
from .exchange import Exchange
from .packing import Packer
from .queues import ClientQueue
from .workers import StartedWorkers


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
        self.blobs = Blobs(self.broker, self.keys, self.signer)
        self.packer = Packer(self.blobs, self.signer, settings.max_payload_bytes)
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
        # In a future's callback nobody can wait for futures.
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
    """The session is gone, or the program ends: what was submitted is sent, threads and workers
    end. Called from anywhere, even from the session's own threads, so it waits for none."""
    if os.getpid() != pid:
        return  # a forked process: nothing of this is its own
    try:
        exchange.end(join=False)
    except Exception:  # without a server nothing more can be sent
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
