"""batch.update: another version of the function under a fan-out that runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from support.clients import KEY, serving, session
from support.workers import until

from redistq import Client, ConfigurationError, TaskMonitor, UnknownBatch, UntrustedPayload
from redistq.client.update import version_of
from redistq.connection.address import resolve
from redistq.connection.broker import Broker
from redistq.errors import ServerUnavailable
from redistq.functions.signing import Signer
from redistq.functions.versions import LOOK_S, BatchVersions, Version, version_in, versioned
from redistq.protocol.keys import QueueKeys


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def held_at(folder: Path, held: set[int], word: str) -> Callable[[int], str]:
    """A function that says who made it; for some items it waits until it is let go."""
    path = str(folder / "go")

    def work(n: int) -> str:
        import os
        import time

        if n in held:
            open(f"{path}-{n}", "w").close()
            while not os.path.exists(path):
                time.sleep(0.005)  # a poll: processes share no better signal than a file
        return f"{word} {n}"

    return work


def starts(folder: Path, count: int) -> None:
    """Wait until so many items hold their workers."""
    until(lambda: len(list(folder.glob("go-*"))) == count, "the items run", 20)


def test_what_has_not_started_is_of_the_new_version(client: Client, tmp_path: Path) -> None:
    """What runs goes on, and each result says which version made it."""
    batch = client.map_batch(held_at(tmp_path, {0, 1}, "old"), range(30))
    starts(tmp_path, 2)
    assert batch.update(held_at(tmp_path, set(), "new")) == 2
    (tmp_path / "go").touch()
    results = batch.results(20)
    assert results[:2] == ["old 0", "old 1"]
    assert results[2:] == [f"new {n}" for n in range(2, 30)]
    assert batch.versions() == {0: 1, 1: 1, **dict.fromkeys(range(2, 30), 2)}
    with TaskMonitor(address=client.address) as monitor:
        assert monitor.batches.loc[batch.id, "version"] == 2
        names = set(monitor.get_recent_tasks(30)["name"])
    assert any(name.endswith("(version 2)") for name in names)


def test_none_starts_with_an_earlier_version_once_it_has_returned(client: Client) -> None:
    """While it goes at full speed, three times."""

    def stamped(version: int) -> Callable[[int], Any]:
        def work(n: int) -> tuple[int, float]:
            import time

            started = time.time()
            time.sleep(0.002)
            return version, started

        return work

    batch = client.map_batch(stamped(1), range(900))
    returned = {}
    for version in (2, 3):
        assert batch.update(stamped(version)) == version
        returned[version] = time.time()
    results = batch.results(60)
    assert {version for version, _ in results} >= {1, 3}
    for version, started in results:
        for newer, since in returned.items():
            # A process may be interrupted between its look and the first line of the function.
            assert version >= newer or started < since + LOOK_S / 2, (version, started - since)
    assert batch.versions() == {i: version for i, (version, _) in enumerate(results)}


def test_old_results_are_made_again_when_that_is_asked_for(client: Client, tmp_path: Path) -> None:
    """Of the newest version all is new; what is new already is left alone."""
    batch = client.map_batch(held_at(tmp_path, {9}, "old"), range(10))
    starts(tmp_path, 1)
    until(lambda: batch.counts()["succeeded"] == 9, "all others are done", 20)
    new = held_at(tmp_path, set(), "new")
    assert batch.update(new, rerun="old") == 2
    until(lambda: batch.counts()["succeeded"] == 9, "they are done again", 20)
    (tmp_path / "go").touch()
    assert batch.results(20) == [*(f"new {n}" for n in range(9)), "old 9"]
    assert batch.update(new, rerun="old") == 2, "the same function is no other version"
    assert batch.results(20) == [f"new {n}" for n in range(10)]
    assert batch.counts()["succeeded"] == 10
    assert set(batch.versions().values()) == {2}


def test_another_kernel_gives_the_items(client: Client) -> None:
    """What has succeeded keeps no arguments."""
    started = client.map_batch(lambda n: n, range(5), name="elsewhere")
    started.wait(20)
    batch = client.batch("elsewhere")
    with pytest.raises(ConfigurationError, match="give the batch's items"):
        batch.update(lambda n: n + 1, rerun="old")
    with pytest.raises(ConfigurationError, match="has 5 items, and 4 were given"):
        batch.update(lambda n: n + 1, rerun="old", items=range(4))
    assert batch.versions() == dict.fromkeys(range(5), 1), "nothing was changed"
    assert batch.update(lambda n: n + 1, rerun="old", items=range(5)) == 2
    assert batch.results(20) == [1, 2, 3, 4, 5]


def test_what_failed_is_tried_again_with_the_mended_function(client: Client) -> None:
    """Its error says which version it was."""

    def broken(n: int) -> float:
        return 1 / n

    def less_broken(n: int) -> float:
        return 1 / (n - 1)

    batch = client.map_batch(broken, range(3))
    batch.wait(20)
    assert batch.failures()["version"].to_dict() == {0: 1}
    batch.update(less_broken)
    assert batch.retry_failed() == 1
    assert batch.results(20)[0] == -1.0
    assert batch.versions() == {0: 2, 1: 1, 2: 1}
    batch.update(broken, rerun="old")
    batch.wait(20)
    assert batch.failures()["version"].to_dict() == {0: 3}
    assert batch.versions() == {0: 3, 1: 3, 2: 3}


def test_a_batch_of_another_priority_is_updated_too(client: Client) -> None:
    """Its record stands in the queue of that priority."""
    fast = client.options(priority="high", retries=1)
    batch = fast.map_batch(lambda n: n, range(4))
    batch.wait(20)
    assert batch.update(lambda n: -n, rerun="old") == 2
    assert batch.results(20) == [0, -1, -2, -3]


def resumed(client: Client, fn: Callable[..., Any], items: list[int]) -> tuple[list[Any], set[int]]:
    """Results of a batch that is found again, and which versions made them."""
    batch = client.map_batch(fn, items, name="again")
    return batch.results(20), set(batch.versions().values())


def test_a_batch_that_is_resumed_knows_which_function_made_what(
    client: Client, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results count for the function that made them, whatever the batch began with."""

    def first(n: int) -> str:
        return f"first {n}"

    def second(n: int) -> str:
        return f"second {n}"

    items = [1, 2, 3]
    batch = client.map_batch(first, items, name="again")
    batch.wait(20)
    batch.update(second)
    caplog.set_level("INFO")
    # Nothing ran since: the results are the first's, and it is asked for the second's.
    assert resumed(client, second, items) == ([f"second {n}" for n in items], {2})
    caplog.clear()
    assert resumed(client, second, items) == ([f"second {n}" for n in items], {2})
    assert resumed(client, first, items) == ([f"first {n}" for n in items], {3})
    assert resumed(client, first, items) == ([f"first {n}" for n in items], {3})
    assert resumed(client, second, items) == ([f"second {n}" for n in items], {4})


def test_what_is_at_work_on_another_version_is_not_taken_over(
    client: Client, tmp_path: Path
) -> None:
    """It would be other calls that wait."""
    old, new = held_at(tmp_path, {0}, "old"), held_at(tmp_path, set(), "new")
    batch = client.map_batch(old, [0, 1], name="busy")
    starts(tmp_path, 1)
    batch.update(new)
    with pytest.raises(ConfigurationError, match="still at work"):
        client.map_batch(old, [0, 1], name="busy")
    (tmp_path / "go").touch()
    batch.wait(20)


def test_a_function_that_nobody_signed_runs_nowhere(client: Client) -> None:
    """Nor does one that was signed for another batch, or another kind of packet."""
    inside = session(client)
    queue = inside.queue()
    idle = client.options(delay=0.3)
    needs: list[str] = []
    name = inside.packer.store_function(abs, 600, needs)
    good = Version(2, name)
    stream = queue.commands.keys.stream
    packets = [
        b"evil",
        good.packed(inside.signer, stream, "other"),
        inside.signer.pack("function", name, b'[2,"x"]'),
    ]
    for packet in packets:
        batch = idle.map_batch(lambda n: n, [-1])
        assert client.broker.call(queue.commands.update_batch(batch.id, 2, packet, "")) == 2
        with pytest.raises(UntrustedPayload):
            version_of(queue, batch.id)
        with pytest.raises(UntrustedPayload):
            batch.results(20)
    batch = idle.map_batch(lambda n: n, [-1])
    packet = good.packed(inside.signer, stream, batch.id)
    assert client.broker.call(queue.commands.update_batch(batch.id, 2, packet, "")) == 2
    assert batch.results(20) == [1]


def test_two_clients_make_two_versions(client: Client) -> None:
    """Sent again, it finds itself; a batch that is gone is not made anew."""
    queue = session(client).queue()
    batch = client.map_batch(abs, [1])
    batch.wait(20)

    def put(version: int, packet: bytes) -> Any:
        return client.broker.call(queue.commands.update_batch(batch.id, version, packet, ""))

    assert put(2, b"a") == 2
    assert put(2, b"a") == 2
    assert put(2, b"b") == -2
    assert put(3, b"b") == 3
    assert put(5, b"c") == -3
    batch.delete()
    assert put(2, b"a") == 0
    with pytest.raises(UnknownBatch):
        batch.update(abs)


def test_what_is_no_function_is_refused(client: Client) -> None:
    """At the call; nothing is changed."""
    batch = client.map_batch(abs, [1])
    with pytest.raises(TypeError, match="takes a function"):
        batch.update("abs")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="rerun is 'old' or None"):
        batch.update(abs, rerun="all")
    batch.wait(20)
    assert batch.versions() == {0: 1}


def test_calls_of_no_batch_pay_nothing_and_those_of_one_next_to_nothing(url: str) -> None:
    """Ten looks a second and process, however many items run."""

    def hgets(db: redis.Redis) -> int:
        info: Any = db.info("commandstats")
        return int(info.get("cmdstat_hget", {"calls": 0})["calls"])

    with Client(url, signing_key=KEY) as client, redis.Redis.from_url(url) as db:
        client.start_workers(1)
        client.submit(abs, -1).result(20)
        db.config_resetstat()
        assert len(list(client.map(abs, range(300)))) == 300
        assert hgets(db) == 0
        began = time.monotonic()
        client.map_batch(abs, range(2_000), progress=False).wait(60)
        took = time.monotonic() - began
        assert 1 <= hgets(db) <= took / LOOK_S + 5


def test_names_say_which_version() -> None:
    """And what is no version of ours is the first."""
    assert version_in(versioned("redistq.call:fit", 3).encode()) == 3
    assert versioned("redistq.call:fit", 1) == "redistq.call:fit"
    for name in (None, b"", b"redistq.call:fit", b"fit (version )", b"fit (version 2) again"):
        assert version_in(name) == 1


def test_an_item_waits_while_it_cannot_be_known_which_version_it_is_of(url: str) -> None:
    """A server that is away for a while fails no item; one that is asked to end does not wait."""
    broker = Broker(resolve(url), timeout=1)
    signer = Signer(KEY.encode())
    versions = BatchVersions(broker, QueueKeys("tasks"), signer)
    packet = Version(2, "name").packed(signer, "tasks", "b")
    answers: list[Any] = [ServerUnavailable("away"), ServerUnavailable("away"), packet]

    def call(command: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    broker.call = call  # type: ignore[method-assign,assignment]
    context: Any = SimpleNamespace(_batch="b", cancelled=False)
    assert versions.newest(context) == Version(2, "name")
    assert versions.newest(context) == Version(2, "name"), "it looks once in a while"
    assert answers == []
    answers.append(ServerUnavailable("away"))
    context = SimpleNamespace(_batch="other", cancelled=True)
    with pytest.raises(ServerUnavailable):
        versions.newest(context)
    assert versions.newest(SimpleNamespace(_batch="", cancelled=False)) is None  # type: ignore[arg-type]
    broker.close()
