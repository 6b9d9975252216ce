"""A program that ends without shutdown: with workers of its own it finishes what it submitted,
without it says what stays; it never waits for what will not come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.clients import KEY
from support.servers import Server, others_serve
from support.workers import until

BEGIN = """
import os, sys, time
from pathlib import Path
from redistq import Client
log = Path(sys.argv[2])
client = Client(sys.argv[1], signing_key={key!r})
{workers}
def work(n):
    time.sleep(0.05)
    (log / str(n)).touch()
def long(n):
    (log / str(n)).touch()
    end = time.monotonic() + 60
    while time.monotonic() < end and not (log / "over").exists():
        time.sleep(0.05)
"""
WORKERS = "workers = client.start_workers(2)"
TEN = "for n in range(10): client.submit(work, n)"


@pytest.fixture
def program(url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A factory of programs, each of which ends by itself or with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*lines: str, workers: str = WORKERS, at: str = url) -> subprocess.Popen[str]:
        code = BEGIN.format(key=KEY, workers=workers) + "\n".join(lines)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, at, str(tmp_path)],
                stderr=(tmp_path / "said").open("w"),  # no pipe: its workers end later
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    (tmp_path / "over").touch()  # what still runs a long task serves the next test no more
    for one in started:
        if one.poll() is None:
            one.kill()
        one.wait()


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., list[str]]:
    """What a program said until its end, but for what its workers say of the server."""

    def wait(program: subprocess.Popen[str]) -> list[str]:
        program.wait(30)
        lines = (tmp_path / "said").read_text().splitlines()
        return [
            x for x in lines if not any(w in x for w in ("appendonly", "supervisor", "scheduler"))
        ]

    return wait


def done(folder: Path) -> list[int]:
    """What ran."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([TEN], 0),
        ([TEN, "sys.exit(3)"], 3),
        ([TEN, "raise ValueError"], 1),
        (["client.map_batch(work, range(10))"], 0),
        (["client.map_batch(work, range(10), name='ten')"], 0),
        (["client.map_batch(work, range(10)); del client; import gc; gc.collect()"], 0),
        (["high = client.options(priority='high')", TEN.replace("client.", "high.")], 0),
        ([TEN, "client.shutdown(wait=False)"], 0),
        ([TEN.replace("client.", "client.options(delay=1).")], 0),
        (
            ["import threading", f"threading.Timer(0.5, lambda: exec({TEN!r}, globals())).start()"],
            0,
        ),
    ],
    ids=[
        "end",
        "exit",
        "error",
        "batch",
        "named",
        "dropped",
        "high",
        "no wait",
        "delayed",
        "thread",
    ],
)
def test_a_program_with_workers_finishes_what_it_submitted(
    program: Callable[..., Any],
    said: Callable[..., list[str]],
    tmp_path: Path,
    lines: list[str],
    code: int,
) -> None:
    """However it ends, its exit code stays what it was."""
    running = program(*lines)
    words = said(running)
    assert running.returncode == code
    assert done(tmp_path) == list(range(10)), words
    assert not [line for line in words if "redistq" in line or "stay" in line]


def test_a_program_without_workers_says_what_stays(
    program: Callable[..., Any], said: Callable[..., list[str]], db: redis.Redis
) -> None:
    """One line: how much, where, and what would have waited. All of it is with the server."""
    until(lambda: not others_serve(db), "the workers of the test before have gone")
    running = program(TEN, "client.map_batch(work, range(3), name='three')", workers="")
    (line,) = said(running)
    assert running.returncode == 0
    assert "10 calls and batch 'three'" in line
    assert "they stay in queue 'tasks' of redis://127.0.0.1" in line
    assert "client.shutdown() before the end" in line
    assert db.xlen("tasks") == 13


@pytest.mark.parametrize("lines", [["client.submit(work, 1).result()"], ["client.shutdown()"], []])
def test_a_program_with_nothing_left_ends_at_once_and_says_nothing(
    program: Callable[..., Any], said: Callable[..., list[str]], lines: list[str]
) -> None:
    """No line, no wait."""
    assert said(program(*lines)) == []


def test_an_interrupt_ends_the_wait_at_the_end(
    program: Callable[..., Any], said: Callable[..., list[str]], tmp_path: Path, db: redis.Redis
) -> None:
    """Ctrl-C while the program waits: it says what stays, and what runs is put back."""
    running = program("for n in range(5): client.submit(long, n)")
    until(lambda: len(done(tmp_path)) == 2, "two to run", 20)
    time.sleep(1)  # the wait at the end has no signal
    os.kill(running.pid, signal.SIGINT)
    began = time.monotonic()
    lines = said(running)
    assert time.monotonic() - began < 10
    assert any("5 calls had not ended" in line for line in lines)
    until(lambda: db.xlen("tasks") == 5, "all to be there still")


def test_an_interrupted_program_does_not_wait(
    program: Callable[..., Any], said: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Ctrl-C in the midst of it means the end."""
    running = program(
        "for n in range(5): client.submit(long, n)", "(log / 'sent').touch()", "time.sleep(60)"
    )
    until(lambda: len(done(tmp_path)) == 2 and (tmp_path / "sent").exists(), "two to run", 20)
    os.kill(running.pid, signal.SIGINT)
    assert any("5 calls had not ended" in line for line in said(running))


def test_what_is_due_much_later_is_not_waited_for(
    program: Callable[..., Any], said: Callable[..., list[str]], db: redis.Redis
) -> None:
    """The rest is done; what stays is said."""
    running = program("client.submit(work, 1)", "client.options(delay=3600).submit(work, 2)")
    assert "1 call have not ended (what is left is due later)" in said(running)[-1]
    assert db.zcard("delayed:tasks") == 1


def test_workers_that_are_gone_are_not_waited_for(
    program: Callable[..., Any], said: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Nobody is left who could do it."""
    running = program(
        "for n in range(5): client.submit(long, n)",
        "while len(list(log.iterdir())) < 2: time.sleep(0.05)",
        "workers.stop(0)",
    )
    assert any("5 calls had not ended" in line for line in said(running))


def test_a_server_that_is_gone_is_not_waited_for(
    program: Callable[..., Any],
    said: Callable[..., list[str]],
    private_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    """The end comes within a moment, and says why."""
    server = private_server()
    running = program(
        "from redistq.client import at_exit",
        "at_exit.AWAY_S = 1.0",
        "for n in range(5): client.submit(long, n)",
        at=server.url,
    )
    until(lambda: len(done(tmp_path)) == 2, "two to run", 20)
    server.kill()
    assert any("the server is away" in line for line in said(running))


def test_a_forked_child_leaves_its_parents_calls_alone(
    program: Callable[..., Any], said: Callable[..., list[str]], tmp_path: Path
) -> None:
    """It ends at once; the parent waits as ever."""
    running = program(
        TEN,
        "began = time.monotonic()",
        "pid = os.fork()",
        "if not pid: sys.exit(7)",
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7",
    )
    assert said(running) == []
    assert done(tmp_path) == list(range(10))
