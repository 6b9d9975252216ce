"""Steps of a task as its record has them, and events: how they are written, checked and read.

Used by workers, producers and clients. Never talks to a server. A step is a head of two lines and a
body: its name; when it was written (ms of the server's clock), how long it ran (ms), what it is,
and a word more. What a body means is known to whoever wrote it: JSON of handlers, signed packets of
function calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import ConfigurationError
from .checks import seconds
from .codec import encode_payload
from .keys import check_line

MOST_STEPS = 1_000
"""Steps of one task."""
MAX_STEP_BYTES = 1024 * 1024
"""Bytes of what one step came to."""
MAX_STEPS_BYTES = 16 * 1024 * 1024
"""Bytes of what all steps of a task came to."""
MAX_EVENT_BYTES = 64 * 1024
"""Bytes of what goes with an event."""
EVENT_KEPT_S = 7 * 86_400.0
"""How long an event that is for all is kept for those that will wait for it."""
FAR_MS = 2_500_000_000_000
"""Times from here on, in ms, stand for no end: what waits without one is due in 31 years."""
NO_EVENT = "-"
"""Stands for the mark of the last event where none was taken."""

KINDS = {"r": "step", "s": "sleep", "w": "wait", "e": "event", "t": "timeout"}
"""What a step is, in words: a wait that is over is an event, or a timeout."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step as a record has it; ``word`` is until when a sleep or wait is (ms), or which event
    came."""

    number: int
    name: str
    kind: str
    at_ms: int
    run_ms: float
    word: str
    body: bytes
    size: int

    @property
    def of_event(self) -> bool:
        """Whether it is a wait for an event, over or not."""
        return self.kind in ("wait", "event", "timeout")

    @property
    def until_ms(self) -> int:
        """Until when a sleep or a wait is."""
        return int(self.word)


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step that a task has done, as ``future.steps()`` lists them.

    ``kind`` is step, sleep, wait (it is not over), event or timeout; ``at`` is when that was
    written, by the server's clock; ``run_time`` is in seconds, ``size`` in bytes on the server.
    """

    number: int
    name: str
    kind: str
    at: datetime
    run_time: float
    size: int


def read_step(number: int, raw: bytes, size: int | None = None) -> RecordedStep:
    """Return a step from its text; raises ValueError for what is none."""
    name, facts, body = raw.split(b"\n", 2)
    at_ms, run_ms, kind, word = facts.decode().split(" ")
    return RecordedStep(
        number,
        name.decode("utf-8", "replace"),
        KINDS.get(kind, kind),
        int(at_ms),
        float(run_ms),
        word,
        body,
        len(raw) if size is None else size,
    )


def read_recalled(reply: list[Any]) -> tuple[int, dict[int, RecordedStep]]:
    """Return the answer of ``Commands.recall``: the server's time in ms, and the steps by
    number."""
    now_ms, flat = reply
    rows = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return now_ms, {number: read_step(number, raw, size) for number, raw, size in rows}


def statuses(steps: dict[int, RecordedStep]) -> list[StepStatus]:
    """Return steps as people see them, in their order."""
    return [
        StepStatus(
            step.number,
            step.name,
            step.kind,
            datetime.fromtimestamp(step.at_ms / 1000, UTC),
            step.run_ms / 1000,
            step.size,
        )
        for _, step in sorted(steps.items())
    ]


def why_put_off(record: Mapping[str, bytes]) -> str:
    """Return in words what a task waits for that sleeps, or waits for an event or for room, by its
    record; '' for any other."""
    reason = record.get("reason", b"")
    if reason == b"room" and record.get("state") == b"delayed":
        return f"waits for room: it needs {record.get('needs', b'').decode('utf-8', 'replace')}"
    if reason not in (b"sleep", b"event") or record.get("state") != b"delayed":
        return ""
    until, _, wait = record.get("awaits", b"").decode("utf-8", "replace").partition(" ")
    at = ""
    if until.isdigit() and int(until) < FAR_MS:
        moment = datetime.fromtimestamp(int(until) / 1000, UTC)
        at = f" until {moment:%Y-%m-%d %H:%M:%S} UTC"
    if reason == b"sleep":
        return f"sleeps{at}"
    event = wait.split(" ", 3)[-1]
    return f"waits for event {event!r}" + (f",{at}" if at else "")


def awaited_event(reason: str, awaits: str) -> str:
    """Return the name of the event that a task waits for, by its record; '' for none."""
    return awaits.split(" ", 4)[-1] if reason == "event" and awaits.count(" ") >= 4 else ""


def read_sent(reply: list[Any]) -> tuple[int, str]:
    """Return the answer of ``Commands.send_event``: how many tasks go on, and how the one stands
    for which it is."""
    return reply[0], reply[1].decode("utf-8", "replace")


def event_body(name: str, payload: Any) -> bytes:
    """Return the body of an event as JSON; raises ConfigurationError, PayloadError and
    PayloadTooLarge."""
    check_line("the name of an event", name)
    return encode_payload(name, payload, MAX_EVENT_BYTES)


def kept_ms(keep: Any) -> int:
    """Return how long an event is kept, in ms; raises ConfigurationError."""
    kept = seconds("keep", keep, positive=True)
    if kept < 1:
        raise ConfigurationError(
            f"keep is a second or more, not {kept:g}: who waits later finds the event by it"
        )
    return int(kept * 1000)
