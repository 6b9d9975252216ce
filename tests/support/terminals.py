"""A program in a pseudo-terminal, and what its screen shows: for tests of live screens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

import pyte


class Terminal:
    """A Python module run in a terminal of a size; its screen, its keys, and how it ends."""

    def __init__(self, columns: int, rows: int, *args: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        self._slave = slave

    def press(self, keys: bytes) -> None:
        """Send keys."""
        os.write(self.fd, keys)

    @property
    def lines(self) -> list[str]:
        """The screen's lines, without what is blank at their ends."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The whole screen."""
        return "\n".join(self.lines)

    def until(self, condition: Callable[[str], Any], what: str, timeout: float = 15.0) -> str:
        """Wait until the screen is as wanted; the screen, or a failed test that shows it."""
        deadline = time.monotonic() + timeout
        while not condition(self.text):
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}\n{self.text}"
            self._read(0.05)
        return self.text

    def shows(self, words: str) -> str:
        """Wait until some words are on the screen."""
        return self.until(lambda text: words in text, f"{words!r} on the screen")

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def ends(self, timeout: float = 15.0) -> int:
        """Wait for the end; the exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still there\n{self.text}"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def restored(self) -> bool:
        """Whether the terminal is as before: its modes, its first screen, its cursor."""
        modes = termios.tcgetattr(self._slave)[:4] == self.before[:4]
        screen = self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h")
        cursor = self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l")
        return modes and screen and cursor

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        for fd in (self.fd, self._slave):
            with contextlib.suppress(OSError):
                os.close(fd)
