"""Workers are killed at random points of tasks with steps: each step runs once per success.

A step whose worker dies before it is kept runs again: nobody can know. One that is kept never does.
``REDISTQ_KILLS`` is how often a worker is killed (200 in a long run).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from support.workers import Command, registered, until, worker_commands

from redistq import TaskProducer

KILLS = int(os.environ.get("REDISTQ_KILLS", "10"))
STEPS = 6
JOBS = """
import os, time, uuid
from redistq import task

log = os.open(os.environ["STEPS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def say(*words):
    os.write(log, (" ".join(map(str, words)) + "\\n").encode())

def make(task, number):
    say("run", task, number)
    time.sleep(0.002)
    return uuid.uuid4().hex

@task(retries=0)
def job(payload, context):
    made = []
    for number in range(6):
        value = context.step(f"s{number}", make, context.task_id, number)
        say("done", context.task_id, number, value)
        made.append(value)
        if number == 2:
            context.sleep(0.01)
        if number == 4:
            value = context.wait_for("go", 60)
            say("came", context.task_id, "go", value)
    return made

@task(retries=0)
async def ajob(payload, context):
    made = []
    for number in range(6):
        value = await context.astep(f"s{number}", make, context.task_id, number)
        say("done", context.task_id, number, value)
        made.append(value)
        if number == 2:
            await context.asleep(0.01)
        if number == 4:
            value = await context.await_for("go", 60)
            say("came", context.task_id, "go", value)
    return made
"""
WORKER = ("--processes", "3", "--threads", "2", "--lease", "4", "--max-recoveries", "10000")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the tasks say, whichever process runs them."""
    path = tmp_path / "log"
    monkeypatch.setenv("STEPS_LOG", str(path))
    return path


@pytest.fixture
def start(tmp_path: Path, url: str, log: Path) -> Iterator[Callable[..., Command]]:
    """Starts a worker of three processes, ready when it returns."""
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs", *WORKER) as started:
        yield started


def kill_one(db: redis.Redis, chance: random.Random) -> None:
    """Kill one of the worker processes at a random moment."""
    alive = until(lambda: registered(db), "a process is there", 30)
    time.sleep(chance.uniform(0, 0.15))  # the random point
    pid = chance.choice(sorted(alive.values()))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    until(lambda: pid not in registered(db).values(), "it was taken for dead", 30)


@pytest.mark.timeout(120 + 4 * KILLS)
def test_steps_run_once_per_success_over_kills(
    url: str, db: redis.Redis, start: Callable[..., Command], log: Path
) -> None:
    """Killed in steps, between them, while sleeping and before the end; supervisors, too."""
    chance = random.Random(7)
    command = start()
    ids: list[str] = []
    with TaskProducer(url=url) as producer:
        producer.send_event("go", "for all")
        for kill in range(KILLS):
            waiting = producer.snapshot()
            if waiting.ready + waiting.pending + waiting.delayed < 30:
                ids += producer.add_tasks([("job", None), ("ajob", None)] * 15)
            kill_one(db, chance)
            if kill % 50 == 5:
                os.kill(command.pid, signal.SIGKILL)
                command = start()
        results = {task_id: producer.get_result(task_id, 120) for task_id in ids}
    done: dict[tuple[str, str], str] = {}
    ran_again: list[str] = []
    runs = 0
    for line in log.read_text().splitlines():
        word, task_id, step, *value = line.split(" ", 3)
        if word == "run":
            runs += 1
            if (task_id, step) in done:
                ran_again.append(line)
        else:
            assert done.setdefault((task_id, step), value[0]) == value[0]
    assert ran_again == []
    for task_id, made in results.items():
        assert made == [done[task_id, str(number)] for number in range(STEPS)]
        assert done[task_id, "go"] == "for all"
    least = len(ids) * STEPS
    assert least <= runs <= least + 20 * KILLS
    print(f"{KILLS} kills, {len(ids)} tasks, {least} steps, {runs - least} ran again unkept")
