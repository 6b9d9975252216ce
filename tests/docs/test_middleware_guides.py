"""docs/middleware.md and docs/batch_handlers.md keep their word: their Python runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

import redistq
from redistq import Middleware, Settled
from redistq.handlers import batching
from redistq.middleware import HOOKS
from redistq.protocol import headers
from redistq.worker import hooks

MIDDLEWARE, FIRST = guide("middleware.md")
BATCHES, SECOND = guide("batch_handlers.md")


@pytest.mark.parametrize("block", [*FIRST, *SECOND], ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guides_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_says_what() -> None:
    """So that it is looked at."""
    assert unsaid_prints([*FIRST, *SECOND]) == []


def test_the_numbers_of_the_guides_are_those_of_the_code() -> None:
    """Limits that they state."""
    assert headers.MAX_HEADERS_BYTES == 8192
    assert headers.LONGEST_HEADER == 200
    assert headers.VARIABLE == "var:"
    assert hooks.MOST_UNTOLD == 1_000
    assert batching.MOST_TOGETHER == 1_000
    assert batching.WITHIN_S == 0.1


def test_what_the_guides_name_is_there() -> None:
    """Hooks, and the fields of what they are given."""
    for name in HOOKS:
        assert f"`{name}(" in MIDDLEWARE
        assert hasattr(Middleware, name)
    for name in Settled.__dataclass_fields__:
        assert f"`{name}`" in MIDDLEWARE or f"settled.{name}" in MIDDLEWARE
    for name in ("BatchContext", "BatchErrors", "Middleware", "NewTask", "travels"):
        assert hasattr(redistq, name)
