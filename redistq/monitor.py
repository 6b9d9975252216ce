"""The window: TaskMonitor looks at one queue. Figures and DataFrames; it changes nothing by itself.

Used by dashboards, the command line, the metrics and notebooks. What it costs does not grow with
the queue. The few verbs that do change something (pause, replay, ...) are the producer's.
"""

from __future__ import annotations

from typing import Any

from .calls import Snapshot
from .errors import ConfigurationError
from .keys import DEFAULT_QUEUE
from .producer import TaskProducer
from .settings import DEFAULT_HOST, DEFAULT_PORT
from .tick import DeadLetter, Tick, read_tick

__all__ = ["TaskMonitor"]


class TaskMonitor:
    """Looks at one queue; safe to use from several threads. Connection arguments: TaskProducer's.

    ``snapshot()`` and ``tick()`` need the standard library only.
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
        self.broker, self.calls, self.keys = (
            self.producer.broker,
            self.producer.calls,
            self.producer.keys,
        )
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
        """Every figure of the queue at one instant, in one call."""
        return self.producer.snapshot()

    def tick(
        self,
        after: str | None = None,
        *,
        workers: int = 100,
        events: int = 200,
        running: int = 64,
        dead: int = 10,
        batches: int = 8,
    ) -> Tick:
        """All that one refresh of a dashboard shows, in one call: see Tick.

        ``after`` is the ``cursor`` of the tick before; without one, the newest events are given.
        The other arguments bound what is listed, each at least 1.
        """
        limits = {
            "workers": workers,
            "events": events,
            "running": running,
            "dead": dead,
            "batches": batches,
        }
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} is a whole number, at least 1: {value!r}")
        known = self._dead
        reply = self.broker.call(self.calls.tick(after or "", known, **limits))
        tick = read_tick(reply, after or "", events, known)
        # Tracebacks are sent once; replaced as a whole, so that other threads see one or the other.
        self._dead = {(letter.id, letter.died_ms): letter for letter in tick.dead}
        return tick

    # -- what a button does ----------------------------------------------------------------------

    def pause(self) -> None:
        """Let no worker of this queue start another task until ``resume``; adding goes on."""
        self.producer.pause()

    def resume(self) -> None:
        """End a pause."""
        self.producer.resume()

    def replay(self, *task_ids: str) -> int:
        """Send dead letters again with a clean slate: these, or all; answers how many went."""
        return self.producer.replay(*task_ids)

    def purge(self, *task_ids: str) -> int:
        """Delete dead letters for good: these, or all; answers how many were deleted."""
        return self.producer.purge(*task_ids)

    def cancel(self, *task_ids: str) -> dict[str, str]:
        """Cancel tasks that wait; answers how each stands (see TaskProducer.cancel)."""
        return self.producer.cancel(*task_ids)

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        self.producer.close()

    def __enter__(self) -> TaskMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TaskMonitor(queue={self.queue!r}, url={self.url!r})"
