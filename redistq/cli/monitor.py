"""``redistq monitor`` and ``python -m redistq.cli_monitor``: a queue seen from a terminal.

Listings are tables for people and, with ``--json`` or ``--csv``, complete and stable for scripts.
It looks through TaskMonitor and knows no keys of its own.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..dashboard.words import title
from ..display.text import clean, duration, plural
from ..errors import ConfigurationError, EmbeddedServerError, RedistqError, UnknownTask
from ..monitor import columns
from ..monitor.monitor import TaskMonitor
from ..monitor.tick import STATS_EVENTS, stats_of
from ..protocol.commands import WISHES
from ..protocol.keys import DEFAULT_QUEUE
from ..system.interpreter import require
from ..system.streams import written
from . import events, limits, schedules, steps, tables
from .complaint import complain
from .listings import LISTINGS
from .which import ALL, monitor_of, queues_of, say_unknown, unknown_queue, which_queue

EXIT_OK = 0
EXIT_UNAVAILABLE = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_INTERRUPTED = 130

_EPILOG = """
where the server is:
  --url, else $REDISTQ_URL, else localhost:6379 when it answers, else the embedded server.

exit codes:
  0 done, 1 the server is not available or the output cannot be written, 2 a setting or an
  optional package is missing or wrong, 3 no such task, or (stats --check) the queue is not well
"""

Command = Callable[[TaskMonitor, argparse.Namespace], int]


def parser(prog: str = "python -m redistq.cli_monitor") -> argparse.ArgumentParser:
    """Return the command line's parser."""
    where = which_queue()
    form = argparse.ArgumentParser(add_help=False)
    how = form.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="JSON: every field, whole")
    how.add_argument("--csv", action="store_true", help="CSV: every field, whole")

    top = argparse.ArgumentParser(
        prog=prog,
        description="Look at a queue, and pause it, resume it or send its dead letters again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[where],
    )
    commands = top.add_subparsers(dest="command", metavar="command", required=True)

    def add(name: str, what: str, run: Command, *, listing: bool = False) -> Any:
        p = commands.add_parser(
            name, help=what, description=what, parents=[where, form] if listing else [where]
        )
        p.set_defaults(run=run)
        return p

    stats = add("stats", "every figure of the queue at one instant", _stats, listing=True)
    stats.add_argument(
        "--check", action="store_true", help="exit with 3 when work waits for nothing, or is late"
    )
    stats.add_argument("--max-age", type=float, help="with --check: oldest unread task, seconds")
    stats.add_argument("--max-dead", type=int, help="with --check: dead letters")
    for name, shown in LISTINGS.items():
        p = add(name, shown.what, _list, listing=True)
        if shown.rows:
            p.add_argument("-n", type=_positive, default=shown.rows, help="most rows (%(default)s)")
    task = add("task", "all that is known of one task", _task, listing=True)
    task.add_argument("id", help="the task's id")
    _add_verbs(add)
    limits.add_to(add, where, _positive)
    schedules.add_to(add, where, form, _positive)
    events.add_to(add)
    steps.add_to(add)
    _add_servers(add)
    return top


def _add_verbs(add: Callable[..., Any]) -> None:
    """Add the commands that change the queue."""
    add("pause", "let no worker start another task", _pause)
    add("resume", "end a pause", _resume)
    for name, what, run, all_of_them in (
        ("replay", "send dead letters again with a clean slate", _replay, "dead letters"),
        ("purge", "delete dead letters for good", _purge, "dead letters"),
        ("cancel", "cancel tasks that wait, and with --running others", _cancel, "waiting tasks"),
    ):
        p = add(name, what, run)
        option = "--waiting" if run is _cancel else "--all"
        p.add_argument("ids", nargs="*", metavar="id", help=f"of the tasks; or {option}")
        p.add_argument(option, action="store_true", dest="all", help=f"all {all_of_them}")
        if run is _cancel:
            _add_where(p)
        elif run is _replay:
            p.add_argument("--forget-steps", action="store_true", help="from their start")
        p.add_argument("--yes", action="store_true", help="do not ask")


def _add_where(p: argparse.ArgumentParser) -> None:
    """Add the options of cancel that say what of, and what is wished of running tasks."""
    p.add_argument("--name", help="all tasks with this name")
    p.add_argument("--batch", help="all tasks of this batch")
    p.add_argument("--limit", type=int, help="with --name or --batch: most tasks touched")
    p.add_argument(
        "--running",
        choices=WISHES,
        help="what is wished of tasks that run: ask them to end, or kill their process five "
        "seconds later",
    )


def _add_servers(add: Callable[..., Any]) -> None:
    """Add the commands that go on until a signal or a key ends them."""
    served = "; `redistq web` (or dashboard --serve) shows all queues in a browser"
    live = add("dashboard", f"a live screen (q leaves it); piped, one picture{served}", _dashboard)
    live.add_argument(
        "--interval", type=float, default=0.35, help="seconds between pictures (%(default)g)"
    )
    metrics = add("metrics", "serve the queue's figures to Prometheus until a signal", _metrics)
    metrics.add_argument("--port", type=int, required=True, help="where they are served")
    metrics.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")


def main(argv: Sequence[str] | None = None, prog: str = "python -m redistq.cli_monitor") -> int:
    """Run one command; return the exit code."""
    return written(lambda: _main(argv, prog))


def _main(argv: Sequence[str] | None, prog: str) -> int:
    args = parser(prog).parse_args(argv)
    # Warnings about the server are the workers' to give; a log line would tear a table apart.
    logging.getLogger("redistq").addHandler(logging.NullHandler())
    if sys.stdout is None:  # closed: the caller wants the exit code alone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a glyph that the terminal cannot show
    try:
        names = queues_of(args)
        with monitor_of(args, names[0] if names and names[0] != ALL else DEFAULT_QUEUE) as monitor:
            code: int = args.run(monitor, args)
            return code
    except (ConfigurationError, ImportError) as error:
        return complain(error, EXIT_USAGE)
    except UnknownTask as error:
        return complain(error, EXIT_NOT_FOUND)
    except (RedistqError, EmbeddedServerError) as error:
        return complain(error, EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


# -- listings ------------------------------------------------------------------------------------


def _list(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    shown = LISTINGS[args.command]
    listing = shown.listing
    records = shown.read(monitor, getattr(args, "n", 0))
    if args.json:
        tables.write_json(tables.plain(listing, records))
    elif args.csv:
        rows = (tables.plain_row(listing, record) for record in records)
        tables.write_csv(tables.fields(listing), rows)
    else:
        out = tables.console()
        if records:
            out.print(tables.table(args.command, listing, records, out, monitor.now_ms()))
        else:
            out.print(shown.empty, markup=False)
            say_unknown(monitor, args)
    return EXIT_OK


def _stats(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    tick = monitor.tick(events=STATS_EVENTS, dead=1, running=1, batches=1)
    values = stats_of(tick, monitor.queue)
    ailing = []
    if args.check:
        if values["health"] in ("bad", "warning"):
            ailing.append(values["reason"])
        if args.max_age is not None and values["oldest_age_s"] > args.max_age:
            ailing.append(f"the oldest unread task waits for {values['oldest_age_s']:.1f} s")
        if args.max_dead is not None and values["dead"] > args.max_dead:
            ailing.append(plural(values["dead"], "dead letter"))
    shown = tables.facts_of_stats(values)
    if args.check:
        shown["ailing"] = ailing
    if args.json:
        tables.write_json(shown)
    elif args.csv:
        shown.pop("ailing", None)
        tables.write_csv(list(shown), [list(shown.values())])
    else:
        _print_stats(shown, monitor)
        say_unknown(monitor, args)
        for sentence in ailing:
            print(f"redistq: {clean(sentence, 400)}", file=sys.stderr)
    return EXIT_NOT_FOUND if ailing else EXIT_OK


def _print_stats(values: dict[str, Any], monitor: TaskMonitor) -> None:
    out = tables.console()
    text = require("rich.text", "cli", "tables")
    grid = require("rich.table", "cli", "tables").Table.grid(padding=(0, 2))
    due = values["next_due_s"]
    rows = (
        ("queue", f"{clean(values['queue'], 200)} at {clean(monitor.url, 400)}"),
        ("health", f"{values['health']}: {values['reason']}"),
        ("queued", f"{values['queue_length']:,}"),
        ("oldest", duration(values["oldest_age_s"] * 1000) if values["queue_length"] else "–"),
        ("running", f"{values['running']:,} of {values['pending']:,} in workers' hands"),
        ("delayed", f"{values['delayed']:,}"),
        ("next due", "–" if due is None else tables.human("span", due * 1000, 0)),
        ("waiting", f"{values['waiting']:,}"),
        ("dead", f"{values['dead']:,}"),
        ("workers", f"{values['workers']:,} with {plural(values['slots'], 'thread')}"),
        ("per second", f"{values['throughput']:,.1f} settled, over the last minute"),
        ("succeeded", f"{values['succeeded']:,}"),
        ("failed", f"{values['failed']:,}"),
        ("retried", f"{values['retried']:,}"),
        ("recovered", f"{values['recovered']:,}"),
        ("cancelled", f"{values['cancelled']:,}"),
        ("expired", f"{values['expired']:,}"),
        ("paused", "yes" if values["paused"] else "no"),
        ("as of", values["as_of"]),
    )
    for name, value in rows:
        grid.add_row(text.Text(name, style="bold"), text.Text(str(value)))
    out.print(grid)


def _task(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    task = monitor.records.task(args.id)
    attempts = task.attempts()
    if args.json:
        tables.write_json(tables.facts_of_task(task))
    elif args.csv:
        rows = (tables.plain_row(columns.ATTEMPTS, attempt) for attempt in attempts)
        tables.write_csv(tables.fields(columns.ATTEMPTS), rows)
    else:
        out = tables.console()
        text = require("rich.text", "cli", "tables")
        out.print(
            text.Text(clean(f"{task.id}  {title(task.name)}  {task.state}", 500), style="bold")
        )
        if task.why:
            out.print(text.Text(clean(task.why, 1000)))
        out.print(tables.table("task", columns.ATTEMPTS, attempts, out, monitor.now_ms()))
        for name in ("payload", "result"):
            if value := getattr(task, name):
                out.print(text.Text(f"{name}: {clean(value, 400)}"))
        for name, value in task.headers.items():
            out.print(text.Text(f"header {clean(name, 200)}: {clean(value, 400)}"))
        if task.error_type or task.error:
            out.print(text.Text(clean(f"{task.error_type}: {task.error}", 4000), style="red"))
        if task.traceback:
            out.print(text.Text(clean(task.traceback.rstrip(), 40_000)))
    return EXIT_OK


# -- verbs ---------------------------------------------------------------------------------------


def _pause(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    monitor.pause()
    print(f"queue {clean(monitor.queue)} is paused")
    return EXIT_OK


def _resume(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    monitor.resume()
    print(f"queue {clean(monitor.queue)} is resumed")
    return EXIT_OK


def _replay(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    anew: bool = args.forget_steps

    def replay(*ids: str) -> int:
        return monitor.producer.replay(*ids, forget_steps=anew)

    return _on_dead(monitor, args, replay, "replayed", "Send", "again")


def _purge(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    return _on_dead(monitor, args, monitor.purge, "purged", "Delete", "for good")


def _on_dead(
    monitor: TaskMonitor,
    args: argparse.Namespace,
    verb: Callable[..., int],
    done: str,
    ask: str,
    how: str,
) -> int:
    if bool(args.ids) == args.all:
        raise ConfigurationError(f"{args.command} takes task ids, or --all, one of the two")
    if args.all and not args.yes:
        limits.need_terminal(f"{args.command} --all")
        if not limits.confirmed(f"{ask} {plural(monitor.snapshot().dead, 'dead letter')} {how}?"):
            print(f"nothing was {done}")
            return EXIT_OK
    count = verb(*args.ids)
    print(f"{plural(count, 'task')} {done}")
    if count < len(args.ids):
        print("redistq: the others are no dead letters (or are corrupt)", file=sys.stderr)
        return EXIT_NOT_FOUND
    return EXIT_OK


def _cancel(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    where = bool(args.name or args.batch)
    if bool(args.ids) + args.all + where != 1:
        raise ConfigurationError(
            "cancel takes task ids, or --waiting, or --name and --batch, one of the three"
        )
    if args.all:
        return _cancel_waiting(monitor, args)
    if where:
        return _cancel_where(monitor, args)
    states = monitor.cancel(*args.ids, running=args.running)
    for task_id, state in states.items():
        print(f"{clean(task_id, 200)} {state}")
    done = {"cancelled", "asked"}.issuperset(states.values())
    return EXIT_OK if done else EXIT_NOT_FOUND


def _cancel_where(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    what = " ".join(
        f"{option} {clean(value, 200)}"
        for option, value in (("name", args.name), ("batch", args.batch))
        if value
    )
    if not args.yes:
        limits.need_terminal("cancel --name or --batch")
        if not limits.confirmed(f"Cancel all tasks of {what}? This cannot be undone."):
            print("nothing was cancelled")
            return EXIT_OK
    words = monitor.producer.cancel_where(
        name=args.name, batch=args.batch, running=args.running, limit=args.limit
    )
    for word, count in sorted(words.items()):
        print(f"{plural(count, 'task')} {word}")
    if not words:
        print(f"no task of {what} has yet to end", file=sys.stderr)
    return EXIT_OK if words else EXIT_NOT_FOUND


def _cancel_waiting(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    if not args.yes:
        limits.need_terminal("cancel --waiting")
        shot = monitor.snapshot()
        count = shot.ready + shot.delayed + shot.waiting
        waiting = plural(count, "waiting task")
        if not limits.confirmed(f"Cancel {waiting}? This cannot be undone."):
            print("nothing was cancelled")
            return EXIT_OK
    print(f"{plural(monitor.cancel_waiting(), 'task')} cancelled")
    return EXIT_OK


def _dashboard(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    from .overview import run_several
    from .screen import run

    names = queues_of(args)
    if len(set(names)) > 1 or ALL in names:
        if hasattr(args, "delayed_key"):
            raise ConfigurationError("--delayed-key is of one queue, with one --queue")
        return run_several(monitor, names, args.interval, partial(monitor_of, args))
    return run(monitor, interval=args.interval, unknown=unknown_queue(monitor) if names else "")


def _metrics(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    from ..monitor.metrics import serve_until_signal

    return serve_until_signal(monitor, args.port, args.host)
