"""Functions fanned out from one program to two processes: ``fanout.py KIND JSON``.

Two scenarios in one run, after a warm-up: ``n`` calls that do nothing, submitted one by one and
gathered; and 200 calls of 20 ms of CPU, one in 50 of them optionally a second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def noop(k: int) -> int:
    """The call whose cost is the executor's own."""
    return k


def spin(ms: int) -> int:
    """Keeps a core busy until this thread has used ``ms`` of CPU."""
    until = time.thread_time() + ms / 1000
    while time.thread_time() < until:
        pass
    return ms


Gather = Callable[[Callable[[int], int], list[int]], list[int]]


def run_redistq(url: str, measure: Callable[[Gather], Any]) -> Any:
    """Client with two worker processes of one thread each."""
    from redistq import Client

    with Client(url) as client:
        client.start_workers(2, threads=1)

        def gather(fn: Callable[[int], int], items: list[int]) -> list[int]:
            return [f.result() for f in [client.submit(fn, item) for item in items]]

        return measure(gather)


def run_futures(url: str, measure: Callable[[Gather], Any]) -> Any:
    """ProcessPoolExecutor, spawned."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:

        def gather(fn: Callable[[int], int], items: list[int]) -> list[int]:
            return [f.result() for f in [pool.submit(fn, item) for item in items]]

        return measure(gather)


def run_joblib(url: str, measure: Callable[[Gather], Any]) -> Any:
    """joblib with loky; its automatic batching is what its documentation recommends."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=2, backend="loky") as parallel:

        def gather(fn: Callable[[int], int], items: list[int]) -> list[int]:
            return parallel(delayed(fn)(item) for item in items)

        return measure(gather)


def run_dask(url: str, measure: Callable[[Gather], Any]) -> Any:
    """A LocalCluster of two processes with one thread each."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def gather(fn: Callable[[int], int], items: list[int]) -> list[int]:
            return client.gather([client.submit(fn, item, pure=False) for item in items])

        return measure(gather)


def run_ipyparallel(url: str, measure: Callable[[Gather], Any]) -> Any:
    """Two engines, a load-balanced view with an unlimited high-water mark."""
    import ipyparallel

    with ipyparallel.Cluster(n=2, log_level=40) as client:
        client[:].push({}).get()
        client[:].apply_sync(sys.path.insert, 0, os.path.dirname(os.path.abspath(__file__)))
        view = client.load_balanced_view()

        def gather(fn: Callable[[int], int], items: list[int]) -> list[int]:
            return [r.get() for r in [view.apply_async(fn, item) for item in items]]

        return measure(gather)


KINDS = {
    "redistq": run_redistq,
    "futures": run_futures,
    "joblib": run_joblib,
    "dask": run_dask,
    "ipyparallel": run_ipyparallel,
}


def main() -> None:
    """Measure and print."""
    params = json.loads(sys.argv[2])

    def measure(gather: Gather) -> dict[str, float]:
        import fanout  # by its name: what is pickled must be found in the other process

        gather(fanout.noop, list(range(64)))
        time.sleep(0.5)
        n = params["n"]
        started = time.perf_counter()
        assert gather(fanout.noop, list(range(n))) == list(range(n))
        figures = {"rate": n / (time.perf_counter() - started)}
        for name, long in (("efficiency", 20), ("skewed", 1000)):
            items = [long if k % 50 == 25 else 20 for k in range(params["tasks"])]
            started = time.perf_counter()
            gather(fanout.spin, items)
            figures[name] = sum(items) / 2000 / (time.perf_counter() - started)
        return figures

    print("RESULT " + json.dumps(KINDS[sys.argv[1]](params["url"], measure)), flush=True)


if __name__ == "__main__":
    main()
