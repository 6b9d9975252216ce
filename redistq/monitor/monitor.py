"""TaskMonitor looks at one queue: figures, records and DataFrames. It changes nothing by itself.

Used by dashboards, the command line, the metrics and notebooks. What it costs does not grow with
the queue. The few verbs that do change something (pause, replay, ...) are the producer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..connection.address import DEFAULT_HOST, DEFAULT_PORT
from ..display.text import iso
from ..errors import ConfigurationError
from ..producer.clearing import lanes_of, purge
from ..producer.operations import Wish
from ..producer.producer import TaskProducer
from ..protocol.commands import Snapshot
from ..protocol.keys import COUNTED, DEFAULT_QUEUE, without_priority
from ..protocol.plain_commands import read_time
from . import columns, frames
from .events import Followed
from .inspector import EVENTS_MAX, Inspector
from .rows import DeadLetter, Running
from .schedules import Scheduled
from .tick import STATS_EVENTS, Tick, read_tick, stats_of, workers_of

if TYPE_CHECKING:
    import pandas as pd

    from ..dashboard.dashboard import Dashboard
    from .plots import Plots

__all__ = ["TaskMonitor"]


class TaskMonitor(Followed, Scheduled):
    """Looks at one queue; safe to use from several threads. Connection arguments: TaskProducer's.

    ``get_...`` methods return DataFrames with fixed columns, dtypes and order, also when there is
    nothing to show (docs/frames.md lists them): times are the server's, aware and in UTC, lengths
    of time are timedeltas, states are categories. Properties are short for them with their
    defaults. ``snapshot()``, ``tick()`` and ``records`` return plain records and need no pandas.
    """

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        **options: Any,
    ) -> None:
        self.producer = TaskProducer(redis_host, redis_port, db, stream, **options)
        self.broker = self.producer.broker
        self.commands = self.producer.commands
        self.keys = self.producer.keys
        self.records = Inspector(self.broker, self.commands, self.producer.seal)
        self._held: dict[str, Running] = {}
        self._dead: dict[tuple[str, int], DeadLetter] = {}

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.keys.stream

    @property
    def url(self) -> str:
        """Where the server is, without the password."""
        return str(self.producer.address)

    def snapshot(self) -> Snapshot:
        """Return every figure of the queue at one instant, in one call."""
        return self.producer.snapshot()

    def now_ms(self) -> int:
        """Return the server's time in ms since the epoch."""
        return read_time(self.broker.call(self.commands.time))

    def tick(
        self,
        after: str | None = None,
        *,
        workers: int = 100,
        events: int = 200,
        running: int = 64,
        dead: int = 10,
        batches: int = 8,
        limits: int = 8,
        schedules: int = 8,
    ) -> Tick:
        """Return all that one refresh of a dashboard shows, in one call: see Tick.

        ``after`` is the ``cursor`` of the tick before; without one, the newest events are given.
        The other arguments bound what is listed, each at least 1.
        """
        most = {
            "workers": workers,
            "events": events,
            "running": running,
            "dead": dead,
            "batches": batches,
            "limits": limits,
            "schedules": schedules,
        }
        for name, value in most.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} is a whole number, at least 1: {value!r}")
        held = self._held
        known = self._dead
        ids = {entry: task.id for entry, task in held.items()}
        reply = self.broker.call(self.commands.tick(after or "", known, held=ids, **most))
        tick = read_tick(reply, after or "", events, held, known, without_priority(self.queue))
        # Payloads and tracebacks are sent once. Replaced as a whole: another thread sees one or the
        # other.
        self._held = {task.entry: task for task in tick.running}
        self._dead = {(letter.id, letter.died_ms): letter for letter in tick.dead}
        return tick

    # -- DataFrames ------------------------------------------------------------------------------

    def get_queue_stats(self) -> pd.Series[Any]:
        """Return every figure of the queue at one instant, by name.

        queue; queue_length (ready and unread), pending (in workers' hands), running (of these, as
        far as heartbeats say), delayed, waiting (of all priorities); totals since the queue began:
        succeeded, failed, cancelled, expired, retried, snoozed, recovered; dead (failed tasks
        kept), workers (alive), slots (their threads), oldest_age_s (of the oldest unread task),
        next_due_s (None: nothing is delayed; negative: late), throughput (tasks settled per second
        over the last minute, or
        over the last 300 events where that is less), paused, health and reason, group, as_of.
        """
        pd = frames.pandas()
        values = stats_of(self.tick(events=STATS_EVENTS, dead=1, running=1, batches=1), self.queue)
        as_of = pd.Timestamp(values.pop("as_of_ms"), unit="ms", tz="UTC").as_unit("ms")
        return pd.Series({**values, "as_of": as_of}, dtype=object, name=self.queue)

    def get_recent_tasks(self, n: int = 100) -> pd.DataFrame:
        """Return the newest ``n`` ends of attempts, newest first.

        finished_at, task_id, name, state (succeeded, failed, retried, snoozed, recovered,
        continued, cancelled), attempt, worker, queued_at (the attempt became ready), started_at,
        wait, run, note (the error's type).
        """
        return self._stamp(frames.frame(columns.RECENT, self.records.events(n)), n)

    def get_workers(self) -> pd.DataFrame:
        """Return worker processes by name: up to 1000.

        worker (index), host, pid, state (idle, busy, paused, silent: its heartbeat is overdue),
        threads, pending, running, task and task_id (the first it runs), task_since, started_at,
        deadline_at (of its next heartbeat), python, version, names (of its handlers), rss (bytes of
        memory), cpu (share of one core), memory_limit (bytes its container may have).
        """
        tick = self.tick(events=1, workers=1000, running=1000, dead=1, batches=1)
        return self._stamp(frames.frame(columns.WORKERS, workers_of(tick)), 1000)

    def get_consumers(self) -> pd.DataFrame:
        """Return the stream's consumers as the server lists them, by name.

        consumer (index), pending, idle (since it last asked), inactive (since it last got
        something; NaT where the server does not say), state (alive, silent, or unknown: no worker
        goes by this name).
        """
        return self._stamp(frames.frame(columns.CONSUMERS, self.records.consumers()))

    def get_pending(self, n: int = 100) -> pd.DataFrame:
        """Return tasks handed to workers and not settled, oldest first.

        task_id, name, state, worker, attempt, recovered, queued_at, since (handed over), held (for
        how long), deliveries, entry, payload (its start).
        """
        return self._stamp(frames.frame(columns.PENDING, self.records.pending(n)), n)

    def get_delayed(self, n: int = 100) -> pd.DataFrame:
        """Return tasks that wait for their time, the next due first.

        task_id, name, state, due_at, due_in (negative: late), reason (delay, retry, snooze, sleep,
        event, room: what it needs is in use, unknown: no worker has a handler for it), event (which
        one it waits for), attempt, recovered, error_type (of a retry), payload (its start).
        """
        return self._stamp(frames.frame(columns.DELAYED, self.records.delayed(n)), n)

    def get_waiting(self, n: int = 100) -> pd.DataFrame:
        """Return tasks of all priorities that may not run yet, those first that wait longest.

        task_id, name, state, reason (parents, limit, rate, order, share, paused), under (the key it
        waits under), since, waited, place (in that line; 1 is the next), parents (how many have not
        ended), priority, attempt, due_at (its own due time, if any), payload (its start).
        """
        return self._stamp(frames.frame(columns.WAITING, self.records.waiting(n)), n)

    def get_limits(self) -> pd.DataFrame:
        """Return limit keys, those first under which most tasks wait; all there are.

        key (index), rule (the key or pattern whose rule holds; empty: none), at_most, rate and per
        (so many tokens each so long), burst, in_use (slots), waiting (tasks), next_token_in (NaT:
        at once, or no rate), paused_at, excess, on_failure, weight.
        """
        return self._stamp(frames.frame(columns.LIMITS, self.records.limits()))

    def get_graphs(self, n: int = 100) -> pd.DataFrame:
        """Return the graphs among the newest ``n`` batches, and those that others depend on.

        graph (index), state (running, finished), layers (of the longest way through it; <NA>: a
        batch that is no graph), total, waiting (or running), succeeded, failed, cancelled, expired,
        retried, created_at, finished_at, took.
        """
        return self._stamp(frames.frame(columns.GRAPHS, self.records.graphs(n)))

    def get_dead(self, n: int = 100) -> pd.DataFrame:
        """Return failed tasks that are kept, newest first.

        task_id, name, state, died_at, error_type, error (its message), attempt, worker, run,
        payload (its start), traceback.
        """
        return self._stamp(frames.frame(columns.DEAD, self.records.dead(n)), n)

    def get_failures(self, n: int = 1000, group: bool = True) -> pd.DataFrame:
        """Return the newest ``n`` dead letters by error and task, the most frequent first.

        error_type, name, count, first_at, last_at, example_id and error (of the newest). With
        ``group=False``, as get_dead.
        """
        if not group:
            return self.get_dead(n)
        return self._stamp(frames.frame(columns.FAILURES, self.records.failures(n)))

    def get_task(self, task_id: str) -> pd.DataFrame:
        """Return all attempts of one task, oldest first; the last row is how it stands now.

        attempt, state, queued_at, started_at, finished_at, wait, run, worker, note. Its payload,
        result, error, traceback and ``why`` (what it waits for, in words) are in
        ``attrs["redistq"]``. Attempts older than the history
        are not shown. Raises UnknownTask.
        """
        task = self.records.task(task_id)
        found = frames.frame(columns.ATTEMPTS, task.attempts())
        facts = ("name", "state", "payload", "result", "error_type", "error", "traceback", "why")
        more = {"task_id": task.id, **{fact: getattr(task, fact) for fact in facts}}
        return frames.stamp(found, queue=self.queue, url=self.url, **more)

    def get_throughput(
        self, window: Any = "5min", freq: Any = "1s", by: str | None = None
    ) -> pd.DataFrame:
        """Return ends of attempts per ``freq`` over the last ``window``; steps without one are 0.

        ts (index, its frequency set); succeeded, failed, retried, snoozed, recovered, cancelled,
        expired. With ``by`` ("name" or "worker"), these seven for each: two levels of columns.
        Where the history reaches back less far than the window the frame begins with the history,
        and ``attrs["redistq"]["truncated"]`` says so.
        """
        if by not in (None, "name", "worker"):
            raise ConfigurationError(f"by is None, 'name' or 'worker': {by!r}")
        window_ms = frames.milliseconds(window, "window")
        step_ms = frames.milliseconds(freq, "freq")
        if window_ms // step_ms > 1_000_000:
            raise ConfigurationError("window / freq is at most 1,000,000 steps")
        shot = self.snapshot()
        start = shot.now_ms - window_ms
        events = self.records.events(None, since_ms=start, until_ms=shot.now_ms)
        cut = len(events) >= min(shot.history, EVENTS_MAX) and bool(events)
        cut = cut and self._lost_events(shot)
        if cut:
            start = max(start, events[-1].finished_ms)
        found = frames.throughput(events, start, shot.now_ms + 1, step_ms, by)
        return frames.stamp(found, **self._facts(shot.now_ms), truncated=cut)

    def get_latency(
        self, by: str = "name", q: tuple[float, ...] = frames.QUANTILES, n: int = 10_000
    ) -> pd.DataFrame:
        """Return queueing and run time of the newest ``n`` attempts, per task, worker or state.

        ``by`` (index), count, wait_p50, wait_p90, ... and run_p50, ... for each quantile of ``q``,
        wait_mean, run_mean, run_max. Queueing time runs from the moment the attempt is ready.
        """
        if by not in ("name", "worker", "state"):
            raise ConfigurationError(f"by is 'name', 'worker' or 'state': {by!r}")
        if not q or not all(0 <= part <= 1 for part in q):
            raise ConfigurationError(f"q is a tuple of numbers from 0 to 1: {q!r}")
        return self._stamp(frames.latency(self.records.events(n), by, tuple(q)))

    def get_batches(self, n: int = 100) -> pd.DataFrame:
        """Return batches, newest first.

        batch (index), name, state (running, finished), total, waiting (or running), succeeded,
        failed, cancelled, retried, created_at, finished_at, took (both NaT while it runs), expired,
        version (of its function).
        """
        return self._stamp(frames.frame(columns.BATCHES, self.records.batches(n)), n)

    def _lost_events(self, shot: Snapshot) -> bool:
        """Return whether the history has dropped events: there were more than it holds."""
        return sum(shot.counters.get(state, 0) for state in COUNTED) > shot.history

    def _facts(self, now_ms: int) -> dict[str, Any]:
        return {"as_of": iso(now_ms), "queue": self.queue, "url": self.url}

    def _stamp(self, found: pd.DataFrame, n: int | None = None) -> pd.DataFrame:
        facts = self._facts(self.now_ms())
        return frames.stamp(found, **facts, truncated=n is not None and len(found) == n)

    @property
    def stats(self) -> pd.Series[Any]:
        """``get_queue_stats()``."""
        return self.get_queue_stats()

    @property
    def recent(self) -> pd.DataFrame:
        """``get_recent_tasks()``."""
        return self.get_recent_tasks()

    @property
    def workers(self) -> pd.DataFrame:
        """``get_workers()``."""
        return self.get_workers()

    @property
    def consumers(self) -> pd.DataFrame:
        """``get_consumers()``."""
        return self.get_consumers()

    @property
    def pending(self) -> pd.DataFrame:
        """``get_pending()``."""
        return self.get_pending()

    @property
    def delayed(self) -> pd.DataFrame:
        """``get_delayed()``."""
        return self.get_delayed()

    @property
    def waiting(self) -> pd.DataFrame:
        """``get_waiting()``."""
        return self.get_waiting()

    @property
    def limits(self) -> pd.DataFrame:
        """``get_limits()``."""
        return self.get_limits()

    @property
    def graphs(self) -> pd.DataFrame:
        """``get_graphs()``."""
        return self.get_graphs()

    @property
    def dead(self) -> pd.DataFrame:
        """``get_dead()``."""
        return self.get_dead()

    @property
    def failures(self) -> pd.DataFrame:
        """``get_failures()``."""
        return self.get_failures()

    @property
    def throughput(self) -> pd.DataFrame:
        """``get_throughput()``."""
        return self.get_throughput()

    @property
    def latency(self) -> pd.DataFrame:
        """``get_latency()``."""
        return self.get_latency()

    @property
    def batches(self) -> pd.DataFrame:
        """``get_batches()``."""
        return self.get_batches()

    # -- pictures --------------------------------------------------------------------------------

    @property
    def plot(self) -> Plots:
        """Plots of this queue: ``throughput()``, ``latency()``, ``timeline()``, ``failures()``."""
        from .plots import Plots

        return Plots(self)

    def dashboard(self, **options: Any) -> Dashboard:
        """Return a live dashboard of this queue for a notebook cell, with Dashboard's options."""
        from ..dashboard.dashboard import Dashboard

        return Dashboard(self, **options)

    # -- what a button does ----------------------------------------------------------------------

    def pause(self) -> None:
        """Let no worker of this queue start another task until ``resume``; adding goes on."""
        self.producer.pause()

    def resume(self) -> None:
        """End a pause."""
        self.producer.resume()

    def replay(self, *task_ids: str) -> int:
        """Send dead letters again with a clean slate: these, or all; return how many went."""
        return self.producer.replay(*task_ids)

    def purge(self, *task_ids: str) -> int:
        """Delete dead letters for good: these, or all; return how many were deleted."""
        return self.producer.purge(*task_ids)

    def cancel(self, *task_ids: str, running: Wish = None) -> dict[str, str]:
        """Cancel tasks that wait, and with ``running`` ask those to end that run; return how each
        stands (see TaskProducer.cancel)."""
        return self.producer.cancel(*task_ids, running=running)

    def cancel_waiting(self) -> int:
        """Cancel every task of this queue's priority that has not started; return how many.

        Waiting, delayed and queued ones. What runs is left alone, and so are queued tasks that are
        added meanwhile. A delayed task shows no time of arrival: one that is added meanwhile may be
        cancelled too. ``producer.purge_queue()`` does it for all priorities.
        """
        return sum(self.cancel_waiting_by_parts())

    def cancel_waiting_by_parts(self) -> Iterator[int]:
        """Do as ``cancel_waiting`` in calls of bounded length; yield how many each cancelled.

        A caller that stops in between has cancelled so many, each of them whole.
        """
        own = {p: c for p, c in lanes_of(self.commands).items() if c is self.commands}
        counts: dict[str, int] = {}
        steps = purge(own, counts)
        step: Any = next(steps)
        seen = 0
        while step is not None:
            try:
                step = steps.send(self.broker.call(step))
            except StopIteration:
                step = None
            if sum(counts.values()) > seen:
                yield sum(counts.values()) - seen
                seen = sum(counts.values())

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        self.producer.close()

    def __enter__(self) -> TaskMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TaskMonitor(queue={self.queue!r}, url={self.url!r})"
