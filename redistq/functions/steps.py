"""What steps and events hold, as bytes: JSON for named handlers, signed packets for function calls.

Used by workers, and by clients that look at a call's steps. A call's steps are pickles: each packet
is signed for its task, its number and its name, so whoever can write to the server, but has no key,
cannot make a function go on after a step that it never did. An event is JSON for all of them; a
call takes it only when it is signed, for its name and the task it is for. Never talks to a server.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import PayloadError, ResultError, ResultTooLarge, StepError, UntrustedPayload
from ..protocol.codec import encode_result, loads
from ..protocol.envelope import is_envelope
from ..protocol.steps import MAX_STEP_BYTES, event_body
from .pickling import Seen, dump, load
from .signing import Signer, is_packet

_ANYONE = Signer(None, allow_unsigned=True)


class StepCodec(Protocol):
    """Makes bytes of what steps came to, and reads them."""

    def dump(self, number: int, name: str, value: Any) -> bytes:
        """Return what a step came to; raises StepError where it cannot be kept."""

    def load(self, number: int, name: str, body: bytes) -> Any:
        """Return what a step came to."""

    def event(self, name: str, of_task: bool, body: bytes) -> Any:
        """Return what came with an event; ``of_task``: that was sent to this task alone."""


class PlainSteps:
    """Steps of a named handler."""

    def dump(self, number: int, name: str, value: Any) -> bytes:
        """Return it as JSON."""
        try:
            return encode_result(value, MAX_STEP_BYTES)
        except ResultTooLarge as error:
            raise _too_large(name, error.size) from None
        except ResultError as error:
            raise StepError(
                f"step {name!r} came to {type(value).__name__}, which cannot be kept: "
                f"{error.__cause__ or error}; let it return plain values"
            ) from error

    def load(self, number: int, name: str, body: bytes) -> Any:
        """Return what the JSON says."""
        return loads(body)

    def event(self, name: str, of_task: bool, body: bytes) -> Any:
        """Return it whoever sent it: so is every payload of a named task."""
        if is_envelope(body):
            raise StepError(f"the event {name!r} is sealed, and this worker has no codec")
        return loads(_ANYONE.unpack("event", "", body) if is_packet(body) else body)


class SignedSteps:
    """Steps of one function call."""

    def __init__(self, signer: Signer, stream: str, task: str, task_id: str) -> None:
        """``stream`` is the queue without a priority, ``task`` the context of its signatures."""
        self._signer = signer
        self._stream = stream
        self._task = task
        self._task_id = task_id

    def dump(self, number: int, name: str, value: Any) -> bytes:
        """Return its pickle, signed."""
        try:
            data = dump(value, Seen())
        except PayloadError as error:
            raise StepError(
                f"step {name!r} came to {type(value).__name__}, which cannot be kept: {error}"
            ) from error
        if len(data) > MAX_STEP_BYTES:
            raise _too_large(name, len(data))
        return self._signer.pack("step", self._context(number, name), data)

    def load(self, number: int, name: str, body: bytes) -> Any:
        """Return what was signed; raises UntrustedPayload."""
        return load(self._signer.unpack("step", self._context(number, name), body))

    def event(self, name: str, of_task: bool, body: bytes) -> Any:
        """Return what was signed; raises UntrustedPayload."""
        if not is_packet(body):
            if self._signer.allow_unsigned:
                return loads(body)
            raise UntrustedPayload(
                f"the event {name!r} is not signed, and this function call takes no word from "
                "whoever can write to the server: send it with client.send_event, or with "
                "redistq monitor send-event where the signing key is"
            )
        context = event_context(self._stream, name, self._task_id if of_task else "")
        return loads(self._signer.unpack("event", context, body))

    def _context(self, number: int, name: str) -> str:
        return f"{self._task}\n{number}\n{name}"


def event_context(stream: str, name: str, task_id: str = "") -> str:
    """Return what the signature of an event is bound to: the queue, its name, and the task that it
    is for."""
    return f"{stream}\n{name}\n{task_id}"


def signed_event(signer: Signer, stream: str, name: str, payload: Any, task_id: str = "") -> bytes:
    """Return the body of an event, signed; raises PayloadError and PayloadTooLarge."""
    data = event_body(name, payload)
    return signer.pack("event", event_context(stream, name, task_id), data)


def _too_large(name: str, size: int) -> StepError:
    return StepError(
        f"step {name!r} came to {size:,} bytes, and {MAX_STEP_BYTES:,} can be kept: let it store "
        "the data elsewhere and return a path or key"
    )
