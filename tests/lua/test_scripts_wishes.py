"""The scripts where somebody wishes that a running task ends, on every server.

A wish says nothing of how the task ends: only its settlement does.
"""

from __future__ import annotations

import pytest
from support.script_world import LEASE_MS, TTL, World, attempt_ended, outcome
from support.servers import Server

from redistq.protocol.commands import ASKED, Commands

DAY = "86400000"


def wished(world: World, *ids: str, wish: str = "ask") -> list[str]:
    """Cancel tasks, those that run too."""
    return [word.decode() for word in world.call(world.commands.cancel(ids, int(TTL), wish))]


def wishes(world: World, *consumers: str) -> list[tuple[int, str, str]]:
    """What the next heartbeat of these workers says of wishes."""
    beat = world.commands.heartbeat(LEASE_MS, [(name, "=") for name in consumers])
    return sorted(Commands.read_heartbeat(world.call(beat)).wishes)


def stored(world: World, consumer: str) -> dict[bytes, bytes]:
    """What is kept of the wishes of one worker."""
    return dict(world.db.hgetall(world.keys.wishes(consumer)))


def running(world: World, id: str = "a", consumer: str = "w", opts: str = "") -> str:
    """A task that a registered worker has; its entry."""
    world.register(consumer)
    world.add(id, opts=opts)
    return world.one(consumer)[0]


def test_without_a_wish_a_running_task_is_left_alone(world: World) -> None:
    """As ever: the word is `running`, and nothing is kept."""
    running(world)
    assert world.twice(lambda: world.cancel("a")) == ["running"]
    assert wishes(world, "w") == []
    assert stored(world, "w") == {}


@pytest.mark.parametrize("wish", ["ask", "force"])
def test_a_wish_is_said_with_every_heartbeat_until_the_entry_is_gone(
    world: World, wish: str
) -> None:
    """Each heartbeat of its worker names it, of another worker none; once the task has ended,
    whatever way, nothing of the wish is left."""
    entry = running(world)
    world.register("other")
    assert world.twice(lambda: wished(world, "a", wish=wish)) == ["asked"]
    assert wishes(world, "other") == []
    for _ in range(2):
        assert wishes(world, "other", "w") == [(2, entry, wish)]
    assert world.settle("w", outcome(entry, "a")) == []
    assert world.state("a") == "succeeded"
    assert wishes(world, "w") == []
    assert stored(world, "w") == {}
    assert world.db.hget(world.keys.worker("w"), "asked") is None
    world.check({"a": 0})


def test_a_forced_wish_is_not_weakened(world: World) -> None:
    """The stronger of two wishes stays."""
    entry = running(world)
    wished(world, "a", wish="force")
    wished(world, "a", wish="ask")
    assert stored(world, "w") == {entry.encode(): b"force"}
    wished(world, "a", wish="force")
    assert wishes(world, "w") == [(1, entry, "force")]


def test_a_wish_for_a_worker_that_is_not_registered_is_said_all_the_same(world: World) -> None:
    """A worker that the server forgot hears of the wish with its next heartbeat."""
    world.add("a")
    entry, _ = world.one("w")
    assert wished(world, "a") == ["asked"]
    assert not world.db.exists(world.keys.worker("w"))
    assert wishes(world, "w") == [(1, entry, "ask")]


def test_what_waits_is_cancelled_at_once_whatever_is_wished(world: World) -> None:
    """A wish is of running tasks alone."""
    world.add("queued")
    world.add("delayed", due="+60000")
    assert wished(world, "queued", "delayed", "nobody") == ["cancelled", "cancelled", "unknown"]
    world.check({"queued": 0, "delayed": 0})


def test_a_message_tells_the_supervisor_of_that_worker_once_a_call(every_server: Server) -> None:
    """Two tasks of one worker are one word on the channel."""
    world = World(every_server)
    try:
        running(world, "a")
        running(world, "b")
        with world.db.pubsub() as heard:
            heard.subscribe(world.keys.channel)
            heard.get_message(timeout=1)
            wished(world, "a", "b")
            message = heard.get_message(timeout=1)
            assert message is not None
            assert message["data"] == b"asked w"
            assert heard.get_message(timeout=0.05) is None
    finally:
        world.close()


def test_a_settlement_as_cancelled_keeps_the_reason_and_frees_the_wish(world: World) -> None:
    """Record, counters, history, batch and inbox say it, once, however often it is sent."""
    world.call(world.commands.open_batch("b", "job", 2, int(TTL)))
    entry = running(world, opts='{"batch":"b","inbox":"box"}')
    wished(world, "a")
    row = outcome(
        entry, "a", "cancelled", body="asked", ttl=DAY, inbox="box", batch="b", note="Asked"
    )
    assert world.twice(lambda: world.settle("w", row)) == []
    record = world.record("a")
    assert (record["state"], record["reason"], record["worker"]) == ("cancelled", "asked", "w")
    assert {"result", "error", "payload"}.isdisjoint(record)
    assert 0 < world.ttl_ms("a") <= int(DAY)
    assert world.counters() == {"cancelled": 1}
    assert [note["state"] for note in world.told("box")] == ["cancelled"]
    assert world.told("box")[0]["body"] == "asked"
    assert world.db.hget(world.keys.batch("b"), "cancelled") == b"1"
    assert stored(world, "w") == {}
    assert world.dead() == []
    world.check({"a": 0})


def test_only_the_keeper_settles_as_cancelled(world: World) -> None:
    """The fence holds for this state too."""
    entry = running(world)
    wished(world, "a")
    row = outcome(entry, "a", "cancelled", body="asked", ttl=DAY)
    assert world.settle("v", row) == [1]
    assert world.state("a") == "running"


@pytest.mark.parametrize("delay_ms", [0, 60_000])
@pytest.mark.parametrize("state", ["retried", "snoozed"])
def test_an_attempt_that_is_to_end_is_not_put_back(world: World, delay_ms: int, state: str) -> None:
    """Its worker hears so and settles it instead; the others of the call go through."""
    entry = running(world)
    other = running(world, "b")
    wished(world, "a")
    rows = [
        attempt_ended(entry, "a", state, delay_ms=delay_ms),
        attempt_ended(other, "b", state, delay_ms=delay_ms),
    ]
    assert world.twice(lambda: world.retry("w", *rows)) == [[1, ASKED.encode()]]
    assert world.pending() == {entry: "w"}
    world.check({"a": 0, "b": 0})


def test_what_is_to_end_is_neither_parked_nor_released(world: World) -> None:
    """It stays in the hands of its worker, which settles it."""
    entry = running(world)
    wished(world, "a")
    assert world.call(world.commands.park("w", 0, [(entry, "a", "job")])) == [[1, ASKED.encode()]]
    assert world.call(world.commands.release("w", [entry.encode()])) == 0
    assert world.pending() == {entry: "w"}
    world.check({"a": 0})


@pytest.mark.parametrize("started", [None, [], ["it"]])
def test_what_is_to_end_does_not_outlive_its_worker(
    world: World, started: list[str] | None
) -> None:
    """The recovery ends it as cancelled, started or not, and takes the rest back; nothing is left
    of the wish."""
    entry = running(world, opts='{"inbox":"box"}')
    other = running(world, "b")
    wished(world, "a", wish="force")
    if started:
        started = [entry]
    done = world.recover(consumer="w", started=started)
    assert (done.recovered, done.dead, done.broken) == (2, 0, {})
    assert world.state("a") == "cancelled"
    assert "worker is gone" in world.record("a")["reason"]
    assert world.told("box")[0]["state"] == "cancelled"
    assert world.state("b") == "queued"
    assert other not in world.pending()
    assert stored(world, "w") == {}
    world.check({"a": 0, "b": 0})


def found(world: World, place: str, **what: str) -> list[str]:
    """All ids that are found in a place, page by page."""
    ids: list[str] = []
    start = ""
    while True:
        page, after, _ = world.call(world.commands.find(place, start, **what))
        ids += [id.decode() for id in page]
        start = after.decode()
        if not start:
            return ids


def test_tasks_are_found_by_name_and_batch_wherever_they_are(world: World) -> None:
    """A name stands for its labels too; nothing is changed by looking."""
    world.add("a", "b", opts='{"batch":"x"}')
    world.add("c", name="other")
    world.add("d", name="job:label")
    world.add("e", due="+60000", opts='{"batch":"x"}')
    world.add("f", due="+60000", name="jobs")
    world.one("w")
    before = world.fingerprint()
    assert found(world, "stream", name="job") == ["a", "b", "d"]
    assert found(world, "stream", name="job:label") == ["d"]
    assert found(world, "stream", batch="x") == ["a", "b"]
    assert found(world, "stream", name="other", batch="x") == []
    assert found(world, "delayed", name="job") == ["e"]
    assert found(world, "delayed", batch="x") == ["e"]
    assert found(world, "waiting", name="job") == []
    assert world.fingerprint() == before


def test_pages_of_what_is_found_leave_nothing_out(world: World) -> None:
    """Each page says where the next begins."""
    world.add(*(f"n{k}" for k in range(450)))
    world.add(*(f"l{k:03}" for k in range(450)), due="+60000")
    assert len(set(found(world, "stream", name="job"))) == 450
    assert len(set(found(world, "delayed", name="job"))) == 450


def test_a_wish_of_another_entry_is_nothing_to_a_task(world: World) -> None:
    """What was wished of an entry that is gone holds for no later one."""
    entry = running(world)
    wished(world, "a")
    world.settle("w", outcome(entry, "a"))
    later = running(world, "b")
    assert world.retry("w", attempt_ended(later, "b")) == []
    world.check({"a": 0, "b": 0})


@pytest.mark.parametrize("way", ["settled", "its worker is gone"])
def test_the_end_of_a_gated_task_lets_the_next_one_in(world: World, way: str) -> None:
    """Whoever ends it as cancelled, its slots are free, and its dependants hear of it."""
    world.register("w")
    world.call(world.commands.limit("k", "at_most=1"))
    for id, after in (("a", ""), ("b", ""), ("c", "st a")):
        keys = '{"gate":"k1 k"}' if not after else ""
        row = [id, "job", f'{{"of":"{id}"}}', keys, "", after]
        world.call(world.commands.enqueue_gated(row))
    entry, _ = world.one("w")
    assert [world.state(id) for id in ("a", "b", "c")] == ["running", "waiting", "waiting"]
    assert wished(world, "a") == ["asked"]
    if way == "settled":
        row_of_a = outcome(entry, "a", "cancelled", body="asked", ttl=DAY)
        assert world.call(world.commands.settle("w", [row_of_a], gated=b'[["k1 k",1]]')) == []
    else:
        assert world.recover(consumer="w", started=[entry]).recovered == 1
    assert world.state("a") == "cancelled"
    assert world.state("b") == "queued"
    assert world.state("c") == "cancelled"
    assert world.record("c")["reason"] == "parent a cancelled"
    assert world.db.hget("limits:tasks", "sk") == b"1"
