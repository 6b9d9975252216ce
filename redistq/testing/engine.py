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
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from .. import slots
from ..codecs.codec import Codec
from ..codecs.sealing import Kind
from ..connection.broker import Broker
from ..context import serve_contexts
from ..errors import RedistqError
from ..functions.results import result_in
from ..functions.signing import Signer, is_packet, task_context
from ..handlers import Registry
from ..handlers.batching import Batching
from ..protocol.codec import loads
from ..protocol.commands import Commands, Promoted, new_consumer_name
from ..protocol.keys import without_priority
from ..protocol.pieces import Pieces
from ..scheduler.firing import Firing
from ..worker.batches import Batches
from ..worker.bootstrap import announce
from ..worker.executor import Executor
from ..worker.fetcher import Fetcher
from ..worker.gather import Group, name_of
from ..worker.heartbeat import sign_off
from ..worker.item_writer import ItemWriter
from ..worker.outcome import CORRUPT, PARK, RETRY, SETTLE, Outcome, fields_of
from ..worker.prefetch import Prefetch
from ..worker.provided import Provided
from ..worker.queues import Delivery, Held, Room, queues_of
from ..worker.reporter import Reporter
from ..worker.runners import Runners
from ..worker.settings import WorkerSettings
from ..worker.settler import Settler
from .background import Background
from .clock import Clock
from .contents import read_payload
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
        handlers: Registry,
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
        self._scoreboard = settings.new_scoreboard()
        codec = Codec.of(settings.codec) if settings.codec else None
        self._queues = queues_of(settings.queues, commands, self._scoreboard, broker, codec)
        self._held: Held = {}
        self._threads: list[threading.Thread] = []
        self._background = Background()
        self._provided = Provided(handlers, self._background.loop)
        room = Room()
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
        self._settler.teller = self._executor.teller()
        kinds = (self._executor.gathered(is_async=kind) for kind in (False, True))
        self._batching = {name: found for kind in kinds for name, (found, _) in kind.items()}
        self._batches = Batches(self._executor, lambda slots: None)
        first = settings.threads + settings.async_concurrency + slots.MOST
        self._batch_slots = range(first, self._scoreboard.slots)
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
        self._running: set[str] = set()
        self._lost = False  # whether what was settled last did not count
        self._ready: deque[Delivery] = deque()  # read for a batch, and of another name
        self.next_due_ms: int | None = None
        """When something is due next, as the last look at the queue said."""
        try:
            self._provided.enter(settings.start_timeout)
        except BaseException:  # whatever it is, an interrupt too
            self.close()
            raise
        self._fetcher.ensure_groups()
        self._details = announce(broker, commands, settings, self.consumer, handlers)
        self._executor.start()
        self._start(self._items.run, "items")

    # -- what a supervisor does ------------------------------------------------------------------

    def look(self) -> None:
        """Beat, and move what is due."""
        self._beat()
        dues = [self._promote(*pair) for pair in zip(self.commands, self._firing, strict=True)]
        self.next_due_ms = min((due for due in dues if due is not None), default=None)

    def _beat(self) -> None:
        running = [(self.consumer, " ".join(self._running))]
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

    def take(self) -> list[Delivery]:
        """Return the task to run next, which is held from now on, or the tasks of a batch handler
        that run together; none where nothing is ready."""
        first = self._ready.popleft() if self._ready else self._read()
        if first is None:
            return []
        tasks = [first]
        batching = self._batching_of(first)
        if batching is None:
            return tasks
        others: deque[Delivery] = deque()
        while len(tasks) < batching.size:
            task = self._ready.popleft() if self._ready else self._read()
            if task is None:
                break
            same = self._batching_of(task) is not None and name_of(task) == name_of(first)
            (tasks if same else others).append(task)
        self._ready.extendleft(reversed(others))
        return tasks

    def give_back(self) -> None:
        """Give back what was read and not run."""
        for queue in self._queues:
            entries = [task[0] for task in self._ready if task[2] is queue]
            if entries:
                self._broker.call(queue.commands.release(self.consumer, entries))
        self._ready.clear()

    def _read(self) -> Delivery | None:
        self._crashes.reach("before", "fetch")
        while tasks := self._fetcher.reader.read(self._connection, 1, LOOK_MS):
            for task in tasks:
                self._held[task[0], task[2]] = None
            self._crashes.reach("after", "fetch")
            let_in = self._fetcher.let_in(tasks)
            self._ready.extend(let_in[1:])
            if let_in:
                return let_in[0]
        return None

    def _batching_of(self, task: Delivery) -> Batching | None:
        """Return how a task is gathered; None for one that runs alone: its worker may have died
        of it."""
        if fields_of(task[1]).get(b"recovered", b"0") != b"0":
            return None
        return self._batching.get(fields_of(task[1]).get(b"name", b""))

    def run(self, tasks: list[Delivery], slot: int, lender: slots.Lender) -> list[Run]:
        """Run a task, or a batch, and settle it: in the calling thread, or, where it is a
        coroutine, in the event loop."""
        if self._executor.is_async(tasks[0][1]):
            attempt = lambda: self._in_loop(tasks, slot)  # noqa: E731
        else:
            attempt = lambda: self._call(tasks, slot, lender)  # noqa: E731
        return self._ended(tasks, self._attempted(tasks, attempt))

    async def arun(self, tasks: list[Delivery], slot: int, lender: slots.Lender) -> list[Run]:
        """As ``run``: a coroutine in the loop that runs, any other handler in a thread."""
        loop = asyncio.get_running_loop()
        outcomes: list[Outcome] | None = None
        if self._executor.is_async(tasks[0][1]):
            self._begin(tasks)
            with contextlib.suppress(WorkerDied):
                self._crashes.reach("before", "run")
                # A context of its own, as a worker gives it.
                outcomes = await loop.create_task(self._coroutine(tasks, slot), context=Context())
                self._crashes.reach("after", "run")
        else:
            attempt = lambda: self._call(tasks, slot, lender)  # noqa: E731
            outcomes = await loop.run_in_executor(None, self._attempted, tasks, attempt)
        return self._ended(tasks, outcomes)

    def _attempted(
        self, tasks: list[Delivery], attempt: Callable[[], list[Outcome]]
    ) -> list[Outcome] | None:
        """Return how attempts ended; None where their worker died meanwhile."""
        self._begin(tasks)
        try:
            self._crashes.reach("before", "run")
            outcomes = Context().run(attempt)
            self._crashes.reach("after", "run")
        except WorkerDied:
            return None
        return outcomes

    def _begin(self, tasks: list[Delivery]) -> None:
        self._running.update(task[0].decode() for task in tasks)
        self._crashes.task = fields_of(tasks[0][1]).get(b"name", b"").decode("utf-8", "replace")

    def _call(self, tasks: list[Delivery], slot: int, lender: slots.Lender) -> list[Outcome]:
        slots.serve(lender)
        try:
            if self._batching_of(tasks[0]) is not None:
                return self._batches.run(self._group(tasks))
            return [self._executor.runner(slot)(tasks[0])]
        finally:
            slots.leave()
            serve_contexts(lambda: None, thread=True)

    def _in_loop(self, tasks: list[Delivery], slot: int) -> list[Outcome]:
        outcomes: list[Outcome] = self._background.run(self._coroutine(tasks, slot))
        return outcomes

    async def _coroutine(self, tasks: list[Delivery], slot: int) -> list[Outcome]:
        if self._batching_of(tasks[0]) is not None:
            return await self._batches.run_async(self._group(tasks))
        return [await self._executor.run_async(tasks[0], slot)]

    def _group(self, tasks: list[Delivery]) -> Group:
        return Group(tasks, list(self._batch_slots[: len(tasks)]))

    def _ended(self, tasks: list[Delivery], outcomes: list[Outcome] | None) -> list[Run]:
        """Settle attempts; return what became of them."""
        if outcomes is not None:
            try:
                self._settle(outcomes)
            except WorkerDied:
                outcomes = None
        if self._crashes.died is None:
            self._running.difference_update(task[0].decode() for task in tasks)
        else:
            outcomes = None
        found = {outcome.entry: outcome for outcome in outcomes or ()}
        return [self._run_of(task, found.get(task[0])) for task in tasks]

    def _settle(self, outcomes: list[Outcome]) -> None:
        settler = self._settler
        lost = settler.lost
        settler.outcomes.extend(outcomes)
        settler.flush(wait=True)
        for _ in range(2):  # put aside: it is to be cancelled instead, or could not be written
            if settler.backlog:
                settler.try_broken_again(all_of_them=True)
                settler.flush(wait=True)
        if settler.teller is not None:
            settler.teller.tell()
        self._lost = settler.lost > lost

    def _run_of(self, task: Delivery, outcome: Outcome | None) -> Run:
        fields = {k.decode(): v for k, v in fields_of(task[1]).items()}
        task_id = fields.get("id", b"").decode("utf-8", "replace")
        seal = task[2].seal
        payload, result, error = read_payload(seal, fields_of(task[1])), None, ""
        state = _state_of(outcome)
        seconds = 0.0
        if outcome is not None and outcome.verb in (SETTLE, RETRY):
            seconds, body = float(outcome.args[5]) / 1000, outcome.args[6]
            if type(body) is Pieces:
                body = bytes(body)
            if isinstance(body, bytes) and state in ("succeeded", "failed", "retried"):
                with contextlib.suppress(RedistqError):  # bound to a task that this one answers
                    kind: Kind = "result" if state == "succeeded" else "error"
                    body = seal.open_of_task(kind, task_id, body)
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
            state="lost" if self._lost else state,
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
        running = self._running if started else ()
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
