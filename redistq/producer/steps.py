"""Events sent to tasks, and the steps that a task has done, as operations.

Used by producers and clients. Nothing here knows what a step or an event holds.
"""

from __future__ import annotations

from ..errors import RedistqError, UnknownTask
from ..protocol.commands import Commands
from ..protocol.keys import check_line, new_task_id
from ..protocol.steps import StepStatus, kept_ms, read_recalled, read_sent, statuses
from .sansio import Operation


def sending(
    commands: Commands, name: str, body: bytes, task: str | None, keep: float | str
) -> Operation[int]:
    """Send an event to all that wait for it, or to one task; return how many go on by now.

    Raises UnknownTask, RedistqError where that task takes none, and what is wrong with the
    arguments before anything is sent.
    """
    check_line("the name of an event", name)
    keep_ms = kept_ms(keep)
    if task is not None:
        check_line("a task's id", task)
    # The mark is this very event's: should the call be sent twice, it comes once.
    command = commands.send_event(name, new_task_id(), body, keep_ms, task or "")
    count, state = read_sent((yield command))
    if state == "unknown":
        raise UnknownTask(task or "")
    if state == "full":
        raise RedistqError(
            f"task {task} has 1,000 messages that it has not taken: send more when it has"
        )
    if state not in ("", "ready", "delayed", "waiting"):
        raise RedistqError(f"task {task} has {state}: no event reaches it any more")
    return count


def steps_of(commands: Commands, task_id: str) -> Operation[list[StepStatus]]:
    """Return the steps that a task has done, in order."""
    _, steps = read_recalled((yield commands.recall(task_id, whole=False)))
    return statuses(steps)
