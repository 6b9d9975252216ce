"""Short scenes of limits and orders, and what scenes ask; see `gate_scenes`.

Each takes an empty `GateWorld` and raises `Broken` when the promise is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from support.gate_checks import check, demand
from support.gate_world import DOOR, Gate, GateWorld, edge, gated
from support.script_world import attempt_ended, outcome

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
    said = (record.get("state"), record.get("reason"), record.get("under", ""))
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


def add_all(world: GateWorld, *tasks: tuple[str, ...]) -> None:
    """One call adds all of these (see `gated`), and has nothing to say of any."""
    call = world.normal.commands.enqueue_gated([part for task in tasks for part in task])
    said = world.send("normal", call)
    demand(said == [], f"it is answered {said}")


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


def places(world: GateWorld) -> None:
    """Those that came stand in their order, also where the last place lies ahead of the clock."""
    world.limit("a", "at_most=1")
    ahead = (world.normal.now_ms() + MINUTE) * 1000
    world.db.hset(world.normal.keys.limits, "n", ahead)
    for id in ("1", "2", "3"):
        world.add(id, gate=Gate({"a": 1}))
    found = [int(world.normal.record(id)["place"]) for id in ("2", "3")]
    demand(ahead < found[0] < found[1], f"places {found}, after {ahead}")
    demand(int(field(world, "n") or 0) >= found[1], f"the last place is {field(world, 'n')}")


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
    world.add("again", gate=Gate({"a": 1}))
    world.normal.retry("w", attempt_ended(read_one(world, "again"), "again", delay_ms=MINUTE))
    world.add("new", gate=Gate({"a": 1}))
    world.pass_time()
    world.promote()
    waits(world, "again", "limit", "a")  # it was accepted once
    holds(world)


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
    """In a line the more urgent goes first: under a key, and in a group's at the door."""
    for key, gate in (("a", Gate({"a": 1})), (DOOR, Gate(group="g"))):
        world.limit(key, "at_most=1")
        world.add(f"holds {key}", gate=gate)
        for id, priority in (("low", -10), ("usual", 0), ("high", 10)):
            world.add(f"{id} {key}", gate=replace(gate, priority=priority))
        for done, then in (("holds", "high"), ("high", "usual"), ("usual", "low")):
            end(world, f"{done} {key}")
            is_ready(world, f"{then} {key}", why=f"{done} has ended")
        end(world, f"low {key}")


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


def cancelled_at_the_door(world: GateWorld) -> None:
    """A group of which nobody waits any more takes no turn."""
    world.limit("door", "at_most=1")
    world.add("1", gate=Gate(group="g"))
    world.add("2", gate=Gate(group="h"))
    waits(world, "2", "share", "door")
    world.normal.cancel("2")
    holds(world)


def groups_in_one_call(world: GateWorld) -> None:
    """Groups that come together, and were not there before, all take their turns."""
    world.limit("door", "at_most=2")
    world.add("hold1", "hold2", gate=Gate(group="hold"))
    names = [f"{group}{n}" for n in (1, 2) for group in "abcd"]
    add_all(world, *(gated(id, Gate(group=id[0]).text) for id in names))
    for id in names:
        waits(world, id, "share", DOOR)
    taken = []
    end(world, "hold1", "hold2")
    while now := ready(world):
        taken += now
        end(world, *now)
    demand(taken == names, f"the door let in {taken}")


def turns_in_one_call(world: GateWorld) -> None:
    """Who ends together lets in as many as there is room for, each group as often as its weight
    says; one that may not go in yet waits under its own key, and stops nobody."""
    world.limit("door", "at_most=4")
    world.add(*(f"hold{n}" for n in range(4)), gate=Gate(group="hold"))
    world.limit("group:wide", "at_most=1")
    world.add("wide1", "wide2", gate=Gate(group="wide"))
    world.add(*(f"one{n}" for n in range(2)), gate=Gate(group="one"))
    world.add(*(f"four{n}" for n in range(8)), gate=Gate(group="four", weight=4))
    end(world, *(f"hold{n}" for n in range(4)))
    is_ready(world, "four0", "one0", "wide1", "four1", why="four have ended")
    end(world, "four0", "one0")
    is_ready(world, "four2", "four3", "wide1", "four1", why="it has four turns for one of others")
    waits(world, "wide2", "share", DOOR)
    end(world, "four1", "four2", "four3")
    is_ready(world, "four4", "one1", "four5", "wide1", why="one group has its slot")
    waits(world, "wide2", "limit", "group:wide")
    end(world, "four4", "four5", "wide1")
    demand(sorted(ready(world)) == ["four6", "four7", "one1", "wide2"], "its slot is free")


def line_written_between_turns(world: GateWorld) -> None:
    """A group's next turn is that of the next in its line, also where the line is written between
    its turns: since another key has to be looked at whose line is read."""
    world.limit("door", "at_most=3")
    world.limit("j", "at_most=1")
    world.limit("k", "at_most=1")
    holding = [f"hold{n}" for n in range(3)]
    world.add(*holding, gate=Gate(group="hold"))
    world.add("a1", "a2", "a3", gate=Gate({"k": 1}, group="a"))
    world.add("b1", gate=Gate({"j": 1}, group="b"))
    world.add("j1", "j2", gate=Gate({"j": 1}))
    world.add("k1", "k2", gate=Gate({"k": 1}))
    for id in ("a1", "a2", "a3", "b1"):
        waits(world, id, "share", DOOR)
    end(world, *holding)
    for id in ("a1", "a2", "a3"):
        waits(world, id, "limit", "k")
    waits(world, "b1", "limit", "j")
    end(world, "j1")
    is_ready(world, "b1", "k1", why="it came before the other in its line")
    end(world, "k1")
    is_ready(world, "a1", "b1", why="it came before the others in its line")


def unreadable(world: GateWorld) -> None:
    """A record that cannot be read stops who is behind it, for a while; who went in before it is in
    and counted."""
    for key, gate in (("k", Gate({"k": 1})), (DOOR, Gate(group="g"))):
        world.limit(key, "at_most=3")
        running, then = ([f"{key}{n}" for n in numbers] for numbers in (range(3), range(3, 6)))
        world.add(*running, *then, gate=gate)
        read = {f["id"]: entry for entry, f in world.fetch()}
        record = f"task:tasks:{then[1]}"
        world.db.rename(record, "aside")
        world.db.set(record, "no record")
        world.settle(*(outcome(read[id], id) for id in running))
        world.db.rename("aside", record)
        is_ready(world, then[0], why="the next cannot be read")
        demand(timer(world, "more", key), "no timer goes on with the rest")
        world.pass_time()
        world.promote()
        is_ready(world, *then, why="it can be read again")
        end(world, *then)


def failed_and_read(world: GateWorld) -> None:
    """The error of a parent is there until who runs after any end has read it."""
    world.add("1")
    world.add("2", after=[edge("1", "e")])
    end(world, "1", state="failed")
    demand(world.db.pttl("task:tasks:1") < 0, "it expires before it is read")
    end(world, "2")
    demand(world.db.pttl("task:tasks:1") > 0, "it is kept for nobody")


LIMITS: list[Scene] = [
    *(
        one_at_a_time,
        places,
        weights,
        before_the_first,
        two_keys,
        patterns,
        changed_live,
        paused,
        lanes,
    ),
    *(retried, at_once, dead_workers, rates, penalized, excess),
    *(in_order, order_is_paused, order_and_limit, priorities, fair),
    *(cancelled_at_the_door, groups_in_one_call, turns_in_one_call),
    *(line_written_between_turns, unreadable, failed_and_read),
]
