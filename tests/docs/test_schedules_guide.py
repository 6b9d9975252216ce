"""docs/schedules.md keeps its word: its Python runs and prints what it says, its words are ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program

from redistq.producer.schedules import Schedules
from redistq.protocol import schedules, timing

GUIDE, PYTHON = guide("schedules.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_the_guide_names_what_there_is() -> None:
    """Calls, words, rules and bounds."""
    for word in (*schedules.MISSED, *schedules.OVERLAP):
        assert f'| `"{word}"` |' in GUIDE, word
    for name in (n for n in vars(Schedules) if not n.startswith("_")):
        assert f"`{name}(" in GUIDE, name
    for rule in re.findall(r'`cron="([^"]+)"`', GUIDE):
        assert timing.Timing.of(rule, None).words
    for option in schedules.OPTIONS_OF_SCHEDULES:
        assert f"`{option}`" in GUIDE, option
    assert f"most {schedules.MOST_SCHEDULES:,} schedules" in GUIDE
    assert f"more than {schedules.MOST_MISSED:,} the latest" in GUIDE
    assert f"{timing.LEAST_EVERY_S:g} seconds at least" in GUIDE
    assert timing.AGAIN_MS == 10_000
    assert timing.GRACE_MS == 60_000
