"""Large values in a folder or a store instead of on the server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from support.clients import KEY, serving, session, threads_of
from support.workers import until

from redistq import Client, ConfigurationError, Spill, SpillError, UntrustedPayload, chain, sig
from redistq.client.readers import READERS, Readers
from redistq.functions import places, spill
from redistq.functions.signing import Signer

SIZE = 300_000
ABOVE = 100_000


def numbers(seed: int = 1) -> Any:
    return numpy.random.default_rng(seed).integers(0, 256, SIZE, dtype="uint8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all machines see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    """A client with two worker processes, whose large values go to the folder."""
    with serving(spill=Spill(str(folder), above=ABOVE)) as client:
        yield client


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def largest(client: Client) -> int:
    """The most bytes that any value has on the server."""
    broker = client.broker
    keys = broker.call(("KEYS", "*"))
    return max(broker.call(("MEMORY", "USAGE", key)) for key in keys)


def same(array: Any) -> Any:
    return array.copy()


def summed(arrays: Any) -> int:
    return int(sum(int(array.sum()) for array in arrays))


def test_large_values_go_to_the_folder_whatever_they_are_part_of(
    client: Client, folder: Path
) -> None:
    """Arguments, results, batches, streams, results of other calls, scattered values, tables."""
    array = numbers()
    total = int(array.sum())
    found = client.submit(same, array).result(20)
    numpy.testing.assert_array_equal(found, array)
    found[0] = 1
    assert client.submit(lambda held: {"x": held["x"] * 1}, {"x": array}).result(20)["x"].sum()
    first = client.submit(same, array)
    assert client.submit(summed, [first, array]).result(20) == 2 * total
    with client.scatter(array) as held:
        assert list(client.map(summed, [[held], [held, held]])) == [total, 2 * total]
    batch = client.map_batch(same, [array, array + 1], name="spilled")
    assert [int(one.sum()) for one in batch.results()] == [total, int((array + 1).sum())]
    assert len(client.map_batch(lambda n: {"x": numbers(n)}, [1, 2]).to_frame()) == 2
    assert [len(one) for one in client.map_stream(same, iter([array] * 3))] == [SIZE] * 3
    assert client.run(chain(sig(same, array), sig(len))).result(20) == SIZE
    compressed = client.submit(lambda: b"x" * 10 * SIZE).result(20)
    assert compressed == b"x" * 10 * SIZE
    assert largest(client) < 50_000
    names = {path.name.partition("-")[0] for path in files(folder)}
    assert names == {"argument", "result"}
    assert all(path.parent.parent == folder for path in files(folder))
    assert sum(path.stat().st_size for path in files(folder)) > 10 * SIZE


def test_what_was_changed_deleted_or_moved_is_refused(client: Client, folder: Path) -> None:
    """A result, and an argument of a call that waits."""

    def newest() -> Path:
        return max(files(folder), key=lambda path: path.stat().st_mtime_ns)

    batch = client.map_batch(numbers, [11], name="to-be-changed")
    batch.wait(20)
    path = newest()
    whole = path.read_bytes()
    other = client.submit(numbers, 12)
    other.result(20)
    another = newest().read_bytes()
    assert len(another) == len(whole)
    assert another != whole
    for content in (whole[:-1], whole + b"x", whole[:-1] + b"\0\1"[whole[-1] == 0 :][:1]):
        path.write_bytes(content)
        with pytest.raises(UntrustedPayload):
            batch.results()
    path.write_bytes(another)
    with pytest.raises(UntrustedPayload):
        batch.results()
    path.write_bytes(whole)
    assert len(batch.results()[0]) == SIZE
    path.unlink()
    with pytest.raises(SpillError, match="deleted, or that place is not shared"):
        batch.results()
    waiting = client.options(delay=0.5).submit(summed, [numbers(13)])
    newest().unlink()
    with pytest.raises(SpillError, match="send the call again"):
        waiting.result(20)


def test_reading_goes_on_once_there_can_be_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often none could be started."""
    threads: list[threading.Thread] = []
    readers, read = Readers(threads), threading.Event()

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(READERS + 1):
            with pytest.raises(RuntimeError):
                readers.run(read.set)
    assert not threads
    readers.run(read.set)
    assert read.wait(10)
    until(lambda: not threads, "the end of the thread")


def test_a_slow_store_holds_up_no_other_future(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result is read from its file beside the thread that reads the inbox; what goes wrong then
    is the error of its own future."""
    read = places._Folder.read
    asked, go_on = threading.Event(), threading.Event()

    def slow(self: Any, file: str, size: int) -> bytearray:
        asked.set()
        assert go_on.wait(30)
        return read(self, file, size)

    monkeypatch.setattr(places._Folder, "read", slow)
    spilled = [client.submit(numbers, seed) for seed in range(6)]
    assert asked.wait(20)
    assert client.submit(abs, -1).result(20) == 1
    assert not any(future.done() for future in spilled)
    go_on.set()
    assert [len(future.result(20)) for future in spilled] == [SIZE] * 6
    monkeypatch.setattr(places._Folder, "read", lambda *_: bytearray(8))
    with pytest.raises(UntrustedPayload, match="somebody has changed it"):
        client.submit(numbers, 1).result(20)
    until(lambda: len(threads_of(client)) == 2, "the end of the threads that read")


def test_files_go_once_nothing_names_them(client: Client, folder: Path) -> None:
    """With the last call that takes an argument, and with the record of a result; what is young
    stays, for its note may be on its way."""
    client.broker.call(("FLUSHALL",))
    session(client).blobs.forget()
    client.spill.sweep(0)
    assert files(folder) == []
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "notes.txt").write_text("not ours")
    for unfinished in ("result-00-none", "argument-00-none", f"1{places.UNFINISHED}"):
        (folder / "tasks" / unfinished).write_bytes(b"left by one that died")
    future = client.submit(same, numbers(77))
    future.result(20)
    held = client.scatter(numbers(5))
    assert client.spill.sweep() == 0
    assert client.spill.sweep(0) == 4  # with the argument, which nobody needs any more
    assert len(files(folder)) == 3  # result, what is held, and what is not ours
    held.release()
    assert client.spill.sweep(0) == 1
    assert len(client.future(future.task_id).result(20)) == SIZE
    client.broker.call(("UNLINK", client.keys.task(future.task_id)))
    assert client.spill.sweep(0) == 1
    assert [path.name for path in files(folder)] == ["notes.txt"]


def test_what_stands_in_the_way_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing package, a place that cannot be written, options that are none, and no place."""
    signer = Signer(KEY.encode())
    data = numbers().tobytes()
    for policy, words in (
        (Spill("gs://bucket/prefix"), "pip install 'redistq.spill.'"),
        (Spill("nothing://there"), "nothing"),
        (Spill(str(tmp_path / "file" / "below")), "cannot write"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(SpillError, match=words):
            spill.put(policy, signer, "result", "task", (data,), "tasks/one")
    for wrong in ({"above": "many"}, {"storage_options": {"key": object()}}, {"url": ""}):
        with pytest.raises(ConfigurationError):
            Spill(**{"url": "/tmp", **wrong})  # type: ignore[arg-type]
    monkeypatch.setenv("REDISTQ_SPILL", str(folder))
    with Client("redis://127.0.0.1:1", signing_key=KEY) as client:
        assert client.spill.policy == Spill(str(folder), above=16_000_000)
    monkeypatch.delenv("REDISTQ_SPILL")
    with (
        Client("redis://127.0.0.1:1", signing_key=KEY) as client,
        pytest.raises(ConfigurationError, match="keeps all on the server"),
    ):
        client.spill.sweep()


@pytest.mark.parametrize("scheme", ["", "file://", "local://", "memory://"])
def test_every_kind_of_place_does_the_same(scheme: str, tmp_path: Path) -> None:
    """A file appears whole, is read, listed with its age, and removed."""
    place = places.files_at(f"{scheme}{tmp_path}/deep", "{}")
    if scheme:
        assert type(place).__name__ == "_Remote"
    assert place.found("tasks") == []
    for name in ("tasks/a", "tasks/b"):
        place.write(name, (b"head", memoryview(numbers())))
    assert place.read("tasks/a", SIZE + 4) == b"head" + numbers().tobytes()
    assert len(place.read("tasks/a", 10)) != 10
    assert len(place.read("tasks/a", 2 * SIZE)) != 2 * SIZE
    found = dict(place.found("tasks"))
    assert set(found) == {"tasks/a", "tasks/b"}
    assert all(-1 < age < 30 for age in found.values())
    place.remove("tasks/a")
    place.remove("tasks/a")
    assert [name for name, _ in place.found("tasks")] == ["tasks/b"]
    with pytest.raises(SpillError):
        place.read("tasks/a", 5)
    if not scheme:
        assert os.listdir(tmp_path / "deep" / "tasks") == ["b"]
