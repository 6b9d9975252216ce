"""Figures for Prometheus: one call to the server a scrape, served by a worker or the monitor.

Used by ``--metrics-port``. A collector reads one tick when it is asked, and keeps nothing:
there is no polling. Needs prometheus_client (``pip install redistq[metrics]``).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from ..errors import ConfigurationError, RedistqError
from ..logger import logger
from ..protocol.commands import Snapshot
from ..protocol.keys import COUNTED
from ..protocol.limits import LimitState
from ..protocol.waits import REASONS
from ..system.interpreter import require
from ..system.private import host_in, is_loopback, named_here
from .monitor import TaskMonitor
from .name_times import NameTimes, families
from .rows import Event, read_event
from .scale import with_scale
from .server import ServerLook, ServerMemory
from .tick import Tick, condition, cpu_of, memory_of, running_count, slots_of

log = logger("redistq.metrics")

DEFAULT_HOST = "127.0.0.1"
LIMITS_SHOWN = 50
"""Most limit keys in a scrape, those with a rule under which most tasks wait."""


class QueueCollector:
    """A prometheus_client collector for one queue; ``times`` reads its ticks, ``server`` the
    server's memory.

    While the server does not answer only ``redistq_up`` is given, as 0: figures of before would
    pass for those of now.
    """

    def __init__(
        self,
        queue: str,
        times: NameTimes,
        server: ServerLook,
    ) -> None:
        self._core = require("prometheus_client.core", "metrics", "Prometheus metrics")
        self._queue = queue
        self._times = times
        self._server = server

    def describe(self) -> list[Any]:
        """Return nothing: registering must not ask the server."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield every family of metrics, from one tick."""
        try:
            tick: Tick | None = self._times.tick()
            memory = self._server.look()
        except RedistqError as error:
            log.warning("no figures for Prometheus: %s", error)
            tick = None
        yield self._gauge("up", "1 when the queue's server answered", int(tick is not None))
        if tick is None:
            return
        yield from self._families(tick.snapshot)
        yield from self._memory(memory)
        yield from self._waiting(tick.snapshot, tick.reasons)
        yield from self._limits([limit for limit in tick.limits if limit.has_rule])
        yield from families(self._core, self._queue, self._times)

    def _families(self, shot: Snapshot) -> Iterator[Any]:
        now = condition(shot)
        age = 0 if shot.oldest_ms is None else max(0, shot.now_ms - shot.oldest_ms)
        late = 0 if shot.next_due_ms is None else max(0, shot.now_ms - shot.next_due_ms)
        tasks = self._core.GaugeMetricFamily(
            "redistq_tasks", "Tasks by where they are now", labels=["queue", "place"]
        )
        for place, count in (
            ("ready", shot.ready),
            ("pending", shot.pending),
            ("delayed", shot.delayed),
            ("waiting", shot.waiting),
            ("dead", shot.dead),
        ):
            tasks.add_metric([self._queue, place], count)
        yield tasks
        ends = self._core.CounterMetricFamily(
            "redistq_attempts", "Attempts by how they ended", labels=["queue", "state"]
        )
        for state in COUNTED:
            ends.add_metric([self._queue, state], shot.counters.get(state, 0))
        yield ends
        yield self._gauge(
            "running_tasks", "Tasks being run, as far as heartbeats say", running_count(shot)
        )
        yield self._gauge(
            "oldest_ready_seconds", "Age of the oldest unread task, 0 without", age / 1000
        )
        yield self._gauge("delayed_late_seconds", "How late the next delayed task is", late / 1000)
        yield self._gauge("workers", "Worker processes whose heartbeat is in time", len(now.living))
        yield self._gauge("silent_workers", "Worker processes past their deadline", len(now.silent))
        yield self._gauge(
            "worker_threads", "Threads of living workers", sum(map(slots_of, now.living))
        )
        rss = [memory for worker in now.living if (memory := memory_of(worker)) is not None]
        cpu = [share for worker in now.living if (share := cpu_of(worker)) is not None]
        if rss:
            what = "Memory of living worker processes together"
            yield self._gauge("workers_resident_bytes", what, sum(rss))
            what = "Memory of the living worker process that has most"
            yield self._gauge("largest_worker_resident_bytes", what, max(rss))
        if cpu:
            yield self._gauge("workers_cpu_cores", "Cores that living workers use", sum(cpu))
        yield self._gauge("paused", "1 while the queue is paused", int(shot.paused))

    def _memory(self, memory: ServerMemory | None) -> Iterator[Any]:
        if memory is not None:
            yield self._gauge("server_used_bytes", "Memory that the server uses", memory.used)
            what = "The server's maxmemory, 0 without one"
            yield self._gauge("server_max_bytes", what, memory.most or 0)

    def _waiting(self, shot: Snapshot, reasons: dict[str, int]) -> Iterator[Any]:
        family = self._core.GaugeMetricFamily(
            "redistq_waiting_tasks",
            "Tasks that may not run yet, of all priorities, by what the oldest wait for",
            labels=["queue", "reason"],
        )
        for reason in REASONS:
            family.add_metric([self._queue, reason], reasons.get(reason, 0))
        rest = max(0, shot.waiting - sum(reasons.get(reason, 0) for reason in REASONS))
        family.add_metric([self._queue, "other"], rest)
        yield family
        since = shot.waiting_since_ms
        age = 0 if since is None else max(0, shot.now_ms - since)
        yield self._gauge("oldest_waiting_seconds", "Age of the oldest waiting task", age / 1000)

    def _limits(self, limits: list[LimitState]) -> Iterator[Any]:
        for name, what, value in (
            ("limit_slots", "Slots of a limit key, where it has a rule", attrgetter("at_most")),
            ("limit_in_use", "Slots of a limit key in use", attrgetter("in_use")),
            ("limit_waiting", "Tasks that wait under a limit key", attrgetter("waiting")),
        ):
            family = self._core.GaugeMetricFamily(f"redistq_{name}", what, labels=["queue", "key"])
            for limit in limits:
                if value(limit) is not None:
                    family.add_metric([self._queue, limit.key], value(limit))
            yield family

    def _gauge(self, name: str, what: str, value: float) -> Any:
        family = self._core.GaugeMetricFamily(f"redistq_{name}", what, labels=["queue"])
        family.add_metric([self._queue], value)
        return family


def _times_by(monitor: TaskMonitor) -> NameTimes:
    """Return what reads the figures of a scrape, in one call, and more where much has ended."""

    def look(after: str | None, events: int) -> Tick:
        return monitor.tick(after, events=events, running=1, dead=1, batches=1, limits=LIMITS_SHOWN)

    def more(newest: str, oldest: str, most: int) -> list[Event]:
        page = monitor.broker.call(monitor.commands.history_page(newest, oldest, most))
        return [read_event(entry, flat) for entry, flat in page]

    return NameTimes(look, more)


class QueuesCollector:
    """The collectors of several queues as one, since a family of metrics is given once."""

    def __init__(self, collectors: Sequence[QueueCollector]) -> None:
        self._collectors = collectors

    def describe(self) -> list[Any]:
        """Return nothing: registering must not ask the server."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield every family with the samples of all queues."""
        families: dict[str, Any] = {}
        for collector in self._collectors:
            for family in collector.collect():
                if family.name in families:
                    families[family.name].samples.extend(family.samples)
                else:
                    families[family.name] = family
        yield from families.values()


class MetricsServer:
    """Serves the figures of one or more queues over HTTP on its own threads, until ``stop``.

    Binds to the loopback address unless another is asked for, and there answers to its own names
    alone: a web site in a browser of this machine cannot read it. Port 0 takes a free one: see
    ``port``. Raises ConfigurationError when the port cannot be had.
    """

    def __init__(
        self, monitors: TaskMonitor | Sequence[TaskMonitor], port: int, host: str = DEFAULT_HOST
    ) -> None:
        client = require("prometheus_client", "metrics", "Prometheus metrics")
        registry = client.CollectorRegistry()
        self._monitors = list(monitors) if isinstance(monitors, Sequence) else [monitors]
        registry.register(
            QueuesCollector(
                [
                    QueueCollector(m.queue, _times_by(m), ServerLook(m.broker))
                    for m in self._monitors
                ]
            )
        )
        try:
            self._server, self._thread = client.start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"metrics cannot be served at {host}:{port}: {error}"
            ) from error
        self._server.set_app(with_scale(self._server.get_app(), self._monitors))
        if is_loopback(host):
            # For this machine alone: so not for a web site that a browser here has open.
            self._server.set_app(_for_own_names(self._server.get_app(), named_here(host)))
        self.host = host
        self.port = int(self._server.server_port)

    def stop(self) -> None:
        """End it and close the monitor's connections; safe to call twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        for monitor in self._monitors:
            monitor.close()

    @property
    def url(self) -> str:
        """Where Prometheus finds the figures."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"


def _for_own_names(answer: Any, is_own_name: Callable[[str], bool]) -> Callable[..., Any]:
    """Return the same web application for requests that mean this server by its name."""

    def guarded(environ: dict[str, Any], start: Any) -> Any:
        if is_own_name(host_in(environ.get("HTTP_HOST", "localhost"))):
            return answer(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"the Host of this request is no name of this server\n"]

    return guarded


def serve_until_signal(monitor: TaskMonitor, port: int, host: str = DEFAULT_HOST) -> int:
    """Serve until SIGTERM or SIGINT, which end it in good order (0)."""
    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        server = MetricsServer(monitor, port, host)
        try:
            print(f"metrics of queue {monitor.queue} at {server.url}", flush=True)
            while not ended.wait(1.0):
                pass
        finally:
            server.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
