"""``redistq health``: one look at a queue for probes, which says by its exit code how it is."""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..display.text import clean
from ..errors import ConfigurationError, EmbeddedServerError, RedistqError
from ..monitor.monitor import TaskMonitor
from ..protocol.keys import DEFAULT_QUEUE
from ..protocol.snapshot import Snapshot, WorkerRow
from ..system.streams import written
from .complaint import complain

EXIT_WELL = 0
EXIT_ILL = 1
EXIT_USAGE = 2

_EPILOG = """
what is checked:
  the server answers; the queue has a worker whose heartbeat is in time (with --names: for each of
  these tasks; with --worker: on this host; not with --server-only); with --max-waiting-s: no task
  is ready, or due, for longer. A queue that is paused on purpose is not late.

exit codes:
  0 all is well, 1 something is not, and standard error says what, 2 an argument is wrong
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``words`` say what was found."""

    name: str
    ok: bool
    words: str


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = argparse.ArgumentParser(
        prog="redistq health",
        description="Say by the exit code whether a queue is well: for probes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--url", help="the server ($REDISTQ_URL, localhost, or the embedded one)")
    p.add_argument(
        "--queue", action="append", metavar="NAME", help=f"({DEFAULT_QUEUE}); may be repeated"
    )
    p.add_argument("--names", metavar="A,B", help="tasks that somebody must be able to run")
    p.add_argument("--worker", action="store_true", help="a worker on this very host must beat")
    p.add_argument("--server-only", action="store_true", help="ask for no worker")
    p.add_argument(
        "--max-waiting-s", type=float, metavar="SECONDS", help="longest wait of a ready or due task"
    )
    p.add_argument(
        "--timeout", type=float, default=5.0, help="seconds to wait for the server (%(default)g)"
    )
    p.add_argument("--json", action="store_true", help="print every check as JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Look once; return the exit code."""
    return written(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    logging.getLogger("redistq").addHandler(logging.NullHandler())
    names = tuple(name.strip() for name in (args.names or "").split(",") if name.strip())
    if args.server_only and (names or args.worker):
        print("redistq: --server-only asks for no worker, and needs no other", file=sys.stderr)
        return EXIT_USAGE
    checks: list[Check] = []
    try:
        for queue in args.queue or [DEFAULT_QUEUE]:
            checks += _look(args, queue, names)
    except ConfigurationError as error:
        return complain(error, EXIT_USAGE)
    except (RedistqError, EmbeddedServerError) as error:
        checks.append(Check("server", False, str(error)))
    well = all(check.ok for check in checks)
    if args.json:
        said: dict[str, Any] = {"healthy": well}
        said["checks"] = [{"name": c.name, "ok": c.ok, "words": c.words} for c in checks]
        print(json.dumps(said))
    else:
        for check in checks:
            where = sys.stdout if check.ok else sys.stderr
            sign = "ok" if check.ok else "redistq"
            print(f"{sign}: {clean(check.words, 1000)}", file=where)
    return EXIT_WELL if well else EXIT_ILL


def _look(args: argparse.Namespace, queue: str, names: Sequence[str]) -> list[Check]:
    with TaskMonitor(url=args.url, stream=queue, timeout=args.timeout) as monitor:
        shot = monitor.snapshot()
        checks = [Check("server", True, f"the server of queue {queue} answers")]
    if not args.server_only:
        checks += checks_of_workers(shot, queue, names, socket.gethostname() if args.worker else "")
    if args.max_waiting_s is not None:
        checks.append(check_of_waits(shot, queue, args.max_waiting_s))
    return checks


def checks_of_workers(
    shot: Snapshot, queue: str, names: Sequence[str] = (), host: str = ""
) -> list[Check]:
    """Return whether there are living workers: any, for each of these names, and on that host."""
    living = [worker for worker in shot.workers if worker.deadline_ms >= shot.now_ms]
    there = f"{len(living)} of {shot.workers_total} worker processes of queue {queue} beat"
    checks = [Check("workers", bool(living), there)]
    for name in names:
        able = sum(_runs(worker, name) for worker in living)
        checks.append(Check("name", able > 0, f"{able} of them run tasks named {name}"))
    if host:
        here = sum(worker.details.get("host") == host for worker in living)
        checks.append(Check("worker", here > 0, f"{here} of them are on this host, {host}"))
    return checks


def check_of_waits(shot: Snapshot, queue: str, most_s: float) -> Check:
    """Return whether nothing that may run waits for longer than that."""
    ready = 0 if shot.oldest_ms is None else shot.now_ms - shot.oldest_ms
    due = 0 if shot.next_due_ms is None else shot.now_ms - shot.next_due_ms
    longest = max(ready, due, 0) / 1000
    what = "due and not moved" if due > ready else "ready"
    words = f"the oldest task of queue {queue} that is {what} waits for {longest:.1f} s"
    if shot.paused:
        return Check("waiting", True, f"{words}; the queue is paused")
    limit = f"; the limit is {most_s:g} s" if longest > most_s else ""
    return Check("waiting", longest <= most_s, words + limit)


def _runs(worker: WorkerRow, name: str) -> bool:
    return name in worker.details.get("names", "").splitlines()
