"""A batch that gets more items: named the same and sent again with more, or extended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import gate, serving, session

from redistq import Client, ConfigurationError, UnknownBatch
from redistq.client import growth


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with one worker process."""
    with serving(1) as client:
        yield client


def noting(log: Path, factor: int = 1) -> Any:
    """A function that writes down what it is called with."""
    path = str(log)

    def work(n: int) -> int:
        with open(path, "a") as file:
            file.write(f"{n} ")
        return n * n * factor

    return work


def taken(log: Path) -> str:
    """What has been run since this was asked the last time."""
    text = log.read_text() if log.exists() else ""
    log.write_text("")
    return " ".join(sorted(text.split(), key=int))


def test_the_same_name_with_more_items_runs_those(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New ones after those that are known, which keep their results; what is ambiguous is said."""
    log = tmp_path / "log"
    made = client.map_batch(noting(log), [1, 2], name="grown", progress=False)
    assert made.results(20) == [1, 4]
    assert taken(log) == "1 2"
    more = client.map_batch(noting(log), [1, 2, 3, 4], name="grown", progress=False)
    assert more.results(20) == [1, 4, 9, 16]
    assert taken(log) == "3 4"
    assert more.counts()["total"] == more.counts()["succeeded"] == more.total == 4
    assert "2 of 4 results of batch 'grown' are from an earlier run; 2 run now" in caplog.text
    assert client.batch("grown").results(20) == [1, 4, 9, 16]
    with pytest.raises(ConfigurationError, match=r"item 0 is another .*extend\(items, fn=fn\)"):
        client.map_batch(noting(log), [0, 1, 2, 3, 4], name="grown")
    with pytest.raises(ConfigurationError, match="started with 2 items and has 1 now"):
        client.map_batch(noting(log), [1], name="grown")
    assert client.batch("grown").total == 4
    assert client.map_batch(noting(log, 2), range(1, 6), name="grown").results(20)[4] == 50
    assert taken(log) == "1 2 3 4 5"  # all of them, for the function is another


def test_a_notebook_that_extends_a_batch_runs_again(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cell by cell from the top: nothing runs twice, and nothing is there twice."""
    log = tmp_path / "log"
    for expected in ("0 1 2 3", ""):
        batch = client.map_batch(noting(log), range(2), name="cells", progress=False)
        batch.extend([2])
        batch.extend(iter([3]))
        assert batch.results(20) == [0, 1, 4, 9]
        assert taken(log) == expected
    assert "has 2 more items, which were added later" in caplog.text
    batch = client.map_batch(noting(log, 3), range(2), name="cells", progress=False)
    batch.extend([2, 3])
    assert batch.results(20) == [0, 3, 12, 27]
    assert taken(log) == "0 1 2 3"
    batch = client.map_batch(noting(log, 3), range(2), name="cells", progress=False)
    with pytest.raises(ConfigurationError, match="other items after its first 2 by now"):
        batch.extend([7])
    found = client.batch("cells")
    with pytest.raises(ConfigurationError, match=r"batch\.extend\(items, fn=fn\)"):
        found.extend([7])
    found.extend([7], fn=noting(log, 3))
    assert found.results(20)[4] == 147
    found.delete()
    with pytest.raises(UnknownBatch):
        found.extend([8], fn=abs)


def test_a_batch_is_extended_by_what_it_finds(client: Client) -> None:
    """As its results come, without a name, and by two clients at the same time."""

    def links(n: int) -> list[int]:
        return [2 * n, 2 * n + 1] if n < 8 else []

    batch = client.map_batch(links, [1], progress=False)
    seen = []
    for position, found in batch.as_completed(20):
        seen.append(position)
        batch.extend(found)
    assert sorted(seen) == list(range(15))
    assert batch.total == 15
    assert batch.counts()["waiting"] == 0
    one, other = client.batch(batch.id), client.batch(batch.id)
    one.extend([8, 9], fn=links)
    other.extend([10], fn=links)
    assert client.batch(batch.id).results(20)[-3:] == [[], [], []]
    assert client.batch(batch.id).total == 18


def test_a_growth_that_was_cut_off_goes_on(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any step: the same call, made again, sends what is missing; no end is early."""
    wait, go = gate(tmp_path)
    batch = client.map_batch(lambda n: wait() if n == 0 else n, [0, 1], name="cut", progress=False)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(batch), "_send", dies)
        with pytest.raises(KeyboardInterrupt):
            batch.extend([2, 3])
    go()
    with pytest.raises(TimeoutError):
        client.batch("cut").wait(0.5)
    batch.extend([2, 3])
    assert batch.results(20) == ["went", 1, 2, 3]
    queue = session(client).queue()
    assert growth.grow(queue, "cut", 2, growth.names_of(queue, "cut", 2, 4)) == set()
    assert growth.total_of(queue, "cut") == 4
