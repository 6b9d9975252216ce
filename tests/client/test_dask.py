"""Dask's collections on redistq's workers: each task a call, only what is asked for comes here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from support.clients import serving

from redistq import Client, TaskFuture
from redistq.client.futures import LATER
from redistq.client.submission import submit

dask = pytest.importorskip("dask", reason="an extra of its own")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


@dask.delayed
def inc(x: Any) -> Any:
    return x + 1


@dask.delayed
def total(*parts: Any) -> Any:
    return sum(parts)


def test_delayed_calls(client: Client) -> None:
    """A graph of calls, several results at once."""
    parts = [inc(i) for i in range(10)]
    assert total(*parts).compute(scheduler=client.dask_get) == 55
    assert dask.compute(total(*parts), parts[3], scheduler=client.dask_get) == (55, 4)


def test_collections(client: Client) -> None:
    """Arrays, bags and frames give what Dask's own scheduler gives."""
    import dask.array as da
    import dask.bag as db
    import dask.dataframe as dd
    import numpy as np
    import pandas as pd

    with dask.config.set(scheduler=client.dask_get):
        x = da.from_array(np.arange(10_000).reshape(100, 100), chunks=50)
        sums = (x + x.T).sum(axis=0)
        assert np.array_equal(sums.compute(), sums.compute(scheduler="sync"))
        bag = db.from_sequence(range(100), npartitions=4)
        assert bag.map(lambda v: v * 2).filter(lambda v: v % 3 == 0).sum().compute() == 3366
        frame = pd.DataFrame({"a": range(100), "b": [i % 3 for i in range(100)]})
        means = dd.from_pandas(frame, npartitions=4).groupby("b").a.mean().compute()
        pd.testing.assert_series_equal(means, frame.groupby("b").a.mean())


def test_a_graph_as_a_dict(client: Client) -> None:
    """Tuples of functions and keys, other names, data; keys nested as they are asked for."""
    graph = {"x": 1, "y": (lambda a: a + 1, "x"), "z": (sum, ["x", "y"]), "same": "z"}
    assert client.dask_get(graph, "z") == 3
    assert client.dask_get(graph, ["same", ["y", "x"]]) == (3, (2, 1))


def test_only_what_is_needed_runs(client: Client) -> None:
    """A task that nothing asks for is not sent."""

    def broken() -> None:
        raise AssertionError

    assert client.dask_get({"a": (broken,), "b": (abs, -1)}, "b") == 1


def test_intermediate_results_stay_away(client: Client, monkeypatch: Any) -> None:
    """What two tasks pass to each other is never asked for by this process."""
    import dask.array as da

    sent: list[TaskFuture] = []

    def noting(*args: Any, **kwargs: Any) -> TaskFuture:
        sent.append(submit(*args, **kwargs))
        return sent[-1]

    monkeypatch.setattr("redistq.client.dask.submit", noting)
    large = da.ones((1000, 1000), chunks=1000) + 1
    assert large.sum().compute(scheduler=client.dask_get, optimize_graph=False) == 2e6
    assert len(sent) > 2
    results = [Future.result(future, 10) for future in sent]
    assert any(result is LATER for result in results)
    assert not [r for r in results if getattr(r, "nbytes", 0) > 1_000_000]


def test_an_error_is_that_of_the_task_that_failed(client: Client) -> None:
    """However far from what was asked for; the rest is cancelled."""

    def bad(x: Any) -> Any:
        raise KeyError(x)

    call = total(inc(dask.delayed(bad)("here")), 2)
    with pytest.raises(KeyError, match="here"):
        call.compute(scheduler=client.dask_get)


def test_options_hold_for_its_tasks(client: Client) -> None:
    """Retries, names, limits: those of the client's calls."""
    seen = client.options(name="mine").dask_get({"a": (current_name,)}, "a")
    assert seen == "mine"
    assert client.dask_get({("part-of-it", 0): (current_name,)}, ("part-of-it", 0)) == "part-of-it"


def current_name() -> str:
    from redistq import current_task

    return current_task().name.partition(":")[2]


def test_callbacks_see_the_graph_run(client: Client) -> None:
    """Such as Dask's ProgressBar: each task before and after, and the end."""
    from dask.callbacks import Callback

    told: list[str] = []

    class Note(Callback):  # type: ignore[misc]
        def _start(self, dsk: Any) -> None:
            told.append("start")

        def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
            told.append(f"end {len(state['finished'])}")

        def _finish(self, dsk: Any, state: Any, errored: bool) -> None:
            told.append(f"finish {errored}")

    with Note():
        client.dask_get({"x": (abs, -1), "y": (abs, "x")}, "y")
    assert told == ["start", "end 1", "end 2", "finish False"]
