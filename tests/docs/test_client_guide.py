"""docs/client.md keeps its word: its Python runs and prints what it says, its numbers are ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

GUIDE, PYTHON = guide("client.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_of_the_guide_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(PYTHON) == []


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    """Limits and times that it states."""
    from redistq.client import batch, pending, results, resume
    from redistq.functions import blobs
    from redistq.functions import output as task_output
    from redistq.protocol import codec
    from redistq.protocol.options import CallKeywords
    from redistq.worker import attempt
    from redistq.worker.settings import WorkerSettings

    assert codec.DEFAULT_MAX_BYTES == 8 * 1024**2
    assert blobs.MAX_BLOB_BYTES == attempt.MAX_RAW_RESULT == 256 * 1024**2
    assert (task_output.MAX_BYTES, task_output.MAX_ENTRIES) == (256 * 1024, 2_000)
    assert blobs.BLOB_TTL_S == batch.BATCH_TTL_S == 7 * 86_400
    assert resume.OPEN_TTL_MS == 30 * 86_400_000
    assert blobs.LARGE == 64 * 1024
    assert results.GIVE_UP_S == 120
    assert WorkerSettings().result_ttl == 86_400
    assert pending.TAKEN_TTL_S == 600
    (row,) = re.findall(r"^\| `options\(\.\.\.\)` \|.* with (.*) \|$", GUIDE, re.M)
    named = set(re.findall(r"`(\w+)`", row))
    assert named == set(CallKeywords.__annotations__)


def test_what_the_guide_names_is_there() -> None:
    """Methods in the tables exist."""
    from redistq import Batch, Client

    for name in re.findall(r"^\| `(\w+)\(", GUIDE, re.M):
        assert hasattr(Client, name) or hasattr(Batch, name), name
