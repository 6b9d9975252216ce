"""StreamTail: new entries of a stream, waited for without polling, past lost connections.

Used by all that waits for a stream other than the inbox: the ends of a batch, the output of a call.
"""

from __future__ import annotations

import time

from ..connection.broker import Broker
from ..producer.sansio import LEAST_PATIENCE_S
from ..protocol.plain_commands import read_stream
from ..protocol.replies import messages

PAUSE_S = 0.1
"""Seconds before a lost connection is opened again."""


class StreamTail:
    """Reads one stream from its beginning, on a connection of its own; for one thread."""

    def __init__(self, broker: Broker, key: str) -> None:
        self._connection = broker.connection()
        self._patience_s = broker.timeout
        self._key = key
        self._last = "0-0"

    def read(
        self, block_s: float, *, count: int = 1000, patience_s: float | None = None
    ) -> list[list[bytes]]:
        """Return the fields of what is new, after at most ``block_s`` seconds; [] when nothing is.

        The server is taken to be unavailable when its answer is later by ``patience_s`` (at most
        what a call may take, which is the default). Raises ConnectionLost.
        """
        block_ms = max(1, int(block_s * 1000))
        command = read_stream(self._key, self._last, count, block_ms)
        patience_s = self._patience_s if patience_s is None else min(self._patience_s, patience_s)
        limit_s = block_ms / 1000 + max(patience_s, LEAST_PATIENCE_S)
        found = messages(command, self._connection.read(command, limit_s))
        if found:
            self._last = found[-1][0]
        return [fields for _, fields in found]

    def pause(self) -> None:
        """Wait a moment before the next read, after a lost connection."""
        time.sleep(PAUSE_S)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
