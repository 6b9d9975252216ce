"""The memory of a queue's server: how much it uses, and of how much; read now and then.

Used by the dashboards and the metrics. Never more often than every LOOK_EVERY_S, and a server that
does not let us look is no error.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..connection.broker import Broker
from ..errors import RedistqError, ServerUnavailable
from ..logger import logger
from ..protocol.plain_commands import MEMORY_INFO, read_info
from ..system.memory import in_words
from .tick import NEARLY_FULL

log = logger("redistq.monitor")

LOOK_EVERY_S = 5.0
REFUSED_EVERY_S = 300.0
"""How often a server is asked that does not let us look."""


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """Bytes that a server uses, and its ``maxmemory`` (None: it has none); ``machine`` is what the
    machine has (None: not known)."""

    used: int
    most: int | None = None
    machine: int | None = None

    @property
    def nearly_full(self) -> bool:
        """Whether it has little left, of its maxmemory or of the machine."""
        most = self.most or self.machine
        return most is not None and self.used > most * NEARLY_FULL

    @property
    def said(self) -> str:
        """How much it is, in words: '1.2 GB of 2 GB (maxmemory)'."""
        if self.most:
            return f"{in_words(self.used)} of {in_words(self.most)} (maxmemory)"
        if self.nearly_full and self.machine:
            return f"{in_words(self.used)} of the machine's {in_words(self.machine)}"
        return in_words(self.used)


class ServerLook:
    """The memory of one server, as it was found last. Not for several threads at a time."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._due_at = 0.0
        self.memory: ServerMemory | None = None
        """None: not known."""

    def look(self) -> ServerMemory | None:
        """Return its memory, asking for it when the last answer is old. Raises ServerUnavailable,
        but nothing where the server refuses."""
        if time.monotonic() < self._due_at:
            return self.memory
        try:
            self.memory = read_memory(self._broker.call(MEMORY_INFO))
            self._due_at = time.monotonic() + LOOK_EVERY_S
        except ServerUnavailable:
            raise
        except RedistqError as error:
            log.debug("the server's memory cannot be looked at: %s", error)
            self.memory = None
            self._due_at = time.monotonic() + REFUSED_EVERY_S
        return self.memory


def read_memory(reply: bytes) -> ServerMemory | None:
    """Return the answer of ``INFO memory``; None for one that does not say it."""
    found = read_info(reply)

    def number(name: str) -> int | None:
        text = found.get(name, "")
        return int(text) if text.isdigit() and int(text) else None

    used = number("used_memory")
    if used is None:
        return None
    return ServerMemory(used, number("maxmemory"), number("total_system_memory"))
