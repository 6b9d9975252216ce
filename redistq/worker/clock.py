"""The server's clock as a worker process knows it, for tasks that are not to start too late.

Used by the executor, which asks it only for tasks with a deadline: a process that meets none never
asks the server. The difference to this machine's monotonic clock is asked for again each minute.
"""

from __future__ import annotations

import threading
import time

from ..connection.broker import Broker
from ..logger import logger
from ..protocol.plain_commands import TIME, Command, read_time

log = logger("redistq.worker")

ASK_EVERY_S = 60.0
"""Seconds for which the difference of the clocks is relied on."""
ASK_AGAIN_S = 5.0
"""The same where the server did not answer."""
PATIENCE_S = 0.5
"""Seconds that an answer is waited for: a task waits for it meanwhile."""


class ServerClock:
    """Compares times with the server's clock; thread-safe."""

    def __init__(self, broker: Broker, command: Command = TIME) -> None:
        """``command`` asks the server for the time."""
        self._broker = broker
        self._command = command
        self._ahead_ms: float | None = None  # of our monotonic clock
        self._ask_at = 0.0
        self._lock = threading.Lock()

    def has_passed(self, server_ms: int) -> bool:
        """Return whether a time of the server's clock has passed; False where that is not known."""
        if time.monotonic() >= self._ask_at:
            with self._lock:
                if time.monotonic() >= self._ask_at:
                    self._ask()
        ahead = self._ahead_ms
        return ahead is not None and time.monotonic() * 1000 + ahead > server_ms

    def _ask(self) -> None:
        before = time.monotonic()
        try:
            server_ms = read_time(self._broker.call(self._command, before + PATIENCE_S))
        except Exception as error:  # whatever it is: the task runs, as it would without a clock
            log.warning("the server's clock is not known: %s", error)
            self._ask_at = time.monotonic() + ASK_AGAIN_S
            return
        after = time.monotonic()
        self._ahead_ms = server_ms - (before + after) * 500
        self._ask_at = after + ASK_EVERY_S
