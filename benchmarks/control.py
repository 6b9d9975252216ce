"""Figures of what may run, and when: limits, graphs, chords; each beside what limits it.

Usage: python benchmarks/control.py [--only NAME ...] [--json FILE] [--quick]

It starts servers of its own (nothing on disk), runs one scenario after another and prints a table.
What is compared is measured in turns, several times. Server time is the CPU time of the server's
main thread, as it tells of itself: other programs change that less than time by the clock.
The graph is also run by dask.distributed and by Celery's canvas where they are installed:
pip install 'dask[distributed]' 'celery[redis]'.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import redis
from contestants import KEY
from graphs import graphs, ways
from support.servers import Server
from table import Table, arguments, run

from redistq import Client, TaskProducer, TaskWorker

TABLE = Table(2)
row, spread = TABLE.row, TABLE.spread


def noop(payload: Any) -> Any:
    """The task whose cost is the queue's own."""
    return payload


def stamp(_: Any) -> list[float]:
    """Two milliseconds of work; when they began and ended (one clock for all processes)."""
    began = time.monotonic()
    time.sleep(0.002)
    return [began, time.monotonic()]


def begun(_: Any) -> float:
    """When it began, by the clock that the server on this machine goes by, in ms."""
    return time.time() * 1000


def length(results: list[Any]) -> tuple[int, float]:
    """How many results a function was called with, and when."""
    return len(results), time.time() * 1000


HANDLERS = {"noop": noop, "stamp": stamp, "begun": begun}


class Bench:
    """A server, and what the scenarios ask of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.db = redis.Redis.from_url(server.unix_url, protocol=2, socket_timeout=60)
        self._queues = 0

    def queue(self) -> str:
        """The name of a new queue, on an empty server."""
        self.db.flushdb()
        self._queues += 1
        return f"control{self._queues}"

    def cpu(self) -> float:
        """Microseconds of CPU that the server's main thread has used."""
        info: dict[str, Any] = self.db.info("cpu")
        return 1e6 * (info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"])

    def succeeded(self, queue: str) -> int:
        """How many tasks of a queue have succeeded."""
        return int(self.db.hget(f"counters:{queue}", "succeeded") or 0)

    def until(self, queue: str, count: int, every: float = 0.02, timeout: float = 300.0) -> None:
        """Wait until so many tasks have succeeded; every look costs the server next to nothing."""
        deadline = time.monotonic() + timeout
        while self.succeeded(queue) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.succeeded(queue):,} of {count:,} tasks succeeded")
            time.sleep(every)

    @contextlib.contextmanager
    def working(self, queue: str, **options: Any) -> Iterator[TaskProducer]:
        """A producer, and a worker that is warm."""
        options = {"processes": 1, "thread_count": 4, **options}
        with (
            TaskProducer(url=self.server.unix_url, stream=queue, timeout=60) as producer,
            TaskWorker(url=self.server.unix_url, stream=queue, task_handlers=HANDLERS, **options),
        ):
            producer.add_tasks([("noop", k) for k in range(200)])
            self.until(queue, 200)
            yield producer

    def drained(self, items: list[Any], rules: dict[str, dict[str, Any]]) -> tuple[float, float]:
        """Server time a task of adding all while the worker is paused, and of draining them."""
        queue, count = self.queue(), len(items)
        with self.working(queue) as producer:
            for key, rule in rules.items():
                producer.limits.set(key, **rule)
            producer.pause()
            time.sleep(0.3)  # the worker hears of it
            before = self.cpu()
            producer.add_tasks(items)
            between = self.cpu()
            producer.resume()
            self.until(queue, 200 + count)
            return (between - before) / count, (self.cpu() - between) / count


# -- scenarios -----------------------------------------------------------------------------------


def costs(bench: Bench, count: int, rounds: int) -> None:
    """Bulk add and drain: plain, under a key with room, under a key for which nearly all wait."""
    plain = [{"type": "noop", "payload": k} for k in range(count)]
    keyed = [{**item, "limits": "api"} for item in plain]
    kinds: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "plain": (plain, {}),
        "one key, room": (keyed, {"api": {"at_most": 1_000_000}}),
        "one key, waited (at_most=10)": (keyed, {"api": {"at_most": 10}}),
        "one key, waited (at_most=200)": (keyed, {"api": {"at_most": 200}}),
    }
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (items, rules) in kinds.items():
            taken[kind].append(bench.drained(items, rules))
    for kind, most in zip(kinds, (None, 8.0, 25.0, 25.0), strict=True):
        both = [sum(pair) for pair in taken[kind]]
        add, drain = (statistics.median(part) for part in zip(*taken[kind], strict=True))
        row(f"server time: {kind}", statistics.median(both), "us/task", None, spread(both))
        print(f"{'':5}of that adding {add:.2f}, draining {drain:.2f}")
        if most is not None:
            more = [sum(a) - sum(b) for a, b in zip(taken[kind], taken["plain"], strict=True)]
            row("   more than plain", statistics.median(more), "us/task", most, spread(more))


def lone(bench: Bench, count: int, rounds: int) -> None:
    """Two tasks at a time, both results waited for: calls of one task, for information."""
    kinds: dict[str, int | None] = {"plain": None, "one key, room": 10, "one key, one waited": 1}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, most in kinds.items():
            with bench.working(bench.queue()) as producer:
                options: Any = {}
                if most is not None:
                    producer.limits.set("api", at_most=most)
                    options = {"limits": "api"}
                before = bench.cpu()
                for k in range(count):
                    pair = [producer.add_task("noop", k, **options) for _ in range(2)]
                    for task_id in reversed(pair):
                        producer.get_result(task_id, timeout=30)
                taken[kind].append((bench.cpu() - before) / count)
    for kind, values in taken.items():
        more = statistics.median(values) - statistics.median(taken["plain"])
        note = spread(values) + ("" if kind == "plain" else f"; {more:+.2f} beside plain")
        row(
            f"two lone tasks, server time: {kind}", statistics.median(values), "us/pair", None, note
        )


def hand_over(bench: Bench, count: int, rounds: int) -> None:
    """The time between one handler's end and the next one's start, where one may run at a time."""
    gaps: dict[str, list[float]] = {"key": [], "plain": []}
    for _ in range(rounds):
        for kind, threads in (("key", 2), ("plain", 1)):
            with bench.working(bench.queue(), thread_count=threads) as producer:
                producer.limits.set("api", at_most=1)
                options: Any = {"limits": "api"} if kind == "key" else {}
                ids = producer.add_tasks(
                    {"type": "stamp", "payload": k, **options} for k in range(count)
                )
                spans = sorted(producer.get_result(task_id, timeout=60) for task_id in ids)
            for (_, end), (start, _) in itertools.pairwise(spans):
                gaps[kind].append((start - end) * 1000)
    for values in gaps.values():
        values.sort()
    assert gaps["key"][0] >= 0, "two ran at once"

    def told(values: list[float]) -> str:
        return f"p95 {values[len(values) * 95 // 100]:.3f}, least {values[0]:.3f}"

    middle = {kind: values[len(values) // 2] for kind, values in gaps.items()}
    row("a freed slot to the next start, p50, 2 threads", middle["key"], "ms", 1, told(gaps["key"]))
    row("   without a key, one thread", middle["plain"], "ms", None, told(gaps["plain"]))


def rate(bench: Bench, seconds: float, window: float) -> None:
    """1,000 starts a second, four processes, a backlog at any time: starts in any window."""
    queue = bench.queue()
    count = int((seconds + 2) * 1000)
    with bench.working(queue, processes=4, thread_count=2) as producer:
        producer.limits.set("api", rate=1000, per=1.0)
        before = bench.cpu()
        ids = producer.add_tasks({"type": "begun", "limits": "api"} for _ in range(count + 1000))
        bench.until(queue, 200 + count, every=0.1)
        used = (bench.cpu() - before) / count
        producer.pause()
        starts: list[float] = []
        for at in range(0, len(ids), 1000):
            with bench.db.pipeline(transaction=False) as pipe:
                for task_id in ids[at : at + 1000]:
                    pipe.hget(f"task:{queue}:{task_id}", "result")
                found = [json.loads(value) for value in pipe.execute() if value]
                starts += [value for value in found if value > 1e9]
    starts.sort()
    span = window * 1000
    counts = []
    at = starts[0] + 200
    while at + span <= starts[-1]:
        counts.append(bisect_left(starts, at + span) - bisect_left(starts, at))
        at += 50
    worst = max(counts, key=lambda n: abs(n - span))
    off = abs(worst - span) / span * 100
    note = (
        f"{min(counts):,} to {max(counts):,} starts in windows of {window:g} s; {used:.1f} us/task"
    )
    row("rate of 1,000/s, four processes: off by", off, "%", 1, note)


def flat(bench: Bench, count: int, rounds: int) -> None:
    """Many keys and groups beside few: server time a task, adding and draining.

    A call adds or settles up to 200 tasks, and looks at each key once. So ten keys are cheaper than
    thousands, whatever the machine does; whether it is flat, show numbers of which both give each
    task of a call its own key. (A few hundred are no measure: so small a hash is a list to the
    server, which it searches from its start.)
    """

    def keys(number: int, slots: int) -> tuple[list[Any], dict[str, Any]]:
        items = [
            {"type": "noop", "payload": k, "limits": f"key:{k % number}"} for k in range(count)
        ]
        return items, {"key:*": {"at_most": slots}}

    def groups(number: int) -> tuple[list[Any], dict[str, Any]]:
        return [{"type": "noop", "payload": k, "group": f"g{k % number}"} for k in range(count)], {}

    half = count // 2  # so many find room at first, whatever the number of keys
    limit = 1_000_000
    pairs = {
        "keys with room": (keys(1_000, limit), keys(10_000, limit), "1,000 keys", "10,000", 1.15),
        "keys, half wait": (
            keys(1_000, half // 1_000),
            keys(half, 1),
            "1,000 keys",
            f"{half:,}",
            1.15,
        ),
        "groups": (groups(1_000), groups(10_000), "1,000 groups", "10,000", 1.15),
        "   shared by a call": (keys(10, limit), keys(10_000, limit), "10 keys", "10,000", None),
        "   groups shared by a call": (groups(10), groups(1_000), "10 groups", "1,000", None),
    }
    for name, (few, many, less, more, most) in pairs.items():
        taken: list[list[float]] = [[], []]
        for _ in range(rounds):
            for values, (items, rules) in zip(taken, (few, many), strict=True):
                values.append(sum(bench.drained(items, rules)))
        few_us, many_us = (statistics.median(values) for values in taken)
        ratio = statistics.median(b / a for a, b in zip(*taken, strict=True))
        note = f"{many_us:.2f} us a task against {few_us:.2f}"
        row(f"{name}: {more} / {less}", ratio, "ratio", most, note)


def chord(bench: Bench, count: int, rounds: int) -> None:
    """A task after a graph of many: from the last one's end to its start, by the server's clock."""
    gaps = []
    for number in range(rounds):
        queue = bench.queue()
        with bench.working(queue, processes=2) as producer:
            with producer.graph(f"many{number}") as graph:
                for k in range(count):
                    graph.add("noop", k)
            callback = producer.add_task("begun", after=graph)
            started = producer.get_result(callback, timeout=300)
            ends = [
                int(entry.split(b"-")[0])
                for entry, fields in bench.db.xrevrange(f"history:{queue}", count=20)
                if fields[b"id"].decode() != callback
            ]
            gaps.append(started - max(ends))
    middle = statistics.median(gaps)
    row(f"chord over {count:,}: last end to callback", middle, "ms", 50, spread(gaps))


def chord_of_calls(bench: Bench, count: int) -> None:
    """The same of functions: the worker reads all results before it calls the callback."""
    queue = bench.queue()
    with Client(bench.server.unix_url, queue=queue, signing_key=KEY) as client:
        client.start_workers(2)
        client.submit(noop, 0).result()
        batch = client.map_batch(noop, range(count), progress=False)
        found, started = batch.then(length).result(timeout=300)
        assert found == count
        ends = [int(entry.split(b"-")[0]) for entry, _ in bench.db.xrevrange(f"history:{queue}")]
    gap = started - ends[1]
    row(f"   of calls, all {count:,} results read", gap, "ms", None, "one run")


def main() -> None:
    """Run the scenarios that were asked for."""
    args = arguments(__doc__)
    scale, rounds = (10, 2) if args.quick else (1, 3)
    with Server() as server:
        bench = Bench(server)
        scenarios: dict[str, Callable[[], None]] = {
            "costs": lambda: costs(bench, 40_000 // scale, rounds),
            "lone": lambda: lone(bench, 2_000 // scale, rounds),
            "hand-over": lambda: hand_over(bench, 500 // scale, rounds),
            "rate": lambda: rate(bench, *((4.0, 2.0) if args.quick else (15.0, 10.0))),
            "graph": lambda: graphs(TABLE, ways(bench, 100), (100, 100 // scale), rounds, 15_000),
            "flat": lambda: flat(bench, 20_000 // scale, rounds),
            "chord": lambda: chord(bench, 100_000 // scale, 2 if args.quick else 3),
            "chord-calls": lambda: chord_of_calls(bench, 100_000 // scale),
        }
        run(args, server, scenarios)
    TABLE.write(args.json)


if __name__ == "__main__":
    main()
