"""TaskScheduler: moves tasks from the delayed set to the stream when they are due.

Runs by itself or inside every worker's supervisor. It holds no task in memory and does not poll: it
sleeps until the next due time that ``promote`` told it, or until a producer announces an earlier
one. Any number may run, on any number of machines; each task is moved once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..connection.address import DEFAULT_HOST, DEFAULT_PORT, Address, resolve
from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import ConfigurationError, ConnectionLost, GroupMissing, RedistqError
from ..logger import logger
from ..protocol.commands import MAX_TASKS, Commands, Promoted
from ..protocol.keys import DEFAULT_QUEUE, QueueKeys
from ..protocol.replies import is_news, unexpected

log = logger("redistq.scheduler")

LONGEST_SLEEP = 30.0
"""Seconds after which it looks although nothing was announced: the net for a lost message."""
POLL_S = 0.5
"""The same where nothing can be heard: the server's user has no right to the channel, or the server
has no channels."""
LISTEN_AGAIN_S = 300.0
"""Seconds after which listening is tried again there."""

LISTENING = "listening"
"""What ``on_message`` is told when words are heard from now on: earlier ones were missed."""


class _CannotListen(Exception):
    """The server does not let us subscribe."""


class TaskScheduler:
    """Moves due tasks to the stream until stopped. Connection arguments as TaskProducer's."""

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
        self._connection: Connection | None = None
        self._said: set[str] = set()  # tasks that could not be moved, and were named
        self._deaf_until = 0.0

    def start(self) -> TaskScheduler:
        """Begin in a thread of its own; safe to call twice."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(
                target=self._run, name=f"redistq-scheduler-{self.keys.stream}", daemon=True
            )
            self._thread.start()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """End; safe to call twice, or before start. Nothing is lost: due tasks wait in the set."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None:
            deadline = time.monotonic() + timeout
            while thread.is_alive() and time.monotonic() < deadline:
                # Repeated, for a connection that was being made when the last one was interrupted.
                if self._connection is not None:
                    self._connection.interrupt()
                thread.join(0.05)
            self._broker.close()

    def __enter__(self) -> TaskScheduler:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def promote_due(self) -> int:
        """Move what is due now and answer how many tasks it was; for tests and one-off runs."""
        total = 0
        while True:
            done = self._promote_some()
            total += done.moved
            if done.moved + len(done.broken) < MAX_TASKS:
                return total

    def _promote_some(self) -> Promoted:
        done = Commands.read_promote(self._broker.call(self._commands.promote()))
        for task_id, words in done.broken.items():
            if task_id not in self._said:
                self._said.add(task_id)
                log.error(
                    "task %s of %s is due, but its record cannot be read; it is tried again: %s",
                    *(task_id, self.keys.stream, words),
                )
        return done

    def _run(self) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            self._connection = connection = self._broker.connection(None)
            try:
                if time.monotonic() < self._deaf_until:
                    while not self._stopping.is_set() and time.monotonic() < self._deaf_until:
                        until = min(self._promote(), time.monotonic() + POLL_S)
                        self._stopping.wait(max(0.0, until - time.monotonic()))
                        pause = 0.1
                    continue
                # Listen first, look second: what is added in between is heard.
                connection.send("SUBSCRIBE", self.keys.channel)
                while not self._stopping.is_set():
                    self._sleep(connection, self._promote())
                    pause = 0.1
            except _CannotListen as error:
                if not self._deaf_until:
                    log.warning(
                        "scheduler of %s cannot listen to the channel %s (%s) and looks every "
                        "%g s instead; allow it to the server's user: &%s",
                        *(self.keys.stream, self.keys.channel, error, POLL_S, self.keys.channel),
                    )
                self._deaf_until = time.monotonic() + LISTEN_AGAIN_S
            except (ConnectionLost, GroupMissing, RedistqError, OSError) as error:
                if not self._stopping.is_set():
                    log.warning("scheduler of %s waits for the server: %s", self.keys.stream, error)
                    self._stopping.wait(pause)
                    pause = min(pause * 2, 5.0)
            except Exception:
                log.exception("scheduler of %s goes on after an error", self.keys.stream)
                self._stopping.wait(pause)
                pause = min(pause * 2, 5.0)
            finally:
                connection.close()
                self._connection = None

    def _promote(self) -> float:
        """Move all that is due; answers when to look again (monotonic clock)."""
        while True:
            done = self._promote_some()
            self._server_ahead = done.now_ms / 1000 - time.monotonic()
            if done.moved:
                log.debug("promote: %d tasks of %s are due", done.moved, self.keys.stream)
            if done.moved + len(done.broken) < MAX_TASKS:
                latest = time.monotonic() + LONGEST_SLEEP
                return (
                    latest
                    if done.next_due_ms is None
                    else min(latest, self._here(done.next_due_ms))
                )

    def _here(self, server_ms: int) -> float:
        # Half a millisecond late rather than early: the server's clock is read in whole ones.
        return server_ms / 1000 - self._server_ahead + 0.0005

    def _sleep(self, connection: Connection, until: float) -> None:
        """Sleep until a time on the monotonic clock, or an earlier one that is announced."""
        while not self._stopping.is_set():
            left = until - time.monotonic()
            if left <= 0:
                return
            try:
                message: Any = connection.receive(left)
            except ConfigurationError as error:
                raise _CannotListen(error) from error
            if message is None:
                return
            if not is_news(message):
                raise unexpected(("SUBSCRIBE",), message)
            if message[0] == b"subscribe" and self._on_message is not None:
                self._on_message(LISTENING)
            if message[0] != b"message":
                continue
            text = message[2].decode("utf-8", "replace")
            if text.isdigit():
                until = min(until, self._here(int(text)))
            elif self._on_message is not None:
                self._on_message(text)

    _server_ahead = 0.0
