"""Start the processes of workers by a fork of one that has loaded their modules already.

Most tests with a worker start one or two such processes, each of which loads redis-py and redistq
for most of a second. Here a fork server, one for each process of pytest, has them loaded, and what
``system/processes.py`` would run is forked from it: a child of this process all the same (by
``CLONE_PARENT``), with the same arguments, environment, folder, descriptors and session. Each of
them has a fork server of its own for what it starts in turn. Tests of how processes start are
marked ``own_start``: there, and wherever anything is unusual, they start as they do for users.

This file is both ends; run as a program it is the fork server.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from redistq.system import processes
from redistq.system.interpreter import interpreter_flags

HELPERS = ("redistq.worker.sidecar", "redistq.worker.child")
COMMAND = "redistq.worker"
_LARGEST = 1 << 17
_HIGH = 100
"""Descriptors from here on are nobody's: what is received waits there for its place."""


class ForkServer:
    """The end of who asks: stands in the place of ``subprocess`` in ``system/processes.py``."""

    def __init__(self, channel: socket.socket, process: Any = None) -> None:
        self._channel, self._process = channel, process
        self._flags = _flags(interpreter_flags())
        self._python = _python_variables(os.environ)
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, args: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a helper by a fork, or as ``subprocess`` does what is no usual one."""
        pid = 0
        *start, code, module, orders, reports = args
        if module in HELPERS and _flags(start) == [sys.executable, *self._flags, "-P", "-c"]:
            pid = self._fork(
                {
                    "code": code,
                    "argv": ["-c", module, orders, reports],
                    "unbuffered": "-u" in start,
                },
                options.get("env"),
                options.get("cwd"),
                {number: number for number in (1, 2, *options["pass_fds"])},
            )
        return _Forked(args, pid) if pid else subprocess.Popen(args, **options)

    def command(
        self, args: Sequence[str], folder: Path, environment: dict[str, str]
    ) -> subprocess.Popen[str] | None:
        """Start ``python -m`` of a worker by a fork, what it prints in one pipe; None if another
        program is meant, or an environment in which Python starts differently."""
        if tuple(args[:2]) != ("-m", COMMAND) or self._flags:
            return None
        reader, writer = os.pipe()
        request = {"module": COMMAND, "argv": ["-m", *args[2:]], "unbuffered": False}
        pid = self._fork(request, environment, os.fspath(folder), {1: writer, 2: writer})
        os.close(writer)
        if pid:
            return _Forked([sys.executable, *args], pid, open(reader, encoding="utf-8"))
        os.close(reader)
        return None

    def _fork(
        self,
        request: dict[str, Any],
        environment: Mapping[str, str] | None,
        folder: str | None,
        descriptors: dict[int, int],
    ) -> int:
        """The id of the new process; 0 where it has to be started otherwise. ``descriptors`` are
        ours, by the numbers that they are to have there."""
        environment = os.environ if environment is None else environment
        if _python_variables(environment) != self._python or os.getpid() != self._owner:
            return 0
        request["environment"] = dict(environment)
        request["folder"] = folder or os.getcwd()
        request["numbers"] = list(descriptors)
        request["unbuffered"] |= bool(environment.get("PYTHONUNBUFFERED"))
        data = json.dumps(request).encode()
        with contextlib.suppress(OSError), self._lock:
            if len(data) <= _LARGEST:
                socket.send_fds(self._channel, [data], list(descriptors.values()))
                return int(self._channel.recv(32) or 0)
        return 0

    def close(self) -> None:
        """End the fork server; what was forked from it goes on."""
        with contextlib.suppress(OSError):  # a fork of this process may hold it open, too
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        if self._process is not None:
            self._process.wait(10)


class _Forked(subprocess.Popen[Any]):
    """A child of this process that ``subprocess`` did not start, and waits for as for its own."""

    def __init__(self, args: Sequence[str], pid: int, stdout: IO[str] | None = None) -> None:
        self.args, self.pid, self.returncode = args, pid, None  # type: ignore[assignment]
        self.stdin, self.stdout, self.stderr = None, stdout, None
        self._input, self._communication_started = None, False
        self._waitpid_lock, self._child_created = threading.Lock(), True
        self._sigint_wait_secs = 0.25


current: ForkServer | None = None
"""That of the test that runs."""


def start() -> ForkServer | None:
    """The fork server of this process; None where there can be none."""
    if not sys.platform.startswith("linux") or _place_of_thread_id() is None:
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, *interpreter_flags(), "-P", __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    if ours.recv(32) != b"ready":
        ours.close()
        process.wait()
        return None
    return ForkServer(ours, process)


def _python_variables(environment: Any) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("PYTHON") and name != "PYTHONUNBUFFERED"
    }


def _flags(words: Sequence[str]) -> list[str]:
    """Those that matter: -u is asked for by itself, and -B comes of the environment."""
    return [word for word in words if word not in ("-u", "-B")]


# -- in the fork server ----------------------------------------------------------------------------


def main() -> NoReturn:
    """Load the modules, then fork whenever asked, until nobody can ask any more."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    for module in (*HELPERS, "redistq.cli.worker_options"):
        importlib.import_module(module)
    gc.freeze()
    channel.send(b"ready")
    _serve(channel, _fork_for_parent, again=True)


def _serve(channel: socket.socket, fork: Callable[[], int], again: bool) -> NoReturn:
    """Fork for each request; ``again``: with a fork server of its own for what it starts."""
    while True:
        data, descriptors, _, _ = _receive(channel)
        if not data:
            os._exit(0)
        pid = fork()
        if pid == 0:
            channel.close()
            _become(json.loads(data), descriptors, again)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(pid).encode())


def _receive(channel: socket.socket) -> tuple[bytes, list[int], int, Any]:
    return socket.recv_fds(channel, _LARGEST, 64)


def _become(request: dict[str, Any], received: list[int], again: bool) -> NoReturn:
    """Be the process that was asked for; ends with it."""
    code = 1
    try:
        if again:
            _serve_what_it_starts(received)
        os.setsid()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        _put(received, request["numbers"])
        sys.argv[:] = request["argv"]
        if request["unbuffered"]:
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(write_through=True)  # type: ignore[union-attr]
        program = sys.modules["__main__"] = types.ModuleType("__main__")
        if "code" in request:
            exec(request["code"], program.__dict__)
        else:
            sys.path.insert(0, request["folder"])
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve_what_it_starts(received: Sequence[int]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        for descriptor in received:
            os.close(descriptor)
        _serve(theirs, _fork_for_parent, again=False)
    theirs.close()
    # Where no descriptor that is passed on has its place.
    high = socket.socket(fileno=_high(ours.detach()))
    processes.keep_from_forks(high.fileno())
    processes.subprocess = ForkServer(high)  # type: ignore[assignment]


def _high(descriptor: int) -> int:
    import fcntl

    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(descriptor)
    return copy


def _put(received: Sequence[int], numbers: Sequence[int]) -> None:
    """Give each descriptor the number that it has where it comes from."""
    for copy, number in zip([_high(one) for one in received], numbers, strict=True):
        os.dup2(copy, number)
        os.close(copy)


# -- a fork whose parent is ours -------------------------------------------------------------------

_CLONE_PARENT, _CLONE_CHILD_SETTID, _CLONE_CHILD_CLEARTID = 0x8000, 0x01000000, 0x00200000
_PR_GET_TID_ADDRESS = 40
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}


def _place_of_thread_id() -> int | None:
    """Where the C library keeps the id of this thread, which a fork has to renew."""
    place = ctypes.c_void_p()
    found = ctypes.CDLL(None).prctl(_PR_GET_TID_ADDRESS, ctypes.byref(place), 0, 0, 0) == 0
    return place.value if found and os.uname().machine in _SYS_CLONE else None


def _fork_for_parent() -> int:
    """As ``os.fork``, but the new process is a child of our parent, who waits for it."""
    python = ctypes.pythonapi
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
    place = ctypes.c_void_p(_place_of_thread_id())
    system = ctypes.PyDLL(None).syscall  # not CDLL, which would give up the interpreter's lock
    machine = os.uname().machine
    number = ctypes.c_long(_SYS_CLONE[machine])
    zero = ctypes.c_void_p(0)
    last = (place, zero) if machine == "x86_64" else (zero, place)
    python.PyOS_BeforeFork()
    pid: int = system(number, ctypes.c_long(flags), zero, zero, *last)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return max(0, pid)


if __name__ == "__main__":
    main()
