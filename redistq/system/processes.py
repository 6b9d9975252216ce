"""Processes of our own and the line to each of them.

Used through ``worker/pipe.py`` by TaskWorker and supervisors, which start ``worker/sidecar.py`` and
``worker/child.py``, and by those when they begin. A helper has two pipes of its own: *orders*,
whose end means that its starter has gone, and *news*. Standard input has no part in this: helpers
get an empty one, and so do the processes that handlers start.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigurationError
from .forks import close, handle_signal, keep_from_forks
from .interpreter import ENV_PYTHON, import_path, interpreter, interpreter_flags
from .streams import mend_standard_streams

START_TIMEOUT_S = 60.0
"""Seconds within which a process that was started has to take part."""

_BOOT = (
    "import sys,json;"
    "orders=open(int(sys.argv[2]),'rb',0,closefd=False);"
    "sys.path+=[p for p in json.loads(orders.readline()) if p not in sys.path];"
    "import redistq.system.processes as ours;ours.run_helper()"
)
"""Makes whatever this program can import importable, also out of a zip, and hands over. It reads
one line byte by byte, so that nothing of what follows is taken."""


def how_it_ended(code: int) -> str:
    """Return what to say of a process that ended with this code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def pipe() -> tuple[int, int]:
    """A pipe whose ends are no standard descriptors, though one of those be closed in this program:
    in a process that inherits such an end, its standard input would take the place."""
    reader, writer = os.pipe()
    return off_standard(reader), off_standard(writer)


def off_standard(descriptor: int) -> int:
    if descriptor > 2:
        return descriptor
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, what: int, timeout: float | None = None) -> bool:
    """Until it can be read or written; not by a blocking call, which would hold up every thread of
    a process whose threads gevent or eventlet have made into coroutines."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, what)
        return bool(selector.select(timeout))


class Helper:
    """A process of ours that was started, and the line to it: ``introduce`` it once, then ``tell``
    it what to do and listen to its ``news``. In a process that this one forks it does nothing.
    """

    def __init__(
        self,
        module: str,
        pass_fds: Sequence[int] = (),
        folder: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start ``module`` in ``folder`` and ``environment``; raises ConfigurationError without an
        interpreter that can be run, or without that folder."""
        if folder is not None and not os.path.isdir(folder):
            raise ConfigurationError(f"workers start in the folder {folder}, which is gone")
        python = interpreter()
        orders, self._orders = pipe()
        self._news, news = pipe()
        self._owner = os.getpid()
        self._heard = b""
        self._introduced = False
        self._lock = threading.Lock()
        try:
            self.process = subprocess.Popen(
                [python, *interpreter_flags(), "-P", "-c", _BOOT, module, str(orders), str(news)],
                stdin=subprocess.DEVNULL,
                pass_fds=(orders, news, *pass_fds),
                cwd=folder,
                env=environment,
                start_new_session=True,  # a Ctrl-C in the terminal is for the program alone
            )
        except OSError as error:
            os.close(self._orders)
            os.close(self._news)
            if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
                raise ConfigurationError(
                    f"{python} cannot be run ({error}): set {ENV_PYTHON} to a Python interpreter"
                ) from error
            raise
        finally:
            os.close(orders)
            os.close(news)
        keep_from_forks(self._orders, self._news)
        # It loads its modules meanwhile. Nothing waits for one that does not read.
        os.set_blocking(self._orders, False)
        self._unsent = json.dumps(import_path()).encode() + b"\n"
        self._send()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def introduce(self, spec: dict[str, Any], timeout: float = START_TIMEOUT_S) -> None:
        """Say what it is for, within ``timeout`` seconds; one that is gone does not mind."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._unsent += json.dumps(spec).encode() + b"\n"
            while self._unsent:
                left = max(0.0, deadline - time.monotonic())
                if not (_wait_for(self._orders, selectors.EVENT_WRITE, left) and self._send()):
                    return
            self._introduced = not self._unsent

    def _send(self) -> bool:
        """Send what fits; return whether anybody still reads."""
        try:
            self._unsent = self._unsent[os.write(self._orders, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def tell(self, order: str) -> None:
        """Give an order; a process that does not even know yet what it is for ends at once."""
        if os.getpid() != self._owner:
            return
        if not self._introduced:
            self.process.kill()
            return
        with self._lock:
            self._unsent += order.encode() + b"\n"
            if self._orders >= 0:
                self._send()

    def news(self, timeout: float | None = None) -> dict[str, Any] | None:
        """What it says next; None when it says no more, or nothing for ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._news >= 0:
            line, newline, rest = self._heard.partition(b"\n")
            if newline:
                self._heard = rest
                with contextlib.suppress(ValueError):
                    return dict(json.loads(line))
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _wait_for(self._news, selectors.EVENT_READ, left):
                return None
            chunk = os.read(self._news, 65536)
            if not chunk:
                self.ignore_news()
            self._heard += chunk
        return None

    def ignore_news(self) -> None:
        """Listen no more."""
        self._news = self._closed(self._news)

    def let_go(self) -> None:
        """Close the line: a process that still runs takes it for our end."""
        with self._lock:
            self._orders = self._closed(self._orders)

    def _closed(self, descriptor: int) -> int:
        if descriptor >= 0 and os.getpid() == self._owner:
            close(descriptor)
        return -1


# -- in the process that was started -------------------------------------------------------------


def run_helper() -> None:
    """What a helper runs: the module that its command line names."""
    module, *descriptors = sys.argv[1:]
    starter = Starter(*map(int, descriptors))
    try:
        begin = importlib.import_module(module).begin
    except Exception as error:
        version = ".".join(map(str, sys.version_info[:2]))
        starter.say(
            {
                "failure": f"{sys.executable} (Python {version}) cannot run redistq: "
                f"{type(error).__name__}: {error}"
            }
        )
        raise
    begin(starter)


class Starter:
    """Whoever started this process: what it is for, the orders it gives, and what it is told."""

    def __init__(self, orders: int, news: int) -> None:
        """Take over the two descriptors; neither goes to any process that is started from here."""
        self._orders = orders
        self._news = news
        self._heard = b""
        for descriptor in (orders, news):
            os.set_inheritable(descriptor, False)
        keep_from_forks(orders, news)
        # An interrupt of the application (Ctrl-C, a notebook's stop button) is not meant for us.
        # Not SIG_IGN, which every program that a handler starts would inherit.
        handle_signal(signal.SIGINT, lambda *_: None)
        sys.argv[1:] = []  # ours; a module that parses a command line when it is imported has none
        mend_standard_streams()

    def order(self) -> str | None:
        """The next line from it; None when it has gone."""
        while True:
            line, newline, rest = self._heard.partition(b"\n")
            if newline:
                self._heard = rest
                return line.decode()
            _wait_for(self._orders, selectors.EVENT_READ)
            chunk = os.read(self._orders, 1 << 20)
            if not chunk:
                return None
            self._heard += chunk

    def spec(self) -> dict[str, Any] | None:
        """What this process is for; None when its starter has gone before it said so."""
        line = self.order()
        return None if line is None else dict(json.loads(line))

    def say(self, news: dict[str, Any]) -> None:
        """Tell it; when it has gone, the end of its orders tells as well."""
        with contextlib.suppress(OSError):
            if self._news >= 0:
                os.write(self._news, json.dumps(news).encode() + b"\n")

    def fall_silent(self) -> None:
        """There is no more to say: nothing that a handler leaves behind holds that line open."""
        if self._news >= 0:
            close(self._news)
        self._news = -1
