"""Presence: the proof that a client lives.

A client that sends calls keeps a key on the server whose value names its process. The key expires
soon after the last sign of life; on the same machine a process that has ended is known at once.
Used by senders and result listeners, which give the sign; leftovers.py reads those of others.
"""

from __future__ import annotations

import functools
import os
import socket
import uuid
from pathlib import Path

from ..connection.broker import Broker
from ..producer.sansio import Inbox
from ..protocol.keys import QueueKeys
from ..protocol.plain_commands import PlainCommands

MARK = "client-"
"""What the name of an inbox begins with whose owner gives signs of life: only its absence proves
that the owner has ended. Inboxes of producers, and of clients of earlier releases, have none."""
SIGN_S = 30.0
"""Seconds between two signs of life."""
LIFE_S = 180
"""Seconds after the last sign for which a client counts as alive: longer than it waits itself for a
server that is away."""


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
