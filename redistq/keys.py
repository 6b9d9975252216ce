"""The names of all keys of one queue: one constructor each, nowhere else.

Used by the script calls and by whoever looks at a queue. The pattern is ``<kind>:<queue>[:<id>]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import ConfigurationError

DEFAULT_QUEUE = "tasks"
DEFAULT_GROUP = "workers"
PRIORITIES = ("high", "normal", "low")
"""The priorities of a queue, the most urgent first; each but ``normal`` is a queue of its own."""
PRIORITY_MARK = "!"


def at_priority(queue: str, priority: str) -> str:
    """The queue that holds another queue's tasks of a priority.

    Raises ConfigurationError for a priority that there is not.
    """
    if priority not in PRIORITIES:
        raise ConfigurationError(f"priority is one of {', '.join(PRIORITIES)}, not {priority!r}")
    return queue if priority == "normal" else f"{queue}{PRIORITY_MARK}{priority}"


def without_priority(queue: str) -> str:
    """The queue whose tasks of some priority a queue holds."""
    return queue.partition(PRIORITY_MARK)[0]


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
    waiters: str = field(init=False)
    inbox_prefix: str = field(init=False)
    meta: str = field(init=False)
    batches: str = field(init=False)
    batch_prefix: str = field(init=False)
    settled_prefix: str = field(init=False)
    calls_prefix: str = field(init=False)
    blob_prefix: str = field(init=False)
    logs_prefix: str = field(init=False)
    channel: str = field(init=False)

    def __post_init__(self) -> None:
        name = self.stream
        if not name or any(c.isspace() for c in name):
            raise ConfigurationError(f"a queue's name has no spaces and is not empty: {name!r}")
        if self.clustered and "{" not in name:
            base, mark, priority = name.partition(PRIORITY_MARK)
            name = "{" + base + "}" + mark + priority
        put = object.__setattr__
        put(self, "stream", name)
        delayed = self.delayed_key or f"delayed:{name}"
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
        put(self, "waiters", f"waiters:{name}")
        put(self, "inbox_prefix", f"inbox:{name}:")
        put(self, "meta", f"meta:{name}")
        put(self, "batches", f"batches:{name}")
        put(self, "batch_prefix", f"batch:{name}:")
        put(self, "settled_prefix", f"settled:{name}:")
        put(self, "calls_prefix", f"calls:{name}:")
        put(self, "blob_prefix", f"blob:{name}:")
        put(self, "logs_prefix", f"logs:{name}:")
        put(self, "channel", f"wake:{name}")

    def task(self, task_id: str) -> str:
        """The hash with one task's record."""
        return self.task_prefix + task_id

    def worker(self, consumer: str) -> str:
        """The hash with one worker's details."""
        return self.worker_prefix + consumer

    def inbox(self, client: str) -> str:
        """The stream in which settled tasks are told to one client."""
        return self.inbox_prefix + client

    def batch(self, batch_id: str) -> str:
        """The hash with one batch's counters."""
        return self.batch_prefix + batch_id

    def calls(self, batch_id: str) -> str:
        """What names the calls of one batch, by position."""
        return self.calls_prefix + batch_id

    def settled(self, batch_id: str) -> str:
        """The stream of one batch's settled task ids, in the order of their end."""
        return self.settled_prefix + batch_id

    def blob(self, digest: str) -> str:
        """The value of one content-addressed blob."""
        return self.blob_prefix + digest

    def logs(self, task_id: str) -> str:
        """The capped stream of one task's output."""
        return self.logs_prefix + task_id
