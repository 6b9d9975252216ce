"""monitor.schedules: the periodic tasks of a queue as a DataFrame."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import redis
from support.workers import until

from redistq import TaskMonitor, TaskProducer, TaskWorker

COLUMNS = [
    *("task", "rule", "state", "next_at", "next_in", "last_at", "last_state", "last_id", "fired"),
    *("skipped", "missed", "overlap", "queue", "source", "fault"),
]


@pytest.mark.usefixtures("db")
def test_an_empty_frame_has_its_columns(url: str) -> None:
    """Fixed columns and dtypes, also where there is nothing."""
    with TaskMonitor(url=url) as monitor:
        frame = monitor.schedules
        assert frame.index.name == "schedule"
        assert list(frame.columns) == COLUMNS
        assert not len(frame)
        assert str(frame.next_at.dtype) == "datetime64[ms, UTC]"
        assert str(frame.fired.dtype) == "int64"
        assert frame.attrs["redistq"]["queue"] == "tasks"


def test_a_frame_shows_how_each_stands(url: str, db: redis.Redis) -> None:
    """The next first, paused ones last; the state of the last task, in whichever priority."""

    def job(payload: Any) -> None:
        if payload == "bad":
            raise ValueError("bad")

    with (
        TaskMonitor(url=url) as monitor,
        TaskProducer(url=url, stream="tasks!high") as high,
        TaskWorker(url=url, task_handlers={"job": job}),
    ):
        schedules = monitor.producer.schedules
        schedules.set("good", every="1h", task="job")
        schedules.set("bad", cron="@yearly", task="job", payload="bad", retries=0, overlap="allow")
        schedules.set("idle", every="2h", task="job", missed="skip")
        schedules.set("off", every=1, task="job", paused=True)
        high.schedules.set("high", every="3h", task="nobody")
        for name in ("good", "bad", "high"):
            schedules.run_now(name)
        until(
            lambda: list(monitor.schedules.last_state[["good", "bad"]]) == ["succeeded", "failed"],
            "both have ended",
        )
        frame = monitor.schedules
    assert list(frame.index) == ["good", "idle", "high", "bad", "off"]
    assert frame.last_state["high"] == "queued"
    assert frame.queue["high"] == "tasks!high"
    assert pd.isna(frame.last_state["idle"])
    assert pd.isna(frame.last_at["idle"])
    assert list(frame.state) == ["active"] * 4 + ["paused"]
    assert pd.isna(frame.next_in["off"])
    assert pd.Timedelta("59min") < frame.next_in["good"] <= pd.Timedelta("1h")
    assert frame.rule["bad"] == "At 00:00 on the first day of January (UTC)" or frame.rule["bad"]
    assert list(frame.fired) == [1, 0, 1, 1, 0]
    assert frame.last_id["good"].startswith("good@now-")


def test_a_tick_has_the_next_ones(url: str, db: redis.Redis) -> None:
    """Of all priorities, the next first, as many as are asked for; of few also those that are
    paused. What its keys hold otherwise hides nothing else."""
    with TaskMonitor(url=url) as monitor, TaskProducer(url=url, stream="tasks!low") as low:
        assert monitor.tick().schedules == ()
        schedules = monitor.producer.schedules
        for n in range(12):
            schedules.set(f"s{n:02}", every=3600 + n, task="job")
        low.schedules.set("low", every=60, task="job")
        schedules.set("off", every=1, task="job", paused=True)
        task_id = schedules.run_now("s03")
        tick = monitor.tick(schedules=50)
        assert [row.schedule.name for row in tick.schedules] == [
            *("low", *(f"s{n:02}" for n in range(12)), "off"),
        ]
        assert tick.schedules[0].schedule.queue == "tasks!low"
        by_name = {row.schedule.name: row for row in tick.schedules}
        assert by_name["s03"].last_state == "queued"
        assert by_name["off"].next_ms is None
        db.xgroup_create("tasks", "workers", "0")
        db.xreadgroup("workers", "w", {"tasks": ">"})
        assert by_name["s03"].schedule.last_id == task_id
        few = monitor.tick(schedules=5).schedules
        assert len(few) == 5
        states = {r.schedule.name: r.last_state for r in monitor.tick(schedules=9).schedules}
        assert states["s03"] == "running"
        for key in ("schedules:tasks", "due:tasks", f"task:tasks:{task_id}"):
            db.rename(key, "aside")
            db.set(key, "something else")
            assert monitor.tick().snapshot.delayed == 0
            db.rename("aside", key)
        db.hset("schedules:tasks", "bad", "nonsense")
        db.zadd("due:tasks", {"bad": 1})
        assert "bad" not in {row.schedule.name for row in monitor.tick(schedules=50).schedules}
        assert "bad" not in monitor.schedules.index
