"""The README keeps its word: its Python runs, its tables and commands agree with the code."""

from __future__ import annotations

import configparser
import inspect
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import redis
from support.documents import Block, blocks, run_as_a_program

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
INTERNALS = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = [block for block in blocks(README) if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line-{block.line}")
def test_a_python_block_runs_as_it_stands(block: Block, url: str, tmp_path: Path) -> None:
    """Each block is a program of its own, and prints what the comments behind `print` say."""
    if block.reason:
        pytest.skip(block.reason)
    run_as_a_program(block, url, tmp_path)


def test_every_printing_line_says_what_it_prints() -> None:
    """So that no output goes unchecked."""
    for block in PYTHON:
        for line in block.text.splitlines():
            if line.strip().startswith("print("):
                assert "  # " in line, f"near line {block.line}: {line.strip()}"


def rows(title: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def written(value: object) -> str:
    """A default as the table writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def test_the_settings_table_is_complete_and_right() -> None:
    """Every option of TaskWorker and of the command is there, with its default."""
    from redistq import TaskWorker
    from redistq.cli.worker import parser
    from redistq.worker.settings import WorkerSettings

    own_names = {"queue": "stream", "threads": "thread_count"}
    defaults = {own_names.get(f.name, f.name): f.default for f in fields(WorkerSettings)}
    defaults["delayed_key"] = "delayed:<queue>"
    actions = {a.option_strings[-1]: a for a in parser()._actions if a.option_strings}
    options, flags = set(), set()
    for names, flag, default, _ in rows("Settings of a worker"):
        options |= set(re.findall(r"`(\w+)`", names))
        flags |= set(re.findall(r"`(--[\w-]+)`", flag))
        option = names.strip("`")
        if option in defaults and option != "queues":
            assert default.strip("`") == written(defaults[option]), option
        own = ("processes", "scheduler", "delayed_key", "stream")
        if option not in own and flag.strip("`") in actions:
            assert default.strip("`") in (written(actions[flag.strip("`")].default), "see above")
    assert options == set(defaults) | set(inspect.signature(TaskWorker).parameters) - {
        "options",
        "address",
    }
    assert flags == set(actions) - {"--help"}


def test_commands_in_the_readme_are_accepted() -> None:
    """The worker command lines parse, in the README, in operations and in the systemd unit."""
    from redistq.cli.worker import parser

    commands = re.findall(r"^[^`]*-m redistq\.worker (.*)$", README + OPERATIONS, re.M)
    assert len(commands) >= 4
    for command in commands:
        assert parser().parse_args(shlex.split(command)).targets == ["jobs"]


def test_the_systemd_unit_gives_the_worker_time_to_drain() -> None:
    """TimeoutStopSec is longer than the shutdown timeout and the grace after it."""
    from redistq.worker.supervisor import KILL_GRACE_S

    (unit,) = (block.text for block in blocks(OPERATIONS) if block.language == "ini")
    config = configparser.ConfigParser()
    config.read_string(unit)
    timeout = re.search(r"--shutdown-timeout (\d+)", config["Service"]["ExecStart"])
    assert timeout is not None
    assert int(config["Service"]["TimeoutStopSec"]) > int(timeout[1]) + KILL_GRACE_S


def test_methods_in_the_text_exist() -> None:
    """What the section on watching names is there."""
    from redistq import TaskMonitor

    section = README.split("## Watching a queue")[1].split("\n## ")[0]
    named = re.findall(r"`(get_\w+)`", section)
    assert len(named) > 5
    assert [name for name in named if not hasattr(TaskMonitor, name)] == []


def test_make_targets_exist() -> None:
    """Each `make` target that the README names is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (demo|test|lint|bench|\w+)(?=`|$|\s{2,})", README, re.M))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    """Limits and defaults that the prose states."""
    from redistq import errors
    from redistq.connection import broker
    from redistq.handlers import RetryPolicy
    from redistq.protocol import codec
    from redistq.worker import limits
    from redistq.worker.settings import WorkerSettings

    policy = RetryPolicy()
    assert (policy.retries, policy.factor, policy.jitter) == (3, 2.0, 0.25)
    assert "three times by default" in README
    assert "`backoff * 2 ** (n - 1)` seconds" in README
    assert codec.DEFAULT_MAX_BYTES == 8 * 1024**2
    assert (codec.MAX_TRACEBACK_CHARS, codec.MAX_MESSAGE_CHARS) == (16_000, 4_000)
    assert broker.DEFAULT_TIMEOUT == 10
    assert limits.HARD_LIMIT_GRACE == 5
    assert WorkerSettings().max_recoveries == 5
    for name in set(re.findall(r"`([A-Z]\w+[a-z])`", README)):
        import redistq

        if name in errors.__all__:
            assert hasattr(redistq, name), name


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "docs/operations.md", "docs/internals.md"]
)
def test_links_lead_somewhere(name: str) -> None:
    """Relative links are files of the repository, and anchors are headings."""
    here = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", here.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = here.parent / path if path else here
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            plain = (re.sub(r"[^\w -]", "", heading) for heading in headings)
            assert anchor in {text.strip().lower().replace(" ", "-") for text in plain}, target


@pytest.fixture
def used_queue(url: str) -> dict[str, str]:
    """The queue `tasks` with some of everything in it; the ids and names that commands need."""
    from redistq import TaskProducer, TaskWorker

    with TaskProducer(url=url) as producer:
        worker = TaskWorker(url=url, task_handlers={"double": lambda n: 2 * n})
        with worker:
            done = producer.add_task("double", 21)
            failed = producer.add_task("double", None, retries=0)
            assert producer.get_result(done, timeout=10) == 42
            with pytest.raises(Exception, match="TypeError"):
                producer.get_result(failed, timeout=10)
        producer.add_task("double", 1)
        producer.add_task("double", 1, delay=600)
        producer.limits.set("KEY", at_most=1)
        producer.add_tasks({"type": "double", "limits": "KEY"} for _ in range(2))
    return {"ID": failed, "NAME": worker.consumer}


def test_the_commands_in_operations_run(used_queue: dict[str, str], db: redis.Redis) -> None:
    """Each command of the table is accepted; those on what is there find something."""
    said = OPERATIONS.split("| question | command |")[1].split("\n\n")[0]
    commands = re.findall(r"`([A-Z]+ [^`]+)`", said)
    assert len(commands) >= 12
    for command in commands:
        words = command
        for part, value in used_queue.items():
            words = words.replace(f":{part}", f":{value}")
        answer = db.execute_command(*words.split())
        gone = "worker" in command or command == "HGETALL meta:tasks"
        assert answer or gone, command


def test_the_python_in_operations_runs(
    used_queue: dict[str, str], url: str, tmp_path: Path
) -> None:
    """Every block runs on a queue with some of everything in it."""
    programs = [block.text for block in blocks(OPERATIONS) if block.language == "python"]
    assert len(programs) == 5
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "REDISTQ_URL": url},
        )
        assert done.returncode == 0, done.stderr


def test_deleting_a_queue_leaves_nothing(used_queue: dict[str, str], db: redis.Redis) -> None:
    """The two lines in operations name every key that there is."""
    assert used_queue
    (commands,) = (block.text for block in blocks(OPERATIONS) if block.language == "bash")
    (names,) = re.findall(r"^redis-cli UNLINK (.*)$", commands, re.M)
    (pattern,) = re.findall(r"--pattern '(.*)'", commands)
    for key in [*db.scan_iter(pattern), *names.split()]:
        db.unlink(key)
    assert db.keys() == []


def test_internals_lists_every_key() -> None:
    """The table of keys has all that keys.py makes, and no other."""
    from redistq.protocol.keys import QueueKeys

    keys = QueueKeys("tasks")
    options = ("delayed_key", "clustered")
    made = {str(getattr(keys, f.name)) for f in fields(keys) if f.name not in options}
    table = INTERNALS.split("| key | type |")[1].split("\n\n")[0]
    listed = set(re.findall(r"^\| `([^`]+)` \|", table, re.M))
    assert {re.sub(r":[A-Z]+$", ":", name) for name in listed} == made
