"""Figures of the Client, side by side with other ways to run functions in processes.

Usage: python benchmarks/client.py [--tasks 10000] [--only NAME ...] [--json FILE]

Who takes part, and how, says contestants.py. It starts servers of its own, with nothing on disk.
On a noisy machine read ratios, not figures: what is compared is measured in turns, and the median
of the rounds is printed.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from contestants import KEY, WORKERS, contestants, noop, spin
from support.servers import Server
from table import Table

from redistq import Client

TABLE = Table(3)
row, spread = TABLE.row, TABLE.spread
SLOW = ("dask.distributed", "ipyparallel")
"""Peers that are given a fifth of the no-op calls."""


def size_of(array: Any, _: int) -> int:
    """What each of many calls does with a large argument that they share."""
    return int(array.nbytes)


# -- scenarios -----------------------------------------------------------------------------------


def throughput(tasks: int, rounds: int) -> None:
    """No-op submits, all gathered: calls a second from the first submit to the last result."""
    with contestants() as runners:
        rates: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                count = tasks // 5 if name in SLOW else tasks
                started = time.perf_counter()
                futures = [runner["submit"](noop, n) for n in range(count)]
                results = runner["gather"](futures)
                rates[name].append(count / (time.perf_counter() - started))
                assert results == list(range(count))
                del futures
    for name, values in rates.items():
        row(
            f"{tasks:,} no-op submits gathered: {name}",
            statistics.median(values),
            "calls/s",
            -5000 if name == "redistq" else None,
            spread(values),
        )


def latency(rounds: int) -> None:
    """``submit(...).result()``, one after another."""
    with contestants() as runners:
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                for n in range(100):
                    started = time.perf_counter()
                    runner["gather"]([runner["submit"](noop, n)])
                    taken[name].append(time.perf_counter() - started)
    for name, values in taken.items():
        values.sort()
        row(f"submit().result() p50: {name}", values[len(values) // 2] * 1000, "ms")
        row(f"submit().result() p95: {name}", values[len(values) * 95 // 100] * 1000, "ms")


def efficiency(rounds: int) -> None:
    """200 calls of 20 ms on two processes against two halves computed without any queue."""
    started = time.perf_counter()
    spin(2_000_000)
    loops = int(2_000_000 * 0.020 / (time.perf_counter() - started))
    with (
        contestants() as runners,
        ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as ideal,
    ):
        list(ideal.map(noop, range(10)))
        shares: dict[str, list[float]] = {name: [] for name in runners}
        busy: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                started = time.perf_counter()
                list(ideal.map(spin, [loops] * 200, chunksize=100))
                best = time.perf_counter() - started
                started = time.perf_counter()
                inside = runner["gather"]([runner["submit"](spin, loops) for _ in range(200)])
                taken = time.perf_counter() - started
                shares[name].append(best / taken)
                busy[name].append(sum(inside) / WORKERS / taken)
    for name, values in shares.items():
        row(
            f"200 x 20 ms on two processes, of ideal: {name}",
            statistics.median(values),
            "",
            -0.97 if name == "redistq" else None,
            spread(values),
        )
        # What other programs do meanwhile changes this less.
        row(
            f"   share of two processes inside calls: {name}",
            statistics.median(busy[name]),
            "",
        )


def shared_argument() -> None:
    """A 50 MB array shared by 1,000 calls: bytes that the server received."""
    try:
        import numpy
    except ImportError:
        print("     a shared array: numpy is not installed", flush=True)
        return
    array = numpy.random.default_rng(1).random(50 * 1024 * 1024 // 8)
    with Server() as server, Client(server.unix_url, signing_key=KEY) as client:
        client.start_workers(WORKERS)
        client.submit(noop).result()
        with server.client() as db:
            before: Any = db.info("stats")
            started = time.perf_counter()
            results = list(client.map(size_of, [array] * 1000, range(1000)))
            taken = time.perf_counter() - started
            after: Any = db.info("stats")
        assert results == [array.nbytes] * 1000
    crossed = after["total_net_input_bytes"] - before["total_net_input_bytes"]
    times = crossed / array.nbytes
    row("50 MB shared by 1,000 calls: crossed to the server", times, "times", 1.05)
    row("50 MB shared by 1,000 calls: all results", taken, "s")


def memory(tasks: int = 100_000) -> None:
    """What this process needs for outstanding futures, all of them with the server."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Server() as server:
        client = Client(server.unix_url, signing_key=KEY)
        client.submit(noop)
        gc.collect()
        before, started = resident(), time.perf_counter()
        futures = [client.submit(noop, n) for n in range(tasks)]
        while client._session.exchange.sender.is_idle is False:
            time.sleep(0.01)
        taken = time.perf_counter() - started
        gc.collect()
        each = (resident() - before) / tasks
        row(f"{tasks:,} outstanding futures: memory of the client", each * tasks / 2**20, "MB")
        row(f"{tasks:,} outstanding futures: for each", each, "bytes")
        row(f"{tasks:,} outstanding futures: sent", tasks / taken, "calls/s")
        assert not any(future.done() for future in futures[:: tasks // 100])
        started = time.perf_counter()
        client.shutdown(cancel_futures=True)
        row(
            f"{tasks:,} outstanding futures: cancelled",
            tasks / (time.perf_counter() - started),
            "/s",
        )


def main() -> None:
    """Run the scenarios and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scenarios: dict[str, Callable[[], None]] = {
        "memory": memory,  # first, while this process has freed nothing that could be used again
        "throughput": lambda: throughput(options.tasks, options.rounds),
        "latency": lambda: latency(options.rounds),
        "efficiency": lambda: efficiency(options.rounds),
        "shared": shared_argument,
    }
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {WORKERS} processes each")
    for name, scenario in scenarios.items():
        if not options.only or name in options.only:
            scenario()
    TABLE.write(options.json)


if __name__ == "__main__":
    main()
