"""``redistq trigger NAME``: one task added from a shell, and its result waited for.

It prints the task's id alone, or, with ``--wait``, its result as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from ..display.text import clean
from ..errors import (
    ConfigurationError,
    EmbeddedServerError,
    PayloadError,
    PayloadTooLarge,
    RedistqError,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
)
from ..producer import TaskProducer
from ..protocol.keys import DEFAULT_QUEUE
from ..system.streams import written
from .complaint import complain

EXIT_OK = 0
EXIT_UNAVAILABLE = 1
EXIT_USAGE = 2
EXIT_FAILED = 3
EXIT_TIMEOUT = 4
EXIT_INTERRUPTED = 130

_EPILOG = """
examples:
  redistq trigger resize '{"path": "a.png"}'
  redistq trigger add --args '[2, 3]' --wait
  echo '{"path": "a.png"}' | redistq trigger resize - --delay 60

exit codes:
  0 added (with --wait: it succeeded), 1 the server is not available, 2 an argument is wrong,
  3 the task failed, was cancelled or has expired, 4 it had not ended when --timeout was over
"""
_OPTIONS: tuple[tuple[str, type, str, str], ...] = (
    ("--delay", float, "SECONDS", "run it so much later"),
    ("--retries", int, "N", "how often it is tried again after an error"),
    ("--task-id", str, "ID", "its id: one that is known adds nothing"),
    ("--unique", str, "KEY", "nothing is added while a task with this key has not ended"),
    ("--expires", float, "SECONDS", "it does not run at all unless it has started by then"),
)
"""Options of the task, each of the same name as TaskProducer.add_task's."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = argparse.ArgumentParser(
        prog="redistq trigger",
        description="Add a task; with --wait, print its result.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("name", help="the task's name")
    p.add_argument("payload", nargs="?", help="its payload, JSON; - reads it from standard input")
    call = p.add_argument_group("for a task that takes arguments")
    call.add_argument("--args", metavar="JSON", help="the arguments by position, such as '[1, 2]'")
    call.add_argument(
        "--kwargs", metavar="JSON", help="the arguments by name, such as '{\"b\": 3}'"
    )
    task = p.add_argument_group("the task")
    for flag, kind, unit, what in _OPTIONS:
        task.add_argument(flag, type=kind, metavar=unit, help=what)
    end = p.add_argument_group("its end")
    end.add_argument("--wait", action="store_true", help="wait until it has ended")
    end.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer than this")
    end.add_argument("--json", action="store_true", help="print one object: id, state, result")
    where = p.add_argument_group("where")
    where.add_argument("--url", help="the server ($REDISTQ_URL, localhost, or the embedded one)")
    where.add_argument("--queue", default=DEFAULT_QUEUE, help="the queue's name (%(default)s)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Add the task; return the exit code."""
    return written(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    logging.getLogger("redistq").addHandler(logging.NullHandler())
    try:
        payload = _payload_of(args)
        options = {flag.strip("-").replace("-", "_"): None for flag, *_ in _OPTIONS}
        given = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
        with TaskProducer(url=args.url, stream=args.queue) as producer:
            task_id = producer.add_task(args.name, payload, **given)
            return _end_of(producer, task_id, args) if args.wait else _added(task_id, args)
    except (ConfigurationError, PayloadError, PayloadTooLarge) as error:
        return complain(error, EXIT_USAGE)
    except (RedistqError, EmbeddedServerError) as error:
        return complain(error, EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _payload_of(args: argparse.Namespace) -> Any:
    """Return the payload; raises ConfigurationError for what is no JSON."""
    if args.args is None and args.kwargs is None:
        if args.payload is None:
            return None
        return _read("the payload", sys.stdin.read() if args.payload == "-" else args.payload)
    if args.payload is not None:
        raise ConfigurationError("a task has a payload, or --args and --kwargs, not both")
    positional = _read("--args", args.args or "[]")
    named = _read("--kwargs", args.kwargs or "{}")
    if not isinstance(positional, list) or not isinstance(named, dict):
        raise ConfigurationError("--args is a JSON list, and --kwargs a JSON object")
    return {"args": positional, "kwargs": named}


def _read(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        hint = "; text stands in quotes of its own: '\"text\"'" if text[:1] not in "[{" else ""
        raise ConfigurationError(f"{what} is no JSON: {error}{hint}") from error


def _added(task_id: str, args: argparse.Namespace) -> int:
    outcome = str(getattr(task_id, "outcome", "added"))
    if args.json:
        print(json.dumps({"task_id": str(task_id), "state": outcome}))
    else:
        print(task_id)
    return EXIT_OK


def _end_of(producer: TaskProducer, task_id: str, args: argparse.Namespace) -> int:
    """Wait for the task; print what became of it, and return the exit code."""
    said: dict[str, Any] = {"task_id": str(task_id)}
    try:
        result = producer.get_result(task_id, timeout=args.timeout)
    except ResultTimeout as error:
        code, said["state"], said["error"] = EXIT_TIMEOUT, "waiting", str(error)
    except (TaskCancelled, TaskExpired, TaskFailed) as error:
        state = producer.get_task(task_id).state
        code, said["state"], said["error"] = EXIT_FAILED, state, str(error)
    else:
        code, said["state"], said["result"] = EXIT_OK, "succeeded", result
    if args.json:
        print(json.dumps(said))
    elif code == EXIT_OK:
        print(json.dumps(said["result"]))
    else:
        print(f"redistq: {clean(said['error'], 4000)}", file=sys.stderr)
    return code
