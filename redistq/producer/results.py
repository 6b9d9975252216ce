"""How a task stands, and the wait for its end, written once for both producers.

Used by ProducerOperations. A wait costs the server one question, and one blocking read until the
task has ended; without a notification it is asked again now and then, because a server that lost
its memory has lost the address of the inbox too.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..codecs.sealing import Seal
from ..errors import (
    RedistqError,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    UnknownTask,
    Unreadable,
    UntrustedPayload,
    WrongKind,
)
from ..protocol.codec import loads
from ..protocol.commands import SETTLED, Commands, Watched
from ..protocol.envelope import described, is_envelope
from ..protocol.headers import headers_of
from ..protocol.options import gate_of
from ..protocol.plain_commands import trim_stream
from ..protocol.replies import UNREADABLE
from ..protocol.steps import why_put_off
from ..protocol.waits import read_why
from .diagnosis import ANY_NAME, Diagnosis, Wait
from .sansio import NOTICE_S, Call, Inbox, Notification, Operation, ReadInbox

INBOX_KEPT = 100
"""Notes read from an inbox after which they are deleted."""
EXPECTED_S = 0.25
"""How long a wait relies on the notification of a task's end before it looks at the record."""
LEAST_LOOK_S = 1.0
"""How long the server may take to say how a task stands, however little time the caller gave."""
LOOK_AGAIN_S = 30.0
"""Seconds without a notification after which the record is looked at again."""
SHORT_BYTES = 200
"""Bytes of a payload that a page of dead letters holds."""
CUT: Any = object()
"""Stands for the payload of a dead letter that is longer."""
_NOBODY = "is a worker running for this queue?"
_HELD = "it may not run yet"
_UNREADABLE = (ValueError, RecursionError, AttributeError)
"""What is raised by reading a body that no worker wrote."""
_NOTHING: Any = object()
_BODIES = {"succeeded": ("result", b"null"), "failed": ("error", b"null")}
"""Where in a record it stands what a task came to, and what is there when nothing is; of all others
it is the reason."""


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """How a task stands.

    ``state`` is waiting, delayed, queued, running, succeeded, failed, cancelled or expired;
    ``running`` means handed to ``worker``, and ``waiting`` that it may not run yet. ``why`` says in
    words what a task waits for that waits, sleeps, or waits for an event, and why a cancelled or
    expired one was.
    ``attempt`` counts from 1 (None while unread). ``finished_at`` is the server's
    time; ``run_time`` is in seconds. ``error`` is the last error: type, message and traceback.
    ``payload`` and ``headers`` are there where the record has them: while it waits or is delayed,
    and of a failed task.
    """

    id: str
    state: str
    name: str | None = None
    attempt: int | None = None
    worker: str | None = None
    result: Any = None
    error: dict[str, Any] | None = None
    finished_at: datetime | None = None
    run_time: float | None = None
    payload: Any = None
    why: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether the task has come to its end."""
        return self.state in SETTLED


class ResultWait:
    """One caller's wait for one task, with an inbox that no other wait reads meanwhile."""

    __slots__ = (
        "_answered",
        "_commands",
        "_deadline",
        "_diagnosis",
        "_inbox",
        "_patience",
        "_quiet",
        "_seal",
        "_task_id",
        "_timeout",
    )

    def __init__(
        self,
        task_id: str,
        timeout: float | None,
        inbox: Inbox,
        commands: Commands,
        diagnosis: Diagnosis,
        patience: float,
        seal: Seal,
    ) -> None:
        self._task_id = task_id
        self._seal = seal
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._inbox = inbox
        self._commands = commands
        self._diagnosis = diagnosis
        self._patience = min(patience, LEAST_LOOK_S)
        self._quiet = Wait()
        self._answered = True  # whether the server answered the last read of the inbox

    def result(self, expected: bool) -> Operation[Any]:
        """Return the task's result, or raise what it came to.

        ``expected``: the inbox is notified of its end without another question.
        """
        inbox = self._inbox
        if inbox.kept >= INBOX_KEPT:  # read, that is; the inbox does not grow for ever
            with contextlib.suppress(WrongKind):  # the next read notices
                yield trim_stream(inbox.key, inbox.last)
            inbox.kept = 0
        if expected:
            left = min(EXPECTED_S, self._deadline - time.monotonic())
            if left > 0:
                result = self._end_in((yield ReadInbox(inbox, left, self._deadline)) or [])
                if result is not _NOTHING:
                    return result
        while True:
            watched = yield from self._look()
            if watched.state in SETTLED:
                return self._end_of(watched)
            result = yield from self._listen(watched)
            if result is not _NOTHING:
                return result
            if time.monotonic() >= self._deadline:
                raise (yield from self._too_late(watched))

    def _look(self) -> Operation[Watched]:
        """Return how the task stands, and leave the inbox's address there in the same step: see
        watch.lua. However little time is left, the question is asked."""
        command = self._commands.watch(self._task_id, self._inbox.name)
        least = time.monotonic() + self._patience
        watched = Commands.read_watch((yield Call(command, max(self._deadline, least))))
        if watched.state == "unknown":
            raise UnknownTask(self._task_id)
        return watched

    def _listen(self, watched: Watched) -> Operation[Any]:
        """Return the result as soon as it is in the inbox; _NOTHING when the record should be
        looked at: the time is over, the connection was lost, or the notification has no body."""
        now = time.monotonic()
        until = min(self._deadline, now + LOOK_AGAIN_S)
        self._answered = True
        while now < until:
            seconds = min(until - now, NOTICE_S, max(0.01, self._quiet.left(now)))
            notes = yield ReadInbox(self._inbox, seconds, self._deadline)
            self._answered = notes is not None
            if notes is None:
                break
            result = self._end_in(notes)
            if result is not _NOTHING or any(note.task_id == self._task_id for note in notes):
                return result
            now = time.monotonic()
            if now < self._deadline and self._quiet.due(now):
                self._diagnosis.say((yield from self._why(watched)))
        return _NOTHING

    def _end_in(self, notes: list[Notification]) -> Any:
        """Return the result among notifications; _NOTHING where it is not, or unreadable."""
        for note in notes:
            if note.task_id == self._task_id and note.body is not None:
                try:
                    return outcome(self._task_id, note.state, note.body, self._seal)
                except _UNREADABLE:
                    break  # the record has the truth
        return _NOTHING

    def _end_of(self, watched: Watched) -> Any:
        """Return the result that stands in the record."""
        field, none = _BODIES.get(watched.state, ("reason", b""))
        body = watched.record.get(field, none)
        try:
            return outcome(self._task_id, watched.state, body, self._seal)
        except _UNREADABLE as error:
            raise _cannot_be_read(self._task_id, watched, error) from error

    def _too_late(self, watched: Watched) -> Operation[ResultTimeout]:
        assert self._timeout is not None
        if put_off := why_put_off(watched.record):
            return ResultTimeout(self._task_id, self._timeout, watched.state, f"it {put_off}")
        reason = {"running": "", "waiting": _HELD}.get(watched.state, _NOBODY)
        if reason and self._timeout >= 1 and self._answered:  # a shorter wait does not ask
            reason = yield from self._why(watched)
        return ResultTimeout(self._task_id, self._timeout, watched.state, reason)

    def _why(self, watched: Watched) -> Operation[str]:
        """Return why the task does not run; '' also when the server does not say, which is no
        reason to end the wait."""
        name = watched.record.get("name", b"")
        entry = watched.record.get("entry", b"")
        try:
            if not name and entry:  # while it is queued its name is in the stream alone
                for _, flat in (yield self._commands.entry(entry)):
                    name = dict(zip(flat[::2], flat[1::2], strict=False)).get(b"name", b"")
            names = [name.decode("utf-8", "replace") if name else ANY_NAME]
            reason = self._diagnosis.read((yield self._diagnosis.command), names)
            if not reason and watched.state == "waiting":
                words = read_why((yield self._commands.why(self._task_id))).words()
                reason = self._diagnosis.hold(f"it {words}" if words else "")
            return reason
        except Exception as error:  # broad: a question beside the work never fails it
            return self._diagnosis.unanswered(error)


def outcome(task_id: str, state: str, body: bytes, seal: Seal) -> Any:
    """Return the result that a settled task's body holds; raises TaskFailed, TaskCancelled or
    TaskExpired, and Unreadable or UntrustedPayload for a result that was sealed otherwise."""
    if state == "succeeded":
        return loads(seal.open_of_task("result", task_id, body))
    if state == "failed":
        raise TaskFailed(task_id, error_in(task_id, body, seal))
    error = TaskExpired if state == "expired" else TaskCancelled
    raise error(task_id, body.decode("utf-8", "replace"))


def error_in(task_id: str, body: bytes, seal: Seal) -> Any:
    """Return the error that a body holds; of one that cannot be read here, what that needs."""
    try:
        return loads(seal.open_of_task("error", task_id, body))
    except (Unreadable, UntrustedPayload) as error:
        return {"type": type(error).__name__, "message": str(error), "traceback": ""}


def status_of(task_id: str, watched: Watched, seal: Seal) -> TaskStatus:
    """Return how a task stands, from its record; raises RedistqError for an unreadable one."""
    try:
        return _status_of(task_id, watched, seal)
    except UNREADABLE as error:
        raise _cannot_be_read(task_id, watched, error) from error


def _cannot_be_read(task_id: str, watched: Watched, error: Exception) -> RedistqError:
    return RedistqError(
        f"task {task_id} has {watched.state}, but what its record holds cannot be read: {error}"
    )


def _status_of(task_id: str, watched: Watched, seal: Seal) -> TaskStatus:
    record = watched.record

    def text(field: str) -> str | None:
        return record[field].decode("utf-8", "replace") if record.get(field) else None

    finished = text("finished_ms")
    run_ms = text("run_ms")
    attempt = text("attempt")
    payload = record.get("payload")
    error = record.get("error") if watched.state != "succeeded" else None
    return TaskStatus(
        id=task_id,
        state=watched.state,
        name=text("name"),
        attempt=int(attempt) if attempt else None,
        worker=watched.consumer or text("worker"),
        result=_result_in(task_id, record, seal) if watched.state == "succeeded" else None,
        error=error_in(task_id, error, seal) if error else None,
        finished_at=datetime.fromtimestamp(int(finished) / 1000, UTC) if finished else None,
        run_time=float(run_ms) / 1000 if run_ms else None,
        payload=payload_in(task_id, payload, record, seal) if payload else None,
        why=_why_of(watched),
        headers=headers_of(record.get("opts", b"")),
    )


def _result_in(task_id: str, record: dict[str, bytes], seal: Seal) -> Any:
    """Return the result in a record; of one that cannot be opened here, how it is sealed."""
    body = record["result"]
    try:
        return loads(seal.open_of_task("result", task_id, body))
    except (Unreadable, UntrustedPayload):
        return described(body) or "(refused: not sealed as required)"


def payload_in(task_id: str, payload: bytes, record: Mapping[str, bytes], seal: Seal) -> Any:
    """Return the payload of a task whose record that is; of one that cannot be opened here, how it
    is sealed."""
    name = record.get("name", b"").decode("utf-8", "replace")
    try:
        gate = gate_of(record.get("opts", b""))
        return readable(seal.open_payload(task_id, name, payload, gate)[0])
    except (Unreadable, UntrustedPayload):
        return described(payload) or readable(payload)


def _why_of(watched: Watched) -> str:
    """Return in words why a task ended before it ran, or what one that was put off waits for."""
    if watched.state in ("cancelled", "expired"):
        return watched.record.get("reason", b"").decode("utf-8", "replace")
    return why_put_off(watched.record)


def letter_of(row: list[Any], seal: Seal) -> TaskStatus | None:
    """Return a dead letter from its row in a page: see browse.lua. Its payload is CUT where the
    page has its start alone; None for a letter without a record."""
    task_id, died_ms, flat = row
    record = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
    start = record.pop("payload")
    if not (record["name"] or record["error"]):
        return None
    record["finished_ms"] = died_ms
    letter = status_of(task_id.decode("utf-8", "replace"), Watched("failed", record, ""), seal)
    if len(start) >= SHORT_BYTES or start == b"(large)" or is_envelope(start):
        return replace(letter, payload=CUT)
    if not start:
        return letter
    return replace(letter, payload=payload_in(letter.id, start, record, seal))


def readable(payload: bytes) -> Any:
    """Return a payload; one that is no JSON, which is why its task failed, as text."""
    try:
        return loads(payload)
    except (ValueError, RecursionError):
        return payload.decode("utf-8", "replace")
