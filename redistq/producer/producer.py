"""TaskProducer adds tasks and asks for results.

Used by applications and notebooks. It never runs a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Unpack

from ..connection.address import DEFAULT_HOST, DEFAULT_PORT
from ..connection.broker import Broker
from ..errors import ServerUnavailable
from ..flows import Flow, items_of
from ..protocol.commands import Snapshot
from ..protocol.keys import DEFAULT_QUEUE
from ..protocol.options import Seconds, TaskKeywords, listed, wait_seconds
from ..protocol.progress import Progress
from ..protocol.steps import EVENT_KEPT_S, StepStatus
from .clearing import drain, lanes_of, purge
from .gated import GatedTask, TaskId
from .items import ItemReader, ItemStream
from .limits import Limits
from .operations import Item, ProducerOperations, TaskName, Wish
from .results import TaskStatus
from .sansio import run
from .schedules import Schedules
from .steps import sending, steps_of
from .task_graph import TaskGraph

__all__ = ["TaskProducer", "TaskStatus"]


class TaskProducer(ProducerOperations):
    """Adds tasks to a queue and waits for their results. Safe to use from several threads.

    A task is stored when ``add_task`` returns, as durably as the server stores anything. Every
    call is bounded by ``timeout`` seconds (waiting for a result has its own) and then raises
    ServerUnavailable. Without a ``url`` and with the default host and port the server is found as
    ``settings.resolve`` says: ``REDISTQ_URL``, localhost:6379, or an embedded server.
    """

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        **options: Any,
    ) -> None:
        super().__init__(redis_host, redis_port, db, stream, **options)
        self.broker = Broker(self.address, slot_key=self.keys.stream, timeout=self.timeout)
        self.limits = Limits(self._limits, self.broker)
        self.schedules = Schedules(self._schedules, self.broker)

    @listed(TaskKeywords)
    def add_task(
        self,
        type: TaskName,
        payload: Any = None,
        *,
        task_id: str | None = None,
        **options: Unpack[TaskKeywords],
    ) -> TaskId:
        """Add one task and return its id, which says in ``outcome`` what was done.

        ``type`` is the name a handler is registered under, or a function decorated with ``@task``.
        ``payload`` is anything JSON can hold. ``retries``, ``timeout`` and ``hard_timeout``
        (seconds) and ``result_ttl`` (seconds, 0 keeps no result) override the handler's. ``delay``
        is in seconds. A ``task_id`` that the queue knows already is returned: nothing is added.

        When it may run (see docs/gate.md): ``after`` other tasks or batches; where its ``limits``
        have room; in the ``order`` of a key; in the turn of its ``group`` and by ``priority`` (-10
        to 10); at most one of a ``unique`` key; not at all when it has not started within
        ``expires`` seconds.

        Raises PayloadError, PayloadTooLarge, ConfigurationError, UnknownParent, TooHeavy,
        ServerFull or ServerUnavailable.
        """
        fields = self._new(type, payload, task_id, options, alone=True)
        if isinstance(fields, GatedTask):
            return run(self.broker, self._adding(fields))
        return self._added(fields[0], self.broker.call(self.commands.enqueue_one(*fields)))

    def add_tasks(self, items: Iterable[Item]) -> list[str]:
        """Add many tasks, few calls to the server; return their ids in order.

        An item is a ``(type, payload)`` pair or a mapping with ``type``, ``payload`` and any of
        ``add_task``'s and ``schedule_task``'s keywords. Every item is checked before the first is
        sent. When the server is lost in the middle, ServerUnavailable carries ``task_ids``, the
        ids in order: adding the same items with these ids doubles nothing. For items of which one
        may have to wait, the ids are those of the tasks that stand, as ``add_task`` returns them.
        """
        bulk = self._bulk(items)
        try:
            run(self.broker, self._limits.declare(bulk.limits))
            return bulk.read(self.keys, self.broker.call_many(bulk.commands))
        except ServerUnavailable as error:
            error.task_ids = bulk.ids
            raise

    @listed(TaskKeywords)
    def schedule_task(
        self,
        type: TaskName,
        payload: Any = None,
        execute_at: float | datetime = 0.0,
        *,
        task_id: str | None = None,
        **options: Unpack[TaskKeywords],
    ) -> TaskId:
        """Add a task that becomes ready at ``execute_at``: epoch seconds or an aware datetime.

        The time is compared with the server's clock. A time in the past means now.
        """
        fields = self._new(type, payload, task_id, {**options, "execute_at": execute_at})
        if isinstance(fields, GatedTask):
            return run(self.broker, self._adding(fields))
        return self._added(fields[0], self.broker.call(self.commands.enqueue_one(*fields)))

    def add_flow(self, flow: Flow) -> list[str]:
        """Add the tasks of a flow (redistq.chain, group, chord, map_reduce) as ``add_tasks`` does;
        return their ids, in the order in which they are written: the last is that of its end."""
        return self.add_tasks(items_of(flow))

    def graph(self, name: str) -> TaskGraph:
        """Return the graph of that name: to be written, ``with producer.graph("etl") as graph``, or
        one that was sent before; see Graph."""
        return TaskGraph(
            self.broker, self.commands, name, self._max_bytes, self.layers, self._seals
        )

    def get_result(self, task_id: str, timeout: float | None = None) -> Any:
        """Return the task's result, as soon as it is settled; no polling.

        Raises TaskFailed, TaskCancelled, UnknownTask, or ResultTimeout (a TimeoutError) after
        ``timeout`` seconds (None: no limit); the task goes on.
        """
        return run(self.broker, self._result(task_id, timeout))

    def stream(
        self,
        task_id: str,
        start: int | str = 0,
        *,
        restarts: bool = False,
        timeout: float | None = None,
    ) -> ItemStream:
        """Return what a task yields, to iterate over: from the item with the index ``start`` on (or
        the ``cursor`` of another stream), while it runs or after its end.

        Each item comes as soon as it is there. The end is that of the task: TaskFailed or
        TaskCancelled is raised after the items of one that did not succeed. Where the task begins
        anew, StreamRestarted is raised; with ``restarts`` it is yielded, and the items come again.
        ItemsGone: the oldest are no longer kept. ResultTimeout: nothing came for ``timeout``
        seconds (None: no limit); the next item may be asked for again.
        """
        reader = ItemReader(task_id, self.commands, start, restarts, timeout, self.seal)
        return ItemStream(reader, self.broker)

    def get_task(self, task_id: str) -> TaskStatus:
        """Return how a task stands; raises UnknownTask."""
        return run(self.broker, self._status(task_id))

    def progress(self, task_id: str) -> Progress | None:
        """Return how far a task is, as its handler said last: done, total, text, since; None while
        it has said nothing. See TaskContext.progress."""
        return run(self.broker, self._progress(task_id))

    def cancel(self, *task_ids: str, running: Wish = None) -> dict[str, str]:
        """Cancel tasks that wait; return, per id, 'cancelled', 'running' (left alone), the state
        of one that was settled already, or 'unknown'.

        ``running`` is for those that run, whose word is then 'asked': with "ask" a coroutine is
        cancelled, a thread gets CancelRequested, and ``context.cancelled`` is true; with "force"
        the worker process, too, is killed when the task runs on for five seconds. Whether it ended
        by that is in its state: a task that ends first has succeeded.
        """
        return run(self.broker, self._cancel(task_ids, running))

    def cancel_where(
        self,
        *,
        name: str | None = None,
        batch: str | None = None,
        running: Wish = None,
        limit: int | None = None,
    ) -> dict[str, int]:
        """Cancel all tasks with this name, of this batch, or both; return how many got each of the
        words of ``cancel``.

        A name without a label (``resize``) stands for all its labels (``resize:large``), too.
        ``limit`` is the most tasks that are touched. It looks at the whole queue, in calls of
        bounded length; tasks that are added meanwhile may be left out.
        """
        return run(self.broker, self._cancel_where(name, batch, running, limit))

    def dead_letters(self, limit: int = 100) -> list[TaskStatus]:
        """Return the newest failed tasks, with payload and error."""
        return run(self.broker, self._dead(limit))

    def replay(self, *task_ids: str, forget_steps: bool = False) -> int:
        """Send dead letters again with a clean slate: these, or all; return how many went.

        They go on after the steps that they have done; with ``forget_steps`` they begin anew.
        """
        return run(self.broker, self._replay(task_ids, forget_steps))

    def send_event(
        self,
        name: str,
        payload: Any = None,
        *,
        task: str | None = None,
        keep: Seconds = EVENT_KEPT_S,
    ) -> int:
        """Let the tasks go on that wait for an event of that name (``context.wait_for``); return
        how many do by now.

        It is kept for ``keep`` seconds (a week) for those that begin to wait later; of one name
        the latest. With ``task`` it is a message to that task alone, kept until the task takes it,
        in order. ``payload`` is JSON of up to 64 kB. Functions of a Client take signed events
        alone: ``client.send_event``.

        Raises UnknownTask, and RedistqError for a task that has ended.
        """
        operation = sending(self.commands, name, self._event(name, payload, task), task, keep)
        return run(self.broker, operation)

    def steps(self, task_id: str) -> list[StepStatus]:
        """Return the steps that a task has done (``context.step`` and its kin), in order."""
        return run(self.broker, steps_of(self.commands, task_id))

    def purge(self, *task_ids: str) -> int:
        """Delete dead letters for good: these, or all; return how many were deleted."""
        return run(self.broker, self._purge(task_ids))

    def purge_queue(self) -> dict[str, int]:
        """Cancel every task of the queue, of all its priorities, that has not started; return how
        many of them were ``waiting``, ``delayed`` and ``queued``.

        What runs is left alone, and so are queued tasks that are added meanwhile; dead letters are
        kept (``purge`` deletes them). Many calls of bounded length: safe to stop and to call again.
        """
        return run(self.broker, purge(lanes_of(self.commands), {}))

    def drain(
        self, timeout: Seconds | None = None, watch: Callable[[int], object] | None = None
    ) -> bool:
        """Wait until no task of the queue, of all its priorities, waits or runs; return whether
        that came within ``timeout`` seconds (None: no limit).

        It changes nothing: tasks may be added meanwhile, and are waited for too. ``watch`` is
        called with how many are left, several times a second at first, then once a second.
        """
        return run(self.broker, drain(lanes_of(self.commands), wait_seconds(timeout), watch))

    def pause(self) -> None:
        """Let no worker of this queue start another task until ``resume``; adding goes on."""
        run(self.broker, self._pause(True))

    def resume(self) -> None:
        """End a pause."""
        run(self.broker, self._pause(False))

    def snapshot(self) -> Snapshot:
        """Return every figure of the queue at one instant."""
        return run(self.broker, self._snapshot())

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        for inbox in self._guess.forget():
            if inbox.connection is not None:
                inbox.connection.close()
        self.broker.close()

    def __enter__(self) -> TaskProducer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
