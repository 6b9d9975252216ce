"""What the queue costs, in counts that no machine changes: commands, round trips, bytes, memory.

A guard for CI: a change that makes the hot path dearer fails here, whatever the machine's speed.
Each bound is what was measured when it was written, with no more slack than timing needs; lower
it when the cost falls. Times and rates are the benchmarks' business (see benchmarks/).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import until

from redistq import TaskProducer, TaskWorker
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.protocol import scripts
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys

LEASE_MS = 10_000
BEAT_EVERY_S = LEASE_MS / 3 / 1000
ASIDE = {"info", "config|resetstat", "hget", "client|setinfo", "client|setname", "ping", "hello"}
"""What the test itself asks, and what a new connection says once."""


class Costs:
    """Commands by name (those inside scripts counted), and bytes on the wire."""

    def __init__(self) -> None:
        self.commands: dict[str, int] = {}
        self.bytes_in = self.bytes_out = self.memory = 0

    @property
    def total(self) -> int:
        """All commands."""
        return sum(self.commands.values())

    @property
    def round_trips(self) -> int:
        """What clients sent: scripts and reads; every other command ran inside a script."""
        names = ("evalsha", "eval", "xreadgroup", "xread")
        return sum(self.commands.get(name, 0) for name in names)


@contextmanager
def counted(db: redis.Redis) -> Iterator[Costs]:
    """Count what happens inside the block."""
    costs = Costs()
    db.config_resetstat()
    before: Any = {**db.info("stats"), **db.info("memory")}
    yield costs
    stats: Any = db.info("commandstats")
    after: Any = {**db.info("stats"), **db.info("memory")}
    found = {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}
    costs.commands = {name: n for name, n in found.items() if name not in ASIDE}
    costs.bytes_in = after["total_net_input_bytes"] - before["total_net_input_bytes"]
    costs.bytes_out = after["total_net_output_bytes"] - before["total_net_output_bytes"]
    costs.memory = after["used_memory"] - before["used_memory"]


@pytest.fixture
def db(server: Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer whose connection is open and whose script the server knows."""
    with TaskProducer(url=url) as producer:
        producer.add_tasks([("noop", k) for k in range(10)])
        yield producer


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = Broker(Address(url))
    yield broker
    broker.close()


def succeeded(db: redis.Redis) -> int:
    return int(db.hget("counters:tasks", "succeeded") or 0)


def test_a_task_added_by_itself_costs_one_round_trip_and_two_commands(
    db: redis.Redis, producer: TaskProducer
) -> None:
    """One EVALSHA, and inside it XADD and HSETNX: nothing else, ever."""
    with counted(db) as costs:
        for k in range(100):
            producer.add_task("noop", k)
    assert costs.commands == {"evalsha": 100, "xadd": 100, "hsetnx": 100}
    assert costs.bytes_in / 100 <= 200
    assert costs.bytes_out / 100 <= 50  # the answer has four bytes; the rest is INFO's, spread


def test_tasks_added_in_bulk_share_round_trips_and_send_little_more_than_their_fields(
    db: redis.Redis, producer: TaskProducer
) -> None:
    """200 tasks a call, two commands a task, and 60 bytes for the five fields of each."""
    with counted(db) as costs:
        producer.add_tasks([("noop", k % 100) for k in range(2_000)])
    assert costs.commands == {"evalsha": 10, "xadd": 2_000, "hsetnx": 2_000}
    assert costs.bytes_in / 2_000 <= 60
    assert costs.bytes_out / 2_000 <= 4


def test_a_queued_task_takes_at_most_175_bytes_and_a_finished_one_355(
    db: redis.Redis, producer: TaskProducer, url: str
) -> None:
    """Stream entry and record while it waits; result, times and a whole event of the history after
    (which keeps the last 10,000: with more tasks, each has a smaller share of it).

    The server's own statistics are left out: it keeps some 20 kB of latencies for each command
    that was ever called."""
    db.config_set("latency-tracking", "no")
    with TaskWorker(url=url, task_handlers={"noop": lambda k: k}):
        until(lambda: succeeded(db) == 10, "the scripts are known")
    with counted(db) as queued:
        producer.add_tasks([("noop", k % 100) for k in range(10_000)])
    assert queued.memory / 10_000 <= 175
    before: Any = db.info("memory")["used_memory"] - queued.memory
    with TaskWorker(url=url, task_handlers={"noop": lambda k: k}):
        until(lambda: succeeded(db) == 10_010, "all tasks settled", timeout=30)
    assert (db.info("memory")["used_memory"] - before) / 10_000 <= 355


def test_a_thousand_tasks_are_drained_in_a_few_dozen_round_trips(
    db: redis.Redis, producer: TaskProducer, url: str
) -> None:
    """Fetched and settled in batches; four commands a task: its record, its expiry, its event,
    and a look whether anyone waits for it."""
    producer.add_tasks([("noop", k) for k in range(990)])
    for verb in scripts.VERBS:  # sent once to each server, in full
        db.script_load(scripts.load(verb).text)
    with counted(db) as costs, TaskWorker(url=url, task_handlers={"noop": lambda k: k}):
        until(lambda: succeeded(db) == 1_000, "all tasks settled")
    assert costs.round_trips <= 60  # 18 when nothing disturbs; slow machines make small batches
    start_and_stop = 60
    assert costs.total <= 4 * 1_000 + 8 * costs.round_trips + start_and_stop
    assert costs.bytes_in / 1_000 <= 170
    assert costs.bytes_out / 1_000 <= 190  # INFO's answers are in it


def test_a_settled_batch_is_one_script_with_seven_commands_of_its_own(
    db: redis.Redis, producer: TaskProducer, broker: Broker
) -> None:
    """XPENDING is the fence, XACK and XDEL are variadic, XDEL is proved; clock and counter come
    once."""
    calls = Commands(QueueKeys("tasks"))
    broker.call(calls.create_group())
    producer.add_tasks([("noop", k) for k in range(90)])
    entries = broker.call(calls.fetch("me", 100, None))[0][1]
    outcomes = [
        (entry, flat[1], "succeeded", "noop", "1", "0.001", b"1", "60000", "", "", "")
        for entry, flat in entries
    ]
    broker.call(calls.settle("me", outcomes[:1]))  # the server knows the script from here on
    with counted(db) as costs:
        assert broker.call(calls.settle("me", outcomes[1:])) == []
    n = len(outcomes) - 1
    each = {"hset": n, "pexpire": n, "xadd": n, "exists": n}
    once = dict.fromkeys(("evalsha", "xpending", "time", "hincrby"), 1)
    once |= {"xack": 1, "xdel": 2}
    assert costs.commands.keys() <= each.keys() | once.keys()
    for name, most in {**each, **once}.items():
        assert costs.commands.get(name, 0) <= most, (name, costs.commands)


def test_a_heartbeat_is_one_round_trip_for_all_the_processes_of_a_supervisor(
    db: redis.Redis, broker: Broker
) -> None:
    """Five commands and one a process, every third of a lease: under two a second, all counted."""
    calls = Commands(QueueKeys("tasks"))
    for name in ("a", "b", "c"):
        broker.call(calls.register(name, LEASE_MS, {"host": "here"}))
    broker.call(calls.heartbeat(LEASE_MS, [("a", "=")]))
    for workers in (["a"], ["a", "b", "c"]):
        with counted(db) as costs:
            broker.call(calls.heartbeat(LEASE_MS, [(name, "=") for name in workers]))
        once = dict.fromkeys(("evalsha", "time", "zrange", "zadd"), 1)
        assert costs.commands == {**once, "hmget": len(workers) + 1}
        stats: Any = db.info(
            "commandstats"
        )  # HGET is left out of the counts: the tests poll with it
        assert "cmdstat_hget" not in stats
    uses = "\n104857600 37"
    sizes = []
    for said in ("=", uses):
        with counted(db) as costs:
            broker.call(calls.heartbeat(LEASE_MS, [("a", said)]))
        assert costs.commands == {**once, "hmget": 2, **({"hset": 1} if said == uses else {})}
        sizes.append(costs.bytes_in)
    assert sizes[1] - sizes[0] <= len(uses) + 2
    assert 6 / BEAT_EVERY_S < 2


def test_an_idle_worker_asks_for_less_than_a_round_trip_a_second(db: redis.Redis, url: str) -> None:
    """A blocked read every five seconds and a beat every third of the lease: nothing polls. What
    it uses is told, and told again only where it changed."""
    with TaskWorker(url=url, task_handlers={"noop": lambda k: k}):
        time.sleep(2)  # the first beat and the first look for ownerless consumers are over
        seconds = 7.0
        with counted(db) as costs:
            time.sleep(seconds)
        name = str(db.zrange("workers:tasks", 0, 0)[0])
        if sys.platform == "linux":
            assert int(db.hget(f"worker:tasks:{name}", "rss") or 0) > 1 << 20
    assert costs.commands.get("hset", 0) <= 2
    beats = int(seconds / BEAT_EVERY_S) + 1
    assert costs.round_trips <= beats + 3  # two reads, and a look for ownerless consumers
    assert costs.total <= 6 * beats + 2 + 5  # the look takes five
