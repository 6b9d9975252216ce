"""Every script on every server: what it does, what it refuses, and what a second call changes.

A call may be sent twice (the answer was lost), late (its sender was taken for dead) or for work
that is not the sender's. Time is moved by changing scores in the server's sets.
"""

from __future__ import annotations

from typing import Any

import pytest
import redis
from support.script_world import LEASE_MS, TTL, World, attempt_ended, outcome, payload_of
from support.servers import Server

from redistq.protocol import scripts

MINUTE = 60_000


# -- enqueue -------------------------------------------------------------------------------------


def test_enqueued_tasks_are_in_the_stream_in_order(world: World) -> None:
    """Tasks without a due time are read in the order they were sent, with all their fields."""
    assert world.add("a", "b", "c", opts='{"retries":3}') == []
    read = [fields for _, fields in world.fetch("w")]
    assert [fields["id"] for fields in read] == ["a", "b", "c"]
    assert read[0] == {
        "id": "a",
        "name": "job",
        "payload": payload_of("a"),
        "attempt": "1",
        "recovered": "0",
        "opts": '{"retries":3}',
    }
    assert world.ttl_ms("a") == -1
    world.check(dict.fromkeys("abc", 0))


def test_known_ids_are_answered_and_not_doubled(world: World) -> None:
    """An id that waits, is delayed, runs or is settled is named in the answer; nothing changes."""
    world.add("settled", "running")
    entry, _ = world.one("w")
    world.fetch("w", 1)
    world.settle("w", outcome(entry, "settled"))
    world.add("waits")
    world.add("delayed", due="+60000")
    before = world.fingerprint()
    assert world.add("settled", "new", "running", "waits", "delayed") == [1, 3, 4, 5]
    assert world.add("delayed", "waits", due="+5000") == [1, 2]
    world.db.xdel(world.keys.stream, world.record("new")["entry"])
    world.db.delete(world.keys.task("new"))
    assert world.fingerprint() == before


def test_the_same_id_twice_in_one_call_is_stored_once(world: World) -> None:
    """Within one call the first of two equal ids counts."""
    assert world.add("a", "a", "b", "a") == [2, 4]
    assert [fields["id"] for _, fields in world.entries()] == ["a", "b"]


def test_due_times_are_the_servers(world: World) -> None:
    """'+N' is N ms from the server's now, 'N' its clock; what is past or now goes to the stream."""
    before = world.now_ms()
    world.add("rel", due="+60000")
    world.add("abs", due=str(before + MINUTE * 2))
    world.add("past", due=str(before - 5))
    world.add("zero", due="+0")
    world.add("epoch", due="0")
    assert [f["id"] for _, f in world.entries()] == ["past", "zero", "epoch"]
    scores = dict(world.db.zrange(world.keys.delayed, 0, -1, withscores=True))
    assert before + MINUTE <= scores[b"rel"] <= world.now_ms() + MINUTE
    assert scores[b"abs"] == before + MINUTE * 2
    world.check(dict.fromkeys(["rel", "abs", "past", "zero", "epoch"], 0))


def test_schedulers_are_told_only_of_an_earlier_due_time(world: World) -> None:
    """The wake channel carries a due time when it is the earliest of all, and nothing else."""
    now = world.now_ms()
    with world.db.pubsub() as heard:
        heard.subscribe(world.keys.channel)
        assert heard.get_message(timeout=5)["type"] == "subscribe"
        world.add("later", due=str(now + 9 * MINUTE))
        world.add("last", due=str(now + 99 * MINUTE))
        world.add("ready")
        world.add("first", due=str(now + MINUTE))
        world.db.publish(world.keys.channel, "end")
        words = []
        while not words or words[-1] != b"end":
            words.append(heard.get_message(timeout=5)["data"])
    assert words == [b"%d" % (now + 9 * MINUTE), b"%d" % (now + MINUTE), b"end"]


# -- promote -------------------------------------------------------------------------------------


def test_due_tasks_move_in_order_of_their_due_time(world: World) -> None:
    """Promote moves what is due, the earliest first, and answers when the next one is."""
    now = world.now_ms()
    for id, due in (("c", 3000), ("a", 1000), ("b", 2000), ("z", 600_000)):
        world.add(id, due=str(now + due))
    for id, score in (("c", 3), ("a", 1), ("b", 2)):
        world.db.zadd(world.keys.delayed, {id: score})
    done = world.promote()
    assert (done.moved, done.next_due_ms) == (3, now + 600_000)
    assert [f["id"] for _, f in world.entries()] == ["a", "b", "c"]
    assert set(world.record("a")) == {"entry"}
    world.check(dict.fromkeys("abcz", 0))


def test_two_schedulers_move_each_task_once(world: World, every_server: Server) -> None:
    """Whoever comes second finds nothing: many calls under way at once move each task once."""
    other = World(every_server)
    ids = [f"{i:03}" for i in range(100)]
    world.add(*ids, due="+60000")
    world.make_due()
    wires = [world._wire, other._wire] * 20
    for wire in wires:  # all are sent before any answer is read
        wire.send_command(*_as_eval(world.commands.promote(7)))
    moved = sum(wire.read_response()[0] for wire in wires)
    other.close()
    assert moved == 100
    assert [f["id"] for _, f in world.entries()] == ids
    world.check(dict.fromkeys(ids, 0))


def test_promoting_nothing_answers_that_nothing_waits(world: World) -> None:
    """Without delayed tasks there is no next due time; a second call writes nothing."""
    assert world.twice(lambda: world.promote().moved) == 0
    assert world.promote().next_due_ms is None


def test_an_id_without_a_waiting_record_only_leaves_the_delayed_set(world: World) -> None:
    """Ids put there by other hands, or of settled tasks, are not brought to life by promote."""
    world.add("dead")
    entry, _ = world.one("w")
    world.settle("w", outcome(entry, "dead", "failed", body="{}"))
    world.db.zadd(world.keys.delayed, {"dead": 1, "nobody": 2})
    assert world.promote().moved == 2
    assert world.entries() == []
    world.check({"dead": 0})


def test_promote_that_breaks_off_is_made_good_by_the_next(world: World) -> None:
    """An error after the second of three tasks loses none, and none runs twice."""
    world.add("a", "b", "c", due="+60000")
    world.make_due()
    whole = scripts.load("promote").text
    broken = whole.replace(
        "  end\nend\nfor from", "  end\n  if i == 2 then error('injected') end\nend\nfor from", 1
    )
    assert broken != whole
    with pytest.raises(redis.exceptions.ResponseError, match="injected"):
        world.db.eval(broken, *world.commands.promote()[2:])
    assert len(world.entries()) == 2
    world.promote()
    assert [f["id"] for _, f in world.entries()] == ["a", "b", "c"]
    world.check(dict.fromkeys("abc", 0))


# -- settle --------------------------------------------------------------------------------------


def test_a_success_is_recorded_and_expires(world: World) -> None:
    """Result, worker and times are in the record, which expires; the entry is gone for good."""
    world.add("a")
    entry, _ = world.one("w")
    assert world.twice(lambda: world.settle("w", outcome(entry, "a", body="[1]"))) == []
    record = world.record("a")
    assert record.pop("finished_ms").isdigit()
    assert record == {
        "entry": entry,
        "state": "succeeded",
        "result": "[1]",
        "name": "job",
        "attempt": "1",
        "worker": "w",
        "run_ms": "1.000",
    }
    assert 0 < world.ttl_ms("a") <= int(TTL)
    assert world.entries() == []
    assert world.pending() == {}
    assert world.counters() == {"succeeded": 1}
    world.check({"a": 0})


def test_a_failure_is_kept_as_a_dead_letter(world: World) -> None:
    """A failed task keeps what a replay needs and its error, for the time dead letters are kept."""
    world.add("a", opts='{"retries":1}')
    entry, _ = world.one("w")
    failed = outcome(entry, "a", "failed", body='{"type":"E"}', note="E")
    assert world.twice(lambda: world.settle("w", failed)) == []
    record = world.record("a")
    assert record["error"] == '{"type":"E"}'
    assert (record["payload"], record["opts"]) == (payload_of("a"), '{"retries":1}')
    assert int(TTL) < world.ttl_ms("a") <= 30 * 86_400_000
    assert world.dead() == ["a"]
    assert world.history()[-1]["note"] == "E"
    world.check({"a": 0})


def test_a_task_without_kept_result_stays_known_for_a_while(world: World) -> None:
    """With a result ttl of 0 nobody finds a result, yet a late second enqueue adds nothing."""
    world.add("a")
    entry, _ = world.one("w")
    assert world.twice(lambda: world.settle("w", outcome(entry, "a", ttl="0"))) == []
    assert world.state("a") == "unknown"
    assert "result" not in world.record("a")
    assert 0 < world.ttl_ms("a") <= MINUTE
    assert world.add("a") == [1]
    assert world.entries() == []


@pytest.mark.parametrize("count", [1, 2, 3, 500, 2500])
def test_many_outcomes_in_one_call(world: World, count: int) -> None:
    """One call settles any number of outcomes, though Lua's unpack ends at 8,000 values."""
    ids = [f"t{i}" for i in range(count)]
    for start in range(0, count, 500):
        world.add(*ids[start : start + 500])
    read = world.fetch("w", count)
    assert world.settle("w", *(outcome(entry, f["id"]) for entry, f in read)) == []
    assert world.counters() == {"succeeded": count}
    assert (world.pending(), world.entries()) == ({}, [])


def test_the_order_of_outcomes_does_not_matter(world: World) -> None:
    """The range read is a hint only: outcomes backwards, mixed or far apart are all accepted."""
    ids = [f"t{i}" for i in range(300)]
    world.add(*ids)
    read = world.fetch("w", 300)
    backwards = [outcome(entry, f["id"]) for entry, f in reversed(read[:10])]
    assert world.settle("w", *backwards) == []
    ends = [read[10], read[299], read[150]]  # more is pending between them than the hint reads
    assert world.settle("w", *(outcome(e, f["id"]) for e, f in ends)) == []
    middle = [read[60], read[40], read[50]]  # the first and last span none of the others
    assert world.settle("w", *(outcome(e, f["id"]) for e, f in middle)) == []
    world.check(dict.fromkeys(ids, 0))


def test_refused_positions_are_answered_and_the_rest_counts(world: World) -> None:
    """Of a mixed batch the foreign, the unknown and the unread are refused, by position."""
    world.add("mine", "theirs", "also", "unread")
    (one, _), (two, _) = world.fetch("w", 1) + world.fetch("v", 1)
    also, _ = world.one("w")
    unread = world.record("unread")["entry"]
    batch = [
        outcome(two, "theirs"),
        outcome(one, "mine"),
        outcome("5-5", "nobody"),
        outcome(also, "also"),
        outcome(unread, "unread"),
    ]
    assert world.settle("w", *batch) == [1, 3, 5]
    assert world.pending() == {two: "v"}
    world.check(dict.fromkeys(["mine", "theirs", "also", "unread"], 0))


def test_the_same_outcome_twice_in_one_call_counts_once(world: World) -> None:
    """A doubled outcome is no lost lease, and is counted once."""
    world.add("a", "b")
    (one, _), (two, _) = world.fetch("w", 2)
    rows = [outcome(one, "a"), outcome(one, "a"), outcome(two, "b")]
    assert world.settle("w", *rows) == []
    assert world.counters() == {"succeeded": 2}
    world.check({"a": 0, "b": 0})


def test_a_worker_that_lost_its_lease_changes_nothing(world: World) -> None:
    """After recovery the late worker's outcome is refused; the new owner's counts."""
    world.register("late")
    world.add("a")
    old, _ = world.one("late")
    world.register("fresh")
    world.expire("late")
    assert world.recover().consumer == "late"
    new, _ = world.one("fresh")
    before = world.fingerprint()
    assert world.settle("late", outcome(old, "a")) == [1]
    assert world.settle("late", outcome(new, "a")) == [1]
    assert world.fingerprint() == before
    assert world.settle("fresh", outcome(new, "a")) == []
    assert world.settle("late", outcome(old, "a")) == [1]
    world.check({"a": 0})


def test_a_failure_after_the_poison_verdict_is_refused(world: World) -> None:
    """A recovery that ended the task names the same worker and entry; it is still not their own."""
    world.register("late")
    world.add("a")
    entry, _ = world.one("late")
    assert world.recover(consumer="late", max_recoveries=0).dead == 1
    assert world.record("a")["worker"] == "late"
    assert world.settle("late", outcome(entry, "a", "failed", body="{}")) == [1]
    world.check({"a": 0})


def test_the_same_entry_handed_out_again_is_the_new_owners(world: World) -> None:
    """After a failover that lost a delivery another gets the entry: its first owner is refused."""
    world.add("a", "b")
    read = world.fetch("old", 2)
    world.db.xgroup_destroy(world.keys.stream, world.commands.group)
    world.ensure_group()  # the new primary never saw the delivery
    assert world.fetch("new", 2) == read
    rows = [outcome(entry, f["id"]) for entry, f in read]
    assert world.settle("old", *rows) == [1, 2]
    assert world.retry("old", attempt_ended(read[0][0], "a")) == [1]
    assert world.park("old", (read[0][0], "a", "job")) == ["lost"]
    assert world.call(world.commands.quarantine("old", read[0][0], "x")) == 0
    assert world.pending() == dict.fromkeys([entry for entry, _ in read], "new")
    assert world.settle("new", *rows) == []
    world.check({"a": 0, "b": 0})


@pytest.mark.parametrize("loss", ["group destroyed", "stream deleted", "server emptied"])
def test_every_verb_bears_that_the_group_has_gone(world: World, loss: str) -> None:
    """Without the group nothing is anybody's: all outcomes are refused, and no script fails."""
    world.register("w")
    world.add("a", "b", "c")
    (one, _), *_ = world.fetch("w", 3)
    if loss == "group destroyed":
        world.db.xgroup_destroy(world.keys.stream, world.commands.group)
    elif loss == "stream deleted":
        world.db.delete(world.keys.stream)
    else:
        world.db.flushdb()
    before = world.fingerprint()
    assert world.settle("w", *[outcome(one, id) for id in "abc"]) == [1, 2, 3]
    assert world.retry("w", attempt_ended(one, "a")) == [1]
    assert world.park("w", (one, "a", "job")) == ["lost"]
    assert world.call(world.commands.release("w", [one], True)) == 1
    assert world.call(world.commands.quarantine("w", one, "x")) == 0
    assert world.call(world.commands.adopt(LEASE_MS)) == 0
    assert world.state("a") == ("queued" if loss == "group destroyed" else "unknown")
    assert world.commands.read_snapshot(world.call(world.commands.snapshot())).pending == 0
    assert world.promote().moved == 0
    assert world.fingerprint() == before
    assert world.recover(consumer="w").recovered == 0
    word = "cancelled" if loss == "group destroyed" else "unknown"
    assert world.cancel("b") == [word]


# -- who is told ---------------------------------------------------------------------------------


def test_waiters_and_inbox_are_told_exactly_once(world: World) -> None:
    """The task's own inbox and every watcher get one message each; one that is both gets one."""
    world.add("a", opts='{"inbox":"own"}')
    for inbox in ("x", "own", "y", "x"):
        assert world.twice(lambda box=inbox: world.watch("a", box)).state == "queued"
    entry, _ = world.one("w")
    done = outcome(entry, "a", body="[7]", inbox="own")
    assert world.twice(lambda: world.settle("w", done)) == []
    for inbox in ("own", "x", "y"):
        assert world.told(inbox) == [{"id": "a", "state": "succeeded", "body": "[7]"}]
        assert 0 < world.db.pttl(world.keys.inbox(inbox)) <= 3_600_000
    assert not world.db.exists(world.keys.waiters)


def test_a_large_body_stays_in_the_record(world: World) -> None:
    """A large result is told without its body, unless it is kept nowhere else."""
    large = '"' + "x" * 20_000 + '"'
    world.add("kept", "not")
    (kept, _), (unkept, _) = world.fetch("w", 2)
    world.watch("kept", "box")
    world.watch("not", "box")
    rows = [outcome(kept, "kept", body=large), outcome(unkept, "not", body=large, ttl="0")]
    assert world.settle("w", *rows) == []
    assert world.told("box") == [
        {"id": "kept", "state": "succeeded"},
        {"id": "not", "state": "succeeded", "body": large},
    ]


def test_watching_names_every_state(world: World) -> None:
    """Watch tells unknown, delayed, queued, running (and by whom) and the settled states apart."""
    assert world.state("a") == "unknown"
    world.add("a")
    world.add("d", due="+60000")
    assert (world.state("a"), world.state("d")) == ("queued", "delayed")
    entry, _ = world.one("w")
    watched = world.watch("a")
    assert (watched.state, watched.consumer) == ("running", "w")
    world.settle("w", outcome(entry, "a"))
    assert world.watch("a", "late").state == "succeeded"
    assert not world.db.exists(world.keys.waiters)


def test_every_way_to_end_tells_the_waiters(world: World) -> None:
    """Cancelled, poisoned and unknown tasks are told like settled ones."""
    ids = ["cancelled", "delayed", "poison", "nameless"]
    world.add("poison", "nameless", "cancelled")
    world.add("delayed", due="+60000")
    for id in ids:
        world.watch(id, "box")
    world.one("p")
    entry, _ = world.one("w")
    world.cancel("cancelled", "delayed")
    assert world.recover(consumer="p", max_recoveries=0).dead == 1
    assert world.park("w", (entry, "nameless", "job"), grace_ms=0) == ["dead"]
    told = [(news["id"], news["state"]) for news in world.told("box")]
    assert told == [
        ("cancelled", "cancelled"),
        ("delayed", "cancelled"),
        ("poison", "failed"),
        ("nameless", "failed"),
    ]
    world.check(dict.fromkeys(ids, 0))


# -- cancel --------------------------------------------------------------------------------------


def test_waiting_tasks_are_cancelled_and_running_ones_left_alone(world: World) -> None:
    """Queued and delayed tasks end as cancelled, once; running, settled, unknown are answered."""
    world.add("runs", "ended", "waits")
    world.add("delayed", due="+60000")
    (_, _), (ended, _) = world.fetch("w", 2)
    world.settle("w", outcome(ended, "ended"))
    answer = world.twice(lambda: world.cancel("runs", "ended", "waits", "delayed", "nobody"))
    assert answer == ["running", "succeeded", "cancelled", "cancelled", "unknown"]
    assert world.fetch("w") == []
    assert 0 < world.ttl_ms("delayed") <= int(TTL)
    assert not {"payload", "opts"} & set(world.record("delayed"))
    assert world.counters()["cancelled"] == 2
    world.check(dict.fromkeys(["runs", "ended", "waits", "delayed"], 0))


def test_a_parked_or_retrying_task_can_be_cancelled(world: World) -> None:
    """While it is in a worker's hands it is running; once it is put off it can be cancelled."""
    world.add("parked", "retried")
    (one, _), (two, _) = world.fetch("w", 2)
    assert world.cancel("parked") == ["running"]
    assert world.park("w", (one, "parked", "job")) == ["parked"]
    assert world.retry("w", attempt_ended(two, "retried", delay_ms=MINUTE, error="{}")) == []
    assert world.cancel("parked", "retried") == ["cancelled", "cancelled"]
    world.make_due()
    assert world.promote().moved == 0
    # Late duplicates of the two calls find their own traces and bring nothing back.
    assert world.retry("w", attempt_ended(two, "retried", delay_ms=MINUTE)) == []
    assert world.park("w", (one, "parked", "job")) == ["parked"]
    world.check({"parked": 0, "retried": 0})


def test_a_task_whose_entry_was_taken_away_is_forgotten(world: World) -> None:
    """A record whose entry was deleted by other hands is unknown; cancelling it cleans up."""
    world.add("a")
    world.watch("a", "box")
    world.db.xdel(world.keys.stream, world.record("a")["entry"])
    assert world.state("a") == "unknown"
    assert world.twice(lambda: world.cancel("a")) == ["unknown"]
    assert world.record("a") == {}
    assert not world.db.exists(world.keys.waiters)
    assert world.add("a") == []


def _as_eval(command: tuple[Any, ...]) -> tuple[Any, ...]:
    from redistq.protocol.scripts import text_of

    return ("EVAL", text_of(command[1]), *command[2:])
