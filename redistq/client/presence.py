"""Presence: the proof that a client lives, and the calls on the server of clients that do not.

A client that sends calls keeps a key on the server whose value names its process. The key expires
soon after the last sign of life; on the same machine a process that has ended is known at once.
Used by couriers, which give the sign, and by clients, which look for what others left.
"""

from __future__ import annotations

import functools
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..connection.broker import Broker
from ..functions.call import CALL
from ..protocol.commands import MAX_TASKS, Commands
from ..protocol.homes import Home
from ..protocol.options import NO_OPTIONS, TaskOptions

MARK = "client-"
"""What the name of an inbox begins with whose owner gives signs of life: only its absence proves
that the owner has ended. Inboxes of producers, and of clients of earlier releases, have none."""
SIGN_S = 30.0
"""Seconds between two signs of life."""
LIFE_S = 180
"""Seconds after the last sign for which a client counts as alive: longer than it waits itself for a
server that is away."""
UNPROVEN_S = 7 * 86_400
"""Age from which calls without proof count as left behind: by then the server has dropped their
functions, so that they could only fail."""
PAGE = 100
"""Entries looked at in one request; each comes with its payload."""
CANCELLED_TTL_MS = 86_400_000
BATCH_CLIENT = b"client:"
"""What the fields of a batch's record begin with that name the clients which want its results."""


def me() -> str:
    """This process in words: its machine, its id, and when it began."""
    pid = os.getpid()
    return f"{_machine()} {pid} {_began(pid)}"


def has_ended(value: bytes) -> bool:
    """Whether the process of such words is known to have ended; of other machines nobody knows."""
    machine, _, rest = value.decode("utf-8", "replace").partition(" ")
    pid, _, began = rest.partition(" ")
    if machine != _machine() or not pid.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # it is somebody else's
    now = _began(int(pid))
    return bool(began and now and began != now)  # else another process has its id


@functools.cache
def _machine() -> str:
    """Where process ids mean the same: one start of one machine, seen from one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname().replace(' ', '_')}/{uuid.getnode():x}"


def _began(pid: int) -> str:
    """When a process began, in the system's own count; '' where that cannot be known, and for one
    that is only waiting to be buried, 'ended'."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]


@dataclass(slots=True)
class Leftovers:
    """The calls in one queue that clients have left which have ended."""

    broker: Broker
    commands: Commands
    home: Home
    own: frozenset[str]
    """The inboxes of who asks."""
    everywhere: bool
    """Whether calls of all folders and environments count, not only those that run here."""
    _alive: dict[str, bool] = field(default_factory=dict)
    _batches: dict[str, tuple[bool, list[str]]] = field(default_factory=dict)

    def pages(self, most: int | None = None) -> Iterator[list[tuple[str, bool]]]:
        """Ids of calls that were left and wait, page by page, and whether each is of a batch with a
        name. The first ``most`` entries that wait are looked at; None: all, the delayed ones too.
        """
        keys = self.commands.keys
        now_ms = int(self.broker.call(("TIME",))[0]) * 1000
        start, seen = self._unread(), 0
        while start and (most is None or seen < most):
            page = self.broker.call(("XRANGE", keys.stream, start, "+", "COUNT", PAGE))
            rows = []
            for entry, flat in page:
                fields = dict(zip(flat[::2], flat[1::2], strict=False))
                age_s = (now_ms - int(entry.partition(b"-")[0])) / 1000
                task = (fields.get(b"id"), fields.get(b"name"), fields.get(b"opts"))
                rows.append((*task, age_s > UNPROVEN_S))
            yield self._left(rows)
            seen += len(page)
            start = "(" + page[-1][0].decode() if len(page) == PAGE else ""
        if most is None:
            # Looked at before the first of them leaves, which would move the others.
            yield from list(self._delayed())

    def _delayed(self) -> Iterator[list[tuple[str, bool]]]:
        keys, start = self.commands.keys, 0
        while ids := self.broker.call(("ZRANGE", keys.delayed, start, start + PAGE - 1)):
            records = (keys.task(raw.decode("utf-8", "replace")) for raw in ids)
            known = self.broker.call_many(("HMGET", key, "name", "opts") for key in records)
            yield self._left(
                [(raw, *row, False) for raw, row in zip(ids, list(known), strict=True)]
            )
            start += PAGE

    def _unread(self) -> str:
        """Where the entries begin that no worker was given."""
        keys = self.commands.keys
        if not self.broker.call(("EXISTS", keys.stream)):
            return ""
        for row in self.broker.call(("XINFO", "GROUPS", keys.stream)):
            group = dict(zip(row[::2], row[1::2], strict=False))
            if group.get(b"name") == self.commands.group.encode():
                return "(" + bytes(group[b"last-delivered-id"]).decode()
        return "-"

    def _left(
        self, rows: Sequence[tuple[bytes | None, bytes | None, bytes | None, bool]]
    ) -> list[tuple[str, bool]]:
        found = []
        for raw, name, opts, old in rows:
            if not raw or (name or b"").partition(b":")[0] != CALL.encode():
                continue  # a named task belongs to no client
            try:
                task_id = raw.decode()
                options = TaskOptions.read(opts) if opts else NO_OPTIONS
            except (ValueError, TypeError):
                continue  # no task of ours
            if options.home not in (None, self.home.name) and not self.everywhere:
                continue
            named, wanted = self._of_batch(options.batch) if options.batch else (False, [])
            wanted = [*wanted, *([options.inbox] if options.inbox else [])]
            if not self._wanted(wanted, old):
                found.append((task_id, named))
        if not found:
            return []
        waiters = self.broker.call(
            ("HMGET", self.commands.keys.waiters, *(task_id for task_id, _ in found))
        )
        return [
            one
            for one, waiting in zip(found, waiters, strict=True)
            if not waiting or not self._wanted(waiting.decode("utf-8", "replace").split("\n"))
        ]

    def _of_batch(self, batch: str) -> tuple[bool, list[str]]:
        """Whether a batch was given its name, and the clients that want its results."""
        if batch not in self._batches:
            raw = self.broker.call(("HGETALL", self.commands.keys.batch(batch)))
            fields = dict(zip(raw[::2], raw[1::2], strict=True))
            wanted = [
                name.removeprefix(BATCH_CLIENT).decode("utf-8", "replace")
                for name in fields
                if name.startswith(BATCH_CLIENT)
            ]
            self._batches[batch] = fields.get(b"name") == batch.encode(), wanted
        return self._batches[batch]

    def _wanted(self, inboxes: list[str], old: bool = False) -> bool:
        """Whether one of these may be a living client's. Where nobody gives signs of life, what is
        not ``old`` may be."""
        proven = [name for name in inboxes if name.startswith(MARK)]
        if len(proven) < len(inboxes) or not inboxes:
            return not old or any(map(self._lives, proven))
        return any(map(self._lives, proven))

    def _lives(self, inbox: str) -> bool:
        if inbox in self.own:
            return True
        if inbox not in self._alive:
            sign = self.broker.call(("GET", self.commands.keys.client(inbox)))
            self._alive[inbox] = sign is not None and not has_ended(sign)
        return self._alive[inbox]

    def drop(self, batches: bool) -> int:
        """Cancel them, those of named batches only with ``batches``; answers how many that were."""
        dropped = 0
        for page in self.pages():
            ids = [task_id for task_id, named in page if batches or not named]
            for start in range(0, len(ids), MAX_TASKS):
                part = ids[start : start + MAX_TASKS]
                words = self.broker.call(self.commands.cancel(part, CANCELLED_TTL_MS))
                dropped += words.count(b"cancelled")
        return dropped
