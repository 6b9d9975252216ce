"""docs/streams.md keeps its word: its Python runs and prints what it says, its figures are ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

GUIDE, PYTHON = guide("streams.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_of_the_guide_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(PYTHON) == []


def test_the_guide_names_what_there_is() -> None:
    """Methods, errors, and the bounds."""
    import redistq
    from redistq import Client, TaskContext, TaskFuture, TaskProducer
    from redistq.producer import items as reading
    from redistq.protocol import items
    from redistq.worker import item_buffer, streaming

    kinds = {"context": TaskContext, "future": TaskFuture, "client": Client}
    kinds["producer"] = TaskProducer
    kinds["stream"] = reading.ItemStream
    for whose, kind in kinds.items():
        for name in re.findall(rf"`(?:await )?{whose}\.(\w+)", GUIDE):
            assert hasattr(kind, name) or name in ("task_id",), name
    for name in re.findall(r"^- `(\w+)`:", GUIDE, re.M):
        assert hasattr(redistq, name), name
    mega = 1024 * 1024
    assert (8 * mega, 64 * 1024) == (items.MAX_ITEM_BYTES, items.CHUNK_BYTES)
    assert (16 * mega, 64 * mega) == (streaming.WINDOW, streaming.KEEP)
    assert (0.05, mega) == (item_buffer.LATEST_S, item_buffer.MOST_AHEAD)
    assert streaming.LIFE_MS == 30 * 86_400_000
    assert reading.PATIENT_S == 120
