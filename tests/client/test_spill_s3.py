"""Large values in an object store that speaks S3: moto's server, on this machine alone.

pip install 'moto[server]' s3fs; where they are missing, this is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from support.clients import KEY, serving
from support.workers import until

from redistq import Client, Spill, SpillError

s3fs: Any = pytest.importorskip("s3fs")
moto: Any = pytest.importorskip("moto.server")

SIZE = 300_000


@pytest.fixture(scope="module")
def store() -> Iterator[Spill]:
    """A bucket, and what lets clients and workers in."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "key": "anybody",
            "secret": "anything",
            "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
        }
        s3fs.S3FileSystem(**options).mkdir("lake")
        yield Spill("s3://lake/queue", above=100_000, storage_options=options)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def client(store: Spill) -> Iterator[Client]:
    """A client with a worker process, whose large values go to the bucket."""
    with serving(1, spill=store) as client:
        yield client


def bucket(client: Client) -> Any:
    """The store, seen anew."""
    options = client.spill.policy.storage_options or {}
    return s3fs.S3FileSystem(**options, skip_instance_cache=True)


def kinds(client: Client) -> list[str]:
    """What lies in the bucket."""
    paths = bucket(client).find("lake")
    return sorted(path.rpartition("/")[2].partition("-")[0] for path in paths)


def test_arguments_and_results_go_by_s3(client: Client) -> None:
    """There and back, from several calls at once, and swept once nothing names them."""
    arrays = [numpy.random.default_rng(n).integers(0, 256, SIZE, dtype="uint8") for n in range(3)]
    futures = [client.submit(lambda array: array.copy(), array) for array in arrays]
    for future, array in zip(futures, arrays, strict=True):
        numpy.testing.assert_array_equal(future.result(60), array)
    assert kinds(client) == ["argument"] * 3 + ["result"] * 3
    assert client.spill.sweep() == 0, "what is young stays"
    until(lambda: client.spill.sweep(0) == 0, "the arguments are gone, the results are named")
    assert kinds(client) == ["result"] * 3
    for future in futures:
        client.broker.call(("UNLINK", client.keys.task(future.task_id)))
    assert client.spill.sweep(0) == 3
    assert kinds(client) == []


def test_what_was_deleted_there_is_said(client: Client) -> None:
    """The caller learns which file is missing, from where, and what to do."""
    future = client.submit(lambda: bytes(numpy.random.default_rng(9).bytes(SIZE)))
    future.result(60)
    again = Client(client.server.url, spill=client.spill.policy, signing_key=KEY)  # type: ignore[attr-defined]
    with again:
        bucket(again).rm("lake/queue", recursive=True)
        with pytest.raises(SpillError, match="send the call again"):
            again.future(future.task_id).result(60)
