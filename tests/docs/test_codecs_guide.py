"""docs/codecs.md keeps its word: its Python runs and prints what it says, its words are ours."""

from __future__ import annotations

import secrets
import tomllib
from pathlib import Path

import pytest
from support.documents import Block, blocks, guide, run_as_a_program, unsaid_prints

from redistq import Codec
from redistq.codecs.stages import Compress
from redistq.protocol.codec import DEFAULT_MAX_BYTES
from redistq.worker.settings import WorkerSettings

GUIDE, PYTHON = guide("codecs.md")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_says_what_it_prints() -> None:
    """No output is left to be guessed."""
    assert unsaid_prints(PYTHON) == []


def test_the_file_of_the_guide_is_one() -> None:
    """With keys that are long enough, its settings make a codec."""
    (block,) = (block for block in blocks(GUIDE) if block.language == "toml")
    found = tomllib.loads(block.text)
    keys = found["encrypt"]["keys"]
    found["encrypt"]["keys"] = {name: secrets.token_hex(32) for name in keys}
    assert "current 2026-11" in repr(Codec.of(found))


def test_the_figures_are_ours() -> None:
    """Sizes and times that the guide names."""
    assert f'`Compress("zlib")` | what is {Compress().least} bytes or longer' in GUIDE
    assert f"{DEFAULT_MAX_BYTES // (1024 * 1024)} MB at most (`max_payload_bytes`)" in GUIDE
    settings = WorkerSettings()
    assert settings.unknown_grace == 60
    assert "`--unknown-grace` (a minute)" in GUIDE
    assert settings.result_ttl == 86_400
    assert settings.dead_ttl == 30 * 86_400
