"""Tests of programs that use redistq: a queue of one's own on a real server, run by the test.

With pytest installed the fixtures ``redistq_queue`` and ``redistq_client`` are there by themselves;
see docs/testing.md. Nothing is loaded before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import Clock
    from .contents import Enqueued
    from .crash import WorkerDied
    from .queue import TestQueue
    from .runs import DrainFailed, Run, Runs
    from .server import leave_session, session_url

_HOMES = {
    "Clock": "clock",
    "DrainFailed": "runs",
    "Enqueued": "contents",
    "Run": "runs",
    "Runs": "runs",
    "TestQueue": "queue",
    "WorkerDied": "crash",
    "leave_session": "server",
    "session_url": "server",
}

__all__ = [
    "Clock",
    "DrainFailed",
    "Enqueued",
    "Run",
    "Runs",
    "TestQueue",
    "WorkerDied",
    "leave_session",
    "session_url",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
