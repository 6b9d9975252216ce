"""The payload of a task: its arguments, and what it takes of the tasks before it.

``{"args": [...], "kwargs": {...}}`` is what every call-shaped task of redistq has; ``celery`` is
there only where something goes with them: ``results`` ("one" or "list") puts results of the tasks
before it in front of the arguments, ``error_of`` the failure of the task with that id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigurationError
from ..wire import from_wire, to_wire


def payload_of(
    args: Sequence[Any], kwargs: Mapping[str, Any], takes: str = "", error_of: str = ""
) -> dict[str, Any]:
    """Return a task's payload."""
    payload: dict[str, Any] = {"args": to_wire(list(args)), "kwargs": to_wire(dict(kwargs))}
    beside = {"results": takes, "error_of": error_of}
    if beside := {name: value for name, value in beside.items() if value}:
        payload["celery"] = beside
    return payload


def read(name: str, payload: Any) -> tuple[list[Any], dict[str, Any], dict[str, str]]:
    """Return arguments, arguments by name, and what goes with them; raises ConfigurationError."""
    if payload is None:
        return [], {}, {}
    if not isinstance(payload, dict) or not {"args", "kwargs"}.issuperset(payload.keys() - _BESIDE):
        raise ConfigurationError(
            f'task {name} takes {{"args": [...], "kwargs": {{...}}}} as its payload, not '
            f"{payload!r:.80}: add it with {name.rpartition('.')[2]}.delay(...)"
        )
    beside = payload.get("celery") or {}
    return from_wire(payload.get("args") or []), from_wire(payload.get("kwargs") or {}), beside


_BESIDE = {"celery"}
