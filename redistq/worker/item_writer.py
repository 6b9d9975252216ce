"""The writer of items: the thread of a worker process that sends what its tasks yield.

What has come of all attempts goes in one script call for each queue, within 50 ms or as soon as
there are 64 kB. What was sent stays with its attempt until the server has answered, however long
that is away, and is sent again: the script knows a chunk that it has.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any

from ..connection.broker import Broker
from ..errors import (
    ConnectionLost,
    LeaseLost,
    RedistqError,
    ServerFull,
    ServerUnavailable,
    UnexpectedReply,
)
from ..logger import logger
from ..protocol.commands import MAX_TASKS, Commands
from .item_buffer import MOST_TAKEN, Yielded

if TYPE_CHECKING:
    from .collecting import Collected
    from .queues import WorkerQueue

log = logger("redistq.worker")

AWAY_S = (0.05, 2.0)
"""Seconds before a server that is away, or full, is asked again: at first, and at most."""
RENEW_S = 86_400.0
"""Seconds after which the items of a task that yields nothing are kept for longer."""
LOOK_S = 3600.0
"""How often it is looked for those."""
SAY_S = 10.0
"""Seconds without room after which it is said that a task waits for a reader."""

Row = tuple[Any, ...]


class ItemWriter:
    """Sends the items of a worker process's tasks; thread-safe."""

    def __init__(self, broker: Broker, consumer: str) -> None:
        self._broker = broker
        self._consumer = consumer
        self._active: dict[Yielded, None] = {}  # of which something is to be sent, or was just now
        self._open: dict[Yielded, None] = {}
        self._watched: dict[Collected, None] = {}
        self._bell = threading.Event()
        self._closed = False
        self._pause_s = 0.0
        self._looked = time.monotonic()

    def add(self, items: Yielded) -> None:
        """Send what is there of these soon, and what comes."""
        self._open[items] = None
        self._active[items] = None
        self._bell.set()

    def ring(self) -> None:
        """Look at once whether there is much of any."""
        self._bell.set()

    def forget(self, items: Yielded) -> None:
        """Send nothing more of these."""
        self._active.pop(items, None)
        self._open.pop(items, None)

    def watch(self, collected: Collected) -> None:
        """Send items of a call that has them all in its result, once somebody reads."""
        self._watched[collected] = None
        self._bell.set()

    def unwatch(self, collected: Collected) -> None:
        """Send nothing more of these."""
        self._watched.pop(collected, None)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._bell.set()

    def run(self) -> None:
        """Send until ``close``: what the writer's own thread does."""
        while not self._closed:
            self._bell.clear()
            wait = min(self._feed(), self._send_due())
            if wait > 0:
                self._bell.wait(min(wait, LOOK_S))
            if time.monotonic() - self._looked > LOOK_S:
                self._renew()

    def _feed(self) -> float:
        """Look for readers of what is in results; return the seconds until the next look."""
        first = math.inf
        for collected in list(self._watched):
            first = min(first, collected.feed(time.monotonic()))
        return first - time.monotonic()

    def _send_due(self) -> float:
        """Send what is due; return the seconds until something is."""
        now = time.monotonic()
        due = []
        first = math.inf
        for items in list(self._active):
            at = items.due(now)
            if at <= now:
                due.append(items)
            elif at == math.inf:
                self._let_rest(items)
            else:
                first = min(first, at)
        if not due:
            return first - now
        self._send(due)
        return 0.0

    def _let_rest(self, items: Yielded) -> None:
        self._active.pop(items, None)
        items.told = 0
        if items.due(time.monotonic()) != math.inf:  # one has come meanwhile
            items.told = 1
            self._active[items] = None

    def _renew(self) -> None:
        self._looked = time.monotonic()
        for items in list(self._open):
            if self._looked - items.renewed > RENEW_S:
                items.renew()
                self._active[items] = None

    def _send(self, due: list[Yielded]) -> None:
        """Send what is due, about a megabyte; the others are first the next time."""
        by_queue: dict[WorkerQueue, list[tuple[Yielded, Row]]] = {}
        rows = size = 0
        for items in due:
            if rows >= MAX_TASKS or size >= MOST_TAKEN:
                break
            if self._active.pop(items, self) is None:
                self._active[items] = None  # behind the others
            for row in items.rows():
                by_queue.setdefault(items.queue, []).append((items, row))
                rows += 1
                size += len(row[-1])
        for queue, pairs in by_queue.items():
            self._call(queue, pairs)

    def _call(self, queue: WorkerQueue, pairs: list[tuple[Yielded, Row]]) -> None:
        command = queue.commands.append_items(self._consumer, [row for _, row in pairs])
        try:
            words = Commands.read_appended(self._broker.call(command))
            self._pause_s = 0.0
        except (ServerUnavailable, ConnectionLost, UnexpectedReply, ServerFull) as error:
            self._wait_for_server(len(pairs), error)
            return
        except Exception as error:  # the server's refusal: a right that is missing, say
            for items, _ in pairs:
                items.fail(error)
            return
        stopped = set()
        for (items, row), (word, why) in zip(pairs, words, strict=True):
            if items in stopped:
                continue  # what follows on a chunk that is not there
            if word == "kept":
                items.kept()
                continue
            stopped.add(items)
            self._refused(items, row, word, why)

    def _refused(self, items: Yielded, row: Row, word: str, why: str) -> None:
        task_id = items.attempt.id
        if word == "full" or "OOM" in why:
            self._say_if_unread(items, why)
            items.no_room()
        elif word == "lost":
            items.fail(LeaseLost("this task was taken from this worker: another one runs it now"))
        elif word == "broken":
            items.fail(RedistqError(f"what task {task_id} yields cannot be kept: {why}"))
        else:
            items.fail(
                RedistqError(
                    f"the stream of task {task_id} does not end where item {row[3]} belongs (it "
                    f"stands at {word!r}): the server has lost some of it"
                )
            )

    def _say_if_unread(self, items: Yielded, why: str) -> None:
        since = items.unread_since
        if since and time.monotonic() - since > SAY_S:
            items.unread_since = math.inf  # once
            log.warning(
                "task %s waits: %s",
                items.attempt.id,
                why
                or f"nobody reads what it yields, and {items.attempt.window:,} bytes are unread",
            )

    def _wait_for_server(self, chunks: int, error: Exception) -> None:
        if not self._pause_s:
            log.warning("%d chunks of what tasks yield wait for the server: %s", chunks, error)
        self._pause_s = min(max(2 * self._pause_s, AWAY_S[0]), AWAY_S[1])
        until = time.monotonic() + self._pause_s
        while not self._closed and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
