"""What a notebook waits for: fan-out, graphs, arrays, a fresh kernel, an open dashboard.

Usage: python benchmarks/notebook.py [--only NAME ...] [--json FILE] [--quick]

redistq beside those that people use in notebooks, who takes part says contestants.py; what is
compared is measured in turns. About eight minutes; --quick two. It needs what a notebook has:
pip install 'redistq[notebook]' ipykernel, and numpy for the arrays. In the field of peers:
pip install 'dask[distributed]' ipyparallel joblib
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import client as calls
import psutil
from contestants import CONTESTANTS, said_missing
from control import Bench
from graphs import graphs, ways
from support.kernels import Kernel
from support.servers import Server
from table import Table, arguments, run

TABLE: Table = calls.TABLE
row, spread = TABLE.row, TABLE.spread
GRAPHS = ("client.graph", "client.lazy", "dask.distributed", "dask.delayed")

# -- arrays --------------------------------------------------------------------------------------


def more(array: Any) -> Any:
    """What each call does with its array: another one of the same size."""
    return array + 1.0


class Memory:
    """The most memory that this process and all its children had together, in MB (pages that
    several share counted once), while the block ran."""

    def __init__(self) -> None:
        self.most = 0.0
        self._over = threading.Event()

    def _look(self) -> float:
        me = psutil.Process()
        found = 0
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found += process.memory_full_info().pss
        return found / 2**20

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self.most = max(self.most, self._look())

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def arrays(megabytes: int, count: int, rounds: int) -> None:
    """So much numpy through so many calls, each array as an argument and another one back."""
    try:
        import numpy
    except ImportError as error:
        said_missing("arrays", error)
        return
    block = numpy.random.default_rng(1).random((count, megabytes * 2**20 // 8 // count))
    rates: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name, start in CONTESTANTS.items():
            try:
                with start() as runner:
                    runner["gather"]([runner["submit"](more, block[0, :10]) for _ in range(10)])
                    with Memory() as memory:
                        began = time.perf_counter()
                        made = [runner["submit"](more, array) for array in block]
                        results = runner["gather"](made)
                        taken = time.perf_counter() - began
                    assert all(r[0] == a[0] + 1.0 for a, r in zip(block, results, strict=True))
                    del made, results
            except ImportError as error:
                said_missing(name, error)
                continue
            gc.collect()
            rates.setdefault(name, []).append(megabytes / taken)
            peaks[name] = max(memory.most, peaks.get(name, 0.0))
    for name, values in rates.items():
        row(
            f"{megabytes:,} MB through {count} calls and back: {name}",
            statistics.median(values),
            "MB/s",
            None,
            f"{spread(values)}; all processes at most {peaks[name]:,.0f} MB",
        )


# -- a fresh kernel ------------------------------------------------------------------------------

PARTS = ("import", "client", "workers", "first result")
FIRST = {
    "redistq": (
        "from redistq import Client",
        "client = Client()",
        "client.start_workers(2)",
        "assert client.submit(abs, -1).result() == 1",
    ),
    "ProcessPoolExecutor": (
        "from concurrent.futures import ProcessPoolExecutor",
        "pool = ProcessPoolExecutor(2)",
        "",
        "assert pool.submit(abs, -1).result() == 1",
    ),
    "joblib": (
        "from joblib import Parallel, delayed",
        "parallel = Parallel(n_jobs=2)",
        "",
        "assert parallel([delayed(abs)(-1), delayed(abs)(-1)])[0] == 1",
    ),
    "dask.distributed": (
        "from distributed import Client",
        "",
        "client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)",
        "assert client.submit(abs, -1).result() == 1",
    ),
    "ipyparallel": (
        "import ipyparallel",
        "cluster = ipyparallel.Cluster(n=2, log_level=40)",
        "view = cluster.start_and_connect_sync(activate=False).load_balanced_view()",
        "assert view.apply_async(abs, -1).get() == 1",
    ),
}
ENDS = {"ipyparallel": "cluster.stop_cluster_sync()"}
"""What has to be ended: it outlives the kernel."""
NEEDED = {"dask.distributed": "distributed", "ipyparallel": "ipyparallel", "joblib": "joblib"}


@contextlib.contextmanager
def kernel(**more: str) -> Iterator[Kernel]:
    """A kernel of its own, in an empty folder, with a home of its own for an embedded server."""
    with tempfile.TemporaryDirectory(prefix="rq-k-", ignore_cleanup_errors=True) as folder:
        started = Kernel(Path(folder), None, REDISTQ_HOME=folder, **more)
        try:
            yield started
        finally:
            started.kill()


def told(text: str) -> Any:
    """What a cell printed as JSON, on its last line."""
    try:
        return json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"a cell of the benchmark failed:\n{text}") from None


def first_result(rounds: int) -> None:
    """From the first line of a fresh kernel to the first result, on two workers; server included
    where there is one."""
    taken: dict[str, list[list[float]]] = {}
    for number in range(rounds + 1):
        for name, lines in FIRST.items():
            cell = "import json, time\nat = [time.perf_counter()]\n"
            cell += "".join(f"{line}\nat.append(time.perf_counter())\n" for line in lines)
            cell += (
                ENDS.get(name, "")
                + "\nprint()\nprint(json.dumps([b - a for a, b in zip(at, at[1:])]))"
            )
            with kernel() as fresh:
                shown = fresh.run(cell, timeout=120)
            if "ModuleNotFoundError" in shown:
                if not number:
                    said_missing(name, ImportError(name=NEEDED[name]))
                continue
            if number:  # the first brings files into memory
                taken.setdefault(name, []).append([1000 * part for part in told(shown)])
    for name, found in taken.items():
        parts = [statistics.median(part) for part in zip(*found, strict=True)]
        note = ", ".join(f"{word} {ms:,.0f}" for word, ms in zip(PARTS, parts, strict=True))
        row(
            f"first result in a fresh kernel: {name}",
            statistics.median(sum(one) for one in found),
            "ms",
            None,
            note,
        )


# -- an open dashboard ---------------------------------------------------------------------------

OPEN = """
from redistq.dashboard import Dashboard

board = Dashboard(queue={queue!r})
display(board)
board.panel.widgets["root"]._view_count = 1  # what a page says that shows it
print("\\nfalse")
"""


def dashboard(bench: Bench, queued: int, seconds: float, turns: int) -> None:
    """What an open dashboard costs while so many tasks are queued: the server's and the kernel's
    time while nothing runs, and what two worker processes get done beside it."""
    queue = bench.queue()
    idle: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    rates: dict[bool, list[float]] = {True: [], False: []}
    with kernel(REDISTQ_URL=bench.server.url) as notebook:
        process = psutil.Process(notebook.pid)

        def used() -> tuple[float, float]:
            times = process.cpu_times()
            return bench.cpu() / 1000, times.user + times.system

        def watched(is_open: bool) -> tuple[float, float, int]:
            """Server ms a second, kernel CPU %, tasks done, over ``seconds``."""
            if is_open:
                told(notebook.run(OPEN.format(queue=queue)))
            time.sleep(1)
            before, done, began = used(), bench.succeeded(queue), time.perf_counter()
            time.sleep(seconds)
            after, more, span = used(), bench.succeeded(queue), time.perf_counter() - began
            if is_open:
                alive = "board.live and board.panel.audience.seen"
                live = told(notebook.run(f"import json\nprint(json.dumps({alive}))\nboard.close()"))
                assert live, "the dashboard had ended"
            server, cpu = ((b - a) / span for a, b in zip(before, after, strict=True))
            return server, 100 * cpu, int((more - done) / span)

        with bench.working(queue, processes=2, thread_count=1) as producer:

            def fill() -> None:
                """Have so many wait again."""
                producer.pause()
                missing = queued - int(bench.db.xlen(queue))
                for start in range(0, missing, 50_000):
                    step = min(50_000, missing - start)
                    producer.add_tasks([("noop", n) for n in range(step)])

            fill()
            for turn in range(2 * turns):
                *found, _ = watched(turn % 2 == 1)
                idle[turn % 2 == 1].append((found[0], found[1]))
            for turn in range(2 * turns):
                fill()
                producer.resume()
                rates[turn % 2 == 1].append(watched(turn % 2 == 1)[2])
    for at, (what, unit) in enumerate((("server time", "ms/s"), ("kernel CPU", "%"))):
        opened, closed = (statistics.median(one[at] for one in found) for found in idle.values())
        row(
            f"dashboard over {queued:,} tasks: {what}",
            opened - closed,
            unit,
            None,
            f"{opened:.2f} open, {closed:.2f} closed",
        )
    kept = statistics.median(a / b for a, b in zip(rates[True], rates[False], strict=True))
    note = f"{statistics.median(rates[True]):,.0f} tasks/s open, "
    note += f"{statistics.median(rates[False]):,.0f} closed"
    row("   throughput beside it, of that without", kept, "", None, note)


def main() -> None:
    """Run the scenarios that were asked for."""
    args = arguments(__doc__)
    scale, rounds = (10, 1) if args.quick else (1, 2)
    with Server() as server:
        bench = Bench(server)
        chosen = {name: way for name, way in ways(bench, 100).items() if name in GRAPHS}
        scenarios: dict[str, Callable[[], None]] = {
            "fan-out": lambda: calls.throughput(10_000 // scale, rounds),
            "20ms": lambda: calls.efficiency(rounds),
            "graph": lambda: graphs(TABLE, chosen, (100, 100 // scale), rounds),
            "arrays": lambda: arrays(1_000 // scale, 200, rounds),
            "first": lambda: first_result(rounds),
            "dashboard": lambda: dashboard(bench, 1_000_000 // scale, 3.0, rounds + 1),
        }
        run(args, server, scenarios)
    TABLE.write(args.json)


if __name__ == "__main__":
    main()
