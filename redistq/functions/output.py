"""What a task prints and logs: kept for its failure report, and sent to whoever asked for it live.

Used by the worker's handler for function calls. Bounded everywhere: a task that prints for ever
fills nothing. Standard output is only caught in worker processes of our own, never in an
application or a notebook's kernel that happens to run a worker.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import time
from collections import deque
from typing import Any

from ..connection.broker import Broker
from ..logger import logger
from ..protocol.keys import QueueKeys
from ..protocol.plain_commands import Command, append_line, expire

log = logger("redistq.worker")

TAIL_LINES = 50
MAX_LINE = 1_000
MAX_BYTES = 256 * 1024
MAX_ENTRIES = 2_000
LOGS_TTL_S = 86_400
FLUSH_S = 0.2

_local = threading.local()


class TaskOutput:
    """The output of one attempt: the last lines always, all lines to a stream when asked.

    With ``is_alone`` it does not go to the worker's own output, too.
    """

    def __init__(
        self, key: str | None = None, sink: LogSink | None = None, *, is_alone: bool = False
    ) -> None:
        self.is_alone = is_alone
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._key = key
        self._sink = sink
        self._partial: dict[str, str] = {}
        self._held: dict[str, str] = {}
        self._sent = 0

    def write(self, source: str, text: str) -> None:
        """Take text from ``source`` (out, err or log), and keep it by whole lines."""
        text = self._partial.pop(source, "") + text
        *lines, rest = text.split("\n")
        if rest:
            self._partial[source] = rest[-MAX_LINE:]
        for line in lines:
            self._line(source, line[:MAX_LINE])

    def whole(self, source: str, text: str) -> str:
        """Return what the worker's own output is to be given of it: whole lines, so that those of
        several threads and processes do not mix; the rest is held until it is one."""
        text = self._held.pop(source, "") + text
        end = max(text.rfind("\n"), text.rfind("\r")) + 1
        if len(text) - end > MAX_LINE:
            return text
        if text[end:]:
            self._held[source] = text[end:]
        return text[:end]

    def held(self, source: str) -> str:
        """Return what is held, and hold it no longer."""
        return self._held.pop(source, "")

    def _line(self, source: str, line: str) -> None:
        self.tail.append(line)
        if self._sink is None or self._key is None or self._sent > MAX_BYTES:
            return
        self._sent += len(line) + 1
        if self._sent > MAX_BYTES:
            line = f"... output beyond {MAX_BYTES // 1024} kB is left out"
        self._sink.put(self._key, source, line)

    def close(self) -> None:
        """End the attempt's output: its last unfinished lines are lines too."""
        for source, rest in self._partial.items():
            self._line(source, rest)
        self._partial.clear()
        if self._sink is not None:
            self._sink.flush()


class LogSink:
    """Sends lines to the server a few times a second; output is never worth losing a task for."""

    def __init__(self, broker: Broker, keys: QueueKeys) -> None:
        self._broker = broker
        self._waiting: deque[tuple[str, str, bytes]] = deque(maxlen=10_000)
        self._lock = threading.Lock()
        self._last = 0.0
        self._thread: threading.Thread | None = None
        self._some = threading.Event()

    def put(self, key: str, source: str, line: str) -> None:
        """Queue a line for the stream ``key``; what is no text in it becomes question marks."""
        self._waiting.append((key, source, line.encode("utf-8", "replace")))
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="redistq-output", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # no more threads: the end of the task sends it
            self._thread = thread
        self._some.set()

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            self.flush()
            time.sleep(FLUSH_S)

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            commands: list[Command] = []
            keys: set[str] = set()
            while self._waiting:
                key, source, line = self._waiting.popleft()
                keys.add(key)
                commands.append(append_line(key, source, line, MAX_ENTRIES))
            commands.extend(expire(key, LOGS_TTL_S) for key in keys)
            if commands:
                try:
                    for _ in self._broker.call_many(commands):
                        pass
                except Exception:  # the task has nothing to do with it
                    log.debug("output was lost", exc_info=True)


class _Tee(io.TextIOBase):
    """Standard output or error that the current thread's task sees too."""

    def __init__(self, source: str, real: Any) -> None:
        self._source = source
        self._real = real

    def write(self, text: str) -> int:
        output = getattr(_local, "output", None)
        if output is None:
            self._real.write(text)
            return len(text)
        output.write(self._source, text)
        if not output.is_alone and (lines := output.whole(self._source, text)):
            self._real.write(lines)
        return len(text)

    def flush(self) -> None:
        output = getattr(_local, "output", None)
        if output is not None and (rest := output.held(self._source)):
            self._real.write(rest)
        self._real.flush()

    def fileno(self) -> int:
        return int(self._real.fileno())

    def isatty(self) -> bool:
        return bool(self._real.isatty())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._real.encoding)


class _LogCatcher(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        output = getattr(_local, "output", None)
        if output is not None and not record.name.startswith("redistq."):
            with contextlib.suppress(Exception):
                output.write("log", self.format(record) + "\n")


_catcher = _LogCatcher()
_catcher.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))


def catch_standard_output() -> None:
    """Catch what tasks print from now on; for the main program of a worker process only."""
    if not isinstance(sys.stdout, _Tee):
        sys.stdout = _Tee("out", sys.stdout)
        sys.stderr = _Tee("err", sys.stderr)


class captured:
    """What this thread prints and logs inside the block goes to ``output`` too.

    Not a generator: contextlib would assign to what is raised, which a frozen error refuses.
    """

    def __init__(self, output: TaskOutput) -> None:
        self._output = output

    def __enter__(self) -> TaskOutput:
        root = logging.getLogger()
        if _catcher not in root.handlers:
            root.addHandler(_catcher)
        _local.output = self._output
        return self._output

    def __exit__(self, *_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Tee):
                stream.flush()
        _local.output = None
        self._output.close()
