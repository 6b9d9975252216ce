"""What looking costs: a dashboard's tick, the figures and a page of each listing, as a queue grows.

Usage: python benchmarks/monitor.py [--server valkey|redis7|redis62] [--most N] [--json FILE]

For 10^3, 10^4, 10^5 and 10^6 queued tasks (and a tenth as many delayed) it prints, for each call,
the time the server spends in it (its own count, INFO commandstats) and the time until the caller
has the answer. 20 workers hold 8 tasks each; 1,000 dead letters and a full history are there. The
limit is 20 ms of the server's time a tick; exit code 1 when it is missed. A task's history is read
in pages of 1,000 events, so the server is free in between.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import redis
from support.servers import Server

from redistq import TaskMonitor, TaskProducer
from redistq.monitor.tick import STATS_EVENTS

LIMIT_MS = 20.0
WORKERS, HELD, DEAD, ENDED = 20, 8, 1000, 11_000
CALLS: tuple[tuple[str, Callable[[TaskMonitor, dict[str, Any]], Any]], ...] = (
    ("tick, the first", lambda m, s: m.tick()),
    ("tick, nothing new", lambda m, s: m.tick(s["cursor"])),
    ("tick, 200 events new", lambda m, s: m.tick("0-1")),
    ("snapshot", lambda m, s: m.snapshot()),
    ("stats", lambda m, s: m.tick(events=STATS_EVENTS, dead=1, running=1, batches=1)),
    ("100 pending", lambda m, s: m.records.pending(100)),
    ("100 delayed", lambda m, s: m.records.delayed(100)),
    ("100 dead, tracebacks", lambda m, s: m.records.dead(100)),
    ("one task, its history", lambda m, s: m.records.task(s["task"])),
)


def add(producer: TaskProducer, queued: int, delayed: int) -> None:
    """Fill the queue up to so many."""
    step = 50_000
    for start in range(0, queued, step):
        producer.add_tasks([("work", {"n": n}) for n in range(min(step, queued - start))])
    for start in range(0, delayed, step):
        items = [
            {"type": "work", "payload": n, "delay": 86_400}
            for n in range(min(step, delayed - start))
        ]
        producer.add_tasks(items)


def people(producer: TaskProducer, seconds: float) -> str:
    """Workers that hold tasks, dead letters and a full history; answers one settled task's id."""
    call, calls = producer.broker.call, producer.commands
    call(calls.create_group())
    error = json.dumps({"type": "ValueError", "message": "no", "traceback": "x" * 4000}).encode()
    settled = ""
    for number in range(WORKERS):
        name = f"bench:{number:012d}"
        details = {"host": "bench", "pid": number, "threads": HELD, "names": "work"}
        call(calls.register(name, int(seconds * 1000), details))
        share = (ENDED + DEAD) // WORKERS
        for start in range(0, share, 200):
            read = call(calls.fetch(name, min(200, share - start), None))
            outcomes = []
            for entry, flat in read[0][1]:
                failed = len(outcomes) * 12 // 200 != (len(outcomes) - 1) * 12 // 200
                state = "failed" if failed else "succeeded"
                settled = flat[1].decode()
                outcomes.append(
                    (
                        entry,
                        flat[1],
                        state,
                        "work",
                        "1",
                        "1.5",
                        error if failed else b"1",
                        "60000",
                        "",
                        "",
                    )
                )
            call(settle(calls, name, outcomes))
        call(calls.fetch(name, HELD, None))
    return settled


def settle(calls: Any, name: str, outcomes: list[tuple[Any, ...]]) -> Any:
    """The settling call, whose outcomes have as many fields as the script takes."""
    import re

    from redistq.protocol import scripts

    text = (scripts.folder() / "settle.lua").read_text(encoding="utf-8")
    found = re.search(r"for each outcome \((\d+)\)", text)
    assert found is not None
    wanted = int(found[1])
    return calls.settle(name, [(*o, *[""] * (wanted - len(o))) for o in outcomes])


def spent_us(client: redis.Redis) -> int:
    """Microseconds the server has spent in scripts and in the reads that are made plainly."""
    stats: dict[str, Any] = client.info("commandstats")
    outer = ("cmdstat_evalsha", "cmdstat_eval")
    return sum(int(stats[name]["usec"]) for name in outer if name in stats)


def measure(client: redis.Redis, call: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median ms of the server's time and of the caller's."""
    server, caller = [], []
    call()
    for _ in range(rounds):
        before, started = spent_us(client), time.perf_counter()
        call()
        caller.append((time.perf_counter() - started) * 1000)
        server.append((spent_us(client) - before) / 1000)
    return statistics.median(server), statistics.median(caller)


def main() -> int:
    """Print the table; answers 1 when a tick took longer than its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", default="valkey", choices=["valkey", "redis7", "redis62"])
    parser.add_argument("--most", type=int, default=1_000_000, help="queued tasks (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Server(args.server) as server, server.client() as client:
        producer = TaskProducer(url=server.unix_url, stream="bench")
        add(producer, ENDED + DEAD + WORKERS * HELD, 0)
        task = people(producer, 3600)
        monitor = TaskMonitor(url=server.unix_url, stream="bench")
        queued, sizes = 0, [n for n in (10**3, 10**4, 10**5, 10**6) if n <= args.most]
        print(
            f"{args.server} {server.version}; ms of the server's time / until the answer is here\n"
        )
        print(f"{'':<24}" + "".join(f"{n:>19,}" for n in sizes))
        table: dict[str, list[str]] = {name: [] for name, _ in CALLS}
        for size in sizes:
            add(producer, size - queued, (size - queued) // 10)
            queued = size
            state = {"cursor": monitor.tick().cursor, "task": task}
            for name, call in CALLS:
                used, waited = measure(client, functools.partial(call, monitor, state), args.rounds)
                rows.append({"queued": size, "call": name, "server_ms": used, "caller_ms": waited})
                table[name].append(f"{used:>10.2f} / {waited:>6.2f}")
        for name, cells in table.items():
            print(f"{name:<24}" + "".join(cells))
        monitor.close()
        producer.close()
    worst = max(row["server_ms"] for row in rows if row["call"].startswith("tick"))
    print(f"\nslowest tick: {worst:.2f} ms of the server's time (limit {LIMIT_MS:g} ms)")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
