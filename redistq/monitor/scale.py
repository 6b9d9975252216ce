"""How much work waits, as JSON over HTTP: for scalers of pods, such as KEDA's ``metrics-api``.

Served at ``/scale`` beside ``/metrics``. One call a queue to the server for each request.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import RedistqError
from ..logger import logger
from ..protocol.snapshot import Snapshot
from .monitor import TaskMonitor
from .tick import condition, slots_of

log = logger("redistq.metrics")

PATH = "/scale"
RATE_OVER_S = 180.0
"""Over how long the throughput is measured; scalers ask every half a minute."""
_ENDS = ("succeeded", "failed", "retried", "snoozed")


class Scale:
    """The work of some queues together, asked for again and again."""

    def __init__(self, monitors: Sequence[TaskMonitor]) -> None:
        self._monitors = monitors
        self._lock = threading.Lock()  # requests come in threads of their own
        self._ended: deque[tuple[float, int]] = deque()

    def read(self) -> dict[str, Any]:
        """Return how much waits and runs now; raises RedistqError."""
        return self.figures([monitor.snapshot() for monitor in self._monitors], time.monotonic())

    def figures(self, shots: Sequence[Snapshot], now: float) -> dict[str, Any]:
        """Return the answer for these figures of the queues, read at ``now`` (monotonic clock)."""
        open_ = [shot for shot in shots if not shot.paused]
        queued = sum(shot.ready for shot in open_)
        running = sum(shot.pending for shot in shots)
        rate = self._rate(sum(s.counters.get(end, 0) for s in shots for end in _ENDS), now)
        ages = [(shot.now_ms - shot.oldest_ms) / 1000 for shot in open_ if shot.oldest_ms]
        # Where nothing has ended lately, what waits has waited so long, and will for longer.
        seconds = queued / rate if rate else max(ages, default=0.0)
        return {
            "queues": [monitor.queue for monitor in self._monitors],
            "tasks": queued + running,
            "queued": queued,
            "running": running,
            "backlog_seconds": round(seconds, 3) if queued else 0.0,
            "per_second": None if rate is None else round(rate, 3),
            "oldest_seconds": round(max(ages, default=0.0), 3),
            "workers": max((len(condition(shot).living) for shot in shots), default=0),
            "slots": max((sum(map(slots_of, condition(s).living)) for s in shots), default=0),
            "paused": len(open_) < len(shots),
        }

    def _rate(self, ended: int, now: float) -> float | None:
        """Return how many attempts ended a second since some time; None at first."""
        with self._lock:
            seen = self._ended
            if seen and ended < seen[-1][1]:
                seen.clear()  # another server, or one that has lost its memory
            seen.append((now, ended))
            while len(seen) > 2 and now - seen[1][0] >= RATE_OVER_S:
                seen.popleft()
            since, before = seen[0]
            return None if now - since < 1 else (ended - before) / (now - since)


def with_scale(answer: Any, monitors: Sequence[TaskMonitor]) -> Callable[..., Any]:
    """Return the same web application that also answers at ``/scale``."""
    scale = Scale(monitors)

    def answering(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != PATH:
            return answer(environ, start)  # type: ignore[no-any-return]
        try:
            status, said = "200 OK", scale.read()
        except RedistqError as error:
            log.warning("no figures for a scaler: %s", error)
            # No figures rather than those of an empty queue: the scaler keeps what there is.
            status, said = "503 Service Unavailable", {"error": "the server does not answer"}
        body = json.dumps(said).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start(status, headers)
        return [body]

    return answering
