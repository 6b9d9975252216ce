"""Processes that are copies of this one: they have its modules, which take most of a start to load.

Used through ``processes.py`` by a supervisor beside an application, for its first worker processes.
A copy is to be as one that was started anew, so only a process in which nothing has begun makes
any (``can_be_copied``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

LOOK_S = 0.01
"""How often it is looked whether a copy has ended that is waited for with a time limit."""


class Copy:
    """A process that is a copy of this one, as ``subprocess.Popen`` would show it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        with self._lock:
            if self.returncode is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # somebody else has waited for it
                    pid, status = self.pid, 0
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code once it has ended; raises TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is None:
                # Leaves the exit code to ``poll``, and others need not wait for the lock.
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            elif time.monotonic() < until:
                time.sleep(LOOK_S)
            else:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        """End it at once; one that has ended is left alone."""
        with self._lock:
            if self.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # nobody had to wait for its end
                    os.kill(self.pid, signal.SIGKILL)


def can_be_copied(known: Collection[int]) -> bool:
    """Return whether a copy of this process would be as good as a new one.

    Not where a thread runs, which the copy would lack, with all that it held locked; nor where
    something that Python loads at its start (``sitecustomize``) has opened what would be shared,
    other than the descriptors that are ``known``; nor where numeric libraries have read their
    environment already. Linux alone tells.
    """
    if not sys.platform.startswith("linux") or "numpy" in sys.modules:
        return False
    try:
        if len(os.listdir("/proc/self/task")) > 1:
            return False
        opened = {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *known}
    except OSError:
        return False
    return not any(map(_is_open, opened))  # the one that listed them is closed


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def copy_this(begin: Callable[[], None], environment: Mapping[str, str] | None = None) -> Copy:
    """Return a copy of this process, which calls ``begin`` and ends with it.

    It has a session and, if given, an ``environment`` of its own, an empty standard input, and no
    handler of a signal; what it has open is left to ``begin``. Raises OSError when there can be no
    more processes.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # what is in its buffer would be written twice
            stream.flush()
    gc.freeze()  # what was loaded stays shared memory: no collection there writes to it
    # A signal that comes before the copy has forgotten our handlers waits until then.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _be_copy(begin, environment, mask)
        return Copy(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _be_copy(
    begin: Callable[[], None],
    environment: Mapping[str, str] | None,
    mask: set[signal.Signals | int],
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                interrupt = number == signal.SIGINT
                handler = signal.default_int_handler if interrupt else signal.SIG_DFL
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        if environment is not None:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
        sys.modules["__main__"] = types.ModuleType("__main__")
        begin()
        code = 0
    except BaseException:  # whatever it is, this process ends here
        traceback.print_exc()
    finally:
        os._exit(code)
