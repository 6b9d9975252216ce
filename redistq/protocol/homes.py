"""Homes: where a client's calls belong, and how a worker gets past the calls of other homes.

A call may read files of the folder it was sent from, and needs the packages and the Python of its
sender. Two notebooks that share a queue must therefore not run each other's calls. A *home* is a
host, a folder and an environment; calls carry its name in their options, and a worker that belongs
to a home leaves the calls of others where they are. Used by clients and by processors; it never
talks to a server.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .options import TaskOptions

PAGE = 500
"""Most entries read at a time to get past the calls of others."""
SHORT_S = 0.002
"""Seconds without reading after the first round through the queue that found only others' calls."""
LONG_S = 0.25
"""The same after many such rounds."""
LONGEST_S = 5.0
"""The same at most where a round takes long itself."""
DUTY = 20
"""A worker spends at most about one part in so many of its time on the calls of others."""
SEEN = 100_000
"""Calls of others remembered in one round, about."""
_MARK = b'"home":'


@dataclass(frozen=True, slots=True)
class Home:
    """A host, a folder and an environment. ``name`` is a short digest of them and a word to read;
    ``folder`` is where its workers start."""

    name: str
    folder: str
    description: str

    @classmethod
    def here(cls) -> Home:
        """Return the home of this process as it is now.

        Where its working folder has been deleted it has the folder that was: calls can be sent
        from there, but no workers started.
        """
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            folder = os.environ.get("PWD", os.sep)
        folder = os.path.realpath(folder)
        host = socket.gethostname()
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        whole = "\0".join((host, folder, os.path.realpath(sys.prefix), python))
        digest = hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        word = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(folder))[-24:]
        description = f"{folder} on {host} (Python {python} of {sys.prefix})"
        return cls(f"{digest}-{word}", folder, description)


def home_of(opts: bytes) -> str:
    """Return the home named in a task's options; empty where there is none."""
    if _MARK not in opts:
        return ""
    try:
        return TaskOptions.read(opts).home or ""
    except (ValueError, TypeError, RecursionError):
        return ""  # running it will say what is wrong with them


def entry_order(entry: bytes) -> tuple[int, int]:
    """Return what sorts entries as a stream does."""
    ms, _, sequence = entry.partition(b"-")
    return int(ms), int(sequence)


class Passing:
    """How one worker gets past the calls of other homes in one queue.

    They go back to the end of the stream at once, so that their own workers never miss them: a
    lone call is with its own worker after a round trip. A worker that finds nothing else reads
    larger and larger pages, until it meets what it has passed before: then nothing of its own is
    in the queue, and it rests; longer the more often that happens, and the longer the round was.
    While it rests it looks at what is added (``looks_after``), which moves nothing.
    """

    def __init__(self, home: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._own = _MARK + json.dumps(home).encode()
        self._home = home
        self._now = clock
        self._page = 1
        self._rounds = 0
        self._seen: set[bytes] = set()
        self._began = 0.0
        self.rests_until = 0.0
        """When this queue is to be read again."""
        self.looks_after = b"0-0"
        """While it rests: the entry after which something of its own may have been added."""
        self.looks_at = 0.0
        """When it looks the next time."""

    def is_foreign(self, opts: bytes) -> bool:
        """Return whether a task is a call of another home."""
        return _MARK in opts and self._own not in opts and home_of(opts) not in ("", self._home)

    def ask(self, room: int) -> int:
        """Return how many entries to read where there is room for so many tasks."""
        return max(room, self._page) if self._page > 1 else room

    def passed(self, foreign: Sequence[bytes], own: int, last: bytes = b"0-0") -> None:
        """Take note of a page that was read: the ids of the calls of others in it, how many tasks
        were ours, and the page's last entry."""
        if not foreign:
            self._page = 1
            self._rounds = 0
            self._seen.clear()
            return
        if not self._seen:
            self._began = self._now()
            self.looks_after = last
        over = not self._seen.isdisjoint(foreign) or len(self._seen) > SEEN
        self._seen.update(foreign)
        if own:
            self._rounds = 0
            grows = len(foreign) > own
            self._page = min(self._page * 2, PAGE) if grows else max(self._page // 2, 1)
        else:
            self._page = min(self._page * 2, PAGE)
        if over:
            if not own:
                now = self._now()
                least = min(SHORT_S * 2**self._rounds, LONG_S)
                rest = min(max(least, DUTY * (now - self._began)), LONGEST_S)
                self.rests_until = now + rest
                self._rounds = min(self._rounds + 1, 30)
                self.looks_at = now
            self._seen.clear()

    def rest_s(self) -> float:
        """Return the seconds until this queue is to be read or looked at again; 0 or less: now."""
        return min(self.rests_until - self._now(), LONG_S)
