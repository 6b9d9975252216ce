"""TaskScheduler: moves tasks from the delayed set to the stream when they are due, and fires
schedules.

Runs by itself or inside every worker's supervisor. It holds no task in memory and does not poll: it
sleeps until the next due time that ``promote`` returned, or until a producer announces an earlier
one. Any number may run, on any number of machines; each task is moved once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..connection.broker import Broker
from ..logger import logger
from ..protocol.commands import MAX_TASKS, SCHEDULES_TIMER, Commands, Promoted
from ..protocol.keys import DEFAULT_QUEUE, QueueKeys
from .firing import Firing
from .subscriber import POLL_S, Subscription, join_interrupted

log = logger("redistq.scheduler")

LONGEST_SLEEP = 30.0
"""Seconds after which it looks although nothing was announced: the net for a lost message."""


class TaskScheduler:
    """Moves due tasks to the stream, and adds those of schedules, until stopped.

    Connection arguments as TaskProducer's.
    """

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        *,
        url: str | None = None,
        password: str | None = None,
        delayed_key: str | None = None,
        address: Address | None = None,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address or resolve(url, redis_host, redis_port, db, password)
        self.keys = QueueKeys(stream, delayed_key, self.address.clustered)
        self._commands = Commands(self.keys)
        self._on_message = on_message
        self._broker = Broker(self.address, slot_key=self.keys.stream)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._subscription = self._new_subscription()
        self._server_ahead = 0.0  # seconds, of its clock before our monotonic one
        self._firing = Firing(self._commands, self._broker.call)
        self._said: set[str] = set()  # tasks that could not be moved, and were named

    def start(self) -> TaskScheduler:
        """Begin in a thread of its own; safe to call twice."""
        if self._thread is None:
            self._stopping.clear()
            self._subscription = self._new_subscription()
            self._thread = threading.Thread(
                target=self._run, name=f"redistq-scheduler-{self.keys.stream}", daemon=True
            )
            self._thread.start()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """End; safe to call twice, or before start. Nothing is lost: due tasks wait in the set."""
        thread = self._thread
        self._thread = None
        self._stopping.set()
        if thread is not None:
            join_interrupted(thread, self._subscription, timeout)
            self._broker.close()

    def __enter__(self) -> TaskScheduler:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def promote_due(self) -> int:
        """Move what is due now, and what schedules add; return how many tasks that was. For tests
        and one-off runs."""
        total = 0
        while True:
            done = self._promote_some()
            fired = self._firing.fire(done.schedules, done.now_ms)
            total += done.moved + fired
            if not done.schedules and done.moved + len(done.broken) < MAX_TASKS:
                return total

    def _promote_some(self) -> Promoted:
        done = Commands.read_promote(self._broker.call(self._commands.promote()))
        for task_id, words in done.broken.items():
            if task_id not in self._said:
                self._said.add(task_id)
                log.error(
                    "%s of %s is due, but its record cannot be read; it is tried again: %s",
                    "what is scheduled" if task_id == SCHEDULES_TIMER else f"task {task_id}",
                    self.keys.stream,
                    words,
                )
        return done

    def _new_subscription(self) -> Subscription:
        name = f"scheduler of {self.keys.stream}"
        otherwise = f"looks every {POLL_S:g} s"
        return Subscription(self._broker, self.keys, name=name, otherwise=otherwise)

    def _run(self) -> None:
        self._subscription.serve(self._step, self._stopping)

    def _step(self) -> None:
        """Move what is due, then sleep until more is."""
        try:
            # Listen first, look second: what is added in between is heard.
            self._subscription.open()
            self._sleep(self._promote())
        except BaseException:  # broad: raised again
            self._subscription.close()  # it may be as dead as what failed
            raise

    def _promote(self) -> float:
        """Move all that is due; return when to look again (monotonic clock)."""
        while True:
            done = self._promote_some()
            self._server_ahead = done.now_ms / 1000 - time.monotonic()
            if done.moved:
                log.debug("promote: %d tasks of %s are due", done.moved, self.keys.stream)
            if done.schedules:
                self._firing.fire(done.schedules, done.now_ms)
            elif done.moved + len(done.broken) < MAX_TASKS:
                latest = time.monotonic() + LONGEST_SLEEP
                if done.next_due_ms is None:
                    return latest
                return min(latest, self._here(done.next_due_ms))

    def _here(self, server_ms: int) -> float:
        # Half a millisecond late rather than early: the server's clock is read in whole ones.
        return server_ms / 1000 - self._server_ahead + 0.0005

    def _sleep(self, until: float) -> None:
        """Sleep until a time on the monotonic clock, or an earlier one that is announced."""
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            word = self._subscription.hear(left)
            if word is None:
                return
            if word.isdigit():
                until = min(until, self._here(int(word)))
            elif self._on_message is not None:
                self._on_message(word)
