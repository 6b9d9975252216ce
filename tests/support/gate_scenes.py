"""Short scenes of the gate, each for one promise; tests play them, and mutants must fail in one.

Each takes an empty `GateWorld` and raises `Broken` when the promise is not kept.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import redis

from support.gate_checks import check, demand
from support.gate_world import DOOR, Gate, GateWorld, edge, gated, ref_of
from support.script_world import TTL, attempt_ended, outcome

MINUTE = 60_000
Scene = Callable[[GateWorld], None]


# -- what scenes ask -----------------------------------------------------------------------------


def ready(world: GateWorld, lane: str = "normal") -> list[str]:
    """Ids in the stream of a lane, in its order."""
    return [fields["id"] for _, fields in world.lanes[lane].entries()]


def holds(world: GateWorld) -> None:
    """The invariants, now."""
    check(world.look())


def is_ready(world: GateWorld, *ids: str, why: str) -> None:
    """Exactly these stand in the stream of normal priority, and the invariants hold."""
    holds(world)
    demand(ready(world) == list(ids), f"{why}: ready are {ready(world)}, not {list(ids)}")


def waits(world: GateWorld, id: str, reason: str, under: str = "") -> None:
    """A task waits, for this reason."""
    record = world.normal.record(id)
    said = (record.get("state"), record.get("reason"), record.get("under"))
    demand(said == ("waiting", reason, under), f"{id!r} is {said}")


def ended(world: GateWorld, id: str, state: str, reason: str = "") -> dict[str, str]:
    """A task has ended so; its record."""
    record = world.normal.record(id)
    demand(record.get("state") == state, f"{id!r} is {record.get('state')}, not {state}")
    demand(reason in record.get("reason", ""), f"{id!r} says {record.get('reason')!r}")
    return record


def end(world: GateWorld, *ids: str, state: str = "succeeded", batch: str = "") -> None:
    """A worker reads what there is, and ends these; the others go back."""
    read = {f["id"]: entry for entry, f in world.fetch("w", 1000)}
    rows = [outcome(read[id], id, state, body="{}", batch=batch) for id in ids]
    demand(world.settle(*rows) == [], "a settlement was refused")
    others = [entry.encode() for id, entry in read.items() if id not in ids]
    world.normal.call(world.normal.commands.release("w", others))
    holds(world)


def read_one(world: GateWorld, id: str, consumer: str = "w") -> str:
    """A worker has read a task; its entry."""
    read = {f["id"]: entry for entry, f in world.fetch(consumer, 1000)}
    demand(id in read, f"{id!r} cannot be read, but {list(read)}")
    return read[id]


def timer(world: GateWorld, kind: str, what: str) -> bool:
    """Whether a timer stands."""
    return any(words[:2] == (kind, what) for words in world.look().timers)


def field(world: GateWorld, name: str) -> str | None:
    """A field of the limits."""
    return world.db.hget(world.normal.keys.limits, name)


# -- limits --------------------------------------------------------------------------------------


def one_at_a_time(world: GateWorld) -> None:
    """Under a limit of one, tasks run one by one in the order in which they came."""
    world.limit("a", "at_most=1")
    world.add("1", "2", "3", gate=Gate({"a": 1}))
    is_ready(world, "1", why="a limit of one")
    waits(world, "2", "limit", "a")
    demand(field(world, "wa") == "2", f"waiting under a: {field(world, 'wa')}")
    for done, then in (("1", ["2"]), ("2", ["3"]), ("3", [])):
        end(world, done)
        is_ready(world, *then, why=f"{done} has ended")


def weights(world: GateWorld) -> None:
    """A heavy task is not overtaken by light ones that came after it; one alone always has room."""
    world.limit("a", "at_most=3")
    for id, weight in (("2", 2), ("heavy", 2), ("light", 1)):
        world.add(id, gate=Gate({"a": weight}))
    is_ready(world, "2", why="the second has no room, the third came later")
    end(world, "2")
    is_ready(world, "heavy", "light", why="both have room")
    world.limit("a", "at_most=1")
    holds(world)
    end(world, "heavy", "light")
    reply = world.add("too", gate=Gate({"a": 2}))
    demand(reply[0][1].startswith("too heavy"), f"above the limit: {reply}")
    demand(not world.normal.record("too"), "a task was refused, and stored")


def before_the_first(world: GateWorld) -> None:
    """Who has a place before the first in line, which has no room, goes in if it has; and whoever
    stood behind a task that is cancelled."""
    world.limit("a", "at_most=2")
    world.add("1", gate=Gate({"a": 1}))
    world.add("heavy", gate=Gate({"a": 2}))
    world.add("urgent", gate=Gate({"a": 1}, priority=10))
    is_ready(world, "1", "urgent", why="there is room for the urgent one")
    end(world, "urgent")
    world.add("light", gate=Gate({"a": 1}))
    is_ready(world, "1", why="who came later waits behind the heavy one")
    world.normal.cancel("heavy")
    is_ready(world, "1", "light", why="the heavy one has left the line")


def two_keys(world: GateWorld) -> None:
    """Whoever waits under one key holds nothing of another."""
    world.limit("a", "at_most=1")
    world.limit("b", "at_most=1")
    world.add("holds", gate=Gate({"a": 1}))
    world.add("both", gate=Gate({"b": 1, "a": 1}))
    world.add("other", gate=Gate({"b": 1}))
    is_ready(world, "holds", "other", why="the second holds nothing while it waits")
    end(world, "holds")
    waits(world, "both", "limit", "b")
    end(world, "other")
    is_ready(world, "both", why="both its keys are free")


def patterns(world: GateWorld) -> None:
    """A rule for a pattern holds for each key by itself, and a key's own rule wins."""
    world.limit("t:*", "at_most=1")
    world.limit("t:2", "at_most=2")
    for n in range(6):
        world.add(f"{n}", gate=Gate({f"t:{n % 2 + 1}": 1}))
    is_ready(world, "0", "1", "3", why="one of t:1, two of t:2")
    world.limit("t:*", "at_most=2")
    is_ready(world, "0", "1", "3", "2", why="the pattern's rule was raised")


def changed_live(world: GateWorld) -> None:
    """A limit that is raised, or gone, lets in at once; more than a call's share by a timer."""
    world.limit("a", "at_most=1")
    ids = [f"{n}" for n in range(500)]
    world.add(*ids, gate=Gate({"a": 1}))
    before = world.limit("a", "at_most=3")
    demand(before == "at_most=1", f"the rule before was {before!r}")
    is_ready(world, *ids[:3], why="raised to three")
    world.limit("a", "-")
    holds(world)
    demand(len(ready(world)) < 500, "a call let in all at once: it is not bounded")
    demand(timer(world, "more", "a"), "no timer lets in the rest")
    world.promote()
    is_ready(world, *ids, why="the limit is gone")


def paused(world: GateWorld) -> None:
    """A paused key lets nobody in, whoever ends; resumed, it goes on."""
    world.limit("a", paused="1")
    world.add("1", "2", gate=Gate({"a": 1}))
    waits(world, "1", "paused", "a")
    world.limit("a", "at_most=1")
    world.promote()
    is_ready(world, why="it is paused")
    world.limit("a", paused="0")
    is_ready(world, "1", why="resumed")
    world.limit("a", paused="1")
    end(world, "1")
    is_ready(world, why="paused again")
    world.limit("a", paused="0")
    is_ready(world, "2", why="resumed again")


def lanes(world: GateWorld) -> None:
    """The priorities of a queue share its limits, and free them for each other."""
    world.limit("a", "at_most=1")
    world.add("1", gate=Gate({"a": 1}), lane="low")
    world.add("2", gate=Gate({"a": 1}), lane="high")
    world.add("3", gate=Gate({"a": 1}))
    holds(world)
    demand(ready(world, "high") == [], "the lanes do not share the limit")
    ((entry, _),) = world.fetch("w", 1, "low")
    world.settle(outcome(entry, "1"), lane="low")
    holds(world)
    demand(ready(world, "high") == ["2"], "the end of one lane's task frees no other lane's")


def retried(world: GateWorld) -> None:
    """A retry later gives its slot back, a recovery or a release keeps it."""
    world.limit("a", "at_most=1")
    world.add("1", "2", gate=Gate({"a": 1}))
    entry = read_one(world, "1")
    world.normal.call(world.normal.commands.release("w", [entry.encode()]))
    is_ready(world, "1", why="released")
    read_one(world, "1")
    world.normal.recover(consumer="w")
    is_ready(world, "1", why="recovered")
    entry = read_one(world, "1")
    world.normal.retry("w", attempt_ended(entry, "1", delay_ms=MINUTE))
    is_ready(world, "2", why="the first waits for its time")
    world.pass_time()
    world.promote()
    waits(world, "1", "limit", "a")
    end(world, "2")
    is_ready(world, "1", why="the second has ended")
    demand(world.normal.entries()[0][1]["attempt"] == "2", "a retry lost its count")


def at_once(world: GateWorld) -> None:
    """A retry at once goes on, or behind those that wait; all run in the end."""
    world.limit("a", "at_most=1")
    world.add("1", "2", gate=Gate({"a": 1}))
    entry = read_one(world, "1")
    world.normal.retry("w", attempt_ended(entry, "1"))
    holds(world)
    demand(len(ready(world)) == 1, f"one at a time, and ready are {ready(world)}")
    for _ in range(2):
        end(world, ready(world)[0])
    demand({world.normal.state(id) for id in "12"} == {"succeeded"}, "one was left over")


def dead_workers(world: GateWorld) -> None:
    """A task whose worker died too often, is parked for good, or is cancelled, frees its slot."""
    world.limit("a", "at_most=1")
    world.add("dies", "parked", "cancelled", "last", gate=Gate({"a": 1}))
    read_one(world, "dies")
    world.normal.recover(consumer="w", max_recoveries=0)
    is_ready(world, "parked", why="a dead letter has freed its slot")
    entry = read_one(world, "parked")
    world.normal.register("w", names="other")
    demand(world.normal.park("w", (entry, "parked", "job"), grace_ms=0) == ["dead"], "not dead")
    is_ready(world, "cancelled", why="a dead letter has freed its slot")
    world.normal.cancel("cancelled")
    is_ready(world, "last", why="a cancelled task has freed its slot")


def rates(world: GateWorld) -> None:
    """A rate lets in its burst, and the next when its time has come, by one timer."""
    world.limit("a", "rate=2 per=60000 burst=2")
    world.add(*"12345", gate=Gate({"a": 1}))
    is_ready(world, "1", "2", why="a burst of two")
    waits(world, "3", "rate", "a")
    demand(timer(world, "more", "a"), "no timer stands for the rate")
    demand(len(world.look().timers) == 1, f"timers: {world.look().timers}")
    due = min(world.look().timers.values()) - world.normal.now_ms()
    demand(25_000 < due <= 30_000, f"the next token comes in {due} ms, not 30,000")
    end(world, "1", "2")
    is_ready(world, why="no token is there")
    world.promote()
    is_ready(world, why="a timer that is not due was run")
    world.pass_time()
    world.promote()
    demand(1 <= len(ready(world)) <= 2, f"a minute has passed: {ready(world)}")
    demand(ready(world)[0] == "3", "not in line")
    holds(world)


def penalized(world: GateWorld) -> None:
    """A penalty lets nobody in for its time."""
    world.add("1", gate=Gate({"a": 1}))
    world.limit("a", penalty=MINUTE)
    world.add("2", gate=Gate({"a": 1}))
    is_ready(world, "1", why="penalized")
    demand(timer(world, "more", "a"), "no timer ends the penalty")
    end(world, "1")
    is_ready(world, why="still penalized")
    world.pass_time()
    world.promote()
    is_ready(world, "2", why="the penalty is over")


def excess(world: GateWorld) -> None:
    """Above a limit a new task may be dropped: it ends at once, and says why."""
    for word in ("drop", "cancel_new"):
        world.limit("a", f"at_most=1 excess={word}")
        world.add(f"{word}-1", gate=Gate({"a": 1}))
        reply = world.add(f"{word}-2", gate=Gate({"a": 1}))
        demand([r[1] for r in reply] == ["dropped"], f"{word} answered {reply}")
        ended(world, f"{word}-2", "cancelled", "dropped by limit a")
        holds(world)
        end(world, f"{word}-1")
    demand(world.normal.counters().get("cancelled") == 2, f"counted: {world.normal.counters()}")


# -- order ---------------------------------------------------------------------------------------


def in_order(world: GateWorld) -> None:
    """One at a time, in order of arrival, whatever retries and delays come between."""
    world.add("1", "2", "3", gate=Gate(order="o"))
    is_ready(world, "1", why="strict order")
    waits(world, "2", "order", "o")
    entry = read_one(world, "1")
    world.normal.retry("w", attempt_ended(entry, "1", delay_ms=MINUTE))
    is_ready(world, why="the first is between its attempts")
    demand(world.normal.record("1").get("held") == "o", "it does not hold its order")
    world.pass_time()
    world.promote()
    is_ready(world, "1", why="its time has come")
    entry = read_one(world, "1")
    world.normal.retry("w", attempt_ended(entry, "1", attempt="2"))
    is_ready(world, "1", why="retried at once")
    end(world, "1")
    is_ready(world, "2", why="the first has ended")
    entry = read_one(world, "2")
    world.normal.retry("w", attempt_ended(entry, "2", delay_ms=MINUTE))
    world.normal.cancel("2")
    is_ready(world, "3", why="cancelled between its attempts, the second frees its order")
    end(world, "3", state="failed")
    world.normal.call(world.normal.commands.replay(["3"]))
    is_ready(world, "3", why="replayed")


def order_is_paused(world: GateWorld) -> None:
    """A failure may pause the key: nothing of this order runs until it is resumed."""
    world.limit("o", "on_failure=pause")
    world.add("1", "2", gate=Gate(order="o"))
    end(world, "1", state="failed")
    is_ready(world, why="its failure paused the order")
    demand(field(world, "po"), "the key is not paused")
    world.limit("o", paused="0")
    is_ready(world, "2", why="resumed")


def order_and_limit(world: GateWorld) -> None:
    """A task of an order that waits for a limit is not overtaken in its order."""
    world.limit("a", "at_most=1")
    world.add("holds", gate=Gate({"a": 1}))
    world.add("1", gate=Gate({"a": 1}, order="o"))
    world.add("2", gate=Gate(order="o"))
    is_ready(world, "holds", why="the first of the order waits for a limit")
    end(world, "holds")
    is_ready(world, "1", why="the limit is free")
    end(world, "1")
    is_ready(world, "2", why="the first has ended")


def priorities(world: GateWorld) -> None:
    """In a line the more urgent goes first."""
    world.limit("a", "at_most=1")
    world.add("holds", gate=Gate({"a": 1}))
    for id, priority in (("low", -10), ("usual", 0), ("high", 10)):
        world.add(id, gate=Gate({"a": 1}, priority=priority))
    for done, then in (("holds", "high"), ("high", "usual"), ("usual", "low")):
        end(world, done)
        is_ready(world, then, why=f"{done} has ended")


def fair(world: GateWorld) -> None:
    """At a narrow door groups take turns by their weights, however many tasks each has."""
    world.limit("door", "at_most=1")
    world.add(*(f"many{n}" for n in range(8)), gate=Gate(group="many"))
    world.add(*(f"few{n}" for n in range(4)), gate=Gate(group="few", weight=1))
    waits(world, "few0", "share", DOOR)
    taken = []
    for _ in range(8):
        (now,) = ready(world)
        taken.append(now[:3])
        end(world, now)
    demand(taken.count("few") >= 3, f"the door let in {taken}")
    demand("manmanman" not in "".join(taken), f"no turns: {taken}")


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
    while world.normal.now_ms() < until + 60:
        pass
    world.pass_time()
    world.promote()
    ended(world, "later", "expired", "not started by its deadline")
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
    world.send("normal", commands.enqueue_gated([part for task in tasks for part in task]))
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
    *(one_at_a_time, weights, before_the_first, two_keys, patterns, changed_live, paused, lanes),
    *(retried, at_once, dead_workers, rates, penalized, excess),
    *(in_order, order_is_paused, order_and_limit, priorities, fair),
    *(policies, chained, fan, late, then_delayed, results_stay, over_lanes, limits_after),
    *(batch_ends, told, spawned, unique, until_started, for_a_time, replaced, pushed, once_more),
    *(expired, started_in_time, cancelled, again, full_server),
]
