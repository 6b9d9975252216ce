"""Workers are killed in the midst of graphs and under limits: nothing runs twice that had ended, no
slot stays taken, and no task waits for ever."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from support import gate_checks
from support.gate_world import Gate, GateWorld, edge, gate_of, gated
from support.servers import Server
from support.workers import Command, alive, registered, until, worker_commands

JOBS = """
import os
import redis
from redistq import task

out = redis.Redis.from_url(os.environ["JOBS_URL"], decode_responses=True)

@task
def job(payload, context):
    record = "task:tasks:" + payload["of"]
    if out.hget(record, "state"):
        out.rpush("ran_again", payload["of"])
    parents = out.smembers("parents:" + payload["of"])
    for parent in parents:
        if out.hget("task:tasks:" + parent, "state") != "succeeded":
            out.rpush("ran_early", payload["of"] + " before " + parent)
"""
WORKER = ("--processes", "2", "--threads", "4", "--lease", "4", "--max-recoveries", "1000")


@pytest.fixture
def start(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Command]]:
    """Starts a worker of two processes, ready when it returns."""
    monkeypatch.setenv("JOBS_URL", url)
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs", *WORKER) as started:
        yield started


def succeeded(db: redis.Redis) -> int:
    """How many tasks have ended well."""
    return int(db.hget("counters:tasks", "succeeded") or 0)


def kill_until_done(
    db: redis.Redis, start: Callable[..., Command], total: int, kills: int, timeout: float
) -> None:
    """Kill a worker process each time that so many more tasks have ended, once the supervisor too;
    then let the rest end."""
    command = start()
    for kill in range(1, kills + 1):
        least = total * kill // (kills + 2)
        until(lambda least=least: succeeded(db) >= least, f"{least} have ended", timeout)
        living = until(lambda: [*filter(alive, registered(db).values())], "a process is there")
        os.kill(living[0], signal.SIGKILL)
        limits_hold(db)
        if kill == kills // 2:
            os.kill(command.pid, signal.SIGKILL)
            command = start()
    until(lambda: succeeded(db) >= total, f"all {total} have ended", timeout)


def limits_hold(db: redis.Redis) -> None:
    """At one instant the slots in use are those of the entries, and none is above its limit."""
    with db.pipeline(transaction=True) as pipe:
        entries, limits = pipe.xrange("tasks").hgetall("limits:tasks").execute()
    taken: Counter[str] = Counter()
    for _, fields in entries:
        taken.update(gate_of(fields["opts"]).slots)
    assert dict(taken) == {k[1:]: int(v) for k, v in limits.items() if k[:1] == "s"}
    assert max(taken.values(), default=0) <= 3


def all_is_well(world: GateWorld, db: redis.Redis, total: int) -> None:
    """Each task ended once; nothing of the gate is left."""
    assert db.lrange("ran_again", 0, -1) == []
    assert db.lrange("ran_early", 0, -1) == []
    assert succeeded(db) == total
    until(lambda: db.xlen("tasks") == 0, "the stream is empty")
    seen = world.look()
    gate_checks.check(seen)
    assert [task.state for task in seen.tasks.values()] == ["succeeded"] * total


def add_all(world: GateWorld, tasks: list[tuple[str, ...]]) -> None:
    """Many tasks, some hundred a call."""
    commands = world.normal.commands
    for at in range(0, len(tasks), 500):
        fields = [part for task in tasks[at : at + 500] for part in task]
        assert world.send("normal", commands.enqueue_gated(fields)) == []


@pytest.fixture
def world(server: Server) -> Iterator[GateWorld]:
    """The queue, with a history that holds all."""
    made = GateWorld(server)
    yield made
    made.close()


def test_a_graph_whose_workers_are_killed_ends_once(
    world: GateWorld, db: redis.Redis, start: Callable[..., Command]
) -> None:
    """Two thousand tasks in forty layers, each after three of the layer before."""
    layers, width = 40, 50
    tasks = []
    for layer in range(layers):
        for n in range(width):
            above = [f"n{layer - 1}-{(n + k * 7) % width}" for k in range(3 if layer else 0)]
            if above:
                db.sadd(f"parents:n{layer}-{n}", *above)
            gate = Gate({"layers": 1}) if layer % 4 == 0 else Gate()
            tasks.append(gated(f"n{layer}-{n}", gate.text, [edge(one) for one in above]))
    world.limit("layers", "at_most=3")
    add_all(world, tasks)
    kill_until_done(db, start, len(tasks), kills=6, timeout=60)
    all_is_well(world, db, len(tasks))


def test_limits_of_many_keys_hold_while_workers_are_killed(
    world: GateWorld, db: redis.Redis, start: Callable[..., Command]
) -> None:
    """Two tasks under each of ten thousand keys, of which one runs at a time; a few keys are shared
    by all, and a strict order goes through some."""
    keys = 10_000
    world.limit("tenant:*", "at_most=1")
    world.limit("all", "at_most=3")
    tasks = []
    for n in range(2 * keys):
        shared = {"all": 1} if n % 10 == 1 else {}
        gate = Gate({f"tenant:{n % keys}": 1, **shared}, order="line" if n % 20 == 0 else "")
        tasks.append(gated(f"k{n}", gate.text))
    add_all(world, tasks)
    kill_until_done(db, start, len(tasks), kills=6, timeout=120)
    all_is_well(world, db, len(tasks))
