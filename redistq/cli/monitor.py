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
from typing import Any

from .._optional import require
from ..display.text import clean, duration, plural
from ..errors import ConfigurationError, EmbeddedServerError, RedistqError, UnknownTask
from ..monitor import columns as listings
from ..monitor.columns import Listing
from ..monitor.monitor import TaskMonitor
from ..monitor.records import STATS_EVENTS, stats_of, workers_of
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE
from ..system.stdout import written
from . import tables as output

EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE, EXIT_NOT_FOUND = 0, 1, 2, 3
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
    """The command line."""
    where = argparse.ArgumentParser(add_help=False)
    group = where.add_argument_group("which queue")
    nothing = argparse.SUPPRESS  # may stand before or after the command
    group.add_argument("--url", default=nothing, help="redis://, rediss://, unix://, ...")
    group.add_argument("--queue", default=nothing, help=f"the queue's name ({DEFAULT_QUEUE})")
    group.add_argument("--group", default=nothing, help=f"consumer group ({DEFAULT_GROUP})")
    group.add_argument("--delayed-key", default=nothing, help="its sorted set of delayed tasks")
    group.add_argument(
        "--timeout", type=float, default=nothing, help="seconds to wait for the server (5)"
    )
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
    for name, what, _, _, many_rows in _LISTINGS:
        p = add(name, what, _list, listing=True)
        if many_rows:
            p.add_argument("-n", type=_positive, default=many_rows, help="most rows (%(default)s)")
    task = add("task", "all that is known of one task", _task, listing=True)
    task.add_argument("id", help="the task's id")

    add("pause", "let no worker start another task", _pause)
    add("resume", "end a pause", _resume)
    for name, what, run in (
        ("replay", "send dead letters again with a clean slate", _replay),
        ("purge", "delete dead letters for good", _purge),
    ):
        p = add(name, what, run)
        p.add_argument("ids", nargs="*", metavar="id", help="of the tasks; or --all")
        p.add_argument("--all", action="store_true", help="all dead letters")
        p.add_argument("--yes", action="store_true", help="do not ask")
    cancel = add("cancel", "cancel tasks that wait; running ones are left alone", _cancel)
    cancel.add_argument("ids", nargs="+", metavar="id", help="of the tasks")

    served = "; `redistq dashboard --serve` makes a web page of it (--serve --help: its options)"
    live = add("dashboard", f"a live screen (q leaves it); piped, one picture{served}", _dashboard)
    live.add_argument(
        "--interval", type=float, default=0.35, help="seconds between pictures (%(default)g)"
    )
    metrics = add("metrics", "serve the queue's figures to Prometheus until a signal", _metrics)
    metrics.add_argument("--port", type=int, required=True, help="where they are served")
    metrics.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    return top


def main(argv: Sequence[str] | None = None, prog: str = "python -m redistq.cli_monitor") -> int:
    """Run one command; answers the exit code."""
    return written(lambda: _main(argv, prog))


def _main(argv: Sequence[str] | None, prog: str) -> int:
    args = parser(prog).parse_args(argv)
    # Warnings about the server are the workers' to give; a log line would tear a table apart.
    logging.getLogger("redistq").addHandler(logging.NullHandler())
    if sys.stdout is None:  # closed by who wants the exit code alone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a glyph that the terminal cannot show
    try:
        with TaskMonitor(
            url=getattr(args, "url", None),
            stream=getattr(args, "queue", DEFAULT_QUEUE),
            group=getattr(args, "group", DEFAULT_GROUP),
            delayed_key=getattr(args, "delayed_key", None),
            timeout=getattr(args, "timeout", 1.0 if args.command == "dashboard" else 5.0),
        ) as monitor:
            code: int = args.run(monitor, args)
            return code
    except (ConfigurationError, ImportError) as error:
        return _complain(error, EXIT_USAGE)
    except UnknownTask as error:
        return _complain(error, EXIT_NOT_FOUND)
    except (RedistqError, EmbeddedServerError) as error:
        return _complain(error, EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _complain(error: BaseException, code: int) -> int:
    print(f"redistq: {clean(str(error), 2000)}", file=sys.stderr)
    return code


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


# -- listings ------------------------------------------------------------------------------------

_LISTINGS: tuple[tuple[str, str, Listing, Callable[[TaskMonitor, int], list[Any]], int], ...] = (
    (
        *("workers", "worker processes and what each runs", listings.WORKERS),
        lambda m, _: workers_of(m.tick(events=1, workers=1000, running=1000, dead=1, batches=1)),
        0,
    ),
    (
        *("consumers", "the stream's consumers as the server lists them", listings.CONSUMERS),
        lambda m, _: m.records.consumers(),
        0,
    ),
    (
        *("recent", "the newest ends of attempts", listings.RECENT),
        lambda m, n: m.records.events(n),
        20,
    ),
    (
        *("pending", "tasks in workers' hands, oldest first", listings.PENDING),
        lambda m, n: m.records.pending(n),
        50,
    ),
    (
        *("delayed", "tasks that wait for their time, the next first", listings.DELAYED),
        lambda m, n: m.records.delayed(n),
        50,
    ),
    (
        *("dead", "failed tasks that are kept, newest first", listings.DEAD),
        lambda m, n: m.records.dead(n),
        20,
    ),
    (
        *("failures", "dead letters by error and task", listings.FAILURES),
        lambda m, n: m.records.failures(n),
        1000,
    ),
    (
        *("batches", "batches and how far each is, newest first", listings.BATCHES),
        lambda m, n: m.records.batches(n),
        20,
    ),
)
_NOTHING = {
    "workers": "No worker runs: redistq worker your.module",
    "consumers": "No consumers: no worker has asked for work yet.",
    "recent": "Nothing has ended yet.",
    "pending": "No worker holds a task.",
    "delayed": "Nothing is delayed.",
    "dead": "No dead letters.",
    "failures": "No dead letters.",
    "batches": "No batches.",
}


def _list(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    listing, read = next((row[2], row[3]) for row in _LISTINGS if row[0] == args.command)
    records = read(monitor, getattr(args, "n", 0))
    if args.json:
        output.write_json(output.plain(listing, records))
    elif args.csv:
        rows = (output.plain_row(listing, record) for record in records)
        output.write_csv(output.fields(listing), rows)
    else:
        out = output.console()
        if records:
            out.print(output.table(args.command, listing, records, out, _now_ms(monitor)))
        else:
            out.print(_NOTHING[args.command], markup=False)
    return EXIT_OK


def _now_ms(monitor: TaskMonitor) -> float:
    seconds, micros = monitor.broker.call(("TIME",))
    return int(seconds) * 1000 + int(micros) / 1000


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
    shown = {**values, "as_of": output.iso(values["as_of_ms"])}
    del shown["as_of_ms"]
    if args.check:
        shown["ailing"] = ailing
    if args.json:
        output.write_json(shown)
    elif args.csv:
        shown.pop("ailing", None)
        output.write_csv(list(shown), [list(shown.values())])
    else:
        _print_stats(shown, monitor)
        for sentence in ailing:
            print(f"redistq: {clean(sentence, 400)}", file=sys.stderr)
    return EXIT_NOT_FOUND if ailing else EXIT_OK


def _print_stats(values: dict[str, Any], monitor: TaskMonitor) -> None:
    out, text = output.console(), require("rich.text", "cli", "tables")
    grid = require("rich.table", "cli", "tables").Table.grid(padding=(0, 2))
    due = values["next_due_s"]
    rows = (
        ("queue", f"{clean(values['queue'], 200)} at {clean(monitor.url, 400)}"),
        ("health", f"{values['health']}: {values['reason']}"),
        ("waiting", f"{values['queue_length']:,}"),
        ("oldest", duration(values["oldest_age_s"] * 1000) if values["queue_length"] else "–"),
        ("running", f"{values['running']:,} of {values['pending']:,} in workers' hands"),
        ("delayed", f"{values['delayed']:,}"),
        ("next due", "–" if due is None else output.human("span", due * 1000, 0)),
        ("dead", f"{values['dead']:,}"),
        ("workers", f"{values['workers']:,} with {plural(values['slots'], 'thread')}"),
        ("per second", f"{values['throughput']:,.1f} settled, over the last minute"),
        ("succeeded", f"{values['succeeded']:,}"),
        ("failed", f"{values['failed']:,}"),
        ("retried", f"{values['retried']:,}"),
        ("recovered", f"{values['recovered']:,}"),
        ("cancelled", f"{values['cancelled']:,}"),
        ("paused", "yes" if values["paused"] else "no"),
        ("as of", values["as_of"]),
    )
    for name, value in rows:
        grid.add_row(text.Text(name, style="bold"), text.Text(str(value)))
    out.print(grid)


def _task(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    task = monitor.records.task(args.id)
    attempts = listings.attempts_of(task)
    if args.json:
        facts = ("name", "state", "attempt", "worker", "payload", "result")
        errors = ("error_type", "error", "traceback")
        output.write_json(
            {"task_id": task.id}
            | {name: getattr(task, name) for name in facts + errors}
            | {"attempts": output.plain(listings.ATTEMPTS, attempts)}
        )
    elif args.csv:
        rows = (output.plain_row(listings.ATTEMPTS, attempt) for attempt in attempts)
        output.write_csv(output.fields(listings.ATTEMPTS), rows)
    else:
        out, text = output.console(), require("rich.text", "cli", "tables")
        out.print(text.Text(clean(f"{task.id}  {task.name}  {task.state}", 500), style="bold"))
        out.print(output.table("task", listings.ATTEMPTS, attempts, out, _now_ms(monitor)))
        for name in ("payload", "result"):
            if value := getattr(task, name):
                out.print(text.Text(f"{name}: {clean(value, 400)}"))
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
    return _on_dead(monitor, args, monitor.replay, "replayed", "Send", "again")


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
        letters = plural(monitor.snapshot().dead, "dead letter")
        if not sys.stdin.isatty():
            raise ConfigurationError(f"{args.command} --all needs --yes without a terminal")
        if input(f"{ask} {letters} {how}? [y/N] ").strip().lower() not in ("y", "yes"):
            print(f"nothing was {done}")
            return EXIT_OK
    count = verb(*args.ids)
    print(f"{plural(count, 'task')} {done}")
    if count < len(args.ids):
        print("redistq: the others are no dead letters (or are corrupt)", file=sys.stderr)
        return EXIT_NOT_FOUND
    return EXIT_OK


def _cancel(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    answers = monitor.cancel(*args.ids)
    for task_id, state in answers.items():
        print(f"{clean(task_id, 200)} {state}")
    return EXIT_OK if set(answers.values()) == {"cancelled"} else EXIT_NOT_FOUND


def _dashboard(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    from .screen import run

    return run(monitor, interval=args.interval)


def _metrics(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    from ..monitor.metrics import serve_until_signal

    return serve_until_signal(monitor, args.port, args.host)
