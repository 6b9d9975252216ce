"""The worker of a test's queue: the parts of a real one, in the thread that drains.

Used by a TestQueue, which asks it for one task after the other. It reads, runs and settles with
what a worker process has (Reader, Executor, Settler, and the scripts behind them); what it has not
is threads that do so, a supervisor and a schedule of its own: it does what these do when it is
asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

from .. import slots
from ..connection.broker import Broker
from ..context import serve_contexts
from ..functions.results import result_in
from ..functions.signing import Signer, is_packet, task_context
from ..handlers import Handler
from ..protocol.codec import loads
from ..protocol.commands import Commands, Promoted, new_consumer_name
from ..protocol.keys import without_priority
from ..scheduler.firing import Firing
from ..worker.bootstrap import announce
from ..worker.executor import Executor
from ..worker.fetcher import Fetcher
from ..worker.heartbeat import sign_off
from ..worker.item_writer import ItemWriter
from ..worker.outcome import CORRUPT, PARK, RETRY, SETTLE, Outcome, fields_of
from ..worker.prefetch import Prefetch
from ..worker.provided import Provided
from ..worker.queues import Delivery, Held, Room, queues_of
from ..worker.reporter import Reporter
from ..worker.runners import Runners
from ..worker.scoreboard import Scoreboard
from ..worker.settings import WorkerSettings
from ..worker.settler import Settler
from .background import Background
from .clock import Clock
from .crash import Crashes, DyingBroker, WorkerDied
from .runs import Run

LOOK_MS = 1
"""How long a read waits for a task that is not there."""


class QueueTime:
    """A queue's clock, as executors ask for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def has_passed(self, server_ms: int) -> bool:
        """See Clock of the executor."""
        return self._clock.now_ms > server_ms


class Engine:
    """A worker of one queue and its priorities, with handlers that do not change."""

    def __init__(
        self,
        settings: WorkerSettings,
        handlers: Mapping[str, Handler],
        broker: DyingBroker,
        commands: list[Commands],
        signer: Signer,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.commands = commands
        self.consumer = new_consumer_name("test")
        self._broker = broker
        self._crashes: Crashes = broker.crashes
        self._signer = signer
        self._scoreboard = Scoreboard.create(settings.scoreboard_slots, len(settings.queues))
        self._queues = queues_of(settings.queues, commands, self._scoreboard, broker)
        self._held: Held = {}
        self._threads: list[threading.Thread] = []
        room = Room()
        self._background = Background()
        self._provided = Provided(handlers, self._background.loop)
        self._executor = Executor(
            settings,
            handlers,
            self.consumer,
            self._scoreboard,
            self._held,
            QueueTime(clock),
            provided=self._provided,
        )
        self._reporter = Reporter(broker, self.consumer)
        self._items = ItemWriter(broker, self.consumer)
        for queue in self._queues:
            queue.reporter = self._reporter
            queue.item_writer = self._items
        self._settler = Settler(
            settings,
            broker,
            self._queues,
            self.consumer,
            self._scoreboard,
            self._held,
            room,
            lambda reason: None,
            self._reporter,
        )
        runners = Runners(1, range(0), self._executor, self._settler, room, self._no_thread)
        self._fetcher = Fetcher(
            settings,
            broker,
            self._queues,
            self.consumer,
            self._executor,
            runners,
            self._settler,
            self._held,
            room,
            Prefetch(1),
        )
        self._connection = broker.connection(broker.timeout)
        self._firing = [Firing(lane, broker.call) for lane in commands]
        self._running: dict[int, str] = {}
        self._here = threading.local()
        self._loops: list[asyncio.AbstractEventLoop] = []
        self.next_due_ms: int | None = None
        """When something is due next, as the last look at the queue said."""
        self._fetcher.ensure_groups()
        self._details = announce(broker, commands, settings, self.consumer, handlers)
        self._executor.start()
        self._start(self._items.run, "items")
        try:
            self._provided.enter(settings.start_timeout)
        except BaseException:  # whatever it is, an interrupt too
            self.close()
            raise

    # -- what a supervisor does ------------------------------------------------------------------

    def look(self) -> None:
        """Beat, and move what is due."""
        self._beat()
        dues = [self._promote(*pair) for pair in zip(self.commands, self._firing, strict=True)]
        self.next_due_ms = min((due for due in dues if due is not None), default=None)

    def _beat(self) -> None:
        running = [(self.consumer, " ".join(self._running.values()))]
        paused = set()
        for place, (lane, queue) in enumerate(zip(self.commands, self._queues, strict=True)):
            reply = Commands.read_heartbeat(
                self._broker.call(lane.heartbeat(self.settings.lease_ms, running))
            )
            if reply.paused:
                paused.add(place)
            if reply.unregistered:
                self._broker.call(
                    lane.register(self.consumer, self.settings.lease_ms, self._details)
                )
            queue.gated_names = frozenset(name.encode() for name in reply.names)
            for _, entry, _ in reply.wishes:
                self._executor.wishes.tell((entry.encode(), queue))
        self._scoreboard.paused = frozenset(paused)

    def _promote(self, lane: Commands, firing: Firing) -> int | None:
        while True:
            done: Promoted = Commands.read_promote(self._broker.call(lane.promote()))
            fired = firing.fire(done.schedules, done.now_ms)
            if not (done.moved or fired):
                return done.next_due_ms

    # -- tasks -----------------------------------------------------------------------------------

    def take(self) -> Delivery | None:
        """Return the next task to run, which is held from now on; None where none is ready."""
        self._crashes.reach("before", "fetch")
        while tasks := self._fetcher.reader.read(self._connection, 1, LOOK_MS):
            for task in tasks:
                self._held[task[0], task[2]] = None
            self._crashes.reach("after", "fetch")
            let_in = self._fetcher.let_in(tasks)
            if let_in:
                return let_in[0]
        return None

    def run(self, task: Delivery, slot: int, lender: slots.Lender) -> Run:
        """Run a task here and settle it; raises RuntimeError for a coroutine where a loop runs."""
        if self._executor.is_async(task[1]):
            run: Callable[[Any], Outcome] = self._loop().run_until_complete
            if self._background.runs and asyncio._get_running_loop() is None:
                run = self._background.run
            attempt = lambda: run(self._executor.run_async(task, slot))  # noqa: E731
        else:
            attempt = lambda: self._call(task, slot, lender)  # noqa: E731
        return self._ended(task, self._attempted(task, slot, attempt))

    async def arun(self, task: Delivery, slot: int, lender: slots.Lender) -> Run:
        """As ``run``: a coroutine in the loop that runs, any other handler in a thread."""
        loop = asyncio.get_running_loop()
        if self._executor.is_async(task[1]):
            self._begin(task, slot)
            try:
                self._crashes.reach("before", "run")
                # A context of its own, as a worker gives it.
                made = loop.create_task(self._executor.run_async(task, slot), context=Context())
                outcome = await made
                self._crashes.reach("after", "run")
            except WorkerDied:
                outcome = None
        else:
            call = self._attempted
            attempt = lambda: self._call(task, slot, lender)  # noqa: E731
            outcome = await loop.run_in_executor(None, call, task, slot, attempt)
        return self._ended(task, outcome)

    def _attempted(
        self, task: Delivery, slot: int, attempt: Callable[[], Outcome]
    ) -> Outcome | None:
        """Return how an attempt ended; None where its worker died meanwhile."""
        self._begin(task, slot)
        try:
            self._crashes.reach("before", "run")
            outcome = Context().run(attempt)
            self._crashes.reach("after", "run")
        except WorkerDied:
            return None
        return outcome

    def _begin(self, task: Delivery, slot: int) -> None:
        self._running[slot] = task[0].decode()
        self._crashes.task = fields_of(task[1]).get(b"name", b"").decode("utf-8", "replace")

    def _call(self, task: Delivery, slot: int, lender: slots.Lender) -> Outcome:
        slots.serve(lender)
        try:
            return self._executor.runner(slot)(task)
        finally:
            slots.leave()
            serve_contexts(lambda: None, thread=True)

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop | None = getattr(self._here, "loop", None)
        if loop is None:
            loop = self._here.loop = asyncio.new_event_loop()
            self._loops.append(loop)
        return loop

    def _ended(self, task: Delivery, outcome: Outcome | None) -> Run:
        """Settle an attempt; return what became of it."""
        lost = self._settler.lost
        if outcome is not None:
            try:
                self._settle(outcome)
            except WorkerDied:
                outcome = None
        if self._crashes.died is None:
            self._running = {s: e for s, e in self._running.items() if e != task[0].decode()}
        else:
            outcome = None
        return self._run_of(task, outcome, self._settler.lost > lost)

    def _settle(self, outcome: Outcome) -> None:
        settler = self._settler
        settler.outcomes.append(outcome)
        settler.flush(wait=True)
        for _ in range(2):  # put aside: it is to be cancelled instead, or could not be written
            if settler.backlog:
                settler.try_broken_again(all_of_them=True)
                settler.flush(wait=True)

    def _run_of(self, task: Delivery, outcome: Outcome | None, lost: bool) -> Run:
        fields = {k.decode(): v for k, v in fields_of(task[1]).items()}
        task_id = fields.get("id", b"").decode("utf-8", "replace")
        payload, result, error = None, None, ""
        with contextlib.suppress(ValueError):
            payload = loads(fields.get("payload", b""))
        state = _state_of(outcome)
        seconds = 0.0
        if outcome is not None and outcome.verb in (SETTLE, RETRY):
            seconds, body = float(outcome.args[5]) / 1000, outcome.args[6]
            if state == "succeeded":
                result = self._result(task_id, body)
            elif body and state not in ("cancelled", "expired", "continued"):
                error = _said(body)
        elif state == "unhandled":
            error = f"no handler is registered under {outcome.name!r}" if outcome else ""
        return Run(
            id=task_id,
            name=fields.get("name", b"").decode("utf-8", "replace"),
            attempt=int(fields.get("attempt", b"1")),
            state="lost" if lost else state,
            payload=payload,
            result=result,
            error=error,
            seconds=seconds,
        )

    def _result(self, task_id: str, body: bytes) -> Any:
        if not is_packet(body):
            return loads(body) if body else None
        context = task_context(without_priority(self.commands[0].keys.stream), task_id)
        with contextlib.suppress(Exception):  # signed for another task, which this one answers
            return result_in(self._signer, context, task_id, body)
        return None

    # -- its end ---------------------------------------------------------------------------------

    def end(self, reporter: Broker, started: bool = False) -> None:
        """Give back what it holds, as a worker that stops does, or as the supervisor of one that
        died, which had ``started`` what it ran."""
        self.close()
        running = self._running.values() if started else ()
        sign_off(reporter, self.commands, self.settings, self.consumer, running)

    def close(self) -> None:
        """Let go of its threads and connections, and of what its lifespans and factories made; the
        server keeps what it had."""
        self._provided.leave(self.settings.shutdown_timeout)
        self._background.close()
        self._reporter.close()
        self._items.close()
        self._executor.close()
        for thread in self._threads:
            thread.join(5)
        for loop in self._loops:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        self._loops.clear()
        self._connection.close()
        self._broker.close()
        self._scoreboard.close()

    def _start(self, target: Callable[[], Any], role: str) -> None:
        def run() -> None:
            with contextlib.suppress(WorkerDied):
                target()

        thread = threading.Thread(target=run, name=f"redistq-test-{role}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _no_thread(self, *_: Any) -> threading.Thread:
        raise AssertionError("a test's worker has no runners")


def _state_of(outcome: Outcome | None) -> str:
    if outcome is None:
        return "crashed"
    if outcome.verb is PARK:
        return "unhandled"
    if outcome.verb is CORRUPT:
        return "corrupt"
    return str(outcome.args[2])


def _said(body: bytes | str) -> str:
    """What an error's JSON says, as Python prints errors."""
    try:
        error = loads(body if isinstance(body, bytes) else body.encode())
        trace = error.get("traceback") or f"{error.get('type')}: {error.get('message')}"
    except (ValueError, AttributeError):
        return str(body)
    return str(trace)
