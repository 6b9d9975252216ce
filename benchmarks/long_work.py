"""Figures of time and long work: progress, checkpoints, time limits; each beside its target.

Usage: python benchmarks/long_work.py [--only NAME ...] [--json FILE] [--quick]

It starts a server of its own (nothing on disk), runs one scenario after another and prints a table.
What is compared is measured in turns, several times.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import redis
from control import ROWS, Bench, row, spread
from support.servers import Server

from redistq import TaskContext, TaskProducer, TaskWorker

# -- handlers ------------------------------------------------------------------------------------


def loop(payload: int, context: TaskContext) -> list[float]:
    """Nanoseconds of one call: of progress, of a checkpoint, and of a loop that calls nothing."""
    clock = time.perf_counter_ns
    none = clock()
    for _ in range(payload):
        pass
    began = clock()
    for done in range(payload):
        context.progress(done, payload)
    said = clock()
    for done in range(payload // 10):
        context.checkpoint(done)
    saved = clock()
    return [
        (said - began - (began - none)) / payload,
        (saved - said) / (payload // 10),
        (began - none) / payload,
    ]


def says(payload: float, context: TaskContext) -> int:
    """Says as often as it can for so many seconds how far it is."""
    end = time.monotonic() + payload
    done = 0
    while time.monotonic() < end:
        done += 1
        context.progress(done, None, "rows")
        if not done % 100:
            time.sleep(0.001)  # others run too
    return done


def noop(payload: Any) -> Any:
    """The task whose cost is the queue's own."""
    return payload


def limited(payload: Any, context: TaskContext) -> float:
    """Nanoseconds of giving oneself more time."""
    began = time.perf_counter_ns()
    for _ in range(1_000):
        context.extend(0.001)
    return (time.perf_counter_ns() - began) / 1_000


HANDLERS: dict[str, Callable[..., Any]] = {
    "loop": loop,
    "says": says,
    "noop": noop,
    "limited": limited,
}


# -- scenarios -----------------------------------------------------------------------------------


def calls(bench: Bench, count: int, rounds: int) -> None:
    """What saying something costs the handler that says it."""
    queue = bench.queue()
    said, saved, extended = [], [], []
    with worker(bench, queue) as producer:
        for _ in range(rounds):
            found = producer.get_result(producer.add_task("loop", count), 120)
            said.append(found[0] / 1000)
            saved.append(found[1] / 1000)
            task_id = producer.add_task("limited", timeout=60)
            extended.append(producer.get_result(task_id, 60) / 1000)
    row("context.progress, a call", statistics.median(said), "us", 1.0, spread(said))
    row("context.checkpoint, a call", statistics.median(saved), "us", note=spread(saved))
    row("context.extend, a call", statistics.median(extended), "us", note=spread(extended))


def reports(bench: Bench, seconds: float, tasks: int) -> None:
    """How many calls of reports a process makes while several tasks say all the time how far they
    are."""
    queue = bench.queue()
    with worker(bench, queue, thread_count=tasks) as producer:
        bench.db.config_resetstat()
        ids = [producer.add_task("says", seconds) for _ in range(tasks)]
        done = sum(producer.get_result(task_id, seconds + 60) for task_id in ids)
        stats: dict[str, Any] = bench.db.info("commandstats")
    made = stats["cmdstat_evalsha"]["calls"] - 2 * tasks  # each was added and settled
    note = f"{tasks} tasks, {done:,} calls of progress; heartbeats included"
    row("script calls of a process that reports", made / seconds, "a s", 4.5, note)


def untouched(bench: Bench, count: int) -> None:
    """Commands of a plain task: none is there for what it does not use."""
    queue = bench.queue()
    with worker(bench, queue) as producer:
        bench.db.config_resetstat()
        producer.add_tasks([("noop", k) for k in range(count)])
        bench.until(queue, count)
        stats: dict[str, Any] = bench.db.info("commandstats")
    inside = sum(row["calls"] for row in stats.values()) / count
    row("commands of a plain task, all counted", inside, "", note=f"{count:,} tasks")


def worker(bench: Bench, queue: str, **options: Any) -> Any:
    """A producer, and a worker of this file's handlers that is warm."""
    return _Working(bench, queue, {"processes": 1, "thread_count": 4, **options})


class _Working:
    def __init__(self, bench: Bench, queue: str, options: dict[str, Any]) -> None:
        url = bench.server.unix_url
        self._producer = TaskProducer(url=url, stream=queue, timeout=60)
        self._worker = TaskWorker(url=url, stream=queue, task_handlers=HANDLERS, **options)

    def __enter__(self) -> TaskProducer:
        self._worker.start()
        self._producer.get_result(self._producer.add_task("noop"), 60)
        return self._producer

    def __exit__(self, *_: object) -> None:
        self._worker.stop()
        self._producer.close()


def main() -> None:
    """Run the scenarios that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    args = parser.parse_args()
    logging.getLogger("redistq").setLevel(logging.ERROR)  # that this server keeps nothing
    scale, rounds = (10, 2) if args.quick else (1, 5)
    with Server() as server:
        bench = Bench(server)
        print(
            f"valkey {server.version}, Python {platform.python_version()}, redis-py "
            f"{redis.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
        )
        scenarios: dict[str, Callable[[], None]] = {
            "calls": lambda: calls(bench, 1_000_000 // scale, rounds),
            "reports": lambda: reports(bench, 2.0 if args.quick else 10.0, 4),
            "untouched": lambda: untouched(bench, 20_000 // scale),
        }
        for name, scenario in scenarios.items():
            if not args.only or name in args.only:
                scenario()
    if args.json:
        args.json.write_text(json.dumps(ROWS, indent=1) + "\n")


if __name__ == "__main__":
    main()
