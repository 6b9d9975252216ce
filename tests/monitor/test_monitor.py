"""TaskMonitor: its figures add up, its frames keep their contract, and looking stays cheap."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pandas as pd
import pytest
from support.farm import EVIL, Farm, fill
from support.gate import HandMade
from support.servers import Server
from support.workers import until

from redistq import ConfigurationError, TaskMonitor, TaskWorker, UnknownTask
from redistq.errors import ServerUnavailable
from redistq.handlers import Registry
from redistq.monitor.tick import Tick

TIME, SPAN, LABEL, STATE = "datetime64[ms, UTC]", "timedelta64[us]", "category", "category"
TEXT = str(pd.Series(["x"]).dtype)
STATES = [
    "waiting",
    "delayed",
    "queued",
    "running",
    "retried",
    "snoozed",
    "recovered",
    "continued",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "settled",
]
SPANS = [
    "wait_p50",
    "wait_p90",
    "wait_p95",
    "wait_p99",
    "run_p50",
    "run_p90",
    "run_p95",
    "run_p99",
    "wait_mean",
    "run_mean",
    "run_max",
]
# What docs/frames.md promises: method, index name, columns with their dtypes, in order.
CONTRACT: dict[str, tuple[str | None, dict[str, str]]] = {
    "get_recent_tasks": (
        None,
        {
            "finished_at": TIME,
            "task_id": TEXT,
            "name": LABEL,
            "state": STATE,
            "attempt": "int64",
            "worker": LABEL,
            "queued_at": TIME,
            "started_at": TIME,
            "wait": SPAN,
            "run": SPAN,
            "note": TEXT,
        },
    ),
    "get_workers": (
        "worker",
        {
            "host": LABEL,
            "pid": "Int64",
            "state": LABEL,
            "threads": "int64",
            "pending": "int64",
            "running": "int64",
            "task": TEXT,
            "task_id": TEXT,
            "task_since": TIME,
            "started_at": TIME,
            "deadline_at": TIME,
            "python": LABEL,
            "version": LABEL,
            "names": TEXT,
            "rss": "Int64",
            "cpu": "Float64",
            "memory_limit": "Int64",
        },
    ),
    "get_consumers": (
        "consumer",
        {"pending": "int64", "idle": SPAN, "inactive": SPAN, "state": LABEL},
    ),
    "get_pending": (
        None,
        {
            "task_id": TEXT,
            "name": LABEL,
            "state": STATE,
            "worker": LABEL,
            "attempt": "int64",
            "recovered": "int64",
            "queued_at": TIME,
            "since": TIME,
            "held": SPAN,
            "deliveries": "int64",
            "entry": TEXT,
            "payload": TEXT,
            "done": "Float64",
            "total": "Float64",
            "progress": TEXT,
        },
    ),
    "get_delayed": (
        None,
        {
            "task_id": TEXT,
            "name": LABEL,
            "state": STATE,
            "due_at": TIME,
            "due_in": SPAN,
            "reason": LABEL,
            "event": LABEL,
            "attempt": "int64",
            "recovered": "int64",
            "error_type": LABEL,
            "payload": TEXT,
        },
    ),
    "get_dead": (
        None,
        {
            "task_id": TEXT,
            "name": LABEL,
            "state": STATE,
            "died_at": TIME,
            "error_type": LABEL,
            "error": TEXT,
            "attempt": "int64",
            "worker": LABEL,
            "run": SPAN,
            "payload": TEXT,
            "traceback": TEXT,
        },
    ),
    "get_failures": (
        None,
        {
            "error_type": LABEL,
            "name": LABEL,
            "count": "int64",
            "first_at": TIME,
            "last_at": TIME,
            "example_id": TEXT,
            "error": TEXT,
        },
    ),
    "get_batches": (
        "batch",
        {
            "name": TEXT,
            "state": LABEL,
            "total": "int64",
            "waiting": "int64",
            "succeeded": "int64",
            "failed": "int64",
            "cancelled": "int64",
            "retried": "int64",
            "created_at": TIME,
            "finished_at": TIME,
            "took": SPAN,
            "expired": "int64",
            "version": "int64",
        },
    ),
    "get_waiting": (
        None,
        {
            "task_id": TEXT,
            "name": LABEL,
            "state": STATE,
            "reason": LABEL,
            "under": LABEL,
            "since": TIME,
            "waited": SPAN,
            "place": "Int64",
            "parents": "Int64",
            "priority": LABEL,
            "attempt": "int64",
            "due_at": TIME,
            "payload": TEXT,
        },
    ),
    "get_graphs": (
        "graph",
        {
            "state": LABEL,
            "layers": "Int64",
            **dict.fromkeys(("total", "waiting", "succeeded", "failed"), "int64"),
            **dict.fromkeys(("cancelled", "expired", "retried"), "int64"),
            "created_at": TIME,
            "finished_at": TIME,
            "took": SPAN,
        },
    ),
    "get_limits": (
        "key",
        {
            "rule": TEXT,
            "at_most": "Int64",
            "rate": "Float64",
            "per": SPAN,
            "burst": "Int64",
            "in_use": "int64",
            "waiting": "int64",
            "next_token_in": SPAN,
            "paused_at": TIME,
            "excess": LABEL,
            "on_failure": LABEL,
            "weight": "Int64",
        },
    ),
    "get_latency": ("name", {"count": "int64", **dict.fromkeys(SPANS, SPAN)}),
}
FIGURES = [
    "queue",
    "queue_length",
    "pending",
    "running",
    "delayed",
    "waiting",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "retried",
    "snoozed",
    "recovered",
    "dead",
    "workers",
    "slots",
    "oldest_age_s",
    "next_due_s",
    "throughput",
    "paused",
    "health",
    "reason",
    "group",
    "as_of",
]


# -- frames are contracts ------------------------------------------------------------------------


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
@pytest.mark.parametrize("method", CONTRACT)
def test_columns_and_dtypes_are_fixed(farm: Farm, method: str, filled: bool) -> None:
    """Every frame has exactly its columns, dtypes and order, empty or not."""
    if filled:
        fill(farm)
        HandMade(farm.client).some_of_everything()
        farm.client.hset("batch:tasks:b1", "dependants", 1)
    found = getattr(farm.monitor, method)()
    index, columns = CONTRACT[method]
    assert bool(len(found)) == filled
    assert list(found.columns) == list(columns)
    assert {name: str(dtype) for name, dtype in found.dtypes.items()} == columns
    assert found.index.name == index
    if "state" in columns and method == "get_recent_tasks":
        assert list(found["state"].cat.categories) == STATES
        assert found["state"].cat.ordered
    facts = found.attrs["redistq"]
    assert facts["queue"] == "tasks"
    assert pd.Timestamp(facts["as_of"]).tzinfo is not None
    assert facts["truncated"] is False


def test_the_documentation_lists_every_column() -> None:
    """docs/frames.md names each method's columns in their order."""
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "frames.md").read_text(encoding="utf-8")
    for method, (index, columns) in CONTRACT.items():
        section = text.partition(f"## `{method}")[2].partition("\n## ")[0]
        rows = [
            line.split("|")[1].strip(" `") for line in section.splitlines() if "| `" in line[:3]
        ]
        assert rows == [*([index] if index else []), *columns], method


def test_figures_have_their_names_in_order_also_when_empty(farm: Farm) -> None:
    """get_queue_stats is a Series with the documented names; of an empty queue all is zero."""
    stats = farm.monitor.get_queue_stats()
    assert list(stats.index) == FIGURES
    assert stats["queue_length"] == stats["pending"] == stats["dead"] == 0
    assert stats["next_due_s"] is None
    assert stats["health"] == "idle"
    assert dict(stats)["queue"] == "tasks"  # mapping-like
    fill(farm)
    assert list(farm.monitor.stats.index) == FIGURES


def test_figures_add_up(farm: Farm) -> None:
    """Every task is counted in one place: waiting, held, delayed or settled."""
    fill(farm)
    stats = farm.monitor.get_queue_stats()
    assert (stats["queue_length"], stats["pending"], stats["delayed"]) == (2, 1, 1)
    assert (stats["succeeded"], stats["failed"], stats["dead"]) == (2, 1, 1)
    assert (stats["workers"], stats["slots"], stats["running"]) == (1, 2, 1)
    assert 59 < stats["next_due_s"] <= 60
    assert 0 <= stats["oldest_age_s"] < 10
    assert stats["throughput"] == pytest.approx(3 / 5)  # of a queue not five seconds old
    assert isinstance(stats["as_of"], pd.Timestamp)


def test_short_names_are_the_frames(farm: Farm) -> None:
    """monitor.recent is get_recent_tasks(), and so on."""
    fill(farm)
    for short in ("workers", "consumers", "pending", "delayed", "dead", "failures", "batches"):
        full = getattr(farm.monitor, f"get_{short}")()
        assert list(getattr(farm.monitor, short).columns) == list(full.columns), short
    assert len(farm.monitor.recent) == 3
    assert len(farm.monitor.latency) == 1
    assert len(farm.monitor.throughput) == 301


def test_recent_tasks_are_newest_first_and_bounded(farm: Farm) -> None:
    """The newest n ends of attempts, and attrs say that there may be more."""
    farm.register("w1")
    ids = farm.producer.add_tasks([("work", n) for n in range(5)])
    for _ in ids:
        farm.settle("w1", farm.fetch("w1", 1), ms="250")
    recent = farm.monitor.get_recent_tasks(3)
    assert list(recent["task_id"]) == ids[:1:-1]
    assert recent.attrs["redistq"]["truncated"] is True
    assert set(recent["run"]) == {pd.Timedelta("250ms")}
    assert (recent["finished_at"] - recent["started_at"] == recent["run"]).all()
    with pytest.raises(ConfigurationError, match="at least 1"):
        farm.monitor.get_recent_tasks(0)


def test_more_events_than_a_page_are_read_in_order(farm: Farm) -> None:
    """Reading goes on page after page and loses and doubles nothing."""
    start = farm.now_ms() - 5000
    with farm.client.pipeline(transaction=False) as pipe:
        for n in range(2500):
            pipe.xadd("history:tasks", {"id": f"t{n}", "state": "succeeded"}, id=f"{start + n}-0")
        pipe.execute()
    events = farm.monitor.records.events(2400)
    assert [e.id for e in events] == [f"t{n}" for n in range(2499, 99, -1)]
    assert len(farm.monitor.records.events(None)) == 2500


def test_workers_show_what_they_run(farm: Farm) -> None:
    """A worker's row: host, state, threads, and the first task in its hands with its start."""
    farm.register("w1", names="b\na")
    farm.register("w2")
    ids = farm.producer.add_tasks([("work", 1)])
    farm.fetch("w1")
    row = farm.monitor.get_workers().loc["w1"]
    assert (row["state"], row["running"], row["task"], row["task_id"]) == (
        "busy",
        1,
        "work",
        ids[0],
    )
    assert (row["names"], row["host"], row["pid"]) == ("b, a", "here", 7)
    assert abs(row["task_since"].timestamp() * 1000 - farm.now_ms()) < 5000
    assert farm.monitor.workers.loc["w2", "state"] == "idle"
    farm.monitor.pause()
    assert farm.monitor.workers.loc["w2", "state"] == "paused"


def test_a_worker_past_its_deadline_is_silent(farm: Farm) -> None:
    """It is listed, counts as no living worker, and the queue's health says so."""
    farm.register("w1")
    farm.producer.add_task("work")
    entries = farm.fetch("w1")
    assert len(farm.monitor.tick().running) == 1
    farm.client.zadd("workers:tasks", {"w1": farm.now_ms() - 1})
    row = farm.monitor.workers.loc["w1"]
    assert (row["state"], row["running"]) == ("silent", 0)
    tick = farm.monitor.tick()
    assert not tick.workers
    assert not tick.running
    assert tick.running_count == 0
    farm.settle("w1", entries)
    tick = farm.monitor.tick()
    assert [w.consumer for w in tick.silent] == ["w1"]
    assert tick.health[0] == "warning"
    farm.producer.add_task("work")
    assert farm.monitor.tick().health[0] == "bad"
    assert farm.monitor.consumers.loc["w1", "state"] == "silent"


def test_consumers_are_matched_with_workers(farm: Farm) -> None:
    """A consumer that no worker answers for is unknown."""
    farm.register("w1")
    farm.producer.add_tasks([("work", 1), ("work", 2)])
    farm.fetch("w1", 1)
    farm.fetch("stranger", 1)
    found = farm.monitor.get_consumers()
    assert dict(found["state"]) == {"w1": "alive", "stranger": "unknown"}
    assert list(found["pending"]) == [1, 1]


def test_pending_pages(farm: Farm) -> None:
    """More pending tasks than one call lists are all there, oldest first, with their names."""
    ids = farm.producer.add_tasks([("work", {"n": n}) for n in range(450)])
    farm.fetch("w1", 1000)
    found = farm.monitor.get_pending(430)
    assert list(found["task_id"]) == ids[:430]
    assert set(found["name"]) == {"work"}
    assert found.loc[7, "payload"] == '{"n":7}'
    assert (found["held"] >= pd.Timedelta(0)).all()


def test_delayed_pages_by_due_time(farm: Farm) -> None:
    """The next due comes first; a task that is late has a negative wait."""
    items = [{"type": "work", "payload": n, "delay": 1000 - n} for n in range(450)]
    ids = farm.producer.add_tasks(items)
    found = farm.monitor.get_delayed(450)
    assert list(found["task_id"]) == ids[::-1]
    assert set(found["reason"]) == {"delay"}
    farm.client.zadd("delayed:tasks", {ids[0]: farm.now_ms() - 60_000})
    late = farm.monitor.get_delayed(1)
    assert late.loc[0, "task_id"] == ids[0]
    assert late.loc[0, "due_in"] < pd.Timedelta("-59s")


def test_failures_are_grouped_by_error_and_task(farm: Farm) -> None:
    """Counted per error type and task name, the most frequent first, with the newest message."""
    farm.register("w1")
    for n in range(5):
        farm.producer.add_task("a" if n else "b", n)
        kind = "ValueError" if n < 4 else "KeyError"
        error = {"type": kind, "message": f"message {n}", "traceback": "tb" * 600}
        farm.settle("w1", farm.fetch("w1"), error=error)
    found = farm.monitor.get_failures()
    assert list(zip(found["error_type"], found["name"], found["count"], strict=True)) == [
        ("ValueError", "a", 3),
        ("KeyError", "a", 1),
        ("ValueError", "b", 1),
    ]
    assert found.loc[0, "error"] == "message 3"
    assert found.loc[0, "first_at"] <= found.loc[0, "last_at"]
    single = farm.monitor.get_failures(group=False)
    assert list(single["error"]) == [f"message {n}" for n in range(4, -1, -1)]
    assert single.loc[0, "traceback"] == "tb" * 600


def test_errors_are_cut_where_nobody_reads_them_whole(farm: Farm) -> None:
    """Grouping reads the type and the start of a message, and no traceback."""
    farm.register("w1")
    farm.producer.add_task("work")
    error = {"type": "E", "message": "m" * 3000, "traceback": "t" * 9000}
    farm.settle("w1", farm.fetch("w1"), error=error)
    (brief,) = farm.monitor.records.dead(full=False)
    assert (brief.error_type, brief.error, brief.traceback) == ("E", "m" * 500, "")
    (whole,) = farm.monitor.records.dead()
    assert (whole.error, whole.traceback) == ("m" * 3000, "t" * 9000)


def test_hostile_text_stays_text(farm: Farm) -> None:
    """Names, payloads and errors arrive as they were given, invalid UTF-8 included."""
    farm.register("w1")
    farm.producer.add_task(EVIL, {"x": EVIL})
    error = {"type": EVIL, "message": "\x1b[2J" + EVIL, "traceback": EVIL}
    farm.settle("w1", farm.fetch("w1"), error=error)
    dead = farm.monitor.get_dead().loc[0]
    assert (dead["name"], dead["error_type"], dead["traceback"]) == (EVIL, EVIL, EVIL)
    assert EVIL in dead["payload"]
    farm.client.execute_command("XADD", "tasks", "*", b"junk", b"\xff\xfe", b"name", b"\xff")
    farm.fetch("w1")
    assert farm.monitor.get_pending().loc[0, "name"] == "�"
    assert farm.monitor.tick().running[0].name == "�"
    assert len(farm.monitor.workers) == 1


def test_batches_show_how_far_they_are(farm: Farm) -> None:
    """Counters, what waits, and how long a finished one took; one that runs has no end."""
    fill(farm)
    found = farm.monitor.get_batches()
    assert list(found.index) == ["b1", "b2"]
    assert list(found["state"]) == ["running", "finished"]
    assert list(found["waiting"]) == [1, 0]
    assert found.loc["b1", "name"] == EVIL
    assert pd.isna(found.loc["b1", "finished_at"])
    assert found.loc["b2", "took"] == pd.Timedelta("4s")
    assert [b.id for b in farm.monitor.tick(batches=1).batches] == ["b1"]


# -- one task ------------------------------------------------------------------------------------


def test_a_task_with_all_its_attempts(url: str, farm: Farm) -> None:
    """Retried, then succeeded: two attempts, oldest first, and the result beside them."""
    tries: list[int] = []

    def flaky(payload: Any) -> str:
        tries.append(1)
        if len(tries) < 2:
            raise ValueError(EVIL)
        return "done"

    registry = Registry()
    registry.task(name="flaky", retries=2, backoff=0.01)(flaky)
    with TaskWorker(url=url, task_handlers=registry):
        task_id = farm.producer.add_task("flaky", {"n": 1})
        assert farm.producer.get_result(task_id, timeout=20) == "done"
    found = farm.monitor.get_task(task_id)
    assert list(found["state"]) == ["retried", "succeeded"]
    assert list(found["attempt"]) == [1, 2]
    assert found.loc[0, "note"] == "ValueError"
    assert str(found["finished_at"].dtype) == TIME
    assert found.attrs["redistq"]["result"] == '"done"'
    assert found.attrs["redistq"]["state"] == "succeeded"


def test_a_task_that_has_not_ended(farm: Farm) -> None:
    """The last row is how it stands: queued, then running in a worker's hands, then delayed."""
    task_id = farm.producer.add_task("work", {"n": 1})
    found = farm.monitor.get_task(task_id)
    assert list(found["state"]) == ["queued"]
    assert found.attrs["redistq"]["payload"] == '{"n":1}'
    assert found.attrs["redistq"]["name"] == "work"
    farm.fetch("w1")
    running = farm.monitor.get_task(task_id)
    assert (running.loc[0, "state"], running.loc[0, "worker"]) == ("running", "w1")
    assert pd.isna(running.loc[0, "finished_at"])
    later = farm.monitor.get_task(farm.producer.add_task("work", delay=60))
    assert list(later["state"]) == ["delayed"]


def test_a_task_without_a_record_is_told_by_the_history(farm: Farm) -> None:
    """A result that is not kept leaves the history; what was never there is unknown."""
    farm.event(farm.now_ms(), id="gone", state="succeeded")
    found = farm.monitor.get_task("gone")
    assert list(found["state"]) == ["succeeded"]
    with pytest.raises(UnknownTask):
        farm.monitor.get_task("never")


# -- rates ---------------------------------------------------------------------------------------


def test_throughput_fills_its_gaps(farm: Farm) -> None:
    """One row a step over the whole window, zero where nothing ended, nothing lost."""
    now = farm.now_ms()
    past = ((90_000, "failed"), (9000, "succeeded"), (8990, "failed"), (2000, "succeeded"))
    for back, state in past:
        farm.event(now - back, state=state)
    found = farm.monitor.get_throughput("10s", "1s")
    assert list(found.columns) == [
        "succeeded",
        "failed",
        "retried",
        "snoozed",
        "recovered",
        "cancelled",
        "expired",
    ]
    assert {str(d) for d in found.dtypes} == {"int64"}
    assert str(found.index.dtype) == TIME
    assert found.index.freq is not None
    assert found.index.name == "ts"
    assert len(found) in (10, 11)
    assert (found.index.to_series().diff().dropna() == pd.Timedelta("1s")).all()
    assert found["succeeded"].sum() == 2
    assert found["failed"].sum() == 1
    assert (found.sum(axis=1) == 0).sum() >= 7
    assert found.attrs["redistq"]["truncated"] is False


def test_throughput_of_an_empty_queue(farm: Farm) -> None:
    """All zero, and with ``by`` two levels of columns without a member."""
    found = farm.monitor.get_throughput("5s")
    assert found.to_numpy().sum() == 0
    assert {str(d) for d in found.dtypes} == {"int64"}
    split = farm.monitor.get_throughput("5s", by="name")
    assert list(split.columns.names) == ["name", "state"]
    assert len(split) == len(found)


def test_throughput_by_name(farm: Farm) -> None:
    """Two levels of columns: each name, and in it each state."""
    now = farm.now_ms()
    farm.event(now - 3000, name="a")
    farm.event(now - 2000, name="b", state="failed")
    found = farm.monitor.get_throughput(10, 1, by="name")
    assert found["a"]["succeeded"].sum() == 1
    assert found["b"]["failed"].sum() == 1
    assert found.to_numpy().sum() == 2
    with pytest.raises(ConfigurationError, match="by is None"):
        farm.monitor.get_throughput(by="payload")
    for wrong in ("soon", -1, 0, True):
        with pytest.raises(ConfigurationError, match="window"):
            farm.monitor.get_throughput(wrong)


def test_a_history_that_is_too_short_is_said(farm: Farm) -> None:
    """Where events were dropped the frame begins with the oldest that is left."""
    now = farm.now_ms()
    for back in (3000, 2000):
        farm.event(now - back)
    farm.client.hset("counters:tasks", "succeeded", 500)
    found = farm.monitor.get_throughput("5min", "1s")
    assert found.attrs["redistq"]["truncated"] is True
    assert len(found) <= 5
    assert found["succeeded"].sum() == 2


def test_latency_quantiles(farm: Farm) -> None:
    """Queueing and run time per task name, from what ran; what never ran is left out."""
    now = farm.now_ms()
    for n in range(101):
        farm.event(now - 200 + n, name="a", queued_ms=now - 200 + n - 150, run_ms=str(n))
    farm.event(now, name="b", queued_ms=now - 5, run_ms="5")
    farm.event(now, name="a", state="cancelled", worker="", run_ms="")
    found = farm.monitor.get_latency(q=(0.5, 0.9))
    assert list(found.index) == ["a", "b"]
    assert list(found.columns[:3]) == ["count", "wait_p50", "wait_p90"]
    assert found.loc["a", "count"] == 101
    assert found.loc["a", "run_p50"] == pd.Timedelta("50ms")
    assert found.loc["a", "run_p90"] == pd.Timedelta("90ms")
    assert found.loc["a", "run_max"] == pd.Timedelta("100ms")
    assert found.loc["a", "wait_p50"] == pd.Timedelta("100ms")
    assert found.loc["b", "wait_mean"] == pd.Timedelta(0)
    with pytest.raises(ConfigurationError):
        farm.monitor.get_latency(q=(1.5,))


# -- ticks ---------------------------------------------------------------------------------------


def test_a_tick_is_one_call(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """One refresh of a dashboard is one round trip."""
    fill(farm)
    sent: list[Any] = []
    call = farm.monitor.broker.call
    monkeypatch.setattr(farm.monitor.broker, "call", lambda c: sent.append(c) or call(c))
    tick = farm.monitor.tick()
    assert len(sent) == 1
    assert (len(tick.events), len(tick.running), len(tick.dead), len(tick.batches)) == (3, 1, 1, 2)


def test_ticks_tell_each_event_once(farm: Farm) -> None:
    """From cursor to cursor every end of an attempt is told, in order, none twice."""
    farm.register("w1")
    told: list[str] = []
    cursor = farm.monitor.tick().cursor
    ids = farm.producer.add_tasks([("work", n) for n in range(30)])
    for count in (1, 0, 7, 22):
        if count:
            farm.settle("w1", farm.fetch("w1", count))
        tick = farm.monitor.tick(cursor)
        assert not tick.missed
        told += [event.id for event in tick.events]
        cursor = tick.cursor
    assert told == ids


def test_a_tick_says_when_it_missed_events(farm: Farm) -> None:
    """More events than were asked for: the newest are given, oldest first, and it says so."""
    farm.register("w1")
    ids = farm.producer.add_tasks([("work", n) for n in range(9)])
    cursor = farm.monitor.tick().cursor
    farm.settle("w1", farm.fetch("w1"))
    tick = farm.monitor.tick(cursor, events=4)
    assert tick.missed
    assert [event.id for event in tick.events] == ids[-4:]
    assert tick.count("succeeded") == 9


def test_rates_between_ticks_are_exact(farm: Farm) -> None:
    """Added, succeeded and failed per second from the counters, however many events were told."""
    farm.register("w1")
    before = farm.monitor.tick()
    farm.producer.add_tasks([("work", n) for n in range(50)])
    farm.settle("w1", farm.fetch("w1", 30))
    after = farm.monitor.tick(before.cursor, events=1)
    rates = after.since(before)
    assert round(rates.added * rates.seconds) == 50
    assert round(rates.succeeded * rates.seconds) == 30
    assert rates.failed == 0
    assert rates.settled == rates.succeeded


def test_per_second_looks_back_a_minute_or_as_far_as_it_can(farm: Farm) -> None:
    """Few events count over a minute; of many, only those at hand, over their own span."""
    now = farm.now_ms()
    for back in (70_000, 30_000, 20_000):
        farm.event(now - back)
    assert farm.monitor.tick().per_second == pytest.approx(2 / 60)
    assert farm.monitor.tick(events=1).per_second == pytest.approx(1 / 20, rel=0.2)


def test_held_tasks_and_dead_letters_are_sent_once(farm: Farm) -> None:
    """A payload of megabytes or a long traceback costs the first tick, and no other."""
    farm.register("w1")
    farm.producer.add_tasks([("work", "x" * 1_000_000), ("dead", 1)])
    held, dying = farm.fetch("w1")
    farm.settle("w1", [dying], error={"type": "E", "message": "m", "traceback": "t" * 9000})
    first = farm.monitor.tick()
    sent = []
    call = farm.monitor.broker.call
    try:
        farm.monitor.broker.call = lambda c: sent.append(call(c)) or sent[-1]  # type: ignore[method-assign]
        second = farm.monitor.tick(first.cursor)
    finally:
        farm.monitor.broker.call = call  # type: ignore[method-assign]
    assert second.dead == first.dead
    assert second.dead[0].traceback == "t" * 9000
    assert (second.running[0].name, second.running[0].preview) == ("work", first.running[0].preview)
    assert second.running[0].entry == held[0].decode()
    assert len(str(sent)) < 4000
    farm.producer.replay(second.dead[0].id)
    farm.settle("w1", farm.fetch("w1"), error={"type": "E", "message": "again", "traceback": ""})
    assert farm.monitor.tick().dead[0].error == "again"


def test_a_pickled_payload_is_only_named(farm: Farm) -> None:
    """The packet of a function call is no text: its preview says what it is."""
    farm.register("w1")
    packet = b"\0rq1\x00" + bytes(range(256))
    farm.call(farm.commands.enqueue_one("call-1", "call:f", packet, "", ""))
    assert farm.fetch("w1")
    assert farm.monitor.tick().running[0].preview == "(a pickled call)"
    assert farm.monitor.get_pending().loc[0, "payload"] == "(a pickled call)"


def test_limits_are_whole_numbers_of_at_least_one(farm: Farm) -> None:
    """A limit of zero would mean all of it to the server: it is refused."""
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ConfigurationError):
            farm.monitor.tick(dead=wrong)  # type: ignore[arg-type]


def test_a_real_worker_shows_what_it_runs(url: str, farm: Farm) -> None:
    """What a thread runs is in the tick with its name and worker, and gone when it ends."""
    release = threading.Event()
    registry = Registry({"hold": lambda payload: release.wait(20)})
    with TaskWorker(url=url, task_handlers=registry, thread_count=2):
        task_id = farm.producer.add_task("hold", {"n": 1})

        def running() -> Tick | None:
            tick = farm.monitor.tick()
            return tick if any(task.started for task in tick.running) else None

        tick = until(running, "the heartbeat lists what runs", timeout=15)
        (held,) = tick.running
        assert (held.id, held.name, held.preview) == (task_id, "hold", '{"n":1}')
        assert held.worker == tick.workers[0].consumer
        assert tick.running_on(held.worker) == (held,)
        assert tick.running_count == 1
        assert tick.slots == 2
        assert tick.health == ("ok", "1 worker, 1 task running")
        release.set()
        farm.producer.get_result(task_id, timeout=20)
        assert farm.monitor.tick().running == ()


def test_every_server_answers(every_server: Server) -> None:
    """Ticks, figures and pages work on every kind of server we support."""
    with every_server.client() as client:
        farm = Farm(every_server.url, client)
        fill(farm)
        HandMade(client).some_of_everything()
        client.hset("batch:tasks:b1", "dependants", 1)
        assert farm.monitor.tick().snapshot.ready == 2
        for method in CONTRACT:
            assert len(getattr(farm.monitor, method)()) >= 1, method
        farm.monitor.close()


# -- cost ----------------------------------------------------------------------------------------


def test_looking_costs_the_same_whatever_waits(farm: Farm) -> None:
    """The commands a tick makes do not grow with the queue; none of them walks the keys."""
    fill(farm)

    def commands() -> dict[str, int]:
        farm.client.config_resetstat()
        farm.monitor.tick()
        stats: dict[str, Any] = farm.client.info("commandstats")
        ignored = ("cmdstat_config|resetstat", "cmdstat_info", "cmdstat_config")
        return {name: row["calls"] for name, row in stats.items() if name not in ignored}

    farm.monitor.tick()  # the script is known from here on
    few = commands()
    farm.producer.add_tasks([("work", n) for n in range(20_000)])
    farm.producer.add_tasks([{"type": "work", "payload": 1, "delay": 900}] * 2000)
    assert commands() == few
    assert not {"cmdstat_keys", "cmdstat_scan", "cmdstat_hscan", "cmdstat_zscan"} & set(few)


def test_no_look_walks_the_keys(farm: Farm) -> None:
    """Whatever is asked of a monitor, it never sends KEYS or SCAN."""
    fill(farm)
    farm.client.config_resetstat()
    for method in CONTRACT:
        getattr(farm.monitor, method)()
    farm.monitor.get_throughput()
    farm.monitor.get_queue_stats()
    farm.monitor.get_task(farm.monitor.records.dead()[0].id)
    stats: dict[str, Any] = farm.client.info("commandstats")
    assert not {"cmdstat_keys", "cmdstat_scan", "cmdstat_sscan", "cmdstat_zscan"} & set(stats)


# -- what it changes, and what it needs ----------------------------------------------------------


def test_buttons_are_the_producers_verbs(farm: Farm) -> None:
    """Pause, resume, cancel, replay and purge do what the producer's do."""
    farm.monitor.pause()
    assert farm.monitor.tick().paused
    farm.monitor.resume()
    assert not farm.monitor.snapshot().paused
    task_id = farm.producer.add_task("work")
    assert farm.monitor.cancel(task_id) == {task_id: "cancelled"}
    farm.register("w1")
    ids = farm.producer.add_tasks([("work", 1), ("work", 2)])
    error = {"type": "E", "message": "", "traceback": ""}
    farm.settle("w1", farm.fetch("w1"), error=error)
    assert farm.monitor.replay(ids[0]) == 1
    assert farm.monitor.purge() == 1
    assert farm.monitor.snapshot().dead == 0


def test_cancelling_all_leaves_what_runs_and_what_comes_later(url: str) -> None:
    """A thousand waiting tasks are cancelled in bounded calls; a running one is left alone, and
    so is one that was added after the call."""
    started, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> str:
        started.set()
        go_on.wait(30)
        return "done"

    with TaskMonitor(url=url, stream="seen") as monitor:
        producer = monitor.producer
        with TaskWorker(url=url, stream="seen", task_handlers={"hold": hold}, thread_count=1):
            held = producer.add_task("hold")
            assert started.wait(15)
            producer.pause()
            producer.add_tasks(("never", n) for n in range(1000))
            producer.add_tasks({"type": "never", "delay": 3600} for _ in range(450))
            parts = monitor.cancel_waiting_by_parts()
            first = next(parts)
            time.sleep(0.002)  # the next millisecond, by which later tasks are told
            late = producer.add_task("late")
            assert first + sum(parts) == 1450
            assert producer.get_task(late).state == "queued"
            assert producer.get_task(held).state == "running"
            go_on.set()
            assert producer.get_result(held, timeout=15) == "done"


def test_looking_writes_nothing(farm: Farm) -> None:
    """Every look leaves the server's data as it was."""
    fill(farm)

    def dump() -> dict[str, bytes]:
        raw = farm.client
        return {key: raw.execute_command("OBJECT", "ENCODING", key) for key in sorted(raw.keys())}

    before, changes = dump(), farm.client.info("persistence")["rdb_changes_since_last_save"]
    farm.monitor.tick()
    for method in CONTRACT:
        getattr(farm.monitor, method)()
    assert dump() == before
    assert farm.client.info("persistence")["rdb_changes_since_last_save"] == changes


def test_records_need_no_pandas(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks and records work without pandas; a frame says what to install."""
    fill(farm)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert farm.monitor.tick().snapshot.ready == 2
    assert len(farm.monitor.records.events()) == 3
    with pytest.raises(ImportError, match=r"pip install redistq\[notebook\]"):
        farm.monitor.get_dead()
    with pytest.raises(ImportError, match="pandas is needed"):
        farm.monitor.get_queue_stats()


def test_importing_the_monitor_loads_no_pandas() -> None:
    """TaskMonitor is at hand in a worker or a script for the price of a producer."""
    import subprocess

    code = "import sys, redistq; redistq.TaskMonitor; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"


def test_a_server_that_is_away_is_said(private_server: Any) -> None:
    """A tick raises ServerUnavailable within its timeout, and works again afterwards."""
    server = private_server()
    with TaskMonitor(url=server.url, timeout=0.5) as monitor:
        monitor.tick()
        server.kill()
        started = time.monotonic()
        with pytest.raises(ServerUnavailable):
            monitor.tick()
        assert time.monotonic() - started < 5
        server.start()
        assert monitor.tick().snapshot.ready == 0
        assert "TaskMonitor(queue='tasks'" in repr(monitor)
