"""Numbers are bounded where they enter, by one rule: too large, too small or no number at all.

Each way in is tried: producers (alone and in bulk), clients, handlers, workers, and entries that
somebody wrote by hand, where it is too late for an error and the task ends as failed.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import until

import redistq
from redistq import AsyncTaskProducer, Client, ConfigurationError, TaskProducer, TaskWorker
from redistq.errors import TaskCancelled, TaskFailed
from redistq.handlers import Registry
from redistq.protocol.commands import MAX_TASKS
from redistq.protocol.options import (
    MAX_COUNT,
    MAX_SECONDS,
    MAX_WAIT_S,
    OPTIONS_OF_GATE,
    Attachments,
    CallKeywords,
    CallOptions,
    TaskKeywords,
    TaskOptions,
    addresses,
    milliseconds,
    wait_seconds,
)
from redistq.protocol.plain_commands import MAX_BYTES, portions
from redistq.worker.settings import WorkerSettings

PRODUCERS = (TaskProducer, AsyncTaskProducer)
NO_SECONDS = [
    math.inf,
    -math.inf,
    math.nan,
    10**400,
    10**5000,
    1e16,
    MAX_SECONDS * 2,
    -1,
    True,
    "x",
]
NO_COUNTS = [math.inf, math.nan, 10**400, 10**5000, MAX_COUNT + 1, -1, 1.5, True, "x"]

DURATIONS: dict[str, Callable[[TaskProducer, Client, Any], object]] = {
    "add_task delay": lambda p, c, v: p.add_task("a", delay=v),
    "add_task timeout": lambda p, c, v: p.add_task("a", timeout=v),
    "add_task result_ttl": lambda p, c, v: p.add_task("a", result_ttl=v),
    "add_tasks delay": lambda p, c, v: p.add_tasks([("a", 1), {"type": "a", "delay": v}]),
    "add_tasks timeout": lambda p, c, v: p.add_tasks([("a", 1), {"type": "a", "timeout": v}]),
    "add_tasks result_ttl": lambda p, c, v: p.add_tasks([("a", 1), {"type": "a", "result_ttl": v}]),
    "options delay": lambda p, c, v: c.options(delay=v),
    "options timeout": lambda p, c, v: c.options(timeout=v),
    "options result_ttl": lambda p, c, v: c.options(result_ttl=v),
    "options cache": lambda p, c, v: c.options(cache=v),
    "handler timeout": lambda p, c, v: Registry().add("a", print, timeout=v),
    "handler result_ttl": lambda p, c, v: Registry().add("a", print, result_ttl=v),
    "handler backoff": lambda p, c, v: Registry().task(backoff=v),
    "worker lease": lambda p, c, v: WorkerSettings(lease=v),
    "worker result_ttl": lambda p, c, v: WorkerSettings(result_ttl=v),
    "worker dead_ttl": lambda p, c, v: WorkerSettings(dead_ttl=v),
    "producer timeout": lambda p, c, v: TaskProducer(url="redis://127.0.0.1:1", timeout=v),
}
COUNTS: dict[str, Callable[[TaskProducer, Client, Any], object]] = {
    "add_task retries": lambda p, c, v: p.add_task("a", retries=v),
    "add_tasks retries": lambda p, c, v: p.add_tasks([("a", 1), {"type": "a", "retries": v}]),
    "options retries": lambda p, c, v: c.options(retries=v),
    "handler retries": lambda p, c, v: Registry().task(retries=v),
    "worker max_recoveries": lambda p, c, v: WorkerSettings(max_recoveries=v),
    "worker threads": lambda p, c, v: WorkerSettings(threads=v),
}


@pytest.fixture
def doors(url: str) -> Any:
    """A producer and a client of an empty queue."""
    with TaskProducer(url=url) as producer:
        client = Client(url, signing_key="k" * 32)
        yield producer, client
        client.close()


@pytest.mark.parametrize(
    ("way", "values"),
    [*((way, NO_SECONDS) for way in DURATIONS), *((way, NO_COUNTS) for way in COUNTS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_beyond_the_limits_are_refused_where_they_enter(
    doors: Any, db: redis.Redis, way: str, values: list[Any]
) -> None:
    """A clear error names the option; nothing is sent, not even the sound items beside it."""
    for value in values:
        with pytest.raises(ConfigurationError, match=way.split()[-1]):
            (DURATIONS | COUNTS)[way](*doors, value)
    assert db.dbsize() == 0


@pytest.mark.parametrize(
    "moment", [math.inf, math.nan, 10**400, 1e16, True, "1", datetime(9999, 1, 1, tzinfo=UTC)]
)
def test_moments_nobody_will_see_are_refused(doors: Any, db: redis.Redis, moment: Any) -> None:
    """execute_at beyond the last due time is an error, not a task that never runs."""
    with pytest.raises(ConfigurationError, match="execute_at"):
        doors[0].schedule_task("a", execute_at=moment)
    assert db.dbsize() == 0


@pytest.mark.parametrize(
    "moment",
    [
        *(0, -1, -1e300, -(10**400), -math.inf),
        *(datetime(1960, 1, 1, tzinfo=UTC), datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_a_moment_before_1970_is_in_the_past_like_any_other(
    doors: Any, db: redis.Redis, moment: Any
) -> None:
    """Such a task is ready at once."""
    doors[0].schedule_task("a", execute_at=moment)
    assert db.xlen("tasks") == 1


def test_the_limits_themselves_are_taken(doors: Any, server: Server) -> None:
    """The longest and shortest durations, and numbers of other types, reach the entry."""
    producer, submit = doors
    most = {"retries": MAX_COUNT, "timeout": MAX_SECONDS, "result_ttl": MAX_SECONDS}
    producer.add_task("a", **most)
    producer.add_task("a", timeout=1e-9, result_ttl=Fraction(1, 2), retries=0)
    submit.options(**most).submit(abs, -1)
    client = server.client(decode_responses=False)
    opts = [json.loads(fields[b"opts"]) for _, fields in client.xrange("tasks")]
    assert opts[0] == most
    assert opts[1] == {"retries": 0, "timeout": 1e-9, "result_ttl": 0.5}
    assert most.items() <= opts[2].items()
    late = client.time()[0] + MAX_SECONDS
    producer.add_task("a", delay=MAX_SECONDS)
    producer.schedule_task("a", execute_at=datetime.now(UTC) + timedelta(seconds=MAX_SECONDS))
    for _, due in client.zrange("delayed:tasks", 0, -1, withscores=True):
        assert due / 1000 == pytest.approx(late, abs=60)


def test_durations_are_rounded_up_by_everybody(doors: Any, db: redis.Redis) -> None:
    """A tenth of a millisecond is one; what is exact stays exact."""
    assert [milliseconds(s) for s in (0, 1e-9, 0.0001, 0.001, 1.1, 86_400.0)] == [
        *(0, 1, 1, 1, 1100, 86_400_000),
    ]
    assert TaskOptions(delay=0.00001).due == "+1"
    doors[0].add_task("a", delay=0.00001)
    doors[1].options(delay=0.00001).submit(abs, -1)
    doors[1].options(delay=0.00001).map_batch(abs, [-1], progress=False)
    assert (db.xlen("tasks"), db.zcard("delayed:tasks")) == (0, 3)


BY_HAND = [
    '{"result_ttl":1e300}',
    '{"result_ttl":1e999}',
    '{"result_ttl":-5}',
    '{"result_ttl":true}',
    '{"timeout":1e300}',
    '{"timeout":-1}',
    '{"timeout":NaN}',
    '{"timeout":' + "9" * 400 + "}",
    '{"retries":-5}',
    '{"retries":true}',
    '{"retries":' + "9" * 30 + "}",
]


def test_entries_by_hand_with_impossible_numbers_fail_alone(
    url: str, db: redis.Redis, doors: Any
) -> None:
    """Each such task ends as failed with words for its number; its neighbours succeed."""
    producer, _ = doors
    producer.pause()
    ids = []
    for n, opts in enumerate(BY_HAND):
        ids += producer.add_tasks([("double", n)])
        entry = {"name": "double", "payload": "1", "attempt": "1", "recovered": "0", "opts": opts}
        db.xadd("tasks", {"id": f"odd-{n}", **entry})
        ids += producer.add_tasks([("double", n)])
    producer.resume()
    with TaskWorker(url=url, task_handlers={"double": lambda n: 2 * n}):
        assert [producer.get_result(id, 10) for id in ids] == [
            2 * n for n in range(len(BY_HAND)) for _ in range(2)
        ]
        for n in range(len(BY_HAND)):
            with pytest.raises(TaskFailed, match=r"retries|timeout|result_ttl"):
                producer.get_result(f"odd-{n}", 10)


@pytest.mark.parametrize("field", ["attempt", "recovered"])
@pytest.mark.parametrize("count", ["9" * 400, "9" * 5000, "9" * 10, "-1", "0x10", "inf", "", "1.5"])
def test_entries_by_hand_with_impossible_counts_are_set_aside(
    url: str, db: redis.Redis, doors: Any, field: str, count: str
) -> None:
    """What cannot be counted on is no task: a dead letter says so."""
    entry = {"id": "odd", "name": "double", "payload": "1", "attempt": "1", "recovered": "0"}
    db.xadd("tasks", {**entry, "opts": "", field: count})
    with TaskWorker(url=url, task_handlers={"double": lambda n: 2 * n}):
        until(lambda: db.zcard("dead:tasks") == 1, "it is set aside")
    (letter,) = doors[0].dead_letters()
    assert letter.error is not None
    assert "no number" in letter.error["message"] or "no count" in letter.error["message"]


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 10**400, 2 * MAX_WAIT_S, MAX_WAIT_S])
def test_who_waits_longer_than_the_platform_can_waits_as_long_as_it_can(
    doors: Any, timeout: float
) -> None:
    """A wait of any length begins; it is no error of the clock's."""
    assert wait_seconds(timeout) == MAX_WAIT_S
    producer, client = doors
    task_id = producer.add_task("a")
    producer.cancel(task_id)
    with pytest.raises(TaskCancelled):
        producer.get_result(task_id, timeout=timeout)
    future = client.submit(abs, -1)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(timeout)
    assert client.map_batch(abs, [], progress=False).results(timeout=timeout) == []


@pytest.mark.parametrize("timeout", [math.nan, "5", True, object()])
def test_a_wait_that_is_no_number_is_refused(doors: Any, timeout: Any) -> None:
    """The message names the way out; below 0 is not at all, and None for ever."""
    with pytest.raises(ConfigurationError, match="None to wait for ever"):
        doors[0].get_result("x", timeout=timeout)
    assert (wait_seconds(-1), wait_seconds(-(10**400)), wait_seconds(None)) == (0, 0, None)


PACKAGE = Path(redistq.__file__).parent
MEANT_OTHERWISE = {
    # The argument of a RetryPolicy.
    "retries": {"handlers/policy.py", "handlers/registry.py", "functions/call.py"},
    # Of a retry, or of what sleeps.
    "delay": {
        "handlers/policy.py",
        "errors.py",
        "worker/attempt.py",
        "worker/steps.py",
        "client/lazy.py",  # refuses it
        "client/progress.py",
        "monitor/columns.py",
    },
    # What holds for a whole worker, and the decorator's argument.
    "result_ttl": {"worker/settings.py", "cli/worker_options.py", "handlers/registry.py"},
    "logs": {"functions/written.py", "protocol/keys.py"},  # a call's own field, and a key's name
    # Part of a queue's name, and what a client calls its queues by.
    "priority": {
        "protocol/keys.py",
        "client/batch.py",
        "client/graph.py",
        "client/leftovers.py",
        "client/queues.py",
        "client/session.py",
        "client/shared_graph.py",
        "testing/contents.py",
        "functions/continued.py",  # refuses another
        "cli/tables.py",
        "monitor/columns.py",
        "monitor/waits.py",
    },
    # What was reduced before; a name of Dask's own; refuses another.
    "cache": {"functions/pickling.py", "client/dask.py", "functions/continued.py"},
    "timeout": set[str](),
    "execute_at": {"producer/async_producer.py"},  # as its twin
}
OTHER_WORDS = ("compat/", "contrib/", "elsewhere/", "cli/", "magics.py")
"""Where options of other libraries, and of command lines, become ours."""


def named_in(source: str, option: str) -> bool:
    """Whether code names an option: as an argument, a field, a text, or that of options."""
    holders = {"options", "opts", "more", "handler", "marked"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == option:
            whose = getattr(node.value, "id", getattr(node.value, "attr", ""))
            if whose.lstrip("_") in holders:
                return True
        if option == "timeout":
            continue  # which is said of connections, waits and threads too
        if isinstance(node, ast.arg | ast.keyword) and node.arg == option:
            return True
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == option:
            return True
        if isinstance(node, ast.Constant) and node.value == option:
            return True
    return False


@pytest.mark.parametrize("option", sorted(MEANT_OTHERWISE))
def test_an_option_is_named_in_three_files_at_most(option: str) -> None:
    """The file of the options, and where it acts: the next option is as cheap to add."""
    files = {str(p.relative_to(PACKAGE)): p.read_text() for p in PACKAGE.rglob("*.py")}
    found = {name for name, source in files.items() if named_in(source, option)}
    rest = {n for n in found - MEANT_OTHERWISE[option] if not n.startswith(OTHER_WORDS)}
    assert "protocol/options.py" in rest or option == "timeout"
    assert len(rest) <= 3, sorted(rest)


def test_every_option_that_is_taken_is_an_option_of_tasks_or_calls() -> None:
    """What editors list, and what is checked and kept, are the same."""
    assert set(TaskKeywords.__annotations__) > OPTIONS_OF_GATE  # which are one text in an entry
    assert set(TaskKeywords.__annotations__) - OPTIONS_OF_GATE < set(
        TaskOptions.__dataclass_fields__
    )
    assert set(Attachments.__annotations__) < set(TaskOptions.__dataclass_fields__)
    in_one = OPTIONS_OF_GATE - {"priority"}
    kept = set(CallKeywords.__annotations__) - in_one | {"gate"}
    assert kept == set(CallOptions.__dataclass_fields__)


@pytest.mark.parametrize(
    ("function", "keywords"),
    [
        *((getattr(p, n), TaskKeywords) for p in PRODUCERS for n in ("add_task", "schedule_task")),
        (Client.options, CallKeywords),
    ],
)
def test_editors_list_the_options(function: Any, keywords: Any) -> None:
    """A signature has a keyword for each of them."""
    shown = inspect.signature(function).parameters
    assert set(keywords.__annotations__) <= set(shown)
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())


def test_what_is_written_is_read_again() -> None:
    """All options of an entry come back, and those of a call; nothing at all is written as such."""
    options = TaskOptions(retries=3, timeout=1.5, result_ttl=0.0)
    more: Any = {"inbox": "i", "batch": "b", "home": "h", "headers": {"traceparent": "00-1-2-3"}}
    assert TaskOptions.read(options.written(**more)) == replace(options, **more)
    call = CallOptions(retries=1, cache=60.0, result_ttl=5.0, delay=3.0)
    assert TaskOptions.read(call.written(inbox="i")) == TaskOptions(
        retries=1, result_ttl=60.0, inbox="i"
    )
    assert (TaskOptions().written(inbox=None), TaskOptions.read(b"{}")) == (b"", TaskOptions())


def test_what_other_languages_write_is_read(doors: Any) -> None:
    """Unknown names are passed over, null is no time limit, and addresses survive what is wrong."""
    read = TaskOptions.read(b'{"timeout": null, "x-new": [1], "home": 5, "trace": "no"}')
    assert (read.timeout_or(7.0), read.home, read.headers) == (None, None, None)
    assert TaskOptions.read(b'{"retries": 0}').timeout_or(7.0) == 7.0
    read = TaskOptions.read(b'{"headers": {"a": "1", "b": 2}, "trace": {"traceparent": "00-1"}}')
    assert read.headers == {"traceparent": "00-1", "a": "1"}  # those of the last release, too
    assert addresses(b'{"inbox": "i", "batch": "b", "retries": -1}') == ("i", "b")
    for wrong in (b"[]", b"5", b'{"inbox": 1}', b'{"inbox": "\\ud800"}', b"{"):
        assert addresses(wrong) == ("", "")
        with pytest.raises((ValueError, TypeError)):
            TaskOptions.read(wrong)
    long = json.dumps({"retries": 2, "x": "y" * 2000}).encode()
    assert TaskOptions.read(long).retries == 2


def test_an_option_that_there_is_not_is_named(doors: Any) -> None:
    """A slip in a keyword says what was meant, and sends nothing."""
    with pytest.raises(ConfigurationError, match="did you mean 'retries'"):
        doors[0].add_task("a", retrys=1)
    with pytest.raises(ConfigurationError, match="not both"):
        doors[0].schedule_task("a", execute_at=1, delay=1)


def test_portions_are_full_of_tasks_or_of_bytes() -> None:
    """No more than MAX_TASKS, and no more bytes than the task that passes the limit brings."""
    parts = list(portions(range(2 * MAX_TASKS + 1)))
    assert [len(part) for part in parts] == [MAX_TASKS, MAX_TASKS, 1]
    assert [n for part in parts for n in part] == list(range(2 * MAX_TASKS + 1))
    sizes = [MAX_BYTES - 1, 1, MAX_BYTES, 5, 5]
    assert list(portions(sizes, lambda size: size)) == [sizes[:2], sizes[2:3], sizes[3:]]
    assert list(portions([])) == []
