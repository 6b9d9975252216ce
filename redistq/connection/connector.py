"""Opens connections to the server that holds one queue: plain, TLS, Sentinel or Cluster.

redis-py's own retries and timeouts are switched off: it would send a script again ten times in
silence, and give up a blocking read after five seconds.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.exceptions as rex
from redis.backoff import NoBackoff
from redis.retry import Retry as _ClientRetry

from ..errors import ConfigurationError
from .address import Address, what_is_wrong
from .refusals import cannot_be_named

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
