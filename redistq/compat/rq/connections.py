"""Producers by address and queue, one each a process."""

from __future__ import annotations

import os
from typing import Any

from ...connection.address import DEFAULT_HOST, DEFAULT_PORT
from ...errors import ConfigurationError
from ...producer import TaskProducer
from ..unsupported import NotSupported

_producers: dict[tuple[str | None, str], TaskProducer] = {}
_pid = [os.getpid()]


def url_of(connection: Any) -> str | None:
    """Return the address that a connection stands for: its URL, or None for where redistq finds
    the server itself. Raises ConfigurationError for a connection that has no such address."""
    if connection is None or isinstance(connection, str):
        return connection
    pool = getattr(connection, "connection_pool", None)
    given = getattr(pool, "connection_kwargs", None)
    if not isinstance(given, dict) or given.get("path") or given.get("password"):
        raise ConfigurationError(
            "connection is the server's address: Queue(connection='redis://host:6379/0')"
        )
    host, port = given.get("host", DEFAULT_HOST), given.get("port", DEFAULT_PORT)
    return f"redis://{host}:{port}/{given.get('db') or 0}"


def producer(connection: Any, queue: str) -> TaskProducer:
    """Return what adds to a queue in this process."""
    if _pid[0] != os.getpid():
        _producers.clear()
        _pid[0] = os.getpid()
    key = (url_of(connection), queue)
    if key not in _producers:
        _producers[key] = TaskProducer(stream=queue, url=key[0])
    return _producers[key]


def queues(connection: Any) -> list[str]:
    """Return the queues that this process knows on a server, and ``default``."""
    url = url_of(connection)
    return list(dict.fromkeys([*(queue for at, queue in _producers if at == url), "default"]))


def close() -> None:
    """Close all of them; they are made again when they are needed."""
    for one in _producers.values():
        one.close()
    _producers.clear()


def json_only(serializer: Any) -> None:
    """Raise NotSupported for a serializer that is not JSON."""
    name = serializer if isinstance(serializer, str) else getattr(serializer, "__name__", "")
    if serializer is not None and "json" not in str(name).lower():
        raise NotSupported(
            f"the serializer {name}",
            "arguments and results are JSON: unpickling runs whatever its writer chose; send plain "
            "values, or functions with redistq.Client, which signs them",
        )
