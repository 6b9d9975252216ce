"""``redistq schedules``, also ``redistq monitor schedules``: periodic tasks, seen and changed.

Made part of the commands by ``add_to``. It changes a queue through its producer alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ..display.text import clean, plural
from ..errors import ConfigurationError, UnknownSchedule
from ..monitor import columns
from ..monitor.monitor import TaskMonitor
from ..protocol.schedules import MISSED, OVERLAP
from ..protocol.timing import ZONE, zone_of
from . import tables

EXIT_NOT_FOUND = 3
_NONE = "No schedules: redistq schedules set NAME --cron '0 6 * * mon' --task TASK"


def add_to(
    add: Callable[..., Any],
    where: argparse.ArgumentParser,
    form: argparse.ArgumentParser,
    positive: Callable[[str], int],
) -> None:
    """Add the commands; ``where`` has the options that say which queue, ``form`` those of a
    listing."""
    what = "periodic tasks: when each fires, and what became of the last one"
    shown = add("schedules", what, _list, listing=True)
    shown.add_argument("-n", type=positive, default=100, help="most rows (%(default)s)")
    actions = shown.add_subparsers(dest="action", metavar="what to do")

    def action(
        name: str, help_: str, run: Callable[..., int], *, named: bool = True, listing: bool = False
    ) -> argparse.ArgumentParser:
        p: argparse.ArgumentParser = actions.add_parser(
            name, help=help_, description=help_, parents=[where, form] if listing else [where]
        )
        if named:
            p.add_argument("name", help="the schedule's name")
        p.set_defaults(run=run)
        return p

    listed = action("list", what, _list, named=False, listing=True)
    listed.add_argument("-n", type=positive, default=100, help="most rows (%(default)s)")
    rule = action("set", "let a task be added at these times from now on", _set)
    _add_rule(rule)
    rule.add_argument("--task", required=True, help="the name of the task")
    rule.add_argument("--payload", default="null", help="its payload, JSON (%(default)s)")
    rule.add_argument("--missed", choices=MISSED, default="once", help="(%(default)s)")
    rule.add_argument("--overlap", choices=OVERLAP, default="skip", help="(%(default)s)")
    rule.add_argument("--paused", action="store_true", default=None, help="fire nothing yet")
    rule.add_argument("--retries", type=int, help="attempts after the first that fails")
    rule.add_argument("--time-limit", help="seconds for one attempt, or a time such as 10m")
    action("pause", "fire no more until it is resumed", _pause)
    action("resume", "end a pause", _resume)
    action("run", "add its task at once; prints the id", _run)
    action("delete", "fire no more, for good; its tasks stay", _delete)
    preview = action("preview", "the next times of a rule; sets nothing", _preview, named=False)
    _add_rule(preview)
    preview.add_argument("-n", type=positive, default=5, help="how many (%(default)s)")
    backfill = action("backfill", "add the tasks of occurrences that have been", _backfill)
    backfill.add_argument("start", help="2026-03-01T00:00, by the schedule's zone if it says none")
    backfill.add_argument("end", help="as start")


def _add_rule(parser: argparse.ArgumentParser) -> None:
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--cron", help="minute hour day month weekday; seconds may come first")
    when.add_argument("--every", help="seconds, or a time such as 15m")
    parser.add_argument("--tz", default=ZONE, help="the time zone of --cron (%(default)s)")


def _list(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    rows = monitor.records.schedules(args.n)
    if args.json:
        tables.write_json(tables.plain(columns.SCHEDULES, rows))
    elif args.csv:
        lines = (tables.plain_row(columns.SCHEDULES, row) for row in rows)
        tables.write_csv(tables.fields(columns.SCHEDULES), lines)
    else:
        out = tables.console()
        if rows:
            out.print(tables.table("schedules", columns.SCHEDULES, rows, out, monitor.now_ms()))
        else:
            out.print(_NONE, markup=False)
    return 0


def _set(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    try:
        payload = json.loads(args.payload)
    except ValueError as error:
        raise ConfigurationError(f"--payload is JSON, such as '{{\"week\": 7}}': {error}") from None
    made = monitor.producer.schedules.set(
        args.name,
        cron=args.cron,
        every=_span(args.every),
        task=args.task,
        payload=payload,
        tz=args.tz,
        missed=args.missed,
        overlap=args.overlap,
        paused=args.paused,
        retries=args.retries,
        timeout=_span(args.time_limit),
    )
    when = "is paused" if made.next is None else f"fires next at {_shown(made.next)}"
    print(f"schedule {clean(args.name, 200)} is set: {clean(made.rule, 400)}; it {when}")
    return 0


def _pause(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    return _on_known(args, lambda name: monitor.producer.schedules.pause(name), "is paused")


def _resume(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    return _on_known(args, lambda name: monitor.producer.schedules.resume(name), "is resumed")


def _run(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    try:
        task_id = monitor.producer.schedules.run_now(args.name)
    except UnknownSchedule as error:
        return _missing(error)
    print(clean(task_id, 200))
    if task_id.outcome == "joined":
        print("redistq: that task has not ended, and no other runs beside it", file=sys.stderr)
    return 0


def _delete(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    if monitor.producer.schedules.delete(args.name):
        print(f"schedule {clean(args.name, 200)} is deleted")
        return 0
    return _missing(UnknownSchedule(args.name))


def _preview(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    times = monitor.producer.schedules.preview(args.cron, args.tz, args.n, every=_span(args.every))
    for at in times:
        print(_shown(at))
    return 0


def _backfill(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    try:
        schedule = monitor.producer.schedules[args.name]
        start, end = (_moment(text, schedule.timing.tz) for text in (args.start, args.end))
        ids = monitor.producer.schedules.backfill(args.name, start, end)
    except UnknownSchedule as error:
        return _missing(error)
    known = sum(task_id.outcome == "known" for task_id in ids)
    print(
        f"{plural(len(ids) - known, 'task')} added"
        + (f", {known:,} there already" if known else "")
    )
    return 0


def _on_known(args: argparse.Namespace, verb: Callable[[str], None], done: str) -> int:
    try:
        verb(args.name)
    except UnknownSchedule as error:
        return _missing(error)
    print(f"schedule {clean(args.name, 200)} {done}")
    return 0


def _missing(error: UnknownSchedule) -> int:
    print(f"redistq: there is no schedule {clean(error.name, 200)}", file=sys.stderr)
    return EXIT_NOT_FOUND


def _shown(at: datetime) -> str:
    """Return a time to read, in its zone: two times of a repeated hour differ."""
    return f"{at:%Y-%m-%d %H:%M:%S %Z (%a)}"


def _span(text: str | None) -> float | str | None:
    """Return a number of seconds, or the time as it was written ("1m")."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _moment(text: str, tz: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"a moment is 2026-03-01 or 2026-03-01T06:00, with or without +01:00, not {text!r:.60}"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=zone_of(tz))
