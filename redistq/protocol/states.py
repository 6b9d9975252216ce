"""The states of tasks and of their attempts: each list of them stands here, once.

Used by whatever counts, orders or draws states. The scripts write these words into records, the
history and the counters.
"""

from __future__ import annotations

STATES = (
    "delayed",
    "queued",
    "running",
    "retried",
    "snoozed",
    "recovered",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "settled",
)
"""Every state a task or one of its attempts may be in, in the order of a task's life."""

ENDED = ("succeeded", "failed", "cancelled")
"""How a task ends."""

COUNTED = (*ENDED, "retried", "snoozed", "recovered")
"""How an attempt ends; the queue counts each since it began."""

SETTLED = frozenset({*ENDED, "expired"})
"""States of a record that changes no more."""
