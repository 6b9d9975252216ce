"""How workers log: plain lines, and JSON with the task that logged them."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.workers import command, until

from redistq import Registry, TaskProducer
from redistq.testing import TestQueue
from redistq.worker.logs import JsonFormatter, TaskFields

JOBS = """
import asyncio, logging, threading
from redistq import task

log = logging.getLogger("shop")

@task(retries=0)
def sell(payload):
    log.warning("selling %s", payload, extra={"price": 3, "queue": "of the shop"})
    raise ValueError("sold out")

@task
async def ship(payload):
    await asyncio.to_thread(log.error, "shipping")
"""


def test_records_of_a_worker_name_their_task(url: str, tmp_path: Path) -> None:
    """Lines of supervisor and children alike are JSON; those of handlers have the task, also from
    threads that carry its context on; what a program gives as extra stays."""
    (tmp_path / "jobs.py").write_text(JOBS)
    options = ("-m", "redistq.worker", "jobs", "--log-format", "json")
    with command(tmp_path, *options, url=url) as worker, TaskProducer(url=url) as producer:
        worker.says("ready:")
        sold = producer.add_task("sell", "ä")
        shipped = producer.add_task("ship")
        until(lambda: sum("shop" in line for line in worker.lines) >= 2, "both have logged")
        worker.says("failed for good")
    records = [json.loads(line) for line in worker.lines]
    (selling,) = [r for r in records if r["message"] == "selling ä"]
    assert selling["task_id"] == sold
    assert selling["task_name"] == "sell"
    assert selling["attempt"] == 1
    assert (selling["queue"], selling["price"]) == ("of the shop", 3)
    assert (selling["level"], selling["logger"]) == ("WARNING", "shop")
    (shipping,) = [r for r in records if r["message"] == "shipping"]
    assert (shipping["task_id"], shipping["queue"]) == (shipped, "tasks")
    (failed,) = [r for r in records if "failed for good" in r["message"]]
    assert (failed["task_id"], failed["task_name"]) == (sold, "sell")
    (ready,) = [r for r in records if r["message"].startswith("ready:")]
    assert "task_id" not in ready


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a logger with JSON lines has written."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(TaskFields())
    log = logging.getLogger("shop")
    log.addHandler(handler)
    yield out
    log.removeHandler(handler)


def test_a_line_is_one_object_whatever_is_logged(lines: io.StringIO) -> None:
    """Line ends, errors, and objects that are no JSON."""
    log = logging.getLogger("shop")
    try:
        raise KeyError("gone")
    except KeyError:
        log.exception("two\nlines", extra={"thing": {1, 2}})
    log.warning("after")
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert "KeyError: 'gone'" in first["exception"]
    assert first["thing"] == "{1, 2}"
    assert (second["message"], "exception" in second) == ("after", False)
    assert second["time"].endswith("+00:00")


def test_a_filter_for_handlers_of_ones_own(url: str, lines: io.StringIO) -> None:
    """Outside a task, and in a thread of its own, a record has none."""
    registry = Registry()
    log = logging.getLogger("shop")

    @registry.task
    def sell(payload: Any) -> None:
        log.warning("in the handler")
        thread = threading.Thread(target=log.warning, args=("in a thread",))
        thread.start()
        thread.join()

    with TestQueue(registry, url=url) as queue:
        task_id = queue.producer.add_task("sell")
        queue.drain(check=True)
    log.warning("outside")
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [record.get("task_id") for record in records] == [task_id, None, None]
