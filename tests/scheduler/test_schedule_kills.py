"""Each occurrence exactly once, over kill -9 of schedulers at random points and of whole workers.

REDISTQ_KILLS says how many die (40; the proof of a release is 200).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redis
from support.schedules import occurrences
from support.servers import Server
from support.workers import Command, alive, registered, until

from redistq import TaskProducer

KILLS = int(os.environ.get("REDISTQ_KILLS", "40"))
PROGRAM = Path(__file__).resolve().parents[1] / "support" / "dying_schedulers.py"
JOBS = """
import os
from redistq import task

@task
def job(payload, context):
    with open(payload, "a") as out:
        out.write(context.task_id + "\\n")
"""


def whole(found: list[int], first: int, every: int) -> bool:
    """Whether these are all occurrences from the first on, each once and in order."""
    return found == [first + n * every for n in range(len(found))]


def test_each_occurrence_once_over_kills_at_random_points(url: str, db: redis.Redis) -> None:
    """Ten schedulers at a time die before, amid and after their commands: nothing is added twice,
    and nothing is left out."""
    seed = random.randrange(1_000_000)
    with TaskProducer(url=url) as producer:
        made = [
            producer.schedules.set(
                f"s{n}", every=0.1 + n / 100, task="job", overlap="allow", missed="all"
            )
            for n in range(5)
        ]
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), url, str(KILLS), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == f"killed {KILLS}\n", (line, seed)
            until(
                lambda: all(s.next_ms > time.time() * 1000 for s in producer.schedules),
                "those that live make up for what is due",
                20,
            )
            for schedule in made:
                producer.schedules.pause(schedule.name)
        finally:
            process.communicate(timeout=20)
        for schedule in producer.schedules:
            found = occurrences(db, schedule.name)
            first, every = schedule.anchor_ms + schedule.timing.every_ms, schedule.timing.every_ms
            assert whole(found, first, every), (schedule.name, seed)
            assert (schedule.fired, schedule.skipped) == (len(found), 0)
            assert schedule.next_ms == first + len(found) * every
            assert len(found) > 10


def test_each_occurrence_once_over_kills_of_whole_workers(
    server: Server, db: redis.Redis, tmp_path: Path
) -> None:
    """A worker command, its supervisor and its processes die together, again and again: every
    second of that time has its task, and each task runs (twice, where it was killed amid it)."""
    (tmp_path / "jobs.py").write_text(JOBS)
    out = tmp_path / "ran"
    rounds = max(3, KILLS // 20)
    with TaskProducer(url=server.url) as producer:
        made = producer.schedules.set(
            "s", every=0.5, task="job", payload=str(out), overlap="allow", missed="all"
        )
        for n in range(rounds):
            command = Command(
                tmp_path,
                *("-m", "redistq.worker", "jobs", "--processes", "1", "--lease", "1"),
                url=server.url,
            )
            command.says("ready")
            last = n == rounds - 1
            until(lambda: producer.schedules["s"].next_ms > time.time() * 1000, "it fires", 20)
            time.sleep(random.random() if not last else 0.6)
            if last:
                producer.schedules.pause("s")
                until(lambda: producer.drain(0), "what is left runs", 20)
                command.send(signal.SIGTERM)
                command.process.wait(20)
            else:
                pids = list(registered(db).values())
                for pid in (command.process.pid, *pids):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                command.process.wait(10)
                until(lambda p=tuple(pids): not any(map(alive, p)), "they are gone")
                time.sleep(random.random())
        stands = producer.schedules["s"]
    ran = out.read_text().split()
    ids: Any = list(dict.fromkeys(ran))
    times = sorted(int(task_id.partition("@")[2]) for task_id in ids)
    assert whole(times, made.anchor_ms + 500, 500)
    assert len(times) == stands.fired
    assert len(ran) - len(ids) <= rounds
