"""The scripts of supervisors and operators on every server, and what a full server still does.

Heartbeats, adoption, dead letters, the snapshot, key types. Time is moved by changing scores in
the server's sets.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from support.script_world import LEASE_MS, Walk, World, attempt_ended, outcome
from support.servers import Server

MINUTE = 60_000


# -- heartbeats ----------------------------------------------------------------------------------


def test_registering_twice_is_registering_once(world: World) -> None:
    """A second registration answers the same and keeps the time of the start."""
    first = world.register("w")
    world.db.hset(world.keys.worker("w"), "started_ms", 5)
    deadline = world.db.zscore(world.keys.workers, "w")
    assert world.register("w") == first == [b"workers", LEASE_MS]
    assert world.db.hget(world.keys.worker("w"), "started_ms") == b"5"
    assert world.db.zscore(world.keys.workers, "w") >= deadline
    assert world.db.zcard(world.keys.workers) == 1


def test_the_first_worker_sets_the_lease_for_all(world: World) -> None:
    """Later workers hear the lease in use; when all have gone, the next one may set another."""
    world.register("w", lease_ms=5000)
    assert world.register("v", lease_ms=9000) == [b"workers", 5000]
    world.recover(consumer="w")
    world.recover(consumer="v")
    assert world.register("x", lease_ms=9000) == [b"workers", 9000]


def test_a_worker_nobody_can_ask_is_charged_for_its_slots(world: World) -> None:
    """Its oldest entries, as many as it runs at a time, in however many calls; all of them when
    it never said."""
    for slots, charged in (({"slots": 3}, 3), ({}, 12)):
        world.call(world.commands.register("w", LEASE_MS, {"host": "h", **slots}))
        ids = [f"{charged}-{n:02}" for n in range(12)]
        world.add(*ids)
        read = [fields["id"] for _, fields in world.fetch("w", 12)]
        assert read == ids
        while world.recover(consumer="w", limit=5).more:
            pass
        found = {f["id"]: f["recovered"] for _, f in world.entries()}
        assert [int(found[i]) for i in ids] == [1] * charged + [0] * (12 - charged)
        world.settle("v", *(outcome(e, f["id"]) for e, f in world.fetch("v", 12)))
    assert not world.db.exists(world.keys.worker("w"))


def test_a_worker_of_several_queues_is_charged_for_its_slots_in_each(every_server: Server) -> None:
    """When worker and supervisor are gone, no queue knows what the worker held of the other: in
    each the oldest entries are charged, as many as it had slots. So at most slots times queues are
    charged, and what was running, of whichever queue, is among them."""
    charged: list[str] = []
    for queue in ("a", "b"):
        world = World(every_server, queue=queue)
        world.call(world.commands.register("w", LEASE_MS, {"host": "h", "slots": 2}))
        world.add(*(f"{queue}{n}" for n in range(4)))
        assert len(world.fetch("w", 4)) == 4
        world.recover(consumer="w")
        counts = {fields["id"]: fields["recovered"] for _, fields in world.entries()}
        assert len(counts) == 4
        charged += [id for id, count in counts.items() if count == "1"]
        world.close()
    assert charged == ["a0", "a1", "b0", "b1"]
    for running in (("a0", "a1"), ("a0", "b0"), ("b0", "b1")):
        assert set(running) <= set(charged)


def test_a_heartbeat_moves_the_deadline(world: World) -> None:
    """A beat answers the server's time, the earliest deadline of all, and whether it is paused."""
    world.register("w")
    world.register("v", lease_ms=3000)
    now = world.now_ms()
    beat = world.commands.read_heartbeat(
        world.call(world.commands.heartbeat(LEASE_MS, [("w", "1-1 2-2")]))
    )
    assert now <= beat.now_ms <= world.now_ms()
    assert beat.earliest_deadline_ms == world.db.zscore(world.keys.workers, "v")
    assert beat.now_ms + LEASE_MS == world.db.zscore(world.keys.workers, "w")
    assert (beat.paused, beat.unregistered) == (False, ())
    world.db.hset(world.keys.meta, "paused", 1)
    beat = world.commands.read_heartbeat(
        world.call(world.commands.heartbeat(LEASE_MS, [("w", "=")]))
    )
    assert beat.paused
    assert world.db.hget(world.keys.worker("w"), "running") == b"1-1 2-2"
    for said, told in (
        ("3-3\n1048576 37", (b"3-3", b"1048576", b"37")),
        ("\n2097152 ", (b"", b"2097152", b"")),
        ("=", (b"", b"2097152", b"")),
        ("4-4", (b"4-4", b"2097152", b"")),
    ):
        world.call(world.commands.heartbeat(LEASE_MS, [("w", said)]))
        fields = world.db.hmget(world.keys.worker("w"), "running", "rss", "cpu")
        assert tuple(fields) == told, said


def test_a_beat_of_nobody_tells_the_time(world: World) -> None:
    """Without workers there is no earliest deadline, and nothing is written."""
    before = world.fingerprint()
    beat = world.commands.read_heartbeat(world.call(world.commands.heartbeat(LEASE_MS, [])))
    assert beat.earliest_deadline_ms == -1
    assert world.fingerprint() == before


@pytest.mark.parametrize("loss", ["recovered", "server emptied"])
def test_a_beat_names_workers_that_must_register_again(world: World, loss: str) -> None:
    """One taken for dead, or forgotten with all else, is named until it registers again."""
    world.register("v")
    world.register("w")
    if loss == "recovered":
        world.recover(consumer="w")
        expected: tuple[int, ...] = (2,)
    else:
        world.db.flushdb()
        expected = (1, 2)
    beat = world.commands.heartbeat(LEASE_MS, [("v", "="), ("w", "1-1")])
    assert world.commands.read_heartbeat(world.call(beat)).unregistered == expected
    assert world.commands.read_heartbeat(world.call(beat)).unregistered == expected
    world.register("v")
    world.register("w")
    assert world.commands.read_heartbeat(world.call(beat)).unregistered == ()


@pytest.mark.parametrize("who", ["beat", "register"])
def test_after_a_silence_everybody_gets_one_more_lease(world: World, who: str) -> None:
    """When nobody beat for a lease, deadlines prove nothing: all are extended, none recovered."""
    for consumer in ("w", "v"):
        world.register(consumer)
    world.expire("w", by_ms=5000)
    world.expire("v", by_ms=1)
    now = world.now_ms()
    if who == "beat":
        world.call(world.commands.heartbeat(LEASE_MS, [("w", "=")]))
    else:
        world.register("new")
    assert world.db.zscore(world.keys.workers, "v") >= now + LEASE_MS
    assert world.recover().consumer == ""


def test_without_a_silence_the_dead_stay_dead(world: World) -> None:
    """While anybody's deadline is still to come, a beat extends nobody but its sender."""
    for consumer in ("w", "v"):
        world.register(consumer)
    world.expire("v")
    beat = world.commands.read_heartbeat(
        world.call(world.commands.heartbeat(LEASE_MS, [("w", "=")]))
    )
    assert beat.earliest_deadline_ms < beat.now_ms
    assert world.recover().consumer == "v"


@pytest.mark.parametrize("seed", range(3))
def test_the_earliest_deadline_answered_is_the_least_of_the_set(world: World, seed: int) -> None:
    """Whoever beats, named twice or not, new or expired, alone or after a silence: the answer is
    what the set holds afterwards, and only the beat and the grace rule have moved anything."""
    chance, seen = random.Random(seed), set()
    for _ in range(150):
        world.db.delete(world.keys.workers)
        now = world.now_ms()
        everybody = [f"w{i}" for i in range(chance.randint(1, 6))]
        # Far from now, or it would depend on the test's own pace who has expired.
        ages = chance.choice(
            [[-9000, -6000, 3000, 7000, 60_000], [-9000, -6000], [-6000, 3000], [7000, 60_000]]
        )
        known = chance.sample(everybody, chance.randint(0, len(everybody)))
        before = {consumer: now + chance.choice(ages) for consumer in known}
        if before:
            world.db.zadd(world.keys.workers, before)
        beating = chance.choices(everybody, k=chance.randint(0, 5))
        silence = bool(before) and max(before.values()) < now + LEASE_MS / 2
        reply = world.call(
            world.commands.heartbeat(LEASE_MS, [(consumer, "=") for consumer in beating])
        )
        beat = world.commands.read_heartbeat(reply)
        spared = dict.fromkeys(before if silence else (), beat.now_ms + LEASE_MS + 0.5)
        expected = {**before, **spared, **dict.fromkeys(beating, beat.now_ms + LEASE_MS)}
        rows = world.db.zrange(world.keys.workers, 0, -1, withscores=True)
        assert {consumer.decode(): score for consumer, score in rows} == expected
        assert beat.earliest_deadline_ms == int(min(expected.values(), default=-1))
        assert beat.unregistered == tuple(range(1, len(beating) + 1))
        others = [score for consumer, score in expected.items() if consumer not in beating]
        seen |= {
            "nobody" if not beating else "twice" if len(set(beating)) < len(beating) else "once",
            "silence" if silence else "expired" if min(before.values(), default=now) < now else "",
            "others first" if min(others, default=now) < beat.now_ms + LEASE_MS else "own first",
        }
    assert seen == {
        *("nobody", "once", "twice"),
        *("silence", "expired", ""),
        *("others first", "own first"),
    }


def test_a_beat_of_more_workers_than_one_command_takes(world: World) -> None:
    """Their deadlines are written in pieces, each of whole pairs, and every one of them moves."""
    many = [(f"w{i}", "=") for i in range(5000)]
    world.register("v", lease_ms=7000)
    beat = world.commands.read_heartbeat(world.call(world.commands.heartbeat(LEASE_MS, many)))
    assert beat.earliest_deadline_ms == world.db.zscore(world.keys.workers, "v")
    deadline = beat.now_ms + LEASE_MS
    assert world.db.zcount(world.keys.workers, deadline, deadline) == len(many)
    assert len(beat.unregistered) == len(many)


def test_consumers_that_no_worker_answers_for_are_adopted(world: World) -> None:
    """One with pending entries and no deadline gets one; idle consumers and workers do not."""
    world.register("w")
    world.add("a", "b")
    world.one("w")
    world.one("lost")
    world.db.xgroup_createconsumer(world.keys.stream, world.commands.group, "idle")
    deadline = world.db.zscore(world.keys.workers, "w")
    assert world.call(world.commands.adopt(LEASE_MS)) == 1
    assert world.call(world.commands.adopt(LEASE_MS)) == 0
    assert world.db.zscore(world.keys.workers, "w") == deadline
    world.expire("lost")
    done = world.recover()
    assert (done.consumer, done.recovered) == ("lost", 1)
    world.check({"a": 0, "b": 0})


# -- dead letters --------------------------------------------------------------------------------


def bury(world: World, *ids: str) -> None:
    """Let tasks fail."""
    world.add(*ids, opts='{"retries":5}')
    world.settle(
        "w", *(outcome(e, f["id"], "failed", body="{}") for e, f in world.fetch("w", len(ids)))
    )


def test_a_replayed_task_starts_with_a_clean_slate(world: World) -> None:
    """It is in the stream with attempt 1 and its options; its record no longer expires."""
    world.add("a")
    entry, _ = world.one("w")
    world.retry("w", attempt_ended(entry, "a", error="{}"))
    entry, _ = world.one("w")
    world.settle("w", outcome(entry, "a", "failed", attempt="2", body="{}"))
    assert world.twice(lambda: world.call(world.commands.replay(["a"]))) == [1, 0, 0]
    assert set(world.record("a")) == {"entry", "from"}
    assert world.ttl_ms("a") == -1
    assert world.dead() == []
    world.check({"a": 1})
    # The retry of its former life, sent again, is not taken for one of this.
    assert world.retry("w", attempt_ended(entry, "a")) == [1]
    entry, _ = world.one("w")
    assert world.twice(lambda: world.settle("w", outcome(entry, "a"))) == []
    assert world.call(world.commands.replay(["a"])) == [0, 0, 1]
    world.check({"a": 1})


def test_replay_refuses_what_is_no_task(world: World) -> None:
    """Corrupt entries and failures without payload stay dead letters; the expired are dropped."""
    entry = world.db.xadd(world.keys.stream, {"odd": "1"}).decode()
    world.fetch("w")
    world.call(world.commands.quarantine("w", entry, "no task"))
    bury(world, "gone", "empty", "good")
    world.db.delete(world.keys.task("gone"))
    world.db.hset(world.keys.task("empty"), "payload", "")
    ids = [f"corrupt-{entry}", "gone", "empty", "good"]
    assert world.call(world.commands.replay(ids)) == [1, 2, 1]
    assert world.dead() == sorted([f"corrupt-{entry}", "empty"])
    assert [f["id"] for _, f in world.entries()] == ["good"]


def test_replaying_all_comes_to_an_end(world: World) -> None:
    """By time and offset a replay of all passes over what it cannot replay and what died since."""
    for number in range(3):
        entry = world.db.xadd(world.keys.stream, {"odd": str(number)}).decode()
        world.fetch("w")
        world.call(world.commands.quarantine("w", entry, "no task"))
    bury(world, "a", "b")
    before, offset, rounds = str(world.now_ms()), 0, 0
    head = world.commands.replay([])[:-4]
    done = 0
    while True:
        replayed, kept, dropped = world.call((*head, 2, before, offset, 0))
        rounds, done, offset = rounds + 1, done + replayed, offset + kept
        if replayed + kept + dropped == 0:
            break
        assert rounds < 9, "it never ends"
        for e, f in world.fetch("w"):
            world.settle("w", outcome(e, f["id"], "failed", body="{}"))
            world.db.zadd(world.keys.dead, {f["id"]: int(before) + 1000})
    assert done == 2
    assert len(world.dead()) == 5


def test_purged_dead_letters_are_gone(world: World) -> None:
    """Only dead letters are deleted: a replayed task with the same id lives."""
    bury(world, "a", "b", "c")
    world.call(world.commands.replay(["b"]))
    world.db.zadd(world.keys.dead, {"b": 1})  # as an interrupted hand might leave it
    before = str(world.now_ms() + 1)
    assert world.call(world.commands.purge(["a"])) == 1
    assert world.call(world.commands.purge(["a"])) == 0
    assert world.call(world.commands.purge([], before)) == 2
    assert world.call(world.commands.purge([], before)) == 0
    assert [world.state(id) for id in "abc"] == ["unknown", "queued", "unknown"]
    assert world.dead() == []


def test_old_dead_letters_leave_the_set(world: World) -> None:
    """A failure sweeps ids whose record has expired by then out of the dead letters."""
    world.db.zadd(world.keys.dead, {f"old{i}": 1000 + i for i in range(5)})
    bury(world, "a")
    assert world.dead() == ["a"]


# -- a full server -------------------------------------------------------------------------------


@contextmanager
def full(world: World) -> Iterator[None]:
    """The server is beyond its maxmemory."""
    world.db.config_set("maxmemory", 1)
    try:
        yield
    finally:
        world.db.config_set("maxmemory", 0)


def test_a_full_server_refuses_new_tasks_and_still_drains(world: World) -> None:
    """Beyond maxmemory adding is refused whole; all that ends, moves or keeps work goes on."""
    world.register("w")
    world.add(*"abcdefgh")
    world.add("later", due="+60000")
    read = {f["id"]: entry for entry, f in world.fetch("w", 7)}
    world.db.xgroup_createconsumer(world.keys.stream, world.commands.group, "gone")
    world.make_due()
    before = world.fingerprint()
    with full(world):
        with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
            world.add("new1", "new2")
        with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
            world.add("new3", due="+60000")
        assert world.fingerprint() == before
        beat = world.commands.read_heartbeat(
            world.call(world.commands.heartbeat(LEASE_MS, [("w", read["a"])]))
        )
        assert beat.earliest_deadline_ms > beat.now_ms
        assert world.register("v")
        assert world.watch("a", "box").state == "running"
        assert world.settle("w", outcome(read["a"], "a", body='"big"')) == []
        assert world.settle("w", outcome(read["b"], "b", "failed", body="{}")) == []
        assert world.retry("w", attempt_ended(read["c"], "c", delay_ms=MINUTE)) == []
        assert world.retry("w", attempt_ended(read["d"], "d")) == []
        assert world.park("w", (read["e"], "e", "job")) == ["parked"]
        assert world.call(world.commands.release("w", [read["f"]])) == 1
        assert world.recover(consumer="w").recovered == 1
        assert world.cancel("h") == ["cancelled"]
        assert world.promote().moved in (1, 2), "later; and e, which was parked for 50 ms"
        world.db.zrem(world.keys.workers, "gone")
        assert world.fetch("gone", 9)
        assert world.call(world.commands.adopt(LEASE_MS)) == 1
    assert [news["id"] for news in world.told("box")] == ["a"]
    world.check(dict.fromkeys([*"abcdefgh", "later"], 0))


@pytest.mark.parametrize("before", ["nobody", "living", "one expired", "silence"])
def test_heartbeats_get_through_to_a_full_server(world: World, before: str) -> None:
    """Each way a beat takes begins with a write that a server beyond maxmemory allows."""
    if before != "nobody":
        world.register("w")
        world.register("v")
    if before in ("one expired", "silence"):
        world.expire("v", by_ms=5000)
    if before == "silence":
        world.expire("w", by_ms=5000)
    known = world.db.zrange(world.keys.workers, 0, -1, withscores=True)
    with full(world):
        with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
            world.db.zadd(world.keys.workers, {"w": 1})
        call = world.commands.heartbeat(LEASE_MS, [("w", "1-1"), ("new", "2-2")])
        beat = world.commands.read_heartbeat(world.call(call))
    rows = world.db.zrange(world.keys.workers, 0, -1, withscores=True)
    expected = {**dict(known), b"w": beat.now_ms + LEASE_MS, b"new": beat.now_ms + LEASE_MS}
    if before == "silence":
        expected[b"v"] = beat.now_ms + LEASE_MS + 0.5
    assert dict(rows) == expected
    assert beat.earliest_deadline_ms == min(expected.values())
    assert world.db.hget(world.keys.worker("w"), "running") == b"1-1"
    assert world.db.hget(world.keys.worker("new"), "running") == b"2-2"


def test_a_heartbeat_refused_for_another_reason_says_so(world: World) -> None:
    """The second try is for a full server; every other refusal is heard, and nothing is written."""
    world.register("w")
    before = world.fingerprint()
    rules = ["reset", "on", ">secret", "~*", "+@all", "-zadd"]
    world.db.execute_command("ACL", "SETUSER", "worker", *rules)
    try:
        world.call(("AUTH", "worker", "secret"))
        with pytest.raises(redis.exceptions.ResponseError, match=r"permissions|can't run"):
            world.call(world.commands.heartbeat(LEASE_MS, [("w", "1-1")]))
    finally:
        world.db.execute_command("ACL", "DELUSER", "worker")
    assert world.fingerprint() == before


def test_a_worker_that_comes_to_drain_a_full_server_gets_in(world: World) -> None:
    """The group is made beyond maxmemory too, at the first entry, and only once."""
    world.db.xgroup_destroy(world.keys.stream, world.commands.group)
    world.add("a")
    with full(world):
        assert world.call(world.commands.create_group()) == 1
        before = world.fingerprint()
        assert world.call(world.commands.create_group()) == 0
        assert world.fingerprint() == before
        entry, _ = world.one("w")
        assert world.settle("w", outcome(entry, "a")) == []
    world.check({"a": 0})
    world.db.set(world.keys.stream, "no stream")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        world.call(world.commands.create_group())


def test_the_documented_rights_suffice(every_server: Server) -> None:
    """A user with no more than the README's ACL can do everything that a queue needs."""
    world = World(every_server)
    rules = ["~tasks", "~*:tasks", "~*:tasks:*", "resetchannels", "&wake:tasks"]
    rules += ["+@all", "-@dangerous"]
    world.db.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", *rules)
    try:
        world.call(("AUTH", "worker", "secret"))
        with pytest.raises(redis.exceptions.NoPermissionError):
            world.call(("SET", "elsewhere", 1))
        walk = Walk(world, 1)
        walk.run(100)
        assert len(walk.accepted) > 10
        world.call(world.commands.snapshot())
    finally:
        world.db.execute_command("ACL", "DELUSER", "worker")
        world.close()


# -- looking -------------------------------------------------------------------------------------


def test_a_snapshot_adds_up(world: World) -> None:
    """Ready, pending and delayed are all there is; totals and workers are in the same answer."""
    world.register("w")
    world.add(*"abcde")
    world.add("later", due="+60000")
    (one, _), _ = world.fetch("w", 2)
    world.settle("w", outcome(one, "a", "failed", body="{}"))
    before = world.fingerprint()
    shot = world.commands.read_snapshot(world.call(world.commands.snapshot()))
    assert world.fingerprint() == before
    assert (shot.ready, shot.pending, shot.delayed, shot.dead) == (3, 1, 1, 1)
    assert shot.counters == {"failed": 1}
    assert shot.oldest_ms == int(world.record("c")["entry"].partition("-")[0])
    assert (shot.workers[0].consumer, shot.workers[0].pending) == ("w", 1)
    assert shot.workers[0].details["names"] == "job"


def test_the_keys_have_the_documented_types(world: World) -> None:
    """Each kind of key holds the type that lua/README.md says."""
    world.register("w")
    world.add("a", "b", "c")
    world.add("later", due="+60000")
    rows = world.fetch("w", 2)
    world.watch("b", "box")
    world.watch("c", "box")
    world.settle(
        "w",
        outcome(rows[0][0], "a", "failed", body=json.dumps({"type": "E"})),
        outcome(rows[1][0], "b"),
    )
    types = {key.decode(): world.db.type(key).decode() for key in world.db.scan_iter()}
    keys = world.keys
    assert types == {
        keys.stream: "stream",
        keys.delayed: "zset",
        keys.task("a"): "hash",
        keys.task("b"): "hash",
        keys.task("c"): "hash",
        keys.task("later"): "hash",
        keys.dead: "zset",
        keys.history: "stream",
        keys.counters: "hash",
        keys.workers: "zset",
        keys.worker("w"): "hash",
        keys.waiters: "hash",
        keys.inbox("box"): "stream",
        keys.meta: "hash",
    }
    expiring = {key for key in types if world.db.pttl(key) >= 0}
    assert expiring == {keys.task("a"), keys.task("b"), keys.inbox("box")}
