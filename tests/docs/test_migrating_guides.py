"""docs/migrating.md, django.md and fastapi.md keep their word: what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import Block, guide, run_as_a_program, unsaid_prints

GUIDE, PYTHON = guide("migrating.md")
RUN = [block for block in PYTHON if not block.reason]


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    run_as_a_program(block, url, tmp_path)


def test_every_print_of_the_guide_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    assert unsaid_prints(RUN) == []


def test_the_tables_name_what_there_is() -> None:
    """Signals, options of tasks, methods of jobs and results."""
    from redistq.compat.celery import signals
    from redistq.compat.celery.result import AsyncResult
    from redistq.compat.rq import Job, Queue
    from redistq.compat.rq.queue import DEFAULT_RESULT_TTL_S, DEFAULT_TIMEOUT_S

    (row,) = re.findall(r"^\| signals: (.*?) \|", GUIDE, re.M)
    assert {name.strip() for name in row.split(",")} <= vars(signals).keys()
    (row,) = re.findall(r"^\| `AsyncResult`: (.*?) \|", GUIDE, re.M)
    for name in row.split(", "):
        assert hasattr(AsyncResult, name) or name == "parent"
    for name in ("enqueue", "enqueue_call", "enqueue_in", "enqueue_at", "enqueue_many"):
        assert hasattr(Queue, name)
    for name in ("wait", "stop", "requeue", "delete", "cancel", "latest_result", "exc_info"):
        assert hasattr(Job, name)
    assert (
        f"`job_timeout` ({DEFAULT_TIMEOUT_S} s), `result_ttl` ({DEFAULT_RESULT_TTL_S} s)" in GUIDE
    )


def test_the_guides_of_frameworks_name_what_there_is() -> None:
    """Settings, options and routes."""
    from redistq.contrib.django import backend, options
    from redistq.contrib.fastapi import MOST_WAIT_S, RedistqFastAPI

    django, fastapi = guide("django.md")[0], guide("fastapi.md")[0]
    for name in options._OWN:
        assert f"`{name}`" in django
    for name in backend._SETTINGS:
        assert name in django
    paths = {route.path for route in RedistqFastAPI().router().routes}  # type: ignore[attr-defined]
    said = set(re.findall(r"`(?:GET|DELETE) /tasks(/\S*?)[?`]", fastapi))
    assert {path.replace("{task_id}", "ID") for path in paths} == said
    assert f"({MOST_WAIT_S:g} at most)" in fastapi
