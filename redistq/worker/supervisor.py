"""The supervisor: the process that runs no user code, so nothing can starve its heartbeat.

A handler that holds the interpreter for a minute (a solver, a big parse) silences every thread of
its own process; peers would take it for dead and run its tasks twice. So heartbeats, recovery,
the scheduler and time limits live here: in ``python -m redistq.worker`` itself, whose tasks run
in child processes, or in a small process beside an application that has a TaskWorker inside.

It keeps *members*: worker processes with a consumer name and a scoreboard. Children it starts and
restarts; of a process that started the supervisor it learns by end-of-file on standard input that
it has gone. Either way it then reports the dead consumer at once, with the scoreboard's knowledge
of what had been started, and nobody waits for the lease to run out.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..connection.address import Address, rejoin
from ..connection.broker import Broker
from ..connection.server_checks import check_server
from ..errors import ConfigurationError, GroupMissing, RedistqError
from ..logger import logger
from ..protocol.commands import Commands, Recovered, new_consumer_name
from ..scheduler.scheduler import LISTENING, TaskScheduler
from ..system import blas
from ..system.processes import Helper, Starter, import_path
from .scoreboard import Scoreboard
from .settings import WorkerSettings

log = logger("redistq.supervisor")

ADOPT_EVERY_S = 30.0
REPORT_AGAIN_S = 6.0
"""Seconds after which a dead worker is reported once more: longer than any blocking read."""
KILL_GRACE_S = 5.0
QUICK_DEATH_S = 5.0
START_TRIES = 3
"""Starts that may fail without a reason given before the supervisor gives up."""
RESTART_PAUSE_S = 0.1
"""Before a process is started again whose kind dies quickly and settles nothing; it doubles."""
LONGEST_PAUSE_S = 30.0
KILLERS_PAUSE_S = 0.25
"""As long at most when tasks kill their processes: each of them can do so only a few times."""
AWAY_PAUSE_S = 0.5
"""Before the server is asked again when it was away or refused."""
ORPHAN_TIMEOUT_S = 5.0
"""Seconds that children may drain when the application that started them is gone."""

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


@dataclass(slots=True)
class ManagedProcess:
    """One worker process as its supervisor sees it."""

    consumer: str
    scoreboard: Scoreboard
    start: int = 0
    """With which of its supervisor's starts it was started; several processes share one."""
    helper: Helper | None = None
    ready: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    """What it registered, to be registered again should the server lose it."""
    failure: str = ""
    """Why it cannot work, in its own words."""
    heard: threading.Event = field(default_factory=threading.Event)
    """Set when there is no more to hear from it."""
    unavailable: bool = False
    """Whether it ended because the server was away when it started."""
    told: str | None = None
    """What the last heartbeat said it was running."""
    killed_for_limit: bool = False
    started_at: float = field(default_factory=time.monotonic)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """Its process, if the supervisor started it."""
        return None if self.helper is None else self.helper.process


@dataclass(slots=True)
class Death:
    """A worker process that has gone, until the server has been told of it, twice."""

    consumer: str
    started: list[str]
    """What it was running, which is charged a recovery."""
    due: float = 0.0
    heard: bool = False


class Supervisor:
    """Beats, recovers, schedules, and keeps ``children`` worker processes alive.

    ``run`` blocks until ``request_stop`` (or a second one, which kills) or, for a supervisor beside
    an application, until that has gone.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        address: Address,
        *,
        children: int = 0,
        child_spec: dict[str, Any] | None = None,
        member: ManagedProcess | None = None,
    ) -> None:
        self.settings, self.address = settings, address
        self._child_spec, self._wanted = child_spec or {}, children
        self._commands: list[Commands] = settings.commands_for(address)
        self._broker = Broker(address, slot_key=self._commands[0].keys.stream, timeout=5.0)
        self._members: list[ManagedProcess] = [member] if member else []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._kill = threading.Event()
        self._deaths: list[Death] = []
        self._failed_boot, self._booted = "", False
        self._starts, self._failed_starts = 0, set[int]()
        self._drain_timeout = settings.shutdown_timeout
        self.on_ready: Any = None
        self.parent: int | None = None
        """The application whose worker it keeps and with which it must end."""
        self.paused: frozenset[int] = frozenset()
        """Which queues are paused, by their places; 0 is the most urgent."""
        self._announced = False
        self._next_beat = 0.0
        self._next_adopt = time.monotonic() + 1.0
        self._earliest: float | None = None
        self._restart_pause, self._restart_at = RESTART_PAUSE_S, 0.0
        self._settled_by_dead = self._settled_before = 0

    # -- commands from signal handlers and other threads -----------------------------------------

    def request_stop(self, timeout: float | None = None) -> None:
        """First call: drain within ``timeout`` seconds and end. Second call: end at once."""
        if self._stopping.is_set():
            self._kill.set()
        elif timeout is not None:
            self._drain_timeout = timeout
        self._broker.timeout = 1.0  # a server that is away must not hold up the end
        self._stopping.set()
        self._wake.set()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def failed_boot(self) -> str:
        """Why its children cannot start; empty when they can."""
        return self._failed_boot

    @property
    def ready(self) -> bool:
        """Whether every child fetches."""
        with self._lock:
            return len(self._members) >= self._wanted and all(m.ready for m in self._members)

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> int:
        """Keep until told to stop; answers 0 (drained), 1 (not) or 2 (children cannot start)."""
        schedulers = []
        if self.settings.scheduler:
            schedulers = [
                TaskScheduler(
                    stream=commands.keys.stream,
                    delayed_key=commands.keys.delayed,
                    address=self.address,
                    on_message=partial(self._control, place),
                ).start()
                for place, commands in enumerate(self._commands)
            ]
        self._announced = False
        try:
            while not self._stopping.is_set():
                try:
                    self._keep()
                except Exception:
                    # Whatever it is: without this loop the workers would be taken for dead.
                    log.exception("the supervisor goes on after an error")
                    self._stopping.wait(AWAY_PAUSE_S)
                if self._failed_boot:
                    log.error("%s", self._failed_boot)
                    self._end_children(kill=True)
                    return EXIT_USAGE
                self._wake.wait(self._nap())
                self._wake.clear()
            return self._drain()
        finally:
            for scheduler in schedulers:
                scheduler.stop()
            self._broker.close()

    def _keep(self) -> None:
        """One round of the loop."""
        self._keep_children()
        if self._failed_boot:
            return
        if not self._announced and self.ready:
            self._announced = True
            if self.on_ready is not None:
                self.on_ready()
        if self.parent is not None and os.getppid() != self.parent:
            # End of input says so sooner, unless a process it forked holds the pipe open.
            self.request_stop(min(self.settings.shutdown_timeout, ORPHAN_TIMEOUT_S))
            return
        self._beat_if_due()
        self._send_death_reports()
        self._check_limits()

    def _nap(self) -> float:
        now = time.monotonic()
        until = min(self._next_beat, now + 1.0)
        if self._earliest is not None:
            until = min(until, self._earliest)
        for death in self._deaths:
            until = min(until, death.due)
        if self._wanted > len(self._members):
            until = min(until, self._restart_at)
        return max(0.002, until - now)

    def _control(self, place: int, word: str) -> None:
        if word == "paused":
            self._set_paused(self.paused | {place})
        if word == "resumed":
            self._set_paused(self.paused - {place})
        if word in ("paused", "resumed", LISTENING):
            # Words may have been missed, or have crossed a heartbeat: see at once what holds.
            self._next_beat = 0.0
            self._wake.set()

    def _set_paused(self, paused: frozenset[int]) -> None:
        for place, queue in enumerate(self.settings.queues):
            if (place in paused) != (place in self.paused):
                log.info("queue %s is %s", queue, "paused" if place in paused else "resumed")
        self.paused = paused
        with self._lock:
            for member in self._members:
                member.scoreboard.paused = paused

    # -- heartbeat and recovery ------------------------------------------------------------------

    def _beat_if_due(self) -> None:
        now = time.monotonic()
        due = now >= self._next_beat
        dead = self._earliest is not None and now >= self._earliest
        if not due and not dead:
            return
        try:
            # Beat before judging others: the grace rule in heartbeat.lua must run first.
            self.beat()
            if self._earliest is not None and self._earliest <= time.monotonic():
                self._recover_expired()
            if now >= self._next_adopt:
                for commands in self._commands:
                    adopted = self._broker.call(commands.adopt(self.settings.lease_ms))
                    if adopted:
                        log.warning("adopt: %d consumers with pending tasks had no worker", adopted)
                self._next_adopt = now + ADOPT_EVERY_S * random.uniform(0.75, 1.25)
        except (RedistqError, GroupMissing, OSError) as error:
            log.warning("heartbeat waits for the server: %s", error)
            self._next_beat, self._earliest = time.monotonic() + AWAY_PAUSE_S, None
        except Exception:
            self._next_beat, self._earliest = time.monotonic() + AWAY_PAUSE_S, None
            raise

    def beat(self) -> None:
        """One heartbeat for all members that fetch."""
        with self._lock:
            members = [m for m in self._members if m.ready]
        rows, told = [], []
        for member in members:
            running = " ".join(member.scoreboard.running()[:64])
            rows.append((member.consumer, "=" if running == member.told else running))
            told.append((member, running))
        paused: set[int] = set()
        earliest, now = [], time.monotonic()
        forgotten: set[str] = set()
        for place, commands in enumerate(self._commands):
            reply = Commands.read_heartbeat(
                self._broker.call(commands.heartbeat(self.settings.lease_ms, rows))
            )
            if reply.paused:
                paused.add(place)
            if reply.earliest_deadline_ms >= 0:
                # One millisecond past the deadline, the first instant at which it has passed.
                wait_ms = reply.earliest_deadline_ms - reply.now_ms + 1
                earliest.append(time.monotonic() + wait_ms / 1000)
            for position in reply.unregistered:
                # FLUSHDB, or taken for dead: others must know again which names it runs.
                stranger = members[position - 1]
                forgotten.add(stranger.consumer)
                self._broker.call(
                    commands.register(stranger.consumer, self.settings.lease_ms, stranger.details)
                )
        for member, running in told:
            member.told = None if member.consumer in forgotten else running
        self._next_beat = now + self.settings.lease / 3
        self._earliest = min(earliest, default=None)
        if paused != self.paused:
            self._set_paused(frozenset(paused))
            # The answer may be older than a word that came meanwhile: see at once what holds.
            self._next_beat = 0.0

    def _recover_expired(self) -> None:
        for commands in self._commands:
            while not self._kill.is_set():
                done = Commands.read_recover(
                    self._broker.call(commands.recover(self.settings.max_recoveries))
                )
                if not done.consumer:
                    break
                say_broken(done)
                log.warning(
                    "worker %s is dead (no heartbeat): %d tasks recovered, %d dead letters",
                    done.consumer,
                    done.recovered,
                    done.dead,
                )
        self.beat()

    def report(self, member: ManagedProcess) -> bool:
        """A member has gone: its tasks go back now, what it had started is charged a recovery.

        Answers whether the server heard it.
        """
        return self._report(member.consumer, member.scoreboard.running())

    def _report(self, consumer: str, started: list[str]) -> bool:
        try:
            sign_off(self._broker, self._commands, self.settings, consumer, started)
        except (RedistqError, GroupMissing) as error:
            log.warning("worker %s could not be reported: %s", consumer, error)
            return False
        return True

    def _send_death_reports(self) -> None:
        """Tell the server of workers that have gone, until it hears it: what had been started is
        known here alone. Told once more later, for the server may hand a task to a blocking read
        before it sees that nobody reads there."""
        now = time.monotonic()
        for death in [d for d in self._deaths if d.due <= now]:
            if not self._report(death.consumer, death.started):
                death.due = time.monotonic() + AWAY_PAUSE_S
                return  # the next will not be heard either
            if death.heard:
                self._deaths.remove(death)
            else:
                death.heard, death.started = True, []
                death.due = time.monotonic() + REPORT_AGAIN_S

    # -- children --------------------------------------------------------------------------------

    def _keep_children(self) -> None:
        if os.getpid() == 1:
            self._reap_orphans()
        with self._lock:
            gone = [m for m in self._members if m.process and m.process.poll() is not None]
            for member in gone:
                self._members.remove(member)
        for member in gone:
            self._bury(member)
        missing = self._wanted - len(self._members)
        if missing > 0 and time.monotonic() >= self._restart_at:
            self._start_children(missing)

    def _reap_orphans(self) -> None:
        """As process 1 of a container: what handlers left behind becomes our child when it ends."""
        with self._lock:
            ours = [m.process for m in self._members if m.process]
        for process in ours:
            process.poll()  # those are waited for by their own objects, which need the exit codes
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if any(process.pid == found.si_pid for process in ours):
                    return  # it ended just now; the next look buries it
                os.waitpid(found.si_pid, 0)

    def _bury(self, member: ManagedProcess) -> None:
        assert member.helper is not None
        code = member.helper.process.returncode
        if not member.ready:
            member.heard.wait(1.0)  # its reason may be on the way
        started = member.scoreboard.running()
        self._deaths.append(Death(member.consumer, started))
        self._settled_by_dead += member.scoreboard.settled
        member.helper.let_go()
        if self._stopping.is_set():
            return
        why = "exceeded a time limit" if member.killed_for_limit else how_it_ended(code)
        if not member.ready and not self._booted:
            self._failed_boot = self._why_it_cannot_start(member, why)
            if self._failed_boot:
                return
        log.warning("worker process %d %s; starting another", member.helper.process.pid, why)
        with self._lock:
            settled = self._settled_by_dead + sum(m.scoreboard.settled for m in self._members)
        lived = time.monotonic() - member.started_at
        if settled > self._settled_before or (member.ready and lived >= QUICK_DEATH_S):
            # Work goes on: a task that kills its process must not hold it up.
            self._restart_pause, self._restart_at = RESTART_PAUSE_S, 0.0
        else:
            self._pause_restarts(KILLERS_PAUSE_S if started else LONGEST_PAUSE_S)
        self._settled_before = settled

    def _pause_restarts(self, longest: float) -> None:
        pause = min(self._restart_pause, longest)
        self._restart_at = time.monotonic() + pause
        self._restart_pause = min(self._restart_pause * 2, LONGEST_PAUSE_S)

    def _why_it_cannot_start(self, member: ManagedProcess, why: str) -> str:
        """Of a first start that failed: the reason to give up, or nothing to try once more."""
        if member.failure or member.unavailable:
            return member.failure
        # It was ended from outside, or by native code or os._exit in a handlers' module.
        self._failed_starts.add(member.start)
        if len(self._failed_starts) < START_TRIES:
            return ""
        return (
            f"worker processes end before they are ready, {START_TRIES} times in a row; the last "
            f"one {why}: see its last words above, and what the handlers' modules do when they are "
            "imported"
        )

    def _start_children(self, missing: int) -> None:
        self._starts += 1
        for _ in range(missing):
            try:
                self._spawn()
            except ConfigurationError as error:
                if self._booted:
                    log.error("%s", error)
                else:
                    self._failed_boot = str(error)
            except (OSError, RuntimeError) as error:
                # No more processes, threads, descriptors or memory: for now, perhaps.
                log.error("no worker process could be started: %s", error)
            else:
                continue
            self._pause_restarts(LONGEST_PAUSE_S)
            return

    def _spawn(self) -> None:
        scoreboard = Scoreboard.create(self.settings.scoreboard_slots, len(self.settings.queues))
        try:
            scoreboard.paused = self.paused
            member = ManagedProcess(
                new_consumer_name(socket.gethostname()), scoreboard, start=self._starts
            )
            member.helper = Helper(
                "redistq.worker.child",
                pass_fds=(scoreboard.descriptor,),
                environment=blas.environment(self._wanted),
            )
            spec = {
                "path": import_path(),
                **self._child_spec,
                "settings": self.settings.as_dict(),
                "address": self.address.as_dict(),
                "consumer": member.consumer,
                "scoreboard": scoreboard.descriptor,
            }
        finally:
            scoreboard.close()
        with self._lock:
            self._members.append(member)
        watch = threading.Thread(
            target=self._watch_child, args=(member, spec), name="redistq-child-watch", daemon=True
        )
        try:
            watch.start()
        except RuntimeError:
            member.helper.process.kill()
            raise

    def _watch_child(self, member: ManagedProcess, spec: dict[str, Any]) -> None:
        """Hear that a child is ready or why it cannot be, then wait for its end."""
        assert member.helper is not None
        member.helper.introduce(spec)
        while (news := member.helper.news()) is not None:
            if news.get("ready"):
                member.details = news.get("details", {})
                member.ready = self._booted = True
                self._next_beat = 0.0
            member.failure = str(news.get("failure", member.failure))
            member.unavailable = "unavailable" in news
            self._wake.set()
        member.heard.set()
        member.helper.process.wait()
        self._wake.set()

    def _check_limits(self) -> None:
        """A thread that ran past its time limit and obeyed nothing costs its process its life."""
        now = time.monotonic()
        with self._lock:
            members = list(self._members)
        for member in members:
            if member.process is None or not member.ready:
                continue
            if member.scoreboard.overdue(now) and not member.killed_for_limit:
                member.killed_for_limit = True
                log.warning(
                    "worker process %d runs a task past its time limit that cannot be interrupted: "
                    "killing it",
                    member.process.pid,
                )
                member.process.kill()

    # -- the end ---------------------------------------------------------------------------------

    def _drain(self) -> int:
        """Stop members within the shutdown timeout; a living member keeps its heartbeat."""
        timeout = self._drain_timeout
        deadline = time.monotonic() + timeout
        for member in self._members:
            if member.helper is not None:
                member.helper.tell(f"stop {timeout}")
        clean = True
        while any(m.process and m.process.poll() is None for m in self._members):
            if self._kill.is_set() or time.monotonic() > deadline + KILL_GRACE_S:
                clean = False
                break
            try:
                self._beat_if_due()
                self._check_limits()
            except Exception:
                log.exception("the supervisor goes on after an error")
            self._wake.wait(min(0.2, self._nap()))
            self._wake.clear()
        return EXIT_OK if self._end_children(kill=True) and clean else EXIT_FAILED

    def _end_children(self, kill: bool) -> bool:
        clean = served = True
        for death in self._deaths:
            # Of a server that is away it is enough to have heard once.
            served = served and self._report(death.consumer, death.started)
        self._deaths.clear()
        for member in self._members:
            if kill and member.process is not None and member.process.poll() is None:
                member.process.kill()
        for member in self._members:
            if member.helper is not None:
                member.helper.process.wait()
                clean = clean and member.helper.process.returncode == 0
                member.helper.let_go()
            # Of a server that is away it is enough to have heard once.
            served = served and self.report(member)
        self._members.clear()
        return clean


def sign_off(
    broker: Broker,
    queues: Sequence[Commands],
    settings: WorkerSettings,
    consumer: str,
    started: Iterable[str],
) -> None:
    """A worker process has ended, or is about to: its tasks go back, those ``started`` are charged
    a recovery. Raises as Broker.call does."""
    started = tuple(started)
    for commands in queues:
        more = True
        while more:
            done = Commands.read_recover(
                broker.call(
                    commands.recover(settings.max_recoveries, consumer=consumer, started=started)
                )
            )
            more = done.more
            say_broken(done)
            if done.recovered or done.dead:
                log.warning(
                    "worker %s has gone: %d tasks recovered, %d dead letters",
                    consumer,
                    done.recovered,
                    done.dead,
                )


_said: set[str] = set()  # entries that could not be taken back, and were named


def say_broken(done: Recovered) -> None:
    """Log the entries that could not be taken back, each once: they are tried again by and by."""
    for entry, words in done.broken.items():
        if entry not in _said:
            _said.add(entry)
            log.error(
                "entry %s of worker %s could not be taken back and is tried again: %s",
                *(entry, done.consumer, words),
            )


def how_it_ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def run_beside(starter: Starter, spec: dict[str, Any]) -> int:
    """The supervisor process that a TaskWorker starts: see Supervisor. Ends when its starter
    does."""
    settings = WorkerSettings.of(spec["settings"])
    address = rejoin(Address(**spec["address"]))
    member = None
    if spec.get("consumer"):
        scoreboard = Scoreboard(spec["scoreboard"])
        scoreboard.close()
        member = ManagedProcess(spec["consumer"], scoreboard, ready=True, details=spec["details"])
    supervisor = Supervisor(
        settings,
        address,
        children=spec.get("children", 0),
        child_spec=spec.get("child_spec"),
        member=member,
    )

    def on_ready() -> None:
        starter.say({"ready": True})
        starter.fall_silent()

    supervisor.parent = spec["parent"]
    supervisor.on_ready = on_ready

    def watch_parent() -> None:
        while (order := starter.order()) is not None:
            command, _, seconds = order.strip().partition(" ")
            if command == "stop":
                supervisor.request_stop(float(seconds) if seconds else None)
            elif command == "kill":
                supervisor.request_stop(0.0)
                supervisor.request_stop()
        # The parent's end, however it came about.
        if not supervisor.stopping:
            supervisor.request_stop(min(settings.shutdown_timeout, ORPHAN_TIMEOUT_S))

    threading.Thread(target=watch_parent, name="redistq-parent-watch", daemon=True).start()
    code = supervisor.run()
    if supervisor.failed_boot:
        starter.say({"failure": supervisor.failed_boot})
    return code


def warn_about_server(broker: Broker) -> None:
    """Log what about the server can lose tasks."""
    for warning in check_server(broker):
        log.warning("%s", warning)
