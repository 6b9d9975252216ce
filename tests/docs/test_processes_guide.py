"""docs/processes.md keeps its word: its Python runs, its commands are accepted, its figures are
ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

from redistq.cli.worker import parser
from redistq.cli.worker_options import settings_of
from redistq.system.cores import VARIABLES
from redistq.worker import autoscale, renewal, supervisor

GUIDE, PYTHON = guide("processes.md")
COMMANDS = re.findall(r"^    python -m redistq\.worker (.*)$", GUIDE, re.M)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_of_the_guide_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(PYTHON) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command: str) -> None:
    """With its options' values."""
    assert settings_of(parser().parse_args(shlex.split(command)))


def test_its_figures_are_ours() -> None:
    """Times, shares and names of variables."""
    text = " ".join(GUIDE.split())
    assert all(f"`{name}`" in GUIDE for name in VARIABLES)
    assert "Every two seconds the supervisor asks" in text
    assert autoscale.LOOK_S == 2
    assert "in the last 20 seconds" in text
    assert autoscale.RATE_OVER_S == 20
    assert "longer than ten seconds, in two looks" in text
    assert autoscale.LONG_S == 10
    assert "none for six seconds" in text
    assert autoscale.SETTLE_S == 6
    assert "nothing has waited for 30 seconds" in text
    assert autoscale.CALM_S == 30
    assert "no more than 70 % of the others" in text
    assert autoscale.ROOM == 0.7
    assert "within five minutes" in text
    assert autoscale.SOON_S == 300
    assert "up to ten minutes" in text
    assert autoscale.LONGEST_CALM_S == 600
    assert "up to a tenth later" in text
    assert renewal.SPREAD == 0.1
    assert "looks ten times a second" in text
    assert supervisor.MEMORY_LOOK_S == 0.1
    assert "50 ms at first and 15 seconds at most" in text
