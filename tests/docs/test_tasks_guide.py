"""docs/tasks.md keeps its word: its Python runs and prints what it says, and what it names is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

from redistq import TaskHandle
from redistq.handlers.typed_task import NAMES

GUIDE, PYTHON = guide("tasks.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_each_print_says_what_it_prints() -> None:
    """Behind it, as a comment."""
    assert unsaid_prints(PYTHON) == []


def test_what_the_guide_names_is_there() -> None:
    """Attributes of decorated functions, and those of handles."""
    assert set(re.findall(r"`(?:await )?add\.(\w+)[(`]", GUIDE)) >= {*NAMES} - {"s"}
    for name in ("result", "aresult", "astate", "acancel", "aprogress", "astream", "outcome"):
        assert f"{name}" in GUIDE
        assert hasattr(TaskHandle, name)
