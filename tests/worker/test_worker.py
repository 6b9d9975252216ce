"""A worker in this process: what handlers may do, and what becomes of their tasks."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import logging
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import commands_in, history, lapse, registered, scoreboard_of, until

from redistq import (
    ConfigurationError,
    Fail,
    Registry,
    Retry,
    Snooze,
    TaskContext,
    TaskFailed,
    TaskProducer,
    TaskWorker,
    UnknownTask,
)
from redistq.worker.scoreboard import Overdue, Scoreboard

registry = Registry()
seen: dict[str, list[Any]] = {}
events: dict[str, threading.Event] = {}
_numbers = itertools.count()


def note(payload: Any, what: Any = None) -> int:
    """Remember one run under the payload's key; answers how many there are now."""
    runs = seen.setdefault(payload["key"], [])
    runs.append(what)
    return len(runs)


def fresh_key() -> str:
    """A key for one test's notes and events."""
    key = f"k{next(_numbers)}"
    events[key + "go"], events[key + "started"] = threading.Event(), threading.Event()
    return key


@registry.task
def add_one(payload: int) -> int:
    return payload + 1


@registry.task
async def async_add_one(payload: int) -> int:
    await asyncio.sleep(0)
    return payload + 1


@registry.task
def echo(payload: Any) -> Any:
    return payload


@registry.task
def with_context(payload: Any, context: TaskContext) -> dict[str, Any]:
    context.logger.warning("hello from a task")
    return {
        "id": context.task_id,
        "name": context.name,
        "queue": context.queue,
        "attempt": context.attempt,
        "max": context.max_attempts,
        "recovered": context.recovered,
    }


@registry.task
async def async_with_context(payload: Any, context: TaskContext) -> str:
    return context.task_id


class Odd(Exception):
    """An error whose text cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Base(BaseException):
    """Neither an Exception nor one of Python's own."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("the value is bad"),
    "KeyError": lambda: KeyError("the key is bad"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "Base": lambda: Base("base"),
    "Odd": Odd,
    "MemoryError": MemoryError,
    "CancelledError": asyncio.CancelledError,
    "StopIteration": StopIteration,
}


@registry.task(
    retries=2, backoff=0.01, jitter=0, retry_on=(ValueError, KeyError), never_retry=KeyError
)
def fails(payload: Any) -> None:
    note(payload, time.monotonic())
    raise ERRORS[payload["error"]]()


@registry.task(retries=0)
async def async_fails(payload: Any) -> None:
    raise ERRORS[payload["error"]]()


@registry.task(retries=3, backoff=0.2, backoff_cap=0.3, jitter=0)
def works_at_last(payload: Any) -> int:
    runs = note(payload, time.monotonic())
    if runs <= payload["failures"]:
        raise ValueError(f"failure {runs}")
    return runs


@registry.task(retries=1, backoff=60)
def asks(payload: Any, context: TaskContext) -> list[Any]:
    if note(payload, context.attempt) <= payload["times"]:
        signal = {"retry": Retry, "snooze": Snooze}[payload["how"]]
        raise signal(delay=0.02)
    return seen[payload["key"]]


@registry.task(retries=5)
def gives_up(payload: Any) -> None:
    note(payload)
    raise Fail("nothing to be done")


@registry.task(retries=0)
def returns(payload: Any) -> Any:
    return {"set": {1, 2}, "big": "x" * 3000, "deep": deep_list(), "nan": float("nan")}[payload]


def deep_list() -> Any:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@registry.task(retries=0)
def recurses(payload: int) -> int:
    return recurses(payload + 1)


@registry.task(retries=0, timeout=0.2)
def spins(payload: Any) -> str:
    end = time.monotonic() + payload
    while time.monotonic() < end:
        pass
    return "done"


@registry.task(retries=0, timeout=0.2)
async def async_sleeps(payload: float) -> str:
    await asyncio.sleep(payload)
    return "done"


@registry.task(retries=0)
async def async_cancels_itself(payload: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(5)


@registry.task(retries=0)
def waits(payload: Any) -> str:
    note(payload)
    events[payload["key"] + "started"].set()
    assert events[payload["key"] + "go"].wait(20)
    return "waited"


class Farm:
    """One worker and one producer on a server of their own, for most tests of this module."""

    def __init__(self, server: Server, worker: TaskWorker, producer: TaskProducer) -> None:
        self.server, self.worker, self.producer = server, worker, producer
        self.client = server.client()

    def run(self, task: Any, payload: Any = None, **options: Any) -> Any:
        """Add a task and wait for its result."""
        return self.producer.get_result(self.producer.add_task(task, payload, **options), 10)

    def fail(self, task: Any, payload: Any = None, **options: Any) -> TaskFailed:
        """Add a task and wait for its failure."""
        with pytest.raises(TaskFailed) as failure:
            self.run(task, payload, **options)
        return failure.value

    def history(self, task_id: str) -> list[str]:
        """How each attempt of a task ended."""
        return history(self.client, task_id)


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    """A worker of two threads and an event loop."""
    with Server("valkey") as server:
        url = server.url
        worker = TaskWorker(
            url=url, task_handlers=registry, thread_count=2, lease=2, max_result_bytes=2000
        )
        with worker, TaskProducer(url=url) as producer:
            made = Farm(server, worker, producer)
            yield made
            made.client.close()


# -- results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [add_one, async_add_one])
def test_a_handler_runs_and_its_result_comes_back(farm: Farm, task: Any) -> None:
    """A plain and an async handler get the payload; what they return is the result."""
    assert farm.run(task, 41) == 42


def test_many_tasks_all_come_back(farm: Farm) -> None:
    """Five hundred mixed tasks added in bulk each have their own result and one settlement."""
    items = [(task, n) for n in range(250) for task in (add_one, async_add_one)]
    ids = farm.producer.add_tasks(items)
    assert [farm.producer.get_result(i, 10) for i in ids] == [n + 1 for _, n in items]
    assert {tuple(farm.history(i)) for i in ids[::50]} == {("succeeded",)}


@pytest.mark.parametrize(
    "value",
    [None, 0, -(2**80), 1.5, "ünï\ud800 \0", [], {}, [1, [2, {"a": None}]], True],
    ids=["None", "zero", "huge", "float", "text", "list", "dict", "nested", "bool"],
)
def test_values_survive_the_round_trip(farm: Farm, value: Any) -> None:
    """What JSON can hold comes back as it went, integers of any size and odd text included."""
    assert farm.run(echo, value) == value


def test_the_context_tells_what_runs(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    """A handler with a second parameter learns its task's id, attempt and limits, and can log."""
    task_id = farm.producer.add_task(with_context, None, retries=7)
    expected = {"id": task_id, "name": "with_context", "queue": "tasks"}
    assert farm.producer.get_result(task_id, 10) == {
        **expected,
        "attempt": 1,
        "max": 8,
        "recovered": 0,
    }
    (record,) = [r for r in caplog.records if r.message == "hello from a task"]
    assert record.name == "redistq.task"
    assert record.task_id == task_id
    other = farm.producer.add_task(async_with_context)
    assert farm.producer.get_result(other, 10) == other


# -- failures --------------------------------------------------------------------------------------


def test_a_failing_task_is_retried_with_growing_pauses(farm: Farm) -> None:
    """Backoff doubles from attempt to attempt up to its cap, and success ends it."""
    key = fresh_key()
    task_id = farm.producer.add_task(works_at_last, {"key": key, "failures": 3})
    assert farm.producer.get_result(task_id, 10) == 4
    times = seen[key]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] >= 0.2
    assert all(0.3 <= pause < 2 for pause in pauses[1:])
    assert farm.history(task_id) == ["retried", "retried", "retried", "succeeded"]
    assert farm.producer.get_task(task_id).attempt == 4


def test_exhausted_retries_end_as_a_dead_letter(farm: Farm) -> None:
    """After the last attempt the task is failed, with type, message and remote traceback."""
    key = fresh_key()
    task_id = farm.producer.add_task(fails, {"key": key, "error": "ValueError"})
    with pytest.raises(TaskFailed, match="ValueError: the value is bad") as failure:
        farm.producer.get_result(task_id, 10)
    assert failure.value.type == "ValueError"
    assert 'raise ERRORS[payload["error"]]()' in failure.value.traceback
    assert "execution.py" not in failure.value.traceback
    assert len(seen[key]) == 3
    assert farm.history(task_id) == ["retried", "retried", "failed"]
    (letter,) = [d for d in farm.producer.dead_letters() if d.id == task_id]
    assert letter.payload == {"key": key, "error": "ValueError"}
    assert letter.error is not None
    assert letter.error["message"] == "the value is bad"
    assert letter.attempt == 3


@pytest.mark.parametrize("error", ["KeyError", "SystemExit", "KeyboardInterrupt", "Base", "Odd"])
def test_an_error_that_is_not_to_be_retried_ends_the_task(farm: Farm, error: str) -> None:
    """never_retry wins over retry_on, and what is in neither is not retried."""
    key = fresh_key()
    failure = farm.fail(fails, {"key": key, "error": error})
    assert failure.type == error
    assert len(seen[key]) == 1


@pytest.mark.parametrize("error", list(ERRORS))
def test_whatever_an_async_handler_raises_is_an_outcome(farm: Farm, error: str) -> None:
    """Errors of every kind fail the task in the event loop, which goes on."""
    kind = {"StopIteration": "RuntimeError"}.get(error, error)  # Python's own rule for coroutines
    assert farm.fail(async_fails, {"error": error}).type == kind
    assert farm.run(async_add_one, 1) == 2


@pytest.mark.parametrize("error", list(ERRORS))
def test_whatever_a_handler_raises_no_thread_is_lost(farm: Farm, error: str) -> None:
    """After errors of every kind both threads still run tasks, at the same time."""
    farm.fail(fails, {"key": fresh_key(), "error": error}, retries=0)
    keys = [fresh_key(), fresh_key()]
    ids = [farm.producer.add_task(waits, {"key": key}) for key in keys]
    for key in keys:
        assert events[key + "started"].wait(10)
    for key in keys:
        events[key + "go"].set()
    assert [farm.producer.get_result(i, 10) for i in ids] == ["waited"] * 2


def test_an_error_without_text_still_says_what_it_was(farm: Farm) -> None:
    """An exception whose __str__ raises is reported by its type, with a note in the message."""
    failure = farm.fail(fails, {"key": fresh_key(), "error": "Odd"})
    assert failure.type == "Odd"
    assert "cannot be shown" in failure.message


def test_endless_recursion_is_an_error_like_any_other(farm: Farm) -> None:
    """A RecursionError fails the task; its long traceback is cut."""
    failure = farm.fail(recurses, 0)
    assert failure.type == "RecursionError"
    assert len(failure.traceback) < 20_000
    assert farm.run(add_one, 1) == 2


def test_a_coroutine_that_cancels_itself_fails(farm: Farm) -> None:
    """Cancelling one's own task is a failure of that task, not one that waits for ever."""
    assert farm.fail(async_cancels_itself).type == "CancelledError"


@pytest.mark.parametrize(("how", "attempts"), [("retry", [1, 2]), ("snooze", [1, 1])])
def test_a_handler_can_ask_to_be_called_again(farm: Farm, how: str, attempts: list[int]) -> None:
    """Retry(delay) counts an attempt and comes after its own delay; Snooze counts none."""
    started = time.monotonic()
    assert farm.run(asks, {"key": fresh_key(), "how": how, "times": 1}) == attempts
    assert time.monotonic() - started < 5  # not the 60 s of its backoff


def test_retries_that_are_asked_for_are_bounded_but_snoozes_are_not(farm: Farm) -> None:
    """Retry beyond the retries fails the task; three snoozes still end in a first attempt."""
    assert farm.fail(asks, {"key": fresh_key(), "how": "retry", "times": 5}).type == "Retry"
    assert farm.run(asks, {"key": fresh_key(), "how": "snooze", "times": 3}) == [1, 1, 1, 1]


def test_fail_gives_a_task_up_at_once(farm: Farm) -> None:
    """Fail(reason) is final whatever retries are left, and the reason is the message."""
    key = fresh_key()
    failure = farm.fail(gives_up, {"key": key})
    assert (failure.type, failure.message) == ("Fail", "nothing to be done")
    assert len(seen[key]) == 1


def test_dead_letters_are_replayed_one_by_one_or_all(farm: Farm) -> None:
    """A replayed task starts with a clean slate; its result can be asked for under its old id."""
    farm.producer.purge()
    keys = [fresh_key() for _ in range(3)]
    ids = [
        farm.producer.add_task(works_at_last, {"key": key, "failures": 1}, retries=0)
        for key in keys
    ]
    for task_id in ids:
        with pytest.raises(TaskFailed):
            farm.producer.get_result(task_id, 10)
    assert farm.producer.replay(ids[0]) == 1
    assert farm.producer.get_result(ids[0], 10) == 2
    assert farm.producer.replay() == 2
    assert [farm.producer.get_result(i, 10) for i in ids[1:]] == [2, 2]
    assert farm.producer.dead_letters() == []
    assert farm.producer.replay(ids[0], "nobody") == 0


def test_purged_dead_letters_are_gone(farm: Farm) -> None:
    """After a purge neither the letter nor the task's record is left."""
    task_id = farm.producer.add_task(gives_up, {"key": fresh_key()})
    with pytest.raises(TaskFailed):
        farm.producer.get_result(task_id, 10)
    assert farm.producer.purge(task_id) == 1
    with pytest.raises(UnknownTask):
        farm.producer.get_task(task_id)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("set", "ResultError", "cannot be written as JSON"),
        ("big", "ResultTooLarge", "the limit is 2,000"),
        ("deep", "ResultError", "cannot be written as JSON"),
    ],
)
def test_a_result_that_cannot_be_kept_fails_the_task(
    farm: Farm, what: str, kind: str, words: str
) -> None:
    """An unserialisable or too large result is a failure without a retry, and says what to do."""
    failure = farm.fail(returns, what, retries=5)
    assert failure.type == kind
    assert words in failure.message


def test_a_result_ttl_of_zero_keeps_nothing(farm: Farm) -> None:
    """With result_ttl=0 a caller that waits is told, and afterwards the task is unknown."""
    key = fresh_key()
    task_id = farm.producer.add_task(waits, {"key": key}, result_ttl=0)
    threading.Timer(0.1, events[key + "go"].set).start()
    assert farm.producer.get_result(task_id, 10) == "waited"
    with pytest.raises(UnknownTask):
        farm.producer.get_task(task_id)
    assert farm.client.hget(f"task:tasks:{task_id}", "result") is None
    left = farm.client.pttl(f"task:tasks:{task_id}")  # of what tells a re-sent settlement apart
    assert isinstance(left, int)
    assert left == -2 or 0 < left < 3_600_000


def test_results_expire(farm: Farm) -> None:
    """A result lives as long as the task's own result_ttl says."""
    task_id = farm.producer.add_task(add_one, 1, result_ttl=100)
    farm.producer.get_result(task_id, 10)
    ttl = farm.client.ttl(f"task:tasks:{task_id}")
    assert isinstance(ttl, int)
    assert 90 < ttl <= 100


# -- time limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [spins, async_sleeps])
def test_a_handler_that_runs_too_long_is_interrupted(farm: Farm, task: Any) -> None:
    """A thread in Python code and a coroutine both stop at their time limit, and the task fails."""
    started = time.monotonic()
    failure = farm.fail(task, 20)
    assert failure.type == "TimeLimitExceeded"
    assert "the time limit of 0.2 s has passed" in failure.message
    assert time.monotonic() - started < 5
    assert farm.run(task, 0) == "done"


def test_a_time_limit_never_strikes_the_next_task(farm: Farm) -> None:
    """Tasks that end about when their limit fires leave nothing behind for those after them."""
    limited = farm.producer.add_tasks([(spins, 0.199 + n * 0.0005) for n in range(8)])
    plain = farm.producer.add_tasks([(add_one, n) for n in range(300)])
    assert [farm.producer.get_result(i, 10) for i in plain] == [n + 1 for n in range(300)]
    for task_id in limited:
        until(lambda i=task_id: farm.producer.get_task(i).settled, "the end of a limited task")
        task = farm.producer.get_task(task_id)
        assert task.result == "done" or (task.error or {})["type"] == "TimeLimitExceeded"


def test_a_tasks_own_limit_wins_over_its_handlers(farm: Farm) -> None:
    """timeout= given with the task replaces the handler's."""
    assert farm.run(spins, 0.4, timeout=5) == "done"
    assert farm.fail(async_sleeps, 3, timeout=0.05).message.startswith("the time limit of 0.05 s")


# -- entries that are no tasks ---------------------------------------------------------------------

GOOD = {
    "id": "by-hand",
    "name": "add_one",
    "payload": "1",
    "attempt": "1",
    "recovered": "0",
    "opts": "",
}


@pytest.mark.parametrize(
    "fields",
    [
        {"hello": "world"},
        {"id": "a", "name": "add_one"},
        {**GOOD, "attempt": "many"},
        {**GOOD, "recovered": "-1"},
        {**GOOD, "id": b"\xff\xfe"},
    ],
    ids=["foreign", "half", "attempt", "recovered", "id"],
)
def test_an_entry_that_is_no_task_is_set_aside(farm: Farm, fields: dict[str, Any]) -> None:
    """A foreign stream entry becomes a dead letter with its raw fields; the worker goes on."""
    entry = farm.client.xadd("tasks", dict(fields))
    letter = f"corrupt-{entry}"
    until(lambda: farm.client.zscore("dead:tasks", letter), "a dead letter")
    raw = farm.server.client(decode_responses=False)
    record: Any = raw.hgetall(f"task:tasks:{letter}")
    raw.close()
    for name, value in fields.items():
        stored = value if isinstance(value, bytes) else value.encode()
        assert record[f"raw:{name}".encode()] == stored
    (found,) = [d for d in farm.producer.dead_letters() if d.id == letter]
    assert found.error is not None
    assert found.error["type"] == "CorruptEntry"
    assert farm.run(add_one, 1) == 2
    assert farm.producer.purge(letter) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": "{"},
        {"payload": "\x00"},
        {"payload": "[" * 200_000},
        {"opts": "["},
        {"opts": "[]"},
        {"opts": '{"retries": "x"}'},
        {"opts": '{"inbox": 3}'},
        {"opts": '{"timeout": "x"}'},
        {"opts": '{"result_ttl": 1e999}'},
    ],
    ids=lambda fields: str(fields)[:30],
)
def test_a_task_that_cannot_be_read_fails_without_a_retry(
    farm: Farm, fields: dict[str, str]
) -> None:
    """A payload or options that are no JSON, or not ours, end as a dead letter that is shown."""
    task_id = f"unreadable-{fresh_key()}"
    farm.client.xadd("tasks", {**GOOD, "id": task_id, **fields})
    until(lambda: farm.client.zscore("dead:tasks", task_id), "a dead letter")
    (letter,) = [d for d in farm.producer.dead_letters() if d.id == task_id]
    assert letter.error is not None
    assert letter.error["type"] == "CorruptPayload"
    assert farm.history(task_id) == ["failed"]
    assert farm.run(add_one, 1) == 2
    assert farm.producer.purge(task_id) == 1


def test_fields_in_another_order_are_a_task_all_the_same(farm: Farm) -> None:
    """A task that another program wrote runs, whatever the order of its fields."""
    fields = dict(reversed({**GOOD, "id": "reversed"}.items()))
    farm.client.xadd("tasks", {**fields, "extra": "1"})
    until(lambda: farm.history("reversed") == ["succeeded"], "the task's end")


# -- pause and cancel ------------------------------------------------------------------------------


def test_a_paused_queue_starts_nothing(farm: Farm) -> None:
    """While paused, added tasks wait, for the tasks that run too; resume lets them go."""
    farm.producer.pause()
    try:
        until(
            lambda: scoreboard_of(farm.worker).paused,
            "the worker hears it",
        )
        key = fresh_key()
        ids = [farm.producer.add_task(add_one, 1), farm.producer.add_task(waits, {"key": key})]
        ids.append(farm.producer.add_task(async_add_one, 1))
        events[key + "go"].set()
        until(lapse(0.5), "half a second without a start")
        assert {farm.producer.get_task(i).state for i in ids} <= {"queued", "running"}
        assert key not in seen
        assert farm.producer.snapshot().paused
    finally:
        farm.producer.resume()
    assert [farm.producer.get_result(i, 10) for i in ids] == [2, "waited", 2]
    assert all(farm.history(i) == ["succeeded"] for i in ids)


def test_waiting_tasks_can_be_cancelled_and_running_ones_cannot(farm: Farm) -> None:
    """Cancel answers what became of each: cancelled, running, settled before, or unknown."""
    keys = [fresh_key(), fresh_key()]
    running = [farm.producer.add_task(waits, {"key": key}) for key in keys]
    for key in keys:
        assert events[key + "started"].wait(10)
    farm.producer.pause()  # so that no worker takes what is queued
    until(lambda: scoreboard_of(farm.worker).paused, "the worker hears it")
    queued = farm.producer.add_task(add_one, 1)
    delayed = farm.producer.add_task(add_one, 1, delay=60)
    until(lambda: farm.producer.get_task(queued).state == "queued", "the worker lets go of it")
    answer = farm.producer.cancel(running[0], queued, delayed, "nobody")
    farm.producer.resume()
    assert answer == {
        running[0]: "running",
        queued: "cancelled",
        delayed: "cancelled",
        "nobody": "unknown",
    }
    for key in keys:
        events[key + "go"].set()
    assert [farm.producer.get_result(i, 10) for i in running] == ["waited"] * 2
    assert farm.producer.cancel(running[0]) == {running[0]: "succeeded"}
    assert farm.history(queued) == ["cancelled"]
    assert farm.client.zcard("delayed:tasks") == 0


# -- names nobody knows ----------------------------------------------------------------------------


def test_an_unknown_task_waits_for_a_worker_that_knows_it(url: str, db: redis.Redis) -> None:
    """A worker without the handler parks the task, calmly; a worker that has it runs it."""
    with TaskProducer(url=url) as producer, TaskWorker(url=url, task_handlers={"a": str}, lease=2):
        task_id = producer.add_task("b", 5)
        assert producer.get_result(producer.add_task("a", 1), 10) == "1"
        until(lambda: db.hget(f"task:tasks:{task_id}", "unknown_ms"), "the task to be parked")
        assert commands_in(db, lapse(1.0)) < 600  # some 25 a parking: no hot loop
        with TaskWorker(url=url, task_handlers={"b": lambda payload: payload + 1}, lease=2):
            assert producer.get_result(task_id, 10) == 6
        assert producer.get_task(task_id).attempt == 1


def test_an_unknown_task_is_a_dead_letter_after_its_grace(url: str, db: redis.Redis) -> None:
    """When nobody knew the name for unknown_grace seconds, the error lists the known names."""
    worker = TaskWorker(url=url, task_handlers={"a": str, "c": str}, lease=2, unknown_grace=1)
    with TaskProducer(url=url) as producer, worker:
        started = time.monotonic()
        with pytest.raises(TaskFailed, match=r"no handler named typo; .* know a, c"):
            producer.get_result(producer.add_task("typo", 5), 15)
        assert time.monotonic() - started > 1


# -- life ------------------------------------------------------------------------------------------


def test_every_server_runs_tasks(every_server: Server) -> None:
    """Plain, async, delayed and failing tasks work on each supported server."""
    url = every_server.url
    with TaskWorker(url=url, task_handlers=registry, lease=2), TaskProducer(url=url) as producer:
        assert producer.get_result(producer.add_task(add_one, 1), 10) == 2
        assert producer.get_result(producer.add_task(async_add_one, 1), 10) == 2
        assert producer.get_result(producer.add_task(add_one, 1, delay=0.05), 10) == 2
        with pytest.raises(TaskFailed):
            producer.get_result(producer.add_task(gives_up, {"key": fresh_key()}), 10)
        assert producer.snapshot().counters == {"succeeded": 3, "failed": 1}


def test_start_and_stop_may_be_called_in_any_order(url: str, db: redis.Redis) -> None:
    """Stop before start, stop twice, start twice and start again after stop all do as they say."""
    worker = TaskWorker(url=url, task_handlers={"add_one": add_one}, lease=2)
    assert worker.stop() is True
    with TaskProducer(url=url) as producer:
        for _ in range(2):
            assert worker.start() is worker
            assert worker.start() is worker
            assert worker.running
            assert len(registered(db)) == 1
            assert producer.get_result(producer.add_task("add_one", 1), 10) == 2
            assert worker.stop() is True
            assert worker.stop() is True
            assert not worker.running
            assert registered(db) == {}
    assert db.xinfo_consumers("tasks", "workers") == []


def test_a_stopped_worker_lets_running_tasks_finish_and_gives_the_rest_back(
    url: str, db: redis.Redis
) -> None:
    """Running tasks end, unstarted ones are queued again with attempt 1 and no recovery."""
    key = fresh_key()
    worker = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    with TaskProducer(url=url) as producer:
        with worker:
            for n in range(50):  # short ones, so that the worker prefetches
                producer.get_result(producer.add_task(add_one, n), 10)
            running = producer.add_task(waits, {"key": key})
            behind = producer.add_tasks([(add_one, n) for n in range(20)])
            assert events[key + "started"].wait(10)
            threading.Timer(0.3, events[key + "go"].set).start()
            assert worker.stop(10) is True
        assert producer.get_task(running).state == "succeeded"
        assert {producer.get_task(i).state for i in behind} == {"queued"}
        for _, fields in db.xrange("tasks"):
            assert (fields["attempt"], fields["recovered"]) == ("1", "0")
        assert producer.snapshot().pending == 0


@pytest.mark.parametrize("task", [waits, async_sleeps])
def test_a_task_that_outlasts_the_stop_is_run_again_by_another_worker(
    url: str, db: redis.Redis, task: Any
) -> None:
    """stop(timeout) answers False in time; the task goes to another worker and settles once."""
    key = fresh_key()
    payload: Any = (
        {"key": key} if task is waits else 6
    )  # longer than a busy machine holds up the stop
    worker = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    with TaskProducer(url=url) as producer:
        worker.start()
        task_id = producer.add_task(task, payload, timeout=20)
        until(lambda: producer.get_task(task_id).state == "running", "the task's start")
        if task is waits:
            assert events[key + "started"].wait(10)
        started = time.monotonic()
        finished = worker.stop(0.3)
        took = time.monotonic() - started
        assert took < 4
        assert finished is False
        events[key + "go"].set()
        with TaskWorker(url=url, task_handlers=registry, lease=2):
            producer.get_result(task_id, 20)
        assert history(db, task_id) == ["recovered", "succeeded"]


def test_settings_that_cannot_work_are_refused_at_once(url: str) -> None:
    """A worker without handlers, with unknown options or impossible values is not made."""
    with pytest.raises(ConfigurationError, match="needs handlers"):
        TaskWorker(url=url, task_handlers={})
    with pytest.raises(ConfigurationError, match=r"no option 'leese'.* lease"):
        TaskWorker(url=url, task_handlers=registry, leese=3)
    with pytest.raises(ConfigurationError, match="lease is at least 1 second"):
        TaskWorker(url=url, task_handlers=registry, lease=0.1)
    with pytest.raises(ConfigurationError, match="processes"):
        TaskWorker(url=url, task_handlers=registry, processes=-1)
    with pytest.raises(ConfigurationError, match="threads is a whole number"):
        TaskWorker(url=url, task_handlers=registry, thread_count=0)


# -- sharing ---------------------------------------------------------------------------------------


def test_long_tasks_are_not_prefetched(url: str, db: redis.Redis) -> None:
    """Two workers of one thread each share two long tasks, though one fetched first."""
    keys = [fresh_key() for _ in range(3)]
    handlers = {"waits": waits}
    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers=handlers, thread_count=1, lease=2),
    ):
        ids = [producer.add_task(waits, {"key": key}) for key in keys]
        assert events[keys[0] + "started"].wait(10)
        with TaskWorker(url=url, task_handlers=handlers, thread_count=1, lease=2):
            assert events[keys[1] + "started"].wait(5)
            assert not events[keys[2] + "started"].is_set()
            until(lapse(0.3), "the time in which a third would be fetched")
            assert producer.get_task(ids[2]).state == "queued"
            for key in keys:
                events[key + "go"].set()
            assert [producer.get_result(i, 10) for i in ids] == ["waited"] * 3


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_long_tasks_after_many_short_ones_are_shared_out(
    url: str, db: redis.Redis, monkeypatch: pytest.MonkeyPatch, known: bool, threads: int
) -> None:
    """A worker that has run only short tasks lately keeps of the long ones what it can start."""
    # Not because nobody makes progress.
    monkeypatch.setattr("redistq.worker.prefetch.STUCK_S", 60.0)
    handlers = {"waits": waits, "add_one": add_one}
    options: dict[str, Any] = {"task_handlers": handlers, "thread_count": threads, "lease": 2}
    with TaskProducer(url=url) as producer, TaskWorker(url=url, **options):
        if known:
            key = fresh_key()
            once = producer.add_task(waits, {"key": key})
            assert events[key + "started"].wait(10)
            until(lapse(0.15), "a time that nobody would call short")
            events[key + "go"].set()
            producer.get_result(once, 10)
        for _ in range(2):
            shorts = producer.add_tasks([(add_one, n) for n in range(400)])
            assert [producer.get_result(i, 10) for i in shorts] == list(range(1, 401))
        keys = [fresh_key() for _ in range(40)]
        ids = producer.add_tasks([(waits, {"key": key}) for key in keys])
        for key in keys[:threads]:
            assert events[key + "started"].wait(10)
        until(lambda: producer.snapshot().pending == threads, "the others wait for anyone")
        with TaskWorker(url=url, **options):
            for key in keys[threads : 2 * threads]:  # in the order in which they were added
                assert events[key + "started"].wait(10)
            for key in keys:
                events[key + "go"].set()
            assert [producer.get_result(i, 10) for i in ids] == ["waited"] * 40
        assert {tuple(history(db, i)) for i in ids} == {("succeeded",)}


@pytest.mark.parametrize("short", [3, 60], ids=["few", "many"])
def test_a_long_task_keeps_no_short_ones_hostage(url: str, db: redis.Redis, short: int) -> None:
    """Short tasks that were fetched behind a long one go to an idle worker, uncounted."""
    key = fresh_key()
    first = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    with TaskProducer(url=url) as producer, first:
        for n in range(50):  # the worker learns that tasks are short, and prefetches
            producer.get_result(producer.add_task(add_one, n), 10)
        producer.pause()
        until(lambda: scoreboard_of(first).paused, "the pause")
        long = producer.add_task(waits, {"key": key})
        ids = producer.add_tasks([(add_one, n) for n in range(short)])
        producer.resume()
        assert events[key + "started"].wait(10)
        with TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2):
            assert [producer.get_result(i, 5) for i in ids] == [n + 1 for n in range(short)]
            assert producer.get_task(long).state == "running"
            events[key + "go"].set()
            assert producer.get_result(long, 10) == "waited"
        assert {tuple(history(db, i)) for i in ids} == {("succeeded",)}


def test_short_tasks_stuck_behind_a_long_one_cost_the_server_little(
    url: str, db: redis.Redis
) -> None:
    """A lone busy worker does not pass its unstarted tasks to and fro."""
    key = fresh_key()
    worker = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    with TaskProducer(url=url) as producer, worker:
        for n in range(50):
            producer.get_result(producer.add_task(add_one, n), 10)
        long = producer.add_task(waits, {"key": key})
        assert events[key + "started"].wait(10)
        ids = producer.add_tasks([(add_one, n) for n in range(20)])
        until(lapse(0.7), "the release of what is stuck")
        assert commands_in(db, lapse(1.0)) < 200
        events[key + "go"].set()
        assert producer.get_result(long, 10) == "waited"
        assert [producer.get_result(i, 10) for i in ids] == [n + 1 for n in range(20)]


def test_busy_threads_do_not_keep_async_tasks_waiting(url: str) -> None:
    """While all threads are busy the event loop still runs what is fetched."""
    key = fresh_key()
    worker = TaskWorker(url=url, task_handlers=registry, thread_count=1, lease=2)
    with TaskProducer(url=url) as producer, worker:
        long = producer.add_task(waits, {"key": key})
        assert events[key + "started"].wait(10)
        queued = [producer.add_task(waits, {"key": fresh_key()}) for _ in range(3)]
        assert producer.get_result(producer.add_task(async_add_one, 1), 5) == 2
        assert producer.cancel(*queued).keys() == set(queued)
        for name, event in events.items():
            if name.endswith("go"):
                event.set()
        assert producer.get_result(long, 10) == "waited"


def test_an_idle_worker_asks_the_server_for_nothing(url: str, db: redis.Redis) -> None:
    """Two idle seconds cost a few heartbeats, not polling."""
    with TaskWorker(url=url, task_handlers=registry, lease=3):
        until(lapse(0.5), "the worker to settle down")
        assert commands_in(db, lapse(2.0)) < 40


# -- warnings --------------------------------------------------------------------------------------


def test_a_server_that_can_lose_tasks_is_named_at_the_start(
    private_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Eviction and missing persistence are warned of, with the setting to change."""
    careless = private_server(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    with TaskWorker(url=careless.url, task_handlers=registry, lease=2):
        pass
    text = caplog.text
    assert "maxmemory-policy is allkeys-lru" in text
    assert "set appendonly yes" in text
    caplog.clear()
    careful = private_server(appendonly=True)
    with TaskWorker(url=careful.url, task_handlers=registry, lease=2):
        pass
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_workers_that_disagree_are_told_so(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A second worker with another group or lease warns, naming both values."""
    first = TaskWorker(url=url, task_handlers=registry, lease=2)
    with first, TaskWorker(url=url, task_handlers=registry, lease=4, group="others"):
        pass
    assert "group is 'others', the other workers of queue 'tasks' use 'workers'" in caplog.text
    assert "lease is 4 s, the other workers of queue 'tasks' use 2 s" in caplog.text


# -- the scoreboard --------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors cannot be listed")
def test_a_worker_that_stopped_holds_no_descriptor(url: str) -> None:
    """Started and stopped again and again, without the garbage collector's help."""

    def descriptors() -> int:
        with TaskWorker(url=url, task_handlers={"add_one": add_one}), TaskProducer(url=url) as one:
            assert one.get_result(one.add_task("add_one", 1), timeout=10) == 2
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    gc.disable()
    try:
        first = descriptors()
        assert [descriptors() for _ in range(3)] == [first] * 3
    finally:
        gc.enable()


def test_the_board_shows_what_runs_and_what_is_overdue(tmp_path: Path) -> None:
    """Slots are seen by who got the descriptor; an ended limit leaves nothing behind."""
    scoreboard = Scoreboard.create(3)
    other = Scoreboard(os.dup(scoreboard.descriptor))
    scoreboard.close()
    scoreboard.close()
    assert (other.slots, other.running(), other.overdue(1e12)) == (3, [], [])
    scoreboard.begin(1, b"123-4")
    scoreboard.limit(1, 50.0, 70, 1.5)
    assert other.running() == ["123-4"]
    assert (other.overdue(49), other.overdue(51)) == ([], [Overdue("123-4", 70, 1.5)])
    assert (other.capped, other.too_large(10**9)) == (False, [])
    scoreboard.cap(1, 500, 1000, 80)
    assert (other.capped, other.too_large(1500)) == (True, [])
    assert other.too_large(1501) == [Overdue("123-4", 80, 0.0, 500, 501)]
    scoreboard.end_limited(1)
    scoreboard.begin(1, b"99-0")
    assert (other.overdue(51), other.too_large(10**9)) == ([], [])
    other.paused = {0}
    assert scoreboard.paused == {0}
    other.close()
    (tmp_path / "other").write_bytes(bytes(200))
    with pytest.raises(ValueError, match="no scoreboard"):
        Scoreboard(os.open(tmp_path / "other", os.O_RDWR))


def test_a_board_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    """Its slots are smaller, and have no limit of memory: a supervisor outlives an upgrade."""
    before = b"redistq1" + struct.pack("<I", 1) + bytes(128 - 12 + 2 * 64)
    (tmp_path / "before").write_bytes(before)
    board = Scoreboard(os.open(tmp_path / "before", os.O_RDWR))
    assert board.slots == 2
    board.begin(1, b"5-0")
    board.limit(1, 50.0, 70, 1.5)
    board.cap(1, 500, 1000)
    assert board.running() == ["5-0"]
    assert board.overdue(51) == [Overdue("5-0", 70, 1.5)]
    assert board.too_large(10**9) == []
    board.end_limited(1)
    assert board.running() == []
    board.unmap()


@pytest.mark.parametrize("left", ["a folder in memory", "a folder", "nothing"])
def test_a_board_is_made_wherever_there_is_room(
    left: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without memory that has no name a file is taken, which nobody sees; else the need is said."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", full, raising=False)
    places: list[Any] = []
    make = tempfile.mkstemp

    def mkstemp(dir: Any = None, **how: Any) -> tuple[int, str]:
        places.append(dir)
        if left == "nothing" or (left == "a folder" and dir is not None):
            full()
        return make(dir=tmp_path, **how)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    if left == "nothing":
        with pytest.raises(ConfigurationError, match=r"No space left on device.*set TMPDIR"):
            Scoreboard.create(3)
    else:
        scoreboard = Scoreboard.create(3)
        scoreboard.begin(2, b"1-1")
        assert scoreboard.running() == ["1-1"]
        scoreboard.close()
    assert places == ["/dev/shm", None][: 1 if left == "a folder in memory" else 2]
    assert list(tmp_path.iterdir()) == []


def test_a_board_that_has_no_room_is_seen_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file system that takes only a part of it is passed over; touching the rest would kill."""
    written: list[int] = []
    pwrite = os.pwrite

    def short(descriptor: int, content: bytes, offset: int) -> int:
        written.append(descriptor)
        return pwrite(descriptor, content[:100] if len(written) == 1 else content, offset)

    monkeypatch.setattr(os, "pwrite", short)
    scoreboard = Scoreboard.create(3)
    assert len(written) == 2
    assert (scoreboard.slots, scoreboard.running()) == (3, [])
    scoreboard.close()
