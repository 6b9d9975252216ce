"""Operations: what a producer does, written once, carried out with or without ``await``.

An operation is a generator. It yields a step (a call, a read of an inbox, or a sleep), is sent
the answer, and returns its result; ``run`` carries it out with a Broker, ``run_async`` with an
AsyncBroker. It never touches a connection itself. ``Inbox`` and ``ReadInbox`` serve the inboxes of
clients too.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import ConnectionLost, UnexpectedReply, WrongKind
from ..logger import logger
from ..protocol.commands import SETTLED, Command
from ..protocol.keys import QueueKeys
from ..protocol.plain_commands import delete, read_stream
from ..protocol.replies import UNREADABLE, unexpected
from ..slots import lent, runner

if TYPE_CHECKING:
    from ..connection.async_broker import AsyncBroker, AsyncConnection

log = logger("redistq.client")

T = TypeVar("T")

BLOCK_LIMIT = 5.0
"""Longest single blocking read in seconds, so that an interrupt and a lost server are noticed."""
NOTICE_S = 1.0
"""The same while something is waited for: a server wakes no reader of an overwritten key."""
LEAST_PATIENCE_S = 0.25
"""How long an answer is waited for at least, however near the caller's own time limit is."""
_STATES = {state.encode(): state for state in SETTLED}
_FIELDS = [b"id", b"state", b"body"]


@dataclass(slots=True)
class Inbox:
    """The stream of notifications for one waiting call; reused, never by two calls at once."""

    key: str
    name: str
    last: str = "0-0"
    kept: int = 0
    """Notes that were read and not deleted yet."""
    complained: bool = False
    """Whether it was said that something in it is no note."""
    connection: Connection | None = None
    async_connection: AsyncConnection | None = None

    def clearing(self) -> Command:
        """Return the command that deletes what stands at this key and is no inbox, and log that."""
        log.warning(
            "%s held something that is no inbox and was deleted: something else wrote to this key; "
            "results are taken from the tasks' records",
            self.key,
        )
        return delete((self.key,))

    @classmethod
    def new(cls, keys: QueueKeys, mark: str = "") -> Inbox:
        """Return an inbox with a unique name, which begins with ``mark``."""
        name = mark + uuid.uuid4().hex[:16]
        return cls(keys.inbox(name), name)


@dataclass(slots=True)
class Notification:
    """The end of one task, as it stands in an inbox; ``body`` is None when it was too large."""

    task_id: str
    state: str
    body: bytes | None


@dataclass(slots=True)
class Call:
    """A step: a call that is given up at ``deadline`` (monotonic clock), if not before."""

    command: Command
    deadline: float


@dataclass(slots=True)
class Sleep:
    """A step: nothing is done for so many seconds."""

    seconds: float


@dataclass(slots=True)
class Together:
    """A step: some small plain calls, with small answers, in one round trip."""

    commands: Sequence[Command]


@dataclass(slots=True)
class Many:
    """A step: calls in order, of any number; each answer is given to ``take``, which may raise."""

    commands: Iterable[Command]
    take: Callable[[Any], object]


class ReadInbox:
    """A step: wait for what is new in an inbox, at most ``seconds``.

    Its answer is a list of notifications, empty when the time ran out; None when the connection
    failed, or when nothing came back until ``deadline`` (monotonic clock).
    """

    __slots__ = ("block_s", "deadline", "inbox")

    def __init__(self, inbox: Inbox, seconds: float, deadline: float = math.inf) -> None:
        self.inbox = inbox
        self.deadline = deadline
        self.block_s = seconds if seconds < BLOCK_LIMIT else BLOCK_LIMIT
        """Seconds that the server may wait for entries."""

    def patience(self, timeout: float) -> float:
        """Return the seconds after which the server counts as unavailable, where calls may take
        ``timeout``.

        In tenths, so that it is the same for one read after the other: each change is two calls to
        the kernel.
        """
        block_s = self.block_s
        seconds = block_s + timeout
        left = self.deadline - time.monotonic()
        if left < seconds:
            seconds = left if left > block_s else block_s
        return math.ceil(10 * (seconds + LEAST_PATIENCE_S)) / 10

    def command(self) -> Command:
        """Return the blocking read."""
        block = max(1, int(self.block_s * 1000))
        return read_stream(self.inbox.key, self.inbox.last, 1000, block)

    def read(self, reply: Any) -> list[Notification]:
        """Return what a reply to ``command`` holds; the inbox moves on. Raises UnexpectedReply."""
        notes = []
        try:
            for entry, flat in reply[0][1] if reply else ():
                self.inbox.last = entry.decode()
                self.inbox.kept += 1
                try:
                    if flat[::2] == _FIELDS:  # the usual
                        _, raw_id, _, raw_state, _, body = flat
                    else:
                        fields = dict(zip(flat[::2], flat[1::2], strict=True))
                        raw_id = fields[b"id"]
                        raw_state = fields[b"state"]
                        body = fields.get(b"body")
                    notes.append(Notification(raw_id.decode(), _STATES[raw_state], body))
                except (LookupError, ValueError, TypeError) as error:
                    # Another program that writes to the server left it, or a newer release.
                    self._complain(error)
        except UNREADABLE as error:
            raise unexpected(self.command(), reply) from error
        return notes

    def _complain(self, error: Exception) -> None:
        """Log, once, that something in the inbox is no notification."""
        if not self.inbox.complained:
            self.inbox.complained = True
            log.warning(
                "%s holds messages that tell of no task; they are passed over (%r)",
                self.inbox.key,
                error,
            )


Step = Command | Call | ReadInbox | Sleep | Together | Many
Operation = Generator[Step, Any, T]


def run(broker: Broker, operation: Operation[T]) -> T:
    """Carry out an operation in this thread."""
    try:
        step = next(operation)
        while True:
            try:
                if isinstance(step, tuple):
                    answer: Any = broker.call(step)
                elif type(step) is Call:
                    answer = broker.call(step.command, step.deadline)
                elif type(step) is Sleep:
                    time.sleep(step.seconds)
                    answer = None
                elif type(step) is Together:
                    answer = broker.call_all(step.commands)
                elif type(step) is Many:
                    for answer in broker.call_many(step.commands):
                        step.take(answer)
                    answer = None
                else:
                    answer = _read(broker, step)
            except Exception as error:  # broad: the operation decides; it may go on
                step = operation.throw(error)
            else:
                step = operation.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _read(broker: Broker, step: Any) -> list[Notification] | None:
    inbox = step.inbox
    if inbox.connection is None:
        inbox.connection = broker.connection()
    try:
        command = step.command()
        patience = step.patience(broker.timeout)
        if runner() is None:
            reply = inbox.connection.read(command, patience)
        else:
            with lent():
                reply = inbox.connection.read(command, patience)
        return step.read(reply)  # type: ignore[no-any-return]
    except UnexpectedReply:
        inbox.connection.close()
        raise
    except WrongKind:
        broker.call(inbox.clearing())
        return None
    except ConnectionLost:
        return None


async def run_async(broker: AsyncBroker, operation: Operation[T]) -> T:
    """Carry out an operation in the running event loop."""
    with contextlib.closing(operation):
        try:
            step = next(operation)
            while True:
                try:
                    if isinstance(step, tuple):
                        answer: Any = await broker.call(step)
                    elif isinstance(step, Call):
                        answer = await broker.call(step.command, step.deadline)
                    elif isinstance(step, Sleep):
                        import asyncio  # loaded already: a loop runs

                        await asyncio.sleep(step.seconds)
                        answer = None
                    elif isinstance(step, Together):
                        answer = await broker.call_all(step.commands)
                    elif isinstance(step, Many):
                        for command in step.commands:
                            step.take(await broker.call(command))
                        answer = None
                    else:
                        answer = await _read_async(broker, step)
                except Exception as error:  # broad: the operation decides
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result


async def _read_async(broker: AsyncBroker, step: Any) -> list[Notification] | None:
    inbox = step.inbox
    if inbox.async_connection is None or inbox.async_connection.loop is not broker.loop:
        inbox.async_connection = broker.connection()
    deadline = time.monotonic() + step.patience(broker.timeout)
    try:
        reply = await inbox.async_connection.request(step.command(), deadline)
        return step.read(reply)  # type: ignore[no-any-return]
    except UnexpectedReply:
        await inbox.async_connection.close()
        raise
    except WrongKind:
        await broker.call(inbox.clearing())
        return None
    except ConnectionLost:
        return None
