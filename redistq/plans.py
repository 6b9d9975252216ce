"""Plans: what a client does, written once, carried out with or without ``await``.

A plan is a generator. It yields a step (a call, or a read of an inbox), is sent the answer, and
returns its result; ``drive`` carries one out with a Broker, ``drive_async`` with an AsyncBroker.
Used by producers; a plan never touches a connection itself.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .broker import Broker, Lost, Wire
from .calls import Command
from .keys import QueueKeys

if TYPE_CHECKING:
    from .async_broker import AsyncBroker, AsyncWire

T = TypeVar("T")

BLOCK_LIMIT = 5.0
"""Longest single blocking read in seconds, so that an interrupt and a lost server are noticed."""


@dataclass(slots=True)
class Inbox:
    """Where settled tasks are told to one waiting call; reused, never by two calls at once."""

    key: str
    name: str
    last: str = "0-0"
    kept: int = 0
    """Notes that were read and not deleted yet."""
    wire: Wire | None = None
    async_wire: AsyncWire | None = None

    @classmethod
    def new(cls, keys: QueueKeys) -> Inbox:
        """An inbox with a name nobody else has."""
        name = uuid.uuid4().hex[:16]
        return cls(keys.inbox(name), name)


@dataclass(slots=True)
class Told:
    """One settled task as an inbox tells it; ``body`` is None when it was too large for it."""

    task_id: str
    state: str
    body: bytes | None


@dataclass(slots=True)
class ReadInbox:
    """A step: wait for what is new in an inbox, at most ``seconds``.

    Its answer is a list of Told, empty when the time ran out; None when the connection failed.
    """

    inbox: Inbox
    seconds: float
    told: list[Told] = field(default_factory=list)

    def command(self) -> Command:
        """The blocking read."""
        block = max(1, int(min(self.seconds, BLOCK_LIMIT) * 1000))
        return ("XREAD", "COUNT", 1000, "BLOCK", block, "STREAMS", self.inbox.key, self.inbox.last)

    def read(self, reply: Any) -> list[Told]:
        """The answer of ``command``, and the inbox moved on."""
        told = []
        for entry, flat in reply[0][1] if reply else ():
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            told.append(
                Told(fields[b"id"].decode(), fields[b"state"].decode(), fields.get(b"body"))
            )
            self.inbox.last = entry.decode()
            self.inbox.kept += 1
        return told


Step = Command | ReadInbox
Plan = Generator[Step, Any, T]


def drive(broker: Broker, plan: Plan[T]) -> T:
    """Carry out a plan in this thread."""
    try:
        step = next(plan)
        while True:
            try:
                answer = broker.call(step) if type(step) is tuple else _read(broker, step)
            except Exception as error:
                step = plan.throw(error)  # which may do without the answer
            else:
                step = plan.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _read(broker: Broker, step: Any) -> list[Told] | None:
    inbox = step.inbox
    if inbox.wire is None:
        inbox.wire = broker.wire(BLOCK_LIMIT + broker.timeout)
    try:
        return step.read(inbox.wire.request(step.command()))  # type: ignore[no-any-return]
    except Lost:
        return None


async def drive_async(broker: AsyncBroker, plan: Plan[T]) -> T:
    """Carry out a plan in the running event loop."""
    with contextlib.closing(plan):
        try:
            step = next(plan)
            while True:
                try:
                    if type(step) is tuple:
                        answer: Any = await broker.call(step)
                    else:
                        answer = await _read_async(broker, step)
                except Exception as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result


async def _read_async(broker: AsyncBroker, step: Any) -> list[Told] | None:
    inbox = step.inbox
    if inbox.async_wire is None or inbox.async_wire.loop is not broker.loop:
        inbox.async_wire = broker.wire(BLOCK_LIMIT + broker.timeout)
    try:
        return step.read(await inbox.async_wire.request(step.command()))  # type: ignore[no-any-return]
    except Lost:
        return None
