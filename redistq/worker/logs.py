"""How workers log: lines for people, or JSON with the task that runs, one object a line.

Used by the worker's command and the processes it starts. ``TaskFields`` is for a program's own
handlers, too: with it, records have the task in whose handler they were logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import UTC, datetime
from typing import Any

from ..context import running_task

FORMATS = ("plain", "json")
"""What ``--log-format`` takes."""
FIELDS = ("task_id", "task_name", "attempt", "queue")
"""What a record has of its task."""
_STANDARD = frozenset(
    [*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "taskName"]
)


class TaskFields(logging.Filter):
    """Gives each record the task that logged it: FIELDS, where a task runs in this thread, or in
    this asynchronous context. What a record has of its own stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them; every record passes."""
        with contextlib.suppress(Exception):  # no line is lost for want of these
            task = running_task()
            if task is not None:
                values = (task.task_id, task.name, task.attempt, task.queue)
                for name, value in zip(FIELDS, values, strict=True):
                    record.__dict__.setdefault(name, value)
        return True


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: time, level, logger, message, process, the task's fields,
    what was given as ``extra``, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what JSON cannot hold is written as its repr."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        said.update((k, v) for k, v in record.__dict__.items() if k not in _STANDARD)
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            said["exception"] = record.exc_text
        if record.stack_info:
            said["stack"] = self.formatStack(record.stack_info)
        return json.dumps(said, default=repr, ensure_ascii=False)


def set_up(level: str, how: str, *, with_process: bool = False) -> None:
    """Log to standard error, unless this process logs already. ``with_process`` puts the process'
    number into plain lines."""
    process = "[%(process)d]" if with_process else ""
    plain = f"%(asctime)s %(levelname)s %(name)s{process}: %(message)s"
    if how != "json":
        logging.basicConfig(level=level, format=plain)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(TaskFields())
    logging.basicConfig(level=level, handlers=[handler])
