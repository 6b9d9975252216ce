"""Calls of schedules: signed once for a schedule, and good for all of its tasks.

A call is bound to its task's id, and those of a schedule's tasks are not known when it is set:
they are made of its name and their times. So its call is bound to that name.
"""

from __future__ import annotations

import re

from ..errors import UntrustedPayload
from ..protocol.keys import without_priority
from .signing import Signer, task_context

_OCCURRENCE = re.compile(r"(.+)@(?:now-)?\d{1,16}", re.DOTALL)


def schedule_of(task_id: str) -> str | None:
    """Return the name of the schedule to which a task with that id belongs, if to any."""
    found = _OCCURRENCE.fullmatch(task_id)
    return found[1] if found else None


def schedule_context(stream: str, name: str) -> str:
    """Return what the signature of a schedule's call is bound to."""
    return f"{without_priority(stream)}\n{name}"


def packed(signer: Signer, stream: str, name: str, call: bytes, source: str) -> bytes:
    """Return a schedule's call as the payload of its tasks, with the source of its function."""
    text = source.encode("utf-8", "replace")
    data = b"%d\n%b%b" % (len(text), text, call)
    return signer.pack("scheduled", schedule_context(stream, name), data)


def call_and_source(signer: Signer, stream: str, name: str, packet: bytes) -> tuple[bytes, str]:
    """Return what ``packed`` has packed; raises UntrustedPayload."""
    data = signer.unpack("scheduled", schedule_context(stream, name), packet)
    length, _, rest = data.partition(b"\n")
    if not length.isdigit():
        raise UntrustedPayload(f"what schedule {name!r} calls is no call")
    return rest[int(length) :], rest[: int(length)].decode("utf-8", "replace")


def opened(signer: Signer, stream: str, task_id: str, packet: bytes, *, old: bool = True) -> bytes:
    """Return the call that is a task's payload, packed for that task or for its schedule; raises
    UntrustedPayload."""
    name = schedule_of(task_id)
    if name is not None:
        try:
            return call_and_source(signer, stream, name, packet)[0]
        except UntrustedPayload:
            pass  # sent again by somebody, it is packed for this task alone
    return signer.unpack("call", task_context(stream, task_id), packet, old=old)
