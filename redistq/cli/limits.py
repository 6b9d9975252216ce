"""``redistq monitor limits``, ``purge-queue`` and ``drain``: what may run, seen and changed.

Made part of ``redistq monitor`` by ``add_to``. It changes a queue through its producer alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ..display.text import clean, plural
from ..errors import ConfigurationError
from ..monitor import columns
from ..monitor.monitor import TaskMonitor
from ..producer.clearing import lanes_of
from ..protocol.limits import EXCESS, ON_FAILURE
from . import tables

EXIT_NOT_FOUND = 3


def add_to(
    add: Callable[..., Any], where: argparse.ArgumentParser, positive: Callable[[str], int]
) -> None:
    """Add the commands; ``where`` has the options that say which queue."""
    what = "the limits of the queue: how far each is used up, and how many tasks wait for it"
    shown = add("limits", what, _limits, listing=True)
    shown.add_argument("-n", type=positive, default=50, help="most rows (%(default)s)")
    actions = shown.add_subparsers(dest="action", metavar="what to change")

    def change(name: str, help_: str, run: Callable[..., int]) -> argparse.ArgumentParser:
        p: argparse.ArgumentParser = actions.add_parser(
            name, help=help_, description=help_, parents=[where]
        )
        p.add_argument("key", help="the limit's key; 'tenant:*' stands for all that begin so")
        p.set_defaults(run=run)
        return p

    rule = change("set", "let a rule hold for a key from now on, in place of the one before", _set)
    rule.add_argument("--at-most", type=positive, help="tasks that are ready or running at a time")
    rule.add_argument("--rate", type=float, help="tasks let in, each --per")
    rule.add_argument("--per", default="1", help="seconds, or a time such as 1m (%(default)s)")
    rule.add_argument("--burst", type=positive, help="tasks that --rate lets in at once (1)")
    rule.add_argument(
        "--excess",
        choices=EXCESS,
        default="wait",
        help="what becomes of a task that finds no room (%(default)s)",
    )
    rule.add_argument("--weight", type=positive, help="the weight of a group's fair share")
    rule.add_argument(
        "--on-failure",
        choices=ON_FAILURE,
        default="skip",
        help="what a final failure does to a key of a strict order (%(default)s)",
    )
    change("delete", "take a key's rule away; its tasks go on", _delete)
    change("pause", "let no other task of a key in; what runs goes on", _pause)
    change("resume", "end a key's pause", _resume)
    change(
        "penalize", "let no other task of a key in for a while, as after a 429", _penalize
    ).add_argument("--for", dest="seconds", required=True, help="seconds, or a time such as 1m")

    what = "give back slots whose entries others have deleted, and let in what has room"
    again = actions.add_parser("recount", help=what, description=what, parents=[where])
    again.set_defaults(run=_recount)

    purge = add(
        "purge-queue",
        "cancel every task that has not started: waiting, delayed and queued, of all priorities; "
        "running ones and dead letters are left alone",
        _purge_queue,
    )
    purge.add_argument("--yes", action="store_true", help="do not ask")
    drain = add(
        "drain",
        "wait until no task of the queue waits or runs, of all priorities; changes nothing",
        _drain,
    )
    drain.add_argument("--for", dest="seconds", help="give up after that long (exit code 3)")


def _limits(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    rows = monitor.records.limits(args.n)
    if args.json:
        tables.write_json(tables.plain(columns.LIMITS, rows))
    elif args.csv:
        lines = (tables.plain_row(columns.LIMITS, row) for row in rows)
        tables.write_csv(tables.fields(columns.LIMITS), lines)
    else:
        out = tables.console()
        if rows:
            out.print(tables.table("limits", columns.LIMITS, rows, out, monitor.now_ms()))
        else:
            out.print("No limits: redistq monitor limits set KEY --at-most N", markup=False)
    return 0


def _set(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    before = monitor.producer.limits.set(
        args.key,
        at_most=args.at_most,
        rate=args.rate,
        per=args.per,
        burst=args.burst,
        excess=args.excess,
        weight=args.weight,
        on_failure=args.on_failure,
    )
    print(f"limit {clean(args.key, 200)} is set" + (f"; it was {before}" if before else ""))
    return 0


def _delete(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    if monitor.producer.limits.delete(args.key):
        print(f"limit {clean(args.key, 200)} is deleted: nothing limits it")
        return 0
    print(f"redistq: {clean(args.key, 200)} has no rule", file=sys.stderr)
    return EXIT_NOT_FOUND


def _pause(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    monitor.producer.limits.pause(args.key)
    print(f"{clean(args.key, 200)} is paused")
    return 0


def _resume(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    monitor.producer.limits.resume(args.key)
    print(f"{clean(args.key, 200)} is resumed")
    return 0


def _penalize(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    monitor.producer.limits.penalize(args.key, _span(args.seconds))
    print(f"{clean(args.key, 200)} lets nothing in for {args.seconds}")
    return 0


def _recount(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    wrong = monitor.producer.limits.recount()
    for key, (before, after) in sorted(wrong.items()):
        print(f"{clean(key, 200)}: {plural(before, 'slot')} in use, in truth {after}")
    if not wrong:
        print("every slot in use has its task")
    return 0


def _span(text: str) -> float | str:
    """Return a number of seconds, or the time as it was written ("1m")."""
    try:
        return float(text)
    except ValueError:
        return text


def _purge_queue(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    if not args.yes:
        need_terminal("purge-queue")
        left = _left(monitor)
        if not confirmed(
            f"Cancel {plural(left, 'task')} of all priorities? This cannot be undone."
        ):
            print("nothing was cancelled")
            return 0
    counts = monitor.producer.purge_queue()
    parts = ", ".join(f"{count:,} {place}" for place, count in counts.items() if count)
    print(f"{plural(sum(counts.values()), 'task')} cancelled" + (f" ({parts})" if parts else ""))
    return 0


def _left(monitor: TaskMonitor) -> int:
    """Return how many tasks of a queue have not started, of all priorities."""
    shots = [
        lane.read_snapshot(monitor.broker.call(lane.snapshot(1)))
        for lane in lanes_of(monitor.commands).values()
    ]
    return sum(shot.ready + shot.delayed for shot in shots) + shots[0].waiting


def _drain(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    shown = -1
    live = sys.stdout.isatty()

    def watch(left: int) -> None:
        nonlocal shown
        if live and left != shown:
            print(f"\r{plural(left, 'task')} left\x1b[K", end="", flush=True)
            shown = left

    empty = monitor.producer.drain(None if args.seconds is None else _span(args.seconds), watch)
    if live:
        print()
    if empty:
        print(f"queue {clean(monitor.queue)} is empty")
        return 0
    print(f"redistq: not empty yet: {monitor.tick().health[1]}", file=sys.stderr)
    return EXIT_NOT_FOUND


def need_terminal(command: str) -> None:
    """Raise ConfigurationError where no terminal is there to ask at."""
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{command} needs --yes without a terminal")


def confirmed(question: str) -> bool:
    """Ask at the terminal; anything but yes is no."""
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
