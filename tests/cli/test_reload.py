"""``--reload``: the worker starts anew when a file changes, and waits where it cannot start."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import redis
from support.workers import alive, command, registered, until

from redistq import TaskProducer
from redistq.cli.reload import without_reload
from redistq.cli.worker import main

JOBS = """
import time
from redistq import task

@task
def version(payload):
    return {version!r}

@task
def long(payload):
    time.sleep(60)
"""
WORKER = ("-m", "redistq.worker", "jobs", "--threads", "2", "--reload")


def test_a_change_is_taken_up(url: str, db: redis.Redis, tmp_path: Path) -> None:
    """Edited, broken, mended: the next worker runs what stands in the file; a long task of the
    earlier one does not hold it up; at the end nothing is left."""
    jobs = tmp_path / "jobs.py"
    jobs.write_text(JOBS.format(version="first"))
    with command(tmp_path, *WORKER, url=url) as watching, TaskProducer(url=url) as producer:
        watching.says("ready:")
        assert producer.get_result(producer.add_task("version"), timeout=20) == "first"
        producer.add_task("long", retries=0)
        until(lambda: producer.snapshot().pending, "the long task runs")

        jobs.write_text(JOBS.format(version="second"))
        watching.says("jobs.py changed: the worker starts anew")
        # Until then the earlier one may still take a task.
        until(lambda: watching.output.count("ready:") == 2, "the next worker is ready")
        task_id = producer.add_task("version")
        assert producer.get_result(task_id, timeout=20) == "second"

        jobs.write_text("def broken(:\n")
        watching.says("SyntaxError")
        watching.says("the next change of a file starts it again")
        jobs.write_text(JOBS.format(version="third"))
        assert producer.get_result(producer.add_task("version"), timeout=20) == "third"

        pids = list(registered(db).values())
        watching.process.send_signal(signal.SIGTERM)
        assert watching.process.wait(20) == 0
        until(lambda: not any(map(alive, pids)), "its worker has ended")


def test_another_folder_may_be_watched(url: str, tmp_path: Path) -> None:
    """And what is no Python file does not count."""
    (tmp_path / "jobs.py").write_text(JOBS.format(version="first"))
    watched = tmp_path / "library"
    watched.mkdir()
    with command(tmp_path, *WORKER, "--reload-dir", "library", url=url) as watching:
        watching.says("ready:")
        (tmp_path / "jobs.py").write_text(JOBS.format(version="second"))
        (watched / "notes.txt").write_text("no code")
        (watched / "code.py").write_text("one = 1")
        watching.says("code.py changed")
        assert not any("jobs.py" in line or "notes" in line for line in watching.lines)


def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """2, with the command that installs it; or the folder that is not there."""
    assert main(["jobs", "--reload", "--reload-dir", "nowhere"]) == 2
    assert "--reload-dir nowhere: there is no such folder" in caplog.text
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert main(["jobs", "--reload"]) == 2
    assert "watchfiles is needed for --reload: pip install redistq[dev]" in caplog.text


def test_the_worker_is_given_all_other_arguments() -> None:
    """Its own, in their order."""
    given = ["jobs", "--reload", "--reload-dir", "a", "--queue", "b", "--reload-dir=c", "more"]
    assert without_reload(given) == ["jobs", "--queue", "b", "more"]
    assert without_reload(["jobs", "--reload-d", "a", "--reload"]) == ["jobs"]
