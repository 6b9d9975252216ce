"""docs/gate.md keeps its word: its Python runs and prints what it says, its words are ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

GUIDE, PYTHON = guide("gate.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_of_the_guide_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(PYTHON) == []


def test_the_guide_names_what_there_is() -> None:
    """Options, conflicts, scopes, rules and what can be done with them."""
    from redistq.producer.limits import Limits
    from redistq.protocol import gate, limits
    from redistq.protocol.options import OPTIONS_OF_GATE

    assert set(re.findall(r"^\| `(\w+)=` \| \[", GUIDE, re.M)) == OPTIONS_OF_GATE
    assert {word for word in gate.CONFLICTS if f'| `"{word}"` |' in GUIDE} == set(gate.CONFLICTS)
    assert {word for word in gate.SCOPES if f'| `"{word}"` |' in GUIDE} == set(gate.SCOPES)
    assert {word for word in gate.POLICIES if f'`"{word}"`' in GUIDE} == set(gate.POLICIES)
    assert {word for word in limits.EXCESS if f'"{word}"' in GUIDE} == set(limits.EXCESS)
    for name in (n for n in vars(Limits) if not n.startswith("_")):
        assert f"`{name}(" in GUIDE, name
    assert f"At most {gate.MOST_PARENTS:,} parents" in GUIDE
    assert gate.MOST_PUSHED_S == 3600
