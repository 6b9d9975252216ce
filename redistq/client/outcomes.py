"""Outcomes: a stored result or error, read as a value or an exception of this process.

Used by futures and batches. What the server holds is not trusted: pickles are unpacked only with
this task's own signature.
"""

from __future__ import annotations

import base64
from threading import current_thread, main_thread
from typing import Any, Literal

from ..errors import PayloadError, TaskFailed, UnknownTask, UntrustedPayload
from ..functions.pickling import load
from ..functions.signing import Signer, is_packet
from ..protocol.codec import loads

Origin = Literal["call", "named", "unknown"]
"""What is known of a task whose result is read: it is a function call, and its result a packet of
its own; it has a name, and its result is JSON; or only its id is known, and either will do."""


class RemoteTraceback(Exception):
    """Carries the worker's traceback as the cause of an error raised here."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def decode_result(
    signer: Signer,
    context: str,
    task_id: str,
    body: bytes | None,
    origin: Origin = "call",
    old: bool = False,
) -> Any:
    """Return a stored result: the packet signed for that context, or JSON.

    ``old``: the last release's packets will do. Raises UntrustedPayload for any other result, and
    UnknownTask for one that was not kept.
    """
    if body is None:
        error = UnknownTask(task_id)
        error.add_note("The task succeeded, and its result was not kept (result_ttl).")
        raise error
    if origin == "named" or (origin == "unknown" and not is_packet(body)):
        if is_packet(body):
            raise UntrustedPayload(f"the result of task {task_id} is a pickle, where JSON belongs")
        return loads(body)
    return _unpickled(signer.unpack("result", context, body, old=old or origin == "unknown"))


def _unpickled(data: bytes) -> Any:
    """Return the object that a worker sent. Its own code runs here; where that raises what would
    end this process or the thread that reads for all futures, PayloadError is raised instead."""
    try:
        return load(data)
    except Exception:  # the object's own code; PayloadError, or an error of its constructor
        raise
    except BaseException as end:
        if isinstance(end, KeyboardInterrupt) and current_thread() is main_thread():
            raise  # somebody stops the wait
        raise PayloadError(f"what the worker sent raises {end!r} when it is unpickled") from end


def decode_error(
    signer: Signer, context: str, task_id: str, body: bytes, old: bool = False
) -> tuple[BaseException, dict[str, Any]]:
    """Return a stored error as an exception to raise, and its report.

    It has its own type when that can be trusted and imported here, and is a TaskFailed otherwise:
    the server's own errors (WorkerLost) are text alone, and so is what somebody else wrote there.
    The worker's traceback is its cause.
    """
    found = loads(body)
    report: dict[str, Any] = found if isinstance(found, dict) else {"message": str(found)}
    error: BaseException = TaskFailed(task_id, {**report, "traceback": ""})
    if pickled := report.pop("pickle", None):
        try:
            packet = base64.b64decode(pickled)
            own = _unpickled(signer.unpack("error", context, packet, old=old))
            # What would end this process (SystemExit and its kin) is told, not done.
            if isinstance(own, Exception):
                error = own
        except Exception as why:  # the error's own code, or a packet that is none: text will do
            error.add_note(f"Its own type was not restored: {type(why).__name__}: {why}")
    if report.get("traceback"):
        # Not by plain assignment, which an exception of a frozen dataclass refuses.
        BaseException.__setattr__(error, "__cause__", RemoteTraceback(str(report["traceback"])))
    return error, report
