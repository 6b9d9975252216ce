"""The wire: the only module that opens a connection to the queue's server.

Used by producers, workers, keepers and monitors, which hand it calls (see calls.py). It knows
nothing of tasks; it knows how servers go away and come back.

redis-py's own retries and timeouts are switched off: it would send a script again ten times in
silence, and give up a blocking read after five seconds. Every call here is idempotent (by task id
or under its fence), so sending it again is safe, and how long to go on is the caller's to say.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.exceptions as rex
from redis.backoff import NoBackoff
from redis.retry import Retry as _ClientRetry

from .calls import Command
from .errors import ConfigurationError, RedistqError, ServerFull, ServerUnavailable
from .logger import logger
from .scripts import text_of
from .settings import Address

log = logger("redistq.broker")

CONNECT_TIMEOUT = 3.0
DEFAULT_TIMEOUT = 10.0
_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)

_REFUSED = (
    rex.AuthenticationError,
    rex.AuthorizationError,
    rex.AuthenticationWrongNumberOfArgsError,
)
_GONE = (
    rex.ConnectionError,
    rex.TimeoutError,
    rex.BusyLoadingError,
    rex.ReadOnlyError,
    rex.MovedError,
    rex.AskError,
    rex.TryAgainError,
    rex.ClusterDownError,
    rex.MasterDownError,
    rex.RedisClusterException,
    OSError,
)


class Lost(Exception):
    """The connection failed in mid-request; whether the server acted on it is unknown."""


class NoGroup(Exception):
    """The stream or its consumer group is not there (a new queue, FLUSHDB, a failover)."""


def _options(timeout: float | None, url: str = "") -> dict[str, Any]:
    keepalive = {} if url.startswith("unix") else {"socket_keepalive": True}
    return {
        **keepalive,
        "protocol": 2,
        "socket_timeout": timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "retry": _ClientRetry(NoBackoff(), 0),
        "retry_on_error": [],
        "client_name": "redistq",
        "decode_responses": False,
    }


def sentinel_parts(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Sentinel hosts, the service's name, and the options for its servers.

    Raises ConfigurationError when the URL names no service.
    """
    parts = urlsplit(url)
    path = [p for p in parts.path.split("/") if p]
    if not path or not parts.netloc:
        raise ConfigurationError(
            "a Sentinel URL names its service: redis+sentinel://host:26379,host2:26379/service/0"
        )
    secret, _, hosts = parts.netloc.rpartition("@")
    pairs = []
    for item in hosts.split(","):
        host, _, port = item.partition(":")
        pairs.append((host, int(port or 26379)))
    options: dict[str, Any] = {"db": int(path[1]) if len(path) > 1 else 0}
    if secret:
        user, _, word = secret.partition(":")
        options["username"] = unquote(user) or None
        options["password"] = unquote(word) or None
    if parts.scheme.startswith("rediss"):
        options["ssl"] = True
    for name, values in parse_qs(parts.query).items():
        options[name] = values[-1]
    return pairs, path[0], options


class _Line:
    """Requests and answers over an open connection by redis-py's own methods."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def send(self, command: Command) -> None:
        """Send one command."""
        connection = self._connection
        connection.send_packed_command(connection.pack_command(*command), check_health=False)

    def receive(self) -> Any:
        """The next answer; an error is raised."""
        return self._connection.read_response()


class _DirectLine(_Line):
    """The same with the socket and hiredis alone: a fifth of a call's time went to the layers.

    A plain socket blocks in the kernel, with the timeout kept there: one call to it a send and a
    receive instead of two, for a socket with a timeout is asked first whether it is ready.
    """

    def __init__(self, connection: Any, timeout: float | None) -> None:
        import hiredis

        super().__init__(connection)
        sock = connection._sock
        if type(sock) is socket.socket and os.name == "posix":
            bound = struct.pack("ll", *divmod(int((timeout or 0) * 1e6), 1_000_000))  # 0: no limit
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
            sock.settimeout(None)
        self._sendall, self._recv_into = sock.sendall, sock.recv_into
        self._pack = hiredis.pack_command
        reader = hiredis.Reader(
            protocolError=rex.InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_MORE,
        )
        self._feed: Any = reader.feed
        self._gets = reader.gets
        self._buffer = bytearray(65_536)

    def send(self, command: Command) -> None:
        self._sendall(self._pack(command))

    def receive(self) -> Any:
        reply = self._gets()
        while reply is _MORE:
            size = self._recv_into(self._buffer)
            if not size:
                raise rex.ConnectionError("the server closed the connection")
            self._feed(self._buffer, 0, size)
            reply = self._gets()
        if isinstance(reply, rex.RedisError):
            raise reply
        return reply


_MORE = object()


def _line_over(connection: Any, timeout: float | None) -> _Line:
    """The fastest line there is; redis-py's where its insides are not as they are known to be."""
    parser = type(getattr(connection, "_parser", None)).__name__
    if parser == "_HiredisParser" and getattr(connection, "_sock", None) is not None:
        return _DirectLine(connection, timeout)
    return _Line(connection)


class Wire:
    """One dedicated connection: a request, its answer, in turn. For one thread at a time."""

    def __init__(self, connect: Callable[[float | None], Any], timeout: float | None) -> None:
        self._connect, self._timeout = connect, timeout
        self._connection: Any = None
        self._line: _Line | None = None
        _wires.add(self)
        self.opened = 0
        """How often a connection was made; a reader that sees it grow looks for lost answers."""

    def request(self, command: Command) -> Any:
        """Send one command and return its answer.

        Raises Lost when the connection failed, NoGroup, ServerFull, ConfigurationError (refused
        credentials or permissions), and redis-py's ResponseError for the rest.
        """
        try:
            line = self._line or self._open()
            line.send(command)
            return line.receive()
        except rex.NoScriptError:
            # The server does not know the script (new, restarted, SCRIPT FLUSH): send its text,
            # once. An error of the script itself is raised by this second request as it is.
            return self.request(("EVAL", text_of(command[1]), *command[2:]))
        except _REFUSED as error:
            self.close()
            raise ConfigurationError(f"the server refused the connection: {error}") from error
        except _GONE as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error
        except rex.ResponseError as error:
            raise _meaning(error) from error
        except BaseException:
            # An interrupt between request and answer: the next answer would be the wrong one.
            self.close()
            raise

    def request_many(self, commands: Iterable[Command]) -> Iterator[Any]:
        """The answers to many commands in order, each sent before the last answer was read.

        Two are under way at once, so that client and server work at the same time. After Lost, or
        any error, the answers not yet given are unknown.
        """
        waiting: deque[Command] = deque()
        commands = iter(commands)
        try:
            # The first goes alone: a server that does not know the script learns it from this one,
            # and the others are done in their order.
            for command in commands:
                yield self.request(command)
                break
            line = self._line or self._open()
            for command in commands:
                line.send(command)
                waiting.append(command)
                if len(waiting) > 1:
                    yield self._next_answer(line, waiting)
            while waiting:
                yield self._next_answer(line, waiting)
        except _GONE as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.close()
            raise

    def _next_answer(self, line: _Line, waiting: deque[Command]) -> Any:
        command = waiting.popleft()
        try:
            return line.receive()
        except rex.NoScriptError:
            # Whatever else is under way fails the same way, or follows in its turn: run this one
            # on a connection of its own, so that no answer is mistaken for another's.
            aside = Wire(self._connect, self._timeout)
            try:
                return aside.request(command)
            finally:
                aside.close()
        except _GONE:
            raise
        except rex.ResponseError as error:
            raise _meaning(error) from error

    def send(self, *command: Any) -> None:
        """Send without reading an answer (SUBSCRIBE); raises Lost."""
        try:
            (self._line or self._open()).send(command)
        except _GONE as error:
            self.close()
            raise Lost(str(error)) from error

    def receive(self, timeout: float) -> Any:
        """The next pushed message, or None after ``timeout`` seconds; raises Lost."""
        connection = self._connection
        if connection is None:
            raise Lost("not connected")
        try:
            if not connection.can_read(timeout=timeout):
                return None
            return connection.read_response()
        except _GONE as error:
            self.close()
            raise Lost(str(error)) from error

    def _open(self) -> _Line:
        connection = self._connect(self._timeout)
        try:
            connection.connect()
        except BaseException:
            with contextlib.suppress(Exception):
                connection.disconnect()
            raise
        self._connection, self._line = connection, _line_over(connection, self._timeout)
        self.opened += 1
        return self._line

    def interrupt(self) -> None:
        """End a blocking read in another thread, which then raises Lost."""
        connection = self._connection
        sock = getattr(connection, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)

    def forget(self) -> None:
        """In a forked process: let go of the parent's socket without a word to the server."""
        connection, self._connection, self._line = self._connection, None, None
        sock = getattr(connection, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                os.close(sock.detach())

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        connection, self._connection, self._line = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()


_wires: weakref.WeakSet[Wire] = weakref.WeakSet()


def _after_fork() -> None:
    # A forked process that outlives its parent would keep the parent's connections open: the
    # server would go on handing tasks to a blocking read that nobody reads.
    for wire in list(_wires):
        wire.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _meaning(error: rex.ResponseError) -> Exception:
    text = str(error)
    if "NOGROUP" in text or "UNBLOCKED" in text:
        return NoGroup(text)
    if "OOM command" in text or isinstance(error, rex.OutOfMemoryError):
        return ServerFull(
            "the server is beyond its maxmemory and stored nothing; let workers drain the queue "
            "or raise maxmemory"
        )
    if "NOPERM" in text or isinstance(error, rex.NoPermissionError):
        return ConfigurationError(
            f"the server's ACL forbids a command redistq needs: {text} (the scripts run under the "
            "caller's rights and read the clock: +time)"
        )
    if text.startswith("NOAUTH"):
        return ConfigurationError("the server wants a password: redis://:PASSWORD@host:6379/0")
    return error


class Connector:
    """Makes connections to the server that holds one queue: plain, TLS, Sentinel or Cluster."""

    def __init__(self, address: Address, slot_key: str = "tasks") -> None:
        self.address, self._slot_key = address, slot_key
        self._cluster: Any = None
        self._pool: Any = None
        self._lock = threading.Lock()

    def connect(self, timeout: float | None) -> Any:
        """A new connection object, not yet opened; its reads give up after ``timeout`` seconds."""
        with self._lock:
            kind, kwargs = self._where()
        return kind(**{**kwargs, "socket_timeout": timeout})

    def _where(self) -> tuple[Any, dict[str, Any]]:
        address = self.address
        if address.clustered:
            return self._cluster_node()
        if self._pool is None:
            if address.sentinel:
                from redis.sentinel import Sentinel

                hosts, service, options = sentinel_parts(address.url)
                sentinel: Any = Sentinel(hosts, sentinel_kwargs={"socket_timeout": CONNECT_TIMEOUT})
                client = sentinel.master_for(service, **{**_options(None), **options})
                self._pool = client.connection_pool
            else:
                try:
                    self._pool = redis.ConnectionPool.from_url(
                        address.url, **_options(None, address.url)
                    )
                except ValueError as error:
                    raise ConfigurationError(f"{address}: {error}") from error
        return self._pool.connection_class, self._pool.connection_kwargs

    def _cluster_node(self) -> tuple[Any, dict[str, Any]]:
        # The slot map is read anew for every new connection: that is what MOVED asks for, and
        # connections are rare.
        from redis.cluster import RedisCluster

        if self._cluster is None:
            url = self.address.url.replace("+cluster", "", 1)
            options = _options(CONNECT_TIMEOUT)
            options.pop("retry_on_error")
            self._cluster = RedisCluster.from_url(url, **options)
        else:
            self._cluster.nodes_manager.initialize()
        node = self._cluster.get_node_from_key(self._slot_key)
        if node is None:
            raise rex.ClusterDownError(f"no node serves the slot of {self._slot_key}")
        pool = self._cluster.get_redis_connection(node).connection_pool
        return pool.connection_class, pool.connection_kwargs

    def close(self) -> None:
        """Forget pools; connections made before live on until they are closed."""
        with self._lock:
            cluster, self._cluster, self._pool = self._cluster, None, None
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.close()


def pause_before(tries: int, deadline: float, broker: Any, error: Lost) -> float:
    """Seconds to wait before a call is sent again; raises ServerUnavailable past the deadline."""
    pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
    if time.monotonic() + pause >= deadline:
        raise ServerUnavailable(
            f"no answer from {broker.address} for {broker.timeout:g} s ({error}); is the server "
            "up? The call may be made again: a task id is stored once"
        ) from error
    return pause


class Broker:
    """Calls to one queue's server from any number of threads, one connection a thread.

    ``timeout`` bounds every call in seconds, retries included; then ServerUnavailable is raised.
    """

    def __init__(
        self, address: Address, *, slot_key: str = "tasks", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.address, self.timeout = address, timeout
        self._connector = Connector(address, slot_key)
        self._local = threading.local()
        self._wires: list[Wire] = []
        self._spare: list[Wire] = []  # of finished call_many, for the next
        self._pid = os.getpid()

    def call(self, command: Command) -> Any:
        """Send a call, again if the connection fails, within ``timeout`` seconds.

        Raises ServerUnavailable when there was no answer in that time, ServerFull,
        ConfigurationError, NoGroup, or redis-py's ResponseError.
        """
        try:
            wire: Wire = self._local.wire
        except AttributeError:
            wire = self._new_wire()
        try:
            if self._pid != os.getpid():
                wire = self._new_wire()
            return wire.request(command)
        except Lost as error:
            return self._again(wire, command, error)

    def call_many(self, commands: Iterable[Command]) -> Iterator[Any]:
        """Answers to many calls in order; as ``call``, with two of them under way at once.

        On a connection of its own, so that an answer is never taken for that of another call made
        before the last of these was read.
        """
        sent: deque[Command] = deque()

        def remember() -> Iterator[Command]:
            for command in commands:
                sent.append(command)
                yield command

        source = remember()
        if self._pid != os.getpid():
            self._forget_parent()
        try:
            wire = self._spare.pop()
        except IndexError:
            wire = Wire(self._connector.connect, self.timeout)
        try:
            for answer in wire.request_many(source):
                sent.popleft()
                yield answer
            self._spare.append(wire)
        except Lost:
            # Those under way may have been done or not; being idempotent, they are sent again.
            for command in list(sent):
                yield self.call(command)
            for command in source:
                sent.clear()
                yield self.call(command)

    def _forget_parent(self) -> None:
        """After a fork: the parent's connections are not ours to use."""
        self._wires, self._spare, self._local = [], [], threading.local()
        self._pid = os.getpid()

    def _new_wire(self) -> Wire:
        if self._pid != os.getpid():
            self._forget_parent()
        wire = Wire(self._connector.connect, self.timeout)
        self._local.wire = wire
        self._wires.append(wire)
        return wire

    def _again(self, wire: Wire, command: Command, error: Lost) -> Any:
        deadline, tries = time.monotonic() + self.timeout, 0
        while True:
            time.sleep(pause_before(tries, deadline, self, error))
            tries += 1
            try:
                return wire.request(command)
            except Lost as again:
                error = again

    def wire(self, timeout: float | None = None) -> Wire:
        """A dedicated connection, for blocking reads; its reads give up after ``timeout`` s."""
        return Wire(self._connector.connect, timeout)

    def close(self) -> None:
        """Close every connection of every thread; the broker may be used again afterwards."""
        wires, self._wires, self._spare = [*self._wires, *self._spare], [], []
        self._local = threading.local()
        for wire in wires:
            wire.close()
        self._connector.close()


def check_server(broker: Broker) -> list[str]:
    """Warnings about a server's settings that can lose tasks: eviction and no persistence.

    Answers sentences that name the setting; an empty list when all is well or when the server
    does not let us look.
    """
    warnings = []
    try:
        memory = _info(broker.call(("INFO", "memory")))
        policy = memory.get("maxmemory_policy", "")
        if policy not in ("", "noeviction") and not policy.startswith("volatile"):
            warnings.append(
                f"the server's maxmemory-policy is {policy}, which may evict the queue's keys and "
                "lose tasks; set maxmemory-policy noeviction"
            )
        elif policy.startswith("volatile"):
            warnings.append(
                f"the server's maxmemory-policy is {policy}, which may evict results and dead "
                "letters before their time; set maxmemory-policy noeviction"
            )
        persistence = _info(broker.call(("INFO", "persistence")))
        if persistence.get("aof_enabled") == "0":
            reply = broker.call(("CONFIG", "GET", "save"))
            if len(reply) == 2 and not reply[1]:
                warnings.append(
                    "the server keeps nothing on disk (appendonly no, save ''): a restart loses "
                    "every task; set appendonly yes"
                )
            else:
                warnings.append(
                    "the server has no append-only file: a crash loses what came after its last "
                    "snapshot; set appendonly yes"
                )
    except (RedistqError, rex.ResponseError) as error:
        log.debug("the server's settings could not be read: %s", error)
    return warnings


def _info(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
