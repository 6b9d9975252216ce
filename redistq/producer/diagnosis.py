"""Waiting: why nothing comes, found out with one question to the server and said once.

Used by all that waits for results: clients, batches and producers. It costs nothing while
results come. Workers that are all busy are no reason: then there is nothing to say.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ..connection.connection import Connection
from ..display.notebook import say
from ..logger import logger
from ..protocol.commands import Commands, Snapshot, WorkerRow
from ..protocol.homes import Home
from ..protocol.keys import QueueKeys, lane_of
from ..protocol.waits import id_and_priority, read_why

log = logger("redistq.client")

WAIT_S = 3.0
"""Seconds without a result after which the server is asked why."""
ASK_LIMIT_S = 60.0
"""Longest time between two such questions, in seconds: each pause is twice the one before."""
FRESH_S = 2.0
"""Seconds for which an answer is not asked for again."""
ANSWER_S = 1.0
"""Seconds for the answer: the caller has waited long enough."""
ANY_NAME = ""
"""A task of unknown name: any worker may be able to run it."""


def why(
    shot: Snapshot,
    queue: str,
    server: object,
    names: Iterable[str],
    start: str = "",
    home: Home | None = None,
) -> str:
    """Return why tasks of these names do not run, and what to do; '' with workers for them.

    ``start`` says how workers are started here, for instance "client.start_workers()"; ``home`` is
    where function calls belong.
    """
    elsewhere = f"`redistq worker MODULE --queue {queue}`"
    how = f"{start} starts some here, {elsewhere} elsewhere" if start else f"start one: {elsewhere}"
    if shot.paused:
        return f"queue {queue!r} of {server} is paused; resume() lets its workers go on"
    alive = [worker for worker in shot.workers if worker.deadline_ms >= shot.now_ms]
    if not alive and shot.workers:
        many = f"all {shot.workers_total} workers" if shot.workers_total > 1 else "the only worker"
        return (
            f"{many} of queue {queue!r} of {server} {'are' if shot.workers_total > 1 else 'is'} "
            f"silent: dead, cut off, or the server refuses their heartbeats; {how}"
        )
    if not alive:
        return f"no worker serves queue {queue!r} of {server}; {how}"
    if len(shot.workers) < shot.workers_total or not all("names" in w.details for w in alive):
        return ""  # some are not listed, or not described: they may be the ones
    many = f"the {len(alive)} workers" if len(alive) > 1 else "the only worker"
    verb = "know" if len(alive) > 1 else "knows"
    for name in sorted(set(names)):
        able = [worker for worker in alive if name == ANY_NAME or _runs(worker, name)]
        if able:
            if home and _is_call(name) and not any(_serves(worker, home) for worker in able):
                return (
                    f"{many} of queue {queue!r} run{'' if len(alive) > 1 else 's'} function calls "
                    f"of other folders or environments only, not of {home.description}; {start} "
                    "starts some for these"
                )
            continue
        if _is_call(name):
            return (
                f"{many} of queue {queue!r} {verb} no function calls: they lack this client's "
                f"signing key (REDISTQ_SIGNING_KEY for both sides); {how}"
            )
        known = sorted({n for w in alive for n in _names(w) if not n.startswith("redistq.")})
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"they know {', '.join(known[:5])}"
        return f"{many} of queue {queue!r} {verb} no task {name!r}" + (f"; {hint}" if known else "")
    return ""


def _names(worker: WorkerRow) -> list[str]:
    return worker.details.get("names", "").split("\n")


def _runs(worker: WorkerRow, name: str) -> bool:
    """Return whether a worker has a handler for a name; ``handler:label`` has ``handler``."""
    names = _names(worker)
    return name in names or name.partition(":")[0] in names


def _is_call(name: str) -> bool:
    return name.partition(":")[0] == "redistq.call"


def _serves(worker: WorkerRow, home: Home) -> bool:
    """Return whether a worker runs the function calls of a home: its own, or those of all homes."""
    return worker.details.get("home", "") in ("", home.name)


class Diagnosis:
    """What is known of a queue whose results do not come, and what was said of it. Thread-safe."""

    def __init__(
        self,
        commands: Commands,
        server: object,
        connection: Callable[[float], Connection] | None = None,
        start: str = "",
        home: Home | None = None,
    ) -> None:
        self._commands = commands
        self._server = server
        self._connection = connection
        self._start = start
        self._home = home
        self.command = commands.snapshot()
        """The question; ``read`` takes its answer."""
        self.reason = ""
        """Why nothing comes, as far as is known."""
        self._shot: Snapshot | None = None  # what the reason was read from
        self._held_task = ""  # the one task whose reason it is; '' when it is the queue's
        self._held_up = 0  # how many tasks of the queue may not run yet
        self._asked_at = 0.0
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def read(self, reply: Any, names: Iterable[str]) -> str:
        """Return the reason that a snapshot gives; '' when there is none."""
        shot = Commands.read_snapshot(reply)
        queue = self._commands.keys.stream
        self.reason = why(shot, queue, self._server, names, self._start, self._home)
        self._shot, self._held_task = shot, ""
        self._held_up = shot.waiting
        return self.reason

    def hold(self, reason: str) -> str:
        """Keep a reason that was found out otherwise."""
        self.reason = reason
        return reason

    def reason_of(self, name: str, task_id: str) -> str:
        """Return what is known of why that task does not come, without a question; '' where the
        reason is one of other tasks alone."""
        if self._held_task:
            return self.reason if task_id == self._held_task else ""
        if not self.reason or self._shot is None:
            return self.reason
        queue = self._commands.keys.stream
        return why(self._shot, queue, self._server, (name,), self._start, self._home)

    def unanswered(self, error: Exception) -> str:
        """Return no reason, and keep none: the server did not answer, or may not be asked."""
        log.debug("why nothing comes is not known: %r", error)
        self.reason = ""
        return self.reason

    def ask(self, names: Iterable[str], task_id: str = "") -> str:
        """Return the reason, with a question of its own unless it was just asked. Never raises, and
        takes no longer than a moment: an unavailable server is reported elsewhere.

        Where there are workers, it is asked what the task of that id waits for.
        """
        assert self._connection is not None
        with self._lock:
            if time.monotonic() - self._asked_at < FRESH_S:
                return self.reason
            connection = self._connection(ANSWER_S)
            try:
                reason = self.read(connection.request(self.command), names)
                if not reason and task_id and self._held_up:
                    why = read_why(connection.request(self._commands.why(task_id)))
                    why = replace(why, running=self._running_of(why.named, connection))
                    others = self._held_up - 1
                    more = f", and {others:,} others may not run yet" if others > 0 else ""
                    reason = self.hold(f"task {task_id} {why.words()}{more}" if why.reason else "")
                    self._held_task = task_id if reason else ""
                return reason
            except Exception as error:  # broad: a question beside the work never fails it
                return self.unanswered(error)
            finally:
                connection.close()
                self._asked_at = time.monotonic()

    def _running_of(self, refs: Iterable[str], connection: Connection) -> frozenset[str]:
        """Return which of some tasks a worker has now: to wait for these is as it should be."""
        stream = self._commands.keys.stream
        found: set[str] = set()
        for ref in refs:
            task_id, priority = id_and_priority(ref)
            commands = Commands(QueueKeys(lane_of(stream, priority)), self._commands.group)
            reply = connection.request(commands.watch(task_id))
            if Commands.read_watch(reply).state == "running":
                found.add(ref)
        return frozenset(found)

    def over(self) -> None:
        """Forget what was said: a result has come, and the same reason later is said again."""
        if self.reason or self._said:
            with self._lock:
                self.reason = ""
                self._said.clear()

    def say(self, reason: str) -> None:
        """Say a reason, once until it is over."""
        if not reason:
            return self.over()
        with self._lock:
            if reason in self._said:
                return None
            self._said.add(reason)
        say(f"still waiting: {reason}", log)
        return None


class Wait:
    """One wait: when to ask, after how long without a result."""

    def __init__(self) -> None:
        self.restart(time.monotonic())

    def restart(self, now: float) -> None:
        """Begin the wait, or begin it again because a result has come."""
        self._next = now + WAIT_S
        self._pause = WAIT_S

    def left(self, now: float) -> float:
        """Return the seconds until it is time to ask."""
        return self._next - now

    def due(self, now: float) -> bool:
        """Return whether it is time to ask; the next time is later by twice as much each time."""
        if now < self._next:
            return False
        self._next = now + self._pause
        self._pause = min(self._pause * 2, ASK_LIMIT_S)
        return True
