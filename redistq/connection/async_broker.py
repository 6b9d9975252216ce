"""Calls to one queue's server for ``await``: as broker.py, for one event loop. Used by
AsyncTaskProducer.

Errors, meanings and the rules of sending again are broker.py's; only the waiting differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Sequence
from typing import Any

import redis.asyncio as aredis
import redis.asyncio.sentinel
import redis.exceptions as rex
from redis.asyncio.retry import Retry as _ClientRetry
from redis.backoff import NoBackoff

from ..errors import ConfigurationError, ConnectionLost, UnexpectedReply
from ..protocol.commands import Command
from ..protocol.replies import checked
from ..protocol.scripts import with_text
from .address import Address, what_is_wrong
from .broker import DEFAULT_TIMEOUT, KEPT_IDLE, pause_before, said_most
from .connection import OPEN_TIMEOUT
from .redis_py import (
    CONNECT_TIMEOUT,
    cannot_be_named,
    meaning_of,
    script_is_unknown,
    sentinel_parts,
    to_another_server,
)

MOST_CALLS = 64
"""Most calls under way at a time, each on a connection of its own; more wait for their turn."""


class AsyncConnection:
    """One dedicated connection for one task of the event loop at a time."""

    def __init__(self, broker: AsyncBroker, timeout: float | None) -> None:
        self._broker = broker
        self._timeout = timeout
        self.loop = broker.loop
        self._link: Any = None

    async def request(self, command: Command, deadline: float | None = None) -> Any:
        """Send one command and return its answer, by ``deadline`` (monotonic clock) or within the
        connection's timeout; raises as Connection.request does."""
        if deadline is None and self._timeout is not None:
            deadline = time.monotonic() + self._timeout
        left = None if deadline is None else deadline - time.monotonic()
        try:
            # Not redis-py's own socket_timeout: on Python 3.11 its wait_for may swallow a
            # cancellation.
            async with asyncio.timeout(left):
                link = self._link
                if link is None:
                    async with asyncio.timeout(OPEN_TIMEOUT):
                        link = await self._broker.connect()
                    self._link = link
                await link.send_packed_command(link.pack_command(*command), check_health=False)
                return await link.read_response()
        except BaseException as error:  # a cancellation too leaves an answer under way
            if script_is_unknown(error, command):
                return await self.request(with_text(command), deadline)
            meaning = meaning_of(error)
            if not isinstance(error, rex.ResponseError) or to_another_server(error):
                # Also when cancelled between request and answer: the next would be the wrong one.
                await self.close()
            if meaning is error:
                raise
            raise meaning from error

    async def request_all(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        """Send small plain commands at once and return their answers; raises as ``request``."""
        first = await self.request(commands[0], deadline)  # there is a connection after this
        link = self._link
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                packed = link.pack_commands(commands[1:])
                await link.send_packed_command(packed, check_health=False)
                return [first, *[await link.read_response() for _ in commands[1:]]]
        except BaseException as error:  # as in request; others are left unread
            await self.close()
            meaning = meaning_of(error)
            if meaning is error:
                raise
            raise meaning from error

    async def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        link = self._link
        self._link = None
        if link is not None:
            with contextlib.suppress(Exception):
                await link.disconnect(nowait=True)


class AsyncBroker:
    """Calls to one queue's server from one event loop; see Broker."""

    def __init__(
        self, address: Address, *, slot_key: str = "tasks", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._slot_key = slot_key
        self._pool: Any = None
        self._cluster: Any = None
        self._idle: list[AsyncConnection] = []
        self._connections: weakref.WeakSet[AsyncConnection] = weakref.WeakSet()
        self._room = asyncio.Semaphore(MOST_CALLS)
        self._named = True  # until a server turns out to have no CLIENT command for us
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop that the connections belong to."""

    async def call(self, command: Command, deadline: float | None = None) -> Any:
        """Send a call, again if the connection fails or the server refuses for now, within
        ``timeout`` seconds, or until a ``deadline`` (monotonic clock) that is nearer."""
        until = time.monotonic() + self.timeout
        if deadline is not None:
            until = min(until, deadline)
        self._take_loop()
        async with self._room:
            connection = self._idle.pop() if self._idle else self.connection(self.timeout)
            try:
                try:
                    return checked(command, await connection.request(command, until))
                except ConnectionLost as error:
                    reply = await self._again(connection, command, error, until)
                    return checked(command, reply)
            except UnexpectedReply:
                await connection.close()  # what comes next there may be the answer to this
                raise
            finally:
                if len(self._idle) < KEPT_IDLE:
                    self._idle.append(connection)
                else:
                    await connection.close()

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to some plain commands, in order; see Broker.call_all."""
        self._take_loop()
        async with self._room:
            connection = self._idle.pop() if self._idle else self.connection(self.timeout)
            try:
                until = time.monotonic() + self.timeout
                answers = await connection.request_all(commands, until)
                return [checked(*pair) for pair in zip(commands, answers, strict=True)]
            except ConnectionLost:
                pass
            except UnexpectedReply:
                await connection.close()
                raise
            finally:
                self._idle.append(connection)
        return [await self.call(command) for command in commands]

    def _take_loop(self) -> None:
        """Forget the connections of another event loop: a new asyncio.run()."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.loop = loop
            self._idle = []
            self._connections = weakref.WeakSet()
            self._pool = self._cluster = None
            self._room = asyncio.Semaphore(MOST_CALLS)

    async def _again(
        self, connection: AsyncConnection, command: Command, error: ConnectionLost, deadline: float
    ) -> Any:
        tries = 0
        while True:
            await asyncio.sleep(pause_before(tries, deadline, self, error))
            tries += 1
            try:
                return await connection.request(command, deadline)
            except ConnectionLost as again:
                error = said_most(error, again)

    def connection(self, timeout: float | None = None) -> AsyncConnection:
        """Return a dedicated connection, for blocking reads."""
        connection = AsyncConnection(self, timeout)
        self._connections.add(connection)
        return connection

    async def connect(self) -> Any:
        """Return a new open connection."""
        kind, kwargs = await self._where()
        while True:
            name = {} if self._named else {"client_name": None}
            try:
                link = kind(**{**kwargs, "socket_timeout": None, **name})
            except TypeError as error:  # an option of the URL that redis-py does not know
                raise ConfigurationError(f"{self.address} cannot be used: {error}") from None
            try:
                await link.connect()
                return link
            except BaseException as error:  # half open, also when cancelled: closed
                with contextlib.suppress(Exception):
                    await link.disconnect(nowait=True)
                if not (self._named and cannot_be_named(error)):
                    raise
                self._named = False

    async def _where(self) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "retry": _ClientRetry(NoBackoff(), 0),
            "client_name": "redistq",
            "decode_responses": False,
        }
        address = self.address
        if not address.url.startswith("unix"):
            options["socket_keepalive"] = True
        if address.clustered:
            from redis.asyncio.cluster import RedisCluster

            if self._cluster is not None:
                await self._cluster.aclose()
            options["socket_timeout"] = CONNECT_TIMEOUT
            self._cluster = RedisCluster.from_url(address.url.replace("+cluster", "", 1), **options)
            await self._cluster.initialize()
            node = self._cluster.get_node_from_key(self._slot_key)
            if node is None:
                raise rex.ClusterDownError(f"no node serves the slot of {self._slot_key}")
            return node.connection_class, node.connection_kwargs
        if self._pool is None:
            if address.sentinel:
                hosts, service, more = sentinel_parts(address.url)
                sentinel: Any = redis.asyncio.sentinel.Sentinel(
                    hosts, sentinel_kwargs={"socket_timeout": CONNECT_TIMEOUT}
                )
                client = sentinel.master_for(service, **{**options, **more})
                self._pool = client.connection_pool
            else:
                try:
                    self._pool = aredis.ConnectionPool.from_url(address.url, **options)
                except ValueError as error:
                    wrong = what_is_wrong(address) or error
                    raise ConfigurationError(f"{address} cannot be used: {wrong}") from None
        return self._pool.connection_class, self._pool.connection_kwargs

    async def close(self) -> None:
        """Close every connection; the broker may be used again afterwards."""
        connections = list(self._connections)
        self._connections = weakref.WeakSet()
        self._idle = []
        for connection in connections:
            await connection.close()
        if self._cluster is not None:
            await self._cluster.aclose()
        self._pool = self._cluster = None
