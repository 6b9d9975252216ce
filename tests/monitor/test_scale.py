"""What scalers of pods are told: how much waits and runs, and how long that takes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from support.farm import Farm, fill

from redistq import TaskMonitor, TaskProducer
from redistq.monitor.metrics import MetricsServer
from redistq.monitor.scale import Scale


def ask(server: MetricsServer) -> dict[str, Any]:
    """The answer at /scale."""
    address = server.url.replace("/metrics", "/scale")
    with urllib.request.urlopen(address, timeout=10) as reply:
        assert reply.headers["Content-Type"] == "application/json"
        found: dict[str, Any] = json.loads(reply.read())
        return found


def test_a_scaler_is_told_what_waits_and_runs(farm: Farm, url: str) -> None:
    """Beside the figures for Prometheus; a paused queue asks for nobody."""
    fill(farm)
    server = MetricsServer(TaskMonitor(url=url), 0)
    try:
        said = ask(server)
        assert said["queues"] == ["tasks"]
        assert (said["queued"], said["running"], said["tasks"]) == (2, 1, 3)
        assert said["workers"] >= 1
        assert said["slots"] >= 1
        assert said["backlog_seconds"] == said["oldest_seconds"] > 0
        assert (said["per_second"], said["paused"]) == (None, False)
        with TaskProducer(url=url) as producer:
            producer.pause()
        said = ask(server)
        assert (said["queued"], said["backlog_seconds"], said["paused"]) == (0, 0.0, True)
    finally:
        server.stop()


def test_a_backlog_is_told_in_seconds(farm: Farm, url: str) -> None:
    """What waits by what ended a second since the requests before."""
    fill(farm)
    with TaskMonitor(url=url) as monitor:
        scale = Scale([monitor])
        shot = monitor.snapshot()
        before = shot.counters.get("succeeded", 0)
        assert scale.figures([shot], 100.0)["per_second"] is None
        shot.counters["succeeded"] = before + 40
        said = scale.figures([shot], 110.0)
        assert (said["per_second"], said["backlog_seconds"]) == (4.0, 0.5)
        for second in range(111, 500):
            said = scale.figures([shot], float(second))
        assert said["per_second"] == 0.0, "what was long ago does not count"
        shot.counters.clear()
        assert scale.figures([shot], 501.0)["per_second"] is None, "another server"


def test_a_server_that_is_away_is_no_empty_queue() -> None:
    """The scaler keeps what there is."""
    metrics = MetricsServer(TaskMonitor(url="redis://127.0.0.1:1/0", timeout=1.0), 0)
    try:
        with pytest.raises(urllib.error.HTTPError) as raised:
            ask(metrics)
        assert raised.value.code == 503
    finally:
        metrics.stop()
