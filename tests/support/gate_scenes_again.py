"""Scenes of tasks that run again while timers still have to do what follows from their ends.

As those in gate_scenes. A call does two hundred steps of what follows; here are more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.gate_checks import demand
from support.gate_scenes_limits import end, ended, field, holds, is_ready, read_one, timer, waits
from support.gate_world import Gate, GateWorld, edge, gated, options, ref_of
from support.script_world import TTL, outcome, resubmitted

MANY = 300


def resubmit(world: GateWorld, *ids: str, gate: str = "", after: str = "", batch: str = "") -> Any:
    """Tasks run again, each with these parents; the call is made twice."""
    rows = [
        (*resubmitted(id, opts=options(gate, batch, after=bool(after)), outdated=True), after)
        for id in ids
    ]
    call = world.normal.commands.resubmit_gated(f"again {ids}", rows)
    answer = world.send("normal", call)
    demand(world.send("normal", call) == answer, "sent again it is answered otherwise")
    return answer


def again_before_all_are_released(world: GateWorld) -> None:
    """Who has not been released when a parent runs again waits for its new end, as whoever comes
    after it does."""
    for id, lane in (("1", "normal"), ("2", "low")):
        world.add(id, lane=lane)
        many = [f"{id}-{n}" for n in range(MANY)]
        world.add(*many, after=[edge(ref_of(lane, id))])
        world.lanes[lane].cancel(id)
        holds(world)
        left = [child for child in many if world.normal.record(child)["state"] == "waiting"]
        demand(0 < len(left) < MANY, f"{len(left)} of {MANY} are left for a timer")
        row = (*resubmitted(id, opts="", outdated=True), "")
        world.send(lane, world.lanes[lane].commands.resubmit_gated("again", [row]))
        world.add(f"{id}-new", after=[edge(ref_of(lane, id))])
        world.promote()
        holds(world)
        for child in (left[0], left[-1], f"{id}-new"):
            waits(world, child, "parents")
        ended(world, many[0], "cancelled")
        ((entry, _),) = world.fetch("w", 10, lane)
        demand(world.settle(outcome(entry, id), lane=lane) == [], "refused")
        world.promote()
        holds(world)
        states = {world.normal.state(child) for child in [*left, f"{id}-new"]}
        demand(states == {"queued"}, f"after the new end they are {states}")


def batch_again_before_all_are_released(world: GateWorld) -> None:
    """The same of a batch, of which a task runs again."""
    world.normal.call(world.normal.commands.open_batch("b", "job", 1, int(TTL)))
    world.add("1", batch="b")
    many = [f"c{n}" for n in range(MANY)]
    world.add(*many, after=[edge("b", kind="b")])
    end(world, "1", state="failed", batch="b")
    left = [child for child in many if world.normal.record(child)["state"] == "waiting"]
    demand(len(left) > 0, "none are left for a timer")
    world.normal.call(world.normal.commands.replay(["1"]))
    world.promote()
    holds(world)
    waits(world, left[-1], "parents")
    end(world, "1", batch="b")
    world.promote()
    holds(world)
    demand(world.normal.state(left[-1]) == "queued", "the batch has ended, and nobody heard")
    ended(world, many[0], "cancelled", "batch b failed")


def again_before_all_are_read(world: GateWorld) -> None:
    """What a task has read is kept no longer than by its end, also when it runs again at once."""
    for how in ("resubmit_gated", "resubmit"):
        parents = [f"{how}-p{n}" for n in range(9)]
        world.add(*parents, "busy")
        world.add(how, after=[edge(id) for id in parents])
        read = {f["id"]: entry for entry, f in world.fetch("w", 100)}
        world.settle(*(outcome(read[id], id) for id in parents))
        world.add(*(f"{how}-c{n}" for n in range(MANY)), after=[edge("busy")])
        rows = [outcome(read["busy"], "busy"), outcome(read_one(world, how), how, "failed")]
        demand(world.settle(*rows) == [], "refused")
        holds(world)
        demand(timer(world, "read", how), "no timer has to go on reading")
        if how == "resubmit":
            row = resubmitted(how, opts="", outdated=True)
            demand(world.normal.resubmit("x", row) == [], "it was not resubmitted")
        else:
            demand(resubmit(world, how, after=edge(parents[0])) == [], "it was not resubmitted")
        holds(world)
        world.promote()
        holds(world)
        kept = [id for id in parents if world.db.pttl(f"task:tasks:{id}") < 0]
        demand(kept == (parents[:1] if how == "resubmit_gated" else []), f"{kept} are kept")
        read = {f["id"]: entry for entry, f in world.fetch("w", 1000)}
        world.settle(*(outcome(entry, id) for id, entry in read.items()))
        world.promote()
        holds(world)
        kept = [id for id in parents if world.db.pttl(f"task:tasks:{id}") < 0]
        demand(not kept, f"after its end {len(kept)} are kept")
        world.db.delete("task:tasks:busy")


def read_by_two(world: GateWorld) -> None:
    """What two tasks returned is read by both, and is not kept when a timer has to say so."""
    world.add("there", "1", "2")
    for id in "12":
        row = outcome(read_one(world, id), id, "continued", body="there")
        if id == "1":
            for entry, f in world.normal.entries():
                if f["id"] != "1":
                    world.normal.call(world.normal.commands.release("w", [entry.encode()]))
        children = [(1, gated(f"child of {id}"))]
        demand(world.send("normal", world.settling(row, children=children)) == [], "refused")
        others = [e for e, f in world.normal.entries() if f["id"] != id]
        world.normal.call(world.normal.commands.release("w", [e.encode() for e in others]))
    world.add(*(f"c{n}" for n in range(MANY)), after=[edge("there")])
    end(world, "there")
    demand(timer(world, "seen", "there"), "no timer says that it has been read")
    world.promote()
    holds(world)
    for id in "12":
        ended(world, id, "succeeded")
    read = {f["id"]: entry for entry, f in world.fetch("w", 1000)}
    world.settle(*(outcome(entry, id) for id, entry in read.items()))
    world.promote()
    holds(world)
    demand(world.db.pttl("task:tasks:there") > 0, "its record is kept for nobody")


def again_in_its_time(world: GateWorld) -> None:
    """A task whose unique key is taken for a time, by itself, may run again in that time."""
    gate = Gate(unique="u", scope="d60000")
    world.add("1", gate=gate)
    end(world, "1", state="failed")
    demand(resubmit(world, "1", gate=gate.text) == [], "it cannot be resubmitted")
    holds(world)
    end(world, "1")
    ended(world, "1", "succeeded")


# -- a name with a rule --------------------------------------------------------------------------


def regate(world: GateWorld, *entries: str) -> Any:
    """A worker hands entries back; called again it has lost them, or they may still run."""
    call = world.normal.commands.regate("w", [entry.encode() for entry in entries])
    answer = world.send("normal", call)
    holds(world)
    before = world.look()
    later = ["lost" if word == "regated" else word for word in answer]
    demand(world.send("normal", call) == later, "sent again it is answered otherwise")
    demand(world.look().tasks == before.tasks, "sent again it changed something")
    return answer


def regated(world: GateWorld) -> None:
    """Tasks of a name with a rule go back to wait under it, in their order: they hold no other key
    but a turn, and are let in once."""
    world.limit("a", "at_most=2")
    world.add("1", "2", gate=Gate({"a": 1}))
    world.add("3", gate=Gate(order="o"))
    world.add("4", gate=Gate(order="o"))
    world.add("plain")
    read = {f["id"]: entry for entry, f in world.fetch("w", 10)}
    demand(regate(world, *read.values()) == ["free"] * 4, "no rule holds for the name")
    world.limit("name:job", "at_most=1")
    demand(regate(world, *read.values()) == ["regated"] * 4, "the name has a rule")
    demand(field(world, "sa") is None, "a slot is taken by what waits")
    demand(field(world, "so") == "1", "its turn is another's")
    world.promote()
    holds(world)
    is_ready(world, "1", why="its name has room for one")
    entry = read_one(world, "1")
    demand(regate(world, entry) == ["free"], "it names the key, and is handed back again")
    demand(world.settle(outcome(entry, "1")) == [], "refused")
    is_ready(world, "2", why="the first has ended")
    world.limit("name:job", "-")
    world.promote()
    holds(world)
    is_ready(world, "2", "3", "plain", why="no rule holds")
    waits(world, "4", "order", "o")


def regated_to_end(world: GateWorld) -> None:
    """What is asked to end is not handed back: it is its worker's to settle."""
    world.add("1", "2", gate=Gate({"a": 1}))
    read = {f["id"]: entry for entry, f in world.fetch("w", 10)}
    world.limit("name:job", paused="1")
    world.normal.call(world.normal.commands.cancel(["1"], wish="ask"))
    answer = regate(world, read["1"], read["2"])
    demand(answer == [[1, "asked to end"], "regated"], f"it is answered {answer}")
    demand(world.settle(outcome(read["1"], "1", "cancelled", body="asked")) == [], "refused")
    world.promote()
    holds(world)
    waits(world, "2", "paused", "name:job")


AGAIN: list[Callable[[GateWorld], None]] = [
    *(again_before_all_are_released, batch_again_before_all_are_released),
    *(again_before_all_are_read, read_by_two, again_in_its_time, regated, regated_to_end),
]
