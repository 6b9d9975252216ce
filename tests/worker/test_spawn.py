"""Tasks that handlers spawn: there once, with the success of their parent, and only with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.workers import history, processor_of, registered, until

from redistq import (
    ConfigurationError,
    PayloadError,
    RedistqError,
    Registry,
    Retry,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    current_task,
    limit,
)
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.errors import ConnectionLost
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.worker.spawn import MOST_SPAWNED, written

registry = Registry()
kept: list[TaskContext] = []


@registry.task
def child(payload: Any) -> Any:
    return payload


@registry.task
def parent(payload: dict[str, Any], context: TaskContext) -> list[str]:
    """Spawns what the payload says, then ends as it says."""
    kept.append(context)
    ids = [
        context.spawn("child", k, **payload.get("options", {}))
        for k in range(payload.get("children", 2))
    ]
    end = payload.get("end")
    if end == "fail":
        raise ValueError("no")
    if end == "retry once" and context.attempt == 1:
        raise Retry(0)
    if end == "cancel":
        for _ in range(2_000):
            time.sleep(0.01)
    return ids


@registry.task
async def parent_async(payload: int) -> str:
    return current_task().spawn(child, payload)


@registry.task
def grand(payload: int, context: TaskContext) -> int:
    """A tree: each spawns two until none is left."""
    if payload:
        for _ in range(2):
            context.spawn(grand, payload - 1)
    return payload


@registry.task
def chain_of(payload: int, context: TaskContext) -> list[str]:
    """Spawns tasks of which each runs after the one before, under a limit declared here."""
    ids: list[str] = []
    for k in range(payload):
        after = ids[-1:] or None
        ids.append(context.spawn("child", k, after=after, limits=limit("chain", at_most=2)))
    return ids


@registry.task
def wrong(payload: str, context: TaskContext) -> str:
    calls: dict[str, Callable[[], Any]] = {
        "name": lambda: context.spawn(lambda x: x),
        "payload": lambda: context.spawn("child", object()),
        "option": lambda: context.spawn("child", retrys=3),  # type: ignore[call-arg]
        "value": lambda: context.spawn("child", delay="soon"),
        "many": lambda: [context.spawn("child") for _ in range(MOST_SPAWNED + 1)],
        "large": lambda: [context.spawn("child", "x" * 4_000_000) for _ in range(5)],
    }
    with pytest.raises((ConfigurationError, PayloadError)) as caught:
        calls[payload]()
    return str(caught.value)


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    kept.clear()
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def worker(url: str) -> Iterator[TaskWorker]:
    with TaskWorker(url=url, task_handlers=registry, thread_count=2) as worker:
        yield worker


def children(db: redis.Redis) -> int:
    """How many children have been added, ever."""
    rows: Any = db.xrange("history:tasks")
    ended = {fields["id"] for _, fields in rows if fields["name"] == "child"}
    waiting: Any = db.xrange("tasks")
    return len(ended | {f["id"] for _, f in waiting if f["name"] == "child"}) + db.zcard(
        "delayed:tasks"
    )


def test_children_are_there_with_the_success_of_their_parent(
    worker: TaskWorker, producer: TaskProducer
) -> None:
    """Under the ids that the handler got, with the payloads it gave."""
    ids = producer.get_result(producer.add_task("parent", {"children": 3}), timeout=5)
    assert [producer.get_result(task_id, timeout=5) for task_id in ids] == [0, 1, 2]
    one = producer.get_result(producer.add_task("parent_async", 7), timeout=5)
    assert producer.get_result(one, timeout=5) == 7


def test_options_hold_as_for_tasks_that_are_added(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis
) -> None:
    """Delay, and what stands in the entry."""
    options = {"delay": "1h", "retries": 5, "timeout": 7}
    (one,) = producer.get_result(
        producer.add_task("parent", {"children": 1, "options": options}), timeout=5
    )
    assert producer.get_task(one).state == "delayed"
    assert db.hget(f"task:tasks:{one}", "opts") == '{"retries":5,"timeout":7.0}'


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_parent_that_does_not_succeed_has_none(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis, end: str
) -> None:
    """Nor later: they were kept with the attempt alone."""
    task_id = producer.add_task("parent", {"end": end}, retries=0)
    if end == "cancel":
        until(lambda: kept, "it runs")
        producer.cancel(task_id, running="ask")
    with pytest.raises((TaskFailed, TaskCancelled)):
        producer.get_result(task_id, timeout=5)
    assert children(db) == 0


def test_a_parent_that_is_tried_again_leaves_its_children_once(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis
) -> None:
    """Those of the attempt that counted."""
    ids = producer.get_result(producer.add_task("parent", {"end": "retry once"}), timeout=5)
    assert len(kept) == 2
    until(lambda: producer.snapshot().counters["succeeded"] == 3, "all have ended")
    assert children(db) == len(ids) == 2


def test_a_tree_of_tasks_grows_to_its_end(worker: TaskWorker, producer: TaskProducer) -> None:
    """Each generation is there with the end of the one before it."""
    producer.add_task("grand", 5)
    until(lambda: producer.snapshot().counters.get("succeeded") == 63, "all 63 have ended")


def test_children_wait_for_one_another(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis
) -> None:
    """``after`` names siblings that were spawned before; limits hold, with their rules."""
    ids = producer.get_result(producer.add_task("chain_of", 5), timeout=5)
    assert [producer.get_result(task_id, timeout=5) for task_id in ids] == [0, 1, 2, 3, 4]
    rows: Any = db.xrange("history:tasks")
    assert [f["id"] for _, f in rows if f["name"] == "child"] == ids
    state = producer.limits.get("chain")
    assert state is not None
    assert (state.at_most, state.in_use) == (2, 0)


def test_a_child_whose_parent_failed_is_cancelled_with_the_reason(
    worker: TaskWorker, producer: TaskProducer
) -> None:
    """As any dependant."""
    task_id = producer.add_task("parent", {"end": "fail"}, retries=0)
    with pytest.raises(TaskFailed):
        producer.get_result(task_id, timeout=5)
    options = {"children": 1, "options": {"after": [task_id]}}
    (one,) = producer.get_result(producer.add_task("parent", options), timeout=5)
    with pytest.raises(TaskCancelled, match="failed"):
        producer.get_result(one, timeout=5)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("name", "not <function"),
        ("payload", "object"),
        ("option", "did you mean 'retries'"),
        ("value", "delay"),
        ("many", "at most 1,000"),
        ("large", "16,777,216 bytes"),
    ],
)
def test_what_cannot_be_spawned_is_refused_at_the_call(
    worker: TaskWorker, producer: TaskProducer, what: str, words: str
) -> None:
    """With a word on it; what was spawned before stays."""
    assert words in producer.get_result(producer.add_task("wrong", what), timeout=10)


def test_nothing_is_spawned_after_the_end(worker: TaskWorker, producer: TaskProducer) -> None:
    """Not by a thread that kept the context, nor by a context that no worker made."""
    producer.get_result(producer.add_task("parent", {}), timeout=5)
    with pytest.raises(RedistqError, match="this task has ended"):
        kept[0].spawn("child")


def test_a_settlement_that_is_sent_twice_or_refused_adds_no_child_twice(
    url: str, db: redis.Redis, producer: TaskProducer
) -> None:
    """The script adds them only with an outcome that counts."""
    broker = Broker(Address(url))
    calls = Commands(QueueKeys("tasks"))
    try:
        broker.call(calls.create_group())
        producer.add_tasks([("parent", {}), ("parent", {})])
        (first, one), (_, two) = broker.call(calls.fetch("w", 2, None))[0][1]
        row = (first, one[1], "succeeded", "parent", "1", "1.000", b"1", "60000", "", "", "")
        stranger = (b"9-9", two[1], *row[2:])
        spawned = [
            (1, [("c1", "child", b"1", b"", "", "")]),
            (2, [("c2", "child", b"2", b"", "", "")]),
        ]
        settle = calls.settle("w", [row, stranger], children=written(spawned))
        assert broker.call(settle) == [2]
        assert broker.call(settle) == [2]
        assert [f["id"] for _, f in db.xrange("tasks") if f["name"] == "child"] == ["c1"]
        assert not db.exists("task:tasks:c2")
        assert db.hgetall("task:tasks:c1").keys() == {"entry"}
    finally:
        broker.close()


def test_a_worker_that_is_killed_leaves_no_child_of_what_it_ran(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """The task runs again elsewhere, and its children are there once."""
    with TaskWorker(
        url=url, task_handlers={"p": _spawns_and_dies_once, "child": _child}, processes=1
    ):
        until(lambda: registered(db), "it is there")
        producer.add_task("p", url)
        until(lambda: producer.snapshot().counters.get("succeeded") == 2, "both have ended", 20)
    assert children(db) == 1
    assert int(db.hget("counters:tasks", "recovered") or 0) == 1


def test_answers_that_are_lost_add_no_child_twice(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that settles is made again under the same ids."""
    settler = processor_of(worker).settler
    usual = settler._broker.call
    lost: list[Any] = []

    def call(command: Any, *args: Any) -> Any:
        answer = usual(command, *args)
        sent = b"".join(part for part in command if isinstance(part, bytes))
        if b"child" in sent and not lost:
            lost.append(command)
            raise ConnectionLost("on the way back")
        return answer

    monkeypatch.setattr(settler, "_broker", _Wrapped(settler._broker, call))
    task_id = producer.add_task("parent", {})
    producer.get_result(task_id, timeout=5)
    until(lambda: producer.snapshot().counters["succeeded"] == 3, "all have ended")
    assert lost
    assert children(db) == 2
    assert history(db, task_id) == ["succeeded"]


class _Wrapped:
    def __init__(self, broker: Any, call: Any) -> None:
        self._broker, self.call = broker, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


def _spawns_and_dies_once(payload: str, context: TaskContext) -> str:
    import os
    import signal

    context.spawn("child", context.recovered)
    if not context.recovered:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _child(payload: Any) -> Any:
    return payload
