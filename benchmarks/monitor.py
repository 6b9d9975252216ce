"""What looking costs: a dashboard's tick, the figures and a page of each listing, as a queue grows.

Usage: python benchmarks/monitor.py [--server valkey|redis7|redis62] [--most N] [--json FILE]

For 10^3, 10^4, 10^5 and 10^6 queued tasks (and a tenth as many delayed) it prints, for each call,
the time the server spends in it (its own count, INFO commandstats) and the time until the caller
has the answer. 20 workers hold 8 tasks each; 10,000 dead letters, 10,000 batches and a full history
are there. Then what one look of a dashboard costs, all in: CPU time of the server's process
(/proc/PID/schedstat, Linux) and of the thread that asks and draws: of the first look, of one where
nothing is new, of one with 200 new attempts, and of 20 queues at once. The limits are 5 ms of the
server's time a tick and a look, save the first; exit code 1 when one is missed. A task's history
is read in pages of 1,000 events, so the server is free in between.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import redis
from support.servers import Server

from redistq import TaskMonitor, TaskProducer
from redistq.connection.address import resolve
from redistq.dashboard.feed import Feed
from redistq.dashboard.page import page
from redistq.dashboard.queues import overview
from redistq.monitor.queues import Queues
from redistq.monitor.tick import STATS_EVENTS

LIMIT_MS = 5.0
WORKERS, HELD, DEAD, ENDED, BATCHES, QUEUES = 20, 8, 10_000, 11_000, 10_000, 20
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
                failed = len(outcomes) * DEAD // (ENDED + DEAD) != (
                    (len(outcomes) - 1) * DEAD // (ENDED + DEAD)
                )
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


def batches(client: redis.Redis, count: int) -> None:
    """Records of so many batches, as they stand on the server."""
    now = int(time.time() * 1000)
    with client.pipeline(transaction=False) as pipe:
        for n in range(count):
            ids = {"name": f"b{n}", "total": 100, "succeeded": 90, "failed": 3, "cancelled": 0}
            pipe.hset(f"batch:bench:b{n}", mapping={**ids, "retried": 1, "created_ms": now - n})
            pipe.zadd("batches:bench", {f"b{n}": now - n})
        pipe.execute()


def cpu_ms(pid: int) -> float:
    """CPU time of a process' main thread in ms."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def looks(server: Server, rounds: int) -> list[dict[str, Any]]:
    """What one look of a dashboard costs, in ms of CPU time: the server's, and ours."""
    address = resolve(server.unix_url)
    monitor = TaskMonitor(url=server.unix_url, stream="bench")
    for n in range(QUEUES):
        with TaskProducer(url=server.unix_url, stream=f"queue{n}") as producer:
            producer.add_task("work", n)
    feed = Feed(monitor, deep=True)
    named = Queues(address, [f"queue{n}" for n in range(QUEUES)])
    every = Queues(address)

    def first() -> Any:
        found = Feed(monitor, deep=True)
        found.ask()
        return page(found.view(live=True))

    def dashboard(events: int) -> Any:
        if events:
            feed.tick = replace(feed.tick, cursor="0-1")  # the newest 200 are new again
            feed.letters_read += 1  # and so are dead letters
        feed.ask()
        return page(feed.view(live=True))

    found = []
    for name, look in (
        ("the first look", first),
        ("a look, nothing new", lambda: dashboard(0)),
        ("a look, 200 attempts and dead letters new", lambda: dashboard(200)),
        (f"{QUEUES} queues by name", lambda: overview(named.look())),
        (f"all {QUEUES + 1} queues of the server, found", lambda: overview(every.look())),
    ):
        look()
        ours, theirs = [], []
        for _ in range(rounds):
            before, began = cpu_ms(server.pid), time.thread_time()
            look()
            ours.append((time.thread_time() - began) * 1000)
            theirs.append(cpu_ms(server.pid) - before)
        used, drawn = statistics.median(theirs), statistics.median(ours)
        print(f"{name:<44}{used:>8.2f} / {drawn:>6.2f}")
        found.append({"look": name, "server_ms": used, "caller_ms": drawn})
    for each in (named, every, monitor):
        each.close()
    return found


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
        batches(client, BATCHES)
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
        print(f"\nlooks at {queued:,} queued tasks, ms of CPU time: the server's / ours\n")
        seen = looks(server, args.rounds)
        producer.close()
    worst = max(row["server_ms"] for row in rows if row["call"].startswith("tick"))
    print(f"\nslowest tick: {worst:.2f} ms of the server's time (limit {LIMIT_MS:g} ms)")
    longest = max(row["server_ms"] for row in seen[1:])
    print(f"slowest look but the first: {longest:.2f} ms of it")
    if args.json:
        args.json.write_text(json.dumps([*rows, *seen], indent=2) + "\n", encoding="utf-8")
    return int(max(worst, longest) > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
