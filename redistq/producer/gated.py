"""Adding tasks that may have to wait: what is sent, and what the answer makes of it.

Used by both producers and by clients. ``TaskId`` is what ``add_task`` returns, ``Addition`` one or
many tasks made ready to be sent. Never touches a connection itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RedistqError, TooHeavy, UnknownParent
from ..protocol.commands import Answered, Command, Commands, words_of
from ..protocol.keys import PRIORITY_MARK, QueueKeys, without_priority
from ..protocol.limits import Limit

Fields = tuple[str, str, bytes, bytes, str]
"""A new task: its id, name, payload, options (JSON or empty) and due time."""


class TaskId(str):
    """The id of the task that stands now, and in ``outcome`` what the call did: "added", "known"
    (the id was there already: nothing was done), or, of a unique key that was taken, "joined",
    "replaced", "pushed" or "again"; "dropped" where a limit ended it at once.
    """

    outcome = "added"
    queue = ""
    """The queue it was added to, with its priority."""

    @classmethod
    def of(cls, task_id: str, queue: str, outcome: str = "added") -> TaskId:
        """Return an id of which that is known."""
        made = cls(task_id)
        made.queue = queue
        if outcome != "added":
            made.outcome = outcome
        return made


@dataclass(frozen=True, slots=True)
class GatedTask:
    """A new task that may have to wait: its fields, its conditions, and the limits declared in code
    that it is under."""

    fields: Fields
    conditions: str
    limits: Sequence[Limit] = ()


@dataclass(slots=True)
class Addition:
    """New tasks in order, in the few commands that add them."""

    ids: list[str] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    gated: dict[int, int] = field(default_factory=dict)
    """Of the commands that add tasks which may wait: the place of their first task in ``ids``."""
    limits: set[Limit] = field(default_factory=set)
    """What was declared in code for any of them."""

    def read(self, keys: QueueKeys, replies: Iterable[list[Any]]) -> list[str]:
        """Return the ids of the tasks that stand, by the commands' answers; raises the error of the
        first that could not be stored."""
        for at, reply in enumerate(replies):
            if not reply:
                continue
            if at not in self.gated:
                if (error := not_stored(keys, reply)) is not None:
                    raise error
                continue
            for answered in Commands.read_gated(reply):
                place = self.gated[at] + answered.position
                self.ids[place] = standing(keys, self.ids[place], answered)
        return self.ids


def standing(keys: QueueKeys, task_id: str, answered: Answered) -> TaskId:
    """Return the id of the task that stands where one was to be added; raises the error of one that
    was refused."""
    if answered.outcome == "refused":
        raise refusal(keys, answered)
    if answered.id in ("", task_id):
        return TaskId.of(task_id, keys.stream, answered.outcome)
    return TaskId.of(*name_and_queue(answered.id, keys), answered.outcome)


def refusal(keys: QueueKeys, answered: Answered) -> RedistqError:
    """Return the error of a task that was not stored."""
    words = answered.words
    if words.startswith("unknown parent"):
        parent = words.removeprefix("unknown parent").strip()
        return UnknownParent(answered.id, name_and_queue(parent, keys)[0])
    if words.startswith("too heavy"):
        return TooHeavy(f"task {answered.id!r} was not stored: {words}")
    return _holds_something_else(keys, answered.id, words)


def name_and_queue(ref: str, keys: QueueKeys) -> tuple[str, str]:
    """Return the id and the queue of a task that is named over all priorities (its ref: see
    lua/README.md)."""
    mark, line, name = ref.partition("\n")
    if not line or not mark.startswith(PRIORITY_MARK):
        return ref, without_priority(keys.stream)
    return name, without_priority(keys.stream) + mark


def not_stored(keys: QueueKeys, reply: list[Any]) -> RedistqError | None:
    """Return the error of the first task that could not be stored, by the reply of ``enqueue``."""
    for item in reply:
        if type(item) is list:
            return _holds_something_else(
                keys, item[2].decode("utf-8", "replace"), words_of(item[1])
            )
    return None


def _holds_something_else(keys: QueueKeys, task_id: str, words: str) -> RedistqError:
    return RedistqError(
        f"task {task_id!r} was not stored: the key {keys.task(task_id)} holds something "
        f"that is no task ({words}); delete that key or use another task_id. "
        "Whatever else was sent with it is stored"
    )
