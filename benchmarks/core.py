"""Figures of redistq's core, with the limits they are measured against, in one run.

Usage: python benchmarks/core.py [--server valkey|redis7|redis62] [--only NAME ...] [--json FILE]

It starts a server of its own (a unix socket and a port on 127.0.0.1, nothing on disk), runs one
scenario after another and prints a table. Figures of a noisy machine are to be read as ratios:
every limit is measured next to the figure it limits, several times, interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import redis
from support.servers import Server

from redistq import TaskProducer, TaskScheduler, TaskWorker

ROWS: list[dict[str, Any]] = []


def row(name: str, value: float, unit: str, target: str, met: bool, note: str = "") -> None:
    """One line of the table, printed as soon as it is known."""
    ROWS.append(
        {"name": name, "value": value, "unit": unit, "target": target, "met": met, "note": note}
    )
    mark = "ok  " if met else "MISS"
    print(f"{mark} {name:<46} {value:>12,.3f} {unit:<9} target {target:<14} {note}", flush=True)


def noop(payload: Any) -> Any:
    """The task whose cost is the queue's own."""
    return payload


def timed(action: Callable[[], Any]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def wait_until(condition: Callable[[], bool], timeout: float = 120.0) -> None:
    """Wait for a state of the server; looks every 2 ms, which costs it next to nothing."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the benchmark's condition did not come true")
        time.sleep(0.002)


def succeeded(client: redis.Redis, queue: str) -> int:
    """How many tasks of a queue have succeeded."""
    return int(client.hget(f"counters:{queue}", "succeeded") or 0)


def drain(server: Server, client: redis.Redis, n: int, rounds: int, threads: int) -> None:
    """No-op tasks with results stored, run by one worker process."""
    rates = []
    for i in range(rounds):
        queue = f"drain{threads}-{i}"
        producer = TaskProducer(url=server.unix_url, stream=queue)
        worker = TaskWorker(
            url=server.unix_url,
            stream=queue,
            task_handlers={"noop": noop},
            processes=1,
            thread_count=threads,
        )
        with worker:  # warm: the process is up, its first tasks have run
            producer.add_tasks([("noop", k) for k in range(200)])
            wait_until(lambda q=queue: succeeded(client, q) >= 200)
            producer.pause()
            time.sleep(0.3)  # the supervisor passes the pause on
            producer.add_tasks([("noop", k) for k in range(n)])
            started = time.perf_counter()
            producer.resume()
            wait_until(lambda q=queue: succeeded(client, q) >= 200 + n)
            rates.append(n / (time.perf_counter() - started))
        producer.close()
        client.flushdb()
    row(
        f"drain, one process, {threads} thread{'s' if threads > 1 else ''}",
        statistics.median(rates),
        "tasks/s",
        ">= 20,000",
        statistics.median(rates) >= 20_000,
        f"{min(rates):,.0f} to {max(rates):,.0f}",
    )


def bulk(server: Server, client: redis.Redis, n: int, rounds: int) -> None:
    """Bulk enqueue, payloads encoded, ids made."""
    producer = TaskProducer(url=server.unix_url, stream="bulk")
    items = [("noop", {"n": k}) for k in range(n)]
    rates = []
    for _ in range(rounds):
        rates.append(n / timed(lambda: producer.add_tasks(items)))
        client.flushdb()
    producer.close()
    best = statistics.median(rates)
    row("bulk enqueue", best, "tasks/s", ">= 100,000", best >= 100_000)


def single(server: Server, client: redis.Redis, n: int, rounds: int) -> None:
    """One call a task against a bare EVALSHA of the same script, keys and arguments."""
    producer = TaskProducer(url=server.unix_url, stream="single")
    producer.add_task("noop", {"n": 1})
    bare = redis.Redis.from_url(server.unix_url, protocol=2)
    command = producer.commands.enqueue_one("0" * 20, "noop", b'{"n":1}', "", "")
    sha, keys_and_args = command[1], list(command[3:])
    ours, theirs = [], []
    for r in range(rounds):
        ids = [f"{r:04x}{k:016x}" for k in range(n)]

        def bare_calls(ids: list[str] = ids) -> None:
            for task_id in ids:
                keys_and_args[4] = task_id
                bare.evalsha(sha, 3, *keys_and_args)

        def our_calls() -> None:
            for k in range(n):
                producer.add_task("noop", {"n": k})

        theirs.append(n / timed(bare_calls))
        ours.append(n / timed(our_calls))
        client.flushdb()
    producer.close()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    row(
        "single-call enqueue / bare EVALSHA",
        ratio,
        "ratio",
        ">= 0.85",
        ratio >= 0.85,
        f"{statistics.median(ours):,.0f}/s against {statistics.median(theirs):,.0f}/s",
    )


_ECHO = """
import redis, sys
r = redis.Redis.from_url(sys.argv[1], protocol=2, socket_timeout=60)
last = "$"
r.xgroup_create("echo", "g", id="0", mkstream=True)
print("ready", flush=True)
while True:
    reply = r.execute_command(
        *"XREADGROUP GROUP g c COUNT 1 BLOCK 50000 STREAMS echo >".split()
    )
    for entry, fields in (reply[0][1] if isinstance(reply, list) else list(reply.values())[0][0]):
        data = fields[b"n"] if isinstance(fields, dict) else fields[1]
        if data == b"stop":
            sys.exit()
        r.xadd("back", {"n": data})
"""


def round_trip(server: Server, client: redis.Redis, n: int) -> None:
    """Submit and wait with an idle worker, against XADD -> XREADGROUP -> XADD -> XREAD."""
    echo = subprocess.Popen(
        [sys.executable, "-c", _ECHO, server.unix_url], stdout=subprocess.PIPE, text=True
    )
    assert echo.stdout is not None
    echo.stdout.readline()
    bare = redis.Redis.from_url(server.unix_url, protocol=2)
    producer = TaskProducer(url=server.unix_url, stream="trip")
    worker = TaskWorker(
        url=server.unix_url, stream="trip", task_handlers={"noop": noop}, processes=1
    )
    limits, ours = [], []
    last = ["0-0"]

    def bare_trip(k: int) -> None:
        bare.xadd("echo", {"n": k})
        reply = bare.xread({"back": last[0]}, block=5000)
        last[0] = reply[0][1][-1][0]

    def our_trip(k: int) -> None:
        assert producer.get_result(producer.add_task("noop", k), 10) == k

    with worker:
        for k in range(50):
            bare_trip(k)
            our_trip(k)
        for k in range(n):
            limits.append(timed(lambda k=k: bare_trip(k)))
            ours.append(timed(lambda k=k: our_trip(k)))
            if k % 10 == 0:
                time.sleep(0.01)  # idle between, as the scenario says
    bare.xadd("echo", {"n": "stop"})
    echo.wait(10)
    producer.close()
    limits.sort()
    ours.sort()
    ratio = ours[n // 2] / limits[n // 2]
    row(
        "round trip p50 / bare round trip p50",
        ratio,
        "ratio",
        "<= 2",
        ratio <= 2,
        f"{ours[n // 2] * 1e3:.3f} ms against {limits[n // 2] * 1e3:.3f} ms; "
        f"p99 {ours[n * 99 // 100] * 1e3:.3f} against {limits[n * 99 // 100] * 1e3:.3f}",
    )
    client.flushdb()


def lateness(server: Server, client: redis.Redis, n: int) -> None:
    """How late delayed tasks become ready, by the server's clock, on an idle queue."""
    producer = TaskProducer(url=server.unix_url, stream="late")
    scheduler = TaskScheduler(url=server.unix_url, stream="late").start()
    time.sleep(0.2)
    start = time.time() + 0.5
    due = [start + 0.02 * k for k in range(n)]
    for k, at in enumerate(due):
        producer.schedule_task("noop", k, execute_at=at)
    wait_until(lambda: client.xlen("late") == n)
    entries = client.xrange("late")
    by_payload = {int(fields[b"payload"]): int(entry.split(b"-")[0]) for entry, fields in entries}
    late = sorted(by_payload[k] - due[k] * 1000 for k in range(n))
    scheduler.stop()
    producer.close()
    client.flushdb()
    p99 = late[n * 99 // 100]
    row("delayed task lateness p99, idle", p99, "ms", "<= 15", p99 <= 15, f"p50 {late[n // 2]:.2f}")


def idle(server: Server, client: redis.Redis, seconds: float) -> None:
    """Commands a second that an idle worker costs the server, those inside scripts counted."""
    worker = TaskWorker(
        url=server.unix_url, stream="idle", task_handlers={"noop": noop}, processes=1
    )
    with worker:
        time.sleep(2)
        stats = [client.info("commandstats")]
        time.sleep(seconds)
        stats.append(client.info("commandstats"))
    counts = [sum(v["calls"] for k, v in s.items() if k != "cmdstat_info") for s in stats]
    rate = (counts[1] - counts[0]) / seconds
    row("idle worker", rate, "commands/s", "<= 3", rate <= 3)
    client.flushdb()


def memory(server: Server, client: redis.Redis, n: int) -> None:
    """Server memory of a queued small task."""
    producer = TaskProducer(url=server.unix_url, stream="tasks")
    producer.add_tasks([("add", [1, 2])] * 10)
    before = client.info("memory")["used_memory"]
    producer.add_tasks([("add", [k % 100, 2]) for k in range(n)])
    used = (client.info("memory")["used_memory"] - before) / n
    producer.close()
    client.flushdb()
    row("memory of a queued task", used, "bytes", "<= 230", used <= 230)


def server_cpu(server: Server, client: redis.Redis, n: int) -> None:
    """Server time a task from enqueue to settled: the ceiling of one server core."""
    queue = "cpu"
    producer = TaskProducer(url=server.unix_url, stream=queue)
    with TaskWorker(url=server.unix_url, stream=queue, task_handlers={"noop": noop}, processes=1):
        producer.add_tasks([("noop", k) for k in range(1000)])
        wait_until(lambda: succeeded(client, queue) >= 1000)
        client.config_resetstat()
        producer.add_tasks([("noop", k) for k in range(n)])
        wait_until(lambda: succeeded(client, queue) >= 1000 + n)
        stats = client.info("commandstats")
    outer = ("cmdstat_evalsha", "cmdstat_xreadgroup", "cmdstat_eval")
    micros = sum(stats[name]["usec"] for name in outer if name in stats) / n
    producer.close()
    client.flushdb()
    row("server time a task, enqueue to settled", micros, "us", "<= 18", micros <= 18)


def import_time() -> None:
    """How long a worker's import takes, cold caches aside."""
    best = 1e9
    for _ in range(5):
        out = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import redistq.worker"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        lines = [line for line in out.splitlines() if line.rstrip().endswith(" redistq.worker")]
        package = [line for line in out.splitlines() if line.rstrip().endswith("| redistq")]
        best = min(best, sum(int(line.split("|")[1]) for line in lines + package) / 1000)
    row("import redistq.worker", best, "ms", "< 250", best < 250)


def main() -> None:
    """Run the scenarios that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="valkey", choices=["valkey", "redis7", "redis62"])
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    args = parser.parse_args()
    scale = 10 if args.quick else 1
    rounds = 3 if args.quick else 5
    with Server(args.server) as server:
        client = redis.Redis.from_url(server.unix_url, protocol=2)
        version = (
            client.info("server").get("valkey_version") or client.info("server")["redis_version"]
        )
        print(
            f"{args.server} {version}, Python {platform.python_version()}, redis-py "
            f"{redis.__version__}, {os.cpu_count()} cores\n"
        )
        scenarios: dict[str, Callable[[], None]] = {
            "drain": lambda: drain(server, client, 40_000 // scale, rounds, 4),
            "drain1": lambda: drain(server, client, 40_000 // scale, rounds, 1),
            "bulk": lambda: bulk(server, client, 100_000 // scale, rounds),
            "single": lambda: single(server, client, 10_000 // scale, rounds),
            "trip": lambda: round_trip(server, client, 2_000 // scale),
            "late": lambda: lateness(server, client, 300 // (3 if args.quick else 1)),
            "idle": lambda: idle(server, client, 20.0 / (2 if args.quick else 1)),
            "memory": lambda: memory(server, client, 100_000 // scale),
            "cpu": lambda: server_cpu(server, client, 40_000 // scale),
            "import": import_time,
        }
        for name, scenario in scenarios.items():
            if not args.only or name in args.only:
                scenario()
    if args.json:
        args.json.write_text(json.dumps(ROWS, indent=1) + "\n")


if __name__ == "__main__":
    main()
    assert threading.active_count() == 1, threading.enumerate()
