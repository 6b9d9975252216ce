"""Short scenes of the gate, each for one promise; tests play them, and mutants must fail in one.

Each takes an empty `GateWorld` and raises `Broken` when the promise is not kept.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import redis

from support.gate_checks import demand
from support.gate_scenes_limits import (
    LIMITS,
    MINUTE,
    Scene,
    add_all,
    end,
    ended,
    holds,
    is_ready,
    read_one,
    ready,
    timer,
    waits,
)
from support.gate_world import Gate, GateWorld, edge, gated, ref_of
from support.script_world import TTL, attempt_ended, outcome, payload_of

# -- dependencies --------------------------------------------------------------------------------


def policies(world: GateWorld) -> None:
    """Each edge has a policy, and a task whose need is not met ends with the reason."""
    world.add("good", "bad", "cut")
    children = []
    for parent in ("good", "bad", "cut"):
        for policy in "sef":
            children.append(f"{parent}-{policy}")
            world.add(children[-1], after=[edge(parent, policy)])
    for child in children:
        waits(world, child, "parents")
    end(world, "good")
    end(world, "bad", state="failed")
    world.normal.cancel("cut")
    holds(world)
    alive = [id for id in children if world.normal.state(id) == "queued"]
    demand(
        {"good-s", "good-e", "bad-e", "bad-f", "cut-e"} <= set(alive)
        and not {"good-f", "bad-s", "cut-s"} & set(alive),
        f"these go on: {alive}",
    )
    ended(world, "bad-s", "cancelled", "parent bad failed")
    ended(world, "cut-s", "cancelled", "parent cut")


def some_ended(world: GateWorld) -> None:
    """Of a call's tasks those whose parents have all ended are ready, among others that wait."""
    world.add("ended", "failed", "runs")
    end(world, "ended")
    end(world, "failed", state="failed")
    add_all(
        world,
        gated("1", after=[edge("runs")]),
        gated("2", after=[edge("runs")]),
        gated("3", after=[edge("ended")]),
        gated("4", after=[edge("runs"), edge("ended")]),
        gated("5", after=[edge("failed")]),
        gated("6", after=[edge("runs")]),
    )
    is_ready(world, "runs", "3", why="its parent had ended")
    for id in ("1", "2", "4", "6"):
        waits(world, id, "parents")
    ended(world, "5", "cancelled", "parent failed failed")
    end(world, "runs", "3")
    is_ready(world, "1", "2", "4", "6", why="all parents have ended")
    end(world, "1", "2", "4", "6")
    demand(world.db.pttl("task:tasks:ended") > 0, "it is kept for nobody")


def some_left(world: GateWorld) -> None:
    """Who waits for one parent goes on when that ends, beside others that wait for many."""
    world.add("1", "2", "3")
    world.add("many", gate=Gate({"a": 1}), after=[edge("1"), edge("2"), edge("3")])
    world.add("one", gate=Gate({"a": 1}), after=[edge("1")])
    end(world, "1")
    waits(world, "many", "parents")
    said = [(f["id"], f["name"], f["payload"]) for _, f in world.normal.entries()]
    demand(("one", "job", payload_of("one")) in said, f"ready are {said}")
    end(world, "2", "3")
    is_ready(world, "many", "one", why="all parents have ended")


def chained(world: GateWorld) -> None:
    """What depends on a cancelled task is cancelled, and so on, in bounded steps."""
    ids = [f"{n}" for n in range(120)]
    world.add(ids[0])
    for above, id in itertools.pairwise(ids):
        world.add(id, after=[edge(above)])
    end(world, "0", state="failed")
    world.promote()
    holds(world)
    for id in ids[1:]:
        ended(world, id, "cancelled")
    demand(world.normal.counters() == {"failed": 1, "cancelled": 119}, "counted otherwise")


def fan(world: GateWorld) -> None:
    """A parent of hundreds lets them go in bounded steps, each once; a child of several waits for
    all of them."""
    ids = [f"c{n}" for n in range(250)]
    world.add("a", "b")
    world.add(*ids, after=[edge("a")])
    world.add("join", after=[edge("a"), edge("b")])
    end(world, "a")
    demand(len(ready(world)) < 251, "a call released all at once: it is not bounded")
    demand(timer(world, "after", "t:a"), "no timer goes on with the rest")
    world.promote()
    holds(world)
    demand(set(ready(world)) == {"b", *ids}, "their parent has ended, and some are not ready")
    waits(world, "join", "parents")
    demand(world.normal.record("join")["parents"] == "1", "one parent is left")
    end(world, "b")
    demand("join" in ready(world), "both parents have ended")


def late(world: GateWorld) -> None:
    """A parent that has ended is no reason to wait; one that nobody knows is an error."""
    world.add("good", "bad")
    end(world, "good")
    end(world, "bad", state="failed")
    world.add("1", after=[edge("good")])
    is_ready(world, "1", why="its parent has ended")
    world.add("2", after=[edge("bad")])
    ended(world, "2", "cancelled", "parent bad failed")
    reply = world.add("3", after=[edge("nobody")])
    demand(reply[0][1].startswith("unknown parent"), f"an unknown parent: {reply}")
    demand(not world.normal.record("3"), "refused, and stored")


def then_delayed(world: GateWorld) -> None:
    """A task with parents and a due time waits for both."""
    world.add("p")
    world.add("c", after=[edge("p")], due="+60000")
    waits(world, "c", "parents")
    end(world, "p")
    demand(world.normal.state("c") == "delayed", "it is not due yet")
    world.pass_time()
    world.promote()
    is_ready(world, "c", why="its time has come")


def results_stay(world: GateWorld) -> None:
    """What a task leaves is there until its last dependant has ended, and then for its own time."""
    world.add("a", "b")
    world.add("c", "d", after=[edge("a"), edge("b")])
    end(world, "a")
    demand(world.normal.ttl_ms("a") == -1, "a result that has not been read expires")
    end(world, "b")
    end(world, "c")
    demand(world.normal.ttl_ms("a") == -1, "one has read it, another has not")
    world.normal.cancel("d")
    holds(world)
    for id in "ab":
        demand(0 < world.normal.ttl_ms(id) <= 600_000, "what all have read is kept for ever")
    world.add("p", "q", gate=Gate({"a": 1}))
    world.add("e", after=[edge("p", "e"), edge("q")])
    end(world, "p", state="failed")
    world.normal.call(world.normal.commands.replay(["p"]))
    end(world, "p")
    demand(world.normal.ttl_ms("p") == -1, "replayed, its result expires unread")


def over_lanes(world: GateWorld) -> None:
    """Parents and children may be of different priorities."""
    world.add("p", gate=Gate({"a": 1}), lane="high")
    world.add("c", after=[edge(ref_of("high", "p"))], lane="low")
    holds(world)
    ((entry, _),) = world.fetch("w", 1, "high")
    world.settle(outcome(entry, "p"), lane="high")
    holds(world)
    demand(ready(world, "low") == ["c"], "a parent of another lane has ended")


def limits_after(world: GateWorld) -> None:
    """A released child waits for its limit like any other."""
    world.limit("a", "at_most=1")
    world.add("holds", gate=Gate({"a": 1}))
    world.add("p")
    world.add("c", gate=Gate({"a": 1}), after=[edge("p")])
    end(world, "p")
    waits(world, "c", "limit", "a")
    end(world, "holds")
    is_ready(world, "c", why="there is room")


def batch_ends(world: GateWorld) -> None:
    """A batch may be a parent: its last task lets the children go, also those that came late."""
    commands = world.normal.commands
    world.normal.call(commands.open_batch("b", "job", 2, int(TTL)))
    world.add("1", "2", gate=Gate({"a": 1}), batch="b")
    world.add("all", after=[edge("b", "s", "b")])
    world.add("any", after=[edge("b", "e", "b")])
    end(world, "1", batch="b")
    waits(world, "all", "parents")
    end(world, "2", batch="b")
    is_ready(world, "all", "any", why="the batch has ended")
    world.add("late", after=[edge("b", "s", "b")])
    is_ready(world, "all", "any", "late", why="the batch had ended")


def told(world: GateWorld) -> None:
    """Whoever waits for a task that never ran hears of its end, once, and why."""
    world.add("p")
    world.add("c", after=[edge("p")])
    world.normal.watch("c", "box")
    world.normal.watch("p", "other")
    end(world, "p", state="failed")
    news = world.normal.told("box")
    demand([n["state"] for n in news] == ["cancelled"], f"the inbox has {news}")
    demand("parent p failed" in news[0].get("body", ""), f"it does not say why: {news}")
    demand(len(world.normal.told("other")) == 1, "the parent's end was not told once")
    demand(not world.db.exists(world.normal.keys.waiters), "an address is left behind")


def spawned(world: GateWorld) -> None:
    """Children come with the settlement that is accepted, once."""
    world.limit("a", "at_most=1")
    world.add("p", gate=Gate({"a": 1}))
    entry = read_one(world, "p")
    children = [(1, gated(id, Gate({"a": 1}).text)) for id in ("c1", "c2")]
    late = world.settling(outcome(entry, "p"), consumer="v", children=children)
    demand(world.send("normal", late) == [1], "another's settlement was accepted")
    demand(not world.normal.record("c1"), "children of a settlement that was refused")
    command = world.settling(outcome(entry, "p"), children=children)
    for _ in range(2):
        demand(world.send("normal", command) == [], "an own settlement was refused")
        is_ready(world, "c1", why="the parent's slot is the first child's")
    waits(world, "c2", "limit", "a")


# -- unique work ---------------------------------------------------------------------------------


def unique(world: GateWorld) -> None:
    """Under a unique key there is one task until it has settled; the answer names it."""
    one = Gate(unique="u")
    world.add("1", gate=one)
    demand(world.add("2", gate=one)[0][:3] == [1, "joined", "1"], "it did not join")
    demand(not world.normal.record("2"), "it joined, and was stored")
    read_one(world, "1")
    demand(world.add("3", gate=one)[0][:3] == [1, "joined", "1"], "it did not join")
    holds(world)
    world.normal.recover(consumer="w")
    end(world, "1")
    demand(world.add("4", gate=one) == [], "the key is free")
    is_ready(world, "4", why="the first has ended")
    world.normal.cancel("4")
    demand(world.add("5", gate=one) == [], "the key is free")
    world.normal.cancel("5")
    world.db.hset(world.normal.keys.unique, "u", "s5")
    demand(world.add("6", gate=one) == [], "the key is held by what has ended")


def until_started(world: GateWorld) -> None:
    """A key until the start is free once a worker has the task."""
    one = Gate(unique="u", scope="t")
    world.add("1", gate=one)
    demand(world.add("2", gate=one)[0][:3] == [1, "joined", "1"], "it did not join")
    read_one(world, "1")
    demand(world.add("3", gate=one) == [], "a worker has it: the key is free")
    demand(world.add("4", gate=one)[0][:3] == [1, "joined", "3"], "it did not join")
    world.normal.recover(consumer="w")
    end(world, "1")
    demand(world.add("5", gate=one)[0][:3] == [1, "joined", "3"], "the first freed the third's")


def for_a_time(world: GateWorld) -> None:
    """A key for a time is held beyond the task's end, and no longer than that."""
    one = Gate(unique="u", scope="d60000")
    world.add("1", gate=one)
    end(world, "1")
    demand(world.add("2", gate=one)[0][:3] == [1, "joined", "1"], "it did not join")
    world.pass_time()
    demand(world.add("3", gate=one) == [], "its time is over")


def replaced(world: GateWorld) -> None:
    """What has not started is replaced, in its place; what runs is not."""
    one = Gate(unique="u")
    world.add("1", gate=one, due="+60000")
    demand(world.add("2", gate=one, conflict="replace", due="+60000")[0][1:3] == ["replaced", "1"],
           "it did not replace")  # fmt: skip
    demand("2" in world.normal.record("1")["payload"], "the payload is the old one")
    holds(world)


def pushed(world: GateWorld) -> None:
    """A due time is pushed back, at most so far: that is a debounce."""
    one = Gate(unique="u")
    world.add("1", gate=one, due="+1000")
    first = world.db.zscore(world.normal.keys.delayed, "1")
    demand(world.add("2", gate=one, conflict="push 5000", due="+3000")[0][1:3] == ["pushed", "1"],
           "it did not push")  # fmt: skip
    second = world.db.zscore(world.normal.keys.delayed, "1")
    demand(1500 <= second - first <= 2500, f"pushed by {second - first}")
    world.add("3", gate=one, conflict="push 5000", due="+90000")
    third = world.db.zscore(world.normal.keys.delayed, "1")
    demand(3000 <= third - first <= 5000, f"pushed by {third - first}: at most 5000 in all")


def once_more(world: GateWorld) -> None:
    """One more run after the one that there is, however often it is asked for."""
    one = Gate(unique="u")
    world.add("1", gate=one)
    read_one(world, "1")
    world.add("2", gate=one, conflict="again")
    waits(world, "2", "parents")
    world.add("3", gate=one, conflict="again")
    holds(world)
    world.normal.recover(consumer="w")
    end(world, "1")
    holds(world)
    demand(len(ready(world)) == 1, f"one more run, and ready are {ready(world)}")


# -- clocks, servers -----------------------------------------------------------------------------


def expired(world: GateWorld) -> None:
    """What has not started by its deadline never does; it ends as expired, and frees its place."""
    world.limit("a", "at_most=1")
    world.add("1", gate=Gate({"a": 1}))
    world.add("late", gate=Gate({"a": 1}, expires="+1"))
    world.add("2", gate=Gate({"a": 1}, expires="+600000"))
    end(world, "1")
    until = world.normal.now_ms() + 20
    while world.normal.now_ms() < until:
        pass
    holds(world)
    if ready(world) == ["late"]:  # it came in within its millisecond
        end(world, "late")
    else:
        ended(world, "late", "expired", "not started by its deadline")
    is_ready(world, "2", why="the one before has expired")
    world.add("later", gate=Gate({"b": 1}, expires="+30"), due="+60000")
    until = world.normal.now_ms() + 40
    while world.normal.now_ms() < until:
        pass
    world.pass_time()
    world.promote()
    ended(world, "later", "expired", "not started by its deadline")
    holds(world)


def expired_where_nothing_moves(world: GateWorld) -> None:
    """A deadline is kept under a paused key, and while parents run: what waits there ends."""
    world.limit("a", paused="1")
    world.add("p")
    world.add("1", gate=Gate({"a": 1}, expires="+40"))
    world.add("child", after=[edge("p")], gate=Gate(expires="+40"))
    world.add("kept", gate=Gate({"a": 1}, expires="+600000"))
    waits(world, "1", "paused", "a")
    until = world.normal.now_ms() + 60
    while world.normal.now_ms() < until:
        pass
    world.promote()
    for id in ("1", "child"):
        ended(world, id, "expired", "not started by its deadline")
    waits(world, "kept", "paused", "a")
    holds(world)


def started_in_time(world: GateWorld) -> None:
    """What has started by its deadline is tried again after it."""
    world.add("1", gate=Gate({"a": 1}, unique="u", expires="+40"))
    entry = read_one(world, "1")
    world.normal.retry("w", attempt_ended(entry, "1", delay_ms=MINUTE))
    holds(world)
    until = world.normal.now_ms() + 60
    while world.normal.now_ms() < until:
        pass
    world.pass_time()
    world.promote()
    is_ready(world, "1", why="it had started in time")


def cancelled(world: GateWorld) -> None:
    """What waits is cancelled at once, and leaves its line; what depends on it follows."""
    world.limit("a", "at_most=1")
    world.add("1", "2", "3", gate=Gate({"a": 1}))
    world.add("c", after=[edge("2")])
    demand(world.normal.cancel("2") == ["cancelled"], "not cancelled")
    holds(world)
    ended(world, "c", "cancelled", "parent 2 cancelled")
    end(world, "1")
    is_ready(world, "3", why="the second was cancelled")


def again(world: GateWorld) -> None:
    """A replayed task waits like any other."""
    world.limit("a", "at_most=1")
    world.add("1", "2", gate=Gate({"a": 1}))
    end(world, "1", state="failed")
    is_ready(world, "2", why="the first has failed")
    world.normal.call(world.normal.commands.replay(["1"]))
    holds(world)
    waits(world, "1", "limit", "a")
    demand(world.normal.call(world.normal.commands.replay(["1"]))[0] in (0, 1), "replayed twice")
    holds(world)
    end(world, "2")
    is_ready(world, "1", why="there is room")


@contextlib.contextmanager
def full(world: GateWorld) -> Iterator[None]:
    """A server beyond its memory."""
    world.db.config_set("maxmemory", 1)
    try:
        yield
    finally:
        world.db.config_set("maxmemory", 0)


def full_server(world: GateWorld) -> None:
    """A full server takes no more, and drains: what ends lets in what waits."""
    world.limit("a", "at_most=1")
    world.add(*"1234", gate=Gate({"a": 1}))
    world.add("c", gate=Gate({"b": 1}), after=[edge("1")])
    world.add("later", gate=Gate({"b": 1}), due="+60000")
    entry = read_one(world, "1")
    with full(world):
        demand(world.settle(outcome(entry, "1")) == [], "a full server settles nothing")
        demand(set(ready(world)) == {"2", "c"}, f"the first has ended: {ready(world)}")
        read = {f["id"]: entry for entry, f in world.fetch("w", 10)}
        world.normal.retry("w", attempt_ended(read["2"], "2", delay_ms=MINUTE))
        holds(world)
        read |= {f["id"]: entry for entry, f in world.fetch("w", 10)}
        demand("3" in read, f"the second is away, and read is {list(read)}")
    world.pass_time()
    with full(world):
        world.promote()
        holds(world)
        world.normal.cancel("4")
        holds(world)
        with contextlib.suppress(redis.exceptions.ResponseError):
            reply = world.add("more", gate=Gate({"a": 1}))
            demand(reply and "memory" in reply[0][1], f"a full server takes more: {reply}")
        demand(not world.normal.record("more"), "refused, and stored")
    holds(world)


def doomed(world: GateWorld) -> None:
    """Added after a parent that has failed, with what depends on it in turn: all end at once."""
    world.add("a")
    end(world, "a", state="failed")
    ids = ("b", "c", "d")
    fields = [
        part
        for id, parent in zip(ids, ("a", "b", "c"), strict=True)
        for part in gated(id, after=[edge(parent)])
    ]
    world.send("normal", world.normal.commands.enqueue_gated(fields))
    for id, parent, state in (
        ("b", "a", "failed"),
        ("c", "b", "cancelled"),
        ("d", "c", "cancelled"),
    ):
        ended(world, id, "cancelled", f"parent {parent} {state}")
    holds(world)
    demand(not timer(world, "end", "b"), "a timer stands of what has ended")


def graph_again(world: GateWorld) -> None:
    """A graph runs again in order: what failed at once, what was cancelled after it; what is done
    stays, and its batch counts each once."""
    commands = world.normal.commands
    world.normal.call(commands.open_batch("g", "g", 4, MINUTE))
    tasks = [
        gated("g:0", batch="g"),
        gated("g:1", batch="g", after=[edge("g:0")]),
        gated("g:2", batch="g", after=[edge("g:1")]),
        gated("g:3", batch="g", after=[edge("g:0"), edge("g:2")]),
    ]
    add_all(world, *tasks)
    end(world, "g:0", batch="g")
    end(world, "g:1", batch="g", state="failed")
    ended(world, "g:3", "cancelled", "parent g:2 cancelled")

    def again(call: str, outdated: str = "") -> list[Any]:
        rows = [(*task[:5], "", "1" if task[0] == outdated else "", task[5]) for task in tasks]
        found: list[Any] = world.send("normal", commands.resubmit_gated(call, rows))
        return found

    def counted() -> list[str | None]:
        return world.db.hmget("batch:tasks:g", "succeeded", "failed", "cancelled")

    demand(counted() == ["1", "1", "2"], f"counted are {counted()}")
    demand(again("one") == [1], "only what is done is left alone")
    is_ready(world, "g:1", why="it failed")
    waits(world, "g:2", "parents")
    waits(world, "g:3", "parents")
    demand(counted() == ["1", "0", "0"], f"counted are {counted()}")
    demand(again("one") == [1], "the same call again changes nothing")
    demand(again("two") == [1, 2, 3, 4], "what waits is left alone")
    for id in ("g:1", "g:2", "g:3"):
        end(world, id, batch="g")
    demand(counted()[0] == "4", f"counted are {counted()}")
    demand(again("three", outdated="g:2") == [1, 2, 4], "what answers another call runs again")
    is_ready(world, "g:2", why="it is outdated")
    end(world, "g:2", batch="g")
    with full(world), contextlib.suppress(redis.exceptions.ResponseError):
        again("four", outdated="g:0")
    demand(world.normal.record("g:0").get("state") == "succeeded", "a full server changes nothing")
    holds(world)


def not_again(world: GateWorld) -> None:
    """A task that cannot be stored again is as it was: a parent that is not there."""
    world.add("a")
    end(world, "a", state="failed")
    before = world.normal.record("a")
    row = (*gated("a", after=[edge("nobody")])[:5], "", "", edge("nobody"))
    (refused,) = world.send("normal", world.normal.commands.resubmit_gated("x", [row]))
    demand(refused[1].startswith("unknown parent"), f"it is answered {refused}")
    demand(world.normal.record("a") == before, "it is not as it was")
    demand(world.db.zscore("dead:tasks", "a") is not None, "it is no dead letter any more")
    holds(world)


SCENES: list[Scene] = [
    *LIMITS,
    *(
        policies,
        some_ended,
        some_left,
        chained,
        fan,
        late,
        then_delayed,
        results_stay,
        over_lanes,
        limits_after,
    ),
    *(batch_ends, told, spawned, unique, until_started, for_a_time, replaced, pushed, once_more),
    *(
        expired,
        expired_where_nothing_moves,
        started_in_time,
        cancelled,
        again,
        full_server,
        doomed,
        graph_again,
        not_again,
    ),
]
