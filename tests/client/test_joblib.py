"""scikit-learn and joblib on redistq's workers: the same answers, errors, no leftovers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import joblib
import numpy
import pytest
from support.clients import KEY, producer_of, serving, session
from support.workers import until

import redistq.joblib
from redistq import Client
from redistq.protocol.commands import Snapshot


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    """A small problem to learn."""
    from sklearn.datasets import make_classification

    x, y = make_classification(300, 8, random_state=1)
    return x, y


def snapshot(client: Client) -> Snapshot:
    """The figures of the client's queue."""
    with producer_of(client) as producer:
        return producer.snapshot()


def test_cross_val_score_gives_the_same_scores(client: Client, data: tuple[Any, Any]) -> None:
    """As joblib's own backend; and the work was done by our workers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    model = LogisticRegression(max_iter=200)
    here = cross_val_score(model, *data, cv=5)
    before = snapshot(client).counters["succeeded"]
    with joblib.parallel_config(backend="redistq", client=client):
        there = cross_val_score(model, *data, cv=5, n_jobs=-1)
    assert numpy.allclose(here, there)
    assert snapshot(client).counters["succeeded"] > before


def test_grid_search_finds_the_same(client: Client, data: tuple[Any, Any]) -> None:
    """Best parameters and scores."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    search = {"C": [0.01, 0.1, 1.0], "fit_intercept": [True, False]}
    here = GridSearchCV(LogisticRegression(max_iter=200), search, cv=3).fit(*data)
    with joblib.parallel_config(backend="redistq", client=client):
        there = GridSearchCV(LogisticRegression(max_iter=200), search, cv=3, n_jobs=-1).fit(*data)
    assert here.best_params_ == there.best_params_
    assert numpy.allclose(here.cv_results_["mean_test_score"], there.cv_results_["mean_test_score"])


def test_calls_run_in_other_processes_in_order(client: Client) -> None:
    """Results stand where their calls stood; the pids are the workers'."""
    with joblib.parallel_config(backend="redistq", client=client):
        squares = joblib.Parallel(n_jobs=-1)(joblib.delayed(pow)(n, 2) for n in range(200))
        pids = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(4))
    assert squares == [n * n for n in range(200)]
    assert os.getpid() not in pids


def test_generators_of_results(client: Client) -> None:
    """return_as="generator", and without order."""
    with joblib.parallel_config(backend="redistq", client=client):
        ordered = joblib.Parallel(n_jobs=2, return_as="generator")(
            joblib.delayed(abs)(-n) for n in range(20)
        )
        assert list(ordered) == list(range(20))
        unordered = joblib.Parallel(n_jobs=2, return_as="generator_unordered")(
            joblib.delayed(abs)(-n) for n in range(20)
        )
        assert sorted(unordered) == list(range(20))


def test_parallel_inside_parallel(client: Client) -> None:
    """A call that uses joblib itself finds its way, without waiting for itself."""

    def inner(n: int) -> int:
        import joblib

        return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-i) for i in range(n)))

    with joblib.parallel_config(backend="redistq", client=client):
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(inner)(n) for n in (3, 4, 5)) == [3, 6, 10]


def test_an_error_is_raised_and_the_rest_is_cancelled(client: Client) -> None:
    """With its own type; nothing stays in the queue."""

    def fail(n: int) -> int:
        import time

        time.sleep(0.01)
        if n == 3:
            raise LookupError("three")
        return n

    with (
        joblib.parallel_config(backend="redistq", client=client),
        pytest.raises(LookupError, match="three"),
    ):
        joblib.Parallel(n_jobs=2)(joblib.delayed(fail)(n) for n in range(100))
    until(lambda: snapshot(client).ready == 0, "an empty queue")


def test_without_a_client_one_is_made_for_the_block(
    url: str, monkeypatch: pytest.MonkeyPatch, data: tuple[Any, Any]
) -> None:
    """With its own workers, on the server that is found; both end with it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    monkeypatch.setenv("REDISTQ_URL", url)
    monkeypatch.setenv("REDISTQ_SIGNING_KEY", KEY)
    made: list[tuple[Any, Any]] = []
    real = redistq.joblib.Client

    def making() -> Client:
        client = real()
        made.append((session(client).exchange.pending, session(client).workers))
        return client

    monkeypatch.setattr("redistq.joblib.Client", making)
    with joblib.parallel_config(backend="redistq"):
        scores = cross_val_score(LogisticRegression(max_iter=200), *data, cv=4, n_jobs=2)
        numbers = joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-n) for n in range(9))
        assert made[0][1].running
    assert len(scores) == 4
    assert numbers == list(range(9))
    assert len(made) == 1, "one client for all of the block"
    until(made[0][0].ended.is_set, "its end", 20)
    until(lambda: not made[0][1].running, "its workers' end", 20)


def test_a_client_registers_the_backend_by_itself(client: Client) -> None:
    """Where joblib was imported first, making a Client is enough."""
    from joblib.parallel import BACKENDS

    BACKENDS.pop("redistq", None)
    Client(client.server.url, signing_key=KEY).close()  # type: ignore[attr-defined]
    assert "redistq" in BACKENDS


def test_one_job_stays_here(client: Client) -> None:
    """n_jobs=1 is joblib's own way of running in place."""
    with joblib.parallel_config(backend="redistq", client=client):
        assert joblib.Parallel(n_jobs=1)(joblib.delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
