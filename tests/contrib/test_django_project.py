"""The example project, run as it stands: real manage.py, sqlite, a worker as a process."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from support.workers import Command, command, until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "django_project"


class Project:
    """A copy of the example in a folder of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3"))
        assert self.manage("migrate", "-v", "0").returncode == 0

    def manage(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project."""
        return subprocess.run(
            [sys.executable, "manage.py", *args],
            cwd=self.folder,
            env={**os.environ, "REDISTQ_URL": self.url},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def worker(self, *options: str) -> Command:
        """A worker of the project; a context manager."""
        return command(self.folder, "manage.py", "redistq_worker", *options, url=self.url)

    def orders(self) -> list[tuple[object, ...]]:
        """What stands in the database."""
        connection = sqlite3.connect(self.folder / "db.sqlite3")
        try:
            return connection.execute("select article, amount, price from shop_order").fetchall()
        finally:
            connection.close()


@pytest.fixture
def project(tmp_path: Path, url: str) -> Project:
    """The example project, migrated."""
    return Project(tmp_path / "django_project", url)


def test_a_commit_adds_a_task_and_a_rollback_adds_none(project: Project, db: redis.Redis) -> None:
    """The task sees the order that was saved; after a rollback there is neither."""
    done = project.manage("order", "tea", "3", "--rollback")
    assert "rolled back" in done.stderr
    assert (db.exists("shop"), project.orders()) == (0, [])
    with project.worker("--threads", "2") as worker:
        worker.says("ready:")
        assert "for queue shop" in worker.output
        done = project.manage("order", "tea", "3")
        assert done.stdout.splitlines() == ["order 1 costs 13.50", "orders: 1"], done.stderr
        assert project.orders() == [("tea", 3, 13.5)]
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0


def test_autoreload_runs_the_code_as_it_is_now(project: Project) -> None:
    """A worker is started anew when a module changes, and ends with its command."""
    with project.worker("--autoreload") as worker:
        worker.says("ready:")
        assert "costs 13.50" in project.manage("order", "tea", "3").stdout
        tasks = project.folder / "shop" / "tasks.py"
        tasks.write_text(tasks.read_text().replace('"4.50"', '"5.00"'))
        until(lambda: worker.output.count("ready:") == 2, "the second worker", timeout=30)
        assert "costs 15.00" in project.manage("order", "tea", "3").stdout
        worker.interrupt_group()
        worker.wait()
        until(lambda: "ended" in worker.output, "the worker's end")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"URL"', '"UR"'), "configure() has no option 'ur'"),
        (lambda text: text + "\nREDISTQ = []\n", "settings.REDISTQ is a dict"),
        (lambda text: text.replace(', "shop"]', "]"), "no installed app has a task"),
    ],
)
def test_settings_that_cannot_work_say_why(
    project: Project, change: Callable[[str], str], said: str
) -> None:
    """The worker ends at its start."""
    settings = project.folder / "project" / "settings.py"
    settings.write_text(change(settings.read_text()))
    done = project.manage("redistq_worker")
    assert done.returncode != 0
    assert said in done.stderr
