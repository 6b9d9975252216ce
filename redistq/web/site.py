"""What one app looks at: a server and some of its queues, or all of them. Its calls block."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from ..connection.address import Address
from ..dashboard.feed import feed_of
from ..errors import ConfigurationError, RedistqError
from ..monitor.queues import QueueRow, Queues
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE, QueueKeys
from .desk import Desk

KEPT_S = 60.0
"""So long is what is known of a queue kept while nobody looks at it."""
FRESH_S = 0.4
"""Figures of all queues that are younger than this are shared."""


class Site:
    """One server, and the queues that may be looked at: ``names``, or with None all there are."""

    def __init__(
        self,
        address: Address,
        names: Sequence[str] | None = None,
        group: str = DEFAULT_GROUP,
        delayed_key: str | None = None,
    ) -> None:
        """``group`` and ``delayed_key`` (of a single queue) are those of the queues' workers."""
        self.address = address
        self.group = group
        self._delayed_key = delayed_key
        self._queues = Queues(address, names, group)
        self._is_open = names is None
        self._rows: list[QueueRow] = []
        self._looked_at = -FRESH_S
        self._desks: dict[str, tuple[Desk, float]] = {}
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self.trouble = ""
        """Why the last look at all queues had no answer; '' when it had one."""

    @property
    def only(self) -> str:
        """The one queue that may be looked at; '' where there may be more."""
        names = () if self._is_open else self._queues.names
        return names[0] if len(names) == 1 else ""

    def desk(self, queue: str) -> Desk:
        """Return a queue, with what is known of it and done to it. It is asked for at each look:
        what is not asked for is forgotten. Raises ConfigurationError for one that may not be
        looked at."""
        keys = QueueKeys(queue, clustered=self.address.clustered)
        if not self._is_open and keys.stream not in self._queues.names:
            raise ConfigurationError(f"queue {queue!r} is not shown here")
        now = time.monotonic()
        with self._lock:
            for name, (old, used_at) in [*self._desks.items()]:
                if now - used_at > KEPT_S and not old.is_busy:
                    del self._desks[name]
            known = self._desks.get(keys.stream)
            desk = known[0] if known else self._new_desk(keys)
            self._desks[keys.stream] = desk, now
        return desk

    def _new_desk(self, keys: QueueKeys) -> Desk:
        delayed = keys.delayed if self._delayed_key is None else self._delayed_key
        return Desk(feed_of(self.address, keys.stream, self.group, delayed))

    def look(self) -> list[QueueRow]:
        """Return the figures of all queues; those of before where there is no answer: see
        ``trouble``."""
        with self._looking:
            if time.monotonic() - self._looked_at > FRESH_S:
                try:
                    self._rows = self._queues.look()
                    self.trouble = ""
                except RedistqError as error:
                    self.trouble = str(error)
                self._looked_at = time.monotonic()
            return self._rows

    def ping(self) -> None:
        """Ask the server for its time; raises RedistqError without an answer."""
        self.desk(self.only or DEFAULT_QUEUE).feed.monitor.now_ms()
