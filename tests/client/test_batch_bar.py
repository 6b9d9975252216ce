"""The bar of a batch: in a notebook HTML in three colours, in a terminal a line; how each ends."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from redistq.client import batch_bar
from redistq.client.batch_bar import BatchBar, batch_picture
from redistq.display import batches, notebook

COUNTS = {"total": 10, "succeeded": 0, "failed": 0, "cancelled": 0, "expired": 0, "retried": 0}
RUNNING = {**COUNTS, "succeeded": 4, "failed": 1, "waiting": 5}
ENDED = {**COUNTS, "succeeded": 7, "failed": 3, "waiting": 0}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is displayed, as if this were a kernel."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(batch_bar, "in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "publish", lambda **message: messages.append(message))
    monkeypatch.setattr(batch_bar, "DRAWN_EVERY_S", 0.0)
    return messages


def test_a_notebook_has_a_bar_in_three_colours(shown: list[dict[str, Any]]) -> None:
    """One place below the cell, put in place of itself, that ends with what can be done."""
    bar = BatchBar("pi", None)
    bar.show(RUNNING)
    bar.show(ENDED)
    bar.close()
    first, *others = shown
    assert "update" not in first
    assert {m["transient"]["display_id"] for m in others} == {first["transient"]["display_id"]}
    html = first["data"]["text/html"]
    assert "width:40.00%;background:#0072B2" in html
    assert "width:10.00%;background:#D1430A" in html
    assert "▶ running" in html
    last = others[-1]["data"]
    assert "<progress" not in last["text/html"]
    assert "⚠ ended with failures" in last["text/html"]
    assert ".retry_failed()" in last["text/html"]
    assert last["text/plain"].startswith("pi: 10 of 10 (100%), ⚠ ended with failures, 3 failed")


def test_a_wait_that_ends_before_its_batch_says_so(shown: list[dict[str, Any]]) -> None:
    """What was interrupted does not look as if it moved; what has ended before has no bar."""
    bar = BatchBar("pi", None)
    bar.show(RUNNING)
    bar.close()
    assert "the batch goes on" in shown[-1]["data"]["text/html"]
    shown.clear()
    bar = BatchBar("pi", None)
    bar.show(ENDED)
    bar.close()
    assert not shown


@pytest.mark.parametrize(
    ("ended", "color", "words"),
    [
        ({"succeeded": 10}, "32", "✔ ended"),
        ({"succeeded": 7, "failed": 3}, "33", "⚠ ended with failures"),
        ({"failed": 10}, "31", "✖ all failed"),
        ({"failed": 3, "cancelled": 7}, "31", "✖ nothing succeeded"),
        ({"succeeded": 9, "cancelled": 1}, "33", "⊘ ended, 1 cancelled"),
        ({"succeeded": 9, "expired": 1}, "33", "⊝ ended, 1 expired"),
    ],
)
def test_a_terminal_has_the_colour_of_the_end(
    monkeypatch: pytest.MonkeyPatch, ended: dict[str, int], color: str, words: str
) -> None:
    """Green, yellow where some did not succeed, red where nothing did."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = BatchBar("pi", None)
    counts = {**COUNTS, **ended, "waiting": 0}
    bar.show(RUNNING)
    bar.show(counts)
    bar.close()
    assert f"\x1b[{color}m" in terminal.getvalue().split("\r")[-1]
    assert batches.face_of(counts)[0] == words


def test_a_still_picture_has_its_time_and_the_next_step() -> None:
    """It does not move: it says when it was taken."""
    picture = batch_picture("Batch pi", RUNNING, 38_765_000)
    assert "at 10:46:05 UTC" in picture
    assert "5 waiting or running" in picture
    assert ".show()" in picture
    picture = batch_picture("Batch pi", ENDED, 38_765_000)
    assert ".failures()" in picture
    assert "7 succeeded · 3 failed" in picture
    assert ".show()" not in picture


def test_a_batch_of_nothing_took_no_time() -> None:
    """It has no end from which its time could be told: nothing is said, whenever one looks."""
    nothing = {**COUNTS, "total": 0}
    assert batches.more_said(nothing, 0.0, 440_000.0) == ""
    assert batches.more_said(ENDED, 0.0, 440_000.0).endswith("in 7 min 20 s")
