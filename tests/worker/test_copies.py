"""The first worker processes of a program: copies of their supervisor, like those started anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.workers import alive, registered, until

from redistq import TaskProducer, TaskWorker

pytestmark = [
    pytest.mark.own_start,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="copies are made on Linux"),
]


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


def surroundings(payload: Any) -> dict[str, Any]:
    """What a handler finds around it; a process started anew is asked the same."""
    import gc
    import os
    import signal
    import sys
    import threading

    def opened(number: str) -> str:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            return ""  # the one that lists them
        return target.partition(":")[0] if number not in "012" else f"{number} {target}"

    found: list[str] = sorted(map(opened, os.listdir("/proc/self/fd")))
    return {
        "session": os.getsid(0) == os.getpid() == os.getpgrp(),
        "parent": os.getppid(),
        "input": sys.stdin.read(),
        "opened": found,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "handled": [
            number.name
            for number in signal.valid_signals()
            if isinstance(number, signal.Signals) and callable(signal.getsignal(number))
        ],
        "masked": [str(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "argv": sys.argv,
        "main": sorted(vars(sys.modules["__main__"]).keys() & {"__file__", "__spec__", "task"}),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path,
        "flags": list(sys.flags),
        "collects": gc.isenabled(),
        "switch": sys.getswitchinterval(),
        "encoding": (sys.stdout.encoding, sys.stderr.errors, sys.stdout.line_buffering),
    }


def is_copy(pid: int) -> bool:
    """Whether a process has the command line of its supervisor."""
    with open(f"/proc/{pid}/cmdline") as file:
        return "redistq.worker.sidecar" in file.read()


def test_a_copy_is_as_a_process_that_was_started_anew(
    url: str, producer: TaskProducer, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers find the same around them in both: nothing of the supervisor, nothing of others."""
    monkeypatch.setenv("OF_THE_PROGRAM", "1")
    with TaskWorker(
        url=url, task_handlers={"s": surroundings}, processes=2, blas_threads=3, thread_count=1
    ):
        first = set(registered(db).values())
        assert len(first) == 2
        assert all(map(is_copy, first))
        copied = producer.get_result(producer.add_task("s"), 20)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not first & set(registered(db).values()), "both have been replaced")
        until(lambda: len(registered(db)) == 2, "by two others")
        assert not any(map(is_copy, registered(db).values()))
        anew = producer.get_result(producer.add_task("s"), 20)
    assert copied == anew
    assert copied["collects"], "only while modules are loaded it is off"
    assert copied["environment"]["OF_THE_PROGRAM"] == "1"
    assert copied["environment"]["OMP_NUM_THREADS"] == "3"


def test_copies_end_with_their_supervisor(url: str, db: redis.Redis) -> None:
    """When the supervisor is killed, its end of the pipes is nowhere else: they end."""
    worker = TaskWorker(url=url, task_handlers={"s": surroundings}, processes=2, lease=1.0)
    with worker:
        first = set(registered(db).values())
        assert worker._running is not None
        os.kill(worker._running.sidecar.pid, signal.SIGKILL)
        until(lambda: not any(map(alive, first)), "both have ended")


@pytest.mark.parametrize(
    ("before", "good"),
    [
        ("", True),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", False),
        ("opened = open(os.devnull)", False),
        ("sys.modules['numpy'] = sys", False),
        ("descriptor = os.open(os.devnull, 0); keep_from_forks(descriptor)", True),
    ],
)
def test_only_a_process_in_which_nothing_has_begun_is_copied(before: str, good: bool) -> None:
    """A thread, an open file or a numeric library: then worker processes are started anew."""
    program = (
        "import os, sys, threading\n"
        "from redistq.system.processes import can_copy, keep_from_forks\n"
        f"{before}\nprint(can_copy())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{good}\n"


def test_a_thread_in_the_supervisor_has_processes_started_anew(
    url: str, producer: TaskProducer, db: redis.Redis, tmp_path: Any, monkeypatch: Any
) -> None:
    """A sitecustomize that starts a thread, as tracers do, makes no copy of half a process."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with TaskWorker(url=url, task_handlers={"s": surroundings}, processes=1):
        assert not any(map(is_copy, registered(db).values()))
        assert "sitecustomize" not in producer.get_result(producer.add_task("s"), 20)["argv"]


WAITS = """
import os, signal, subprocess
from redistq.system.copies import Copy, copy_this

ended = copy_this(lambda: os._exit(7))
assert ended.wait() == ended.poll() == ended.returncode == 7
ended.kill()  # its id may be another's by now
reader, writer = os.pipe()
waiting = copy_this(lambda: os.read(reader, 1))
assert waiting.poll() is None
try:
    waiting.wait(0.05)
except subprocess.TimeoutExpired:
    waiting.kill()
assert waiting.wait(10) == -signal.SIGKILL
assert copy_this(lambda: 1 / 0).wait() == 1
assert Copy(ended.pid).wait() == 0  # somebody else has waited for it
"""


def test_a_copy_is_waited_for_like_any_process() -> None:
    """Its exit code, or the signal that killed it; a wait may take only so long."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ZeroDivisionError") == 1
