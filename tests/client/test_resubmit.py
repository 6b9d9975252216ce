"""Tasks that run again as they are given now: one script, whole, whoever dies right after it."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.clients import KEY
from support.script_world import (
    TERMINAL,
    TTL,
    World,
    attempt_ended,
    outcome,
    payload_of,
    resubmitted,
)
from support.servers import Server

from redistq import Client
from redistq.connection.broker import Broker
from redistq.protocol.commands import Commands


@pytest.fixture
def world(every_server: Server) -> Iterator[World]:
    """An empty queue on each server in turn, with an open batch "b"."""
    made = World(every_server)
    made.call(made.commands.open_batch("b", "job", 10, int(TTL)))
    yield made
    made.close()


BATCHED = '{"batch":"b"}'


def failed(world: World, *ids: str, opts: str = BATCHED) -> None:
    """Let tasks fail."""
    world.add(*ids, opts=opts)
    batch = "b" if opts == BATCHED else ""
    rows = [outcome(e, f["id"], "failed", body="{}", batch=batch) for e, f in world.fetch("w", 99)]
    assert world.settle("w", *rows) == []


def counts(world: World, batch: str = "b") -> dict[str, int]:
    """How many ends of each state a batch has counted."""
    fields = world.db.hgetall(world.keys.batch(batch))
    return {state: int(fields.get(state.encode(), 0)) for state in TERMINAL}


def test_a_failed_task_runs_again_as_it_is_given_now(world: World) -> None:
    """With its new name, payload and options, a clean slate, and uncounted; twice is once."""
    failed(world, "a")
    world.db.hset(world.keys.batch("b"), "finished_ms", "1")
    new = resubmitted("a", name="new", payload="[2]", opts='{"batch":"b","retries":3}')
    assert world.twice(lambda: world.resubmit("call", new)) == []
    ((entry, fields),) = world.fetch("w")
    assert fields == {
        "id": "a",
        "name": "new",
        "payload": "[2]",
        "attempt": "1",
        "recovered": "0",
        "opts": '{"batch":"b","retries":3}',
    }
    assert world.record("a") == {"entry": entry, "from": "resubmit", "resubmission": "call"}
    assert world.ttl_ms("a") == -1
    assert world.dead() == []
    assert counts(world) == dict.fromkeys(TERMINAL, 0)
    assert not world.db.hexists(world.keys.batch("b"), "finished_ms")
    world.settle("w", outcome(entry, "a", batch="b"))
    assert counts(world)["succeeded"] == 1


def test_a_call_sent_again_runs_nothing_once_more(world: World) -> None:
    """Even when the task has failed again in between; another call runs it again."""
    failed(world, "a")
    assert world.resubmit("call", resubmitted("a")) == []
    entry, _ = world.one("w")
    world.retry("w", attempt_ended(entry, "a"))
    entry, _ = world.one("w")
    world.settle("w", outcome(entry, "a", "failed", attempt="2", body="{}", batch="b"))
    assert world.twice(lambda: world.resubmit("call", resubmitted("a"))) == []
    assert world.state("a") == "failed"
    assert world.resubmit("other", resubmitted("a")) == []
    assert world.state("a") == "queued"
    world.check({"a": 2})


def test_what_waits_runs_or_counts_is_left_as_it_is(world: World) -> None:
    """It is answered by its position; a result that answers another call does not count."""
    world.add("runs", "counts", "outdated", "unkept")
    world.fetch("w", 1)
    rows = [
        outcome(entry, f["id"], ttl="0" if f["id"] == "unkept" else TTL)
        for entry, f in world.fetch("w", 3)
    ]
    world.settle("w", *rows)
    world.add("queued")
    world.add("delayed", due="+60000")
    ids = ("runs", "counts", "outdated", "unkept", "queued", "delayed")
    before = {id: world.record(id) for id in ids}
    assert world.twice(
        lambda: world.resubmit("call", *(resubmitted(id, opts="") for id in ids))
    ) == [1, 2, 4, 5, 6]
    after = {id: world.record(id) for id in ids}
    assert after.pop("outdated") == {
        "entry": world.entries()[-1][0],
        "from": "resubmit",
        "resubmission": "call",
    }
    del before["outdated"]
    assert after == before
    world.check({"runs": 0, "counts": 0, "outdated": 1, "unkept": 0, "queued": 0, "delayed": 0})


def test_what_has_no_record_is_added_and_counted_no_more(world: World) -> None:
    """A task that was never sent, and one whose result has expired since its batch counted it."""
    world.add("old", opts=BATCHED)
    entry, _ = world.one("w")
    world.settle("w", outcome(entry, "old", batch="b"))
    world.db.delete(world.keys.task("old"))
    old, new = resubmitted("old", counted="succeeded"), resubmitted("new")
    assert world.twice(lambda: world.resubmit("call", old, new)) == []
    assert counts(world) == dict.fromkeys(TERMINAL, 0)
    assert [fields["id"] for _, fields in world.entries()] == ["old", "new"]


def test_a_cancelled_task_comes_back(world: World) -> None:
    """Though its record had no payload any more."""
    world.add("a", opts=BATCHED)
    world.cancel("a")
    assert counts(world)["cancelled"] == 1
    assert world.resubmit("call", resubmitted("a")) == []
    assert counts(world)["cancelled"] == 0
    assert world.fetch("w")[0][1]["payload"] == payload_of("a")
    world.check({"a": 1})


def test_it_may_wait_for_its_time(world: World) -> None:
    """Due times are the server's, and schedulers hear of an earlier one."""
    failed(world, "a", "b", "c")
    listener = world.db.pubsub()
    listener.subscribe(world.keys.channel)
    assert listener.get_message(timeout=5)["type"] == "subscribe"
    before = world.now_ms()
    items = [resubmitted("a", due="+60000"), resubmitted("b", due="1"), resubmitted("c", due="+9")]
    assert world.resubmit("call", *items) == []
    heard = listener.get_message(timeout=5)
    listener.close()
    assert before + 9 <= int(heard["data"]) <= world.now_ms() + 9
    assert (world.state("a"), world.state("b"), world.state("c")) == (
        "delayed",
        "queued",
        "delayed",
    )
    record = world.record("a")
    assert (record["reason"], record["entry"], record["attempt"]) == ("delay", "", "1")
    assert not {"error", "worker", "run_ms", "finished_ms"} & set(record)
    world.make_due()
    assert world.promote().moved == 2
    world.check(dict.fromkeys("abc", 1))


def test_an_end_that_another_batch_counted_stays_counted(world: World) -> None:
    """The id was used in two batches: each counts its own."""
    failed(world, "a")
    world.call(world.commands.open_batch("c", "job", 10, int(TTL)))
    assert world.resubmit("call", resubmitted("a", opts='{"batch":"c"}')) == []
    assert counts(world)["failed"] == 1
    assert counts(world, "c") == dict.fromkeys(TERMINAL, 0)


def test_a_batch_that_was_deleted_is_not_made_again(world: World) -> None:
    """Its tasks run all the same."""
    failed(world, "a")
    world.db.delete(world.keys.batch("b"))
    assert world.resubmit("call", resubmitted("a")) == []
    assert not world.db.exists(world.keys.batch("b"))
    assert world.state("a") == "queued"


def test_what_is_no_task_is_refused_alone(world: World) -> None:
    """A key that holds something else, and a dead letter that never was a task."""
    failed(world, "a")
    world.db.set(world.keys.task("odd"), "something else")
    world.db.xadd(world.keys.stream, {"odd": "1"})
    ((entry, _),) = world.call(world.commands.fetch("w", 1, None))[0][1]
    world.call(world.commands.quarantine("w", entry, "no task"))
    corrupt = f"corrupt-{entry.decode()}"
    reply = world.resubmit("call", *(resubmitted(id) for id in ("odd", corrupt, "a")))
    refused = Commands.read_refused(reply)
    assert refused.lost == [1]
    assert list(refused.broken) == [0]
    assert "WRONGTYPE" in refused.broken[0]
    assert world.state("a") == "queued"
    assert corrupt in world.dead()


def test_a_retried_task_forgets_no_attempt(world: World) -> None:
    """A task that waits for its retry is left alone."""
    world.add("a", opts=BATCHED)
    entry, _ = world.one("w")
    world.retry("w", attempt_ended(entry, "a", delay_ms=60_000, error="{}"))
    assert world.resubmit("call", resubmitted("a")) == [1]
    world.check({"a": 0})


def test_a_full_server_refuses_it(world: World) -> None:
    """As it refuses what is added: everything stays as it was."""
    failed(world, "a")
    before = world.fingerprint()
    world.db.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match=r"used memory > 'maxmemory'"):
            world.resubmit("call", resubmitted("a"))
    finally:
        world.db.config_set("maxmemory", 0)
    assert world.fingerprint() == before


# -- a kernel that dies --------------------------------------------------------------------------

ITEMS = ["fails", "is cancelled", "expires", "counts", "is another", "waits"]
NOW = [*ITEMS[:4], "is not the same", ITEMS[5]]


def job(item: str) -> str:
    return item


def killed_after(url: str, commands: int, work: Callable[[Client], Any]) -> bool:
    """Whether a kernel died right after so many commands of its work; else it did all of it."""
    child = os.fork()
    if child == 0:
        try:
            left, main = iter(range(commands - 1, -1, -1)), threading.main_thread()
            send = Broker.call

            def call(self: Broker, *args: Any, **how: Any) -> Any:
                answer = send(self, *args, **how)
                if threading.current_thread() is main and next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return answer

            Broker.call = call  # type: ignore[method-assign]
            Broker.call_many = lambda self, many: (  # type: ignore[method-assign,assignment]
                call(self, command) for command in list(many)
            )
            work(Client(url, signing_key=KEY))
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def settled(world: World, *, fail: str = "") -> None:
    """A worker ends all that waits."""
    rows = [
        outcome(entry, f["id"], "failed" if f["id"] == fail else "succeeded", batch="b", body="{}")
        for entry, f in world.fetch("w", 99)
    ]
    assert world.settle("w", *rows) == []


def wrong(world: World) -> str:
    """Where the counts of batch "b" and the states of its tasks differ."""
    told: dict[str, str] = {}
    for _, flat in world.db.xrange(world.keys.settled("b")):
        told.update({id.decode(): state.decode() for id, state in flat.items()})
    ends: Counter[str] = Counter()
    for id in (f"b:{i}" for i in range(len(ITEMS))):
        record = world.record(id)
        state = record.get("state", "") if record else told.get(id, "")
        ends[state] += state in TERMINAL
        if state == "" and record and record["entry"] not in dict(world.entries()):
            return f"{id} waits nowhere"
    said, there = counts(world), {state: ends[state] for state in TERMINAL}
    return "" if said == there else f"the batch says {said}, its tasks {there}"


def begun(world: World, url: str) -> None:
    """A batch whose tasks ended in every way, by a kernel that is gone."""
    with Client(url, signing_key=KEY) as client:
        client.map_batch(job, ITEMS, name="b", progress=False)
        world.cancel("b:1")
        entries = world.fetch("w", 99)
        rows = [
            outcome(e, f["id"], "failed" if f["id"] == "b:0" else "succeeded", batch="b", body="{}")
            for e, f in entries
            if f["id"] != "b:5"
        ]
        assert world.settle("w", *rows) == []
    world.call(world.commands.release("w", [e.encode() for e, f in entries if f["id"] == "b:5"]))
    world.db.delete(world.keys.task("b:2"))
    assert wrong(world) == ""


def test_a_kernel_killed_in_a_resubmission_leaves_counts_that_agree(server: Server) -> None:
    """After each of its commands: what the batch counts is how its tasks stand, and the next
    resume brings all of them to their ends."""
    commands = 0
    while True:
        server.flush()
        world = World(server)
        begun(world, server.url)
        commands += 1
        died = killed_after(
            server.url, commands, lambda c: c.map_batch(job, NOW, name="b", progress=False)
        )
        assert wrong(world) == "", f"killed after {commands} commands"
        settled(world)
        assert wrong(world) == "", f"killed after {commands} commands, and drained"
        with Client(server.url, signing_key=KEY) as client:
            batch = client.map_batch(job, NOW, name="b", progress=False)
            settled(world)
            assert wrong(world) == ""
            assert batch.counts()["succeeded"] == batch.total == len(ITEMS)
        world.close()
        if not died:
            break
    assert commands > 6, "nothing was interrupted"
