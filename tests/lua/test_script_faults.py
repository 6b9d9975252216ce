"""A script that fails in its middle: every command of every script is refused once, and every key
it touches holds something else once.

A server undoes nothing of a script that fails, so each task of a call must be written whole or not
at all by the script itself. Whatever fails, each accepted task is in exactly one place; neighbours
go on; and once the cause is removed, the same call made again and a well-behaved worker bring all
of them to exactly one end.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from support.script_world import (
    LEASE_MS,
    TTL,
    Broken,
    World,
    attempt_ended,
    outcome,
    put_off,
    resubmitted,
)
from support.servers import Server
from support.workers import until

from redistq import ConfigurationError, RedistqError, TaskProducer, TaskWorker
from redistq.protocol import scripts
from redistq.protocol.commands import Command, Commands

MINUTE = 60_000
VICTIM = "victim"
SIDE_KEYS = (
    "history",
    "counters",
    "batches",
    "meta",
    "waiters",
    "inbox_prefix",
    "settled_prefix",
    "items_prefix",
)
"""What is beside the tasks: while it holds something else, tasks go on without it."""
KNOWN_ID = {("enqueue", "XDEL")}
"""Taking back the entry of an id that was known: the producer's error names the right, and the
entry stays. To prove the right first would cost every task that is added a command."""


@dataclass
class Scene:
    """A queue in which a verb has something to do: its commands, and every task there is."""

    commands: list[Command]
    tasks: list[str]
    replays: dict[str, int] = field(default_factory=dict)
    added: bool = False
    """The calls add the tasks: before they succeed there may be fewer."""


def with_batch(world: World, *ids: str, due: str = "") -> list[str]:
    """Tasks of one batch that a client waits for."""
    world.call(world.commands.open_batch("b", "job", 1000, int(TTL)))
    world.add(*ids, due=due, opts='{"batch":"b","inbox":"box"}')
    return list(ids)


def fetched(world: World, consumer: str = "w") -> dict[str, str]:
    """All that is unread, read by a consumer: entry by task id."""
    return {fields["id"]: entry for entry, fields in world.fetch(consumer, 100)}


def enqueue(world: World) -> Scene:
    """New tasks for now and later, and one that is known."""
    world.add("known")
    fields: list[Any] = []
    for id, due in (("a", ""), (VICTIM, ""), ("later", "+60000"), ("known", ""), ("b", "")):
        fields += [id, "job", f'{{"of":"{id}"}}', "", due]
    return Scene([world.commands.enqueue(fields)], ["known", "a", VICTIM, "later", "b"], added=True)


def enqueue_later(world: World) -> Scene:
    """New tasks for later, the victim first."""
    fields: list[Any] = []
    for id in (VICTIM, "a"):
        fields += [id, "job", f'{{"of":"{id}"}}', "", "+60000"]
    return Scene([world.commands.enqueue(fields)], [VICTIM, "a"], added=True)


def promote(world: World) -> Scene:
    """Due tasks, and one that is not."""
    ids = with_batch(world, "a", VICTIM, "b", due="+60000")
    world.make_due()
    world.add("later", due="+60000")
    return Scene([world.commands.promote()], [*ids, "later"])


def settle(world: World) -> Scene:
    """Results that are kept or not, failures, with inbox, waiter and batch; and an unread task."""
    world.add("zero")
    ids = with_batch(world, "a", VICTIM, "b", "c")
    world.watch("a", "other")
    read = fetched(world)
    rows = [
        outcome(read["zero"], "zero", ttl="0"),
        outcome(read["a"], "a", inbox="box", batch="b"),
        outcome(read[VICTIM], VICTIM, inbox="box", batch="b"),
        outcome(read["b"], "b", "failed", body="{}", inbox="box", batch="b"),
        outcome(read["c"], "c", inbox="box", batch="b"),
    ]
    world.add("unread")
    return Scene([world.commands.settle("w", rows)], ["zero", *ids, "unread"])


def settle_failed(world: World) -> Scene:
    """Failures alone."""
    ids = with_batch(world, "a", VICTIM)
    read = fetched(world)
    rows = [outcome(read[id], id, "failed", body="{}", inbox="box", batch="b") for id in ids]
    return Scene([world.commands.settle("w", rows)], ids)


def retry(world: World) -> Scene:
    """Another attempt at once, one later, and a snooze."""
    ids = with_batch(world, "a", VICTIM, "b", "c")
    read = fetched(world)
    rows = [
        attempt_ended(read["a"], "a", error="{}"),
        attempt_ended(read[VICTIM], VICTIM, error="{}", delay_ms=MINUTE),
        attempt_ended(read["b"], "b", "snoozed", delay_ms=MINUTE),
        attempt_ended(read["c"], "c", error="{}"),
    ]
    return Scene([world.commands.retry("w", rows)], ids)


def report(world: World) -> Scene:
    """How far two tasks are, and where another attempt would go on."""
    ids = with_batch(world, "a", VICTIM, "b")
    read = fetched(world)
    rows: list[list[Any]] = [
        [read["a"], "a", "1 3 10", 5, "a text", b"7"],
        [read[VICTIM], VICTIM, "1 3 -", 5, "", b""],
        [read["b"], "b", "", 5, "", b"{}"],
    ]
    return Scene([world.commands.report("w", rows)], ids)


def release(world: World) -> Scene:
    """Unstarted work goes back, now or when nothing else is left to read."""
    ids = with_batch(world, "a", VICTIM, "b")
    read = fetched(world)
    calls = [
        world.commands.release("w", [read["a"].encode()], True),
        world.commands.release("w", [read[VICTIM].encode(), read["b"].encode()]),
    ]
    return Scene(calls, ids)


def park(world: World) -> Scene:
    """Names that nobody knows: some wait, some are dead letters."""
    world.register("other", names="else")
    ids = with_batch(world, "a", VICTIM, "b", "c")
    read = fetched(world)
    rows = [(read[id], id, "job") for id in ids]
    calls = [world.commands.park("w", MINUTE, rows[:3:2]), world.commands.park("w", 0, rows[1::2])]
    return Scene(calls, ids)


def park_all(world: World) -> Scene:
    """As park, with a victim that waits."""
    world.register("other", names="job")
    ids = with_batch(world, "a", VICTIM)
    read = fetched(world)
    return Scene([world.commands.park("w", MINUTE, [(read[id], id, "job") for id in ids])], ids)


def regate(world: World) -> Scene:
    """Tasks whose name has a rule go back to wait under it."""
    ids = with_batch(world, "a", VICTIM, "b")
    world.call(world.commands.limit("name:job", "at_most=9"))
    read = fetched(world)
    entries = [read[id].encode() for id in ids]
    return Scene([world.commands.regate("w", entries)], ids)


def quarantine(world: World) -> Scene:
    """An entry that is no task, among tasks."""
    world.db.xadd(world.keys.stream, {"odd": "1"})
    ids = with_batch(world, "a")
    ((odd, _),) = world.call(world.commands.fetch("w", 1, None))[0][1]
    return Scene([world.commands.quarantine("w", odd, "no task")], ids)


def recover(world: World) -> Scene:
    """A dead worker's tasks: started, merely held, and one that was recovered too often."""
    world.register("w")
    ids = with_batch(world, "often")
    for _ in range(2):
        world.fetch("w", 1)
        world.recover(consumer="w", max_recoveries=9)
    ids += with_batch(world, "a", VICTIM, "b")
    world.register("w")
    world.register("alive")
    fetched(world)
    world.expire("w")
    return Scene([world.commands.recover(2)], ids)


def recover_reported(world: World) -> Scene:
    """The same of a worker that its supervisor reports."""
    world.register("w")
    world.register("alive")
    ids = with_batch(world, "a", VICTIM, "b")
    read = fetched(world)
    return Scene([world.commands.recover(2, consumer="w", started=[read["a"], read[VICTIM]])], ids)


def cancel(world: World) -> Scene:
    """A running task, one that is queued, one that is delayed, one that ended, one nobody knows."""
    ids = with_batch(world, "runs")
    fetched(world)
    ids += with_batch(world, "a", VICTIM)
    ids += with_batch(world, "later", due="+60000")
    world.watch("a", "other")
    return Scene([world.commands.cancel(["runs", "a", VICTIM, "later", "nobody"], int(TTL))], ids)


def cancel_delayed(world: World) -> Scene:
    """Delayed tasks."""
    ids = with_batch(world, "a", VICTIM, due="+60000")
    return Scene([world.commands.cancel(ids, int(TTL))], ids)


def append_items(world: World) -> Scene:
    """Running tasks yield, one from the beginning again; readers take what there is."""
    ids = with_batch(world, "a", VICTIM, "b")
    read = fetched(world)
    chunks = [(read[id], id, 1, 0, 2, "", "999", TTL, "xx") for id in ids]
    world.call(world.commands.append_items("w", chunks[2:]))
    chunks.append((read["b"], "b", 2, 0, 1, "99", "0", TTL, "x"))
    chunks.append((read["b"], "b", 2, 1, 1, "99", "0", TTL, "x"))
    looks = [world.commands.read_items(id, "1", 0, "2", 1000) for id in ids]
    return Scene([world.commands.append_items("w", chunks), *looks], ids)


def replay(world: World) -> Scene:
    """Dead letters go again."""
    ids = with_batch(world, "a", VICTIM, "b")
    read = fetched(world)
    rows = [outcome(read[id], id, "failed", body="{}", batch="b") for id in ids]
    world.settle("w", *rows)
    return Scene([world.commands.replay(ids)], ids, replays=dict.fromkeys(ids, 1))


def resubmit(world: World) -> Scene:
    """Failed, cancelled and outdated tasks of a batch go again, now and later; one runs, one has a
    result that counts, one is new, and the record of one has expired."""
    ids = with_batch(world, "runs")
    fetched(world)
    ids += with_batch(world, "a", VICTIM, "later", "outdated", "counts", "expired")
    world.cancel("later")
    read = fetched(world)
    ends = {"a": "failed", VICTIM: "failed"}
    rows = [
        outcome(entry, id, ends.get(id, "succeeded"), body="{}", batch="b")
        for id, entry in read.items()
    ]
    world.settle("w", *rows)
    world.db.delete(world.keys.task("expired"))
    again = [id for id in ids if id not in ("runs", "counts")]
    items = [
        resubmitted(
            id,
            due="+60000" if id == "later" else "",
            counted="succeeded" if id == "expired" else "",
        )
        for id in (*ids, "new")
    ]
    call = world.commands.resubmit("call", items)
    return Scene([call], [*ids, "new"], replays=dict.fromkeys(again, 1), added=True)


def resubmit_later(world: World) -> Scene:
    """Failed tasks go again at a later time."""
    ids = with_batch(world, "a", VICTIM)
    read = fetched(world)
    world.settle("w", *(outcome(read[id], id, "failed", body="{}", batch="b") for id in ids))
    call = world.commands.resubmit("call", [resubmitted(id, due="+60000") for id in ids])
    return Scene([call], ids, replays=dict.fromkeys(ids, 1))


def suspend(world: World) -> Scene:
    """A sleep, a wait, and a wait whose event has come."""
    ids = with_batch(world, "a", VICTIM, "b")
    world.call(world.commands.send_event("came", "mark", b"1", MINUTE))
    read = fetched(world)
    rows = [
        put_off(read["a"], "a"),
        put_off(read[VICTIM], VICTIM, event="paid"),
        put_off(read["b"], "b", event="came"),
    ]
    return Scene([world.commands.suspend("w", rows)], ids)


def steps_kept(world: World) -> Scene:
    """Steps of running tasks are written and read, and an event is taken."""
    ids = with_batch(world, "a", VICTIM)
    world.call(world.commands.send_event("came", "mark", b"1", MINUTE))
    read = fetched(world)
    calls = [
        world.commands.step("w", (read[id], id), 1, "pay", "1.000", b"1") for id in ("a", VICTIM)
    ]
    calls.append(world.commands.expect("w", (read["a"], "a"), 2, "came", 0, "-", ""))
    return Scene([*calls, world.commands.recall(VICTIM, whole=True)], ids)


def event_sent(world: World) -> Scene:
    """An event for all that wait for it, and a message to one."""
    ids = with_batch(world, "a", VICTIM, "b")
    read = fetched(world)
    world.suspend("w", *(put_off(read[id], id, event="paid") for id in ("a", VICTIM)))
    world.suspend("w", put_off(read["b"], "b", event="other"))
    calls = [
        world.commands.send_event("paid", "mark", b"1", MINUTE),
        world.commands.send_event("other", "more", b"1", MINUTE, "b"),
    ]
    return Scene(calls, ids)


def maintenance(world: World) -> Scene:
    """What moves no task: workers come and beat, ownerless ones get a deadline, somebody looks."""
    ids = with_batch(world, "a", VICTIM)
    world.register("w")
    fetched(world, "ownerless")
    return Scene(
        [
            world.commands.create_group(),
            world.commands.register("v", LEASE_MS, {"host": "h", "names": "job"}),
            world.commands.heartbeat(LEASE_MS, [("w", "1-1"), ("v", "="), ("new", "2-2")]),
            world.commands.adopt(LEASE_MS),
            world.commands.watch(VICTIM, "other"),
            world.commands.open_batch("c", "job", 3, int(TTL)),
            world.commands.open_batch("c", "job", 3, int(TTL)),
            world.commands.grow_batch("c", 3, 5, b"n" * 8, int(TTL), int(TTL)),
            world.commands.update_batch("c", 2, b"packet", "made"),
            world.commands.update_batch("c", 2, b"packet", "made"),
            world.commands.deploy("app", "v1", "ask"),
            world.commands.deploy("app", "v1", "done"),
        ],
        ids,
    )


SCENES: list[Callable[[World], Scene]] = [
    *(enqueue, enqueue_later, promote, settle, settle_failed, retry, report, release),
    *(park, park_all),
    *(suspend, steps_kept, event_sent),
    *(regate, quarantine, recover, recover_reported, cancel, cancel_delayed, replay),
    append_items,
    *(resubmit, resubmit_later, maintenance),
]


# -- faults --------------------------------------------------------------------------------------

_COMMAND = re.compile(
    r"(?:redis\.p?call\(|redis\.call, |aside[(,] ?|undoing\(|look\([^,]+,|pcall\(redis\.call,)"
    r"\s*'([A-Z]+)'"
)


def commands_of(command: Command) -> list[str]:
    """Every command that a call's script has in it."""
    return sorted(set(_COMMAND.findall(scripts.text_of(command[1]))))


@contextmanager
def without_right(world: World, command: str, rights: str = "") -> Iterator[None]:
    """Calls are made by a user who may do all but one command, or has other rights."""
    world.db.execute_command(
        *("ACL", "SETUSER", "law", "reset", "on", "nopass", "+@all"),
        *(rights.split() if rights else ("~*", "&*", f"-{command.lower()}")),
    )
    admin, pool = world._wire, world.db.connection_pool
    user = redis.Connection(
        host="127.0.0.1", port=world.port, username="law", password="any", protocol=2
    )
    world._wire = user
    try:
        yield
    finally:
        world._wire = admin
        user.disconnect()
        assert pool is world.db.connection_pool


@contextmanager
def another_type(world: World, key: str) -> Iterator[None]:
    """A key holds something else for a while."""
    aside = f"aside:{key}"
    there = world.db.exists(key)
    if there:
        world.db.rename(key, aside)
    if world.db.exists(key) == 0:
        world.db.set(key, "something else")
    yield
    if world.db.type(key) == b"string":
        world.db.delete(key)
    elif there and key.startswith(world.keys.worker_prefix):
        world.db.delete(aside)  # a worker's key is its own: what else stands there goes
        return
    elif there:
        raise Broken(f"{key} held something else, and was taken")
    if there:
        world.db.rename(aside, key)


def answers(world: World, calls: Sequence[Command]) -> list[Any]:
    """Each call's answer, or its error."""
    found: list[Any] = []
    for command in calls:
        try:
            found.append(world.call(command))
        except redis.exceptions.ResponseError as error:
            found.append(error)
    return found


def states(world: World, ids: Sequence[str]) -> dict[str, str]:
    """How each task stands."""
    return {id: world.state(id) for id in ids}


def check(world: World, scene: Scene, *, replayed: bool, history: bool = True) -> None:
    """The law, for what has been accepted; each of a replay's tasks went whole or not at all."""
    there = [id for id in scene.tasks if not scene.added or world.record(id)]
    counts = dict.fromkeys(there, 0)
    for id in there:
        if id in scene.replays and (replayed or gone_again(world, id)):
            counts[id] = scene.replays[id]
    for dead in world.dead():
        if dead.startswith("corrupt-"):
            world.db.zrem(world.keys.dead, dead)
    odd = [entry for entry, fields in world.entries() if "id" not in fields]
    if not odd:
        world.check(counts, history=history and not corrupt(world))


def gone_again(world: World, id: str) -> bool:
    """Whether a task has been put back after its end."""
    return world.record(id).get("from") in ("replay", "resubmit") and id not in world.dead()


def corrupt(world: World) -> bool:
    """Whether an entry that is no task was set aside: it is counted, and no event."""
    return any(b"corrupt-" in key for key in world.db.scan_iter("task:*"))


def drain(world: World, scene: Scene, history: bool) -> None:
    """Everything ends, once, and the batch knows."""
    for consumer in ("w", "ownerless", "other", "last"):
        while (done := world.recover(consumer=consumer, started=[], max_recoveries=99)).more:
            pass
        assert done.broken == {}
    world.make_due()
    while world.promote().moved:
        pass
    while batch := world.fetch("last", 50):
        rows = [
            outcome(entry, f["id"], attempt=f["attempt"], batch="b" if "batch" in f["opts"] else "")
            for entry, f in batch
        ]
        assert world.settle("last", *rows) == []
    check(world, scene, replayed=True, history=history)
    for id in scene.tasks:
        assert world.record(id)["state"] in ("succeeded", "failed", "cancelled"), id
    fields = world.db.hgetall(world.keys.batch("b"))
    if fields and history:
        of_batch = [id for id in scene.tasks if id not in ("zero", "unread", "known")]
        if "later" in of_batch and b"cancelled" not in fields:
            of_batch.remove("later")
        ended = sum(int(fields.get(state, 0)) for state in (b"succeeded", b"failed", b"cancelled"))
        assert ended == len(of_batch), (fields, of_batch)


def try_fault(
    server: Server, make: Callable[[World], Scene], name: str, fault: Callable[[World], Any], *,
    history: bool = True, only_victim: bool = False, no_harm: bool = False,
) -> None:  # fmt: skip
    """One fault in one scene: nothing is lost, neighbours go on, and all ends once it is over."""
    with server.client() as admin:
        admin.flushall()
    world = World(server)
    try:
        scene = make(world)
        undisturbed: dict[str, str] = {}
        if only_victim or no_harm:
            answers(world, scene.commands)
            undisturbed = states(world, scene.tasks)
            world.db.flushall()
            world.ensure_group()
            scene = make(world)
        with fault(world):
            answers(world, scene.commands)
        for id, state in undisturbed.items():
            if id != VICTIM or no_harm:
                assert world.state(id) == state, f"{id} is {world.state(id)}, not {state}"
        check(world, scene, replayed=False, history=history)
        for _ in range(2):  # as a caller does that had an error, or no answer
            for answer in answers(world, scene.commands):
                assert not isinstance(answer, Exception), answer
        drain(world, scene, history)
    except Exception as error:
        raise Broken(f"{make.__name__}, {name}: {type(error).__name__}: {error}") from error
    finally:
        world.close()


@pytest.mark.parametrize("make", SCENES, ids=lambda make: make.__name__)
def test_a_right_that_is_missing_loses_nothing(every_server: Server, make: Any) -> None:
    """Each command of the scripts is refused in turn: what was not done whole was not done."""
    world = World(every_server)
    commands = {c for call in make(world).commands for c in commands_of(call)}
    world.close()
    assert len(commands) > 3
    for command in sorted(commands):
        if (make.__name__, command) not in KNOWN_ID:
            try_fault(every_server, make, f"-{command}", lambda w, c=command: without_right(w, c))


def keys_of(world: World, calls: Sequence[Command]) -> dict[str, str]:
    """The keys that calls touch, by the name that QueueKeys has for them."""
    named = {}
    for command in calls:
        for key in command[3 : 3 + command[2]]:
            name = next(n for n in world.keys.__slots__ if getattr(world.keys, n) == key)
            ends = {"task_prefix": VICTIM, "inbox_prefix": "box", "worker_prefix": "w"}
            named[name] = key + ends.get(name, "b") if name.endswith("prefix") else key
    return named


@pytest.mark.parametrize("make", SCENES, ids=lambda make: make.__name__)
def test_a_key_that_holds_something_else_loses_nothing(every_server: Server, make: Any) -> None:
    """Each key of the calls is of another type in turn: a task's own record stops that task alone,
    and what is beside the tasks stops none."""
    world = World(every_server)
    keys = keys_of(world, make(world).commands)
    world.close()
    for name, key in keys.items():
        try_fault(
            *(every_server, make, f"{name} is a string", lambda w, k=key: another_type(w, k)),
            history=name not in (*SIDE_KEYS, "batch_prefix"),
            only_victim=name == "task_prefix",
            no_harm=name in SIDE_KEYS,
        )


@pytest.mark.parametrize("make", SCENES, ids=lambda make: make.__name__)
def test_keys_that_are_forbidden_lose_nothing(server: Server, make: Any) -> None:
    """A user who may touch the stream and records, and nothing beside them, loses no task."""
    for names in (("stream",), ("stream", "task_prefix"), ("task_prefix", "delayed", "workers")):
        world = World(server)
        rights = " ".join(f"~{getattr(world.keys, name)}*" for name in names)
        world.close()
        try_fault(server, make, rights, lambda w, r=rights: without_right(w, "", r))


@pytest.mark.parametrize("number", ["9" * 30, "-1" + "0" * 20, "x", "1e300", "", "inf", "nan"])
def test_numbers_that_no_server_takes_stop_their_own_task_alone(
    every_server: Server, number: str
) -> None:
    """Should one come so far: a settlement or retry with it is broken, and the others are done."""
    world = World(every_server)
    world.add("a", VICTIM, "b", "c", "late")
    read = fetched(world)
    refused = world.settle(
        "w",
        outcome(read["a"], "a"),
        outcome(read[VICTIM], VICTIM, ttl=number),
        outcome(read["b"], "b"),
    )
    assert list(Commands.read_refused(refused).broken) == [1]
    refused = world.retry(
        "w",
        attempt_ended(read["c"], "c", delay_ms=MINUTE),
        attempt_ended(read["late"], "late", delay_ms=number),  # type: ignore[arg-type]
    )
    broken = list(Commands.read_refused(refused).broken)
    assert broken == ([] if number.startswith("-") else [1])  # before now is now
    world.check(dict.fromkeys(read, 0))
    states_now = states(world, ["a", "b", VICTIM, "c"])
    assert list(states_now.values()) == ["succeeded", "succeeded", "running", "delayed"]
    assert world.settle("w", outcome(read[VICTIM], VICTIM)) == []
    world.check(dict.fromkeys(read, 0))
    world.close()


def test_one_due_task_that_cannot_be_read_holds_up_no_other(every_server: Server) -> None:
    """It is due again in some seconds, and the 300 behind it become ready at once."""
    world = World(every_server)
    ids = [VICTIM, *map(str, range(300))]
    world.add(*ids, due="+60000")
    world.make_due()
    world.db.zadd(world.keys.delayed, {VICTIM: 0})
    with another_type(world, world.keys.task(VICTIM)):
        moved = [world.promote(), world.promote()]
        assert [done.moved for done in moved] == [199, 101]
        assert list(moved[0].broken) == [VICTIM]
        assert moved[1].next_due_ms is not None
        assert 1000 < moved[1].next_due_ms - moved[1].now_ms <= 5000
    world.make_due()
    assert world.promote().moved == 1
    world.check(dict.fromkeys(ids, 0))
    world.close()


def test_entries_that_cannot_be_taken_back_hold_up_no_others(every_server: Server) -> None:
    """More of them than one call moves, before all others: those go back, and these later."""
    world = World(every_server)
    ids = [f"t{i}" for i in range(30)]
    world.add(*ids)
    world.register("w")
    world.register("alive")
    world.fetch("w", 100)
    world.expire("w")
    kept = {id: world.db.dump(world.keys.task(id)) for id in ids[:12]}
    for id in kept:
        world.db.set(world.keys.task(id), "something else")
    moved, calls = 0, 0
    while (done := world.recover(limit=5)).consumer:
        moved, calls = moved + done.recovered, calls + 1
        assert calls < 20, "it goes round and round"
    assert moved == 18
    assert len(world.pending()) == 12
    assert world.db.zscore(world.keys.workers, "w") is None
    for id, record in kept.items():
        world.db.restore(world.keys.task(id), 0, record, replace=True)
    assert world.call(world.commands.adopt(LEASE_MS)) == 1
    world.expire("w")
    while world.recover(limit=5).consumer:
        pass
    assert world.pending() == {}
    world.check(dict.fromkeys(ids, 0))
    world.close()


def test_monitors_see_the_rest(every_server: Server) -> None:
    """Whatever key holds something else, whoever looks is shown the others."""
    world = World(every_server)
    ids = with_batch(world, "a", VICTIM, "b")
    world.register("w")
    read = fetched(world)
    world.settle("w", outcome(read["a"], "a", "failed", body="{}"), outcome(read["b"], "b"))
    world.add("later", due="+60000")
    looks = [
        world.commands.snapshot(),
        world.commands.tick("", [], workers=9, events=9, running=9, dead=9, batches=9),
        *(world.commands.browse(kind, 9) for kind in ("pending", "delayed", "dead")),
        world.commands.browse("history", 9, task_id="a"),
        world.commands.events(("0-0",) * 3, [("a", "")]),
        *(world.commands.watch(id) for id in ids),
    ]
    keys = [*keys_of(world, looks).values(), world.keys.task("a"), world.keys.task("later")]
    whole = answers(world, looks)
    assert not [answer for answer in whole if isinstance(answer, Exception)]
    for key in keys:
        if key == world.keys.stream:
            continue  # without its stream there is no queue
        with another_type(world, key):
            for look, answer in zip(looks, answers(world, looks), strict=True):
                assert not isinstance(answer, Exception), (key, look[1], answer)
    world.close()


# -- rights --------------------------------------------------------------------------------------

WORKERS_VERBS = (
    *("adopt", "heartbeat", "create_group", "park", "promote", "quarantine", "recover", "register"),
    *("release", "retry", "settle", "append_items"),
)
KEYS_OF_WORKERS = (
    *("stream", "delayed", "task_prefix", "history", "counters", "dead", "waiters"),
    *("inbox_prefix", "workers", "worker_prefix", "meta", "batch_prefix", "settled_prefix"),
    "items_prefix",
)


def missing(world: World, **user: str) -> list[str]:
    """What a worker would be told to lack."""
    with without_right(world, user.get("command", ""), user.get("rights", "")):
        return Commands.read_rights(world.call(world.commands.rights("me")))


def test_every_missing_right_shows_before_a_task_is_touched(every_server: Server) -> None:
    """Each command that a worker's scripts have, and each key; and looking changes nothing."""
    world = World(every_server)
    with_batch(world, "a", "b")
    fetched(world)
    before = world.fingerprint()
    everything = "~* &*"
    assert missing(world, rights=everything) == []
    texts = [scripts.load(verb).text for verb in WORKERS_VERBS]
    commands = {command for text in texts for command in _COMMAND.findall(text)}
    for command in sorted(commands - {"ZREMRANGEBYSCORE"}):
        named = {what.split()[0] for what in missing(world, command=command)}
        assert named == {command}
    keys = {name: getattr(world.keys, name) for name in KEYS_OF_WORKERS}
    for name in keys:
        others = " ".join(
            f"~{k}{'*' if n.endswith('prefix') else ''}" for n, k in keys.items() if n != name
        )
        with pytest.raises(
            redis.exceptions.NoPermissionError
        ):  # a script's keys are looked at first
            missing(world, rights=f"{others} &*")
    assert [w.split() for w in missing(world, rights="~* resetchannels")] == [
        ["PUBLISH", "wake:tasks"]
    ]
    world.db.script_flush()
    assert world.fingerprint() == before
    world.close()


def test_a_worker_without_a_right_does_not_start(server: Server) -> None:
    """Its error names the command; nothing is read or registered."""
    with server.client() as admin:
        admin.execute_command(
            *("ACL", "SETUSER", "law", "reset", "on", ">pw", "~*", "&*", "+@all", "-pexpire")
        )
        url = f"redis://law:pw@127.0.0.1:{server.port}/0"
        with pytest.raises(ConfigurationError, match=r"forbids what a worker does: PEXPIRE task:"):
            TaskWorker(url=url, task_handlers={"a": print}).start()
        assert admin.exists("workers:tasks") == 0


# -- whoever calls them --------------------------------------------------------------------------


def test_an_outcome_that_cannot_be_written_waits_alone(
    url: str, db: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """While the key of its record holds something else a task's outcome is kept, said once, and
    tried again; others end meanwhile, and it does not run again."""
    ran: list[str] = []
    started, swapped = threading.Event(), threading.Event()

    def handler(what: str) -> None:
        ran.append(what)
        if what == "odd":
            started.set()
            swapped.wait(10)

    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers={"a": handler}, thread_count=2),
    ):
        producer.add_task("a", "odd", task_id="odd")
        assert started.wait(10)
        db.rename("task:tasks:odd", "aside")
        db.set("task:tasks:odd", "something else")
        swapped.set()
        for id in producer.add_tasks([("a", str(n)) for n in range(50)]):
            producer.get_result(id, 10)
        until(lambda: "could not be written" in caplog.text, "it is said")
        producer.get_result(producer.add_task("a", "later"), 10)
        db.delete("task:tasks:odd")
        db.rename("aside", "task:tasks:odd")
        assert producer.get_result("odd", 20) is None
    assert ran.count("odd") == 1
    assert caplog.text.count("could not be written") == 1
    assert db.xlen("tasks") == 0


def test_a_right_that_is_taken_away_and_given_again_costs_no_task(
    server: Server, db: redis.Redis
) -> None:
    """A worker whose user may not write results any more keeps them until it may."""
    db.execute_command(*["ACL", "SETUSER", "law", "reset", "on", ">pw", "~*", "&*", "+@all"])
    url = f"redis://law:pw@127.0.0.1:{server.port}/0"
    ran: list[int] = []
    with (
        TaskProducer(url=server.url) as producer,
        TaskWorker(url=url, task_handlers={"a": ran.append}, thread_count=2),
    ):
        for command in ("hset", "xack", "pexpire", "hincrby"):
            db.execute_command("ACL", "SETUSER", "law", f"-{command}")
            ids = producer.add_tasks([("a", n) for n in range(20)])
            until(lambda: len(ran) >= 1, "one has run")
            db.execute_command("ACL", "SETUSER", "law", f"+{command}")
            for id in ids:
                assert producer.get_result(id, 20) is None
            assert sorted(ran) == list(range(20)), command
            ran.clear()
    assert db.hget("counters:tasks", "succeeded") == "80"


def test_a_task_whose_record_is_something_else_is_refused_by_its_id(
    url: str, db: redis.Redis
) -> None:
    """The producer's error names key and task; what was sent with it is stored."""
    db.set("task:tasks:odd", "something else")
    with TaskProducer(url=url) as producer:
        with pytest.raises(RedistqError, match="'odd' was not stored: the key task:tasks:odd"):
            producer.add_task("a", task_id="odd")
        odd = {"type": "a", "task_id": "odd"}
        with pytest.raises(RedistqError, match="'odd' was not stored"):
            producer.add_tasks([("a", 1), odd, {**odd, "delay": 60}, ("a", 2)])
    assert db.xlen("tasks") == 2
    assert db.get("task:tasks:odd") == "something else"


# -- silence -------------------------------------------------------------------------------------


def deadlines(world: World) -> dict[str, float]:
    """Each worker's deadline, counted from now."""
    now = world.now_ms()
    rows = world.db.zrange(world.keys.workers, 0, -1, withscores=True)
    return {consumer.decode(): score - now for consumer, score in rows}


def set_deadlines(world: World, **left_ms: int) -> None:
    """Let workers have so much left of their leases."""
    now = world.now_ms()
    world.db.zadd(world.keys.workers, {name: now + left for name, left in left_ms.items()})


JUDGES: dict[str, Callable[[World], Any]] = {
    "beat": lambda w: w.call(w.commands.heartbeat(LEASE_MS, [("a", "=")])),
    "register": lambda w: w.register("new"),
    "recover": lambda w: w.recover(),
}


@pytest.mark.parametrize("judge", JUDGES)
def test_a_silence_shorter_than_the_lease_is_held_against_nobody(
    every_server: Server, judge: str
) -> None:
    """When the freshest deadline is older than a heartbeat and a half, each gets one more lease,
    whoever comes first: he who beats cannot take the others for dead when theirs pass."""
    world = World(every_server)
    world.register("a")
    world.register("b")
    set_deadlines(world, a=2000, b=-50)
    JUDGES[judge](world)
    assert deadlines(world)["b"] > LEASE_MS - 2000
    assert world.recover().consumer == ""
    world.close()


@pytest.mark.parametrize("judge", JUDGES)
def test_the_dead_are_found_while_another_beats(every_server: Server, judge: str) -> None:
    """One fresh deadline is enough: who is late by himself is dead, without another lease."""
    world = World(every_server)
    world.register("a")
    world.register("b")
    set_deadlines(world, a=LEASE_MS * 2 // 3, b=-50)
    done = JUDGES[judge](world)
    assert (done if judge == "recover" else world.recover()).consumer == "b"
    world.close()


def test_a_lone_slow_supervisor_spares_the_dead_only_once(every_server: Server) -> None:
    """Its beats come so late that each looks like the end of a silence: the second spares nobody
    who has not beaten since the first, and one who has is spared again."""
    world = World(every_server)
    for name in "abc":
        world.register(name)
    set_deadlines(world, a=4000, b=1000, c=1000)
    JUDGES["beat"](world)
    world.call(world.commands.heartbeat(LEASE_MS, [("c", "=")]))
    left = deadlines(world)
    late = {name: int(score) - LEASE_MS // 2 - 2000 for name, score in left.items()}
    now = world.now_ms()
    world.db.zadd(world.keys.workers, {"a": now + late["a"], "c": now + late["c"]})
    world.db.zincrby(world.keys.workers, -(LEASE_MS // 2 + 2000), "b")
    JUDGES["beat"](world)
    left = deadlines(world)
    assert left["b"] < LEASE_MS / 2, "spared twice"
    assert left["c"] > LEASE_MS - 2000
    world.close()


def test_a_newcomer_after_a_short_silence_keeps_the_queues_settings(every_server: Server) -> None:
    """A silence is not solitude: group and lease stay those of the workers there are."""
    world = World(every_server)
    world.register("a")
    set_deadlines(world, a=1000)
    assert world.register("b", lease_ms=3 * LEASE_MS) == [b"workers", LEASE_MS]
    set_deadlines(world, a=-1, b=-1)
    assert world.register("c", lease_ms=3 * LEASE_MS) == [b"workers", 3 * LEASE_MS]
    world.close()
