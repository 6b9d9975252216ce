"""Names: of a queue and all its keys, of tasks, and of the states that a task may be in.

``QueueKeys`` has one constructor for each key, and nothing else makes one; the pattern is
``<kind>:<queue>[:<id>]``. Task ids are unique without a question to anyone. Each list of states
stands here alone; the scripts write these words into records, the history and the counters.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigurationError

DEFAULT_QUEUE = "tasks"
DEFAULT_GROUP = "workers"
PRIORITIES = ("high", "normal", "low")
"""The priorities of a queue, the most urgent first; each but ``normal`` is a queue of its own."""
PRIORITY_MARK = "!"
LONGEST_NAME = 200
MAX_CHARACTERS = 200
"""Longest id of a task, and longest name of one."""
_BESIDE = frozenset(
    {"task", "dead", "history", "counters", "workers", "worker", "waiters", "inbox", "meta"}
    | {"batches", "batch", "settled", "graph", "blob", "logs", "wake", "client", "wishes"}
    | {"limits", "waiting", "shares", "unique", "dependants", "items"}
    | {"event", "expecting", "schedules", "due"}
)
"""What the keys beside the stream and the delayed set begin with."""
_NAME = re.compile(r"[^{}!]*(?:\{[^{}!]+\}[^{}!]*)?(?:!(?:high|low))?")

STATES = (
    "waiting",
    "delayed",
    "queued",
    "running",
    "retried",
    "snoozed",
    "recovered",
    "continued",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "settled",
)
"""Every state a task or one of its attempts may be in, in the order of a task's life."""

ENDED = ("succeeded", "failed", "cancelled", "expired")
"""How a task ends."""

COUNTED = (*ENDED, "retried", "snoozed", "recovered")
"""How an attempt ends; the queue counts each since it began."""

SETTLED = frozenset(ENDED)
"""States of a record that changes no more."""

# -- queues and their keys -------------------------------------------------------------------------


def at_priority(queue: str, priority: str) -> str:
    """Return the queue that holds another queue's tasks of a priority.

    Raises ConfigurationError for a priority that there is not.
    """
    if priority not in PRIORITIES:
        raise ConfigurationError(f"priority is one of {', '.join(PRIORITIES)}, not {priority!r}")
    return queue if priority == "normal" else f"{queue}{PRIORITY_MARK}{priority}"


def without_priority(queue: str) -> str:
    """Return the queue whose tasks of some priority a queue holds."""
    return queue.partition(PRIORITY_MARK)[0]


def lane_of(queue: str, priority: str) -> str:
    """Return the queue that holds the tasks of a priority, where ``queue`` holds those of any.

    Raises as ``at_priority``.
    """
    return at_priority(without_priority(queue), priority)


def check_queue(name: str) -> str:
    """Return the name when a queue may have it; raises ConfigurationError, which says what may."""
    if not isinstance(name, str):
        raise ConfigurationError(f"a queue's name is text, not {name!r}")
    base = without_priority(name)
    if (
        not base
        or not base.isprintable()  # no newlines, control characters or halves of surrogate pairs
        or any(c.isspace() or c == ":" for c in base)
        or len(name) > LONGEST_NAME
        or not _NAME.fullmatch(name)
    ):
        raise ConfigurationError(
            f"{name!r:.220} is no queue's name: it has 1 to {LONGEST_NAME} letters, digits and "
            "signs such as . - _ / (no blanks, no colon, which stands between the parts of a key), "
            "at most one {hash tag}, and after an exclamation mark only a priority: "
            "tasks!high or tasks!low"
        )
    return name


def check_delayed_key(key: str, queue: str) -> str:
    """Return the key, when a queue may keep its delayed tasks there; raises ConfigurationError.

    Every other key of a queue, and the one of another queue's delayed tasks, holds something else.
    """
    kind, colon, _ = key.partition(":") if isinstance(key, str) else ("", "", "")
    taken = key in (queue, "") or (colon and kind in _BESIDE)
    taken = taken or (kind == "delayed" and colon and key != f"delayed:{queue}")
    if taken or not isinstance(key, str) or not key.isprintable() or " " in key:
        raise ConfigurationError(
            f"{key!r:.220} cannot hold the delayed tasks of queue {queue!r}: it is the name of "
            f"another key, or no name; leave it out for delayed:{queue}, or use one such as "
            f"{queue}-delayed"
        )
    return key


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """All keys of the queue whose stream is ``stream``.

    On a Redis Cluster the stream's name carries a hash tag (``{tasks}``), so that all keys of a
    queue share a slot and a script may touch them together.
    """

    stream: str = DEFAULT_QUEUE
    delayed_key: str | None = None
    clustered: bool = False
    delayed: str = field(init=False)
    task_prefix: str = field(init=False)
    dead: str = field(init=False)
    history: str = field(init=False)
    counters: str = field(init=False)
    workers: str = field(init=False)
    worker_prefix: str = field(init=False)
    wishes_prefix: str = field(init=False)
    waiters: str = field(init=False)
    inbox_prefix: str = field(init=False)
    client_prefix: str = field(init=False)
    meta: str = field(init=False)
    batches: str = field(init=False)
    batch_prefix: str = field(init=False)
    settled_prefix: str = field(init=False)
    calls_prefix: str = field(init=False)
    graph_prefix: str = field(init=False)
    blob_prefix: str = field(init=False)
    logs_prefix: str = field(init=False)
    limits: str = field(init=False)
    waiting: str = field(init=False)
    waiting_prefix: str = field(init=False)
    shares: str = field(init=False)
    unique: str = field(init=False)
    dependants_prefix: str = field(init=False)
    items_prefix: str = field(init=False)
    event_prefix: str = field(init=False)
    expecting_prefix: str = field(init=False)
    schedules: str = field(init=False)
    due: str = field(init=False)
    channel: str = field(init=False)

    def __post_init__(self) -> None:
        name = check_queue(self.stream)
        if self.clustered and "{" not in name:
            untagged, mark, priority = name.partition(PRIORITY_MARK)
            name = "{" + untagged + "}" + mark + priority
        put = object.__setattr__
        put(self, "stream", name)
        # What belongs to a client, whichever priorities its tasks have, is there once for all.
        base = without_priority(name)
        delayed = f"delayed:{name}"
        if self.delayed_key is not None:
            delayed = check_delayed_key(self.delayed_key, name)
        if self.clustered and "{" not in delayed:
            raise ConfigurationError(
                f"on a cluster the delayed key must carry the queue's hash tag: {delayed}:{name}"
            )
        put(self, "delayed", delayed)
        put(self, "task_prefix", f"task:{name}:")
        put(self, "dead", f"dead:{name}")
        put(self, "history", f"history:{name}")
        put(self, "counters", f"counters:{name}")
        put(self, "workers", f"workers:{name}")
        put(self, "worker_prefix", f"worker:{name}:")
        put(self, "wishes_prefix", f"wishes:{name}:")
        put(self, "waiters", f"waiters:{name}")
        put(self, "inbox_prefix", f"inbox:{base}:")
        put(self, "client_prefix", f"client:{base}:")
        put(self, "meta", f"meta:{name}")
        put(self, "batches", f"batches:{name}")
        put(self, "batch_prefix", f"batch:{name}:")
        put(self, "settled_prefix", f"settled:{name}:")
        put(self, "items_prefix", f"items:{name}:")
        put(self, "calls_prefix", f"calls:{name}:")
        put(self, "graph_prefix", f"graph:{name}:")
        put(self, "blob_prefix", f"blob:{base}:")
        put(self, "logs_prefix", f"logs:{base}:")
        # The gate's, which all priorities of a queue share.
        put(self, "limits", f"limits:{base}")
        put(self, "waiting", f"waiting:{base}")
        put(self, "waiting_prefix", f"waiting:{base}:")
        put(self, "shares", f"shares:{base}")
        put(self, "unique", f"unique:{base}")
        put(self, "dependants_prefix", f"dependants:{base}:")
        put(self, "event_prefix", f"event:{base}:")
        put(self, "expecting_prefix", f"expecting:{base}:")
        put(self, "schedules", f"schedules:{base}")
        put(self, "due", f"due:{name}")
        put(self, "channel", f"wake:{name}")

    def task(self, task_id: str) -> str:
        """Return the key of the hash with one task's record."""
        return self.task_prefix + task_id

    def worker(self, consumer: str) -> str:
        """Return the key of the hash with one worker's details."""
        return self.worker_prefix + consumer

    def wishes(self, consumer: str) -> str:
        """Return the key of the hash with what is wished of one worker's tasks, by entry."""
        return self.wishes_prefix + consumer

    def inbox(self, client: str) -> str:
        """Return the key of the stream that notifies one client of settled tasks."""
        return self.inbox_prefix + client

    def client(self, inbox: str) -> str:
        """Return the key of the sign of life of the client with that inbox."""
        return self.client_prefix + inbox

    def batch(self, batch_id: str) -> str:
        """Return the key of the hash with one batch's counters."""
        return self.batch_prefix + batch_id

    def calls(self, batch_id: str) -> str:
        """Return the key of what names the calls of one batch, by position."""
        return self.calls_prefix + batch_id

    def graph(self, batch_id: str) -> str:
        """Return the key of the shape of the graph whose tasks one batch counts."""
        return self.graph_prefix + batch_id

    def settled(self, batch_id: str) -> str:
        """Return the key of the stream of one batch's settled task ids, in the order of their
        end."""
        return self.settled_prefix + batch_id

    def items(self, task_id: str) -> str:
        """Return the key of the stream of what one task has yielded."""
        return self.items_prefix + task_id

    def blob(self, digest: str) -> str:
        """Return the key of one content-addressed blob."""
        return self.blob_prefix + digest

    def logs(self, task_id: str) -> str:
        """Return the key of the capped stream of one task's output."""
        return self.logs_prefix + task_id


# -- task ids --------------------------------------------------------------------------------------


# 64 random bits a process, then a count: as unlikely to collide as two processes' prefixes, without
# a call to the kernel for every task. Threads share the count: taking the next is one step of C,
# while a generator that two threads enter raises ValueError.
_prefix = os.urandom(8).hex()
_count = itertools.count()


def _after_fork() -> None:
    global _prefix
    _prefix = os.urandom(8).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def new_task_id() -> str:
    """Return a task id that no other call in any thread or process returns: 20 or more hexadecimal
    digits."""
    return f"{_prefix}{next(_count):04x}"


def new_call_id() -> str:
    """Return an id for a function call, which shows that it is one: what stands on the server could
    say anything."""
    return "call-" + new_task_id()


def batch_task_id(batch_id: str, index: int) -> str:
    """Return the id of a batch's task: its name and the item's position."""
    return f"{batch_id}:{index}"


def is_call(task_id: str) -> bool:
    """Return whether an id is that of a function call, or of a cached one; not of a batch's
    task."""
    return task_id.startswith(("call-", "memo-"))


def check_line(what: str, text: Any) -> None:
    """Raise ConfigurationError unless ``text`` can be an id or a name: one line of 1 to 200
    characters. Halves of a surrogate pair are no characters: no server could be sent them."""
    right = isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS and "\n" not in text
    if right and (text.isascii() or is_text(text)):
        return
    raise ConfigurationError(
        f"{what} is one line of 1 to {MAX_CHARACTERS} characters: {text!r:.{MAX_CHARACTERS + 20}}"
    )


def is_text(text: str) -> bool:
    """Return whether a server can be sent it: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
