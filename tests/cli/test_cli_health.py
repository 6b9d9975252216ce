"""``redistq health``: what probes are told."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
from support.workers import until

from redistq import TaskProducer, TaskWorker
from redistq.cli import main
from redistq.cli.health import check_of_waits, checks_of_workers

Said = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def health(url: str, capsys: pytest.CaptureFixture[str]) -> Said:
    """Run the command with --json; its exit code and what it says."""

    def run(*args: str) -> tuple[int, dict[str, Any]]:
        code = main(["health", "--url", url, "--json", *args])
        return code, json.loads(capsys.readouterr().out)

    return run


def bad(said: dict[str, Any]) -> list[str]:
    """The names of the checks that failed."""
    return [check["name"] for check in said["checks"] if not check["ok"]]


def test_a_queue_without_a_worker_is_ill(health: Said) -> None:
    """1; for those who only add, the server alone is asked for."""
    code, said = health()
    assert (code, said["healthy"], bad(said)) == (1, False, ["workers"])
    assert health("--server-only")[0] == 0


def test_a_queue_with_a_worker_is_well(url: str, health: Said) -> None:
    """With names, on this host, and several queues at a time."""
    with TaskWorker(url=url, task_handlers={"a": len, "b": len}, thread_count=1):
        assert health()[0] == 0
        assert health("--names", "a,b", "--worker", "--max-waiting-s", "5")[0] == 0
        code, said = health("--names", "a, c")
        assert (code, bad(said)) == (1, ["name"])
        assert "0 of them run tasks named c" in json.dumps(said)
        code, said = health("--queue", "tasks", "--queue", "others")
        assert (code, bad(said)) == (1, ["workers"])
    assert health("--worker")[0] == 1


def test_work_that_waits_too_long(url: str, db: redis.Redis, health: Said) -> None:
    """Ready or due, and not on a queue that is paused."""
    with TaskProducer(url=url) as producer:
        producer.add_task("a")
        arguments = ("--server-only", "--max-waiting-s", "0.01")
        until(lambda: health(*arguments)[0] == 1, "the task waits for 10 ms")
        assert health("--server-only", "--max-waiting-s", "60")[0] == 0
        producer.pause()
        assert health(*arguments)[0] == 0


def test_the_figures_are_judged_by_the_servers_clock(url: str) -> None:
    """Pure decisions, of snapshots: silent workers, other hosts, late due times."""
    with TaskWorker(url=url, task_handlers={"a": len}, thread_count=1) as worker:
        from redistq import TaskMonitor

        with TaskMonitor(url=url) as monitor:
            shot = monitor.snapshot()
        assert worker.consumer
    here = socket.gethostname()
    assert [c.ok for c in checks_of_workers(shot, "tasks", ["a"], here)] == [True] * 3
    assert not checks_of_workers(shot, "tasks", host="elsewhere")[-1].ok
    silent = replace(shot, now_ms=shot.now_ms + 3_600_000)
    assert [c.ok for c in checks_of_workers(silent, "tasks", ["a"], here)] == [False] * 3
    late = replace(shot, next_due_ms=shot.now_ms - 9000)
    assert (
        "due and not moved waits for 9.0 s; the limit is 5 s" in check_of_waits(late, "q", 5).words
    )
    assert check_of_waits(replace(shot, next_due_ms=shot.now_ms + 9000), "q", 5).ok


def test_words_for_people(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is ill stands on standard error."""
    assert main(["health", "--url", url]) == 1
    out, err = capsys.readouterr()
    assert out == "ok: the server of queue tasks answers\n"
    assert err == "redistq: 0 of 0 worker processes of queue tasks beat\n"


def test_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """1 for a server that is away, 2 for a slip."""
    arguments = ["health", "--url", "redis://127.0.0.1:1", "--timeout", "0.2", "--json"]
    assert main(arguments) == 1
    assert json.loads(capsys.readouterr().out)["checks"][0]["name"] == "server"
    assert main(["health", "--url", "nonsense"]) == 2
    assert main(["health", "--server-only", "--worker"]) == 2
