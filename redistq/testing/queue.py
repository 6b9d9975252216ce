"""TestQueue: a queue for one test, with a real server behind it, that runs when the test says."""

from __future__ import annotations

import contextlib
import functools
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any

from ..client.client import Client
from ..codecs.codec import given_or_env
from ..codecs.sealing import seal_of
from ..connection.address import Address
from ..connection.broker import Broker
from ..errors import ConfigurationError, RedistqError
from ..functions.signing import Signer
from ..handlers import Handler, Registry, default_registry
from ..monitor import TaskMonitor
from ..producer import AsyncTaskProducer, TaskProducer
from ..producer.active import replaced
from ..protocol import simulated
from ..protocol.commands import Commands
from ..protocol.keys import PRIORITIES, at_priority
from ..worker.bootstrap import registry_from, with_function_calls
from ..worker.queues import Delivery
from ..worker.settings import WorkerSettings
from .clock import Clock
from .contents import ANYTHING, Enqueued, Wanted, complaint, tasks_in
from .crash import Crashes, CrashPoint, DyingBroker, WorkerDied
from .engine import Engine
from .runs import Run, Runs
from .server import session_url

MOST_TASKS = 10_000
"""Attempts after which a drain without a limit of its own takes the queue for endless."""
LOOK_S = 0.005
"""How often a task that waits for others lets the queue be looked at."""


class TestQueue:
    """A queue of one test: added to by real producers and clients, run when the test says so.

    ``drain`` runs what is due in the calling thread, with the handlers given (a mapping, a
    Registry; without any those of ``@task``), on a real server, by the same scripts, encodings and
    options as a worker in production. ``clock`` is the time that the queue goes by. In a ``with``
    block ``task.delay(...)`` adds to this queue, whatever the program has configured.
    ``options`` are a worker's: ``result_ttl``, ``max_recoveries``, ``lease``, ``codec`` …

    Its keys are removed when it is closed. Not for several threads at a time.
    """

    __test__ = False  # pytest takes what is called Test... for tests

    def __init__(
        self,
        handlers: Mapping[str, Callable[..., Any]] | Registry | None = None,
        *,
        url: str | None = None,
        **options: Any,
    ) -> None:
        self.name = f"test-{secrets.token_hex(6)}"
        self.url = url or session_url()
        self._given = default_registry if handlers is None else registry_from(handlers)
        self._key = secrets.token_bytes(32)
        self._codec = given_or_env(options.pop("codec", None))
        lanes = tuple(at_priority(self.name, priority) for priority in PRIORITIES)
        self._settings = WorkerSettings.of(
            {
                "queues": lanes,
                "queue": self.name,
                "threads": 1,
                "signing_key": self._key.hex(),
                "codec": self._codec,
                **options,
            }
        )
        simulated.simulate(self.name)
        self._address = Address(self.url)
        if self._address.clustered:
            raise ConfigurationError("a test's queue is on one server, not on a Cluster")
        self._commands: list[Commands] = self._settings.commands_for(self._address)
        self._broker = Broker(self._address, slot_key=self.name)
        self._crashes = Crashes()
        self.clock = Clock(self._broker, self.name)
        """What the queue takes for the time: see Clock."""
        self._engine: Engine | None = None
        self._made_of: dict[str, Handler] = {}
        self._runs: Runs | None = None  # of the drain that is under way
        self._silent: list[tuple[str, int]] = []  # the dead, and when their lease is over
        self._depth = 0
        self._opened = contextlib.ExitStack()
        self._helpers: list[_Helper] = []

    # -- what adds and looks -----------------------------------------------------------------------

    @functools.cached_property
    def producer(self) -> TaskProducer:
        """A producer of this queue."""
        return TaskProducer(address=self._address, stream=self.name, codec=self._codec)

    @functools.cached_property
    def client(self) -> Client:
        """A client of this queue, for functions; it has no workers: ``drain`` runs its calls."""
        return Client(
            address=self._address,
            queue=self.name,
            signing_key=self._key,
            shared=True,
            codec=self._codec,
        )

    @functools.cached_property
    def monitor(self) -> TaskMonitor:
        """A monitor of this queue."""
        return TaskMonitor(address=self._address, stream=self.name, codec=self._codec)

    def async_producer(self) -> AsyncTaskProducer:
        """Return a producer of this queue for ``async with``."""
        return AsyncTaskProducer(address=self._address, stream=self.name, codec=self._codec)

    def tasks(self) -> list[Enqueued]:
        """Return the tasks that have not ended."""
        self._send()
        return tasks_in(self._broker, self._commands, seal_of(self._codec, self.name))

    def assert_enqueued(
        self,
        task: str | Callable[..., Any],
        *,
        payload: Any = ANYTHING,
        args: Any = None,
        kwargs: Any = None,
        count: int | None = None,
        delayed: Any = None,
    ) -> list[Enqueued]:
        """Return the tasks of that name, or function, that have not ended and are like that; raises
        AssertionError, which lists what is there, when there are none, or not ``count``.

        ``payload`` is compared with ``==``, so that ``unittest.mock.ANY`` may stand in it;
        ``args`` and ``kwargs`` are those of a call, defaults included. ``delayed`` says whether it
        is, or for how many seconds (a timedelta), or until when (an aware datetime).
        """
        wanted = Wanted.of(
            task, self._given, payload=payload, args=args, kwargs=kwargs, delayed=delayed
        )
        tasks = self.tasks()
        found = [enqueued for enqueued in tasks if wanted.fits(enqueued)]
        if len(found) != count if count is not None else not found:
            raise AssertionError(complaint(wanted, len(found), count, tasks))
        return found

    # -- running -----------------------------------------------------------------------------------

    def drain(self, max_tasks: int | None = None, *, check: bool = False) -> Runs:
        """Run all that is due, and what that adds, until nothing is; return the attempts in order.

        At most ``max_tasks`` attempts. With ``check`` it raises DrainFailed when a task failed for
        good. ``async def`` handlers run in an event loop of the queue's own.
        """
        with self._alone() as runs:
            for engine, tasks in self._due(runs, max_tasks):
                runs.extend(engine.run(tasks, 0, self))
        return runs.check() if check else runs

    async def adrain(self, max_tasks: int | None = None, *, check: bool = False) -> Runs:
        """As ``drain``, in a test that is a coroutine: ``async def`` handlers run in its event
        loop, others in a thread."""
        with self._alone() as runs:
            for engine, tasks in self._due(runs, max_tasks):
                runs.extend(await engine.arun(tasks, 0, self))
        return runs.check() if check else runs

    def run_for(self, by: float | timedelta = 0.0, *, check: bool = False, **units: float) -> Runs:
        """Let that much time pass, as ``clock.advance`` takes it, and run each task when it is due
        meanwhile: delayed ones, retries, each time of a schedule. Return the attempts in order."""
        runs = self.drain()
        for _ in self._moments(by, units):
            runs = runs + self.drain()
        return runs.check() if check else runs

    async def arun_for(
        self, by: float | timedelta = 0.0, *, check: bool = False, **units: float
    ) -> Runs:
        """As ``run_for``, in a test that is a coroutine."""
        runs = await self.adrain()
        for _ in self._moments(by, units):
            runs = runs + await self.adrain()
        return runs.check() if check else runs

    def _moments(self, by: float | timedelta, units: Mapping[str, float]) -> Iterator[None]:
        """Move the clock from one due time to the next, and at last to the end."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        end = self.clock.now_ms + round((step + timedelta(**units)) / timedelta(milliseconds=1))
        for _ in range(MOST_TASKS):
            now = self.clock.now_ms
            due = min((at for at in self._dues() if at is not None), default=end + 1)
            if due > end:
                self.clock.advance(max(end - now, 0) / 1000)
                yield
                return
            self.clock.advance(max(due - now, 1) / 1000)
            yield
        raise RedistqError(f"something is due {MOST_TASKS} times in that time: take less of it")

    def _dues(self) -> list[int | None]:
        return [self._living().next_due_ms, *(at for _, at in self._silent)]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Runs]:
        if self._runs is not None:
            raise RedistqError("the queue is being drained: a handler cannot drain it once more")
        self._runs = Runs()
        try:
            yield self._runs
        finally:
            self._runs = None

    def _due(self, runs: Runs, most: int | None) -> Iterator[tuple[Engine, list[Delivery]]]:
        limit = MOST_TASKS if most is None else most
        while len(runs) < limit:
            found = self._next()
            if found is None:
                self._bury()
                return
            yield found
        if most is None:
            raise RedistqError(
                f"{limit} attempts were run and there is more to run: do tasks add others without "
                f"end? drain(max_tasks=...) runs some. The last was {runs[-1]}"
            )
        self._bury()
        if self._engine is not None:
            self._engine.give_back()

    def _next(self) -> tuple[Engine, list[Delivery]] | None:
        while True:
            self._send()
            engine = self._living()
            if self._silent:
                self._take_up()
            try:
                engine.look()
                tasks = engine.take()
            except WorkerDied:
                continue
            return (engine, tasks) if tasks else None

    def _send(self) -> None:
        """Let what the client was given arrive."""
        if "client" in self.__dict__:
            self.client._session.exchange.sender.send_all()

    def _living(self) -> Engine:
        """Return a worker that lives and has today's handlers."""
        self._bury()
        registry = dict(self._given)
        if self._engine is not None and registry != self._made_of:
            self._engine.end(self._broker)
            self._engine = None
        if self._engine is None:
            self._engine = self._new_engine()
            self._made_of = registry
        return self._engine

    def _bury(self) -> None:
        """Have what a dead worker held given back, as its supervisor does; or leave that to its
        lease, where its machine died with it."""
        died = self._crashes.forget()
        if died is None or self._engine is None:
            return
        engine, self._engine = self._engine, None
        if died.reported:
            engine.end(self._broker, started=died.point != "fetch")
        else:
            engine.close()
            self._silent.append((engine.consumer, self.clock.now_ms + self._settings.lease_ms))

    def _take_up(self) -> None:
        """Have what silent workers held given back whose lease is over, as other workers of the
        queue do that beat meanwhile."""
        over = [silent for silent in self._silent if silent[1] <= self.clock.now_ms]
        for silent in over:
            for lane in self._commands:
                most = self._settings.max_recoveries
                while Commands.read_recover(
                    self._broker.call(lane.recover(most, consumer=silent[0]))
                ).more:
                    pass
            self._silent.remove(silent)

    def _new_engine(self) -> Engine:
        broker = DyingBroker(self._address, slot_key=self.name)
        broker.crashes = self._crashes
        handlers = with_function_calls(self._given, self._settings, broker, self._commands)
        return Engine(
            self._settings, handlers, broker, self._commands, Signer(self._key), self.clock
        )

    # -- a task that waits for others lets them run: see slots.py ----------------------------------

    def lend(self) -> bool:
        """Run what is due in another thread, while a task waits here."""
        self._depth += 1
        helper = _Helper(self, self._depth)
        self._helpers.append(helper)
        helper.start()
        return True

    def take_back(self) -> None:
        """Run no more there: the task goes on."""
        helper = self._helpers.pop()
        helper.stop()
        self._depth -= 1

    def _note(self, runs: list[Run]) -> None:
        if self._runs is not None:
            self._runs.extend(runs)

    # -- deaths ------------------------------------------------------------------------------------

    def crash_before(
        self, point: str, *, task: str | None = None, times: int = 1, reported: bool = True
    ) -> AbstractContextManager[CrashPoint]:
        """In the block, let the worker die just before it fetches (``fetch``), calls a handler
        (``run``), keeps a step (``step``, ``step:NAME``) or settles (``settle``): ``times`` times,
        at tasks of that name, if one is given. ``drain`` goes on with another worker.

        The tasks of the dead one go back at once, as when its supervisor reports it, or, without
        ``reported``, when its lease is over. Raises AssertionError when no worker came there.
        """
        return self._crashes.at("before", point, task, times, reported)

    def crash_after(
        self, point: str, *, task: str | None = None, times: int = 1, reported: bool = True
    ) -> AbstractContextManager[CrashPoint]:
        """As ``crash_before``, just after it: what was sent has been done on the server, and the
        worker has not heard so."""
        return self._crashes.at("after", point, task, times, reported)

    # -- its end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove all keys of the queue, and close what was opened; safe to repeat."""
        self._opened.close()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        opened = self.__dict__
        if "client" in opened:
            opened.pop("client").shutdown(wait=False, cancel_futures=True)
        for name in ("producer", "monitor"):
            if name in opened:
                opened.pop(name).close()
        self._broker.call(simulated.remove_all(self.name))
        self._broker.close()
        simulated.forget(self.name)

    def __enter__(self) -> TestQueue:
        self._opened.enter_context(replaced(self.producer))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TestQueue({self.name!r}, {len(self.tasks())} tasks, {self.clock!r})"


class _Helper:
    """Runs a queue's tasks in a thread of its own, until it is stopped."""

    def __init__(self, queue: TestQueue, slot: int) -> None:
        self._queue = queue
        self._slot = slot
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redistq-test-drain", daemon=True)
        self.start = self._thread.start

    def _run(self) -> None:
        queue = self._queue
        while not self._stopped.is_set():
            with contextlib.suppress(WorkerDied):
                found = queue._next()
                if found is None:
                    self._stopped.wait(LOOK_S)
                else:
                    queue._note(found[0].run(found[1], self._slot, queue))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
