"""Versions of a batch's function: which of them the next call is of, and which one a result is of.

``batch.update(fn)`` leaves the new function's name in the record of the batch, signed for it. A
worker process looks there at most every LOOK_S for each batch of which it runs calls, so that a
client which has waited so long knows that none starts with an earlier version. The version that
made a result stands in the name of its record, which costs nothing where nobody updates.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..connection.broker import Broker
from ..context import TaskContext
from ..errors import ServerUnavailable, UntrustedPayload
from ..logger import logger
from ..protocol.commands import Commands
from ..protocol.keys import DEFAULT_GROUP, QueueKeys
from .signing import Signer, batch_context

log = logger("redistq.worker")

LOOK_S = 0.1
"""Seconds for which a process that has looked at a batch may go by what it saw."""
MOST_BATCHES = 256
"""Batches that a process remembers."""
_NAMED = re.compile(rb" \(version (\d{1,9})\)$")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a batch's function; the first is 1, that of the calls themselves."""

    number: int
    function: str
    """The name of its blob."""

    def packed(self, signer: Signer, stream: str, batch_id: str) -> bytes:
        """Return it as it stands in the record of that batch, and of no other."""
        data = json.dumps([self.number, self.function]).encode()
        return signer.pack("version", batch_context(stream, batch_id), data)

    @classmethod
    def unpacked(cls, signer: Signer, stream: str, batch_id: str, packet: bytes) -> Version:
        """Return the version; raises UntrustedPayload for what nobody with our key has written."""
        data = signer.unpack("version", batch_context(stream, batch_id), packet)
        try:
            number, function = json.loads(data)
            return cls(int(number), str(function))
        except (ValueError, TypeError) as error:  # unsigned, where that is allowed
            raise UntrustedPayload(f"batch {batch_id!r} has a function that is none") from error


def versioned(name: str, number: int) -> str:
    """Return the name of a task whose result a version made."""
    return f"{name} (version {number})" if number > 1 else name


def version_in(name: bytes | None) -> int:
    """Return the version in the name of a record; 1 where there is none."""
    found = _NAMED.search(name or b"")
    return int(found[1]) if found else 1


class BatchVersions:
    """The newest versions of a queue's batches, for a worker; safe to use from several threads."""

    def __init__(self, broker: Broker, keys: QueueKeys, signer: Signer) -> None:
        self._broker = broker
        self._commands = Commands(keys, DEFAULT_GROUP)
        self._stream = keys.stream
        self._signer = signer
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, Version | None]] = {}

    def newest(self, context: TaskContext) -> Version | None:
        """Return the version that a call which starts now is of; None for the first, and for calls
        of no batch."""
        batch_id = context._batch
        if not batch_id:
            return None
        seen = self._seen.get(batch_id)
        if seen is not None and time.monotonic() < seen[0]:
            return seen[1]
        with self._lock:
            seen = self._seen.get(batch_id)
            if seen is not None and time.monotonic() < seen[0]:  # another thread has looked
                return seen[1]
            asked = time.monotonic()  # what changes from now on may be missed
            found = self._look(batch_id, context)
            if len(self._seen) >= MOST_BATCHES:
                self._seen.clear()
            self._seen[batch_id] = asked + LOOK_S, found
            return found

    def _look(self, batch_id: str, context: TaskContext) -> Version | None:
        packet: Any = None
        while True:
            try:
                packet = self._broker.call(self._commands.batch_function(batch_id))
                break
            except ServerUnavailable as error:
                # It may have been updated: this call waits, as its result would have to.
                if context.cancelled:
                    raise
                log.info("a call of batch %s waits for the server: %s", batch_id, error)
        if packet is None:
            return None
        return Version.unpacked(self._signer, self._stream, batch_id, packet)
