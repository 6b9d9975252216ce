"""``redistq events``: what happens in a queue, one line an event, for people and for programs.

Made part of ``redistq monitor`` by ``add_to``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..dashboard.words import title
from ..display.text import clean, clock, duration
from ..monitor.events import TaskEvent
from ..monitor.monitor import TaskMonitor


def add_to(add: Callable[..., Any]) -> None:
    """Add the command."""
    p = add(
        "events", "what has happened to tasks, the oldest first; with --follow, as it does", run
    )
    p.add_argument(
        "-f", "--follow", action="store_true", help="from now on, until a signal (or --since)"
    )
    p.add_argument(
        "--since", metavar="CURSOR", help="what came after that event; 0: all that is kept"
    )
    p.add_argument(
        "--json", action="store_true", help="a JSON object a line, with the cursor of each event"
    )


def run(monitor: TaskMonitor, args: argparse.Namespace) -> int:
    """Print events; return the exit code."""
    for event in monitor.events(args.since, follow=args.follow):
        print(event.json() if args.json else line_of(event), flush=args.follow)
    return 0


def line_of(event: TaskEvent) -> str:
    """Return an event as a line for people."""
    if event.type == "gap":
        return f"{clock(event.at_ms)}  gap        events were missed: the history keeps no more"
    words = [f"attempt {event.attempt}"] if event.attempt > 1 else []
    if event.state:
        words.append(event.state)
    if event.done is not None:
        words.append(f"{event.done:g}" + ("" if event.total is None else f" of {event.total:g}"))
    if event.text:
        words.append(event.text)
    if event.worker:
        words.append(f"on {event.worker}")
    if event.run_ms is not None:
        words.append(f"after {duration(event.run_ms)}")
    if event.note:
        words.append(event.note)
    what = f"{event.id}  {title(event.name)}  {', '.join(words)}".rstrip()
    return f"{clock(event.at_ms)}  {event.type:<9}  {clean(what, 400)}"
