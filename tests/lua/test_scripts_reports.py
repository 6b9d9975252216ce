"""What running attempts say of themselves, on every server: fenced, kept with the record."""

from __future__ import annotations

from typing import Any

import pytest
from support.script_world import TTL, World, attempt_ended, outcome

from redistq.protocol.progress import read_progress

MINUTE = 60_000


def said(entry: str, id: str, numbers: str = "1 3 10", checkpoint: bytes = b"7") -> list[Any]:
    """One row of a report."""
    return [entry, id, numbers, 5_000, "a text", checkpoint]


def report(world: World, consumer: str, *rows: list[Any]) -> Any:
    """One report, sent twice: the answer is the same, and only its time another."""
    answer = world.call(world.commands.report(consumer, rows))
    assert world.call(world.commands.report(consumer, rows)) == answer
    return answer


def test_what_an_attempt_says_stands_in_its_record(world: World) -> None:
    """With the server's time, and by and by what is new; the task runs on."""
    world.add("a", "b", "c")
    read = {fields["id"]: entry for entry, fields in world.fetch("w", 3)}
    now = world.now_ms() / 1000
    rows = [said(read[id], id) for id in ("a", "b", "c")]
    assert report(world, "w", *rows) == []
    found = read_progress(world.record("a")["progress"])
    assert found is not None
    assert found[:3] == (3, 10, "a text")
    assert abs(found.since - (now - 5)) < 2
    assert abs(found.at - now) < 2
    assert world.record("a")["checkpoint"] == "7"
    assert report(world, "w", said(read["a"], "a", "1 4 -", b"")) == []
    assert report(world, "w", said(read["b"], "b", "", b"8")) == []
    assert world.record("a")["checkpoint"] == "7"
    assert world.record("b")["checkpoint"] == "8"
    assert " 3 10 " in world.record("b")["progress"]
    world.check({"a": 0, "b": 0, "c": 0})
    assert world.settle("w", outcome(read["a"], "a")) == []
    assert world.record("a")["progress"].startswith("1 4 - ")


def test_only_who_has_the_task_may_speak_for_it(world: World) -> None:
    """Not another worker, not a late one, and not after its end."""
    world.add("a", "b", "c")
    one, two, three = (entry for entry, _ in world.fetch("w", 3))
    assert report(world, "v", said(one, "a")) == [1]
    assert world.retry("w", attempt_ended(two, "b")) == []
    assert world.settle("w", outcome(three, "c")) == []
    rows = [said(one, "a"), said(two, "b"), said(three, "c"), said("9-9", "d")]
    assert report(world, "w", *rows) == [2, 3, 4]
    for id in ("b", "c", "d"):
        assert not {"progress", "checkpoint"} & world.record(id).keys()
    world.check({"a": 0, "b": 0, "c": 0})


def test_a_record_that_cannot_be_written_stops_no_other(world: World) -> None:
    """Its row is broken, with the server's words."""
    world.add("a", "b")
    read = {fields["id"]: entry for entry, fields in world.fetch("w", 2)}
    world.db.delete(world.keys.task("a"))
    world.db.set(world.keys.task("a"), "something else")
    (broken,) = report(world, "w", said(read["a"], "a"), said(read["b"], "b"))
    assert broken[0] == 1
    assert b"WRONGTYPE" in broken[1]
    assert world.record("b")["checkpoint"] == "7"


def test_a_full_server_takes_reports(world: World) -> None:
    """What is drained keeps its place."""
    world.add("a")
    entry, _ = world.one("w")
    world.db.config_set("maxmemory-policy", "noeviction")
    world.db.config_set("maxmemory", 1)
    try:
        assert report(world, "w", said(entry, "a")) == []
    finally:
        world.db.config_set("maxmemory", 0)
    assert world.record("a")["checkpoint"] == "7"


def test_another_attempt_finds_the_checkpoint(world: World) -> None:
    """After a retry, a recovery and a replay; a success that is run anew has none."""
    world.register("w")
    world.add("a")
    entry, _ = world.one("w")
    report(world, "w", said(entry, "a"))
    assert world.retry("w", attempt_ended(entry, "a", delay_ms=MINUTE)) == []
    assert world.record("a")["checkpoint"] == "7"
    world.make_due()
    world.promote()
    entry, _ = world.one("w")
    world.recover(consumer="w", started=[entry])
    assert world.record("a")["checkpoint"] == "7"
    entry, _ = world.one("v")
    assert world.settle("v", outcome(entry, "a", "failed", body="{}")) == []
    assert world.call(world.commands.replay(["a"]))[0] == 1
    assert world.record("a")["checkpoint"] == "7"
    assert "progress" not in world.record("a")
    entry, _ = world.one("v")
    assert world.settle("v", outcome(entry, "a")) == []
    row = ("a", "job", "{}", "", "", "succeeded", "1")
    assert world.call(world.commands.resubmit("again", [row])) == []
    assert "checkpoint" not in world.record("a")


@pytest.mark.parametrize("outdated", ["", "1"])
def test_a_failed_call_goes_on_when_it_is_the_same(world: World, outdated: str) -> None:
    """Sent again as another call it begins anew."""
    world.add("a")
    entry, _ = world.one("w")
    report(world, "w", said(entry, "a"))
    assert world.settle("w", outcome(entry, "a", "failed", body="{}", ttl=TTL)) == []
    row = ("a", "job", "{}", "", "", "failed", outdated)
    assert world.call(world.commands.resubmit("again", [row])) == []
    assert ("checkpoint" in world.record("a")) is (outdated == "")
