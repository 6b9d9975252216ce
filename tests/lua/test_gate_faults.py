"""The gate's scripts fail in their middle: every command is refused once, and every key of the
gate holds something else once. Whatever fails, no task is lost, and all end once it is over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from support import gate_checks
from support.gate_checks import demand
from support.gate_world import ENDS, Gate, GateWorld, edge, gated, options
from support.script_world import TTL, Broken, attempt_ended, outcome, resubmitted
from support.servers import Server

from redistq.protocol import scripts
from redistq.protocol.commands import Command

MINUTE = 60_000
AT_START = {
    ("settle", "ZADD"),
    ("settle", "HGET"),
    ("settle", "HSETNX"),
    ("settle", "PTTL"),
    ("settle_failed", "PTTL"),
}
"""Without these rights no worker starts (see rights.lua): the children of its tasks would be lost,
or a result that has still to be read."""
A = Gate({"a": 1})


@dataclass
class Scene:
    """A queue in which a verb has something to do at the gate."""

    commands: list[Command]
    tasks: list[str]
    replays: dict[str, int] = field(default_factory=dict)
    added: bool = False
    """The calls add the tasks: before they succeed there may be fewer."""


def entry_of(world: GateWorld, id: str) -> str:
    """A worker has read a task; its entry."""
    return {f["id"]: entry for entry, f in world.fetch("w", 100)}[id]


def enqueue(world: GateWorld) -> Scene:
    """New tasks with room and without, for later, of a parent, of an order and a unique key."""
    world.limit("a", "at_most=1")
    world.add("p")
    new = [
        gated("1", A.text),
        gated("2", A.text),
        gated("later", A.text, due="+60000"),
        gated("child", A.text, [edge("p")]),
        gated("order", Gate(order="o").text),
        gated("order2", Gate(order="o").text),
        gated("only", Gate(unique="u").text),
        gated("group", Gate(group="g").text),
        gated("rated", Gate({"b": 1}, priority=5, expires="+600000").text),
    ]
    fields = [part for task in new for part in task]
    call = world.normal.commands.enqueue_gated(fields)
    return Scene([call], ["p", *(task[0] for task in new)], added=True)


def settle(world: GateWorld) -> Scene:
    """The end of a task that lets in others, releases children and brings its own."""
    world.limit("a", "at_most=1")
    world.add("1", "2", "3", gate=A)
    world.add("child", gate=A, after=[edge("1")])
    world.add("free", after=[edge("1")])
    entry = entry_of(world, "1")
    children = [(1, gated("new", A.text))]
    call = world.settling(outcome(entry, "1"), children=children)
    return Scene([call], ["1", "2", "3", "child", "free", "new"], added=True)


def settle_returned(world: GateWorld) -> Scene:
    """The return of a task that holds keys: it waits for the last of what it returned."""
    world.limit("a", "at_most=1")
    world.add("1", gate=Gate({"a": 1}, unique="u"))
    world.add("2", gate=A)
    world.add("child", after=[edge("1")])
    entry = entry_of(world, "1")
    children = [(1, gated("new", A.text)), (1, gated("last", A.text, [edge("new")]))]
    call = world.settling(outcome(entry, "1", "continued", body="last"), children=children)
    return Scene([call], ["1", "2", "child", "new", "last"], added=True)


def settle_last(world: GateWorld, state: str = "succeeded") -> Scene:
    """The end of what a task returned: that one ends, too."""
    world.normal.call(world.normal.commands.open_batch("b", "job", 1, int(TTL)))
    world.add("1", gate=Gate({"a": 1}, unique="u"), batch="b")
    world.add("child", gate=A, after=[edge("1", "e")])
    entry = entry_of(world, "1")
    row = outcome(entry, "1", "continued", body="last", batch="b")
    demand(
        world.send("normal", world.settling(row, children=[(1, gated("last"))])) == [], "refused"
    )
    call = world.settling(outcome(entry_of(world, "last"), "last", state, body="{}"))
    return Scene([call], ["1", "child", "last"])


def settle_last_failed(world: GateWorld) -> Scene:
    """The same when that failed."""
    return settle_last(world, "failed")


def cancel_returned(world: GateWorld) -> Scene:
    """A task is cancelled while it waits for what it returned."""
    settle_last(world)
    return Scene([world.normal.commands.cancel(["1"])], ["1", "child", "last"])


def settle_failed(world: GateWorld) -> Scene:
    """A failure that cancels what depends on it."""
    world.add("1", gate=Gate({"a": 1}, unique="u"))
    world.add("child", gate=A, after=[edge("1")])
    world.add("grandchild", gate=A, after=[edge("child")])
    world.add("other", after=[edge("1", "f")])
    entry = entry_of(world, "1")
    call = world.settling(outcome(entry, "1", "failed", body="{}"))
    return Scene([call], ["1", "child", "grandchild", "other"])


def retry(world: GateWorld) -> Scene:
    """Retries now and later, with others that wait."""
    world.limit("a", "at_most=2")
    world.add("1", "2", "3", "4", gate=A)
    world.add("5", "6", gate=Gate(order="o"))
    read = {f["id"]: entry for entry, f in world.fetch("w", 100)}
    rows = [
        attempt_ended(read["1"], "1"),
        attempt_ended(read["2"], "2", delay_ms=MINUTE),
        attempt_ended(read["5"], "5", delay_ms=MINUTE),
    ]
    return Scene([world.normal.commands.retry("w", rows)], ["1", "2", "3", "4", "5", "6"])


def recover(world: GateWorld) -> Scene:
    """A dead worker had one that is a dead letter now."""
    world.limit("a", "at_most=1")
    world.add("1", "2", gate=A)
    world.add("child", after=[edge("1")])
    world.fetch("w", 10)
    call = world.normal.commands.recover(0, consumer="w")
    return Scene([call], ["1", "2", "child"])


def park(world: GateWorld) -> Scene:
    """A name that nobody knows: one waits for its time, one is a dead letter."""
    world.limit("a", "at_most=2")
    world.normal.register("other", names="else")
    world.add("1", "2", "3", gate=A)
    read = {f["id"]: entry for entry, f in world.fetch("w", 100)}
    calls = [
        world.normal.commands.park("w", grace, [(read[id], id, "job")])
        for id, grace in (("1", MINUTE), ("2", 0))
    ]
    return Scene(calls, ["1", "2", "3"])


def cancel(world: GateWorld) -> Scene:
    """Tasks that wait for room, for parents, for a time, and one that is ready."""
    world.limit("a", "at_most=1")
    world.add("1", "2", "3", gate=A)
    world.add("child", gate=A, after=[edge("3")])
    world.add("later", gate=A, due="+60000")
    call = world.normal.commands.cancel(["1", "2", "child", "later"], int(TTL))
    return Scene([call], ["1", "2", "3", "child", "later"])


def promote(world: GateWorld) -> Scene:
    """Tasks that are due, with room and without, and timers."""
    world.limit("a", "at_most=1")
    world.limit("b", "rate=1 per=60000 burst=1")
    world.add("1", "2", gate=A, due="+60000")
    world.add("3", "4", gate=Gate({"b": 1}))
    world.pass_time()
    return Scene([world.normal.commands.promote()], ["1", "2", "3", "4"])


def replay(world: GateWorld) -> Scene:
    """Dead letters again, of which one has room."""
    world.limit("a", "at_most=1")
    for id in "12":
        world.add(id, gate=A)
        world.settle(outcome(entry_of(world, id), id, "failed", body="{}"))
    call = world.normal.commands.replay(["1", "2"])
    return Scene([call], ["1", "2"], replays={"1": 1, "2": 1})


def resubmit(world: GateWorld) -> Scene:
    """Cancelled ones again, of which one has room."""
    world.limit("a", "at_most=1")
    world.normal.call(world.normal.commands.open_batch("b", "job", 9, int(TTL)))
    world.add("1", "2", gate=A, batch="b")
    world.normal.cancel("1", "2")
    opts = gated("1", A.text, batch="b")[3]
    call = world.normal.commands.resubmit("c", [resubmitted(id, opts=opts) for id in "12"])
    return Scene([call], ["1", "2"], replays={"1": 1, "2": 1})


def resubmit_graph(world: GateWorld) -> Scene:
    """A graph again: a failure, and those that were cancelled by it, each after the one before."""
    world.normal.call(world.normal.commands.open_batch("b", "job", 9, int(TTL)))
    world.add("1", gate=Gate({"a": 1}, unique="u"), batch="b")
    world.add("2", gate=A, after=[edge("1")], batch="b")
    world.add("3", after=[edge("2")], batch="b")
    world.add("child", after=[edge("1", "f"), edge("3", "e")])
    row = outcome(entry_of(world, "1"), "1", "failed", body="{}", batch="b")
    demand(world.settle(row) == [], "refused")
    made = {"1": ("", Gate({"a": 1}, unique="u").text), "2": ("st 1", A.text), "3": ("st 2", "")}
    rows = [
        (*resubmitted(id, opts=options(gate, "b", after=bool(after))), after)
        for id, (after, gate) in made.items()
    ]
    call = world.normal.commands.resubmit_gated("c", rows)
    return Scene([call], ["1", "2", "3", "child"], replays=dict.fromkeys("123", 1))


def regate(world: GateWorld) -> Scene:
    """Tasks whose name has a rule go back to wait under it; others take their room."""
    world.limit("a", "at_most=2")
    world.add("1", "2", "3", gate=A)
    world.add("4", "5", gate=Gate(order="o"))
    read = {f["id"]: entry for entry, f in world.fetch("w", 100)}
    world.limit("name:job", "at_most=1")
    entries = [read[id].encode() for id in "124"]
    return Scene([world.normal.commands.regate("w", entries)], ["1", "2", "3", "4", "5"])


def limit(world: GateWorld) -> Scene:
    """A limit is raised, and a paused key resumed."""
    world.limit("a", "at_most=1")
    world.limit("b", paused="1")
    world.add("1", "2", "3", gate=A)
    world.add("4", "5", gate=Gate({"b": 1}))
    calls = [
        world.normal.commands.limit("a", "at_most=2"),
        world.normal.commands.limit("b", "", paused="0"),
    ]
    return Scene(calls, ["1", "2", "3", "4", "5"])


def scheduled(world: GateWorld, rule: str = '{"every": 1000}', name: str = "s") -> Command:
    """A schedule whose tasks do not overlap is set."""
    opts = gated("s", Gate({"a": 1}, unique=f"schedule:{name}").text)[3]
    adds = {"task": "job", "opts": opts, "conditions": "", "catch_up": gated("s", A.text)[3]}
    call = world.normal.commands.set_schedule
    return call(
        *(name, rule, json.dumps(adds), b'{"of":"%s"}' % name.encode()),
        next_ms=1000,
        anchor_ms=0,
        again_ms=1000,
        most=9,
    )


def fire(world: GateWorld) -> Scene:
    """Occurrences of schedules that have room and have none."""
    world.limit("a", "at_most=1")
    for name in "12":
        world.send("normal", scheduled(world, name=name))
    fire = world.normal.commands.fire
    calls = [fire(name, [(name, 1000)]) for name in "12"]
    return Scene(calls, ["1", "2"], added=True)


def set_schedule(world: GateWorld) -> Scene:
    """A schedule is made, changed, paused, resumed and deleted, beside a task."""
    world.add("1", gate=A)
    commands = world.normal.commands
    calls = [
        scheduled(world),
        scheduled(world, "{}"),
        commands.set_schedule("s", paused="1", again_ms=1000),
        commands.set_schedule("s", paused="0", next_ms=5000, anchor_ms=0, again_ms=1000),
        scheduled(world),
        commands.set_schedule("s", "-"),
        scheduled(world),
    ]
    return Scene(calls, ["1"])


def promote_schedules(world: GateWorld) -> Scene:
    """Schedules are due, and tasks."""
    world.send("normal", scheduled(world))
    world.add("1", "2", gate=A, due="+60000")
    world.pass_time()
    return Scene([world.normal.commands.promote()], ["1", "2"])


SCENES: list[Callable[[GateWorld], Scene]] = [
    *(enqueue, settle, settle_failed, retry, recover, park, cancel, promote, replay, resubmit),
    *(fire, set_schedule, promote_schedules),
    *(limit, regate, resubmit_graph, settle_returned, settle_last),
    *(settle_last_failed, cancel_returned),
]

# -- faults --------------------------------------------------------------------------------------

_COMMAND = re.compile(r"(?:call|pcall|aside|undoing|look|redis\.call|R)\(?[^()']*'([A-Z]{3,})'")


def commands_of(command: Command) -> set[str]:
    """Every command that a call's script has in it."""
    found = set(_COMMAND.findall(scripts.text_of(command[1])))
    return found - {"LIMIT", "WITHSCORES", "COUNT", "MAXLEN", "HEXISTS"}


@contextmanager
def without_right(world: GateWorld, command: str) -> Iterator[None]:
    """Calls are made by a user who may do all but one command."""
    world.db.execute_command(
        *("ACL", "SETUSER", "law", "reset", "on", "nopass", "+@all", "~*", "&*"),
        f"-{command.lower()}",
    )
    lane = world.normal
    admin = lane._wire
    user = redis.Connection(
        host="127.0.0.1", port=lane.port, username="law", password="any", protocol=2
    )
    lane._wire = user
    try:
        yield
    finally:
        lane._wire = admin
        user.disconnect()


@contextmanager
def another_type(world: GateWorld, key: str) -> Iterator[None]:
    """A key holds something else for a while."""
    aside = f"aside:{key}"
    there = world.db.exists(key)
    if there:
        world.db.rename(key, aside)
    world.db.set(key, "something else")
    yield
    if world.db.type(key) == "string":
        world.db.delete(key)
    elif there:
        raise Broken(f"{key} held something else, and was taken")
    if there:
        world.db.rename(aside, key)


def answers(world: GateWorld, scene: Scene) -> list[Any]:
    """Each call's answer, or its error."""
    found: list[Any] = []
    for command in scene.commands:
        try:
            found.append(world.send("normal", command))
        except redis.exceptions.ResponseError as error:
            found.append(error)
    return found


def conserved(world: GateWorld, scene: Scene, *, history: bool) -> None:
    """Each task that has been accepted is in one place."""
    there = [id for id in scene.tasks if world.normal.record(id)]
    demand(scene.added or there == scene.tasks, f"lost: {set(scene.tasks) - set(there)}")
    counts = dict.fromkeys(there, 0)
    for id in there:
        if world.normal.record(id).get("from") in ("replay", "resubmit"):
            counts[id] = 1
    world.normal.check(counts, history=history)


def drain(world: GateWorld, scene: Scene, *, history: bool, figures: bool) -> None:
    """Everything ends; the gate is left empty, where its own figures were not what was broken."""
    for key in ("a", "b", "name:job"):
        world.limit(key, "-", paused="0")
    for consumer in ("w", "other"):
        while world.normal.recover(consumer=consumer, started=[], max_recoveries=99).more:
            pass
    for _ in range(30):
        world.pass_time()
        world.promote()
        read = world.fetch("last", 100)
        if not read and not world.db.zcard(world.normal.keys.waiting):
            break
        rows = [outcome(e, f["id"], attempt=f["attempt"]) for e, f in read]
        demand(world.settle(*rows, consumer="last") == [], "refused")
    conserved(world, scene, history=history)
    for id in scene.tasks:
        record = world.normal.record(id)
        demand(record.get("state") in ENDS, f"{id!r} never ended: {record}")
    if figures:
        gate_checks.check(world.look(), zeros=True)


def try_fault(
    server: Server, make: Callable[[GateWorld], Scene], name: str, fault: Callable[..., Any], *,
    history: bool = True, figures: bool = True,
) -> None:  # fmt: skip
    """One fault in one scene: nothing is lost, and all ends once it is over."""
    with server.client() as admin:
        admin.flushall()
    world = GateWorld(server)
    try:
        scene = make(world)
        with fault(world):
            answers(world, scene)
        conserved(world, scene, history=history)
        if figures:
            gate_checks.check(world.look(), zeros=True)
        for _ in range(2):  # as a caller does that had an error, or no answer
            for answer in answers(world, scene):
                demand(not isinstance(answer, Exception), f"{answer}")
        drain(world, scene, history=history, figures=figures)
    except Exception as error:
        raise Broken(f"{make.__name__}, {name}: {type(error).__name__}: {error}") from error
    finally:
        world.close()


@pytest.mark.parametrize("make", SCENES, ids=lambda make: make.__name__)
def test_a_right_that_is_missing_loses_no_gated_task(every_server: Server, make: Any) -> None:
    """Each command of the scripts is refused in turn: what was not done whole was not done."""
    world = GateWorld(every_server)
    commands = {c for call in make(world).commands for c in commands_of(call)}
    world.close()
    assert len(commands) > 3
    for command in sorted(commands):
        if (make.__name__, command) not in AT_START:
            try_fault(
                *(every_server, make, f"-{command}"),
                lambda w, c=command: without_right(w, c),
                figures=command != "HDEL",  # what is no more is still said
            )


KEYS = {
    "limits": "limits:tasks",
    "waiting": "waiting:tasks",
    "the line of a": "waiting:tasks:a",
    "the line of o": "waiting:tasks:o",
    "shares": "shares:tasks",
    "unique": "unique:tasks",
    "edges of p": "dependants:tasks:t:p",
    "edges of 1": "dependants:tasks:t:1",
    "edges of 3": "dependants:tasks:t:3",
    "schedules": "schedules:tasks",
    "due": "due:tasks",
    "delayed": "delayed:tasks",
    "waiters": "waiters:tasks",
    "task 1": "task:tasks:1",
    "task 2": "task:tasks:2",
    "a child": "task:tasks:child",
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("make", SCENES, ids=lambda make: make.__name__)
def test_a_key_of_the_gate_that_holds_something_else_loses_nothing(
    every_server: Server, make: Any, key: str
) -> None:
    """Each key of the gate is of another type in turn."""
    try_fault(
        *(every_server, make, f"{key} is a string"),
        lambda world: another_type(world, KEYS[key]),
        figures=not key.startswith(("limits", "waiting", "the line", "shares", "unique", "edges")),
    )
