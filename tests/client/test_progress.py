"""How far calls are: asked for from outside, drawn as bars, and said by functions themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import gate, serving
from support.workers import until

import redistq
from redistq import AsyncTaskProducer, ResultTimeout, TaskProducer, track
from redistq.client import Client, progress
from redistq.client.progress import TaskBar
from redistq.display import notebook
from redistq.display.text import SUCCEEDED
from redistq.protocol.progress import Progress


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with serving(2) as client:
        yield client


def test_a_function_says_how_far_it_is(client: Client, tmp_path: Path) -> None:
    """By the context of its task; whoever has the future or the id can ask."""
    wait_for_it, open_it = gate(tmp_path)

    def half() -> str:
        import redistq

        redistq.current_task().progress(5, 10, "half way")
        return wait_for_it()

    future = client.submit(half)
    found = until(future.progress, "a report")
    assert found[:3] == (5, 10, "half way")
    assert (found.fraction, found.total) == (0.5, 10)
    picture = future._repr_html_()
    assert "5 of 10 (50%) · half way" in picture
    assert "width:50.00%" in picture
    open_it()
    future.result(20)
    assert "5 of 10" not in future._repr_html_()


def test_track_counts_what_a_loop_has_done(client: Client) -> None:
    """As tqdm does; a total that the items do not say is given."""

    def work(total: int | None) -> int:
        from redistq import track

        items: Any = range(8) if total is None else (n for n in range(8))
        return sum(track(items, total=total, text="rows"))

    for total in (None, 8):
        future = client.submit(work, total)
        assert future.result(20) == 28
        found = future.progress()
        assert found is not None
        assert (found.total, found.text) == (8, "rows")


def test_track_outside_a_task_only_yields() -> None:
    """A function can be tried here."""
    assert list(track(range(3))) == [0, 1, 2]
    assert list(track(iter("ab"), total=2)) == ["a", "b"]


def test_show_draws_until_the_end(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar with its text; it returns the future, and says when the time is over."""
    wait_for_it, open_it = gate(tmp_path)

    def work() -> str:
        import redistq

        redistq.current_task().progress(30, 120, "rows")
        return wait_for_it()

    future = client.options(name="a long one").submit(work)
    until(future.progress, "a report")
    with pytest.raises(ResultTimeout):
        future.show(timeout=0.3)
    threading.Timer(0.3, open_it).start()
    assert future.show(timeout=20) is future
    drawn = capsys.readouterr().err
    assert "30/120" in drawn
    assert "25%" in drawn
    assert "rows" in drawn
    assert " 0/120" not in drawn


def test_a_task_that_says_nothing_has_no_bar(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """And none to ask for."""
    future = client.submit(abs, -1)
    assert future.show(timeout=20).result() == 1
    assert future.progress() is None
    assert capsys.readouterr().err == ""


def test_a_bar_has_the_rate_of_the_attempt() -> None:
    """However late it is opened; another attempt begins another bar."""
    now = [1010.0]
    bar = TaskBar("x", lambda: now[0])
    bar.draw(None)
    bar.draw(Progress(50, 100, "", 1000.0, 1010.0))
    assert bar._bar.format_dict["elapsed"] == pytest.approx(10, abs=2)
    assert "50/100" in str(bar._bar)
    now[0] = 1021.0
    bar.draw(Progress(2, 100, "again", 1020.0, 1021.0, 2))
    assert "2/100" in str(bar._bar)
    assert bar._bar.format_dict["elapsed"] == pytest.approx(1, abs=1)
    bar.draw(Progress(3, None, "", 1020.0, 1021.0, 2))
    bar.close(SUCCEEDED)


def test_a_notebook_keeps_the_bar_of_a_call(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HTML below the cell, in place of itself, that stays as the call ended, or as it was when it
    was waited for no longer."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(progress, "in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "publish", lambda **message: messages.append(message))
    wait_for_it, open_it = gate(tmp_path)

    def work() -> None:
        import redistq

        redistq.current_task().progress(30, 120, "rows <1>")
        wait_for_it()
        redistq.current_task().progress(60, 120)
        raise ValueError("half of it")

    future = client.options(name="a long one", retries=0).submit(work)
    until(future.progress, "a report")
    with pytest.raises(ResultTimeout):
        future.show(timeout=0.3)
    first, *others = messages
    assert "30 of 120 (25%) · rows &lt;1&gt;" in first["data"]["text/html"]
    assert "width:25.00%" in first["data"]["text/html"]
    assert "▶ running" in first["data"]["text/html"]
    assert first["data"]["text/plain"].startswith("a long one: 30 of 120 (25%) · rows <1>, ▶ runn")
    assert others[-1]["transient"]["display_id"] == first["transient"]["display_id"]
    assert "it goes on" in others[-1]["data"]["text/html"]
    messages.clear()
    open_it()
    assert future.show(timeout=20) is future
    last = messages[-1]["data"]
    assert last["text/plain"] == "a long one: 60 of 120 (50%), ✖ failed"
    assert "width:50.00%" in last["text/html"]


def test_a_batch_draws_itself_when_asked(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody would see a bar, too; its still picture has one in the colours of the ends."""

    def work(n: int, go: str) -> int:
        import os
        import time

        while not os.path.exists(go):
            time.sleep(0.01)
        return 1 // n

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        go = f"{folder}/go"
        threading.Timer(0.3, lambda: Path(go).touch()).start()
        batch = client.map_batch(lambda n: work(n, go), [1, 2, 0, 3])
        assert batch.show(timeout=20) is batch
    assert "4/4" in capsys.readouterr().err
    picture = batch._repr_html_()
    assert "4 of 4 (100%)" in picture
    assert "width:75.00%;background:#0072B2" in picture
    assert "width:25.00%;background:#D1430A" in picture


def test_producers_ask_too(url: str, db: Any) -> None:
    """With or without await; of what is unknown there is nothing."""
    db.hset("task:tasks:a", "progress", "2 3 - 1000 2000 a text")
    wanted = Progress(3, None, "a text", 1.0, 2.0, 2)
    with TaskProducer(url=url) as producer:
        assert producer.progress("a") == wanted
        assert producer.progress("unknown") is None

    async def ask() -> Progress | None:
        async with AsyncTaskProducer(url=url) as asked:
            return await asked.progress("a")

    assert asyncio.run(ask()) == wanted


@pytest.mark.parametrize(
    ("progress", "rate", "eta"),
    [
        (Progress(50, 100, "", 0, 10), 5, 10),
        (Progress(0, 100, "", 0, 10), None, None),
        (Progress(5, None, "", 0, 10), 0.5, None),
        (Progress(120, 100, "", 0, 10), 12, 0),
    ],
)
def test_rate_and_time_left(progress: Progress, rate: Any, eta: Any) -> None:
    """On average since the attempt began."""
    assert progress.rate == rate
    assert progress.eta_s == eta
    assert progress.fraction is None or progress.fraction <= 1


def test_names_are_there() -> None:
    """From the package itself."""
    assert redistq.Progress is Progress
    assert redistq.track is track
