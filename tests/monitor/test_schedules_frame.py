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
