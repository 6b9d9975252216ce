"""``redistq monitor steps`` and ``send-event``: what a task has done, and what it waits for, sent.

Made part of ``redistq monitor`` by ``add_to``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ..display.text import clean, clock, duration, iso, plural
from ..errors import ConfigurationError
from ..functions.signing import Signer, key_from, user_key
from ..functions.steps import signed_event
from ..monitor.monitor import TaskMonitor
from ..producer.sansio import run
from ..producer.steps import sending
from ..protocol.keys import without_priority
from ..protocol.steps import StepStatus
from . import tables

_FIELDS = ("number", "name", "kind", "at", "run_s", "size")


def add_to(add: Callable[..., Any]) -> None:
    """Add the commands."""
    steps = add("steps", "the steps that a task has done, in order", _steps, listing=True)
    steps.add_argument("id", help="the task's id")
    send = add(
        "send-event",
        "let the tasks go on that wait for an event, and keep it for those that will",
        _send_event,
    )
    send.add_argument("name", help="the event's name")
    send.add_argument("--payload", default="null", help="what goes with it, as JSON (null)")
    send.add_argument("--task", metavar="ID", help="a message to that task alone")
    send.add_argument("--keep", default="7d", help="how long it is kept (%(default)s)")


def _steps(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    steps = monitor.producer.steps(args.id)
    if args.json:
        tables.write_json([dict(zip(_FIELDS, _row(step), strict=True)) for step in steps])
    elif args.csv:
        tables.write_csv(_FIELDS, map(_row, steps))
    elif not steps:
        monitor.producer.get_task(args.id)  # raises where there is none
        print(f"Task {clean(args.id, 200)} has done no steps.")
    for step in () if args.json or args.csv else steps:
        at = clock(int(step.at.timestamp() * 1000))
        ran = duration(step.run_time * 1000) if step.kind == "step" else ""
        what = f"{clean(step.name, 60):<24} {step.kind:<8}"
        print(f"{step.number:>4}  {at}  {what} {ran:>8} {step.size:>10,} bytes")
    return 0


def _row(step: StepStatus) -> tuple[Any, ...]:
    at = iso(int(step.at.timestamp() * 1000))
    return step.number, step.name, step.kind, at, step.run_time, step.size


def _send_event(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    try:
        payload = json.loads(args.payload)
    except ValueError as error:
        raise ConfigurationError(
            f'--payload is JSON, such as \'{{"by": "me"}}\' or \'"yes"\': {error}'
        ) from error
    from ..connection.embedded import default_home

    commands = monitor.producer.commands
    # Signed as this user's clients do: functions take no other. Named handlers take either.
    signer = Signer(key_from(None) or user_key(default_home()))
    stream = without_priority(commands.keys.stream)
    body = signed_event(signer, stream, args.name, payload, args.task or "")
    count = run(monitor.producer.broker, sending(commands, args.name, body, args.task, args.keep))
    goes = "goes" if count == 1 else "go"
    print(f"event {clean(args.name, 200)} is sent: {plural(count, 'task')} {goes} on")
    return 0
