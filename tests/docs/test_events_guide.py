"""docs/events.md keeps its word: its Python runs and prints what it says, its words are ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program

from redistq.monitor import events

GUIDE, PYTHON = guide("events.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_the_guide_names_what_there_is() -> None:
    """Every type of event, and how often it is looked."""
    from redistq.web.routes import MOST_LISTENERS

    told = re.findall(r"^\| ((?:`\w+` ?)+)\|", GUIDE, re.M)
    types = {word for row in told for word in re.findall(r"`(\w+)`", row)}
    documented = set(re.findall(r"``(\w+)``", events.TaskEvent.__doc__ or ""))
    assert types == documented - {"type", "state", "cursor", "at_ms", "note"}
    assert events.INTERVAL_S == 0.2
    assert f"At most {MOST_LISTENERS} programs" in GUIDE
