"""The scripts for names of tasks with a rule: what was added without the key waits under it too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.script_world import LEASE_MS, TTL, World, payload_of

from redistq.protocol.commands import Commands


def rule(world: World, name: str, text: str = "", **more: str) -> None:
    """Set what holds for a name."""
    world.call(world.commands.limit(f"name:{name}", text, **more))


def names(world: World, queue: str = "tasks") -> tuple[str, ...]:
    """Those that the workers of the queue hear of."""
    beat = Commands.read_heartbeat(world.call(world.commands.heartbeat(LEASE_MS, [])))
    return beat.names


def regate(world: World, *entries: str, consumer: str = "w") -> list[Any]:
    """Hand entries back."""
    reply = world.call(world.commands.regate(consumer, [entry.encode() for entry in entries]))
    return [word if type(word) is list else word.decode() for word in reply]


def gate_of(world: World, id: str) -> str:
    """The gate of a task that is in no stream."""
    gate: str = json.loads(world.record(id)["opts"])["gate"]
    return gate


def test_workers_hear_which_names_have_a_rule_or_are_paused(world: World) -> None:
    """As long as there is one of the two; other keys are nothing to them."""
    assert names(world) == ()
    rule(world, "job", "at_most=1")
    rule(world, "job", paused="1")
    rule(world, "*", "at_most=9")
    world.call(world.commands.limit("tenant:a", "at_most=1"))
    assert sorted(names(world)) == ["*", "job"]
    rule(world, "job", "-")
    assert sorted(names(world)) == ["*", "job"]
    rule(world, "job", paused="0")
    rule(world, "*", "-")
    assert names(world) == ()
    assert not world.db.exists("meta:tasks!high")


@pytest.mark.parametrize("opts", ["", "{}", '{"retries":2,"timeout":7.0}'])
def test_a_task_of_a_paused_name_waits_until_it_goes_on(world: World, opts: str) -> None:
    """Uncounted, with its options and payload as they were and one key more; a second call
    changes nothing."""
    world.add("a", opts=opts)
    entry, _ = world.one("w")
    rule(world, "job", paused="1")
    assert regate(world, entry) == ["regated"]
    assert regate(world, entry) == ["lost"]
    assert world.state("a") == "delayed"
    assert world.promote().moved == 1
    record = world.record("a")
    assert (record["state"], record["reason"], record["under"]) == ("waiting", "paused", "name:job")
    assert (record["attempt"], record["recovered"], record["payload"]) == (
        "1",
        "0",
        payload_of("a"),
    )
    assert gate_of(world, "a") == "k1 name:job"
    if "timeout" in opts:
        assert record["opts"].endswith('"retries":2,"timeout":7.0}')
    rule(world, "job", paused="0")
    ((again, fields),) = world.fetch("v")
    assert fields["payload"] == payload_of("a")
    rule(world, "job", "at_most=1")
    assert regate(world, again, consumer="v") == ["free"]
    world.check({"a": 0})


def test_a_limit_holds_for_tasks_that_were_added_before_it(world: World) -> None:
    """One of them is let in, the others wait, in the order of the call."""
    world.add("a", "b", "c")
    entries = [entry for entry, _ in world.fetch("w")]
    rule(world, "job", "at_most=1")
    assert regate(world, *entries) == ["regated"] * 3
    world.make_due()
    world.promote()
    assert [fields["id"] for _, fields in world.fetch("w")] == ["a"]
    assert [world.state(id) for id in ("b", "c")] == ["waiting", "waiting"]
    assert world.db.hget("limits:tasks", "sname:job") == b"1"
    world.check(dict.fromkeys("abc", 0))


def test_what_a_task_held_of_other_keys_is_free_while_it_waits(world: World) -> None:
    """Hold nothing while waiting; it takes them again when it is let in."""
    fields = ["a", "job", payload_of("a"), '{"gate":"k1 other"}', "", ""]
    world.call(world.commands.enqueue_gated(fields))
    entry, _ = world.one("w")
    assert world.db.hget("limits:tasks", "sother") == b"1"
    rule(world, "job", paused="1")
    assert regate(world, entry) == ["regated"]
    assert not world.db.hget("limits:tasks", "sother")
    world.promote()
    assert gate_of(world, "a") == "k1 name:job\nk1 other"
    rule(world, "job", paused="0")
    world.one("w")
    assert world.db.hget("limits:tasks", "sother") == b"1"
    assert world.db.hget("limits:tasks", "sname:job") == b"1"


def test_only_the_keeper_hands_back_and_only_what_has_a_rule(world: World) -> None:
    """The fence holds; without a rule it may run."""
    world.add("a", "b")
    (one, _), (two, _) = world.fetch("w")
    assert regate(world, one, two) == ["free", "free"]
    rule(world, "job", paused="1")
    assert regate(world, one, consumer="v") == ["lost"]
    world.call(world.commands.cancel(["b"], int(TTL), "ask"))
    assert regate(world, two) == [[1, b"asked to end"]]
    world.check({"a": 0, "b": 0})
