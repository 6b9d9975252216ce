"""The wire: the only module that opens a connection to the queue's server.

Used by producers, workers, supervisors and monitors, which hand it calls (see calls.py). It knows
nothing of tasks; it knows how servers go away and come back.

redis-py's own retries and timeouts are switched off: it would send a script again ten times in
silence, and give up a blocking read after five seconds. Every call here is idempotent (by task id
or under its fence), so sending it again is safe, and how long to go on is the caller's to say.
"""

from __future__ import annotations

import contextlib
import os
import re
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

from ..errors import ConfigurationError, RedistqError, ServerFull, ServerUnavailable
from ..logger import logger
from ..protocol.commands import Command, denies
from ..protocol.scripts import text_of
from .address import Address, what_is_wrong

log = logger("redistq.broker")

CONNECT_TIMEOUT = 3.0
OPEN_TIMEOUT = 10.0
"""Most seconds that making a connection may take: look-up, connecting, authentication."""
DEFAULT_TIMEOUT = 10.0
KEPT_IDLE = 16
"""Most connections that a broker keeps open while nobody uses them."""
SLACK_S = 0.1
"""How much later than its deadline a call may end: less is not worth a question to the kernel."""
LARGE_SEND = 65_536
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
    rex.InvalidResponse,
    OSError,
)
_ELSEWHERE = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "REDIRECT"}
)
"""Codes of refusals after which another server may have to be asked, on a new connection."""
_FOR_NOW = _ELSEWHERE | {"BUSY", "UNKILLABLE", "EXECABORT", "MISCONF", "NOREPLICAS", "NOTREADY"}
"""Codes of errors by which a server says no for a while."""
_PASSING_WORDS = re.compile(
    r"max number of clients|upstream|backend|try again|not available|timed? ?out|temporar"
    r"|script killed"
    r"|(?:conn|server|host)\w* (?:\w+ )?(?:refused|reset|closed|failure|down)|no healthy",
    re.IGNORECASE,
)
"""What servers and the proxies before them say without a code of their own when they cannot now."""
_CODE_IN_SCRIPT = re.compile(r"(?:^|[\s:])-([A-Z]{3,})\b")


class ConnectionLost(Exception):
    """The connection failed in mid-request; whether the server acted on it is unknown."""


class Refused(ConnectionLost):
    """The server is there and says no for now: it is busy, loading, cannot write to its disk, has
    too few replicas, is no primary. Its own words are the message."""


class GroupMissing(Exception):
    """The stream or its consumer group is not there (a new queue, FLUSHDB, a failover)."""


class WrongKind(ConfigurationError):
    """A key of the queue holds something else: a string where a stream belongs."""


class ServerError(RedistqError, rex.ResponseError):
    """The server answered with an error that redistq knows nothing about: its words."""


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


class Transport:
    """Requests and answers over an open connection by redis-py's own methods."""

    def __init__(self, link: Any) -> None:
        self._link = link

    def limit(self, seconds: float | None) -> None:
        """Let no single wait for the server take longer than this; None: no limit."""
        sock = getattr(self._link, "_sock", None)
        if sock is not None:
            sock.settimeout(None if seconds is None else max(seconds, 0.001))

    def send(self, command: Command, deadline: float | None = None) -> None:
        """Send one command."""
        link = self._link
        link.send_packed_command(link.pack_command(*command), check_health=False)

    def receive(self, deadline: float | None = None) -> Any:
        """The next answer; an error is raised."""
        return self._link.read_response()


class SocketTransport(Transport):
    """The same with the socket and hiredis alone: a fifth of a call's time went to the layers.

    A plain socket blocks in the kernel, with the timeout kept there: one call to it a send and a
    receive instead of two, for a socket with a timeout is asked first whether it is ready. The
    clock is read only for what takes more than one of them: a large command, a large answer.
    """

    def __init__(self, link: Any) -> None:
        import hiredis

        super().__init__(link)
        sock = self._sock = link._sock
        # Not one of gevent or eventlet, which have put their own in the place of the kernel's.
        own = type(sock) is socket.socket and type(sock).__module__ == "socket"
        self._in_kernel = own and os.name == "posix"
        self._limit: float | None = -1.0  # none was set yet
        self._usual: float | None = None
        self._shortened = False
        if self._in_kernel:
            sock.settimeout(None)
        self._sendall, self._recv_into = sock.sendall, sock.recv_into
        self._pack = hiredis.pack_command
        reader = hiredis.Reader(
            protocolError=rex.InvalidResponse,
            replyError=link._parser.parse_error,
            notEnoughData=_MORE,
        )
        self._feed: Any = reader.feed
        self._gets = reader.gets
        self._buffer = bytearray(65_536)

    def limit(self, seconds: float | None) -> None:
        self._usual, self._shortened = seconds, False
        if seconds != self._limit:
            self._set_limit(seconds)

    def _set_limit(self, seconds: float | None) -> None:
        self._limit = seconds
        if not self._in_kernel:
            super().limit(seconds)
            return
        micros = 0 if seconds is None else max(int(seconds * 1e6), 1_000)  # 0: no limit
        bound = struct.pack("ll", *divmod(micros, 1_000_000))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)

    def send(self, command: Command, deadline: float | None = None) -> None:
        packed = self._pack(command)
        if self._shortened:
            self.limit(self._usual)
        if len(packed) < LARGE_SEND or deadline is None:
            self._sendall(packed)
            return
        rest = memoryview(packed)
        while rest:
            self._cut(deadline)
            rest = rest[self._sock.send(rest) :]
        self._cut(deadline)  # the answer is waited for until the same deadline

    def receive(self, deadline: float | None = None) -> Any:
        reply = self._gets()
        if reply is _MORE:
            size = self._recv_into(self._buffer)
            if not size:
                raise rex.ConnectionError("the server closed the connection")
            self._feed(self._buffer, 0, size)
            reply = self._gets()
            if reply is _MORE:
                reply = self._rest(deadline)
        if isinstance(reply, rex.RedisError):
            try:
                raise reply
            finally:
                del reply  # or error, traceback and frames, up to a client, would hold each other
        return reply

    def _rest(self, deadline: float | None) -> Any:
        """An answer of which a part has come."""
        reply = _MORE
        while reply is _MORE:
            if deadline is not None:
                self._cut(deadline)
            size = self._recv_into(self._buffer)
            if not size:
                raise rex.ConnectionError("the server closed the connection")
            self._feed(self._buffer, 0, size)
            reply = self._gets()
        return reply

    def _cut(self, deadline: float) -> None:
        """Wait no longer than until the deadline, from here to the next command."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server is too slow")
        if self._limit is None or left < self._limit - SLACK_S:
            self._shortened = True
            self._set_limit(left)


_MORE = object()


def transport_over(link: Any) -> Transport:
    """The fastest line there is; redis-py's where its insides are not as they are known to be."""
    parser = type(getattr(link, "_parser", None)).__name__
    if parser == "_HiredisParser" and getattr(link, "_sock", None) is not None:
        return SocketTransport(link)
    return Transport(link)


class _Opening:
    """A connection that is being made by a thread of its own, and can be given up at any time.

    Neither a look-up of names nor a library's handshake can be told when it must be over.
    """

    def __init__(self, open_one: Callable[[], Any]) -> None:
        self._open_one = open_one
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._given_up = False
        self._link: Any = None
        self._error: BaseException | None = None

    def wait(self, seconds: float) -> Any:
        """The open connection; raises what its making raised, or Lost after ``seconds``."""
        try:
            threading.Thread(target=self._work, name="redistq-connect", daemon=True).start()
        except RuntimeError:
            self._work()  # no more threads: at exit, or beyond a limit
        try:
            self._ended.wait(seconds)
        finally:
            with self._lock:
                self._given_up = True
                link, error = self._link, self._error
        if error is not None:
            raise error
        if link is None:
            raise ConnectionLost(f"no connection within {seconds:.1f} s")
        return link

    def give_up(self) -> None:
        """Whoever waits for it hears Lost now."""
        self._ended.set()

    def _work(self) -> None:
        try:
            link = self._open_one()
            with self._lock:
                if not self._given_up:
                    self._link, link = link, None
            if link is not None:
                with contextlib.suppress(Exception):
                    link.disconnect()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()


class Connection:
    """One dedicated connection: a request, its answer, in turn. For one thread at a time."""

    def __init__(self, connect: Callable[[float], Any], timeout: float | None) -> None:
        self._connect, self._timeout = connect, timeout
        self._link: Any = None
        self._transport: Transport | None = None
        self._opening: _Opening | None = None
        _connections.add(self)
        self.opened = 0
        """How often a connection was made; a reader that sees it grow looks for lost answers."""

    def request(self, command: Command, deadline: float | None = None) -> Any:
        """Send one command and return its answer; gives up at about ``deadline`` (monotonic),
        which lies the wire's ``timeout`` ahead.

        Raises Lost when the connection failed, Refused when the server says no for now, NoGroup,
        ServerFull, ConfigurationError (refused credentials or permissions, commands or keys that
        are not what they should be), and ServerError for the rest.
        """
        transport = self._transport
        if transport is None:
            return self.request_by(command, deadline)
        try:
            transport.send(command, deadline)
            return transport.receive(deadline)
        except BaseException as error:
            return self._after(error, command, deadline)

    def request_by(self, command: Command, deadline: float | None) -> Any:
        """As ``request``, for a deadline that is nearer than usual, or when there is no connection
        yet."""
        try:
            transport = self._transport or self._open(deadline)
            if deadline is not None:
                transport.limit(_left(deadline))
            transport.send(command, deadline)
            return transport.receive(deadline)
        except BaseException as error:
            return self._after(error, command, deadline)
        finally:
            self.set_timeout(self._timeout)

    def read(self, command: Command, seconds: float) -> Any:
        """As ``request``, for a blocking read whose answer must be here within ``seconds``."""
        try:
            transport = self._transport or self._open(time.monotonic() + seconds)
            transport.limit(seconds)  # no question to the kernel while it stays the same
            transport.send(command)
            return transport.receive()
        except BaseException as error:
            return self._after(error, command, None)

    def set_timeout(self, timeout: float | None) -> None:
        """From the next request on, give up after so many seconds."""
        self._timeout, transport = timeout, self._transport
        if transport is not None:
            with contextlib.suppress(OSError):
                transport.limit(timeout)

    def _after(self, error: BaseException, command: Command, deadline: float | None) -> Any:
        """What an error means: the answer after all, or what is to be raised."""
        if script_is_unknown(error, command):
            # The server does not know the script (new, restarted, SCRIPT FLUSH): send its text,
            # once. An error of the script itself is raised by this second request as it is.
            return self.request_by(("EVAL", text_of(command[1]), *command[2:]), deadline)
        meaning = meaning_of(error)
        if not isinstance(error, rex.ResponseError) or to_another_server(error):
            # Also an interrupt between request and answer: the next would be the wrong one.
            self.close()
        if meaning is error:
            raise error
        raise meaning from error

    def request_many(self, commands: Iterable[Command], timeout: float) -> Iterator[Any]:
        """The answers to many commands in order, each sent before the last answer was read.

        Two are under way at once, so that client and server work at the same time; each answer
        may take ``timeout`` seconds. After Lost, or any error, the answers not yet given are
        unknown.
        """
        waiting: deque[Command] = deque()
        commands = iter(commands)
        try:
            # The first goes alone: a server that does not know the script learns it from this one,
            # and the others are done in their order.
            for command in commands:
                yield self.request(command, time.monotonic() + timeout)
                break
            transport = self._transport or self._open(time.monotonic() + timeout)
            for command in commands:
                transport.send(command, time.monotonic() + timeout)
                waiting.append(command)
                if len(waiting) > 1:
                    yield self._next_answer(transport, waiting, timeout)
            while waiting:
                yield self._next_answer(transport, waiting, timeout)
        except BaseException as error:
            self.close()
            meaning = meaning_of(error)
            if meaning is error:
                raise
            raise meaning from error

    def _next_answer(self, transport: Transport, waiting: deque[Command], timeout: float) -> Any:
        command, deadline = waiting.popleft(), time.monotonic() + timeout
        try:
            return transport.receive(deadline)
        except rex.ResponseError as error:
            if not script_is_unknown(error, command):
                raise
            # Whatever else is under way fails the same way, or follows in its turn: run this one
            # on a connection of its own, so that no answer is mistaken for another's.
            aside = Connection(self._connect, self._timeout)
            try:
                return aside.request(command, deadline)
            finally:
                aside.close()

    def send(self, *command: Any) -> None:
        """Send without reading an answer (SUBSCRIBE); raises Lost."""
        try:
            (self._transport or self._open(None)).send(command)
        except BaseException as error:
            self._after(error, command, None)

    def receive(self, timeout: float) -> Any:
        """The next pushed message, or None after ``timeout`` seconds; raises as ``request``."""
        link = self._link
        if link is None:
            raise ConnectionLost("not connected")
        try:
            if not link.can_read(timeout=timeout):
                return None
            return link.read_response()
        except BaseException as error:
            return self._after(error, (), None)

    def _open(self, deadline: float | None) -> Transport:
        seconds = OPEN_TIMEOUT if deadline is None else min(_left(deadline), OPEN_TIMEOUT)
        opening = self._opening = _Opening(lambda: self._connect(seconds))
        try:
            link = opening.wait(seconds)
        finally:
            self._opening = None
        self._link, self._transport = link, transport_over(link)
        self._transport.limit(self._timeout)
        self.opened += 1
        return self._transport

    def interrupt(self) -> None:
        """End a blocking read in another thread, which then raises Lost."""
        opening, link = self._opening, self._link
        if opening is not None:
            opening.give_up()
        sock = getattr(link, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)

    def forget(self) -> None:
        """In a forked process: let go of the parent's socket without a word to the server."""
        link, self._link, self._transport = self._link, None, None
        sock = getattr(link, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                os.close(sock.detach())

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        link, self._link, self._transport = self._link, None, None
        if link is not None:
            with contextlib.suppress(Exception):
                link.disconnect()


def _left(deadline: float) -> float:
    """Seconds until a deadline; raises Lost when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise ConnectionLost("the time is over")
    return left


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    # A forked process that outlives its parent would keep the parent's connections open: the
    # server would go on handing tasks to a blocking read that nobody reads.
    for connection in list(_connections):
        connection.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _code_of(error: BaseException) -> str:
    """The code of a server's error: its first word, or the one inside the report of a script."""
    text = str(error)
    # Redis 6.2 wraps the error of a command that a script ran, with its code after a dash.
    if "script" in text and (found := _CODE_IN_SCRIPT.search(text)):
        return found[1]
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    return code if code.isupper() else "ERR"


def script_is_unknown(error: BaseException, command: Command) -> bool:
    """Whether a script has to be sent with its text: unknown, or EVALSHA was renamed away."""
    if not isinstance(error, rex.ResponseError) or not command or command[0] != "EVALSHA":
        return False
    return isinstance(error, rex.NoScriptError) or _unknown_command(str(error), "EVALSHA")


def _unknown_command(text: str, name: str = "") -> bool:
    return "unknown command" in text and name.lower() in text.lower()


def to_another_server(error: BaseException) -> bool:
    """Whether a server's refusal says that the connection leads to the wrong one."""
    return isinstance(error, (*_GONE, *_REFUSED)) or _code_of(error) in _ELSEWHERE


def meaning_of(error: BaseException) -> BaseException:
    """What a caller is told of an error of the connection or of the server; others are answered
    as they are."""
    if isinstance(error, _REFUSED):
        return ConfigurationError(f"the server refused the connection: {error}")
    if isinstance(error, rex.ResponseError | rex.BusyLoadingError):
        return _meaning_of_answer(error)
    if isinstance(error, BlockingIOError):
        return ConnectionLost("no answer in time")
    if isinstance(error, _GONE):
        # With too many clients a server says so and hangs up.
        kind = Refused if "max number of clients" in str(error) else ConnectionLost
        return kind(f"{type(error).__name__}: {error}")
    if isinstance(error, UnicodeEncodeError):
        return ConfigurationError(
            f"a name or id holds characters that are no text (lone surrogates): {error.object!r}"
        )
    return error


def _meaning_of_answer(error: Exception) -> Exception:
    text, code = str(error)[:1000], _code_of(error)
    if isinstance(error, rex.BusyLoadingError):
        code = "LOADING"
    if "NOGROUP" in text or "UNBLOCKED" in text:
        return GroupMissing(text)
    if "OOM command" in text or isinstance(error, rex.OutOfMemoryError):
        return ServerFull(
            "the server is beyond its maxmemory and stored nothing; let workers drain the queue "
            "or raise maxmemory"
        )
    if code == "NOPERM" or denies(text) or isinstance(error, rex.NoPermissionError):
        return ConfigurationError(
            f"the server's ACL forbids a command redistq needs: {text} (scripts run with the "
            "caller's rights; all that are needed are in docs/operations.md, Rights, and ACL LOG "
            "tells what was refused)"
        )
    if code == "NOAUTH":
        return ConfigurationError("the server wants a password: redis://:PASSWORD@host:6379/0")
    if code in _FOR_NOW or isinstance(error, _GONE):
        words = text[text.find(f"-{code}") + 1 :] if f"-{code}" in text else text
        return Refused(words if words.startswith(code) else f"{code} {words}")
    if code == "WRONGTYPE":
        return WrongKind(
            f"a key of this queue holds something else: {text}; choose another name for the queue "
            "or another database, or delete that key"
        )
    if code == "CROSSSLOT":
        return ConfigurationError(
            f"this is a Redis Cluster ({text}); use its address: redis+cluster://host:6379"
        )
    if code == "DENIED":
        return ConfigurationError(f"the server takes no connections from here: {text}")
    if _unknown_command(text):
        return ConfigurationError(
            f"the server does not have a command that redistq needs: {text}; it was renamed or "
            "disabled there, or the server is older than Redis 6.2"
        )
    if "DB index" in text:
        return ConfigurationError(f"the server does not have this database: {text}")
    if code == "ERR" and _PASSING_WORDS.search(text):
        return Refused(text)
    return ServerError(f"the server answered with an error: {text}")


class Connector:
    """Makes connections to the server that holds one queue: plain, TLS, Sentinel or Cluster."""

    def __init__(self, address: Address, slot_key: str = "tasks") -> None:
        self.address, self._slot_key = address, slot_key
        self._cluster: Any = None
        self._pool: Any = None
        self._lock = threading.Lock()
        self._named = True  # until a server turns out to have no CLIENT command for us

    def connect(self, timeout: float) -> Any:
        """A new open connection; each step of making it gives up after ``timeout`` seconds."""
        with self._lock:
            kind, kwargs = self._where()
        # Of several addresses of a host the first may be dead.
        limits = {
            "socket_timeout": timeout,
            "socket_connect_timeout": min(CONNECT_TIMEOUT, timeout / 2),
        }
        while True:
            name = {} if self._named else {"client_name": None}
            try:
                link = kind(**{**kwargs, **limits, **name})
            except TypeError as error:  # an option of the URL that redis-py does not know
                raise ConfigurationError(f"{self.address} cannot be used: {error}") from None
            try:
                link.connect()
                return link
            except BaseException as error:
                with contextlib.suppress(Exception):
                    link.disconnect()
                if not (self._named and cannot_be_named(error)):
                    raise
                self._named = False

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
                    wrong = what_is_wrong(address) or error
                    raise ConfigurationError(f"{address} cannot be used: {wrong}") from None
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


def cannot_be_named(error: BaseException) -> bool:
    """Whether a server refused to name a connection, which is a comfort to whoever looks at it."""
    text = str(error)
    return isinstance(error, rex.ResponseError) and (
        _unknown_command(text, "CLIENT") or (_code_of(error) == "NOPERM" and "client" in text)
    )


def pause_before(tries: int, deadline: float, broker: Any, error: ConnectionLost) -> float:
    """Seconds to wait before a call is sent again; raises ServerUnavailable past the deadline."""
    pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
    if time.monotonic() + pause < deadline:
        return pause
    if not isinstance(error, Refused):
        raise ServerUnavailable(
            f"no answer from {broker.address} for {broker.timeout:g} s ({error}); is the server "
            "up? The call may be made again: a task id is stored once"
        ) from error
    advice = "the call may be made again: a task id is stored once"
    if str(error).startswith("MOVED") and not broker.address.clustered:
        advice = "it is one of a Cluster, whose address is redis+cluster://host:6379"
    raise ServerUnavailable(
        f"the server at {broker.address} refuses for {broker.timeout:g} s now: {error}; {advice}"
    ) from error


class Broker:
    """Calls to one queue's server from any number of threads, over as few connections as are used
    at a time.

    ``timeout`` bounds every call in seconds, with all that belongs to it: looking the server up,
    connecting, sending, waiting, sending again. Then ServerUnavailable is raised.
    """

    def __init__(
        self, address: Address, *, slot_key: str = "tasks", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.address, self._timeout = address, timeout
        self._connector = Connector(address, slot_key)
        self._idle: list[Connection] = []  # the one used last is used next
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._connections_lock = threading.RLock()  # a signal's handler may set the timeout
        self._pid = os.getpid()

    @property
    def timeout(self) -> float:
        """Seconds after which a call gives up."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            connection.set_timeout(seconds)

    def call(self, command: Command, deadline: float | None = None) -> Any:
        """Send a call, again if the connection fails or the server refuses for now, within
        ``timeout`` seconds, or until a ``deadline`` (monotonic clock) that is nearer.

        Raises ServerUnavailable when there was no answer in that time, ServerFull,
        ConfigurationError, NoGroup, or ServerError.
        """
        # As _take_wire and _put_back, in place: every call comes along here.
        until = time.monotonic() + self._timeout
        if self._pid != os.getpid():
            self._forget_parent()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._new_wire()
        try:
            if deadline is None or deadline >= until:
                return connection.request(command, until)
            until = deadline
            return connection.request_by(command, until)
        except ConnectionLost as error:
            return self._again(connection, command, error, until)
        finally:
            idle = self._idle  # another since then, when it was closed
            idle.append(connection)
            if len(idle) > KEPT_IDLE:
                self._close_one(idle)

    def call_many(self, commands: Iterable[Command]) -> Iterator[Any]:
        """Answers to many calls in order; as ``call``, with two of them under way at once.

        ``timeout`` bounds the wait for each next answer, so that a long list may take its time. On
        a connection of its own, so that an answer is never taken for that of another call made
        before the last of these was read.
        """
        sent: deque[Command] = deque()

        def remember() -> Iterator[Command]:
            for command in commands:
                sent.append(command)
                yield command

        source = remember()
        connection, deadline = self._take_connection(), time.monotonic() + self._timeout
        try:
            for answer in connection.request_many(source, self._timeout):
                sent.popleft()
                yield answer
                deadline = time.monotonic() + self._timeout
        except ConnectionLost as error:
            # Those under way may have been done or not; being idempotent, they are sent again.
            for command in list(sent):
                yield self._again(connection, command, error, deadline)
                deadline = time.monotonic() + self._timeout
            for command in source:
                sent.clear()
                yield self.call(command)
        finally:
            self._put_back(connection)

    def _take_connection(self) -> Connection:
        if self._pid != os.getpid():
            self._forget_parent()
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_wire()

    def _put_back(self, connection: Connection) -> None:
        idle = self._idle
        idle.append(connection)
        if len(idle) > KEPT_IDLE:
            self._close_one(idle)

    def _new_wire(self) -> Connection:
        connection = Connection(self._connector.connect, self._timeout)
        with self._connections_lock:
            self._connections.add(connection)
        return connection

    def _forget_parent(self) -> None:
        """After a fork: the parent's connections are not ours to use."""
        self._idle, self._connections = [], weakref.WeakSet()
        self._connections_lock = threading.RLock()
        self._pid = os.getpid()

    def _close_one(self, idle: list[Connection]) -> None:
        with contextlib.suppress(IndexError):  # other threads were faster
            idle.pop(0).close()

    def _again(
        self, connection: Connection, command: Command, error: ConnectionLost, deadline: float
    ) -> Any:
        tries = 0
        while True:
            time.sleep(pause_before(tries, deadline, self, error))
            tries += 1
            try:
                return connection.request_by(command, deadline)
            except ConnectionLost as again:
                error = said_most(error, again)

    def connection(self, timeout: float | None = None) -> Connection:
        """A dedicated connection, for blocking reads; its reads give up after ``timeout`` s."""
        return Connection(self._connector.connect, timeout)

    def close(self) -> None:
        """Close every connection of every thread; the broker may be used again afterwards."""
        self._idle = []
        with self._connections_lock:
            connections, self._connections = list(self._connections), weakref.WeakSet()
        for connection in connections:
            connection.close()
        self._connector.close()


def said_most(before: ConnectionLost, error: ConnectionLost) -> ConnectionLost:
    """Which of two failures says more: what a server said, rather than that time ran out."""
    out_of_time = not isinstance(error, Refused) and error.__cause__ is None
    return before if out_of_time else error


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
    lines = (
        transport.partition(":") for transport in reply.decode().splitlines() if ":" in transport
    )
    return {name: value for name, _, value in lines}
