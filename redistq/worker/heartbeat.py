"""Heartbeats: a supervisor's worker processes live, others do not, and some queues are paused.

One ``Heartbeat`` belongs to a supervisor, whose thread calls ``send_if_due``. A heartbeat is one
script a queue for all its processes. Its answer says until when every worker of the queue is taken
for alive, so at that time, and not before, the supervisor looks for dead ones and recovers their
tasks. It also says which processes the server no longer knows: they are registered again.

``DeathReports`` belongs to the same supervisor: of processes that it saw end nobody waits for the
lease.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..connection.broker import Broker
from ..errors import GroupMissing, RedistqError
from ..logger import logger
from ..protocol.commands import FORCE, Commands, Recovered
from ..protocol.options import MAX_COUNT
from ..scheduler.subscriber import ASKED, LISTENING, NAMES, PAUSED, RESUMED
from .killed import end_overdue
from .meter import Meter
from .pipe import Child, Parent
from .scoreboard import Overdue, Scoreboard
from .settings import WorkerSettings

if TYPE_CHECKING:
    from .lots import Lot

log = logger("redistq.supervisor")

ADOPT_EVERY_S = 30.0
OUTAGE_PAUSE_S = 0.5
"""Before the server is asked again after it was unavailable or refused."""
REPORT_AGAIN_S = 6.0
"""Seconds after which a dead worker is reported once more: longer than any blocking read."""
FORCE_GRACE_S = 5.0
"""Seconds that a task which is to end by force may run on before its process is killed."""
MOST_LISTED = 64
"""Most running tasks of one process that a heartbeat lists."""


@dataclass(slots=True)
class ManagedProcess:
    """One worker process as its supervisor sees it."""

    consumer: str
    scoreboard: Scoreboard
    child: Child | None = None
    """The process, if the supervisor started it."""
    start: int = 0
    """With which of its supervisor's starts it was started; several processes share one."""
    ready: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    """What it registered, to be registered again should the server lose it."""
    failure: str = ""
    """Why it cannot work, in its own words."""
    unavailable: bool = False
    """Whether it ended because the server was unavailable when it started."""
    heard: threading.Event = field(default_factory=threading.Event)
    """Set when there is no more to hear from it."""
    listed: str | None = None
    """What the last heartbeat said it was running, and uses."""
    meter: Meter = field(default_factory=Meter)
    """Measures what it uses."""
    killed: str = ""
    """Why its supervisor killed it; empty while it has not."""
    overdue: list[Overdue] = field(default_factory=list)
    """What it was killed for, where that is a time limit."""
    forced: dict[str, float] = field(default_factory=dict)
    """Entries that are to end by force, and when the process is killed that still runs one
    (monotonic clock)."""
    names_told: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Which names of tasks have rules, as it was told, by the places of their queues."""
    application: Parent | None = None
    """The application whose process this is, to be told what a child is."""
    most_tasks: int = 0
    """After how many tasks it is replaced; 0: after none."""
    grows: bool = False
    """Whether it began with less memory than that with which it is replaced."""
    lot: Lot | None = None
    """What it has of its supervisor's resources."""
    leaving: str = ""
    """Why its supervisor lets it drain and end, in words; empty while it has not."""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def alive(self) -> bool:
        """Whether the supervisor started it and it has not ended."""
        return self.child is not None and self.child.process.poll() is None

    def said(self) -> str:
        """Return what a heartbeat says of it: the entries it runs and, after a line feed, what it
        uses."""
        running = " ".join(self.scoreboard.running()[:MOST_LISTED])
        uses = self.meter.said(int(self.details.get("pid") or 0))
        return f"{running}\n{uses}" if uses else running

    def tell_to_end(self, place: int, entry: str) -> None:
        """Tell the process that a task is to end; it is told again with each heartbeat."""
        if self.child is not None:
            self.child.cancel(place, entry)
        elif self.application is not None:
            self.application.report_cancel(place, entry)

    def tell_names(self, place: int, names: tuple[str, ...]) -> None:
        """Tell the process which names of tasks have rules, unless it was told the same before."""
        if self.names_told.get(place, ()) == names:
            return
        told = False
        if self.child is not None:
            told = self.child.tell_names(place, names)
        elif self.application is not None:
            told = self.application.report_names(place, names)
        if told:
            self.names_told[place] = names

    def runs_by_force(self, now: float) -> bool:
        """Return whether it still runs a task that was to end by force before now."""
        late = [entry for entry, until in self.forced.items() if until < now]
        return bool(late) and not set(late).isdisjoint(self.scoreboard.running())


class Heartbeat:
    """Send heartbeats for processes and recover the tasks of those that sent none."""

    def __init__(
        self,
        settings: WorkerSettings,
        broker: Broker,
        commands: Sequence[Commands],
        *,
        wake: Callable[[], None],
        hurry: threading.Event,
    ) -> None:
        """``wake`` has the supervisor call ``send_if_due``; once ``hurry`` is set no more dead
        workers are looked for."""
        self._settings = settings
        self._broker = broker
        self._commands = commands
        self._wake = wake
        self._hurry = hurry
        self._members: list[ManagedProcess] = []
        self._lock = threading.Lock()  # words come in threads of their own
        self.paused: frozenset[int] = frozenset()
        """Which queues are paused, by their places; 0 is the most urgent."""
        self._soon = True
        self._next_at = 0.0
        self._earliest: float | None = None
        self._next_adopt_at = time.monotonic() + 1.0

    # -- the processes -------------------------------------------------------------------------

    @property
    def members(self) -> list[ManagedProcess]:
        """The processes that heartbeats are sent for, once they are ready."""
        with self._lock:
            return list(self._members)

    def add(self, member: ManagedProcess) -> None:
        """Send heartbeats for a process that was started; it hears which queues are paused."""
        with self._lock:
            self._members.append(member)
            member.scoreboard.paused = self.paused

    def take_over(self, member: ManagedProcess) -> None:
        """Send heartbeats for a process that runs, and that another supervisor may have paused."""
        with self._lock:
            self._members.append(member)
            self.paused = member.scoreboard.paused

    def remove(self, member: ManagedProcess) -> None:
        """Send no more heartbeats for a process."""
        with self._lock:
            self._members.remove(member)

    # -- when ----------------------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When there is something to do next (monotonic clock)."""
        if self._soon:
            return 0.0
        return self._next_at if self._earliest is None else min(self._next_at, self._earliest)

    def send_soon(self) -> None:
        """Make the next heartbeat due now; one that is under way does not count."""
        self._soon = True

    def heed(self, place: int, word: str) -> None:
        """Act on a word of the channel of the queue at this place; any thread may call this."""
        if word == PAUSED:
            self._set_paused(self.paused | {place})
        if word == RESUMED:
            self._set_paused(self.paused - {place})
        kind, _, consumer = word.partition(" ")
        asked = kind == ASKED and any(m.consumer == consumer for m in self.members)
        if asked or word in (PAUSED, RESUMED, NAMES, LISTENING):
            # Words may have been missed, or have crossed a heartbeat: see at once what holds.
            self.send_soon()
            self._wake()

    def send_if_due(self) -> None:
        """Send a heartbeat when one is due, recover workers whose lease is over, adopt."""
        now = time.monotonic()
        if now < self.due_at:
            return
        self._soon = False
        try:
            # Send before judging others: the grace rule in heartbeat.lua must run first.
            self.send()
            if self._earliest is not None and self._earliest <= time.monotonic():
                self._recover_expired()
            if now >= self._next_adopt_at:
                self._adopt()
        except (RedistqError, GroupMissing, OSError) as error:
            log.warning("heartbeat waits for the server: %s", error)
            self._pause()
        except BaseException:  # whatever it is, the loop that called goes on, and must not spin
            self._pause()
            raise

    def _pause(self) -> None:
        self._next_at = time.monotonic() + OUTAGE_PAUSE_S
        self._earliest = None

    # -- what ----------------------------------------------------------------------------------

    def send(self) -> None:
        """Send one heartbeat for all processes that fetch."""
        members = [member for member in self.members if member.ready]
        said = [member.said() for member in members]
        rows = [
            (member.consumer, "=" if listed == member.listed else listed)
            for member, listed in zip(members, said, strict=True)
        ]
        now = time.monotonic()
        paused: set[int] = set()
        deadlines = []
        unregistered: set[str] = set()
        forced: dict[str, dict[str, float]] = {member.consumer: {} for member in members}
        for place, commands in enumerate(self._commands):
            reply = Commands.read_heartbeat(
                self._broker.call(commands.heartbeat(self._settings.lease_ms, rows))
            )
            if reply.paused:
                paused.add(place)
            if reply.earliest_deadline_ms >= 0:
                # One millisecond past the deadline, the first instant at which it has passed.
                wait_ms = reply.earliest_deadline_ms - reply.now_ms + 1
                deadlines.append(time.monotonic() + wait_ms / 1000)
            for position in reply.unregistered:
                unregistered.add(members[position - 1].consumer)
                self._register_again(commands, members[position - 1])
            for member in members:
                member.tell_names(place, reply.names)
            for position, entry, wish in reply.wishes:
                member = members[position - 1]
                member.tell_to_end(place, entry)
                if wish == FORCE:
                    until = member.forced.get(entry, time.monotonic() + FORCE_GRACE_S)
                    forced[member.consumer][entry] = until
        for member in members:
            member.forced = forced[member.consumer]
        for member, listed in zip(members, said, strict=True):
            member.listed = None if member.consumer in unregistered else listed
        self._next_at = now + self._settings.lease / 3
        self._earliest = min(deadlines, default=None)
        if paused != self.paused:
            self._set_paused(frozenset(paused))
            # The answer may be older than a word that came meanwhile: see at once what holds.
            self.send_soon()

    def _register_again(self, commands: Commands, member: ManagedProcess) -> None:
        """Register a process after FLUSHDB, or when it was taken for dead: others must know which
        names it runs."""
        lease_ms = self._settings.lease_ms
        self._broker.call(commands.register(member.consumer, lease_ms, member.details))

    def _set_paused(self, paused: frozenset[int]) -> None:
        for place, queue in enumerate(self._settings.queues):
            if (place in paused) != (place in self.paused):
                log.info("queue %s is %s", queue, PAUSED if place in paused else RESUMED)
        with self._lock:
            self.paused = paused
            for member in self._members:
                member.scoreboard.paused = paused

    def _recover_expired(self) -> None:
        for commands in self._commands:
            while not self._hurry.is_set():
                done = Commands.read_recover(
                    self._broker.call(commands.recover(self._settings.max_recoveries))
                )
                if not done.consumer:
                    break
                _log_broken(done)
                log.warning(
                    "worker %s is dead (no heartbeat): %d tasks recovered, %d dead letters",
                    done.consumer,
                    done.recovered,
                    done.dead,
                )
        self.send()

    def _adopt(self) -> None:
        for commands in self._commands:
            adopted = self._broker.call(commands.adopt(self._settings.lease_ms))
            if adopted:
                log.warning("adopt: %d consumers with pending tasks had no worker", adopted)
        self._next_adopt_at = time.monotonic() + ADOPT_EVERY_S * random.uniform(0.75, 1.25)


class DeathReports:
    """Report worker processes that have ended until the server has heard of each, twice.

    What such a process had started is known here alone. The second report comes later: the server
    may hand a task to a blocking read before it sees that nobody reads there.
    """

    def __init__(
        self, settings: WorkerSettings, broker: Broker, commands: Sequence[Commands]
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._commands = commands
        self._deaths: list[_Death] = []

    @property
    def due_at(self) -> float:
        """When there is something to report next (monotonic clock)."""
        return min((death.due for death in self._deaths), default=math.inf)

    def add(self, consumer: str, started: list[str], overdue: Iterable[Overdue] = ()) -> None:
        """Report a process from now on. Of what it had ``started`` the ``overdue``, for which it
        was killed, ends; all else is charged a recovery."""
        late = [attempt for attempt in overdue if attempt.entry in started]
        self._deaths.append(_Death(consumer, started, late))

    def send_due(self) -> None:
        """Send the reports that are due."""
        now = time.monotonic()
        for death in [death for death in self._deaths if death.due <= now]:
            if not self._send(death):
                death.due = time.monotonic() + OUTAGE_PAUSE_S
                return  # the next will not be heard either
            if death.reported:
                self._deaths.remove(death)
            else:
                death.reported = True
                death.started = []
                death.overdue = []
                death.due = time.monotonic() + REPORT_AGAIN_S

    def send_last(self) -> None:
        """Send all reports once more, as far as the server hears them: no more are sent."""
        for death in self._deaths:
            if not self._send(death):
                break
        self._deaths.clear()

    def _send(self, death: _Death) -> bool:
        """Have a dead worker's tasks given back; return whether the server heard it."""
        try:
            end_overdue(self._broker, self._commands, death.consumer, death.overdue)
            # It was killed for those that are overdue: the others are charged, but never end by it.
            spare = bool(death.overdue)
            started = death.started
            sign_off(self._broker, self._commands, self._settings, death.consumer, started, spare)
        except (RedistqError, GroupMissing) as error:
            log.warning("worker %s could not be reported: %s", death.consumer, error)
            return False
        return True


@dataclass(slots=True)
class _Death:
    """A worker process that has ended."""

    consumer: str
    started: list[str]
    """What it was running, which is charged a recovery."""
    overdue: list[Overdue] = field(default_factory=list)
    due: float = 0.0
    reported: bool = False


def sign_off(
    broker: Broker,
    queues: Sequence[Commands],
    settings: WorkerSettings,
    consumer: str,
    started: Iterable[str],
    spare: bool = False,
) -> None:
    """Give back the tasks of a worker process that has ended, or is about to.

    Those that it had ``started`` are charged a recovery; with ``spare`` none of them ends by it.
    Raises as Broker.call does.
    """
    most = MAX_COUNT if spare else settings.max_recoveries
    started = tuple(started)
    for commands in queues:
        more = True
        while more:
            done = Commands.read_recover(
                broker.call(commands.recover(most, consumer=consumer, started=started))
            )
            more = done.more
            _log_broken(done)
            if done.recovered or done.dead:
                log.warning("worker %s has gone: %s", consumer, _became_of(done))


def _became_of(done: Recovered) -> str:
    """Return in words what became of a worker's tasks."""
    from ..display.text import plural  # when it is needed: a supervisor starts without it

    words = []
    if done.recovered:
        words.append(f"{plural(done.recovered, 'task')} recovered")
    if done.dead:
        words.append(plural(done.dead, "dead letter"))
    return ", ".join(words)


_logged: set[str] = set()  # entries that could not be taken back, and were named


def _log_broken(done: Recovered) -> None:
    """Log the entries that could not be taken back, each once: they are tried again by and by."""
    for entry, words in done.broken.items():
        if entry not in _logged:
            _logged.add(entry)
            log.error(
                "entry %s of worker %s could not be taken back and is tried again: %s",
                entry,
                done.consumer,
                words,
            )
