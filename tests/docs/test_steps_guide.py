"""docs/steps.md keeps its word: its Python runs and prints what it says, its numbers are ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program

from redistq import AsyncTaskProducer, Client, TaskContext, TaskFuture, TaskProducer
from redistq.protocol import steps

GUIDE, PYTHON = guide("steps.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    """Limits that it states."""
    assert steps.MOST_STEPS == 1_000
    assert steps.MAX_STEP_BYTES == 1024**2
    assert steps.MAX_STEPS_BYTES == 16 * 1024**2
    assert steps.MAX_EVENT_BYTES == 64 * 1024
    assert steps.EVENT_KEPT_S == 7 * 86_400


def test_what_the_guide_names_is_there() -> None:
    """Methods in the table of futures, and those of contexts and producers."""
    for name in re.findall(r"^\| `(\w+)\(", GUIDE, re.M):
        assert hasattr(TaskFuture, name), name
    for name in re.findall(r"`context\.(\w+)", GUIDE):
        assert hasattr(TaskContext, name), name
    for owner in (TaskProducer, AsyncTaskProducer, Client):
        assert hasattr(owner, "send_event")
