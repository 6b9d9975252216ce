"""docs/long_tasks.md keeps its word: its Python runs and prints what it says, its figures are
ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

GUIDE, PYTHON = guide("long_tasks.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_of_the_guide_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(PYTHON) == []


def test_the_guide_names_what_there_is() -> None:
    """Methods of contexts and futures, and the bounds."""
    from redistq import TaskContext, TaskFuture, TaskProducer
    from redistq.protocol import progress
    from redistq.worker import limits, reporter

    for whose, kind in (("context", TaskContext), ("future", TaskFuture)):
        for name in re.findall(rf"`(?:await )?{whose}\.(\w+)", GUIDE):
            assert hasattr(kind, name), name
    assert hasattr(TaskProducer, "progress")
    assert "at most 64 kB" in GUIDE
    assert progress.MAX_CHECKPOINT == 64 * 1024
    assert f"{progress.MAX_TEXT}\n  characters" in GUIDE or f"{progress.MAX_TEXT} char" in GUIDE
    assert "at most four calls a second" in GUIDE
    assert reporter.CALLS_A_SECOND == 4
    assert "five seconds after `timeout`" in GUIDE
    assert limits.HARD_LIMIT_GRACE == 5
