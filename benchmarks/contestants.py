"""Those that run functions in other processes, side by side: redistq and its peers in a notebook.

Used by client.py, notebook.py and graphs.py. Each has two worker processes of one thread. Peers
that are not installed are left out with a word; to compare:
pip install 'dask[distributed]' ipyparallel joblib. On a noisy machine read ratios, not figures.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from support.servers import Server

from redistq import Client

WORKERS = 2
KEY = "for benchmarks only"
Runner = dict[str, Callable[..., Any]]
"""What each contestant can do: ``submit(fn, *args)`` and ``gather(futures)``."""

HERE = Path(__file__).resolve().parent
# Workers of those that send functions by name find this module, and what it imports. What all of
# them import is compiled once, as it is where it was installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(HERE), str(HERE.parent / "tests"), os.environ.get("PYTHONPATH")))
)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def noop(value: Any = None) -> Any:
    """The call whose cost is the queue's own."""
    return value


def spin(loops: int) -> float:
    """Pure Python work that never lets go of the interpreter; the seconds it took."""
    started, total = time.perf_counter(), 0
    for n in range(loops):
        total += n & 7
    return time.perf_counter() - started


@contextlib.contextmanager
def with_redistq() -> Iterator[Runner]:
    """Ours, on a server of its own."""
    with Server() as server, Client(server.unix_url, signing_key=KEY) as client:
        client.start_workers(WORKERS)
        yield {"submit": client.submit, "gather": lambda futures: [f.result() for f in futures]}


@contextlib.contextmanager
def with_pool() -> Iterator[Runner]:
    """The standard library's: no queue that outlives the process, the floor of what is possible."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        yield {"submit": pool.submit, "gather": lambda futures: [f.result() for f in futures]}


@contextlib.contextmanager
def with_joblib() -> Iterator[Runner]:
    """joblib's own processes (loky): calls are run when they are gathered, no-ops in batches."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    try:
        with Parallel(n_jobs=WORKERS) as parallel:
            yield {"submit": lambda fn, *args: delayed(fn)(*args), "gather": parallel}
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def dask_client() -> Iterator[Any]:
    """dask.distributed: the client of a LocalCluster of processes."""
    from distributed import Client as DaskClient
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        DaskClient(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def with_dask() -> Iterator[Runner]:
    """dask.distributed; ``pure=False``, so that equal calls are run each."""
    with dask_client() as client:
        yield {
            "submit": lambda fn, *args: client.submit(fn, *args, pure=False),
            "gather": client.gather,
        }


@contextlib.contextmanager
def with_ipyparallel() -> Iterator[Runner]:
    """ipyparallel, a load-balanced view of local engines."""
    import ipyparallel

    cluster = ipyparallel.Cluster(n=WORKERS, log_level=40)
    client = cluster.start_and_connect_sync(activate=False)
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
    "joblib": with_joblib,
    "dask.distributed": with_dask,
    "ipyparallel": with_ipyparallel,
}


def said_missing(name: str, error: ImportError) -> None:
    """Say that a peer does not take part, and what would let it."""
    print(f"     {name}: not installed (pip install {error.name or name})", flush=True)


@contextlib.contextmanager
def contestants(only: Container[str] = ()) -> Iterator[dict[str, Runner]]:
    """All that are installed, or ``only`` these of them, running and warm."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, start in CONTESTANTS.items():
            if only and name not in only:
                continue
            try:
                runner = stack.enter_context(start())
            except ImportError as error:
                said_missing(name, error)
                continue
            runner["gather"]([runner["submit"](noop, n) for n in range(200)])
            found[name] = runner
        yield found
