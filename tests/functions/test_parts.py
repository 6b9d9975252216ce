"""Large parts of arguments: stored once wherever they stand, and each call has its own copy."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from support.clients import KEY, serving, session

from redistq import Client, PayloadError
from redistq.functions.blobs import LARGE, Parted, dump_parted, load_whole
from redistq.functions.pickling import dump

BIG = LARGE // 8  # numbers of eight bytes


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


class Model:
    """An object with a method, as estimators are."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def score(self, x: Any) -> float:
        return float(self.weights.sum()) + x


def numbers() -> Any:
    return numpy.random.default_rng(1).random(BIG * 4)


HOLDERS: dict[str, Callable[[], Any]] = {
    "a list": lambda: [numbers()],
    "a dict of dicts": lambda: {"data": {"x": numbers(), "y": "small"}},
    "an object": lambda: Model(numbers()),
    "a bound method": lambda: Model(numbers()).score,
    "a partial": lambda: functools.partial(print, numbers()),
    "a closure": lambda: (lambda x: lambda: x)(numbers()),
    "a frame": lambda: (pandas.DataFrame({"a": numbers(), "b": numbers()}),),
    "a sparse matrix": lambda: [sparse.csr_matrix(numbers().reshape(16, -1))],
    "columns first": lambda: [numpy.asfortranarray(numbers().reshape(16, -1))],
    "a view with gaps": lambda: [numbers()[::2]],
    "a masked array": lambda: [numpy.ma.masked_less(numbers(), 0.5)],
    "bytes": lambda: [numbers().tobytes()],
    "text": lambda: ["wörd " * LARGE],
}


def size_of_blobs(client: Client) -> int:
    """Bytes of all functions and arguments on the server."""
    keys = client.broker.call(("KEYS", "blob:*"))
    return sum(client.broker.call(("STRLEN", key)) for key in keys)


@pytest.mark.parametrize("what", HOLDERS)
@pytest.mark.parametrize("how", ["submit", "map", "joblib"])
def test_what_many_calls_hold_is_stored_once(client: Client, what: str, how: str) -> None:
    """Also deep inside their arguments, beside something that differs in each call."""
    holder = HOLDERS[what]()
    client.broker.call(("FLUSHALL",))
    session(client).blobs.forget()

    def take(pair: Any) -> int:
        return pair[1]

    pairs = [(holder, n) for n in range(6)]
    if how == "submit":
        assert [client.submit(take, pair).result(20) for pair in pairs] == list(range(6))
    elif how == "map":
        assert list(client.map(take, pairs)) == list(range(6))
    else:
        with joblib.parallel_config(backend="redistq", client=client):
            loop = joblib.Parallel(n_jobs=2, batch_size=2)
            assert loop(joblib.delayed(take)(pair) for pair in pairs) == list(range(6))
    assert size_of_blobs(client) < 1.3 * len(cloudpickle.dumps(holder)) + 10_000


def test_each_call_changes_its_own_copy(client: Client) -> None:
    """A writable array comes writable, a constant one constant; what is changed is changed once."""
    array, constant = numbers(), numbers()
    constant.flags.writeable = False

    def change(held: dict[str, Any]) -> tuple[float, bool]:
        held["x"][0] += 1
        return float(held["x"][0]), held["constant"].flags.writeable

    held = {"x": array, "constant": constant}
    first = float(array[0])
    assert {client.submit(change, held).result(20) for _ in range(4)} == {(first + 1, False)}
    assert float(array[0]) == first


def test_what_is_one_object_stays_one_and_equals_stay_two(client: Client) -> None:
    """As with the standard pickler, though both are stored under one name."""
    array = numbers()

    def same(held: list[Any]) -> list[bool]:
        held[0][0] = -1
        return [held[0] is other for other in held] + [float(other[0]) == -1 for other in held]

    held = [array, array, array.copy()]
    assert client.submit(same, held).result(20) == [True, True, False, True, True, False]


def test_a_call_larger_than_the_limit_travels_when_its_parts_do(client: Client) -> None:
    """Also when what is left without them is large: many small things in one argument."""
    many = {"rows": [f"row {n}" for n in range(60_000)], "x": numbers()}
    url = client.server.url  # type: ignore[attr-defined]
    client = Client(url, signing_key=KEY, max_payload_bytes=100_000)
    try:
        found = client.submit(lambda one, held: (one, len(held["rows"]), len(held["x"])), 1, many)
        assert found.result(20) == (1, 60_000, 4 * BIG)
    finally:
        client.close()


def test_a_failed_call_is_run_here_and_replayed_with_its_parts(client: Client) -> None:
    """And ``failures()`` shows the whole item."""

    def fail(held: dict[str, Any]) -> None:
        raise LookupError(f"{len(held['x'])} numbers")

    future = client.submit(fail, {"x": numbers()})
    assert "numbers" in str(future.exception(20))
    with pytest.raises(LookupError, match=f"{4 * BIG} numbers"):
        future.rerun_here()
    assert f"{4 * BIG} numbers" in str(future.replay().exception(20))
    batch = client.map_batch(fail, [{"x": numbers()}], name="with-parts")
    batch.wait(20)
    assert batch.failures().item[0]["x"].shape == (4 * BIG,)


def test_what_cannot_be_pickled_is_named_beside_large_parts(client: Client) -> None:
    """The way to it, and nothing is sent."""
    with pytest.raises(PayloadError, match=r"\['lock'\]"):
        client.submit(len, {"x": numbers(), "lock": threading.Lock()})


@pytest.mark.parametrize("threads", [1, 3])
def test_joblib_bounds_the_threads_of_calls(client: Client, threads: int) -> None:
    """``inner_max_num_threads`` reaches libraries that a worker loaded before."""

    def blas() -> set[int]:
        import numpy as np
        from threadpoolctl import threadpool_info

        np.dot(np.ones((9, 9)), np.ones((9, 9)))
        return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}

    with joblib.parallel_config(backend="redistq", client=client, inner_max_num_threads=threads):
        assert (
            joblib.Parallel(n_jobs=2)(joblib.delayed(blas)() for _ in range(2)) == [{threads}] * 2
        )


@pytest.mark.parametrize(
    ("mine", "seen"),
    [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3"), ({"OPENBLAS_NUM_THREADS": "5"}, "5")],
)
def test_a_pool_shares_the_cores_out(
    monkeypatch: pytest.MonkeyPatch, mine: dict[str, str], seen: str
) -> None:
    """As many worker processes as cores bring one BLAS thread each, unless the user says more."""
    from redistq.system.cores import VARIABLES, cores, environment

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    assert environment(cores())["OPENBLAS_NUM_THREADS"] == seen or cores() == 1
    assert environment(1).get("MKL_NUM_THREADS") is None or cores() < (os.cpu_count() or 1)
    assert environment(1, 7)["MKL_NUM_THREADS"] == environment(9, 7)["OMP_NUM_THREADS"] == "7"
    assert environment(10_000)["MKL_NUM_THREADS"] == mine.get("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 8),
        ({"pods/one/cpu.max": "max 100000", "pods/cpu.max": "300000 100000"}, 3),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_container_has_the_cores_of_its_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    """Of the new and the old kind, of its own group and those above."""
    from redistq.system import cores

    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/\n0::/pods/one\n")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cores.cores() == expected


def _blas_threads() -> list[int]:
    import numpy
    import threadpoolctl

    numpy.ones((2, 2)) @ numpy.ones((2, 2))
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


def test_numpy_has_as_many_threads_as_were_asked_for(url: str) -> None:
    """Libraries see the bound when they are loaded."""
    pytest.importorskip("threadpoolctl")
    for threads in (1, 2):
        with Client(url) as client:
            client.start_workers(1, blas_threads=threads)
            found = client.submit(_blas_threads).result(30)
            assert found
            assert set(found) == {threads}


def test_workers_of_a_pool_have_that_environment(client: Client) -> None:
    """Set before anything is imported there."""
    n = client.submit(os.getenv, "OMP_NUM_THREADS").result(20)
    assert n == os.environ.get("OMP_NUM_THREADS", "1" if (os.cpu_count() or 1) < 4 else n)


@given(
    st.recursive(
        st.one_of(
            st.integers(1, 3).map(lambda n: numpy.arange(n * BIG, dtype=float)),
            st.binary(min_size=1, max_size=2).map(lambda b: b * LARGE),
            st.text(min_size=1, max_size=3).map(lambda t: t * LARGE),
            st.integers(),
            st.none(),
        ),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        ),
        max_leaves=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_any_nesting_comes_back_as_it_was(value: Any) -> None:
    """Surrogates in text too."""
    stored: dict[str, bytes] = {}

    def store(part: Any) -> str:
        name = str(len(stored))
        stored[name] = bytes(part)
        return name

    def fetch(name: str, own: bool = False) -> bytes:
        return stored[name]

    parted = dump_parted([value, value], store)
    assert type(parted) is Parted
    assert len(parted.data) < LARGE
    numpy.testing.assert_equal(load_whole(dump(parted), fetch), [value, value])


def test_a_manager_is_reached_from_workers(client: Client, tmp_path: Path) -> None:
    """Proxies of this process's managers know its secret, as in multiprocessing's own pools."""
    from multiprocessing import Manager

    def add(shared: Any, n: int) -> None:
        shared.append(n)

    url = client.server.url  # type: ignore[attr-defined]
    with Manager() as manager, Client(url, signing_key=KEY) as client:
        client.start_workers(1)
        shared = manager.list()
        list(client.map(add, [shared] * 3, range(3)))
        assert sorted(shared) == [0, 1, 2]
