"""The states of a task in Celery's words, and what redistq's states are called there."""

from __future__ import annotations

PENDING = "PENDING"
RECEIVED = "RECEIVED"
STARTED = "STARTED"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
REJECTED = "REJECTED"
RETRY = "RETRY"
IGNORED = "IGNORED"

READY_STATES = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES = frozenset({FAILURE, REVOKED})
ALL_STATES = frozenset({*READY_STATES, *UNREADY_STATES})

WORDS = {
    "waiting": PENDING,
    "delayed": PENDING,
    "queued": PENDING,
    "running": STARTED,
    "succeeded": SUCCESS,
    "failed": FAILURE,
    "cancelled": REVOKED,
    "expired": REVOKED,
}
"""redistq's states in Celery's words."""
