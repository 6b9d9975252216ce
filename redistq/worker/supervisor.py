"""The supervisor: the process that runs no user code, so nothing can starve its heartbeat.

A handler that holds the interpreter for a minute (a solver, a big parse) silences every thread of
its own process; peers would take it for dead and run its tasks twice. So heartbeats, recovery,
the scheduler and time limits live here: in ``python -m redistq.worker`` itself, whose tasks run
in child processes, or in a small process beside an application that has a TaskWorker inside.

It keeps *members*: worker processes with a consumer name and a scoreboard. Children it starts and
restarts; of a process that started the supervisor it learns by end-of-file on its pipe that it has
gone. Either way it then reports the dead consumer at once, with the scoreboard's knowledge of what
had been started, and nobody waits for the lease to run out.

``Restarts`` decides when a child is started again, and when there is no use in going on;
``Renewal`` which one is replaced by a fresh one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..connection.address import Address
from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..logger import logger
from ..protocol.commands import new_consumer_name
from ..scheduler.scheduler import TaskScheduler
from ..scheduler.subscriber import Subscriber
from ..system.cores import environment
from ..system.interpreter import import_path
from ..system.loops import Backoff, run_forever
from .autoscale import Scaling
from .copies import CopiedChild
from .heartbeat import OUTAGE_PAUSE_S, DeathReports, Heartbeat, ManagedProcess
from .killing import Ends, verdict
from .pipe import Child
from .renewal import Renewal
from .restarts import Restarts
from .scoreboard import Scoreboard
from .settings import WorkerSettings

if TYPE_CHECKING:
    from .lots import Lot

log = logger("redistq.supervisor")

KILL_GRACE_S = 5.0
LOOK_S = 1.0
"""How often it is looked whether a process is to be replaced."""
MEMORY_LOOK_S = 0.1
"""How often it is looked at how large processes are whose tasks have a limit of memory."""
DRAIN_S = 30 * 86_400.0
"""How long a process may drain that was replaced."""
ORPHAN_TIMEOUT_S = 5.0
"""Seconds that children may drain when the application that started them is gone."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class Supervisor:
    """Send heartbeats, recover, schedule, and keep ``children`` worker processes alive.

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
        copies: Sequence[CopiedChild] = (),
        member: ManagedProcess | None = None,
        on_ready: Callable[[], None] | None = None,
        parent: int | None = None,
    ) -> None:
        """``copies`` are the first of its children where those exist; ``member`` is a process that
        runs already, and ``parent`` the one with whose end this supervisor must end; ``on_ready``
        is called once, when all children fetch."""
        self.settings = settings
        self.address = address
        self._child_spec = child_spec or {}
        self._copies = list(copies)
        self._wanted, self._most = settings.processes(children)
        self._on_ready = on_ready
        self._parent = parent
        self._commands = settings.commands_for(address)
        self._broker = Broker(address, slot_key=self._commands[0].keys.stream, timeout=5.0)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._kill = threading.Event()
        self._drain_timeout = settings.shutdown_timeout
        self._announced = False
        self._deaths = DeathReports(settings, self._broker, self._commands)
        self._restarts = Restarts()
        self._renewal = Renewal(settings)
        self._scaling: Scaling | None = None
        if children and settings.autoscale is not None:
            self._scaling = Scaling(settings, self._broker, self._commands)
        self._ends = Ends()
        self._lots = None
        if children and settings.has:
            from .lots import Lots

            self._lots = Lots(settings.has, self._most)
        self._replaced: ManagedProcess | None = None  # whose replacement is on its way
        self._next_look = 0.0
        self.heartbeat = Heartbeat(
            settings, self._broker, self._commands, wake=self._wake.set, hurry=self._kill
        )
        if member is not None:
            self.heartbeat.take_over(member)

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

    def on_parent_gone(self) -> None:
        """Drain in short order: the application whose worker this is has gone."""
        if not self._stopping.is_set():
            self.request_stop(min(self.settings.shutdown_timeout, ORPHAN_TIMEOUT_S))

    @property
    def stopping(self) -> bool:
        """Whether it is to stop, or has given up."""
        return self._stopping.is_set()

    @property
    def failed_boot(self) -> str:
        """Why its children cannot start; empty when they can."""
        return self._restarts.failure

    @property
    def ready(self) -> bool:
        """Whether every child fetches."""
        members = self._staying
        return len(members) >= self._wanted and all(member.ready for member in members)

    @property
    def _staying(self) -> list[ManagedProcess]:
        """The processes that were not told to drain."""
        return [member for member in self.heartbeat.members if not member.leaving]

    @property
    def _missing(self) -> int:
        """How many processes are to be started, those in place of others included."""
        staying = self._staying
        return self._wanted + (self._replaced in staying) - len(staying)

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until it is to stop; return 0 (drained), 1 (not) or 2 (children cannot start)."""
        listeners = [self._listener(queue).start() for queue in range(len(self._commands))]
        try:
            self._repeat(self._step, self._stopping)
            if self._restarts.failure:
                log.error("%s", self._restarts.failure)
                self._drain()  # others may work, or be half started
                return EXIT_USAGE
            return self._drain()
        finally:
            for listener in listeners:
                listener.stop()
            for copy in self._copies:
                copy.let_go()
            self._broker.close()

    def _repeat(self, step: Callable[[], None], stopping: threading.Event) -> None:
        # Whatever breaks: without this loop the workers would be taken for dead.
        backoff = Backoff(OUTAGE_PAUSE_S, OUTAGE_PAUSE_S)
        run_forever(step, stopping, name="the supervisor", log=log, backoff=backoff, outages=())

    def _listener(self, queue: int) -> TaskScheduler | Subscriber:
        """Return what hears the queue's channel: its scheduler, or where that is unwanted, a
        thread."""
        keys = self._commands[queue].keys
        on_word = partial(self.heartbeat.heed, queue)
        if not self.settings.scheduler:
            return Subscriber(self._broker, keys, on_word)
        return TaskScheduler(
            stream=keys.stream, delayed_key=keys.delayed, address=self.address, on_message=on_word
        )

    def _step(self) -> None:
        """One round of the loop, and the sleep after it."""
        self._keep_children()
        if self._restarts.failure:
            self._stopping.set()
            return
        if not self._announced and self.ready:
            self._announced = True
            if self._on_ready is not None:
                self._on_ready()
        if self._parent is not None and os.getppid() != self._parent:
            # End of input says so sooner, unless a process it forked holds the pipe open.
            self.on_parent_gone()
            return
        self.heartbeat.send_if_due()
        self._deaths.send_due()
        self._check_limits()
        capped = any(member.scoreboard.capped for member in self.heartbeat.members)
        self._sleep(MEMORY_LOOK_S if capped else 1.0)

    def _sleep(self, longest: float) -> None:
        """Sleep until there is something to do, or it is woken."""
        now = time.monotonic()
        until = min(now + longest, self.heartbeat.due_at, self._deaths.due_at)
        if self._missing > 0:
            until = min(until, self._restarts.at)
        self._wake.wait(max(0.002, until - now))
        self._wake.clear()

    # -- children --------------------------------------------------------------------------------

    def _keep_children(self) -> None:
        if os.getpid() == 1:
            self._reap_orphans()
        for member in self.heartbeat.members:
            if member.child is not None and not member.alive:
                self.heartbeat.remove(member)
                self._reap(member, member.child)
        if self._scaling is not None:
            self._wanted = self._scaling.wanted(self._wanted, self._staying)
        self._renew()
        missing = self._missing
        if missing > 0 and time.monotonic() >= self._restarts.at:
            self._start_children(missing)

    def _renew(self) -> None:
        """Choose one process that is to be replaced; let one drain where more are ready than are
        wanted, such as that one when its replacement is."""
        staying = self._staying
        if self._replaced not in staying:
            self._replaced = None
        ready = [member for member in staying if member.ready and member.alive]
        if self._wanted and len(ready) > self._wanted:
            least = min(ready, key=lambda member: len(member.scoreboard.running()))
            self._let_drain(self._replaced or least)
        now = time.monotonic()
        if self._replaced is not None or not self._renewal.wanted or now < self._next_look:
            return
        if len(self.heartbeat.members) - len(staying) >= max(1, self._wanted):
            return  # as many drain already, and have memory of their own
        self._next_look = now + LOOK_S
        for member in ready:
            if not member.leaving and (why := self._renewal.reason(member)):
                assert member.child is not None
                log.info("worker process %d %s: another is started for it", member.child.pid, why)
                self._replaced = member
                return

    def _let_drain(self, member: ManagedProcess) -> None:
        """Let a process finish what it runs, however long that takes, and end; what it has not
        started goes back."""
        if member is self._replaced:
            member.leaving = "was replaced"
            self._replaced = None
        else:
            member.leaving = "is one too many"
        if member.child is not None:
            log.info("worker process %d %s: it drains", member.child.pid, member.leaving)
            member.child.stop(DRAIN_S)

    def _reap_orphans(self) -> None:
        """Reap what handlers left behind: it becomes a child of process 1 of a container, as this
        is."""
        ours = [member.child.process for member in self.heartbeat.members if member.child]
        for process in ours:
            process.poll()  # those are waited for by their own objects, which need the exit codes
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if any(process.pid == found.si_pid for process in ours):
                    return  # it ended just now; the next look reaps it
                os.waitpid(found.si_pid, 0)

    def _reap(self, member: ManagedProcess, child: Child) -> None:
        """Give back the tasks of a child that has ended; another is started, now or later."""
        if not member.ready:
            member.heard.wait(1.0)  # its reason may be on the way
        started = member.scoreboard.running()
        self._deaths.add(member.consumer, started, member.overdue)
        self._restarts.count(member)
        child.let_go()
        code = child.process.wait()
        if self._lots is not None and member.lot is not None:
            self._lots.end(member.lot)
        if self._stopping.is_set():
            return
        if member.leaving and not member.killed and code == 0:
            log.info("worker process %d, which %s, has ended", child.pid, member.leaving)
            return
        why = self._ends.words(member, code)
        if self._restarts.give_up(member, why):
            return
        if member.leaving:
            log.warning("worker process %d, which was draining, %s", child.pid, why)
            return
        log.warning("worker process %d %s; starting another", child.pid, why)
        self._restarts.after(
            member,
            killed_by_task=bool(started),
            settled_by_others=sum(m.scoreboard.settled for m in self.heartbeat.members),
        )

    def _start_children(self, missing: int) -> None:
        start = self._restarts.begin()
        for _ in range(missing):
            try:
                self._start_child(start)
            except ConfigurationError as error:
                if self._restarts.worked:
                    log.error("%s", error)
                else:
                    self._restarts.failure = str(error)
            except (OSError, RuntimeError) as error:
                # No more processes, threads, descriptors or memory: for now, perhaps.
                log.error("no worker process could be started: %s", error)
            else:
                continue
            self._restarts.pause()
            return

    def _start_child(self, start: int) -> None:
        copy = self._copies.pop() if self._copies else None
        scoreboard = self.settings.new_scoreboard() if copy is None else copy.scoreboard
        lots, lot = self._lots, None
        if lots is not None:
            staying = [member for member in self._staying if member is not self._replaced]
            lot = lots.draw([member.lot.place for member in staying if member.lot])
        try:
            child = self._new_process(scoreboard, lot) if copy is None else copy.child
            member = ManagedProcess(
                new_consumer_name(socket.gethostname()), scoreboard, child, start=start, lot=lot
            )
            spec = {
                "path": import_path(),
                **self._child_spec,
                "settings": self.settings.as_dict(),
                "address": self.address.as_dict(),
                "consumer": member.consumer,
                "scoreboard": scoreboard.descriptor,
                **(lots.spec(lot) if lots and lot else {}),
            }
        except BaseException:  # whatever it is; passed on
            if lots and lot:
                lots.end(lot)
            raise
        finally:
            scoreboard.close()
        self.heartbeat.add(member)
        watch = threading.Thread(
            target=self._watch_child,
            args=(member, child, spec),
            name="redistq-child-watch",
            daemon=True,
        )
        try:
            watch.start()
        except RuntimeError:
            child.process.kill()
            raise

    def _new_process(self, scoreboard: Scoreboard, lot: Lot | None) -> Child:
        """Return a process that was started anew, with its part of the resources."""
        env = environment(self._most, self.settings.blas_threads)
        descriptors = [scoreboard.descriptor]
        if self._lots is not None and lot is not None:
            env |= self._lots.environment(lot)
            descriptors.append(self._lots.descriptor)
        return Child("redistq.worker.child", pass_fds=descriptors, environment=env)

    def _watch_child(self, member: ManagedProcess, child: Child, spec: dict[str, Any]) -> None:
        """Hear that a child is ready or why it cannot be, then wait for its end."""
        child.introduce(spec)
        while (report := child.hear()) is not None:
            if report.ready:
                member.details = report.details
                self._renewal.begin(member)
                member.ready = True
                self._restarts.worked = True
                self.heartbeat.send_soon()
            member.failure = report.failure or member.failure
            member.unavailable = report.unavailable
            self._wake.set()
        member.heard.set()
        child.process.wait()
        self._wake.set()

    def _check_limits(self) -> None:
        """Kill each process that runs a task past a limit, or one that was to end by force."""
        now = time.monotonic()
        for member in self.heartbeat.members:
            if member.child is None or not member.ready or member.killed:
                continue
            if (found := verdict(member, now)) is not None:
                member.overdue = found.overdue
                member.killed = found.why
                pid = member.child.pid
                log.warning("worker process %d runs a task %s: killing it", pid, found.what)
                member.child.process.kill()

    # -- the end ---------------------------------------------------------------------------------

    def _drain(self) -> int:
        """Stop members within the shutdown timeout; a living member keeps its heartbeat."""
        timeout = self._drain_timeout
        deadline = time.monotonic() + timeout + KILL_GRACE_S
        ended = threading.Event()
        for member in self.heartbeat.members:
            if member.child is not None:
                member.child.stop(timeout)

        def wait_for_members() -> None:
            if not self._any_alive() or self._kill.is_set() or time.monotonic() > deadline:
                ended.set()
                return
            self.heartbeat.send_if_due()
            self._check_limits()
            self._sleep(MEMORY_LOOK_S)

        self._repeat(wait_for_members, ended)
        drained = not self._any_alive()
        return EXIT_OK if self._end_children() and drained else EXIT_FAILED

    def _any_alive(self) -> bool:
        return any(member.alive for member in self.heartbeat.members)

    def _end_children(self) -> bool:
        """Kill those that still run and report all; return whether each ended with code 0."""
        clean = True
        members = self.heartbeat.members
        for member in members:
            if member.child is not None and member.alive:
                member.child.process.kill()
        for member in members:
            if member.child is not None:
                clean = member.child.process.wait() == 0 and clean
                member.child.let_go()
            self._deaths.add(member.consumer, member.scoreboard.running(), member.overdue)
            self.heartbeat.remove(member)
        self._deaths.send_last()
        return clean
