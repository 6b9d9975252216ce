"""Scenes of what other hands delete: slots are counted again, and nothing waits in vain.

As those in gate_scenes. Who counts calls until nothing is left to look at, as producers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from support.gate_checks import demand
from support.gate_scenes_limits import MINUTE, end, ended, field, holds, is_ready, ready, waits
from support.gate_world import Gate, GateWorld, Seen, edge, ref_of
from support.script_world import attempt_ended, outcome

A = Gate({"a": 1})


def recount(world: GateWorld, limit: int = 1000, most: int = 100_000) -> Any:
    """Count to the end; the last answer."""
    *_, last = recounting(world, limit, most)
    return last


def recounting(world: GateWorld, limit: int, most: int = 100_000) -> Iterator[Any]:
    """Count in steps of so many entries; each answer."""
    places: list[Any] = ["", "", ""]
    counted: dict[Any, int] = {}
    for _ in range(1000):
        said = world.send("normal", world.normal.commands.recount(places, counted, limit, most))
        yield said
        if said[0] != 0:
            return
        places, flat = said[1:]
        counted = {key: int(n) for key, n in zip(flat[::2], flat[1::2], strict=True)}
    raise AssertionError("it never ends")


def corrected(world: GateWorld, **keys: tuple[int, int]) -> None:
    """Counting again finds exactly this, and nothing the second time."""
    for expected in (keys, {}):
        code, flat = recount(world)
        demand(code == 1, f"it is not counted: {code} {flat}")
        rows = {key: (before, after) for key, before, after in zip(*[iter(flat)] * 3, strict=True)}
        demand(rows == expected, f"corrected are {rows}, not {expected}")
        holds(world)


def delete(world: GateWorld, *ids: str, lane: str = "normal") -> None:
    """Other hands delete the entries of tasks; and their records, which nobody asks for."""
    for entry, fields in world.lanes[lane].entries():
        if fields["id"] in ids:
            world.db.xdel(world.lanes[lane].keys.stream, entry)
            world.db.delete(world.lanes[lane].keys.task(fields["id"]))


def deleted(world: GateWorld) -> None:
    """Slots of deleted entries, in any lane, are given back, and who waits goes in."""
    world.limit("a", "at_most=3")
    world.add("1", "2", gate=A)
    world.add("low", gate=A, lane="low")
    world.add("3", "4", "5", gate=A)
    corrected(world)
    delete(world, "1")
    delete(world, "low", lane="low")
    demand(field(world, "sa") == "3", "they are in use")
    corrected(world, a=(3, 1))
    is_ready(world, "2", "3", "4", why="two slots were given back")
    world.db.delete(world.normal.keys.stream)
    world.normal.ensure_group()
    for id in "234":
        world.db.delete(world.normal.keys.task(id))
    corrected(world, a=(3, 0))
    is_ready(world, "5", why="the stream was deleted")


def deleted_groups(world: GateWorld) -> None:
    """The same of weights, groups and what is strictly in order."""
    world.add("1", gate=Gate({"a": 5}, group="g"))
    world.add("2", "3", gate=Gate(order="o"))
    delete(world, "1", "2")
    keys = {"a": (5, 0), "group:g": (1, 0), "door": (1, 0), "o": (1, 0)}
    corrected(world, **keys)
    is_ready(world, "3", why="its turn has come")


def turns_stay(world: GateWorld) -> None:
    """A turn that is kept between attempts, or while another key is waited for, is in use."""
    world.limit("a", paused="1")
    world.add("1", "2", gate=Gate(order="o"))
    ((entry, _),) = world.fetch("w")
    world.normal.call(
        world.normal.commands.retry("w", [attempt_ended(entry, "1", delay_ms=MINUTE)])
    )
    world.add("3", "4", gate=Gate({"a": 1}, order="p"))
    waits(world, "3", "paused", "a")
    corrected(world)
    waits(world, "2", "order", "o")
    waits(world, "4", "order", "p")


def still_run(world: GateWorld) -> None:
    """While a worker runs what was deleted nothing is given back twice: it is said instead."""
    world.limit("a", "at_most=2")
    world.add("1", "2", "3", gate=A)
    read = {f["id"]: entry for entry, f in world.fetch("w", 1)}
    world.db.xdel(world.normal.keys.stream, read["1"])
    for _ in range(2):
        demand(recount(world) == [3, 1], "a deleted entry still runs")
        demand(field(world, "sa") == "2", "its slot was given back")
    demand(world.settle(outcome(read["1"], "1")) == [], "refused")
    corrected(world)
    is_ready(world, "2", "3", why="the first has ended")


def in_steps(world: GateWorld) -> None:
    """A stream that is counted in steps: what comes and goes meanwhile is never given back, and
    what was deleted is."""
    world.limit("a", "at_most=9")
    for n in range(9):
        world.add(str(n), gate=A, lane=("high", "normal", "low")[n % 3])
    world.add("waits", gate=A)
    delete(world, "4", "1")
    steps = recounting(world, 3)
    demand(next(steps)[0] == 0, "three of nine are not all")
    ((entry, _),) = world.fetch("w", 1)
    demand(world.settle(outcome(entry, "7")) == [], "refused")
    world.add("new", gate=Gate({"b": 2}))
    demand(field(world, "sb") == "2", "it is in")
    *_, (code, flat) = steps
    holds_at_most(world.look())
    demand(code == 1 and field(world, "sb") == "2", f"it ends with {code} {flat}")
    corrected(world, a=(int(field(world, "sa") or 0), 7))
    demand("waits" in ready(world), "there is room")


def holds_at_most(seen: Seen) -> None:
    """No slot that is in use was given back."""
    for key, value in seen.kind("s").items():
        used = sum(
            t.gate.slots.get(key, 0)
            for t in seen.tasks.values()
            if t.place in ("unread", "pending")
        )
        demand(int(value) >= used, f"{value} slots of {key!r} are said to be in use, {used} are")


def other_keys_deleted(world: GateWorld) -> None:
    """Limits, or a line, are deleted: slots are counted, and who waits stands in line."""
    world.limit("a", "at_most=1")
    world.add("1", "2", "3", gate=A)
    world.add("4", gate=Gate(group="g"))
    world.limit("group:h", paused="1")
    world.add("5", gate=Gate(group="h"))
    world.db.delete(world.normal.keys.waiting_prefix + "a")
    world.db.delete(world.normal.keys.limits)
    world.limit("a", "at_most=1")
    code, _ = recount(world)
    demand(code == 1, "it is not counted")
    holds(world)
    is_ready(world, "1", "4", "5", why="the pause was deleted, too")
    demand(field(world, "sa") == "1" and field(world, "sdoor") == "2", "they are in use")
    end(world, "1")
    is_ready(world, "2", "4", "5", why="it stood first in line")


def too_much(world: GateWorld) -> None:
    """More that waits than is to be looked at in one step: nothing changes, and it is said."""
    world.limit("a", "at_most=1")
    world.add(*(str(n) for n in range(9)), gate=A)
    delete(world, "0")
    before = world.look().limits
    code, size = recount(world, most=5)
    demand(code == 2 and size > 5 and world.look().limits == before, f"{code} {size}")


def deleted_holder(world: GateWorld) -> None:
    """The unique key of a task whose entry was deleted is free."""
    world.add("1", gate=Gate(unique="u"))
    world.db.xdel(world.normal.keys.stream, world.normal.entries()[0][0])
    demand(world.add("2", gate=Gate(unique="u")) == [], "it is taken by nobody")
    is_ready_at_all(world, "2")


def deleted_parent(world: GateWorld) -> None:
    """A task whose entry was deleted is cancelled as unknown, and so is what depends on it."""
    world.add("1", lane="high")
    world.add("child", after=[edge(ref_of("high", "1"))])
    world.add("any", after=[edge(ref_of("high", "1"), "e")])
    high = world.lanes["high"]
    world.db.xdel(high.keys.stream, high.entries()[0][0])
    for _ in range(2):
        demand(high.cancel("1") == ["unknown"], "it is known")
    ended(world, "child", "cancelled", "parent 1 cancelled")
    is_ready_at_all(world, "any")


def is_ready_at_all(world: GateWorld, *ids: str) -> None:
    """These stand in the stream, whatever else does not hold."""
    demand(ready(world) == list(ids), f"ready are {ready(world)}, not {list(ids)}")


RECOUNT: list[Callable[[GateWorld], None]] = [
    *(deleted, deleted_groups, turns_stay, still_run, in_steps, other_keys_deleted, too_much),
    *(deleted_holder, deleted_parent),
]
