"""Processes of our own, the pipes to each of them, and what handlers fork.

Used through ``worker/pipe.py`` by TaskWorker and supervisors, which start ``worker/sidecar.py`` and
``worker/child.py``, and by those when they begin. A helper has two pipes of its own: *orders*,
whose end means that its starter has gone, and *reports*. Standard input has no part in this:
helpers get an empty one, and so do the processes that handlers start. A process that a handler
forks keeps no pipe of ours open and takes no signal of ours.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..errors import ConfigurationError
from .copies import Copy, can_be_copied, copy_this
from .interpreter import ENV_PYTHON, import_path, interpreter, interpreter_flags
from .streams import mend_standard_streams

START_TIMEOUT_S = 60.0
"""Seconds within which a process that was started has to take part."""

_BOOT = (
    "import sys,json,gc;gc.disable();"
    "orders=open(int(sys.argv[2]),'rb',0,closefd=False);"
    "sys.path+=[p for p in json.loads(orders.readline()) if p not in sys.path];"
    "import redistq.system.processes as ours;ours.run_helper()"
)
"""Makes whatever this program can import importable, also out of a zip, and hands over. It reads
one line byte by byte, so that nothing of what follows is taken. Modules leave no garbage: to look
for it would be a tenth of the time that they take to load."""


def how_it_ended(code: int) -> str:
    """Return what to say of a process that ended with this code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def pipe() -> tuple[int, int]:
    """Return a pipe whose ends are no standard descriptors, even where one of those is closed in
    this program: a process that inherits such an end would put its standard input in its place."""
    reader, writer = os.pipe()
    return off_standard(reader), off_standard(writer)


def off_standard(descriptor: int) -> int:
    """Return the descriptor, or instead of a standard one a copy that is none."""
    if descriptor > 2:
        return descriptor
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


# -- forks: what a handler forks gets nothing of ours ----------------------------------------------

_ours: set[int] = set()
_not_in_forks: dict[signal.Signals, Any] = {}
"""The handlers that this process found, by the signals that it handles itself."""
_forking = threading.local()


def keep_from_forks(*descriptors: int) -> None:
    """Close these descriptors in every process that this one forks, until ``close``."""
    _ours.update(descriptors)


def close(descriptor: int) -> None:
    """Close a descriptor that forked processes did not get."""
    _ours.discard(descriptor)
    os.close(descriptor)


def handle_signal(number: signal.Signals, handler: Callable[..., None]) -> None:
    """Handle a signal in this process, and not in those that it forks."""
    _not_in_forks.setdefault(number, signal.getsignal(number))
    signal.signal(number, handler)


def _before_fork() -> None:
    # Python forgets a signal that reaches a forked process before that has forgotten our handlers.
    if _not_in_forks:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _not_in_forks)


def _after_fork_in_parent() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork() -> None:
    # A forked process must not keep our pipes open: their end says that we have gone.
    for descriptor in _ours:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _ours.clear()
    # Nor must it take our signals for its own: a pool that ends its processes would wait for ever.
    for number, handler in _not_in_forks.items():
        signal.signal(number, handler)
    _not_in_forks.clear()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork
    )


def leave_fork(error: BaseException | None) -> NoReturn:
    """End a process that a handler, or its module, forked and that has come to the end of it.

    The task is its parent's, and so are the connections by which its copy would tell the server.
    """
    code = 0 if error is None else 1
    with contextlib.suppress(Exception):  # the program may have replaced what prints
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            code = error.code or 0
        elif error is not None:
            traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a module may have put anything in their place
            stream.flush()
    os._exit(code & 0xFF)


# -- in the process that starts another ------------------------------------------------------------


def _wait_for(descriptor: int, what: int, timeout: float | None = None) -> bool:
    """Wait until it can be read or written; return whether it can.

    Not by a blocking call: that would hold up every thread of a process whose threads gevent or
    eventlet have made into coroutines.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, what)
        return bool(selector.select(timeout))


def can_copy() -> bool:
    """Return whether helpers can be copies of this process."""
    return can_be_copied(_ours)


class Helper:
    """A process of ours that was started, and the pipes to it: ``introduce`` it once, then give it
    an ``order`` and read its ``report``. In a process that this one forks it does nothing.
    """

    def __init__(
        self,
        module: str,
        pass_fds: Sequence[int] = (),
        folder: str | None = None,
        environment: dict[str, str] | None = None,
        copied: Callable[[], None] | None = None,
    ) -> None:
        """Start ``module`` in ``folder`` and ``environment``; raises ConfigurationError without an
        interpreter that can be run, or without that folder.

        With ``copied`` it is a copy of this process, which has to be one that ``can_copy``: it
        begins with that call, which lets go of what is not its own.
        """
        if folder is not None and not os.path.isdir(folder):
            raise ConfigurationError(f"workers start in the folder {folder}, which is gone")
        python = interpreter()
        orders, self._orders = pipe()
        self._reports, reports = pipe()
        self._owner = os.getpid()
        self._heard = b""
        self._introduced = False
        self._unsent = b""
        self._lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | Copy
        command = [module, str(orders), str(reports)]

        def begin() -> None:
            os.close(self._orders)
            os.close(self._reports)
            assert copied is not None
            copied()
            sys.argv[:] = ["-c", *command]
            run_helper()

        try:
            if copied is not None:
                self.process = copy_this(begin, environment)
            else:
                self.process = subprocess.Popen(
                    [python, *interpreter_flags(), "-P", "-c", _BOOT, *command],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(orders, reports, *pass_fds),
                    cwd=folder,
                    env=environment,
                    start_new_session=True,  # a Ctrl-C in the terminal is for the program alone
                )
                self._unsent = json.dumps(import_path()).encode() + b"\n"
        except OSError as error:
            os.close(self._orders)
            os.close(self._reports)
            if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
                raise ConfigurationError(
                    f"{python} cannot be run ({error}): set {ENV_PYTHON} to a Python interpreter"
                ) from error
            raise
        finally:
            os.close(orders)
            os.close(reports)
        keep_from_forks(self._orders, self._reports)
        # It loads its modules meanwhile. Nothing waits for one that does not read.
        os.set_blocking(self._orders, False)
        self._send()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def introduce(self, spec: dict[str, Any], timeout: float = START_TIMEOUT_S) -> None:
        """Say what it is for, within ``timeout`` seconds; nothing is raised when it has gone."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._unsent += json.dumps(spec).encode() + b"\n"
            while self._unsent:
                left = max(0.0, deadline - time.monotonic())
                if not (_wait_for(self._orders, selectors.EVENT_WRITE, left) and self._send()):
                    return
            self._introduced = not self._unsent

    def _send(self) -> bool:
        """Send what fits; return whether it is still read."""
        try:
            self._unsent = self._unsent[os.write(self._orders, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def order(self, order: str, pressing: bool = True) -> bool:
        """Give an order; a process that does not know yet what it is for is killed.

        One that is not ``pressing`` is left out while earlier ones are not read, or while there is
        no process yet that could: the answer is whether it was given.
        """
        if os.getpid() != self._owner:
            return False
        if not self._introduced:
            if pressing:
                self.process.kill()
            return False
        with self._lock:
            if self._unsent and not pressing:
                self._send()
            if self._unsent and not pressing:
                return False
            self._unsent += order.encode() + b"\n"
            if self._orders >= 0:
                self._send()
        return True

    def report(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return what it reports next; None when there is no more, or nothing for ``timeout``
        seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._reports >= 0:
            line, newline, rest = self._heard.partition(b"\n")
            if newline:
                self._heard = rest
                with contextlib.suppress(ValueError):
                    return dict(json.loads(line))
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _wait_for(self._reports, selectors.EVENT_READ, left):
                return None
            chunk = os.read(self._reports, 65536)
            if not chunk:
                self.ignore_reports()
            self._heard += chunk
        return None

    def ignore_reports(self) -> None:
        """Read no more reports."""
        self._reports = self._closed(self._reports)

    def let_go(self) -> None:
        """Close the pipe of orders: a process that still runs takes that for our end."""
        with self._lock:
            self._orders = self._closed(self._orders)

    def _closed(self, descriptor: int) -> int:
        if descriptor >= 0 and os.getpid() == self._owner:
            close(descriptor)
        return -1


# -- in the process that was started -------------------------------------------------------------


def run_helper() -> None:
    """Run the module that the command line names: what a helper does."""
    module, *descriptors = sys.argv[1:]
    starter = Starter(*map(int, descriptors))
    try:
        begin = importlib.import_module(module).begin
    except Exception as error:  # the import may raise anything, and its starter is to know what
        version = ".".join(map(str, sys.version_info[:2]))
        starter.report(
            {
                "failure": f"{sys.executable} (Python {version}) cannot run redistq: "
                f"{type(error).__name__}: {error}"
            }
        )
        raise
    gc.enable()
    begin(starter)


class Starter:
    """The process that started this one: says what it is for, gives orders and reads reports."""

    def __init__(self, orders: int, reports: int) -> None:
        """Take over the two descriptors; neither goes to any process that is started from here."""
        self._orders = orders
        self._reports = reports
        self._heard = b""
        for descriptor in (orders, reports):
            os.set_inheritable(descriptor, False)
        keep_from_forks(orders, reports)
        # An interrupt of the application (Ctrl-C, a notebook's stop button) is not meant for us.
        # Not SIG_IGN, which every program that a handler starts would inherit.
        handle_signal(signal.SIGINT, lambda *_: None)
        sys.argv[1:] = []  # ours; a module that parses a command line when it is imported has none
        mend_standard_streams()

    def order(self) -> str | None:
        """Return the next line from it; None when it has gone."""
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
        """Return what this process is for; None when its starter has gone before it said so."""
        line = self.order()
        return None if line is None else dict(json.loads(line))

    def report(self, report: dict[str, Any], pressing: bool = True) -> bool:
        """Send a report; one that has gone reads none, and the end of its orders says so. One that
        is not ``pressing``, and short, is left out while earlier ones are not read: the answer is
        whether it was sent."""
        with contextlib.suppress(OSError):
            if self._reports >= 0 and (
                pressing or _wait_for(self._reports, selectors.EVENT_WRITE, 0)
            ):
                os.write(self._reports, json.dumps(report).encode() + b"\n")
                return True
        return False

    def end_reports(self) -> None:
        """Send no more reports: nothing that a handler leaves behind holds that pipe open."""
        if self._reports >= 0:
            close(self._reports)
        self._reports = -1
