"""Errors of tasks, written by a worker and made again where a result is read.

An error travels as its type's name, module, and those arguments that are JSON. It is made again of
a class that is loaded here already: nothing is imported because a task says so.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from typing import Any

from ..protocol.codec import dumps
from .wire import from_wire, to_wire

LOST = "bridge"
"""The key of a failure's report under which the bridges write."""


def report_of(error: BaseException) -> dict[str, Any]:
    """Return what is written beside an error's type and message."""
    report: dict[str, Any] = {"module": type(error).__module__}
    try:
        args = to_wire(list(error.args))
        dumps(args)
        report["args"] = args
    except Exception:  # arguments that are no JSON: the message stands for them
        pass
    return {LOST: report}


def made_again(error: Mapping[str, Any] | None, base: type[Exception] = Exception) -> Exception:
    """Return the exception that an error's record stands for; one of an unknown type is of a class
    of that name, below ``base``."""
    error = error or {}
    name, message = str(error.get("type") or "Exception"), str(error.get("message") or "")
    report = error.get(LOST)
    report = report if isinstance(report, Mapping) else {}
    module = str(report.get("module") or "builtins")
    kind: Any = _class(module, name) or type(
        name.rpartition(".")[2], (base,), {"__module__": module}
    )
    args = report.get("args")
    made: Exception
    try:
        made = kind(*from_wire(args)) if isinstance(args, list) else kind(message)
    except Exception:  # a class with arguments of its own
        made = type(name.rpartition(".")[2], (base,), {"__module__": module})(message)
    if text := error.get("traceback"):
        made.add_note("The traceback on the worker:\n" + str(text).rstrip())
    return made


def _class(module: str, name: str) -> type[Exception] | None:
    found: Any = sys.modules.get(module, builtins if module == "builtins" else None)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None
