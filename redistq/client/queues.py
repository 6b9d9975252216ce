"""What a client says to the server, and the proof that it lives.

``ClientQueue``, made by sessions for each priority that is used, asks about the tasks of one queue.
``StreamTail`` waits for new entries of a stream other than the inbox: the ends of a batch, the
output of a call. ``Presence`` is the client's inbox, and a key whose value names its process; the
key expires soon after the last sign of life, and on the same machine a process that has ended is
known at once. leftovers.py reads the signs of others.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..codecs.codec import Codec
from ..codecs.sealing import Kind, seal_of
from ..connection.broker import Broker
from ..errors import ConfigurationError, UnknownBatch
from ..functions.signing import Signer, is_packet, task_context
from ..functions.written import CALL
from ..producer.diagnosis import Diagnosis
from ..producer.limits import LimitOperations
from ..producer.sansio import LEAST_PATIENCE_S, Inbox
from ..protocol.commands import Command, Commands, Snapshot, Watched
from ..protocol.homes import Home
from ..protocol.keys import ENDED, QueueKeys, without_priority
from ..protocol.plain_commands import PlainCommands, portions, read_stream, read_time
from ..protocol.replies import messages, read

if TYPE_CHECKING:
    from .session import Session

PAGE = 100
"""Commands whose answers are read together."""
PAUSE_S = 0.1
"""Seconds before a lost connection is opened again."""
MARK = "client-"
"""What the name of an inbox begins with whose owner gives signs of life: only its absence proves
that the owner has ended. Inboxes of producers, and of clients of earlier releases, have none."""
SIGN_S = 30.0
"""Seconds between two signs of life."""
LIFE_S = 180
"""Seconds after the last sign for which a client counts as alive: longer than it waits itself for a
server that is unavailable."""
_COUNTED = ("total", *ENDED, "retried")


class ClientQueue:
    """One priority of a client's queue. Safe to use from several threads."""

    __slots__ = (
        *("__weakref__", "broker", "commands", "diagnosis", "keys", "priority", "session"),
        *("limits", "seal", "seals", "signer"),
    )

    def __init__(
        self,
        session: weakref.ref[Session],
        broker: Broker,
        commands: Commands,
        home: Home,
        priority: str,
        signer: Signer,
        codec: Codec | None = None,
    ) -> None:
        self.session = session
        """One reference for all futures, which hold the session itself only while they wait."""
        self.broker = broker
        self.commands = commands
        self.keys: QueueKeys = commands.keys
        self.priority = priority
        self.signer = signer
        self.seal = seal_of(codec, commands.keys.stream)
        """Opens results and errors of named tasks."""
        self.seals = None if codec is None else self.seal
        """Seals the payloads of named tasks; None: nothing does."""
        self.limits = LimitOperations(commands)
        """Sees to it that limits declared in code hold."""
        self.diagnosis = Diagnosis(
            commands, broker.address, broker.connection, "client.start_workers()", home
        )

    def context_of(self, task_id: str) -> str:
        """Return what the signatures of a task's call, result and error are bound to."""
        return task_context(self.keys.stream, task_id)

    def opened(self, kind: Kind, task_id: str, body: bytes | None) -> bytes | None:
        """Return what a task came to as it was before a codec sealed it; what a call signed is left
        as it is."""
        if body is None or is_packet(body):
            return body
        return self.seal.open_of_task(kind, task_id, body)

    def check_same(self, client: Session, what: str) -> None:
        """Raise ConfigurationError where this is a queue of another server, or another queue, than
        that client's: no task can wait for one over there."""
        base = without_priority(self.keys.stream)
        if self.broker.address == client.broker.address and base == client.keys.stream:
            return
        raise ConfigurationError(
            f"{what} is in queue {base!r} at {self.broker.address}, and what depends on it would "
            f"be in {client.keys.stream!r} at {client.broker.address}: take its result first "
            "(future.result()), or use one client for both"
        )

    def watch(self, task_id: str, inbox: str = "") -> Watched:
        """Return how a task stands; with an inbox, that is notified of its end."""
        return Commands.read_watch(self.broker.call(self.commands.watch(task_id, inbox)))

    def cancel(self, ids: Sequence[str], wish: str = "") -> dict[str, str]:
        """Cancel tasks that wait; return one word for each id, as TaskProducer.cancel. ``wish``:
        as Commands.cancel."""
        words: dict[str, str] = {}
        for part in portions(ids):
            reply = self.broker.call(self.commands.cancel(part, wish=wish))
            words.update(zip(part, (word.decode() for word in reply), strict=True))
        return words

    def replay(self, ids: Sequence[str], anew: bool = False) -> int:
        """Send these dead letters again, ``anew`` without the steps that they have done; return how
        many went."""
        calls = (self.commands.replay(part, anew=anew) for part in portions(ids))
        return sum(self.broker.call(call)[0] for call in calls)

    def forget(self, ids: Sequence[str]) -> None:
        """Delete tasks that have ended: dead letters and records."""
        for part in portions(ids):
            self.broker.call(self.commands.purge(part))
            self.broker.call(self.commands.delete_records(part))

    def snapshot(self) -> Snapshot:
        """Return every figure of the queue at one instant."""
        return Commands.read_snapshot(self.broker.call(self.commands.snapshot()))

    def pages(self, commands: Iterable[Command]) -> Iterator[Any]:
        """Yield the answers to many commands, a page read to its end before its first is given: the
        caller may ask the server in between, or leave early."""
        source = iter(commands)
        while page := list(itertools.islice(source, PAGE)):
            yield from list(self.broker.call_many(page))

    def batch_counts(self, batch_id: str, deadline: float | None = None) -> dict[str, int]:
        """Return a batch's counters, see Batch.counts; raises UnknownBatch."""
        command = self.commands.batch_record(batch_id)
        raw = self.broker.call(command, deadline)
        if not raw:
            raise UnknownBatch(batch_id)
        fields = dict(zip(raw[::2], raw[1::2], strict=True))
        counts = read(command, fields, _counted)
        ended = sum(counts[state] for state in ENDED)
        return {**counts, "waiting": max(counts["total"] - ended, 0)}

    def homes_served(self) -> dict[str, int]:
        """Return how many living worker processes run function calls, by home; under "" those that
        run the calls of all homes."""
        commands = self.commands
        now_ms = read_time(self.broker.call(commands.time))
        workers = self.broker.call(commands.workers_alive(now_ms))
        asked = (commands.names_and_home(name.decode()) for name in workers)
        served: dict[str, int] = {}
        for names, home in self.broker.call_many(asked):
            if CALL.encode() in (names or b"").split(b"\n"):
                where = (home or b"").decode()
                served[where] = served.get(where, 0) + 1
        return served

    def __repr__(self) -> str:
        return f"<ClientQueue {self.keys.stream!r}>"


def _counted(fields: dict[bytes, bytes]) -> dict[str, int]:
    return {name: int(fields.get(name.encode(), 0)) for name in _COUNTED}


class StreamTail:
    """Reads one stream from its beginning, on a connection of its own; for one thread."""

    def __init__(self, broker: Broker, key: str) -> None:
        self._connection = broker.connection()
        self._patience_s = broker.timeout
        self._key = key
        self._last = "0-0"

    def read(
        self, block_s: float, *, count: int = 1000, patience_s: float | None = None
    ) -> list[list[bytes]]:
        """Return the fields of what is new, after at most ``block_s`` seconds; [] when nothing is.

        The server is taken to be unavailable when its answer is later by ``patience_s`` (at most
        what a call may take, which is the default). Raises ConnectionLost.
        """
        block_ms = max(1, int(block_s * 1000))
        command = read_stream(self._key, self._last, count, block_ms)
        patience_s = self._patience_s if patience_s is None else min(self._patience_s, patience_s)
        limit_s = block_ms / 1000 + max(patience_s, LEAST_PATIENCE_S)
        found = messages(command, self._connection.read(command, limit_s))
        if found:
            self._last = found[-1][0]
        return [fields for _, fields in found]

    def pause(self) -> None:
        """Wait a moment before the next read, after a lost connection."""
        time.sleep(PAUSE_S)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Presence:
    """A client's inbox, and the sign by which others know that its calls are wanted.

    One of each serves the tasks of all its priorities. Safe to use from several threads.
    """

    def __init__(self, broker: Broker, keys: QueueKeys) -> None:
        self._broker = broker
        self._keys = keys
        self._commands = PlainCommands(keys)
        self.reset()

    def reset(self) -> None:
        """Be another client than before: a new one, or a forked process."""
        self.inbox = Inbox.new(self._keys, MARK)
        self.is_given = False
        """Whether a sign was given."""

    def begin(self) -> None:
        """Give the first sign of life: before the first call, so that none is ever without."""
        if not self.is_given:
            self.renew()

    def renew(self) -> None:
        """Give the next sign of life."""
        # A server that is full refuses SET alone.
        name = self.inbox.name
        commands = self._commands
        if not self.is_given or not self._broker.call(commands.renew_sign(name, LIFE_S)):
            self._broker.call(commands.give_sign(name, me(), LIFE_S))
            self.is_given = True

    def end(self, deadline: float) -> None:
        """Remove inbox and sign, which expire by themselves where that fails."""
        self._broker.call(self._commands.delete_client(self.inbox.name), deadline)


def me() -> str:
    """Return this process in words: its machine, its id, and when it began."""
    pid = os.getpid()
    return f"{_machine()} {pid} {_began(pid)}"


def has_ended(value: bytes) -> bool:
    """Return whether the process of such words is known to have ended; False where that cannot be
    known, as on other machines."""
    machine, _, rest = value.decode("utf-8", "replace").partition(" ")
    pid, _, began = rest.partition(" ")
    if machine != _machine() or not pid.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # it is another user's
    now = _began(int(pid))
    return bool(began and now and began != now)  # else another process has its id


@functools.cache
def _machine() -> str:
    """Return where process ids mean the same: one start of one machine, seen from one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname().replace(' ', '_')}/{uuid.getnode():x}"


def _began(pid: int) -> str:
    """Return when a process began, in the system's own count; '' where that cannot be known, and
    'ended' for one that has ended and was not waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]
