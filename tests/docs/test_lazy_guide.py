"""docs/lazy.md and docs/notebooks.md keep their word: their Python runs and prints what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

PYTHON = [block for name in ("lazy.md", "notebooks.md") for block in guide(name)[1]]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_runs(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_of_these_guides_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(PYTHON) == []
