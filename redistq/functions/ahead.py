"""Lookahead: what calls that wait in this process need of other tasks, read before they start.

Used by the handler for function calls. A call that takes results of others asks the server for
them; where many such calls wait behind it, it asks for theirs in the same round trip. Nothing of a
call that has not started is unpickled: its signature is checked, and what it needs stands before
its pickle. Only small results are read so, of a bounded number of calls. What cannot be read here,
for whatever reason, is read, or refused, when its call runs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..context import TaskContext
from ..errors import RedistqError
from ..handlers import Waiting
from ..protocol.pieces import Memory
from .references import Reference
from .results import SMALL, ResultReader
from .signing import Signer, is_compressed, is_note, is_usual, task_context
from .written import CALL, Needs, needs_in

MOST_CALLS = 64
"""Calls whose results are read together."""
MOST_RESULTS = 500
"""Results that are read together, about."""
MOST_BYTES = 4 * 1024 * 1024
"""Bytes of them, about."""
_LOOKED_AT = 4 * MOST_CALLS
_CALLS = f"{CALL}:".encode()


@dataclass(frozen=True, slots=True)
class KnownCall:
    """A call that is not loaded yet: what it needs, its pickle, and the results that were read."""

    needs: Needs
    pickled: bytes
    found: Mapping[Reference, Memory]


class Lookahead:
    """Reads ahead for the calls of one process; safe to use from several threads.

    ``waiting`` returns what waits to run here, in order.
    """

    def __init__(self, signer: Signer, waiting: Callable[[], Iterable[Waiting]]) -> None:
        self._signer = signer
        self._waiting = waiting
        self._known: dict[str, KnownCall] = {}
        self._lock = threading.Lock()

    def take(self, context: TaskContext) -> KnownCall | None:
        """Return what was read ahead for a task, which starts now."""
        return self._known.pop(context.entry, None)

    def look(
        self, context: TaskContext, needed: Iterable[Reference], reader: ResultReader, stream: str
    ) -> Mapping[Reference, Memory]:
        """Return what could be read of what a task needs, together with what is needed by those
        that wait; nothing where none do."""
        with self._lock:
            known = self._known.pop(context.entry, None)
            if known is not None:  # another thread read it just now
                return known.found
            waiting = {entry: (queue, flat) for entry, queue, flat in self._waiting()}
            self._known = {k: v for k, v in self._known.items() if k.encode() in waiting}
            others = list(self._others(waiting, context.queue, stream))
            if not others:
                return {}
            more = (needs.results for _, needs, _ in others)
            results = dict.fromkeys(itertools.chain(needed, *more))
            found = self._read(reader, [one for one in results if one.kind == "call"])
            for entry, needs, pickled in others:
                self._known[entry] = KnownCall(needs, pickled, found)
            return found

    def _others(
        self, waiting: Mapping[bytes, tuple[str, list[bytes]]], queue: str, stream: str
    ) -> Iterator[tuple[str, Needs, bytes]]:
        """Yield those calls of a queue that wait, need results and are not known yet."""
        calls = results = 0
        unpack, known = self._signer.unpack, self._known
        for entry, (where, flat) in itertools.islice(waiting.items(), _LOOKED_AT):
            name = entry.decode()
            if where != queue or name in known or not _may_need(flat):
                continue
            try:
                context = task_context(stream, flat[1].decode())
                needs, pickled = needs_in(unpack("call", context, flat[5], old=True))
            except Exception:  # broad: whatever is wrong with it shows when it runs
                continue
            if not needs.results:
                continue
            yield name, needs, pickled
            calls += 1
            results += len(needs.results)
            if calls >= MOST_CALLS or results >= MOST_RESULTS:
                return

    def _read(self, reader: ResultReader, needed: list[Reference]) -> dict[Reference, Memory]:
        found: dict[Reference, Memory] = {}
        try:
            rows = reader.read_small(needed[:MOST_RESULTS], MOST_BYTES)
        except RedistqError:
            return found  # those that need it say so
        for reference, body in rows.items():
            if is_usual(body) or not (is_compressed(body) or is_note(body)):
                try:
                    found[reference] = reader.opened(reference, body)
                except RedistqError:
                    continue
        return found


def _may_need(flat: list[bytes]) -> bool:
    """Return whether an entry may be a small call that needs results."""
    if len(flat) != 12 or flat[4] != b"payload" or b'"gate"' not in flat[11]:
        return False
    name = flat[3]
    is_call = name.startswith(_CALLS) or name == _CALLS[:-1]
    return is_call and len(flat[5]) <= SMALL and not is_compressed(flat[5])
