"""A batch found again by its name: results are used again for the same calls, and for no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, gate, serving

from redistq import Client, ConfigurationError, PayloadError
from redistq.client import resume


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with one worker process."""
    with serving(1) as client:
        yield client


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], list[str]]:
    """What has been run since it was asked the last time."""
    file = tmp_path / "log"
    file.touch()

    def read() -> list[str]:
        lines = sorted(file.read_text().split())
        file.write_text("")
        return lines

    return read


def square(log: str) -> Callable[[Any], Any]:
    def work(n: Any) -> Any:
        with open(log, "a") as file:
            file.write(f"{n}\n")
        return n * n

    return work


def cube(log: str) -> Callable[[Any], Any]:
    def work(n: Any) -> Any:
        with open(log, "a") as file:
            file.write(f"{n}\n")
        return n**3

    return work


Journal = Callable[[], list[str]]


def run(client: Client, fn: Any, items: Any, name: str, **how: Any) -> Any:
    return client.map_batch(fn, items, name=name, progress=False, **how).results(20)


def test_the_same_calls_run_once(
    client: Client, tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """The cell run again, with the function defined again, has its results; one line says so."""
    work = str(tmp_path / "log")
    assert run(client, square(work), range(3), "same") == [0, 1, 4]
    assert journal() == ["0", "1", "2"]
    assert caplog.text == ""
    assert run(client, square(work), [0, 1, 2], "same") == [0, 1, 4]
    assert journal() == []
    assert "3 of 3 results of batch 'same' are from an earlier run" in caplog.text


def test_other_items_run(
    client: Client, tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Position by position: those that are the same keep their results."""
    work = square(str(tmp_path / "log"))
    run(client, work, [1, 2, 3, 4], "mixed")
    journal()
    assert run(client, work, [1, 5, 3, 6], "mixed") == [1, 25, 9, 36]
    assert journal() == ["5", "6"]
    assert "2 of 4 results of batch 'mixed' are from an earlier run; 2 run now" in caplog.text
    caplog.clear()
    batch = client.map_batch(work, [7, 8, 9, 10], name="mixed", progress=False)
    assert batch.results(20) == [49, 64, 81, 100]
    assert "its items are others now: all 4 run now" in caplog.text
    assert batch.counts()["succeeded"] == batch.total == 4
    assert [i for i, _ in sorted(batch.as_completed(20))] == [0, 1, 2, 3]
    assert run(client, work, [4, 3, 2, 1], "mixed") == [16, 9, 4, 1]  # in another order: others


def test_another_function_runs_everything(
    client: Client, tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the items alone are to count; then the line says whose results they are."""
    log = str(tmp_path / "log")
    run(client, square(log), [1, 2], "fn")
    assert run(client, cube(log), [1, 2], "fn") == [1, 8]
    assert "the function has changed (resume='items' keeps" in caplog.text
    journal()
    caplog.clear()
    assert run(client, square(log), [1, 3], "fn", resume="items") == [1, 9]
    assert journal() == ["3"]
    assert "1 of 2 results" in caplog.text
    assert "with an earlier version of the function; 1 run now" in caplog.text
    assert run(client, square(log), [1, 3], "fn") == [1, 9]
    assert journal() == ["1"]  # the one that an older function made


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1, 2], [1.0, 2.0]),
        (["1"], [b"1"]),
        ([{"a": 1}], [{"a": 2}]),
        ([(1, [2])], [(1, [3])]),
        ([True], [1]),
    ],
)
def test_items_are_compared_by_content_and_type(
    client: Client, before: list[Any], after: list[Any]
) -> None:
    """What looks alike may be another item."""
    name = f"kinds-{type(after[0]).__name__}"
    assert run(client, lambda x: repr(x), before, name) == [repr(x) for x in before]
    assert run(client, lambda x: repr(x), after, name) == [repr(x) for x in after]


def test_failed_items_run_with_what_they_are_now(client: Client) -> None:
    """Another item in the place of one that failed, or that was cancelled."""

    def invert(n: int) -> float:
        return 1 / n

    with pytest.raises(ZeroDivisionError):
        run(client, invert, [1, 0, 2], "failing")
    assert run(client, invert, [1, 4, 2], "failing") == [1.0, 0.25, 0.5]
    assert client.batch("failing").counts()["failed"] == 0


def test_a_batch_at_work_is_not_given_other_items(client: Client, tmp_path: Path) -> None:
    """What waits or runs may be wanted: an error says how to go on, and nothing has changed."""
    wait_for_it, let_go = gate(tmp_path)

    def work(n: int) -> Any:
        return wait_for_it(), n

    batch = client.map_batch(work, [1, 2], name="busy", progress=False)
    for items in ([1, 3], [3, 2]):
        with pytest.raises(ConfigurationError, match="at work, with other items"):
            client.map_batch(work, items, name="busy", progress=False)
    with pytest.raises(ConfigurationError, match="with another version of the function"):
        client.map_batch(lambda n: n, [1, 2], name="busy", progress=False)
    again = client.map_batch(work, [1, 2], name="busy", progress=False)
    let_go()
    assert batch.results(20) == again.results(20) == [("went", 1), ("went", 2)]


def test_one_that_is_sent_again_is_at_work(client: Client, tmp_path: Path) -> None:
    """Its last end was a failure, but it waits or runs now, as it was."""
    wait_for_it, let_go = gate(tmp_path)
    flag = tmp_path / "flag"

    def work(n: int) -> Any:
        import os

        if not os.path.exists(str(flag)):
            raise OSError("not yet")
        return wait_for_it(), n

    batch = client.map_batch(work, [1], name="again", progress=False)
    assert batch.results(20, on_error="skip") == []
    flag.touch()
    assert batch.retry_failed() == 1
    with pytest.raises(ConfigurationError, match="still at work"):
        client.map_batch(work, [2], name="again", progress=False)
    let_go()
    batch.wait(20)
    assert run(client, work, [2], "again") == [("went", 2)]


def test_a_batch_without_a_record_of_its_calls_runs_anew(
    client: Client, tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Made by an earlier release, or cut off while it changed: that is said."""
    work = square(str(tmp_path / "log"))
    run(client, work, [1, 2], "old")
    client.broker.call(("DEL", client.keys.calls("old")))
    journal()
    assert run(client, work, [1, 2], "old") == [1, 4]
    assert journal() == ["1", "2"]
    assert "of which calls its results are is not known: all 2 run now" in caplog.text
    assert run(client, work, [1, 2], "old") == [1, 4]
    assert journal() == []


def test_a_change_that_is_cut_off_leaves_nothing_old(
    client: Client, tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was sent before the end: the next run has the results of its own items."""
    work = square(str(tmp_path / "log"))
    run(client, work, [1, 2, 3], "cut")
    real = resume.remember

    def killed(queue: Any, batch_id: str, digests: list[bytes]) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        real(queue, batch_id, digests)

    calls: list[int] = []
    monkeypatch.setattr(resume, "remember", killed)
    with pytest.raises(KeyboardInterrupt):
        client.map_batch(work, [4, 2, 5], name="cut", progress=False)
    monkeypatch.undo()
    client.batch("cut").wait(20)
    assert run(client, work, [1, 2, 3], "cut") == [1, 4, 9]
    assert run(client, work, [4, 2, 5], "cut") == [16, 4, 25]


def test_what_cannot_be_compared_is_refused_by_name(client: Client) -> None:
    """Before anything is sent; a batch without a name takes it."""
    lazy = iter([1, 2])
    items = [[1], [lazy]]
    with pytest.raises(PayloadError, match=r"item 1\[0\]|cannot be sent"):
        client.map_batch(lambda x: 1, [[1], [(n for n in range(3))]], name="gen", progress=False)
    assert client.map_batch(lambda x: 1, items, progress=False).results(20) == [1, 1]
    with pytest.raises(ConfigurationError, match="resume is True, False or 'items'"):
        client.map_batch(abs, [1], name="how", resume="yes")


def test_deleting_a_batch_forgets_its_calls(client: Client) -> None:
    """No key of it is left."""
    run(client, abs, [1], "gone")
    assert client.broker.call(("EXISTS", client.keys.calls("gone"))) == 1
    client.batch("gone").delete()
    assert client.broker.call(("EXISTS", client.keys.calls("gone"))) == 0


def test_another_kernel_finds_the_results(client: Client) -> None:
    """The same name, function and items in a client of its own."""
    assert run(client, lambda n: n + 1, [1, 2], "kernels") == [2, 3]
    other = Client(client.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    try:
        assert run(other, lambda n: n + 1, [1, 2], "kernels") == [2, 3]
    finally:
        other.close()
