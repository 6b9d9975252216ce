"""Transports: commands and answers over one open connection. Used by connections alone.

Between a command and its answer redis-py's layers took a fifth of a call's time. So where its
insides are as they are known to be (redis-py 5 to 8 with hiredis), the socket and hiredis are used
directly, and elsewhere redis-py's own methods.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import redis.exceptions as rex

from ..protocol.commands import Command
from ..protocol.pieces import Large, Pieces
from .incoming import Incoming

SLACK_S = 0.1
"""How much later than its deadline a call may end: less is not worth a question to the kernel."""
LARGE_SEND = 65_536
_MORE = object()
"""What a reader answers while a part of an answer is missing."""


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
        parts = command.plain() if type(command) is Large else command
        link.send_packed_command(link.pack_command(*parts), check_health=False)

    def send_all(self, commands: Sequence[Command], deadline: float | None = None) -> None:
        """Send commands at once."""
        link = self._link
        plain = [each.plain() if type(each) is Large else each for each in commands]
        link.send_packed_command(link.pack_commands(plain), check_health=False)

    def receive(self, deadline: float | None = None) -> Any:
        """Return the next answer; raises one that is an error."""
        return self._link.read_response()

    def receive_large(self, deadline: float | None = None) -> Any:
        """Return the answer to a Large command; raises one that is an error."""
        return self.receive(deadline)


def _in_pieces(command: Command) -> list[bytes | memoryview]:
    """Return a command as it is sent, one piece after the other. hiredis copies a large value again
    and again; here it stays where it is."""
    pieces: list[bytes | memoryview] = []
    small = bytearray(b"*%d\r\n" % len(command))
    for part in command:
        if type(part) is Pieces:
            value: tuple[bytes | memoryview, ...] = part.buffers
        else:
            value = (part if isinstance(part, bytes) else str(part).encode(),)
        small += b"$%d\r\n" % sum(map(len, value))
        for buffer in value:
            if len(buffer) < LARGE_SEND:
                small += buffer
                continue
            pieces += (bytes(small), buffer)
            small.clear()
        small += b"\r\n"
    return [*pieces, bytes(small)]


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
        self._sendall = sock.sendall
        self._recv_into = sock.recv_into
        self._pack = hiredis.pack_command
        self._error = link._parser.parse_error
        self._new_reader()
        self._buffer = bytearray(65_536)
        self._incoming: Incoming | None = None
        self._deadline: float | None = None

    def _new_reader(self) -> None:
        import hiredis

        reader = hiredis.Reader(
            protocolError=rex.InvalidResponse, replyError=self._error, notEnoughData=_MORE
        )
        self._feed: Any = reader.feed
        self._gets = reader.gets
        self._has_data = reader.has_data

    def limit(self, seconds: float | None) -> None:
        self._usual = seconds
        self._shortened = False
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
        if self._shortened:
            self.limit(self._usual)
        if type(command) is Large:
            for piece in _in_pieces(command):
                self._send(piece, deadline)
        else:
            self._send(self._pack(command), deadline)

    def _send(self, packed: bytes | memoryview, deadline: float | None) -> None:
        if len(packed) < LARGE_SEND or deadline is None:
            self._sendall(packed)
            return
        rest = memoryview(packed)
        while rest:
            self._cut(deadline)
            rest = rest[self._sock.send(rest) :]
        self._cut(deadline)  # the answer is waited for until the same deadline

    def send_all(self, commands: Sequence[Command], deadline: float | None = None) -> None:
        if self._shortened:
            self.limit(self._usual)
        small = bytearray()
        for command in commands:
            if type(command) is not Large:
                small += self._pack(command)
                continue
            *before, last = _in_pieces(command)
            for piece in before:
                if len(piece) < LARGE_SEND:
                    small += piece
                    continue
                self._send(bytes(small), deadline)
                small.clear()
                self._send(piece, deadline)
            small += last
        self._send(bytes(small), deadline)

    def receive(self, deadline: float | None = None) -> Any:
        if self._incoming is not None and self._incoming.rest:
            self._feed(self._incoming.take_rest())
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

    def receive_large(self, deadline: float | None = None) -> Any:
        if self._has_data():  # another answer came before, and a part of this one with it
            return self.receive(deadline)
        incoming = self._incoming
        if incoming is None:
            incoming = self._incoming = Incoming(self._receive_into, self._error)
        self._deadline = deadline
        self._feed(bytes(incoming.fill()))
        reply = self._gets()
        if reply is not _MORE:  # it is small
            incoming.take_rest()
        else:
            self._new_reader()
            reply = incoming.answer()
        if isinstance(reply, rex.RedisError):
            try:
                raise reply
            finally:
                del reply  # as above
        return reply

    def _receive_into(self, view: memoryview) -> int:
        if self._deadline is not None:
            self._cut(self._deadline)
        size: int = self._recv_into(view)
        return size

    def _rest(self, deadline: float | None) -> Any:
        """Return an answer of which a part has come."""
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


def transport_over(link: Any) -> Transport:
    """Return the fastest transport; redis-py's own where its insides are not the known ones."""
    parser = type(getattr(link, "_parser", None)).__name__
    if parser == "_HiredisParser" and getattr(link, "_sock", None) is not None:
        return SocketTransport(link)
    return Transport(link)
