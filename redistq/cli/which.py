"""Which queue a command is of: its options, the monitor, and what is said of a misspelt name."""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path

from ..codecs.codec import Codec
from ..display.text import clean
from ..errors import ConfigurationError, RedistqError
from ..monitor.monitor import TaskMonitor
from ..monitor.queues import Queues
from ..protocol.keys import DEFAULT_GROUP, DEFAULT_QUEUE

ALL = "*"
"""Instead of a name: all queues that there are."""
_NAMES_SAID = 8


def which_queue() -> argparse.ArgumentParser:
    """Return the options that say which queue; they may stand before or after the command."""
    where = argparse.ArgumentParser(add_help=False)
    group = where.add_argument_group("which queue")
    nothing = argparse.SUPPRESS  # no default: it would undo what stands before the command
    group.add_argument("--url", default=nothing, help="redis://, rediss://, unix://, ...")
    group.add_argument(
        "--queue",
        action="append",
        default=nothing,
        help=f"the queue's name ({DEFAULT_QUEUE}); the live screen takes several, and '*' for all",
    )
    group.add_argument("--group", default=nothing, help=f"consumer group ({DEFAULT_GROUP})")
    group.add_argument("--delayed-key", default=nothing, help="its sorted set of delayed tasks")
    group.add_argument(
        "--codec", type=Path, default=nothing, metavar="FILE", help="what opens sealed tasks"
    )
    group.add_argument(
        "--timeout", type=float, default=nothing, help="seconds to wait for the server (5)"
    )
    return where


def queues_of(args: argparse.Namespace) -> list[str]:
    """Return the queues that are named. Raises ConfigurationError for several where
    one is meant."""
    names: list[str] = getattr(args, "queue", [])
    if args.command != "dashboard" and (len(set(names)) > 1 or ALL in names):
        raise ConfigurationError(
            f"{args.command} is of one queue, with one --queue; `redistq dashboard` shows several"
        )
    return names


def monitor_of(args: argparse.Namespace, queue: str) -> TaskMonitor:
    return TaskMonitor(
        url=getattr(args, "url", None),
        stream=queue,
        group=getattr(args, "group", DEFAULT_GROUP),
        delayed_key=getattr(args, "delayed_key", None),
        codec=Codec.from_file(args.codec) if hasattr(args, "codec") else None,
        timeout=getattr(args, "timeout", 1.0 if args.command == "dashboard" else 5.0),
    )


def say_unknown(monitor: TaskMonitor, args: argparse.Namespace) -> None:
    """Say that the queue that was named is none, where that is so."""
    if hasattr(args, "queue") and (words := unknown_queue(monitor)):
        print(f"redistq: {words}", file=sys.stderr)


def unknown_queue(monitor: TaskMonitor) -> str:
    """Return what is said of a queue that has no task, no worker and no past: that there is no such
    queue, and which there are; '' where it is one, or where there are no others."""
    shot = monitor.snapshot()
    tasks = shot.ready + shot.pending + shot.delayed + shot.waiting + shot.dead
    if tasks or shot.workers or any(shot.counters.values()):
        return ""
    try:
        queues = Queues(monitor.producer.address, group=monitor.commands.group)
    except ConfigurationError:  # a Cluster: they are not found there
        return ""
    try:
        names = sorted(row.name for row in queues.look())
    except RedistqError:  # it may not be allowed to list keys
        return ""
    finally:
        queues.close()
    close = get_close_matches(monitor.queue, names, 1)
    known = [*close, *(name for name in names if name not in close)]
    if not known:
        return ""
    said = ", ".join(clean(name, 40) for name in known[:_NAMES_SAID])
    more = ", …" if len(known) > _NAMES_SAID else ""
    return f"no such queue yet: {clean(monitor.queue, 60)}; there are: {said}{more}"
