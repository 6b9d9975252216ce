"""The scripts of durable steps and events, on every server."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from support.script_world import (
    TTL,
    World,
    attempt_ended,
    outcome,
    payload_of,
    put_off,
    resubmitted,
)

from redistq.protocol.commands import ASKED, Commands
from redistq.protocol.steps import RecordedStep, read_recalled, read_sent, read_step

MINUTE = 60_000


def kept(world: World, entry: str, number: int = 1, body: bytes = b"1", **of: str) -> int:
    """Keep what a step came to."""
    command = world.commands.step(
        of.get("consumer", "w"), (entry, of.get("id", "a")), number, "pay", "2.500", body
    )
    answer: int = world.call(command)
    return answer


def steps(world: World, id: str = "a") -> dict[int, RecordedStep]:
    """The steps of a task."""
    return read_recalled(world.call(world.commands.recall(id, whole=True)))[1]


def expected(
    world: World, entry: str, event: str = "paid", *, number: int = 1, taken: int = 0,
    last: str = "-", timeout_ms: int | str = "", id: str = "a", consumer: str = "w",
) -> tuple[str, RecordedStep | None]:  # fmt: skip
    """What a running task is told of the event that it waits for."""
    command = world.commands.expect(consumer, (entry, id), number, event, taken, last, timeout_ms)
    word, _, raw = world.call(command)
    return word.decode(), read_step(number, raw) if raw else None


def sent(world: World, body: bytes = b"1", task: str = "", mark: str = "x") -> tuple[int, str]:
    """Send the event."""
    return read_sent(world.call(world.commands.send_event("paid", mark, body, MINUTE, task)))


def running(world: World, id: str = "a", consumer: str = "w", opts: str = "") -> str:
    """A task that a worker has; its entry."""
    world.add(id, opts=opts)
    return world.one(consumer)[0]


def again(world: World, consumer: str = "w") -> str:
    """The only task there is runs again; its entry."""
    world.make_due()
    assert world.promote().moved == 1
    return world.one(consumer)[0]


def waiting_for(world: World) -> list[bytes]:
    """Who waits for the event."""
    found: list[bytes] = world.db.zrange(world.keys.expecting_prefix + "paid", 0, -1)
    return found


# -- steps ----------------------------------------------------------------------------------------


def test_a_step_is_kept_for_the_next_attempt(world: World) -> None:
    """Whatever its bytes are; and it is there when the task has ended, too."""
    entry = running(world)
    body = bytes(range(256)) + b"\n\n"
    assert kept(world, entry, 1, body) == 1
    assert kept(world, entry, 3, b"") == 1
    assert kept(world, entry, 2, b"two") == 1
    world.retry("w", attempt_ended(entry, "a"))
    entry, _ = world.one("w")
    found = steps(world)
    assert [found[i].body for i in (1, 2, 3)] == [body, b"two", b""]
    assert (found[1].name, found[1].kind, found[1].run_ms) == ("pay", "step", 2.5)
    assert abs(found[1].at_ms - world.now_ms()) < 5000
    world.settle("w", outcome(entry, "a", attempt="2"))
    assert steps(world) == found
    world.check({"a": 0})


def test_heads_come_without_what_steps_came_to(world: World) -> None:
    """A list of steps is small, however large they are; the size is said."""
    entry = running(world)
    kept(world, entry, 1, b"x" * 100_000)
    _, rows = world.call(world.commands.recall("a", whole=False))
    assert len(rows[1]) < 100
    assert rows[2] > 100_000
    assert read_recalled([0, rows])[1][1].size == rows[2]


def test_nobody_else_may_write_a_step(world: World) -> None:
    """Not another worker, not one whose task was taken away, not after the end."""
    entry = running(world)
    assert kept(world, entry, consumer="v") == 0
    assert kept(world, "1-1") == 0
    world.register("w")
    world.recover(consumer="w", started=[entry])
    assert kept(world, entry) == 0
    other, _ = world.one("v")
    assert kept(world, other, consumer="v", body=b"v") == 1
    assert kept(world, entry) == 0
    world.settle("v", outcome(other, "a"))
    assert kept(world, other, consumer="v") == 0
    assert steps(world)[1].body == b"v"
    assert steps(world, "nobody") == {}


def test_looking_at_a_task_carries_no_steps(world: World) -> None:
    """What they and messages hold may be megabytes."""
    entry = running(world)
    kept(world, entry)
    sent(world, task="a")
    record = world.watch("a").record
    assert record["steps"] == b"1"
    assert not [name for name in record if name.startswith(("step:", "event:", "events:"))]
    assert record["entry"].decode() == entry


# -- sleeping -------------------------------------------------------------------------------------


def test_a_task_sleeps_and_goes_on(world: World) -> None:
    """It is delayed, for that reason, uncounted; the step says until when. Sent twice it is the
    same."""
    entry = running(world, opts='{"batch":"b"}')
    kept(world, entry)
    row = put_off(entry, "a", number=2)
    assert world.twice(lambda: world.suspend("w", row)) == []
    record = world.record("a")
    assert (record["state"], record["reason"], record["attempt"]) == ("delayed", "sleep", "1")
    due = int(world.db.zscore(world.keys.delayed, "a"))
    assert abs(due - world.now_ms() - MINUTE) < 5000
    assert record["awaits"] == str(due)
    step = steps(world)[2]
    assert (step.name, step.kind, step.until_ms, step.body) == ("sleep", "sleep", due, b"")
    (event,) = world.history()
    assert (event["state"], event["note"]) == ("snoozed", "sleep")
    assert world.counters() == {"snoozed": 1}
    world.check({"a": 0})
    entry = again(world)
    assert steps(world)[2].until_ms == due
    assert world.settle("w", outcome(entry, "a")) == []
    world.check({"a": 0})


def test_only_who_has_a_task_puts_it_off(world: World) -> None:
    """Lost is answered, and nothing changes; a wish that it ends goes first."""
    entry = running(world)
    before = world.fingerprint()
    assert world.suspend("v", put_off(entry, "a")) == [1]
    assert world.suspend("w", put_off("1-1", "a"), put_off(entry, "nobody")) == [1]
    assert world.fingerprint() != before  # the second is the task that the entry says
    world.add("b")
    entry, _ = world.one("w")
    world.register("w")
    world.call(world.commands.cancel(["b"], int(TTL), "ask"))
    refused = Commands.read_refused(world.suspend("w", put_off(entry, "b")))
    assert refused.broken == {0: ASKED}
    assert world.settle("w", outcome(entry, "b", "cancelled")) == []


def test_a_task_that_sleeps_is_cancelled(world: World) -> None:
    """Like a delayed one; and one that waits for an event is no longer among those."""
    entry = running(world)
    world.suspend("w", put_off(entry, "a", event="paid"))
    assert waiting_for(world) == [b"a"]
    assert world.twice(lambda: world.cancel("a")) == ["cancelled"]
    assert waiting_for(world) == []
    assert sent(world) == (0, "")
    world.check({"a": 0})


# -- events ---------------------------------------------------------------------------------------


def test_an_event_lets_go_on_who_waits(world: World) -> None:
    """Each of them, at once; it is in their records whatever is sent afterwards."""
    for id in ("a", "b"):
        world.suspend("w", put_off(running(world, id), id, event="paid"))
    assert {world.record(id)["reason"] for id in "ab"} == {"event"}
    assert sent(world, b"body\nof it", mark="one") == (2, "")
    assert sent(world, b"body\nof it", mark="one") == (0, "")
    assert sent(world, b"other", mark="two") == (0, "")
    assert waiting_for(world) == []
    assert world.promote().moved == 2
    for id in ("a", "b"):
        step = steps(world, id)[1]
        assert (step.name, step.kind, step.word, step.body) == (
            "paid",
            "event",
            "aone",
            b"body\nof it",
        )
    world.check({"a": 0, "b": 0})


def test_an_event_that_came_before_is_taken(world: World) -> None:
    """By a task that looks, and by one that is just being put off; once each."""
    sent(world, b"early", mark="m")
    assert world.db.pttl(world.keys.event_prefix + "paid") > MINUTE - 5000
    entry = running(world)
    word, step = world.twice(lambda: expected(world, entry))
    assert (word, step.body) == ("done", b"early")  # type: ignore[union-attr]
    word, step = expected(world, entry, number=2, last="am")
    assert (word, step) == ("none", None)
    assert world.suspend("w", put_off(entry, "a", event="paid", number=2, last="am")) == []
    assert world.state("a") == "delayed"
    entry = running(world, "b")
    assert world.suspend("w", put_off(entry, "b", event="paid")) == []
    assert world.state("b") == "queued"
    assert steps(world, "b")[1].body == b"early"
    assert world.suspend("w", put_off(entry, "b", event="paid")) == []
    assert world.counters() == {"snoozed": 2}
    world.check({"a": 0, "b": 0})


def test_messages_to_one_task_come_in_order(world: World) -> None:
    """They are kept in its record until it takes them, before what is for all; none is doubled."""
    entry = running(world)
    assert sent(world, b"1", "a", "m1") == (0, "ready")
    assert sent(world, b"1", "a", "m1") == (0, "ready")
    assert sent(world, b"2", "a", "m2") == (0, "ready")
    sent(world, b"all", mark="m3")
    assert expected(world, entry)[1].body == b"1"  # type: ignore[union-attr]
    assert expected(world, entry, number=2, taken=1)[1].body == b"2"  # type: ignore[union-attr]
    assert expected(world, entry, number=3, taken=2)[1].body == b"all"  # type: ignore[union-attr]
    assert expected(world, entry, number=4, taken=2, last="am3") == ("none", None)
    assert world.record("a")["events"] == "0"
    assert not [name for name in world.record("a") if name.startswith("event:")]
    world.suspend("w", put_off(entry, "a", event="paid", number=4, taken=2, last="am3"))
    assert sent(world, b"3", "a", "m4") == (1, "delayed")
    before = world.fingerprint()
    assert sent(world, b"3", "a", "m4") == (0, "delayed")
    assert world.fingerprint() == before
    assert steps(world)[4].body == b"3"
    assert sent(world, b"", "nobody") == (0, "unknown")
    entry = again(world)
    world.settle("w", outcome(entry, "a"))
    assert sent(world, b"", "a", "m5") == (0, "succeeded")
    assert world.record("a")["events:paid"] == "3 m4"
    world.check({"a": 0})


def test_messages_are_bounded(world: World) -> None:
    """The thousand-and-first that a task has not taken is refused."""
    running(world)
    world.db.hset(world.keys.task("a"), "events", 1000)
    assert sent(world, b"1", "a") == (0, "full")
    assert "events:paid" not in world.record("a")


def test_a_wait_that_is_over_is_over(world: World) -> None:
    """It is written: an event that comes afterwards does not change what has happened."""
    entry = running(world)
    world.suspend("w", put_off(entry, "a", event="paid", delay_ms=1))
    day_ms = 86_400_000
    assert day_ms - 5000 < world.db.pttl(world.keys.expecting_prefix + "paid") <= day_ms + 1
    world.db.hset(world.keys.task("a"), "step:1", b"paid\n1 0 w 1\n")
    entry = again(world)
    assert expected(world, entry)[1].kind == "timeout"  # type: ignore[union-attr]
    sent(world)
    assert expected(world, entry)[1].kind == "timeout"  # type: ignore[union-attr]
    assert waiting_for(world) == []
    assert "awaits" not in world.record("a")
    assert expected(world, entry, number=2, timeout_ms=MINUTE, last="ax") == ("none", None)
    word, step = expected(world, entry, number=2, timeout_ms=0, last="ax")
    assert (word, step.kind) == ("done", "timeout")  # type: ignore[union-attr]
    assert expected(world, entry, consumer="v")[0] == "lost"


def test_a_task_that_runs_takes_its_event_itself(world: World) -> None:
    """One whose time is over, and which runs again, is put off by nobody else."""
    entry = running(world)
    world.suspend("w", put_off(entry, "a", event="paid"))
    entry = again(world)
    assert sent(world) == (0, "")
    assert steps(world)[1].kind == "wait"
    assert expected(world, entry)[1].kind == "event"  # type: ignore[union-attr]
    world.check({"a": 0})


def test_who_waits_no_more_leaves_the_list(world: World) -> None:
    """Of those with the earliest ends two are looked at whenever another comes."""
    for id in ("x", "y", "z"):
        world.db.zadd(world.keys.expecting_prefix + "paid", {id: 1})
    for id in ("a", "b"):
        world.suspend("w", put_off(running(world, id), id, event="paid", delay_ms=""))
    assert waiting_for(world) == [b"a", b"b"]


def test_more_than_one_call_lets_go_on_are_let_go_on_by_a_timer(world: World) -> None:
    """Five hundred wait; two hundred a call, and nobody is left."""
    ids = [f"t{i}" for i in range(500)]
    world.add(*ids)
    rows = [put_off(entry, f["id"], event="paid") for entry, f in world.fetch("w", 500)]
    for at in range(0, 500, 100):
        assert world.suspend("w", *rows[at : at + 100]) == []
    assert sent(world) == (200, "")
    moved = 0
    for _ in range(10):
        moved += world.promote().moved
    assert moved == 500
    assert waiting_for(world) == []
    world.check(dict.fromkeys(ids, 0))


def test_who_waits_again_is_not_met_on_the_way(world: World) -> None:
    """A task that has taken an event and waits for the next one stays in the list, while that event
    still reaches others, or is sent again; the next one reaches it."""
    ids = [f"t{i}" for i in range(250)]
    world.add(*ids)
    rows = [put_off(entry, f["id"], event="paid") for entry, f in world.fetch("w", 250)]
    for at in range(0, 250, 125):
        assert world.suspend("w", *rows[at : at + 125]) == []
    assert sent(world, mark="one") == (200, "")
    (timer,) = [m for m in world.db.zrange(world.keys.delayed, 0, -1) if m[:1] == b"\n"]
    world.db.zrem(world.keys.delayed, timer)  # it is late
    assert world.promote().moved == 200
    (entry, fields), *_ = world.fetch("w", 1)
    again = put_off(entry, fields["id"], event="paid", number=2, last="aone")
    assert world.suspend("w", again) == []
    world.db.zadd(world.keys.delayed, {timer: 1})
    assert world.promote().moved == 0
    assert sent(world, mark="one") == (0, "")
    while world.promote().moved:
        pass
    assert waiting_for(world) == [fields["id"].encode()]
    assert sent(world, mark="two") == (1, "")
    assert steps(world, fields["id"])[2].word == "atwo"
    assert world.db.keys("expecting:*") == []
    world.check(dict.fromkeys(ids, 0))


def test_lanes_share_events(world: World) -> None:
    """A task of another priority waits for the same event, and is found by its id."""
    from redistq.protocol.keys import QueueKeys

    high = Commands(QueueKeys("tasks!high"))
    world.call(high.create_group())
    for id in ("h1", "h2"):
        world.call(high.enqueue([id, "job", "{}", "", ""]))
    read = world.call(high.fetch("w", 10, None))[0][1]
    rows = [put_off(entry.decode(), flat[1].decode(), event="paid") for entry, flat in read]
    assert world.call(high.suspend("w", rows)) == []
    assert waiting_for(world) == [b"!high\nh1", b"!high\nh2"]
    assert sent(world, task="h1") == (1, "delayed")
    assert sent(world) == (1, "")
    assert Commands.read_promote(world.call(high.promote())).moved == 2
    assert world.db.exists(world.keys.delayed) == 0


# -- what is kept, and what is forgotten ----------------------------------------------------------


def failed_with_steps(world: World, opts: str = '{"batch":"b"}') -> None:
    """A task that has done a step, has a message, and failed."""
    entry = running(world, opts=opts)
    kept(world, entry)
    sent(world, task="a")
    world.settle("w", outcome(entry, "a", "failed", body="{}", batch="b"))


@pytest.mark.parametrize("anew", [False, True])
def test_replay_goes_on_or_begins_anew(world: World, anew: bool) -> None:
    """Steps and messages are there again, or not."""
    failed_with_steps(world)
    assert world.call(world.commands.replay(["a"], anew=anew))[0] == 1
    assert (steps(world) == {}) == anew
    assert ("event:1:paid" in world.record("a")) != anew


@pytest.mark.parametrize("gate", ["", "k1 key"])
@pytest.mark.parametrize(("outdated", "stays"), [("", True), ("0", False), ("1", False)])
def test_resubmit_keeps_the_steps_of_the_same_call(
    world: World, outdated: str, stays: bool, gate: str
) -> None:
    """Those of another call are no answer to this one."""
    failed_with_steps(world)
    opts = f'{{"gate":"{gate}","batch":"b"}}' if gate else '{"batch":"b"}'
    row = resubmitted("a", opts=opts)[:-1]
    calls = world.commands
    if gate:
        assert world.call(calls.resubmit_gated("call", [(*row, outdated, "")])) == []
    else:
        assert world.call(calls.resubmit("call", [(*row, outdated)])) == []
    assert (1 in steps(world)) == stays
    assert ("event:1:paid" in world.record("a")) == stays
    world.check({"a": 1})


# -- what is gated --------------------------------------------------------------------------------


def test_a_gated_task_gives_its_keys_back_while_it_sleeps(world: World) -> None:
    """And takes them again; its deadline counts no more, and a limit that drops lets it wait."""
    world.call(world.commands.limit("key", "at_most=1 excess=drop"))
    opts = '{"gate":"k1 key\\nx +60000"}'
    added: Any = world.call(
        world.commands.enqueue_gated(["a", "job", payload_of("a"), opts, "", ""])
    )
    assert added == []
    entry, _ = world.one("w")
    assert world.db.hget(world.keys.limits, "skey") == b"1"
    assert world.suspend("w", put_off(entry, "a")) == []
    assert world.db.hget(world.keys.limits, "skey") is None
    assert world.record("a")["opts"] == '{"gate":"s\\nk1 key"}'
    world.call(
        world.commands.enqueue_gated(["b", "job", payload_of("b"), '{"gate":"k1 key"}', "", ""])
    )
    world.make_due()
    world.promote()
    assert (world.state("a"), world.state("b")) == ("waiting", "queued")
    entry, id = world.one("w")
    world.call(world.commands.settle("w", [outcome(entry, id)], b'[["k1 key",1]]'))
    entry, id = world.one("w")
    assert id == "a"
    assert world.suspend("w", put_off(entry, "a")) == []
    assert world.record("a")["opts"] == '{"gate":"s\\nk1 key"}'
    world.check({"a": 0, "b": 0})


def test_a_full_server_takes_steps(world: World) -> None:
    """Beyond maxmemory a running task still goes on to its end."""
    entry = running(world)
    world.db.config_set("maxmemory-policy", "noeviction")
    world.db.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.ResponseError, match=r"OOM|maxmemory"):
            sent(world)
        assert kept(world, entry) == 1
        assert world.suspend("w", put_off(entry, "a", number=2)) == []
    finally:
        world.db.config_set("maxmemory", "0")
    world.check({"a": 0})
