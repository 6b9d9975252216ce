"""The examples, each run as a user runs it: by itself, ending by itself, saying what it should."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

LINES = {
    "word_statistics.py": [
        "retried",
        "dead letters",
        "recovered",
        "Dead letter: FileNotFoundError: [Errno 2] No such file or directory: '/lost.py'",
        "Every file was counted exactly once.",
    ],
    "basic_usage.py": [
        "area:     12",
        "squares:  [1, 4, 9, 16, 25]",
        "retried:  done at attempt 3",
        "failed:   Fail: no such customer: 42",
        "status:   failed after 1 attempt, payload {'customer': 42}",
    ],
    "multiprocess_workers.py": [
        "1 process: 33,860 primes below 400,000",
        "2 processes: 33,860 primes below 400,000",
    ],
    "sentry.py": [
        "charged",
        "ConnectionError in charge, attempt 2, after: ['customer 2']",
        "failed for good:",
    ],
    "monitor_demo.py": ["seconds     ready   pending   delayed succeeded   retried"],
}


def run(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example in another folder than its own, on a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


SERVED = {"fastapi_app.py"}
"""Those that a server runs: tests/contrib."""


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - SERVED))
def test_an_example_runs_by_itself_and_says_what_it_should(
    name: str, url: str, tmp_path: Path
) -> None:
    """Each example ends with exit code 0, with its essential lines, and without a word of alarm."""
    done = run(name, tmp_path, REDISTQ_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    # The test server has no persistence, which a worker rightly warns about.
    said = [line for line in done.stderr.splitlines() if "keeps nothing on disk" not in line]
    assert said == []
    for line in LINES[name]:
        assert line in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_the_demo_runs_again_and_leaves_no_dead_letter(
    url: str, tmp_path: Path, db: redis.Redis
) -> None:
    """The second run finds nothing of the first in its way."""
    for _ in range(2):
        done = run("word_statistics.py", tmp_path, REDISTQ_URL=url)
        assert done.returncode == 0, done.stdout + done.stderr
    assert db.zcard("dead:demo") == 0
    assert db.xlen("demo") == 0
    for key in db.scan_iter("task:demo:*"):
        assert 0 < db.ttl(key) <= 60


def test_the_demo_runs_without_rich(url: str, tmp_path: Path) -> None:
    """rich is an extra: without it the same figures come as plain lines."""
    (tmp_path / "rich.py").write_text("raise ImportError('no rich here')\n")
    done = run("word_statistics.py", tmp_path, REDISTQ_URL=url, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for line in LINES["word_statistics.py"]:
        assert line in done.stdout


def test_the_demo_needs_no_server_and_no_setting(tmp_path: Path) -> None:
    """With no address given and nothing at localhost:6379 it starts the embedded server."""
    try:
        socket.create_connection(("localhost", 6379), timeout=0.5).close()
    except OSError:
        pass
    else:
        pytest.skip("something answers at localhost:6379, so the embedded server is not used")
    home = tmp_path / "home"
    done = run("word_statistics.py", tmp_path, REDISTQ_HOME=str(home))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "redistq: started a local Valkey" in done.stderr
    assert "Every file was counted exactly once." in done.stdout
    assert (home / "data").is_dir()
