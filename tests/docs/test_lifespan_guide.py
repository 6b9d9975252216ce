"""docs/lifespan.md keeps its word: its Python runs, its numbers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

from redistq.functions import setups
from redistq.worker import processor, provided, restarts
from redistq.worker.settings import WorkerSettings

GUIDE, PYTHON = guide("lifespan.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_printing_line_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(PYTHON) == []


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    """Times and counts that it states."""
    text = re.sub(r"\s+", " ", GUIDE)
    assert f"after {provided.SLOW_S:.0f} s" in text
    assert f"`--start-timeout` seconds ({WorkerSettings().start_timeout:.0f})" in text
    assert f"grows to {restarts.LONGEST_PAUSE_S:.0f} s" in text
    assert processor.LEAVE_S == 1.0
    assert setups.MOST_KEPT == 4
