"""Type checkers accept good code of applications, and refuse exactly the lines that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOOD = HERE / "sample_good.py"
WRONG = HERE / "sample_wrong.py"
MARK = "  # wrong: "


def ran(module: str, *options: str) -> str:
    """What a checker prints of the samples."""
    done = subprocess.run(
        [sys.executable, "-m", module, *options, str(GOOD), str(WRONG)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy() -> set[tuple[str, int, str]]:
    """Where mypy, strict, sees errors in the samples: the file's name, the line, the words."""
    printed = ran("mypy", "--strict", "--output=json").splitlines()
    return {
        (Path(error["file"]).name, error["line"], error["message"])
        for error in map(json.loads, printed)
        if error["severity"] == "error"
    }


def pyright() -> set[tuple[str, int, str]]:
    """As ``mypy``."""
    pytest.importorskip("pyright")
    printed = json.loads(ran("pyright", "--outputjson", "--pythonpath", sys.executable))
    return {
        (Path(error["file"]).name, error["range"]["start"]["line"] + 1, error["message"])
        for error in printed["generalDiagnostics"]
        if error["severity"] == "error"
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_samples(checker: Callable[[], set[tuple[str, int, str]]]) -> None:
    """No error in the one file; in the other each marked line has one, and no other has."""
    errors = checker()
    assert [error for error in sorted(errors) if error[0] == GOOD.name] == []
    lines = WRONG.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if MARK in line}
    found = {line for name, line, _ in errors if name == WRONG.name}
    assert len(marked) == 18
    assert found == marked, sorted(errors)
