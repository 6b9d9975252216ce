"""Functions of jobs, for RQ and for the bridge; what they say of themselves is in ``seen``."""

from __future__ import annotations

import os
from typing import Any

seen: list[Any] = []
tries: dict[str, int] = {}


def add(a: int, b: int = 1) -> int:
    return a + b


def divide(a: int, b: int) -> float:
    return a / b


def fails(times: int, key: str) -> int:
    tries[key] = tries.get(key, 0) + 1
    if tries[key] <= times:
        raise ValueError(f"try {tries[key]}")
    return tries[key]


def asks() -> Any:
    """What a job knows of itself; RQ's function is imported where RQ runs it."""
    if os.environ.get("RQ_BRIDGE"):
        from redistq.compat.rq import get_current_job
    else:
        from rq import get_current_job
    job = get_current_job()
    return {
        "id": job.id,
        "meta": job.meta,
        "func": job.func_name,
        "origin": job.origin,
        "description": job.description,
    }


def on_success(job: Any, connection: Any, result: Any) -> None:
    seen.append(("success", result))


def on_failure(job: Any, connection: Any, kind: Any, value: Any, traceback: Any) -> None:
    seen.append(("failure", kind.__name__, str(value), traceback is not None))


def bad_callback(job: Any, connection: Any, result: Any) -> None:
    raise RuntimeError("of the callback")


class Thing:
    @staticmethod
    def static(a: int) -> int:
        return a * 3


def not_a_secret() -> str:
    return "a"
