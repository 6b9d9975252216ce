"""Processes of our own: the interpreter that runs them, what they inherit, and the line to them.

Used by TaskWorker and supervisors to start helpers (``redistq.worker.sidecar``,
``redistq.worker.child``), and by
those when they begin. A helper has two pipes of its own: *orders*, whose end means that whoever
started it has gone, and *news*. Standard input is none of our business: helpers get an empty one,
and so do the processes that handlers start.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from ..errors import ConfigurationError

ENV_PYTHON = "REDISTQ_PYTHON"
START_TIMEOUT_S = 60.0
"""Seconds within which a process that was started has to take part."""

_PYTHON_NAME = re.compile(r"(python|pypy|graalpy)[\w.+-]*$", re.IGNORECASE)

_BOOT = (
    "import sys,json;"
    "orders=open(int(sys.argv[2]),'rb',0,closefd=False);"
    "sys.path+=[p for p in json.loads(orders.readline()) if p not in sys.path];"
    "import redistq.system.processes as ours;ours.run_helper()"
)
"""Makes whatever this program can import importable, also out of a zip, and hands over. It reads
one line byte by byte, so that nothing of what follows is taken."""


# -- what is started -------------------------------------------------------------------------------


def interpreter() -> str:
    """The Python that runs our processes: REDISTQ_PYTHON, else the one that runs this program.

    A program that embeds Python, or was frozen, names itself in ``sys.executable``; started as a
    helper it would do its own work again. Raises ConfigurationError, which names an interpreter
    that would do.
    """
    if named := os.environ.get(ENV_PYTHON):
        if _is_program(named):
            return named
        raise ConfigurationError(f"{ENV_PYTHON} is {named!r}, which is no program that can be run")
    own = sys.executable
    if own and not getattr(sys, "frozen", False) and _is_python(own):
        return own
    found = next(filter(_is_python, _candidates()), None)
    raise ConfigurationError(
        f"sys.executable is {own!r}, which is no Python interpreter, and redistq's own processes "
        f"need one: set {ENV_PYTHON} to one of this version that can import redistq"
        + (f", such as {ENV_PYTHON}={found}" if found else "")
    )


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_python(path: str) -> bool:
    names = (os.path.basename(path), os.path.basename(os.path.realpath(path)))
    return any(map(_PYTHON_NAME.match, names)) and _is_program(path)


def _candidates() -> Iterator[str]:
    yield getattr(sys, "_base_executable", None) or ""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for prefix in (sys.exec_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__) + "/../.."):
        for name in (version, "python3"):
            yield os.path.normpath(os.path.join(prefix, "bin", name))


def interpreter_flags() -> list[str]:
    """The options this interpreter was started with, for another: -O, -W, -X, -E, -s, -u and so on.

    What the environment says (PYTHONWARNINGS and the like) is inherited anyway.
    """
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    passed = {word.partition("=")[0] for word in flags}
    for name, value in sys._xoptions.items():
        if name not in passed:
            flags += ["-X", name if value is True else f"{name}={value}"]
    if getattr(sys.__stdout__, "write_through", False):
        flags.append("-u")
    return flags


def import_path() -> list[str]:
    """Where this program looks for modules, in its order, for a process with any current folder."""
    found = []
    for entry in sys.path:
        if not isinstance(entry, str):
            continue  # the import system passes over it as well
        if not entry or os.path.exists(entry):
            try:
                entry = os.path.abspath(entry)
            except OSError:
                continue  # the current folder was deleted
        found.append(entry)
    return found


def use_import_path(path: Sequence[str]) -> None:
    """Look for modules where the program that started us does, and in its order.

    To be called when our own modules are loaded: a ``queue.py`` beside the handlers is theirs.
    """
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]


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
        _keep_from_forks(self._orders, self._news)
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
        """Send what fits; answers whether there is still somebody."""
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
            _close(descriptor)
        return -1


# -- in the process that was started ---------------------------------------------------------------


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
        self._orders, self._news = orders, news
        self._heard = b""
        for descriptor in (orders, news):
            os.set_inheritable(descriptor, False)
        _keep_from_forks(orders, news)
        # An interrupt of the application (Ctrl-C, a notebook's stop button) is not meant for us.
        # Not SIG_IGN, which every program that a handler starts would inherit.
        self.on_signal(signal.SIGINT, lambda *_: None)
        sys.argv[1:] = []  # ours; a module that parses a command line when it is imported has none
        mend_standard_streams()

    def on_signal(self, number: signal.Signals, handler: Callable[..., None]) -> None:
        """Handle a signal in this process, and not in those that it forks."""
        _not_in_forks.setdefault(number, signal.getsignal(number))
        signal.signal(number, handler)

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
            _close(self._news)
        self._news = -1


_ours: set[int] = set()
_not_in_forks: dict[signal.Signals, Any] = {}
_forking = threading.local()


def _keep_from_forks(*descriptors: int) -> None:
    _ours.update(descriptors)


def _close(descriptor: int) -> None:
    _ours.discard(descriptor)
    os.close(descriptor)


def _before_fork() -> None:
    # Python forgets a signal that reaches a forked process before that has forgotten our handlers.
    if _not_in_forks:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _not_in_forks)


def _after_fork_in_parent() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork() -> None:
    # A forked process must not keep our lines open: their end says that we have gone.
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
    with contextlib.suppress(Exception):
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            code = error.code or 0
        elif error is not None:
            traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


# -- standard streams ------------------------------------------------------------------------------


class _Lasting(io.FileIO):
    """A standard stream that outlives its reader: what nobody can read any more is dropped."""

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as left:
            size = todo = len(left)
            while todo:
                try:
                    done = super().write(left[size - todo :])
                except OSError as error:
                    if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                        raise  # a full disk is said
                    with contextlib.suppress(OSError):
                        _point_at_nothing(self.fileno())
                    break
                if done is None:  # somebody has made the terminal or pipe non-blocking
                    time.sleep(0.01)
                todo -= done or 0
            return size


def mend_standard_streams() -> None:
    """Make standard streams that a program can write to whatever it was started with.

    Descriptors that were closed get the null device, before a connection to the server takes their
    place and hears what a library prints. A print into a pipe or terminal that is gone is dropped
    and fails no task, and lines are written one by one, so that a killed process keeps none back.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _point_at_nothing(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old not in (None, getattr(sys, f"__{name}__")):
            continue  # somebody has put something else in its place
        if old is not None:
            with contextlib.suppress(OSError, ValueError):
                old.flush()
        # No buffer below the text: a process that a handler forks would inherit its lock, held.
        raw: Any = _Lasting(descriptor, "w", closefd=False)
        new = io.TextIOWrapper(
            raw,
            encoding=getattr(old, "encoding", "utf-8"),
            errors=getattr(old, "errors", "backslashreplace"),
            line_buffering=True,
            write_through=getattr(old, "write_through", False),
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _point_at_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(nothing, descriptor)
        os.close(nothing)
