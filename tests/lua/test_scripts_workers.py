"""The scripts for attempts that end without an end of their task, on every server.

Retry, release, park, recover, quarantine. Time is moved by changing scores in the server's sets.
"""

from __future__ import annotations

import json

import pytest
from support.script_world import World, attempt_ended, outcome, payload_of

MINUTE = 60_000


# -- retry ---------------------------------------------------------------------------------------


def test_a_retry_at_once_is_a_new_entry_with_the_count(world: World) -> None:
    """The next attempt is in the stream with attempt 2; a second call changes nothing."""
    world.add("a")
    entry, _ = world.one("w")
    row = attempt_ended(entry, "a", error='{"type":"E"}', note="E")
    assert world.twice(lambda: world.retry("w", row)) == []
    ((new, fields),) = world.fetch("v")
    assert (fields["attempt"], fields["recovered"]) == ("2", "0")
    assert new != entry
    assert world.record("a")["error"] == '{"type":"E"}'
    assert world.counters() == {"retried": 1}
    # Even while another worker has it, the first one's call sent again is answered as done.
    assert world.twice(lambda: world.retry("w", row)) == []
    assert world.settle("w", outcome(entry, "a")) == [1]
    world.check({"a": 0})


def test_a_retry_later_waits_in_the_delayed_set(world: World) -> None:
    """A delayed retry carries the payload in its record until its time has come."""
    world.add("a", opts='{"retries":2}')
    entry, _ = world.one("w")
    now = world.now_ms()
    row = attempt_ended(entry, "a", delay_ms=MINUTE)
    assert world.twice(lambda: world.retry("w", row)) == []
    due = world.db.zscore(world.keys.delayed, "a")
    assert now + MINUTE <= due <= world.now_ms() + MINUTE
    record = world.record("a")
    assert (record["state"], record["reason"], record["attempt"]) == ("delayed", "retry", "2")
    world.check({"a": 0})
    world.make_due()
    assert world.promote().moved == 1
    ((_, fields),) = world.fetch("v")
    assert fields["attempt"] == "2"
    assert fields["opts"] == '{"retries":2}'
    world.check({"a": 0})


def test_a_snooze_is_not_counted(world: World) -> None:
    """A snoozed task comes back with the attempt it had."""
    world.add("a")
    entry, _ = world.one("w")
    assert world.retry("w", attempt_ended(entry, "a", "snoozed")) == []
    ((_, fields),) = world.fetch("w")
    assert fields["attempt"] == "1"
    assert world.counters() == {"snoozed": 1}


def test_a_retry_of_anothers_entry_is_refused(world: World) -> None:
    """Another's, an unread or an unknown entry is refused by position; the rest counts."""
    world.add("mine", "theirs", "unread")
    mine, _ = world.one("w")
    theirs, _ = world.one("v")
    unread = world.record("unread")["entry"]
    rows = [(theirs, "theirs"), (mine, "mine"), (unread, "unread"), ("7-7", "nobody")]
    assert world.retry("w", *(attempt_ended(e, id) for e, id in rows)) == [1, 3, 4]
    assert world.pending() == {theirs: "v"}
    world.check(dict.fromkeys(["mine", "theirs", "unread"], 0))


@pytest.mark.parametrize("way", ["recovered", "released"])
def test_a_late_retry_or_park_is_told_that_its_work_was_taken_away(world: World, way: str) -> None:
    """What the server put back is not the late worker's doing: it hears `lost`, nothing changes."""
    world.add("a")
    entry, _ = world.one("late")
    if way == "recovered":
        world.recover(consumer="late")
    else:
        world.call(world.commands.release("late", [entry]))
    before = world.fingerprint()
    assert world.retry("late", attempt_ended(entry, "a", delay_ms=MINUTE)) == [1]
    assert world.park("late", (entry, "a", "job")) == ["lost"]
    assert world.fingerprint() == before


def test_odd_counts_in_an_entry_lose_nothing(world: World) -> None:
    """An entry without a usable count is not retried, released or parked away: it stays pending."""
    for attempt in ("one", ""):
        fields = {"id": "a", "name": "job", "payload": "1", "attempt": attempt, "recovered": "0"}
        world.db.xadd(world.keys.stream, {**fields, "opts": ""})
    world.db.xadd(world.keys.stream, {"hello": "world"})
    read = [entry for entry, _ in world.fetch("w")]
    assert world.retry("w", *(attempt_ended(e, "a") for e in read)) == [1, 2, 3]
    assert world.park("w", *((e, "a", "job") for e in read)) == ["lost"] * 3
    assert world.call(world.commands.release("w", read)) == 0
    assert list(world.pending()) == read
    assert world.recover(consumer="w").dead == 3
    assert world.pending() == {}
    assert world.dead() == [f"corrupt-{entry}" for entry in read]
    assert world.counters() == {"failed": 3}


def test_an_entry_that_others_deleted_while_it_ran_is_let_go(world: World) -> None:
    """A pending entry trimmed by other hands is refused and no longer counted as pending."""
    world.add("a", "b", "c")
    read = world.fetch("w")
    world.db.xtrim(world.keys.stream, maxlen=0, approximate=False)
    (one, _), (two, _), (three, _) = read
    assert world.retry("w", attempt_ended(one, "a")) == [1]
    assert world.park("w", (two, "b", "job")) == ["lost"]
    assert world.call(world.commands.release("w", [three])) == 1
    assert world.pending() == {}


# -- release -------------------------------------------------------------------------------------


def test_released_work_goes_back_uncounted(world: World) -> None:
    """Unstarted entries go back to the stream as they were, and count neither way."""
    world.add("a", "b", "c", opts="{}")
    read = [entry for entry, _ in world.fetch("w")]
    assert world.twice(lambda: world.call(world.commands.release("w", read[:2]))) == 2
    assert world.pending() == {read[2]: "w"}
    again = [fields for _, fields in world.fetch("v")]
    assert [(f["id"], f["attempt"], f["recovered"]) for f in again] == [
        ("a", "1", "0"),
        ("b", "1", "0"),
    ]
    assert world.history() == []
    world.check(dict.fromkeys("abc", 0))


def test_only_a_drained_queue_takes_back(world: World) -> None:
    """With `drained_only` nothing goes back while something is unread; sent again it answers so."""
    world.add("a", "b", "unread")
    read = [entry for entry, _ in world.fetch("w", 2)]
    assert world.twice(lambda: world.call(world.commands.release("w", read, True))) == 0
    assert list(world.pending()) == read
    world.one("v")
    # The second call finds what the first put back unread, and still says that it was done.
    assert world.twice(lambda: world.call(world.commands.release("w", read, True))) == 2
    assert [f["id"] for _, f in world.fetch("v")] == ["a", "b"]
    world.check(dict.fromkeys(["a", "b", "unread"], 0))


def test_anothers_entries_are_not_released(world: World) -> None:
    """Entries of another consumer stay where they are; they are off the caller's hands."""
    world.add("a")
    entry, _ = world.one("v")
    assert world.call(world.commands.release("w", [entry])) == 1
    assert world.pending() == {entry: "v"}


# -- park ----------------------------------------------------------------------------------------


def test_a_parked_task_waits_for_a_worker_that_knows_it(world: World) -> None:
    """It goes to the delayed set with a short delay, uncounted; a second call changes nothing."""
    world.register("w", names="other")
    world.add("a")
    entry, _ = world.one("w")
    now = world.now_ms()
    assert world.twice(lambda: world.park("w", (entry, "a", "job"))) == ["parked"]
    assert now + 50 <= world.db.zscore(world.keys.delayed, "a") <= world.now_ms() + 2000
    assert world.record("a")["reason"] == "unknown"
    world.check({"a": 0})
    world.make_due()
    world.promote()
    ((_, fields),) = world.fetch("w")
    assert fields["attempt"] == "1"


def test_the_delay_grows_with_the_time_waited(world: World) -> None:
    """A task that was parked long ago is looked at every two seconds, not every 50 ms."""
    world.add("a")
    entry, _ = world.one("w")
    world.db.hset(world.keys.task("a"), "parked_ms", world.now_ms() - 4000)
    now = world.now_ms()
    world.park("w", (entry, "a", "job"))
    assert world.db.zscore(world.keys.delayed, "a") >= now + 1000


def test_what_waits_for_room_waits_for_as_long_as_it_takes(world: World) -> None:
    """It is no dead letter, its record says what it needs, and many of them come back rarely."""
    world.add("a")
    entry, _ = world.one("w")
    long_ago = world.now_ms() - 100 * MINUTE
    world.db.hset(world.keys.task("a"), mapping={"parked_ms": long_ago, "unknown_ms": long_ago})
    row = (entry, "a", "job", "room for gpu=2")
    now = world.now_ms()
    assert world.twice(lambda: world.park("w", row, grace_ms=0)) == ["parked"]
    record = world.record("a")
    assert (record["state"], record["reason"], record["needs"]) == ("delayed", "room", "gpu=2")
    assert "unknown_ms" not in record
    due = world.db.zscore(world.keys.delayed, "a")
    assert now + 15_000 <= due <= world.now_ms() + 15_000
    world.check({"a": 0})


def test_a_name_nobody_knows_ends_as_a_dead_letter(world: World) -> None:
    """After the grace time the task is dead, and the error names what the living workers know."""
    world.register("w", names="mail\nresize")
    world.register("gone", names="job")
    world.expire("gone")
    world.add("a", opts='{"inbox":"box"}')
    entry, _ = world.one("w")
    world.park("w", (entry, "a", "job"))
    world.make_due()
    world.promote()
    entry, _ = world.one("w")
    world.db.hset(world.keys.task("a"), "unknown_ms", world.now_ms() - MINUTE)
    parked = world.twice(lambda: world.park("w", (entry, "a", "job"), grace_ms=MINUTE))
    assert parked == ["dead"]
    error = json.loads(world.record("a")["error"])
    assert error["type"] == "UnknownTask"
    assert error["message"].endswith("the workers here know mail, resize")
    assert world.record("a")["payload"] == payload_of("a")
    assert [news["id"] for news in world.told("box")] == ["a"]
    world.check({"a": 0})


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("prüfen € ไทย 🙂", "prüfen € ไทย 🙂"),
        (b"\xff\xc3", "??"),
        (b"\xc3\xc3\xa9\xa9", "????"),
        ("é" * 150, "é" * 100),
        (b"", ""),
    ],
)
def test_any_name_makes_a_readable_error(world: World, name: str | bytes, shown: str) -> None:
    """A name in bytes that are no UTF-8, or one without end, leaves an error that can be read."""
    world.call(world.commands.enqueue(["a", name, "1", "", ""]))
    ((entry, _),) = world.call(world.commands.fetch("w", 1, None))[0][1]
    assert world.call(world.commands.park("w", 0, [(entry, "a", name)])) == [b"dead"]
    error = json.loads(world.db.hget(world.keys.task("a"), "error").decode())
    assert error["message"].startswith(f"no handler named {shown};")


def test_a_task_that_lacks_a_key_waits_for_a_worker_that_has_it(world: World) -> None:
    """Whose name is known waits all the same, as long as a living worker says that it has the key;
    else it ends as a dead letter that says what lacks, and keeps its payload."""
    world.add("a", "b")
    (one, _), (two, _) = world.call(world.commands.fetch("w", 2, None))[0][1]
    details = {"names": "job", "has": "signing key k1\nencryption key k2"}
    world.call(world.commands.register("other", MINUTE, details))
    had = world.call(world.commands.park("w", 0, [(one, "a", "job", "encryption key k2")]))
    assert had == [b"parked"]
    lacked = [(two, "b", "job", "encryption key k")]
    assert world.twice(lambda: world.call(world.commands.park("w", 0, lacked))) == [b"dead"]
    error = json.loads(world.record("b")["error"])
    assert error["type"] == "Unreadable"
    assert error["message"].startswith("no worker here has the encryption key k that")
    assert world.record("b")["payload"] == payload_of("b")
    assert world.record("a")["state"] == "delayed"


def test_the_grace_time_begins_when_nobody_knows_the_name(world: World) -> None:
    """A task that waited an hour for a busy worker is not buried the moment that one restarts."""
    world.register("w", names="other")
    world.register("busy", names="job")
    world.add("a")
    entry, _ = world.one("w")
    record = world.keys.task("a")
    hour_ago = world.now_ms() - 60 * MINUTE
    world.db.hset(record, mapping={"parked_ms": hour_ago, "unknown_ms": hour_ago})
    assert world.park("w", (entry, "a", "job")) == ["parked"]
    assert not world.db.hexists(record, "unknown_ms")
    world.expire("busy")
    world.make_due()
    world.promote()
    entry, _ = world.one("w")
    assert world.park("w", (entry, "a", "job")) == ["parked"]
    assert world.now_ms() - int(world.db.hget(record, "unknown_ms")) < MINUTE


def test_a_started_attempt_ends_the_waiting_for_a_name(world: World) -> None:
    """Whoever ran it knew its name: a retry or a charged recovery begins the waiting anew."""
    for id in ("retried", "recovered", "unstarted"):
        world.add(id)
        world.db.hset(world.keys.task(id), "unknown_ms", 1)
    (one, _), (two, _), _ = world.fetch("w")
    world.retry("w", attempt_ended(one, "retried"))
    world.recover(consumer="w", started=[two])
    left = {id for id in ("retried", "recovered", "unstarted") if "unknown_ms" in world.record(id)}
    assert left == {"unstarted"}


def test_another_workers_entry_is_not_parked(world: World) -> None:
    """A foreign entry is answered as lost, whatever the grace time."""
    world.add("a")
    entry, _ = world.one("v")
    assert world.twice(lambda: world.park("w", (entry, "a", "job"), grace_ms=0)) == ["lost"]
    assert world.pending() == {entry: "v"}


# -- recover -------------------------------------------------------------------------------------


def test_a_worker_past_its_deadline_is_recovered_and_removed(world: World) -> None:
    """Its entries go back with a recovery charged; worker, details and consumer are gone."""
    world.register("w")
    world.register("alive")
    world.add("a", "b")
    world.fetch("w")
    assert world.recover().consumer == ""
    world.expire("w")
    done = world.recover()
    assert (done.recovered, done.dead, done.more, done.consumer) == (2, 0, False, "w")
    assert world.db.zrange(world.keys.workers, 0, -1) == [b"alive"]
    assert not world.db.exists(world.keys.worker("w"))
    assert world.db.xinfo_consumers(world.keys.stream, world.commands.group) == []
    assert [f["recovered"] for _, f in world.fetch("v")] == ["1", "1"]
    assert world.twice(lambda: world.recover().consumer) == ""
    world.check({"a": 0, "b": 0})


def test_a_deadline_that_has_not_passed_protects(world: World) -> None:
    """The server's clock judges: one whose deadline is still to come is left alone."""
    world.register("w")
    world.add("a")
    world.fetch("w")
    world.db.zadd(world.keys.workers, {"w": world.now_ms() + 3000})
    assert world.twice(lambda: world.recover().consumer) == ""


def test_only_what_was_started_is_charged(world: World) -> None:
    """With an exact list the rest goes back uncounted and without an event in the history."""
    world.add("ran", "waited")
    (ran, _), _ = world.fetch("w")
    assert world.twice(lambda: world.recover(consumer="w", started=[ran]).consumer) == "w"
    counts = {f["id"]: f["recovered"] for _, f in world.fetch("v")}
    assert counts == {"ran": "1", "waited": "0"}
    assert [event["id"] for event in world.history()] == ["ran"]
    world.check({"ran": 0, "waited": 0})


def test_nobody_knows_what_ran_so_all_is_charged(world: World) -> None:
    """Without a list every pending entry may have been running; with an empty one none was."""
    world.add("a", "b")
    world.fetch("w")
    world.recover(consumer="w", started=None)
    assert [f["recovered"] for _, f in world.fetch("v")] == ["1", "1"]
    world.recover(consumer="v", started=[])
    assert [f["recovered"] for _, f in world.fetch("x")] == ["1", "1"]


def test_a_task_that_kills_its_workers_is_a_dead_letter(world: World) -> None:
    """Past the limit of recoveries the task is dead, with that reason, payload and count."""
    world.add("poison")
    for round in (1, 2):
        world.one("w")
        assert world.recover(consumer="w", max_recoveries=2).recovered == 1, round
    entry, _ = world.one("w")
    done = world.recover(consumer="w", max_recoveries=2)
    assert (done.recovered, done.dead) == (0, 1)
    error = json.loads(world.record("poison")["error"])
    assert error["type"] == "WorkerLost"
    assert "3 times" in error["message"]
    assert world.record("poison")["payload"] == payload_of("poison")
    assert world.settle("w", outcome(entry, "poison")) == [1]
    world.check({"poison": 0})


def test_what_was_not_started_is_never_the_poison(world: World) -> None:
    """A lowered limit buries nobody that merely waited in a worker that died."""
    world.add("a")
    for _ in range(3):
        world.one("w")
        world.recover(consumer="w", max_recoveries=9)
    world.one("w")
    assert world.recover(consumer="w", max_recoveries=1, started=[]).recovered == 1
    world.check({"a": 0})


def test_recovery_goes_on_call_by_call(world: World) -> None:
    """A page at a time; the consumer is removed only when nothing is pending for it."""
    world.register("w")
    world.add(*map(str, range(5)))
    world.fetch("w", 5)
    first = world.recover(consumer="w", limit=2, started=[])
    assert (first.recovered, first.more) == (2, True)
    assert len(world.pending()) == 3
    assert world.recover(consumer="w", limit=2, started=[]).more
    last = world.recover(consumer="w", limit=2, started=[])
    assert (last.recovered, last.more) == (1, False)
    assert world.db.zcard(world.keys.workers) == 0
    world.check({str(i): 0 for i in range(5)})


def test_a_dead_workers_list_is_no_hint_for_others(world: World) -> None:
    """Recovering one consumer leaves the entries of all others alone."""
    world.add("a", "b")
    world.one("dead")
    theirs, _ = world.one("alive")
    world.recover(consumer="dead")
    assert world.pending() == {theirs: "alive"}


# -- quarantine ----------------------------------------------------------------------------------


def test_an_entry_that_is_no_task_is_set_aside(world: World) -> None:
    """Its raw fields, bytes and all, are kept with a dead letter of its own; no task is touched."""
    entry = world.db.xadd(world.keys.stream, {b"odd\xff": b"\x00\xfe", "name": "n"}).decode()
    world.call(world.commands.fetch("w", 1, None))
    call = world.commands.quarantine("w", entry, "no task: no id")
    assert world.twice(lambda: world.call(call)) == 1
    assert world.call(world.commands.quarantine("v", entry, "no task")) == 0
    raw = world.db.hgetall(world.keys.task(f"corrupt-{entry}"))
    assert raw[b"raw:odd\xff"] == b"\x00\xfe"
    assert json.loads(raw[b"error"])["message"] == "no task: no id"
    assert world.dead() == [f"corrupt-{entry}"]
    assert world.pending() == {}
    assert world.entries() == []
    assert world.ttl_ms(f"corrupt-{entry}") > 0
    assert world.counters() == {"failed": 1}


def test_anothers_entry_is_not_quarantined(world: World) -> None:
    """A consumer cannot set aside what is pending for another."""
    world.add("a")
    entry, _ = world.one("v")
    assert world.twice(lambda: world.call(world.commands.quarantine("w", entry, "x"))) == 0
    world.check({"a": 0})
