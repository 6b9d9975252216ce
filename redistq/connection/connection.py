"""Connections: one request and its answer at a time, until a deadline. Used by brokers, and by
whatever waits in blocking reads.

A ``Connection`` opens by itself when it is needed. redis-py makes it (TLS, authentication,
Sentinel); what goes over it is the work of a ``Transport``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import redis.exceptions as rex

from ..errors import ConnectionLost, UnexpectedReply
from ..protocol.commands import Command
from ..protocol.pieces import Large
from ..protocol.replies import read
from ..protocol.scripts import with_text
from .redis_py import meaning_of, script_is_unknown, to_another_server
from .transport import Transport, transport_over

T = TypeVar("T")

OPEN_TIMEOUT = 10.0
"""Most seconds that making a connection may take: look-up, connecting, authentication."""


class Connection:
    """One dedicated connection: a request, its answer, in turn. For one thread at a time."""

    def __init__(self, connect: Callable[[float], Any], timeout: float | None) -> None:
        self._connect = connect
        self._timeout = timeout
        self._link: Any = None
        self._transport: Transport | None = None
        self._opening: _Opening | None = None
        _connections.add(self)
        self.opened = 0
        """How often a connection was made; a reader that sees it grow looks for lost answers."""

    def request(self, command: Command, deadline: float | None = None) -> Any:
        """Send one command and return its answer; gives up at about ``deadline`` (monotonic),
        which lies the connection's ``timeout`` ahead.

        Raises ConnectionLost when the connection failed, Refused when the server says no for now,
        GroupMissing, ServerFull, ConfigurationError (refused credentials or permissions, commands
        or keys that are not what they should be), and ServerError for the rest.
        """
        transport = self._transport
        if transport is None:
            return self.request_by(command, deadline)
        try:
            transport.send(command, deadline)
            if type(command) is Large:
                return transport.receive_large(deadline)
            return transport.receive(deadline)
        except BaseException as error:  # an interrupt too leaves an answer under way
            return self._after(error, command, deadline)

    def ask(self, command: Command, reader: Callable[[Any], T]) -> T:
        """Return what ``reader`` makes of the answer to a command; raises as ``request``, and
        UnexpectedReply when it can make nothing of it."""
        reply = self.request(command)
        try:
            return read(command, reply, reader)
        except UnexpectedReply:
            self.close()  # what comes next may be the answer to this
            raise

    def request_by(self, command: Command, deadline: float | None) -> Any:
        """As ``request``, for a deadline that is nearer than usual, or when there is no connection
        yet."""
        try:
            transport = self._transport or self._open(deadline)
            if deadline is not None:
                transport.limit(_left(deadline))
            transport.send(command, deadline)
            return _answer(transport, command, deadline)
        except BaseException as error:  # as in request
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
        except BaseException as error:  # as in request
            return self._after(error, command, None)

    def set_timeout(self, timeout: float | None) -> None:
        """From the next request on, give up after so many seconds."""
        self._timeout = timeout
        transport = self._transport
        if transport is not None:
            with contextlib.suppress(OSError):
                transport.limit(timeout)

    def _after(self, error: BaseException, command: Command, deadline: float | None) -> Any:
        """Return the answer after all where a script was unknown; raise what other errors mean."""
        if script_is_unknown(error, command):
            # The server does not know the script (new, restarted, SCRIPT FLUSH): send its text,
            # once. An error of the script itself is raised by this second request as it is.
            return self.request_by(with_text(command), deadline)
        meaning = meaning_of(error)
        if not isinstance(error, rex.ResponseError) or to_another_server(error):
            # Also an interrupt between request and answer: the next would be the wrong one.
            self.close()
        if meaning is error:
            raise error
        raise meaning from error

    def request_many(self, commands: Iterable[Command], timeout: float) -> Iterator[Any]:
        """Yield the answers to many commands in order, each sent before the last answer was read.

        Two are under way at once, so that client and server work at the same time; each answer
        may take ``timeout`` seconds. After ConnectionLost, or any error, the answers not yet given
        are unknown.
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
        except BaseException as error:  # also GeneratorExit: answers are left unread
            self.close()
            meaning = meaning_of(error)
            if meaning is error:
                raise
            raise meaning from error

    def request_all(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        """Send commands at once and return their answers, which are small: the server keeps all of
        them until they are read. Raises as ``request``; ConnectionLost also where a
        script is unknown, which one by one they are sent the text of."""
        try:
            transport = self._transport or self._open(deadline)
            transport.send_all(commands, deadline)
            return [transport.receive(deadline) for _ in commands]
        except BaseException as error:  # also one that is an answer: others are left unread
            self.close()
            if any(script_is_unknown(error, command) for command in commands):
                raise ConnectionLost("a script is unknown there") from error
            meaning = meaning_of(error)
            if meaning is error:
                raise
            raise meaning from error

    def _next_answer(self, transport: Transport, waiting: deque[Command], timeout: float) -> Any:
        command = waiting.popleft()
        deadline = time.monotonic() + timeout
        try:
            return _answer(transport, command, deadline)
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
        """Send without reading an answer (SUBSCRIBE); raises ConnectionLost."""
        try:
            (self._transport or self._open(None)).send(command)
        except BaseException as error:  # as in request
            self._after(error, command, None)

    def receive(self, timeout: float) -> Any:
        """Return the next pushed message, or None after ``timeout`` s; raises as ``request``."""
        link = self._link
        if link is None:
            raise ConnectionLost("not connected")
        try:
            if not link.can_read(timeout=timeout):
                return None
            return link.read_response()
        except BaseException as error:  # as in request
            return self._after(error, (), None)

    def _open(self, deadline: float | None) -> Transport:
        seconds = OPEN_TIMEOUT if deadline is None else min(_left(deadline), OPEN_TIMEOUT)
        opening = self._opening = _Opening(lambda: self._connect(seconds))
        try:
            link = opening.wait(seconds)
        finally:
            self._opening = None
        transport = transport_over(link)
        self._link = link
        self._transport = transport
        transport.limit(self._timeout)
        self.opened += 1
        return transport

    def interrupt(self) -> None:
        """End a blocking read in another thread, which then raises ConnectionLost."""
        opening = self._opening
        link = self._link
        if opening is not None:
            opening.give_up()
        sock = getattr(link, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)

    def forget(self) -> None:
        """In a forked process: close the parent's socket here, and send nothing."""
        link = self._let_go()
        sock = getattr(link, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                os.close(sock.detach())

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        link = self._let_go()
        if link is not None:
            with contextlib.suppress(Exception):
                link.disconnect()

    def _let_go(self) -> Any:
        link = self._link
        self._link = None
        self._transport = None
        return link


class _Opening:
    """A connection that is being made by a thread of its own, and can be given up at any time.

    Neither a look-up of names nor a library's handshake has a deadline of its own.
    """

    def __init__(self, open_one: Callable[[], Any]) -> None:
        self._open_one = open_one
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._given_up = False
        self._link: Any = None
        self._error: BaseException | None = None

    def wait(self, seconds: float) -> Any:
        """Return the open connection; raises what its making raised, or ConnectionLost after
        ``seconds``."""
        try:
            threading.Thread(target=self._work, name="redistq-connect", daemon=True).start()
        except RuntimeError:
            self._work()  # no more threads: at exit, or beyond a limit
        try:
            self._ended.wait(seconds)
        finally:
            with self._lock:
                self._given_up = True
                link = self._link
                error = self._error
        if error is not None:
            raise error
        if link is None:
            raise ConnectionLost(f"no connection within {seconds:.1f} s")
        return link

    def give_up(self) -> None:
        """Make ``wait`` raise ConnectionLost now."""
        self._ended.set()

    def _work(self) -> None:
        try:
            link = self._open_one()
            with self._lock:
                if not self._given_up:
                    self._link = link
                    link = None
            if link is not None:
                with contextlib.suppress(Exception):
                    link.disconnect()
        except BaseException as error:  # raised again where it is waited for
            self._error = error
        finally:
            self._ended.set()


def _answer(transport: Transport, command: Command, deadline: float | None) -> Any:
    """Return the answer to the command that was sent first of those without one."""
    if type(command) is Large:
        return transport.receive_large(deadline)
    return transport.receive(deadline)


def _left(deadline: float) -> float:
    """Return the seconds until a deadline; raises ConnectionLost when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise ConnectionLost("the time is over")
    return left


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    # A forked process that outlives its parent would keep the parent's connections open: the
    # server would go on handing tasks to a blocking read whose answer is not read.
    for connection in list(_connections):
        connection.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
