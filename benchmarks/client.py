"""Figures of the Client, side by side with dask.distributed, ipyparallel and ProcessPoolExecutor.

Usage: python benchmarks/client.py [--tasks 10000] [--only NAME ...] [--json FILE]

Each has two worker processes of one thread. Peers that are not installed are left out with a word;
to compare: pip install 'dask[distributed]' ipyparallel. It starts servers of its own, with nothing
on disk. On a noisy machine read ratios, not figures: what is compared is measured in turns, and
the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.servers import Server

from redistq import Client

WORKERS = 2
ROWS: list[dict[str, Any]] = []
Runner = dict[str, Callable[..., Any]]
"""What each contestant can do: ``submit(fn, *args)`` and ``gather(futures)``."""


def noop(value: Any = None) -> Any:
    """The call whose cost is the queue's own."""
    return value


def spin(loops: int) -> float:
    """Pure Python work that never lets go of the interpreter; the seconds it took."""
    import time  # here, for those who send functions without their module

    started, total = time.perf_counter(), 0
    for n in range(loops):
        total += n & 7
    return time.perf_counter() - started


def size_of(array: Any, _: int) -> int:
    """What each of many calls does with a large argument that they share."""
    return int(array.nbytes)


def row(name: str, value: float, unit: str, target: str = "", met: bool | None = None) -> None:
    """One line of the table, printed as soon as it is known."""
    ROWS.append({"name": name, "value": value, "unit": unit, "target": target, "met": met})
    mark = {True: "ok  ", False: "MISS", None: "    "}[met]
    print(f"{mark} {name:<58} {value:>12,.3f} {unit:<8} {target}", flush=True)


# -- contestants ---------------------------------------------------------------------------------


@contextlib.contextmanager
def with_redistq() -> Iterator[Runner]:
    """Ours, on a server of its own."""
    with Server() as server, Client(server.unix_url, signing_key="for benchmarks only") as client:
        client.start_workers(WORKERS)
        yield {"submit": client.submit, "gather": lambda futures: [f.result() for f in futures]}


@contextlib.contextmanager
def with_pool() -> Iterator[Runner]:
    """The standard library's: no queue that outlives the process, the floor of what is possible."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        yield {"submit": pool.submit, "gather": lambda futures: [f.result() for f in futures]}


@contextlib.contextmanager
def with_dask() -> Iterator[Runner]:
    """dask.distributed, a LocalCluster of processes."""
    from distributed import Client as DaskClient
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        DaskClient(cluster) as client,
    ):
        yield {
            "submit": lambda fn, *args: client.submit(fn, *args, pure=False),
            "gather": client.gather,
        }


@contextlib.contextmanager
def with_ipyparallel() -> Iterator[Runner]:
    """ipyparallel, a load-balanced view of local engines."""
    import ipyparallel

    cluster = ipyparallel.Cluster(n=WORKERS, log_level=40)
    client = cluster.start_and_connect_sync()
    try:
        view = client.load_balanced_view()
        yield {
            "submit": view.apply_async,
            "gather": lambda futures: [future.get() for future in futures],
        }
    finally:
        client.close()
        cluster.stop_cluster_sync()


CONTESTANTS: dict[str, Callable[[], Any]] = {
    "redistq": with_redistq,
    "ProcessPoolExecutor": with_pool,
    "dask.distributed": with_dask,
    "ipyparallel": with_ipyparallel,
}
NEEDS = {"dask.distributed": "distributed", "ipyparallel": "ipyparallel"}


@contextlib.contextmanager
def contestants() -> Iterator[dict[str, Runner]]:
    """All that are installed, running and warm."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, start in CONTESTANTS.items():
            try:
                runner = stack.enter_context(start())
            except ImportError:
                print(f"     {name}: not installed (pip install {NEEDS[name]})", flush=True)
                continue
            runner["gather"]([runner["submit"](noop, n) for n in range(200)])
            found[name] = runner
        yield found


# -- scenarios -----------------------------------------------------------------------------------


def throughput(tasks: int, rounds: int) -> None:
    """No-op submits, all gathered: calls a second from the first submit to the last result."""
    with contestants() as runners:
        rates: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                count = tasks if name in ("redistq", "ProcessPoolExecutor") else tasks // 2
                started = time.perf_counter()
                futures = [runner["submit"](noop, n) for n in range(count)]
                results = runner["gather"](futures)
                rates[name].append(count / (time.perf_counter() - started))
                assert results == list(range(count))
                del futures
    for name, values in rates.items():
        ours = name == "redistq"
        rate = statistics.median(values)
        row(
            f"{tasks:,} no-op submits gathered: {name}",
            rate,
            "calls/s",
            ">= 5,000" if ours else "",
            rate >= 5000 if ours else None,
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
        share, ours = statistics.median(values), name == "redistq"
        row(
            f"200 x 20 ms on two processes, of ideal: {name}",
            share,
            "",
            ">= 0.95" if ours else "",
            share >= 0.95 if ours else None,
        )
        # What other programs do meanwhile changes this less.
        row(
            f"200 x 20 ms: share of two processes inside calls: {name}",
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
    with Server() as server, Client(server.unix_url, signing_key="for benchmarks only") as client:
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
    row("50 MB shared by 1,000 calls: crossed to the server", times, "times", "once", times < 1.05)
    row("50 MB shared by 1,000 calls: all results", taken, "s")


def memory(tasks: int = 100_000) -> None:
    """What this process needs for outstanding futures, all of them with the server."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Server() as server:
        client = Client(server.unix_url, signing_key="for benchmarks only")
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
    if options.json:
        options.json.write_text(json.dumps(ROWS, indent=1))


if __name__ == "__main__":
    main()
