"""A whole queue, emptied: its tasks cancelled page after page, or waited for until none is left.

Written once for both producers, as operations; the monitor's buttons use them too. Every call is
bounded, so other clients go on meanwhile, and one who stops in between has cancelled so many, each
of them whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from ..protocol.commands import Commands
from ..protocol.keys import PRIORITIES, QueueKeys, lane_of
from ..protocol.plain_commands import MAX_TASKS, read_time
from ..protocol.waits import by_priority
from .sansio import Operation, Sleep

LOOK_S = 0.1
"""Seconds between the first looks at a queue that is being emptied."""
LOOK_LIMIT_S = 1.0
"""Longest time between two of them."""

Lanes = Mapping[str, Commands]
"""The commands of a queue by priority."""


def lanes_of(commands: Commands) -> dict[str, Commands]:
    """Return the commands of a queue by priority; those given are one of them."""
    found = {}
    for priority in PRIORITIES:
        keys = QueueKeys(lane_of(commands.keys.stream, priority))
        own = keys.stream == commands.keys.stream
        found[priority] = commands if own else Commands(keys, commands.group)
    return found


def purge(lanes: Lanes, counts: dict[str, int]) -> Operation[dict[str, int]]:
    """Cancel what has not started; ``counts`` is raised as it goes on, by where the tasks were.

    Those that wait first: a task that is cancelled in the stream would let one of them in.
    """
    counts.update(dict.fromkeys(("waiting", "delayed", "queued"), 0))
    yield from _waiting(lanes, counts)
    end = str(read_time((yield next(iter(lanes.values())).time)))
    for commands in lanes.values():
        yield from _delayed(commands, counts)
    for commands in lanes.values():
        yield from _queued(commands, end, counts)
    return counts


def _cancel(commands: Commands, ids: list[str]) -> Operation[int]:
    """Cancel tasks of one priority; return how many were."""
    if not ids:
        return 0
    reply = yield commands.cancel(ids)
    return sum(word == b"cancelled" for word in reply)


def _waiting(lanes: Lanes, counts: dict[str, int]) -> Operation[None]:
    first = next(iter(lanes.values()))
    left = yield first.waiting_count()
    kept = 0  # those of other priorities, or that could not be cancelled: they stay in front
    while left > 0 and (refs := (yield first.waiting_refs(kept))):
        done = 0
        for priority, ids in by_priority(refs).items():
            if priority in lanes:
                done += yield from _cancel(lanes[priority], ids)
        counts["waiting"] += done
        left -= len(refs)
        kept += len(refs) - done


def _delayed(commands: Commands, counts: dict[str, int]) -> Operation[None]:
    left = yield commands.delayed_count()
    kept = 0
    while left > 0 and (members := (yield commands.delayed_ids(kept))):
        ids = [raw.decode("utf-8", "replace") for raw in members if not raw.startswith(b"\n")]
        done = yield from _cancel(commands, ids)
        counts["delayed"] += done
        left -= len(members)
        kept += len(members) - done


def _queued(commands: Commands, end: str, counts: dict[str, int]) -> Operation[None]:
    start = "-"
    while entries := (yield commands.entries(start, end)):
        start = "(" + entries[-1][0].decode()
        found = [dict(zip(flat[::2], flat[1::2], strict=False)).get(b"id") for _, flat in entries]
        ids = [raw.decode("utf-8", "replace") for raw in found if raw]
        counts["queued"] += yield from _cancel(commands, ids)
        if len(entries) < MAX_TASKS:
            break


def drain(
    lanes: Lanes, timeout: float | None, watch: Callable[[int], object] | None
) -> Operation[bool]:
    """Wait until nothing of a queue waits or runs; return whether that came in time.

    ``watch`` is called with how many tasks are left whenever that was looked at.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    pause = LOOK_S
    while True:
        left = yield from _left(lanes)
        if watch is not None:
            watch(left)
        if not left:
            return True
        rest = deadline - time.monotonic()
        if rest <= 0:
            return False
        yield Sleep(min(pause, rest))
        pause = min(pause * 1.5, LOOK_LIMIT_S)


def _left(lanes: Lanes) -> Operation[int]:
    """Return how many tasks wait or run. Those that may not run yet are counted before and after,
    since one may be let in between two looks."""
    first = next(iter(lanes.values()))
    waiting = yield first.waiting_count()
    left = 0
    for commands in lanes.values():
        shot = Commands.read_snapshot((yield commands.snapshot(1)))
        left += shot.ready + shot.pending + shot.delayed
        waiting = max(waiting, shot.waiting)
    return int(left + waiting)
