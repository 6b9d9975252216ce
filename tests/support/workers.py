"""Start, watch and end workers for the tests: conditions with a deadline, processes by their pid.

Used by the tests of workers, schedulers and producers. It ends only processes that it started, or
that a worker which it started registered with the test's own server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from redistq import TaskWorker
from redistq.worker.scoreboard import Scoreboard
from support import fork_server


def until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Wait for a condition that has no signal of its own; its value, or a failed test."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def history(db: redis.Redis, task_id: str, queue: str = "tasks") -> list[str]:
    """How each attempt of a task ended, in order."""
    events: Any = db.xrange(f"history:{queue}")
    return [fields["state"] for _, fields in events if fields["id"] == task_id]


def registered(db: redis.Redis, queue: str = "tasks") -> dict[str, int]:
    """The pid of every worker process that is registered, by consumer name."""
    found = {}
    for name in db.zrange(f"workers:{queue}", 0, -1):
        pid = db.hget(f"worker:{queue}:{name}", "pid")
        if pid:
            found[name] = int(pid)
    return found


def processor_of(worker: TaskWorker) -> Any:
    """What runs the tasks of a worker in this process."""
    assert worker._running is not None
    assert worker._running.threads is not None
    return worker._running.threads.processor


def scoreboard_of(worker: TaskWorker) -> Scoreboard:
    """What a worker in this process and its supervisor tell each other by."""
    assert worker._running is not None
    assert worker._running.threads is not None
    return worker._running.threads.scoreboard


def commands_in(db: redis.Redis, condition: Callable[[], Any]) -> int:
    """How many commands the server ran while ``condition`` was being waited for."""
    before: Any = db.info("stats")
    until(condition, "the end of the count")
    after: Any = db.info("stats")
    return int(after["total_commands_processed"]) - int(before["total_commands_processed"]) - 1


def lapse(seconds: float) -> Callable[[], bool]:
    """A condition that comes true after a time: for tests of what must *not* happen in it."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


class Command:
    """A process of its own session that a test started, its standard error read as it comes."""

    def __init__(self, folder: Path, *args: str, url: str = "", **environment: str) -> None:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        if url:
            env["REDISTQ_URL"] = url
        forks = fork_server.current
        forked = None if forks is None else forks.command(args, folder, env)
        self.process = forked or subprocess.Popen(
            [sys.executable, *args],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has written so far."""
        return "".join(self.lines)

    def says(self, text: str, timeout: float = 60.0) -> None:
        """Wait until it has written ``text``."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            ended = self.process.poll() is not None
            if ended:
                self._reader.join(5)
                if text in self.output:
                    return
            assert not ended, f"it ended without saying {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"it did not say {text!r}:\n{self.output}"
            time.sleep(0.01)

    def send(self, number: int) -> None:
        """Signal the process itself."""
        self.process.send_signal(number)

    def interrupt_group(self) -> None:
        """What a terminal does on Ctrl-C: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit code."""
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def close(self) -> None:
        """End it if it still runs; what it started may go on, and keeps its output open."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        if not self._reader.is_alive():
            self.process.stdout.close()


@contextlib.contextmanager
def command(folder: Path, *args: str, **options: Any) -> Iterator[Command]:
    """A Command that ends with the block."""
    started = Command(folder, *args, **options)
    try:
        yield started
    finally:
        started.close()


@contextlib.contextmanager
def worker_commands(
    folder: Path, url: str, handlers: str = "jobs", *usual: str, program: str = fork_server.COMMAND
) -> Iterator[Callable[..., Command]]:
    """What starts ``python -m redistq.worker``, or another ``program``, in a folder, ready when it
    returns; all that it started end with the block.

    ``usual`` are options of every command. A single one is given more of them, options of the
    interpreter (``flags``), another ``module`` of handlers, and variables of its environment.
    """
    with contextlib.ExitStack() as started:

        def start(
            *options: str,
            flags: Sequence[str] = (),
            module: str = handlers,
            ready: bool = True,
            **environment: str,
        ) -> Command:
            args = (*flags, "-m", program, module, *usual, *options)
            one = started.enter_context(command(folder, *args, url=url, **environment))
            if ready:
                one.says("ready:")
            return one

        yield start


class Proxy:
    """A TCP proxy before a server that can lose an answer: the server acts, the client never hears.

    ``lose`` cuts the connection instead of passing on the next answer that the condition accepts.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.lost = 0
        self._lose: Callable[[bytes], bool] | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    def lose(self, condition: Callable[[bytes], bool] = lambda data: True) -> None:
        """Lose the next answer that ``condition`` accepts, once."""
        self._lose = condition

    def cut(self) -> None:
        """Cut every connection there is."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    client.close()
                    continue
                self._pairs.append((client, server))
                for args in ((client, server, False), (server, client, True)):
                    thread = threading.Thread(target=self._pump, args=args, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self._lose is not None and self._lose(data):
                    self._lose = None
                    self.lost += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it with all its connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for pair in self._pairs:
            for end in pair:
                end.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
