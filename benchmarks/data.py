"""How fast large values go to workers and come back, beside a bare SET and GET of the same bytes.

Usage: python benchmarks/data.py [--megabytes 200] [--each 5] [--rounds 3] [--only NAME ...]
[--json FILE]

Values are numpy arrays of random bytes, which cannot be compressed. There are two ways: the
argument way (each call takes an array of its own and returns its size) and the result way (each
call returns an array). What is compared is measured in turns, and the median of the rounds is
printed. The floor is redis-py, in this process alone: SET of the same bytes and GET of them, one
after the other. Each contestant has two worker processes of one thread; peers that are not
installed are left out with a word: pip install 'dask[distributed]' ipyparallel.

"Copies" are the bytes that Python allocated at the most (tracemalloc) while one value goes one
way, over its size.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import redis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from contestants import KEY, Runner, contestants
from support.servers import Server
from table import Table

from redistq import Client

TABLE = Table(3)
row = TABLE.row

MEGABYTE = 1_000_000


def size_of(array: Any) -> int:
    """The argument way: what a call says of the array that it was given."""
    return int(array.nbytes)


def made(megabytes: int, seed: int) -> Any:
    """The result way: an array of random bytes, made from a block that is kept."""
    import builtins

    import numpy

    blocks = builtins.__dict__.setdefault("_benchmark_blocks", {})
    if megabytes not in blocks:
        blocks[megabytes] = numpy.random.default_rng(1).integers(
            0, 256, megabytes * 1_000_000, dtype="uint8"
        )
    array = blocks[megabytes].copy()
    array[:8] = seed % 251
    return array


def arrays_of(count: int, megabytes: int, seed: int) -> list[Any]:
    """So many arrays of random bytes, no two the same."""
    random = numpy.random.default_rng(seed)
    return [random.integers(0, 256, megabytes * MEGABYTE, dtype="uint8") for _ in range(count)]


def bare(arrays: list[Any]) -> tuple[float, float]:
    """Seconds of SET and of GET by redis-py over the unix socket."""
    with Server() as server, redis.Redis.from_url(server.unix_url) as db:
        db.ping()
        started = time.perf_counter()
        for n, array in enumerate(arrays):
            db.set(f"v{n}", memoryview(array))
        between = time.perf_counter()
        for n in range(len(arrays)):
            db.get(f"v{n}")
        return between - started, time.perf_counter() - between


def argument_way(runner: Runner, arrays: list[Any]) -> float:
    """Seconds until every call has had its array."""
    started = time.perf_counter()
    sizes = runner["gather"]([runner["submit"](size_of, array) for array in arrays])
    taken = time.perf_counter() - started
    assert sum(sizes) == sum(array.nbytes for array in arrays)
    return taken


def result_way(runner: Runner, arrays: list[Any]) -> float:
    """Seconds until every array is here."""
    megabytes = arrays[0].nbytes // MEGABYTE
    started = time.perf_counter()
    results = runner["gather"]([runner["submit"](made, megabytes, n) for n in range(len(arrays))])
    taken = time.perf_counter() - started
    assert sum(result.nbytes for result in results) == sum(array.nbytes for array in arrays)
    return taken


WAYS: dict[str, Callable[[Runner, list[Any]], float]] = {
    "argument": argument_way,
    "result": result_way,
}


def rates(count: int, megabytes: int, rounds: int, peers: list[str]) -> None:
    """MB/s each way, of all that are installed."""
    total = count * megabytes
    floor: dict[str, list[float]] = {"SET": [], "GET": []}
    taken: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    with contestants(peers) as runners:
        for runner in runners.values():
            result_way(runner, arrays_of(4, megabytes, 0))
        for turn in range(rounds):
            arrays = arrays_of(count, megabytes, turn + 1)
            both = bare(arrays)
            floor["SET"].append(both[0])
            floor["GET"].append(both[1])
            for way, measure in WAYS.items():
                for name, runner in runners.items():
                    taken[way].setdefault(name, []).append(measure(runner, arrays))
    for word, seconds in floor.items():
        row(f"bare {word} by redis-py", total / statistics.median(seconds), "MB/s")
    least = statistics.median(map(sum, zip(floor["SET"], floor["GET"], strict=True)))
    row("bare SET and GET", total / least, "MB/s")
    for way, of in taken.items():
        ours = statistics.median(of["redistq"])
        for name, seconds in of.items():
            row(f"{way} way: {name}", total / statistics.median(seconds), "MB/s")
        row(f"{way} way: beside SET and GET", ours / least, "times", 2)
        for name in ("ProcessPoolExecutor", "dask.distributed"):
            if name in of:
                row(f"{way} way: faster than {name}", statistics.median(of[name]) / ours, "x", -1)


def memory(megabytes: int = 50) -> None:
    """What one large value costs this process, each way."""
    with Server() as server, Client(server.unix_url, signing_key=KEY) as client:
        client.start_workers(1)
        client.submit(made, 1, 0).result()
        client.submit(size_of, numpy.zeros(MEGABYTE)).result()
        array = arrays_of(1, megabytes, 9)[0]
        for way in WAYS:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            if way == "argument":
                client.submit(size_of, array).result()
            else:
                result = client.submit(made, megabytes, 5).result()
                assert result.nbytes == array.nbytes
                result[0] = 1  # it is ours to change
            most = tracemalloc.get_traced_memory()[1] - before
            tracemalloc.stop()
            # A result is itself one of them.
            most_copies = 0.1 if way == "argument" else 1.1
            row(f"{way} way: held by the client", most / array.nbytes, "values", most_copies)


def main() -> None:
    """Run the scenarios and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="that go each way in a round")
    parser.add_argument("--each", type=int, default=5, help="megabytes of one value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="rates, memory")
    parser.add_argument("--peers", nargs="*", default=[], help="all by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = max(1, options.megabytes // options.each)
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores; {count} x {options.each} MB"
    )
    scenarios: dict[str, Callable[[], None]] = {
        "memory": memory,
        "rates": lambda: rates(count, options.each, options.rounds, options.peers),
    }
    for name, scenario in scenarios.items():
        if not options.only or name in options.only:
            scenario()
    TABLE.write(options.json)


if __name__ == "__main__":
    main()
