"""docs/testing.md keeps its word: its Python runs and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

from redistq.testing import TestQueue, crash, plugin, queue

GUIDE, PYTHON = guide("testing.md")
ROOT = Path(__file__).resolve().parents[2]
TESTS = [block for block in PYTHON if "def test_" in block.text]


@pytest.mark.parametrize(
    "block", [b for b in PYTHON if b not in TESTS], ids=lambda block: f"line-{block.line}"
)
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    assert not unsaid_prints([block])
    run_as_a_program(block, url, tmp_path)


@pytest.mark.parametrize("block", TESTS, ids=lambda block: f"line-{block.line}")
def test_a_test_of_the_guide_passes(block: Block, tmp_path: Path) -> None:
    """With nothing but the plugin."""
    (tmp_path / "test_shop.py").write_text(block.text)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "redistq.testing.plugin", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_guide_names_is_there() -> None:
    """Fixtures, points, methods and numbers."""
    for name in re.findall(r"^\| `(redistq_\w+)`", GUIDE, re.M):
        assert hasattr(plugin, name), name
    table = GUIDE.partition("| point |")[2]
    points = [p for row in re.findall(r"^\| (`.*?) \|", table, re.M) for p in row.split(", ")]
    assert {p.strip("`").partition(":")[0] for p in points} == set(crash.POINTS)
    for name in re.findall(r"queue\.(\w+)\(", GUIDE):
        assert hasattr(TestQueue, name), name
    assert queue.MOST_TASKS == 10_000
