"""Attempts that were killed with their process at their hard time limit, or at their limit of
memory: each ends as failed, or is tried again as its retry policy says.

Used by the supervisor's reports of deaths. The process is gone, so the supervisor settles in its
name what it was killed for: the entry is still pending for it, and nobody else can answer. What
cannot be settled so is recovered as after any death.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..connection.broker import Broker
from ..errors import MemoryLimitExceeded, RedistqError, TimeLimitExceeded
from ..logger import logger
from ..protocol.codec import dumps, encode_error
from ..protocol.commands import ASKED, CANCELLED_TTL_MS, Commands
from ..protocol.options import addresses, gate_of
from ..system.memory import in_words
from .outcome import ASKED_NOTE, FIELDS, fields_of
from .scoreboard import Overdue

log = logger("redistq.supervisor")


def end_overdue(
    broker: Broker, queues: Sequence[Commands], consumer: str, overdue: Iterable[Overdue]
) -> None:
    """End the attempts for which a process was killed. Raises as Broker.call does."""
    for attempt in overdue:
        for commands in queues:
            found = broker.call(commands.entry(attempt.entry))
            fields = fields_of(found[0][1]) if found else {}
            if all(field in fields for field in FIELDS):
                _end(broker, commands, consumer, attempt, fields)


def _end(
    broker: Broker,
    commands: Commands,
    consumer: str,
    attempt: Overdue,
    fields: dict[bytes, bytes],
) -> None:
    """End one attempt; in a queue where it is not pending for the process nothing happens."""
    error = _error(attempt)
    what = f"ran past its {'memory' if attempt.memory else 'hard time'} limit"
    said = type(error).__name__
    body = encode_error(error)
    row: list[Any] = [attempt.entry, fields[b"id"], "retried", fields[b"name"], fields[b"attempt"]]
    row.append(f"{attempt.seconds * 1000:.3f}")
    task = fields[b"id"].decode("utf-8", "replace")
    if attempt.retry_ms >= 0:
        delay = [body, attempt.retry_ms, said]
        reply = Commands.read_refused(broker.call(commands.retry(consumer, [[*row, *delay]])))
        if reply.broken.get(0) != ASKED:
            if not reply.lost and not reply.broken:
                log.warning("task %s %s: it is tried again", task, what)
            return
        row[2], body, note, ttl = "cancelled", ASKED.encode(), ASKED_NOTE, str(CANCELLED_TTL_MS)
    else:
        row[2], note, ttl = "failed", said, "0"
    opts = fields[b"opts"]
    inbox, batch = addresses(opts)
    gate = gate_of(opts)
    gated = dumps([[gate, 1]]) if gate else b""
    reply = Commands.read_refused(
        broker.call(commands.settle(consumer, [[*row, body, ttl, inbox, note, batch]], gated))
    )
    if not reply.lost and not reply.broken:
        log.warning("task %s %s: it ends as %s", task, what, row[2])


def _error(attempt: Overdue) -> RedistqError:
    if attempt.memory:
        return MemoryLimitExceeded(
            f"its process grew by {in_words(attempt.seen)} while it ran, past its limit of "
            f"{in_words(attempt.memory)}, and was killed"
        )
    return TimeLimitExceeded(
        f"the hard time limit of {attempt.seconds:g} s has passed, and the worker process that ran "
        "it was killed"
    )
