"""Blocks of code in documents, which are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SKIP = "<!-- not run: "
DOCS = Path(__file__).resolve().parents[2] / "docs"


class Block(NamedTuple):
    """A fenced block of a document; `reason` says why it is not run, and is empty when it is."""

    line: int
    language: str
    text: str
    reason: str


def blocks(document: str) -> list[Block]:
    """All fenced blocks; an HTML comment `<!-- not run: REASON -->` just above one skips it."""
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", document, re.M | re.S):
        before = document[: match.start()].rstrip().rpartition("\n")[2]
        reason = before[len(SKIP) :].removesuffix("-->").strip() if before.startswith(SKIP) else ""
        found.append(Block(document.count("\n", 0, match.start()) + 1, match[1], match[2], reason))
    return found


def run_as_a_program(block: Block, url: str, tmp_path: Path) -> None:
    """Run a block by itself and compare what it prints with the comments behind `print`."""
    (tmp_path / "block.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "block.py"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "REDISTQ_URL": url},
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.M)
    assert done.stdout.splitlines() == promised


def guide(name: str) -> tuple[str, list[Block]]:
    """A document of docs/, and its blocks of Python."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return text, [block for block in blocks(text) if block.language == "python"]


def unsaid_prints(programs: list[Block]) -> list[str]:
    """Where a block prints without a comment that says what."""
    return [
        f"near line {block.line}: {line.strip()}"
        for block in programs
        for line in block.text.splitlines()
        if line.strip().startswith("print(") and "  # " not in line
    ]
