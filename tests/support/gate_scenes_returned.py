"""Scenes of tasks that return others: what is returned takes the place of who returned it.

As those in gate_scenes: each for one promise, and each call is made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from support.gate_checks import demand
from support.gate_scenes_limits import end, ended, field, holds, is_ready, read_one, waits
from support.gate_world import Gate, GateWorld, edge, gated, ref_of
from support.script_world import TTL, outcome, resubmitted


def returns(
    world: GateWorld,
    id: str,
    *children: Sequence[str],
    lane: str = "normal",
    ttl: str = TTL,
    inbox: str = "",
    batch: str = "",
) -> Any:
    """A worker has run a task, which returns these: the last of them takes its place. The call is
    made twice."""
    read = {f["id"]: entry for entry, f in world.fetch("w", 1000, lane)}
    demand(id in read, f"{id!r} cannot be read, but {list(read)}")
    others = [entry.encode() for of, entry in read.items() if of != id]
    world.lanes[lane].call(world.lanes[lane].commands.release("w", others))
    row = outcome(
        read[id], id, "continued", body=children[-1][0], ttl=ttl, inbox=inbox, batch=batch
    )
    call = world.settling(row, lane=lane, children=[(1, child) for child in children])
    for _ in range(2):
        demand(world.send(lane, call) == [], f"what {id!r} returned was refused")
        holds(world)
    return call


def events(world: GateWorld, id: str) -> list[str]:
    """The states that the history has of a task."""
    rows = world.db.xrange(world.normal.keys.history)
    return [fields["state"] for _, fields in rows if fields["id"] == id]


def returned(world: GateWorld) -> None:
    """A task that returns others waits for the last, and ends as that one does: its result, its
    event, its dependants, its inbox; the counters count each once."""
    world.add("1")
    world.add("child", after=[edge("1")])
    call = returns(world, "1", gated("a"), gated("b", after=[edge("a")]), inbox="me")
    waits(world, "1", "parents")
    demand(events(world, "1") == ["continued"], f"its history: {events(world, '1')}")
    is_ready(world, "a", why="the first of a chain")
    demand(not world.db.exists("inbox:tasks:me"), "told before the end")
    demand(not world.db.exists("counters:tasks"), "counted before the end")
    end(world, "a")
    read = read_one(world, "b")
    last = world.settling(outcome(read, "b", body='"the end"'))
    for _ in range(2):
        demand(world.send("normal", last) == [], "an own settlement was refused")
        holds(world)
    record = ended(world, "1", "succeeded")
    demand(record["result"] == '"the end"', f"its result is {record.get('result')}")
    demand(record["worker"] == "w" and record["run_ms"] == "1.000", f"its record: {record}")
    demand("continued" not in record and "reason" not in record, f"left over: {record}")
    demand(events(world, "1") == ["continued", "succeeded"], f"its history: {events(world, '1')}")
    is_ready(world, "child", why="what it returned has ended")
    demand(world.db.hget("counters:tasks", "succeeded") == "3", "it is counted once")
    demand(world.db.pttl("task:tasks:1") > 0 or world.db.hexists("task:tasks:1", "readers"), "kept")
    demand(world.send("normal", call) == [], "the call is known after the end, too")
    ended(world, "1", "succeeded")


def returned_and_told(world: GateWorld) -> None:
    """Whoever waits for it hears of the end once, with its body; a batch counts it at its end."""
    commands = world.normal.commands
    world.normal.call(commands.open_batch("g", "job", 1, int(TTL)))
    fields = list(gated("1", batch="g"))
    fields[3] = '{"batch":"g","inbox":"me"}'
    world.send("normal", commands.enqueue_gated(fields))
    world.normal.call(commands.watch("1", "you"))
    returns(world, "1", gated("a"), inbox="me", batch="g", ttl="0")
    demand(world.db.hget("batch:tasks:g", "succeeded") is None, "counted before its end")
    end(world, "a")
    record = ended(world, "1", "succeeded")
    demand("result" not in record, "a result is kept that was not asked for")
    for inbox in ("me", "you"):
        rows = [fields for _, fields in world.db.xrange(f"inbox:tasks:{inbox}")]
        demand(rows == [{"id": "1", "state": "succeeded", "body": "{}"}], f"{inbox} heard {rows}")
    demand(world.db.hget("batch:tasks:g", "succeeded") == "1", "the batch counts its end")
    demand(world.db.hget("batch:tasks:g", "finished_ms") is not None, "it was the last")


def returned_what_returns(world: GateWorld) -> None:
    """What is returned may return others, and so on; in another lane, too."""
    for lane in ("normal", "low"):
        world.add("1", lane=lane)
        returns(world, "1", gated("2"), lane=lane, ttl="0")
        returns(world, "2", gated("3"), lane=lane, ttl="0")
        (entry,) = (entry for entry, _ in world.fetch("w", 10, lane))
        demand(world.settle(outcome(entry, "3", body="7", ttl="0"), lane=lane) == [], "refused")
        holds(world)
        for id in ("1", "2", "3"):
            task = world.look().tasks[ref_of(lane, id)]
            demand(task.state == "succeeded", f"{id} of {lane} is {task.state or task.places}")
        demand(0 < world.db.pttl(world.lanes[lane].keys.task("1")) <= 60_000, "it expires")


def returned_and_failed(world: GateWorld) -> None:
    """It fails as what it returned failed, a dead letter with its own payload; a replay runs it
    again. It is cancelled, and says why, when that was cancelled."""
    world.add("1", gate=Gate({"a": 1}, unique="u"))
    world.add("child", after=[edge("1")])
    returns(world, "1", gated("a"))
    error = '{"type":"a.Wrong","message":"no","traceback":""}'
    demand(world.settle(outcome(read_one(world, "a"), "a", "failed", body=error)) == [], "refused")
    holds(world)
    record = ended(world, "1", "failed")
    demand(record["error"] == error and record["payload"], f"its dead letter: {record}")
    demand(world.db.zscore("dead:tasks", "1") is not None, "it is no dead letter")
    ended(world, "child", "cancelled", "parent 1 failed")
    demand(not world.db.exists("unique:tasks"), "its unique key is taken")
    world.normal.call(world.normal.commands.replay(["1"]))
    is_ready(world, "1", why="it is replayed")
    returns(world, "1", gated("b"), gated("c", after=[edge("b")]))
    end(world, "b", state="failed")
    ended(world, "1", "cancelled", "parent b failed")
    world.add("2")
    returns(world, "2", gated("d"))
    world.normal.cancel("d")
    holds(world)
    ended(world, "2", "cancelled", "what it returned, d, cancelled")


def returned_and_cancelled(world: GateWorld) -> None:
    """While it waits it is cancelled like any that waits; what it returned goes on by itself, and
    its record expires."""
    world.add("1", gate=Gate({"a": 1}, unique="u"))
    call = returns(world, "1", gated("a"))
    for word in ("cancelled", "cancelled"):
        demand(world.normal.cancel("1") == [word], "it is not cancelled")
        holds(world)
    demand(world.send("normal", call) == [], "the call is known")
    demand(not world.db.exists("unique:tasks"), "its unique key is taken")
    end(world, "a")
    ended(world, "1", "cancelled")
    demand(world.db.pttl("task:tasks:a") > 0, "the record of what it returned stays")


def returned_under_limits(world: GateWorld) -> None:
    """Who waits for what it returned holds no slot, nor its turn; but it is still the only one of
    its unique key, and has started."""
    world.limit("a", "at_most=1")
    gate = Gate({"a": 1}, order="o", unique="u")
    world.add("1", gate=gate)
    world.add("2", gate=Gate(order="o"))
    returns(world, "1", gated("c", Gate({"a": 1}).text))
    is_ready(world, "c", "2", why="the first holds nothing")
    for conflict in ("", "replace"):
        answer = world.add("3", gate=Gate(unique="u"), conflict=conflict)
        demand(answer[0][1:3] == ["joined", "1"], f"it has started, and {answer}")
    end(world, "2")
    end(world, "c")
    ended(world, "1", "succeeded")
    demand(field(world, "sa") is None and field(world, "so") is None, "slots are taken")
    demand(world.add("3", gate=Gate(unique="u")) == [], "the key is free")


def returned_what_cannot_be(world: GateWorld) -> None:
    """What cannot be added ends it as cancelled, and says why; what is there already is waited for,
    or has ended."""
    world.limit("a", "at_most=1")
    for id, child, words in (
        ("1", gated("x", Gate({"a": 2}).text), "too heavy"),
        ("2", gated("y", after=[edge("nobody")]), "unknown parent nobody"),
    ):
        world.add(id)
        returns(world, id, child)
        ended(world, id, "cancelled", words)
    world.add("4")
    row = outcome(read_one(world, "4"), "4", "continued", body="ghost")
    demand(world.send("normal", world.settling(row, children=[(1, gated("z"))])) == [], "refused")
    ended(world, "4", "cancelled", "what it returned, ghost, is not known")
    demand(not world.db.exists("task:tasks:ghost", "waiters:tasks"), "something is left of it")
    end(world, "z")
    world.add("there", "3")
    end(world, "there")
    returns(world, "3", gated("there"))
    ended(world, "3", "succeeded")
    demand(not world.db.exists("waiters:tasks"), "an end is waited for that was there before")


def returned_in_a_circle(world: GateWorld) -> None:
    """What waits for who waits for it is refused: the task is cancelled, and says why."""
    world.add("1", "2")
    world.add("after 1", after=[edge("1")])
    world.add("after 2", after=[edge("2", "e")])
    returns(world, "1", gated("a"), gated("b", after=[edge("a"), edge("after 1")]))
    ended(world, "1", "cancelled", "after 1 waits for the task that returned what waits for it")
    ended(world, "after 1", "cancelled", "parent 1 cancelled")
    row = outcome(read_one(world, "2"), "2", "continued", body="after 2")
    call = world.settling(row, children=[(1, gated("c"))])
    for _ in range(2):
        demand(world.send("normal", call) == [], "refused")
        holds(world)
    ended(world, "2", "cancelled", "what it returned, after 2, waits for it")
    demand("after 2" in [f["id"] for _, f in world.normal.entries()], "it goes on after any end")


def spawned_in_a_batch(world: GateWorld) -> None:
    """A batch has one task more for each child that is stored; for one whose unique key is taken,
    or that was there, it has not."""
    world.normal.call(world.normal.commands.open_batch("b", "job", 1, int(TTL)))
    world.add("holder", "there", gate=Gate(unique="u"))
    world.add("1", batch="b")
    entry = read_one(world, "1")
    children = [
        (1, gated("new", batch="b")),
        (1, gated("joins", Gate(unique="u").text, batch="b")),
        (1, gated("holder", batch="b")),
    ]
    call = world.settling(outcome(entry, "1", batch="b"), children=children)
    demand(world.send("normal", call) == [], "refused")
    holds(world)
    demand(world.db.hget("batch:tasks:b", "total") == "2", "the batch has two tasks")
    end(world, "new", batch="b")
    demand(world.db.hget("batch:tasks:b", "finished_ms") is not None, "it never ends")


def returned_and_lost(world: GateWorld) -> None:
    """Another's return is refused, and that of a task that is to end; nothing is added."""
    world.add("1")
    entry = read_one(world, "1")
    row = outcome(entry, "1", "continued", body="a")
    late = world.settling(row, consumer="v", children=[(1, gated("a"))])
    for _ in range(2):
        demand(world.send("normal", late) == [1], "another's return was accepted")
    call = world.settling(row, children=[(1, gated("a"))])
    world.normal.call(world.normal.commands.cancel(["1"], wish="ask"))
    for _ in range(2):
        demand(world.send("normal", call) == [[1, "asked to end"]], "it is to end")
    demand(not world.normal.record("a"), "a child of what was refused")
    demand(world.settle(outcome(entry, "1", "cancelled", body="asked")) == [], "refused")
    holds(world)
    row = resubmitted("1", opts="")
    world.normal.call(world.normal.commands.resubmit("c", [row]))
    call = returns(world, "1", gated("b"))
    demand(world.normal.call(world.normal.commands.resubmit("d", [row])) == [1], "it waits")
    end(world, "b")
    world.normal.call(world.normal.commands.replay(["1"]))
    ended(world, "1", "succeeded")
    world.normal.call(world.normal.commands.resubmit("e", [(*row[:-1], "1")]))
    demand(world.send("normal", call) == [1], "it has gone on since")


def returned_in_time(world: GateWorld) -> None:
    """A deadline is for the start: what has returned others waits beyond it."""
    world.limit("a", paused="1")
    world.add("1", gate=Gate({"a": 1}, expires="+40"))
    until = world.normal.now_ms() + 60
    world.limit("a", paused="0")
    returns(world, "1", gated("b"))
    while world.normal.now_ms() < until:
        pass
    world.promote()
    waits(world, "1", "parents")
    end(world, "b")
    ended(world, "1", "succeeded")


RETURNED: list[Callable[[GateWorld], None]] = [
    *(returned, returned_and_told, returned_what_returns, returned_and_failed),
    *(returned_and_cancelled, returned_under_limits, returned_what_cannot_be, returned_and_lost),
    *(returned_in_time, returned_in_a_circle, spawned_in_a_batch),
]
