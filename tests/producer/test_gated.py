"""Tasks that may not run yet, as producers add them; and what they can change about limits."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import until

from redistq import (
    AsyncTaskProducer,
    Client,
    ConfigurationError,
    Registry,
    TaskCancelled,
    TaskExpired,
    TaskId,
    TaskProducer,
    TaskWorker,
    TooHeavy,
    Unique,
    UnknownParent,
    limit,
)
from redistq.protocol.plain_commands import MAX_TASKS

HANDLERS = {"a": lambda payload: payload, "fails": lambda payload: 1 / 0}


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


def state(db: redis.Redis, task_id: str, queue: str = "tasks") -> str:
    """Where a task is, by its record."""
    return str(db.hget(f"task:{queue}:{task_id}", "state") or "ready")


def test_add_task_says_what_it_did(producer: TaskProducer, db: redis.Redis) -> None:
    """The id is text like any other, and knows whether the task is new."""
    added = producer.add_task("a", 1)
    assert (type(added), added.outcome) == (TaskId, "added")
    assert producer.add_task("a", 1, task_id=added).outcome == "known"
    assert json.dumps({"id": added}) == json.dumps({"id": str(added)})
    assert pickle.loads(pickle.dumps(added)) == added
    gated = producer.add_task("a", 1, limits="k", task_id="mine")
    again = producer.add_task("a", 1, limits="k", task_id="mine")
    assert (gated, gated.outcome, again, again.outcome) == ("mine", "added", "mine", "known")
    assert db.xlen("tasks") == 2


def test_a_task_runs_after_its_parents(producer: TaskProducer, db: redis.Redis, url: str) -> None:
    """One or several, of other priorities too; a failed one cancels what needs it, and says so."""
    with TaskProducer(url=url, stream="tasks!high") as urgent:
        first = urgent.add_task("a", 1)
        with pytest.raises(UnknownParent):
            producer.add_task("a", 2, after=str(first))  # an id alone is one of the own queue
        failing = producer.add_task("fails", retries=0)
        second = producer.add_task("a", 2, after=first)
        third = producer.add_task("a", 3, after=[second, failing])
        fourth = producer.add_task("a", 4, after={failing: "end", second: "success"})
        assert {state(db, task_id) for task_id in (second, third, fourth)} == {"waiting"}
        assert (db.xlen("tasks"), db.xlen("tasks!high")) == (1, 1)
        with TaskWorker(url=url, queues=["tasks!high", "tasks"], task_handlers=HANDLERS):
            assert producer.get_result(second, 10) == 2
            assert producer.get_result(fourth, 10) == 4
            with pytest.raises(TaskCancelled, match=f"{failing} failed"):
                producer.get_result(third, 10)
            assert producer.add_task("a", 5, after=second).outcome == "added"  # it has ended


def test_an_unknown_parent_is_a_clear_error(producer: TaskProducer, db: redis.Redis) -> None:
    """It names both, and nothing of the task is stored."""
    with pytest.raises(UnknownParent, match="'nobody'") as caught:
        producer.add_task("a", 1, after="nobody", task_id="child")
    assert (caught.value.task_id, caught.value.parent) == ("child", "nobody")
    assert not db.exists("task:tasks:child")
    assert db.xlen("tasks") == 0


def test_no_more_run_than_a_limit_lets_in(
    producer: TaskProducer, db: redis.Redis, url: str
) -> None:
    """The rest waits, and goes in when there is room; the limit can be changed meanwhile."""
    assert producer.limits.set("k", at_most=2) is None
    ids = producer.add_tasks({"type": "a", "payload": n, "limits": "k"} for n in range(10))
    assert db.xlen("tasks") == 2
    stands = producer.limits.get("k")
    assert stands is not None
    assert (stands.at_most, stands.in_use, stands.waiting) == (2, 2, 8)
    before = producer.limits.set("k", at_most=5)
    assert before is not None
    assert before.at_most == 2
    until(lambda: db.xlen("tasks") == 5, "three more are let in")
    with TaskWorker(url=url, task_handlers=HANDLERS):
        assert [producer.get_result(task_id, 10) for task_id in ids] == list(range(10))
    stands = producer.limits.get("k")
    assert stands is not None
    assert (stands.in_use, stands.waiting) == (0, 0)
    assert producer.limits.delete("k")
    assert not producer.limits.delete("k")


def test_a_key_can_be_paused_and_penalized(
    producer: TaskProducer, db: redis.Redis, url: str
) -> None:
    """Without a rule, too: what is added waits until it goes on."""
    producer.limits.pause("k")
    paused = producer.add_task("a", 1, limits="k")
    assert state(db, paused) == "waiting"
    stands = producer.limits.get("k")
    assert stands is not None
    assert stands.paused
    producer.limits.resume("k")
    until(lambda: db.xlen("tasks") == 1, "it is let in")
    producer.limits.penalize("web", 0.3)
    late = producer.add_task("a", 2, limits="web")
    assert state(db, late) == "waiting"
    with TaskWorker(url=url, task_handlers=HANDLERS):
        assert producer.get_result(late, 10) == 2
    assert producer.limits.get("nobody's") is None
    for wrong in ("door*", "a\nb", "", 5):
        with pytest.raises(ConfigurationError):
            producer.limits.pause(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="above 0"):
        producer.limits.penalize("k", 0)


def test_all_limits_are_listed(producer: TaskProducer, db: redis.Redis) -> None:
    """However many there are; rules for many keys beside those of one."""
    for n in range(3):
        producer.add_task("a", n, limits=f"tenant:{n}")
    producer.limits.set("tenant:*", at_most=4)
    db.hset("limits:tasks", mapping={f"rk{n}": "at_most=1" for n in range(3_000)})
    found = producer.limits.all()
    assert len(found) == 3_004
    assert found["tenant:1"].at_most == found["tenant:*"].at_most == 4
    assert (found["tenant:1"].in_use, found["tenant:*"].in_use) == (1, 0)


def test_a_task_heavier_than_its_limit_is_refused(producer: TaskProducer, db: redis.Redis) -> None:
    """It would wait for ever, and what is sent with it is stored."""
    producer.limits.set("k", at_most=2)
    with pytest.raises(TooHeavy, match=r"'big'.*k lets in 2"):
        producer.add_tasks(
            [("a", 1), {"type": "a", "limits": {"k": 3}, "task_id": "big"}, ("a", 2)]
        )
    assert db.xlen("tasks") == 2
    assert not db.exists("task:tasks:big")


def test_a_unique_key_is_had_by_one_task(producer: TaskProducer, db: redis.Redis, url: str) -> None:
    """What became of the second is in the answer; so is the id of the one that stands."""
    first = producer.add_task("a", 1, unique="u", delay=60)
    joined = producer.add_task("a", 2, unique="u")
    assert (joined, joined.outcome) == (first, "joined")
    replaced = producer.add_task("a", 3, unique=Unique("u", conflict="replace"))
    assert (replaced, replaced.outcome) == (first, "replaced")
    due = db.zscore("delayed:tasks", first)
    pushed = producer.add_task("a", 4, delay=120, unique=Unique("u", conflict="push"))
    assert (pushed, pushed.outcome) == (first, "pushed")
    assert (db.zscore("delayed:tasks", first) or 0) > (due or 0)
    assert db.hget(f"task:tasks:{first}", "payload") == "4"
    (bulk,) = producer.add_tasks([{"type": "a", "payload": 5, "unique": "u"}])
    assert (bulk, getattr(bulk, "outcome", "")) == (first, "joined")
    with TaskProducer(url=url, stream="tasks!high") as urgent:
        joined = urgent.add_task("a", 5, unique="u")
        assert (joined, joined.outcome, joined.queue) == (first, "joined", "tasks")
        fast = urgent.add_task("a", 5, unique="fast")
        assert urgent.add_task("a", 5, unique="fast").queue == "tasks!high"
        joined = producer.add_task("a", 5, unique="fast")
        assert (joined, joined.outcome, joined.queue) == (fast, "joined", "tasks!high")
    other = producer.add_task("a", 6, unique="other")
    with TaskWorker(url=url, task_handlers=HANDLERS):
        assert producer.get_result(other, 10) == 6
    assert producer.add_task("a", 7, unique="other").outcome == "added"  # it is free again


def test_bulk_calls_keep_their_order_and_mix(producer: TaskProducer, db: redis.Redis) -> None:
    """A call with one task that may wait takes all of its tasks; children follow their parents."""
    items: list[Any] = [("a", n) for n in range(2 * MAX_TASKS)]
    items[5] = {"type": "a", "payload": 5, "task_id": "parent"}
    items[7] = {"type": "a", "payload": 7, "after": "parent"}
    ids = producer.add_tasks(items)
    assert len(set(ids)) == 2 * MAX_TASKS
    entries: Any = db.xrange("tasks")
    found = [json.loads(fields["payload"]) for _, fields in entries]
    assert found == [n for n in range(2 * MAX_TASKS) if n != 7]
    assert state(db, ids[7]) == "waiting"
    assert producer.add_tasks([*items[:4], {**items[5], "limits": "k"}])[4] == "parent"


def test_plain_tasks_do_not_know_the_gate(producer: TaskProducer, db: redis.Redis) -> None:
    """Options that ask for nothing leave a task as it is."""
    producer.add_task("a", 1, after=[], limits=None, unique=None, priority=0)
    producer.add_tasks([{"type": "a", "limits": []}])
    entries: Any = db.xrange("tasks")
    assert [fields["opts"] for _, fields in entries] == ["", ""]
    assert not db.exists("limits:tasks")


def test_a_limit_declared_in_code_is_set_once(
    producer: TaskProducer, db: redis.Redis, url: str
) -> None:
    """When the queue has none; where it has another, both are named."""
    tenant = limit("tenant:{tenant}", at_most=1)
    payloads = [{"tenant": "a"}, {"tenant": "a"}, {"tenant": "b"}]
    producer.add_tasks({"type": "a", "payload": p, "limits": [tenant]} for p in payloads)
    assert db.xlen("tasks") == 2
    assert db.hget("limits:tasks", "rtenant:*") == "at_most=1"
    producer.add_task("a", payloads[2], limits=limit("tenant:{tenant}", at_most=1))
    producer.limits.set("tenant:*", at_most=9)
    assert producer.add_task("a", payloads[2], limits=tenant)  # this producer has set its own
    with TaskProducer(url=url) as other:
        with pytest.raises(ConfigurationError, match=r"at_most=1.*at_most=9.*limits\.set"):
            other.add_task("a", payloads[2], limits=tenant)
        other.limits.set("tenant:*", at_most=1)
        assert other.add_task("a", payloads[2], limits=tenant).outcome == "added"


def test_a_declared_limit_outlives_the_servers_memory(
    producer: TaskProducer, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that is gone is set again before long; one that was changed meanwhile stays."""
    tenant = limit("tenant:{}", at_most=1)
    producer.add_task("a", 1, limits=tenant)
    db.flushdb()
    monkeypatch.setattr("redistq.producer.limits.LOOK_AGAIN_S", 0.0)
    producer.add_task("a", 1, limits=tenant)
    assert db.hget("limits:tasks", "rtenant:*") == "at_most=1"
    producer.limits.set("tenant:*", at_most=5)
    producer.add_task("a", 1, limits=tenant)
    assert db.hget("limits:tasks", "rtenant:*") == "at_most=5"


def test_futures_and_batches_are_parents(url: str) -> None:
    """Those of a client of the same queue, whatever their priorities."""
    key = "k" * 32
    with TaskProducer(url=url) as producer, Client(url, signing_key=key) as client:
        client.start_workers(1)
        future = client.options(priority="high").submit(abs, -1)
        batch = client.map_batch(abs, [-1, -2], progress=False)
        child = producer.add_task("a", 1, after=[future, batch])
        with TaskWorker(url=url, task_handlers=HANDLERS):
            assert producer.get_result(child, 20) == 1
        assert future.done()
        assert batch.counts()["succeeded"] == 2


def test_a_task_that_is_too_late_expires(producer: TaskProducer, db: redis.Redis, url: str) -> None:
    """It never runs, and what needs it says why it does not either."""
    late = producer.add_task("a", 1, delay=0.1, expires=0.05)
    child = producer.add_task("a", 2, after=late)
    with TaskWorker(url=url, task_handlers=HANDLERS):
        with pytest.raises(TaskExpired, match="deadline"):
            producer.get_result(late, 10)
        with pytest.raises(TaskCancelled, match=f"{late} expired"):
            producer.get_result(child, 10)
    assert producer.get_task(late).state == "expired"


def opts_of(db: redis.Redis, task_id: str) -> str:
    """The options of a task that waits, or that stands in the stream."""
    record: Any = db.hgetall(f"task:tasks:{task_id}")
    if record["entry"]:
        entries: Any = db.xrange("tasks", record["entry"], record["entry"])
        record = entries[0][1]
    return str(record["opts"])


def test_a_handler_says_when_its_tasks_may_run(producer: TaskProducer, db: redis.Redis) -> None:
    """Where the function itself is added; what the call says comes first."""
    jobs = Registry()

    @jobs.task(
        limits=limit("tenant:{tenant}", at_most=1),
        order="account:{account}",
        group="{tenant}",
        unique="{account}",
        expires="1h",
        priority=3,
    )
    def bill(payload: Any) -> None: ...

    task_id = producer.add_task(bill, {"tenant": "t", "account": 7})
    gate = json.loads(opts_of(db, task_id))["gate"].split("\n")
    assert gate[:5] == ["k1 tenant:t", "o account:7", "g1 t", "p 3", "us 7"]
    assert gate[5].startswith("x 1")
    nothing = {"limits": [], "unique": "own", "order": lambda payload: None, "priority": 0}
    rest = producer.add_task(bill, {"tenant": "t", "account": 7}, **nothing)
    assert json.loads(opts_of(db, rest))["gate"].split("\n")[:2] == [
        "g1 t",
        "us own",
    ]
    plain = producer.add_task("bill", {"tenant": "t", "account": 8})
    assert "gate" not in opts_of(db, plain)
    again = Registry()
    again.add("other", bill)
    assert again["other"].gate == jobs["bill"].gate
    with pytest.raises(ConfigurationError, match="did you mean 'limits'"):
        jobs.task(limit="x")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="has no option 'after'"):
        jobs.task(after="x")  # type: ignore[call-overload]


def test_what_is_wrong_is_said_before_anything_is_sent(
    producer: TaskProducer, db: redis.Redis
) -> None:
    """By every way in."""
    for wrong in ({"limits": ""}, {"after": 5}, {"priority": "high"}, {"expires": 0}):
        with pytest.raises(ConfigurationError):
            producer.add_task("a", **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError):
            producer.schedule_task("a", None, 5, **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError):
            producer.add_tasks([("a", 1), {"type": "a", **wrong}])
    assert db.dbsize() == 0


def test_the_async_producer_does_the_same(server: Server, db: redis.Redis) -> None:
    """Adding, in every way, and limits."""

    async def main() -> None:
        async with AsyncTaskProducer(url=server.url) as producer:
            plain = await producer.add_task("a", 1)
            assert plain.outcome == "added"
            child = await producer.add_task("a", 2, after=plain)
            late = await producer.schedule_task("a", 3, 4e9, limits=limit("k", at_most=1))
            ids = await producer.add_tasks([("a", 4), {"type": "a", "limits": "k"}])
            assert (await producer.add_task("a", 4, task_id=ids[0])).outcome == "known"
            assert state(db, child) == "waiting"
            assert state(db, late) == "delayed"
            with pytest.raises(UnknownParent):
                await producer.add_task("a", after="nobody")
            limits = producer.limits
            assert (await limits.all())["k"].in_use == 1
            assert (await limits.set("k", at_most=2)) is not None
            await limits.pause("k")
            assert (await limits.get("k")).paused  # type: ignore[union-attr]
            await limits.resume("k")
            await limits.penalize("k", 60)
            assert await limits.delete("k")

    asyncio.run(main())
