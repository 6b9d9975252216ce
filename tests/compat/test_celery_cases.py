"""The same module of tasks through Celery and through the bridge: a table of cases."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compat import both
from support.servers import Server

import redistq.compat.celery

Outcomes = dict[str, Any]


@pytest.fixture(scope="module")
def by_celery(servers_by_flavour: Callable[[str], Server]) -> Outcomes:
    """By Celery itself, with its worker and a real server."""
    server = servers_by_flavour("valkey")
    server.flush()
    done = subprocess.run(
        [sys.executable, str(Path(both.__file__)), server.url],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    found: Outcomes = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def by_redistq(servers_by_flavour: Callable[[str], Server], by_celery: Outcomes) -> Outcomes:
    """By the bridge, with redistq's worker and the same server."""
    assert redistq.compat.celery is not None
    server = servers_by_flavour("valkey")
    server.flush()
    t = both.project("redistq.compat.celery", "project_tasks_both")
    with both.redistq_worker(t, server.url):
        return both.outcomes(t)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", both.CASES)
def test_the_same_as_celery(case: str, by_celery: Outcomes, by_redistq: Outcomes) -> None:
    """Results, states and errors are those of Celery."""
    theirs = by_celery[case]
    assert not (isinstance(theirs, list) and theirs[0] == "raised"), theirs
    assert by_redistq[case] == theirs
