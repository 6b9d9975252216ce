"""Conservation: random histories of many consumers, with doubled, reordered and late calls.

Whatever was sent in whatever order, each accepted task is in exactly one place, ends once (and once
more for each replay), and every watcher hears of it once. See Walk and World.check.
"""

from __future__ import annotations

import random

import pytest
from support.script_world import Walk, World, attempt_ended, outcome
from support.servers import Server


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_conserve_every_task(every_server: Server, seed: int) -> None:
    """A walk of 150 steps, checked on the way and after a last worker has drained the queue."""
    world = World(every_server)
    walk = Walk(world, seed)
    walk.run(150)
    assert len(walk.accepted) > 10
    assert len(walk.held) > 10
    world.close()


def test_walks_do_all_there_is(server: Server) -> None:
    """Over a few seeds every kind of end and return of a task happens: the walk tests something."""
    happened: set[str] = set()
    for seed in range(6):
        server.flush()
        world = World(server)
        walk = Walk(world, seed)
        walk.run(150)
        happened |= set(world.counters())
        happened |= {"replayed"} if any(walk.accepted.values()) else set()
        happened |= {"resubmitted"} if walk.resubmissions else set()
        happened |= {"told"} if walk.watched else set()
        world.close()
    assert happened == {
        *("succeeded", "failed", "cancelled", "retried", "snoozed", "recovered"),
        *("replayed", "resubmitted", "told"),
    }


def test_doubled_settlements_in_any_order_count_once(every_server: Server) -> None:
    """Two workers' batches, cut and sent again in every order, settle each task exactly once."""
    world, chance = World(every_server), random.Random(1)
    ids = [f"t{i}" for i in range(60)]
    world.add(*ids)
    mine, theirs = world.fetch("w", 30), world.fetch("v", 30)
    calls = []
    for consumer, read in (("w", mine), ("v", theirs)):
        for start in range(0, 30, 7):
            rows = [outcome(entry, f["id"]) for entry, f in read[start : start + 12]]
            calls += [(consumer, rows)] * 2 + [("v" if consumer == "w" else "w", rows)]
    chance.shuffle(calls)
    for consumer, rows in calls:
        lost = world.settle(consumer, *rows)
        own = {entry for entry, _ in (mine if consumer == "w" else theirs)}
        assert bool(lost) == (rows[0][0] not in own)
    assert world.counters() == {"succeeded": 60}
    world.check(dict.fromkeys(ids, 0))
    world.close()


def test_a_task_settled_and_retried_at_once_takes_one_way(every_server: Server) -> None:
    """Settle and retry of one attempt exclude each other: the first to arrive decides."""
    world = World(every_server)
    world.add("settled", "retried")
    (one, _), (two, _) = world.fetch("w")
    assert world.settle("w", outcome(one, "settled")) == []
    assert world.retry("w", attempt_ended(one, "settled")) == [1]
    assert world.retry("w", attempt_ended(two, "retried")) == []
    assert world.settle("w", outcome(two, "retried")) == [1]
    world.check({"settled": 0, "retried": 0})
    world.close()
