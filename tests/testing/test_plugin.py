"""The pytest plugin, in test runs of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ("-p", "redistq.testing.plugin", "-p", "no:cacheprovider")

JOBS = """
from redistq import Retry, task

sent = []

@task(retries=2, backoff=30, jitter=0)
def send(to: str, text: str = "hello") -> str:
    if to == "busy" and len(sent) < 1:
        sent.append("failed")
        raise OSError("the line is busy")
    sent.append(to)
    return f"sent to {to}"

def sign_up(name):
    send.options(delay=60).delay(name)
"""

TESTS = """
import asyncio
import jobs

def test_one(redistq_queue):
    jobs.sign_up("ann")
    redistq_queue.assert_enqueued(jobs.send, args=["ann"], delayed=60, count=1)
    assert redistq_queue.drain() == []
    assert redistq_queue.run_for(minutes=1, check=True).results == ["sent to ann"]

def test_two(redistq_queue):
    assert redistq_queue.tasks() == []  # nothing of the test before
    jobs.sent.clear()
    jobs.send.delay("busy")
    assert redistq_queue.run_for(minutes=1).states == ["retried", "succeeded"]

def test_calls(redistq_queue, redistq_client):
    future = redistq_client.submit(pow, 2, 5)
    redistq_queue.drain(check=True)
    assert future.result(5) == 32

def test_async(redistq_queue):
    async def scene():
        await jobs.send.adelay("ann")
        assert (await redistq_queue.adrain(check=True)).results == ["sent to ann"]
    asyncio.run(scene())
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, with nothing but our plugin and what ``args`` name."""
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGIN, "--basetemp", str(folder / "tmp"), *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with tasks and tests."""
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "test_jobs.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_a_project_is_tested(project: Path) -> None:
    """Fixtures give each test a queue of its own, to which ``delay`` adds."""
    done = run(project, "-v")
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert "Warning" not in done.stdout  # TestQueue is not taken for a test class, for one


def test_it_works_on_several_processes(project: Path) -> None:
    """Those of ``pytest -n`` share a server, and their queues do not meet."""
    text = TESTS + "".join(
        f"\ndef test_more_{n}(redistq_queue):\n"
        f"    ids = [jobs.send.delay('x{n}').id for _ in range(20)]\n"
        f"    assert redistq_queue.drain(check=True).results == ['sent to x{n}'] * 20\n"
        for n in range(12)
    )
    (project / "test_jobs.py").write_text(text)
    done = run(project, "-p", "xdist.plugin", "-n", "3")
    assert "16 passed" in done.stdout, done.stdout + done.stderr
    assert len(list((project / "tmp").rglob("valkey.sock"))) <= 1


def test_handlers_and_server_can_be_chosen(project: Path, url: str) -> None:
    """By overriding two fixtures."""
    (project / "test_jobs.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def redistq_handlers():\n"
        "    return {'double': lambda n: 2 * n}\n"
        "@pytest.fixture(scope='session')\n"
        "def redistq_server():\n"
        f"    return {url!r}\n"
        "def test_it(redistq_queue):\n"
        f"    assert redistq_queue.url == {url!r}\n"
        "    redistq_queue.producer.add_task('double', 4)\n"
        "    assert redistq_queue.drain(check=True).results == [8]\n"
    )
    done = run(project)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert not (project / "tmp").exists() or not list((project / "tmp").rglob("valkey.sock"))


def test_a_failure_reads_well(project: Path) -> None:
    """What the report of a failed assertion shows."""
    (project / "test_jobs.py").write_text(
        "import jobs\n"
        "def test_it(redistq_queue):\n"
        "    jobs.sign_up('ann')\n"
        "    redistq_queue.assert_enqueued(jobs.send, args=['bob'])\n"
    )
    done = run(project)
    assert "0 tasks are enqueued as (send, args=['bob']), at least one is wanted." in done.stdout
    assert 'send  {"args": ["ann"], "kwargs": {}}  delayed, due in 60 s' in done.stdout


def test_nothing_is_loaded_before_a_fixture_is_used(project: Path) -> None:
    """A run that uses none pays for a few small modules, and no server is started."""
    (project / "test_jobs.py").write_text(
        "import json, sys\n"
        "def test_it():\n"
        "    loaded = [m for m in sys.modules if m.split('.')[0] in ('redistq', 'redis')]\n"
        "    print('LOADED', json.dumps(sorted(loaded)), 'END')\n"
    )
    done = run(project, "-s")
    loaded = json.loads(done.stdout.partition("LOADED")[2].partition("END")[0])
    assert loaded == ["redistq", "redistq.testing", "redistq.testing.plugin"]


def test_pytest_finds_it() -> None:
    """The package names it as a plugin of pytest's."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        points = tomllib.load(file)["project"]["entry-points"]["pytest11"]
    assert points == {"redistq": "redistq.testing.plugin"}
