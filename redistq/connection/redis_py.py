"""What redistq knows of redis-py: how it opens connections, and what its errors mean.

``Connector`` opens connections to the server that holds one queue: plain, TLS, Sentinel or Cluster.
redis-py's own retries and timeouts are switched off: it would send a script again ten times in
silence, and give up a blocking read after five seconds. ``meaning_of`` and the functions below it
say from codes and words alone which errors pass, which lead to another server, and which are the
caller's. Used by both brokers.
"""

from __future__ import annotations

import contextlib
import re
import threading
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.exceptions as rex
from redis.backoff import NoBackoff
from redis.retry import Retry as _ClientRetry

from ..errors import (
    ConfigurationError,
    ConnectionLost,
    GroupMissing,
    RedistqError,
    Refused,
    ServerFull,
    WrongKind,
)
from ..protocol.commands import Command, denies
from .address import Address, what_is_wrong

CONNECT_TIMEOUT = 3.0


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
    """Return Sentinel hosts, the service's name, and the options for its servers.

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


class Connector:
    """Makes connections to the server that holds one queue: plain, TLS, Sentinel or Cluster."""

    def __init__(self, address: Address, slot_key: str = "tasks") -> None:
        self.address = address
        self._slot_key = slot_key
        self._cluster: Any = None
        self._pool: Any = None
        self._lock = threading.Lock()
        self._named = True  # until a server turns out to have no CLIENT command for us

    def connect(self, timeout: float) -> Any:
        """Return a new open connection; each step towards it gives up after ``timeout`` seconds."""
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
            except BaseException as error:  # half open, also when interrupted: closed
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
            cluster = self._cluster
            self._cluster = None
            self._pool = None
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.close()


# -- what errors mean ------------------------------------------------------------------------------

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


class ServerError(RedistqError, rex.ResponseError):
    """The server answered with an error that redistq knows nothing about: its words."""


def meaning_of(error: BaseException) -> BaseException:
    """Return what to raise for an error of the connection or of the server; any other error is
    returned as it is."""
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
    text = str(error)[:1000]
    code = _code_of(error)
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


def _code_of(error: BaseException) -> str:
    """Return the code of a server's error: its first word, or the one in a script's report."""
    text = str(error)
    # Redis 6.2 wraps the error of a command that a script ran, with its code after a dash.
    if "script" in text and (found := _CODE_IN_SCRIPT.search(text)):
        return found[1]
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    return code if code.isupper() else "ERR"


def script_is_unknown(error: BaseException, command: Command) -> bool:
    """Return whether a script has to be sent with its text: it, or EVALSHA, is unknown."""
    if not isinstance(error, rex.ResponseError) or not command or command[0] != "EVALSHA":
        return False
    return isinstance(error, rex.NoScriptError) or _unknown_command(str(error), "EVALSHA")


def _unknown_command(text: str, name: str = "") -> bool:
    return "unknown command" in text and name.lower() in text.lower()


def to_another_server(error: BaseException) -> bool:
    """Return whether a server's refusal says that the connection leads to the wrong one."""
    return isinstance(error, (*_GONE, *_REFUSED)) or _code_of(error) in _ELSEWHERE


def cannot_be_named(error: BaseException) -> bool:
    """Return whether a server refused to name a connection; names help people alone."""
    text = str(error)
    return isinstance(error, rex.ResponseError) and (
        _unknown_command(text, "CLIENT") or (_code_of(error) == "NOPERM" and "client" in text)
    )
