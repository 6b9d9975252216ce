"""Several queues at a glance: how they are found, what is said of each, and what a look costs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import redis
from support.farm import EVIL
from support.servers import Server

from redistq import ConfigurationError, TaskProducer, TaskWorker
from redistq.connection.address import resolve
from redistq.dashboard.queues import overview, overview_text
from redistq.errors import RedistqError
from redistq.monitor.queues import QueueRow, Queues, worst_first
from redistq.protocol.commands import Snapshot, WorkerRow

NOW = 1_700_000_000_000


def row(name: str, **more: object) -> QueueRow:
    """A queue at work, with one worker."""
    worker = WorkerRow("host:abc", NOW + 9_000, 2, {"threads": "4", "running": "1-0 2-0"})
    fields: dict[str, object] = {
        "ready": 30,
        "pending": 2,
        "delayed": 6,
        "oldest_ms": NOW - 3_200,
        "workers_total": 1,
        "workers": [worker],
        "counters": {"succeeded": 612, "failed": 4},
    }
    fields |= {"now_ms": NOW, "next_due_ms": NOW + 5_000, "dead": 0, "group": "workers"}
    fields |= {"lease_ms": 10_000, "paused": False, "history": 10}
    return QueueRow(name, Snapshot(**{**fields, **more}), 12.0)  # type: ignore[arg-type]


IDLE = WorkerRow("host:abc", NOW + 9_000, 0, {"threads": "4"})
ROWS = [
    row("idle", ready=0, delayed=0, next_due_ms=None, oldest_ms=None, workers=[IDLE], pending=0),
    row("working"),
    row("kept", dead=3),
    row("paused", paused=True),
    row("late", next_due_ms=NOW - 60_000),
    row("unserved", workers=[], workers_total=0),
    QueueRow(EVIL, None, problem=f"a key holds something else {EVIL}"),
]


def test_the_worst_queue_comes_first() -> None:
    """By how each is, then those with failed tasks; a name is text; a figure that is nothing is not
    loud."""
    order = [each.name for each in worst_first(ROWS)]
    assert order == [EVIL, "unserved", "late", "paused", "kept", "working", "idle"]
    shown = overview(ROWS, lambda name: f"queue/{name}", "kept")
    assert "<script" not in shown
    text = re.sub(r"<[^>]*>", " ", shown)
    text = re.sub(r"\s+", " ", text)
    assert "Queues: 7 · 150 queued, 8 running, 72/s" in text
    assert "▸ kept ▶ working 30 3.2 s 2 6 0 4 3 12/s 1" in text
    for said in ("✖ no worker", "✖ no figures", "⚠ 1 min late", "‖ paused", "○ idle"):
        assert said in text, said
    assert 'href="queue/kept"' in shown
    plain = overview_text(ROWS)
    line = next(each for each in plain.splitlines() if each.startswith("  kept"))
    assert " ".join(line.split()) == "kept ▶ working 30 3.2 s 2 6 0 4 3 12/s 1"
    assert "Queues: none" in overview([])


def test_queues_are_found_and_read_in_one_round_trip(server: Server, db: redis.Redis) -> None:
    """All that have a task, ready or delayed, or a worker; not a stream of another program. After
    the first look one round trip does, whatever the number; one that is new is found, and one that
    is gone is forgotten."""
    address = resolve(server.url)
    db.xadd("foreign", {"a": 1})
    for name in ("images", "mail", "mail!high", "video"):
        with TaskProducer(url=server.url, stream=name) as producer:
            delay = 60 if name == "video" else 0
            producer.add_tasks({"type": "x", "payload": n, "delay": delay} for n in range(3))
    queues = Queues(address)
    assert Queues(address, ["images", "nothing"]).look()[1].count("failed") == 0
    with TaskWorker(url=server.url, stream="images", task_handlers={"x": lambda n: 1 / n}) as _:
        with TaskProducer(url=server.url, stream="images") as producer:
            assert producer.drain(timeout=20)
        rows = {each.name: each for each in queues.look()}
        assert sorted(rows) == ["images", "mail", "mail!high", "video"]
        found = rows["images"].snapshot
        assert found is not None
        assert (rows["images"].count("succeeded"), rows["images"].workers) == (2, 1)
        assert rows["images"].rate
        assert (rows["mail"].health, rows["video"].health) == ("bad", "bad")
    with TaskProducer(url=server.url, stream="new") as producer:
        producer.add_task("x", 1)
    before = db.info("commandstats")
    calls = 0
    while "new" not in [each.name for each in queues.look()]:
        calls += 1
        assert calls < 10
    # A flush takes the scripts too: the next look sends them again.
    after = db.info("commandstats")
    assert after["cmdstat_evalsha"]["calls"] > before["cmdstat_evalsha"]["calls"]
    db.delete("mail", "mail!high")
    db.script_flush()
    assert "mail" not in [each.name for each in queues.look()]
    with TaskProducer(url=server.url, stream="mail") as producer:
        producer.add_task("x", 1)
    looks = 0
    while "mail" not in [each.name for each in queues.look()]:
        looks += 1
        assert looks < 10, "a queue that comes back is not found again"
    queues.close()


def test_a_queue_that_cannot_be_read_hides_no_other(server: Server, db: redis.Redis) -> None:
    """Its row says why; where none can be read the error is raised; bad names are refused."""
    with TaskProducer(url=server.url, stream="good") as producer:
        producer.add_task("x", 1)
    with pytest.raises(ConfigurationError, match="no queue's name"):
        Queues(resolve(server.url), ["bad name"])
    with pytest.raises(ConfigurationError, match="name them"):
        Queues(replace(resolve(server.url), url="redis+cluster://127.0.0.1:1"))
    gone = Queues(resolve("redis://127.0.0.1:1"), ["a", "b"], timeout=0.2)
    with pytest.raises(RedistqError, match="no answer"):
        gone.look()
