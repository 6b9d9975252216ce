"""Figures of long work: what tasks that run for long, or again and again, cost. Targets beside.

Usage: python benchmarks/long_work.py [--only NAME ...] [--json FILE] [--quick]

It starts servers of its own (nothing on disk), runs one scenario after another and prints a table.
What is compared is measured in turns, several times.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import redis
from support.servers import Server
from table import Table, arguments, run

from redistq import Client, TaskContext, TaskMonitor, TaskProducer, TaskWorker, current_task

TABLE = Table(3)
row, spread = TABLE.row, TABLE.spread
KEY = "for benchmarks only"


# -- durable steps -------------------------------------------------------------------------------


def nothing() -> None:
    """A step whose cost is the queue's own."""


async def anothing() -> None:
    """The same for coroutines."""


def stepping(payload: int, context: TaskContext) -> list[float]:
    """So many steps; how long each took, in ms."""
    took = []
    for number in range(payload):
        began = time.perf_counter()
        context.step(f"step {number}", nothing)
        took.append(1e3 * (time.perf_counter() - began))
    return took


async def astepping(payload: int, context: TaskContext) -> list[float]:
    """The same, asynchronous."""
    took = []
    for number in range(payload):
        began = time.perf_counter()
        await context.astep(f"step {number}", anothing)
        took.append(1e3 * (time.perf_counter() - began))
    return took


def stepping_call(count: int) -> list[float]:
    """The same as a function of a client, whose steps are signed."""
    return stepping(count, current_task())


def sleeping(payload: int, context: TaskContext) -> float:
    """So many sleeps of a millisecond; when the first began, by this machine's clock."""
    began: float = context.step("began", time.monotonic)
    for _ in range(payload):
        context.sleep(0.001)
    return 1e3 * (time.monotonic() - began) / payload


def steps(server: Server, count: int, rounds: int) -> None:
    """A step of a handler, of a coroutine and of a function call; a sleep, with its wake."""
    handlers = {"stepping": stepping, "astepping": astepping, "sleeping": sleeping}
    url = server.unix_url
    taken: dict[str, list[float]] = {}
    with (
        TaskProducer(url=url, stream="steps") as producer,
        TaskWorker(url=url, stream="steps", task_handlers=handlers, processes=1),
        Client(url, queue="calls", signing_key=KEY) as client,
    ):
        client.start_workers(1)
        kinds: dict[str, Callable[[], list[float]]] = {
            "a step": lambda: producer.get_result(producer.add_task("stepping", count), 60),
            "a step, async": lambda: producer.get_result(producer.add_task("astepping", count), 60),
            "a step of a call": lambda: client.submit(stepping_call, count).result(60),
        }
        for number in range(rounds + 1):
            for kind, run in kinds.items():
                median = statistics.median(run()[1:])
                if number:  # the first is warm-up
                    taken.setdefault(kind, []).append(median)
        slept = [
            producer.get_result(producer.add_task("sleeping", count // 10), 120)
            for _ in range(rounds)
        ]
    for kind, values in taken.items():
        row(kind, statistics.median(values), "ms", 0.6, spread(values))
    row("a sleep of 1 ms, until the task runs again", statistics.median(slept), "ms", None)


# -- progress, checkpoints and time limits -------------------------------------------------------


def loop(payload: int, context: TaskContext) -> list[float]:
    """Microseconds of a call of progress, and of a checkpoint."""
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
    said_ns = (said - began - (began - none)) / payload
    return [said_ns / 1000, (saved - said) / (payload // 10) / 1000]


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


def extends(payload: int, context: TaskContext) -> float:
    """Microseconds of giving oneself more time."""
    began = time.perf_counter_ns()
    for _ in range(payload):
        context.extend(0.001)
    return (time.perf_counter_ns() - began) / payload / 1000


def progress(server: Server, count: int, seconds: float, rounds: int) -> None:
    """What saying how far it is costs a handler, and how many calls a process makes for it."""
    handlers = {"loop": loop, "says": says, "extends": extends}
    options = {"url": server.unix_url, "stream": "progress"}
    said, saved, extended = [], [], []
    with (
        TaskProducer(**options) as producer,
        TaskWorker(**options, task_handlers=handlers, processes=1, thread_count=4),
        server.client() as db,
    ):
        for _ in range(rounds):
            a, b = producer.get_result(producer.add_task("loop", count), 120)
            said.append(a)
            saved.append(b)
            task_id = producer.add_task("extends", 1_000, timeout=60)
            extended.append(producer.get_result(task_id, 60))
        db.config_resetstat()
        ids = [producer.add_task("says", seconds) for _ in range(4)]
        done = sum(producer.get_result(task_id, seconds + 60) for task_id in ids)
        stats: Any = db.info("commandstats")
    calls = stats["cmdstat_evalsha"]["calls"] - 8  # four tasks were added and settled
    row("context.progress, a call", statistics.median(said), "us", 1.0, spread(said))
    row("context.checkpoint, a call", statistics.median(saved), "us", None, spread(saved))
    row("context.extend, a call", statistics.median(extended), "us", None, spread(extended))
    note = f"four tasks, {done:,} calls of progress; heartbeats included"
    row("script calls of a process that reports", calls / seconds, "a s", 4.5, note)


# -- events, and another function under a batch --------------------------------------------------


def noop(value: Any = None) -> Any:
    """The call whose cost is the queue's own."""
    return value


def events(server: Server, count: int) -> None:
    """What a look costs the server while nothing happens, and how fast one that is behind is told;
    those who work are asked nothing (tests/test_costs.py)."""
    registry = {"noop": noop}
    options = {"url": server.unix_url, "stream": "events"}
    with (
        TaskProducer(**options) as producer,
        TaskMonitor(**options) as monitor,
        TaskWorker(**options, task_handlers=registry, processes=1, thread_count=4),
        server.client() as db,
    ):
        producer.add_tasks([("noop", n) for n in range(count)])
        producer.drain(120)
        began = time.perf_counter()
        told = list(monitor.events(follow=False))
        took = time.perf_counter() - began
        row("events told to one that is behind", len(told) / took, "a s", None, f"{len(told):,}")
        producer.pause()
        cursor, looks = told[-1].cursor, 500
        db.config_resetstat()
        for _ in range(looks):
            assert not list(monitor.events(cursor, follow=False))
        stats: Any = db.info("commandstats")["cmdstat_evalsha"]
        row(
            "a look while nothing happens, of the server", stats["usec"] / stats["calls"], "us", 100
        )


def update(server: Server, count: int, rounds: int) -> None:
    """A fan-out whose function is changed while it runs, beside one whose function is not; and how
    long the change takes to hold for every item that starts."""
    plain, changed, held = [], [], []
    with Client(server.unix_url, queue="update", signing_key=KEY) as client:
        client.start_workers(2)
        client.map_batch(noop, range(1_000), progress=False).wait(60)
        for _ in range(rounds):
            began = time.perf_counter()
            client.map_batch(noop, range(count), progress=False).wait(300)
            plain.append(count / (time.perf_counter() - began))
            began = time.perf_counter()
            batch = client.map_batch(noop, range(count), progress=False)
            asked = time.perf_counter()
            batch.update(abs)
            held.append(1e3 * (time.perf_counter() - asked))
            batch.wait(300)
            changed.append(count / (time.perf_counter() - began))
    row("calls of a batch", statistics.median(plain), "a s", None, spread(plain))
    row("the same, updated while it runs", statistics.median(changed), "a s", None, spread(changed))
    row("batch.update, until it holds", statistics.median(held), "ms", 200, spread(held))


# -- streams -------------------------------------------------------------------------------------


def yielding(payload: int) -> Iterator[int]:
    """So many small items."""
    yield from range(payload)


async def ayielding(payload: int) -> AsyncIterator[int]:
    """The same in the event loop."""
    for number in range(payload):
        yield number


def yielding_rows(payload: int) -> Iterator[dict[str, Any]]:
    """The same as rows of a table."""
    for number in range(payload):
        yield {"id": number, "name": "somebody", "score": number / 7}


def paced(payload: int) -> Iterator[float]:
    """When each item was made, by the clock of this machine; ten a second."""
    for _ in range(payload):
        time.sleep(0.1)
        yield time.monotonic()


def streams(server: Server, count: int, rounds: int) -> None:
    """Items a second from a handler, a coroutine and a function to one reader elsewhere; how long
    a lone item is under way."""
    handlers = {"yielding": yielding, "ayielding": ayielding, "rows": yielding_rows, "paced": paced}
    url = server.unix_url
    rates: dict[str, list[float]] = {}
    with (
        TaskProducer(url=url, stream="items") as producer,
        TaskWorker(url=url, stream="items", task_handlers=handlers, processes=1),
        Client(url, queue="calls", signing_key=KEY) as client,
    ):
        client.start_workers(1)

        def named(name: str) -> Iterator[Any]:
            return producer.stream(producer.add_task(name, count))

        kinds: dict[str, Callable[[], Iterator[Any]]] = {
            "a stream of a handler": lambda: named("yielding"),
            "a stream of a coroutine": lambda: named("ayielding"),
            "a stream of a handler, small dicts": lambda: named("rows"),
            "a stream of a function": lambda: client.stream(yielding, count).stream(),
            "a stream of a function, small dicts": lambda: client.stream(
                yielding_rows, count
            ).stream(),
            "a submitted generator, while it runs": lambda: client.submit(yielding, count).stream(),
        }
        for number in range(rounds + 1):
            for kind, begin in kinds.items():
                began = time.perf_counter()
                assert sum(1 for _ in begin()) == count
                if number:  # the first is warm-up
                    rates.setdefault(kind, []).append(count / (time.perf_counter() - began))
        late = [
            1e3 * (time.monotonic() - made)
            for made in producer.stream(producer.add_task("paced", 30))
        ]
    for kind, values in rates.items():
        row(kind, statistics.median(values), "items/s", -50_000, spread(values))
    row("a lone item, from its yield to its reader", statistics.median(late), "ms", None)


# -- schedules -----------------------------------------------------------------------------------


def commands_a_second(db: redis.Redis, seconds: float) -> float:
    """Scripts and other commands that the server ran, but for those inside scripts."""
    db.config_resetstat()
    time.sleep(seconds)
    stats: Any = db.info("commandstats")
    outer = ("evalsha", "eval", "publish", "subscribe", "xreadgroup", "ping")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in outer) / seconds


def schedules(server: Server, count: int, seconds: float) -> None:
    """What schedules cost an idle queue with a worker, and many that are due at once."""
    from redistq import TaskScheduler

    options = {"url": server.unix_url, "stream": "agenda"}
    with (
        TaskProducer(**options) as producer,
        TaskWorker(**options, task_handlers={"job": loop}, processes=1),
        server.client() as db,
    ):
        time.sleep(3)
        without = commands_a_second(db, seconds)
        for number in range(count):
            producer.schedules.set(f"s{number}", cron="0 6 1 1 *", tz="Europe/Berlin", task="job")
        within = commands_a_second(db, seconds)
        note = f"{without:.2f} without, {within:.2f} with, of a queue with a worker"
        more = within - without
    row(f"commands that {count:,} schedules cost an idle queue", more, "a s", 1, note)
    options["stream"] = "due"
    with TaskProducer(**options) as producer, server.client() as db:
        db.config_resetstat()
        at_s = int(time.time()) + 4 + count // 500
        when = time.strftime("%S %M %H %d %m *", time.gmtime(at_s))
        for number in range(count):
            producer.schedules.set(f"s{number}", cron=when, task="job")
        with TaskScheduler(**options), TaskScheduler(**options):
            time.sleep(max(0.0, at_s + 2 - time.time()))
        entries: Any = db.xrange("due")
        late = [int(entry.split("-")[0]) - 1000 * at_s for entry, _ in entries]
        assert len(late) == count, len(late)
    row(f"of {count:,} due at once the first is added after", min(late), "ms", None)
    row(f"of {count:,} due at once the last is added after", max(late), "ms", None)


def main() -> None:
    """Run the scenarios that were asked for."""
    args = arguments(__doc__)
    scale, rounds = (10, 2) if args.quick else (1, 3)
    with Server() as server:
        scenarios: dict[str, Callable[[], None]] = {
            "progress": lambda: progress(server, 1_000_000 // scale, 20.0 / scale, rounds),
            "streams": lambda: streams(server, 100_000 // scale, rounds),
            "schedules": lambda: schedules(server, 1000 // scale, 40.0 / scale),
            "steps": lambda: steps(server, 900 // scale, rounds),
            "events": lambda: events(server, 9_000 // scale),
            "update": lambda: update(server, 10_000 // scale, rounds),
        }
        run(args, server, scenarios)
    TABLE.write(args.json)


if __name__ == "__main__":
    main()
