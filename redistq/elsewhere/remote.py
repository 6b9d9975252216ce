"""One program over there, as it is seen from here: started, asked, told, watched.

Three threads: one reads its reports, one its logs, and one (of all remotes together, see
workers.py) gives the sign that this program lives. ssh and srun are only the way: both pass on
standard streams, and their end is the end of the program over there, or of the way to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .. import __version__
from ..errors import ConfigurationError, ServerUnavailable
from ..functions.pickling import PYTHON
from ..system.processes import close, how_it_ended, keep_from_forks, pipe
from .environment import differences
from .place import MARK, Launch, Place

GRACE_S = 5.0
"""Seconds beyond the time for its tasks in which a remote has to end."""
TAIL = 6
"""Lines of what it said last that are told with its end."""


class Remote:
    """Worker processes on one other machine, by a program that runs here and leads there."""

    def __init__(self, launch: Launch, place: Place, hear: Callable[[str, str], None]) -> None:
        """Start the program; ``hear`` is told each line of its log, with its name."""
        self.name = launch.name
        self.processes = 0
        """How many worker processes run there."""
        self.fault = ""
        """Why it ended, where nobody had asked it to."""
        self.stopping = False
        self._launch = launch
        self._place = place
        self._hear = hear
        self._lock = threading.Lock()
        self._last: deque[str] = deque(maxlen=TAIL)
        self._reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._ended: dict[str, Any] = {}
        orders, self._orders = pipe()
        try:
            self._process = subprocess.Popen(
                launch.command,
                stdin=orders,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # an interrupt of the cell is for the program alone
            )
        except BaseException:  # whatever it is, an interrupt too: nothing is left open
            os.close(self._orders)
            raise
        finally:
            os.close(orders)
        keep_from_forks(self._orders)  # its end says over there that we have gone
        self._threads = [
            threading.Thread(target=run, name=f"redistq-{place.kind}-{self.name}", daemon=True)
            for run in (self._read_reports, self._read_log)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The id of the program here."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its workers are ready, and have not ended."""
        return self.processes > 0 and self._process.poll() is None

    # -- the beginning ---------------------------------------------------------------------------

    def begin(self, spec: Mapping[str, Any], packages: Mapping[str, str], deadline: float) -> str:
        """Have its workers ready by then; return how its packages differ.

        Raises ConfigurationError for what does not fit, and ServerUnavailable where the server
        cannot be reached from there.
        """
        self._tell(env=self._place.env, folder=self._place.folder)
        self._check_python(self._answer("python", deadline))
        self._tell(packages=list(packages))
        found = self._answer("redistq", deadline)
        if found["redistq"] != __version__:
            raise ConfigurationError(
                f"{self.name} has redistq {found['redistq']}, and here it is {__version__}: "
                f"install the same there"
            )
        self._tell(**spec, url=self._launch.address.url, socket=self._launch.socket)
        self.processes = int(self._answer("ready", deadline)["ready"])
        return differences(packages, found["packages"])

    def _check_python(self, answer: Mapping[str, Any]) -> None:
        there = tuple(answer["python"])
        if there[:2] != PYTHON:
            own = ".".join(map(str, PYTHON))
            raise ConfigurationError(
                f"{self.name} has Python {'.'.join(map(str, there))} ({answer['program']}), and "
                f"functions of Python {own} run in {own} alone: name another by "
                f"{type(self._place).__name__}(..., python='/path/to/python{own}')"
            )

    def _answer(self, wanted: str, deadline: float) -> dict[str, Any]:
        try:
            report = self._reports.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise ConfigurationError(
                f"{self.name} gave no answer within {self._place.timeout:g} s"
                + self._tail()
                + f"; {type(self._place).__name__}(..., timeout=...) waits longer"
            ) from None
        if report is None:
            raise ConfigurationError(f"no workers on {self.name}: {self._why_it_ended()}")
        if "unreachable" in report:
            raise ServerUnavailable(
                f"{self.name} cannot reach the server at {self._launch.address} "
                f"({report['unreachable']}): use an address that other machines reach, or say how "
                f"it is called there: {type(self._place).__name__}(..., url='redis://name:6379')"
            )
        if wanted not in report:
            raise ConfigurationError(f"no workers on {self.name}: {report.get('failure', report)}")
        return report

    # -- its life --------------------------------------------------------------------------------

    def give_sign(self) -> None:
        """Say that this program lives."""
        self._tell(alive=True)

    def wait_for_end(self) -> str:
        """Return when it has ended: why, or "" where it was asked to."""
        while (report := self._reports.get()) is not None:
            if "ended" in report:
                self._ended = report
        self._process.wait()
        if self.stopping:
            return ""
        self.fault = self._ended.get("ended") or self._why_it_ended()
        return self.fault

    def ask_to_stop(self, timeout: float) -> None:
        """Have it drain: running tasks finish within ``timeout`` seconds."""
        self.stopping = True
        self._tell(stop=timeout)
        self._close_input()

    def end(self, deadline: float) -> bool:
        """Wait until it has ended, and kill what leads there after ``deadline``; return whether
        every task came to its end."""
        self.stopping = True
        self._close_input()
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(1)
        return self._process.returncode == 0

    def _tell(self, **what: Any) -> None:
        data = json.dumps(what).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):  # it has gone
            while data and self._orders >= 0:
                data = data[os.write(self._orders, data) :]

    def _close_input(self) -> None:
        with self._lock:
            if self._orders >= 0:
                close(self._orders)
                self._orders = -1

    # -- what comes from it ----------------------------------------------------------------------

    def _read_reports(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                _, mark, text = line.partition(MARK)
                if mark:
                    with contextlib.suppress(ValueError):
                        self._reports.put(dict(json.loads(text)))
                elif line:
                    self._log(line)
        self._reports.put(None)

    def _read_log(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        with stream:
            for raw in stream:
                if line := raw.decode("utf-8", "replace").rstrip("\r\n"):
                    self._log(line)

    def _log(self, line: str) -> None:
        self._last.append(line)
        self._hear(self.name, line)

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        self._threads[1].join(1)  # what it said last
        said = " ".join(self._last)
        program = os.path.basename(self._launch.command[0])
        if "No module named" in said and "redistq" in said:
            return (
                f"{self._place.python} there has no redistq: pip install redistq=={__version__} "
                "there, or name another Python (python=...)"
            )
        if code == 127:
            return f"there is no {self._place.python} there: name one that has redistq (python=...)"
        return f"{program} {how_it_ended(code)}{self._tail()}"

    def _tail(self) -> str:
        return f" ({'; '.join(self._last)})" if self._last else ""
