"""Graphs of no-op tasks: ours in three ways beside dask.distributed and Celery's canvas.

Used by control.py and notebook.py, which run it.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contestants import KEY, WORKERS, dask_client
from table import Table

from redistq import Client, compute

if TYPE_CHECKING:
    from control import Bench

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))


def parents_of(width: int, depth: int) -> list[list[int]]:
    """For each node the two of the layer before that it runs after, by position."""
    chosen = random.Random(1)
    return [
        [(layer - 1) * width + k for k in chosen.sample(range(width), 2)] if layer else []
        for layer in range(depth)
        for _ in range(width)
    ]


Contestant = Callable[[list[list[int]]], None]


@contextlib.contextmanager
def named_tasks(bench: Bench) -> Iterator[Contestant]:
    """producer.graph: no-op named tasks."""
    with bench.working(bench.queue(), processes=2) as producer:

        def run(nodes: list[list[int]]) -> None:
            with producer.graph(f"graph{time.monotonic_ns()}") as graph:
                ids: list[str] = []
                for before in nodes:
                    after = [ids[k] for k in before] or None
                    ids.append(graph.add("noop", None, after=after))
            graph.wait(timeout=300)
            assert graph.counts()["succeeded"] == len(nodes)

        yield run


def first(*_: Any) -> int:
    """A node of a graph of calls."""
    return 0


@contextlib.contextmanager
def function_calls(bench: Bench) -> Iterator[Contestant]:
    """client.graph: functions that take each other's results."""
    with Client(bench.server.unix_url, queue=bench.queue(), signing_key=KEY) as client:
        client.start_workers(WORKERS)
        client.submit(first).result()

        def run(nodes: list[list[int]]) -> None:
            with client.graph(f"graph{time.monotonic_ns()}") as graph:
                made: list[Any] = []
                for before in nodes:
                    made.append(graph.submit(first, *(made[k] for k in before)))
            graph.wait(timeout=300)
            assert graph.counts()["succeeded"] == len(nodes)

        yield run


def leaves(made: list[Any], nodes: list[list[int]]) -> list[Any]:
    """The calls that no other takes: all else is needed for them."""
    inner = {parent for before in nodes for parent in before}
    return [call for k, call in enumerate(made) if k not in inner]


@contextlib.contextmanager
def lazy_calls(bench: Bench) -> Iterator[Contestant]:
    """client.lazy: each call named by its code and what it is given; the last ones computed."""
    with Client(bench.server.unix_url, queue=bench.queue(), signing_key=KEY) as client:
        client.start_workers(WORKERS)
        client.submit(first).result()
        lazy = client.lazy(first)

        def run(nodes: list[list[int]]) -> None:
            mark = time.monotonic_ns()
            made: list[Any] = []
            for k, before in enumerate(nodes):
                made.append(lazy(mark, k, *(made[parent] for parent in before)))
            assert not any(compute(leaves(made, nodes)))

        yield run


@contextlib.contextmanager
def dask_graph() -> Iterator[Contestant]:
    """dask.distributed: the graph as a dict, its quickest way; the last ones are asked for."""
    with dask_client() as client:

        def run(nodes: list[list[int]]) -> None:
            mark = time.monotonic_ns()
            tasks = {
                f"n{mark}-{k}": (first, *(f"n{mark}-{parent}" for parent in before))
                for k, before in enumerate(nodes)
            }
            assert not any(client.get(tasks, leaves(list(tasks), nodes)))

        yield run


@contextlib.contextmanager
def dask_delayed() -> Iterator[Contestant]:
    """dask.delayed on distributed, as people write it."""
    import dask

    with dask_client():
        delayed = dask.delayed(first, pure=False)

        def run(nodes: list[list[int]]) -> None:
            made: list[Any] = []
            for k, before in enumerate(nodes):
                made.append(delayed(k, *(made[parent] for parent in before)))
            assert not any(dask.compute(*leaves(made, nodes)))

        yield run


@contextlib.contextmanager
def celery_canvas(bench: Bench, width: int) -> Iterator[Contestant]:
    """Celery: a chain of groups. It has no edges from node to node: each layer is after all of the
    layer before."""
    os.environ["CANVAS_URL"] = bench.server.url.removesuffix("/0") + "/1"
    import canvas_celery

    command = [sys.executable, "-m", "celery", "-A", "canvas_celery", "worker"]
    command += ["--pool", "prefork", "--concurrency", "2", "--loglevel", "ERROR"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = subprocess.Popen(
        command,
        cwd=Path(canvas_celery.__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        canvas_celery.noop.delay().get(timeout=60)

        def run(nodes: list[list[int]]) -> None:
            canvas_celery.layers(width, len(nodes) // width).delay().get(timeout=120)

        yield run
    finally:
        worker.terminate()
        try:
            worker.wait(10)
        except subprocess.TimeoutExpired:
            worker.kill()


def ways(bench: Bench, width: int) -> dict[str, Callable[[], Any]]:
    """All contestants by name."""
    return {
        "producer.graph": lambda: named_tasks(bench),
        "client.graph": lambda: function_calls(bench),
        "client.lazy": lambda: lazy_calls(bench),
        "dask.distributed": dask_graph,
        "dask.delayed": dask_delayed,
        "Celery canvas": lambda: celery_canvas(bench, width),
    }


def graphs(
    table: Table,
    chosen: dict[str, Callable[[], Any]],
    shape: tuple[int, int],
    rounds: int,
    least: float | None = None,
) -> None:
    """No-op nodes, each after two of the layer before: nodes a second from the first line that
    writes the graph to its end. ``shape`` is its width and depth, ``least`` the target of ours."""
    width, depth = shape
    nodes = parents_of(width, depth)
    taken: dict[str, list[float]] = {}
    sizes = {name: 3 * width if name.startswith("Celery") else len(nodes) for name in chosen}
    for _ in range(rounds):
        for name, start in chosen.items():
            given = nodes[: sizes[name]]
            try:
                with start() as run:
                    run(given[:width])  # warm
                    began = time.perf_counter()
                    run(given)
                    taken.setdefault(name, []).append(len(given) / (time.perf_counter() - began))
            except ImportError as error:
                print(f"     {name}: {error.name or error} is not installed", flush=True)
    for name, rates in taken.items():
        table.row(
            f"graph of {sizes[name]:,} nodes: {name}",
            statistics.median(rates),
            "nodes/s",
            -least if least is not None and name.endswith(".graph") else None,
            table.spread(rates),
        )
