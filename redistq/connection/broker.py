"""Calls to one queue's server from any number of threads. Used by producers, workers, supervisors
and monitors, which give it commands (see protocol/commands.py).

It knows nothing of tasks; it knows how servers go away and come back. Every call here is idempotent
(by task id or under its fence), so sending it again is safe, and the caller decides how long that
goes on. ``check_server`` looks at the settings of a server, once at a worker's start.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import ConnectionLost, RedistqError, Refused, ServerUnavailable, UnexpectedReply
from ..logger import logger
from ..protocol.plain_commands import (
    MEMORY_INFO,
    PERSISTENCE_INFO,
    SNAPSHOT_SETTING,
    Command,
    read_info,
)
from ..protocol.replies import checked
from .address import Address
from .connection import Connection
from .redis_py import Connector

log = logger("redistq.broker")

DEFAULT_TIMEOUT = 10.0
KEPT_IDLE = 16
"""Most connections that a broker keeps open while they are not used."""
_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


class Broker:
    """Calls to one queue's server from any number of threads, over as few connections as are used
    at a time.

    ``timeout`` bounds every call in seconds, with all that belongs to it: looking the server up,
    connecting, sending, waiting, sending again. Then ServerUnavailable is raised.
    """

    def __init__(
        self, address: Address, *, slot_key: str = "tasks", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._connector = Connector(address, slot_key)
        self._idle: list[Connection] = []  # the one used last is used next
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._connections_lock = threading.RLock()  # a signal's handler may set the timeout
        self._pid = os.getpid()

    @property
    def timeout(self) -> float:
        """The seconds after which a call gives up."""
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
        ConfigurationError, GroupMissing, UnexpectedReply, or ServerError.
        """
        # As _take_connection and _put_back, in place: every call comes along here.
        until = time.monotonic() + self._timeout
        if self._pid != os.getpid():
            self._forget_parent()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._new_connection()
        try:
            if deadline is None or deadline >= until:
                return checked(command, connection.request(command, until))
            until = deadline
            return checked(command, connection.request_by(command, until))
        except ConnectionLost as error:
            return self._again(connection, command, error, until)
        except UnexpectedReply:
            connection.close()  # what comes next there may be the answer to this
            raise
        finally:
            idle = self._idle  # another since then, when it was closed
            idle.append(connection)
            if len(idle) > KEPT_IDLE:
                self._close_one(idle)

    def call_many(self, commands: Iterable[Command]) -> Iterator[Any]:
        """Yield the answers to many calls in order; as ``call``, with two under way at once.

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
        connection = self._take_connection()
        deadline = time.monotonic() + self._timeout
        try:
            for answer in connection.request_many(source, self._timeout):
                yield checked(sent.popleft(), answer)
                deadline = time.monotonic() + self._timeout
        except ConnectionLost as error:
            # Those under way may have been done or not; being idempotent, they are sent again.
            for command in list(sent):
                yield self._again(connection, command, error, deadline)
                deadline = time.monotonic() + self._timeout
            for command in source:
                sent.clear()
                yield self.call(command)
        except UnexpectedReply:
            connection.close()
            raise
        finally:
            self._put_back(connection)

    def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to some commands, in order; as ``call``, in one round trip.

        For commands with small answers, a few hundred at most.
        """
        connection = self._take_connection()
        try:
            answers = connection.request_all(commands, time.monotonic() + self._timeout)
            return [checked(*pair) for pair in zip(commands, answers, strict=True)]
        except ConnectionLost:
            return [self.call(command) for command in commands]
        except UnexpectedReply:
            connection.close()
            raise
        finally:
            self._put_back(connection)

    def _take_connection(self) -> Connection:
        if self._pid != os.getpid():
            self._forget_parent()
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_connection()

    def _put_back(self, connection: Connection) -> None:
        idle = self._idle
        idle.append(connection)
        if len(idle) > KEPT_IDLE:
            self._close_one(idle)

    def _new_connection(self) -> Connection:
        connection = Connection(self._connector.connect, self._timeout)
        with self._connections_lock:
            self._connections.add(connection)
        return connection

    def _forget_parent(self) -> None:
        """After a fork: the parent's connections are not ours to use."""
        self._idle = []
        self._connections = weakref.WeakSet()
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
                return checked(command, connection.request_by(command, deadline))
            except ConnectionLost as again:
                error = said_most(error, again)
            except UnexpectedReply:
                connection.close()
                raise

    def connection(self, timeout: float | None = None) -> Connection:
        """Return a dedicated connection for blocking reads, which give up after ``timeout`` s."""
        return Connection(self._connector.connect, timeout)

    def close(self) -> None:
        """Close every connection of every thread; the broker may be used again afterwards."""
        self._idle = []
        with self._connections_lock:
            connections = list(self._connections)
            self._connections = weakref.WeakSet()
        for connection in connections:
            connection.close()
        self._connector.close()


def pause_before(tries: int, deadline: float, broker: Any, error: ConnectionLost) -> float:
    """Return the seconds to wait before a call is sent again.

    Raises ServerUnavailable past the deadline.
    """
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


def said_most(before: ConnectionLost, error: ConnectionLost) -> ConnectionLost:
    """Return the failure that says more: what a server said, rather than that time ran out."""
    out_of_time = not isinstance(error, Refused) and error.__cause__ is None
    return before if out_of_time else error


# -- the server's settings -------------------------------------------------------------------------


def check_server(broker: Broker) -> list[str]:
    """Return warnings about settings of a server that can lose tasks: eviction, no persistence.

    Each is a sentence that names the setting; there are none when all is well, or when the server
    does not let us look.
    """
    warnings = []
    try:
        memory = read_info(broker.call(MEMORY_INFO))
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
        persistence = read_info(broker.call(PERSISTENCE_INFO))
        if persistence.get("aof_enabled") == "0":
            reply = broker.call(SNAPSHOT_SETTING)
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
    except RedistqError as error:
        log.debug("the server's settings could not be read: %s", error)
    return warnings
