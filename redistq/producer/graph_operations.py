"""What graphs do, written once, carried out with or without ``await`` (sansio.py).

Used by Graph and AsyncGraph (graph.py), which say what each of these promises.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import ConfigurationError, ResultTimeout, UnknownBatch
from ..protocol.commands import SETTLED, Command, Commands
from ..protocol.keys import batch_task_id, is_text
from ..protocol.options import shown
from ..protocol.plain_commands import portions
from .graph_plan import GraphPlan
from .operations import Wish, wish_of
from .sansio import NOTICE_S, Inbox, Many, Operation, ReadInbox, Sleep, Together
from .shape import PART, SUMMARY, ShapeNode, Summary, read_part, read_summary

_CANCELLED_TTL_MS = 7 * 86_400_000
BURST_S = 0.01
"""Seconds between two looks while tasks end fast."""
_PAGE = 100


class Ends(Inbox):
    """Where the ends of a batch's tasks are waited for; nothing of it is deleted."""

    def clearing(self) -> Command:
        """Raise what the read failed of: another kind of key stands there."""
        raise


class NextEnd(ReadInbox):
    """A step: wait for an end of a batch's tasks after an entry, at most ``seconds``."""

    __slots__ = ("_command",)

    def __init__(self, ends: Ends, seconds: float, command: Command) -> None:
        super().__init__(ends, seconds)
        self._command = command

    def command(self) -> Command:
        """Return the blocking read."""
        return self._command

    def read(self, reply: Any) -> list[Any]:
        """Return nothing: that there was an end is seen in the counters."""
        return []


class GraphOperations:
    """The tasks of one graph, by name; see Graph."""

    def __init__(self, commands: Commands, name: str) -> None:
        self.name = checked_name(name)
        self._commands = commands
        self._plan: GraphPlan | None = None
        self._is_open = False
        self._total: int | None = None
        self.reused = 0
        """How many tasks had been done before, as they are now, when it was sent."""

    @property
    def id(self) -> str:
        """The id of its batch, which is its name: as a parent, it is a batch."""
        return self.name

    @property
    def queue(self) -> Any:
        """The queue of its tasks, of their priority: what ``after=graph`` asks for."""
        return self._commands

    def task_id(self, position: int) -> str:
        """Return the id of the task at a position, in the order in which tasks were added."""
        return batch_task_id(self.name, position)

    def _commands_at(self, position: int) -> Commands:
        """Return the script calls of the queue in which the task at a position is."""
        return self._commands

    # -- writing ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._plan = GraphPlan(self.name)
        self._is_open = True
        self._total = None

    @property
    def _open_plan(self) -> GraphPlan:
        """The plan while tasks may be added to it."""
        if self._plan is None or not self._is_open:
            raise ConfigurationError(
                f"graph {self.name!r} takes tasks while it is open: with ....graph(name) as graph: "
                "and then graph.add(...) in the block"
            )
        return self._plan

    def _sending(self) -> Operation[None]:
        assert self._plan is not None
        self.reused = yield from self._plan.sending(self._commands, self._states)
        self._total = len(self._plan.tasks)

    # -- looking ---------------------------------------------------------------------------------

    def _find_total(self) -> Operation[int]:
        if self._total is None:
            found = yield self._commands.batch_total(self.name)
            if found is None:
                raise UnknownBatch(self.name)
            self._total = int(found)
        return self._total

    def _counting(self) -> Operation[dict[str, int]]:
        raw = yield self._commands.batch_record(self.name)
        if not raw:
            raise UnknownBatch(self.name)
        found = dict(zip(raw[::2], raw[1::2], strict=True))
        names = ("total", "succeeded", "failed", "cancelled", "expired", "retried")
        counts = {name: int(found.get(name.encode(), 0)) for name in names}
        ended = sum(counts[name] for name in ("succeeded", "failed", "cancelled", "expired"))
        self._total = counts["total"]
        return {**counts, "waiting": max(counts["total"] - ended, 0)}

    def _states(self, positions: Iterable[int]) -> Operation[list[str]]:
        """Return how these tasks stand, by their records; '' where there is none."""
        records = yield from self._records(positions)
        return [_state_of(state, entry) for state, entry, *_ in records]

    def _records(self, positions: Iterable[int]) -> Operation[list[list[bytes | None]]]:
        commands = (self._commands_at(i).node(self.task_id(i)) for i in positions)
        found: list[list[bytes | None]] = []
        while page := list(itertools.islice(commands, _PAGE)):
            found += yield Together(page)
        return found

    def _summarising(self) -> Operation[Summary]:
        (raw,) = yield self._commands.shape(self.name, (SUMMARY,))
        if raw is None:
            raise UnknownBatch(self.name)
        return read_summary(raw)

    def _shaping(self, limit: int) -> Operation[list[ShapeNode]]:
        found: list[ShapeNode] = []
        total = yield from self._find_total()
        for part in range(-(-min(limit, total) // PART)):
            (raw,) = yield self._commands.shape(self.name, (f"part:{part}",))
            if raw is None:
                break
            found += read_part(raw)
        return found[:limit]

    def _looking_at(self, positions: Sequence[int]) -> Operation[list[str]]:
        found = yield from self._states(positions)
        states = [state or "queued" for state in found]
        queued = [k for k, state in enumerate(states) if state == "queued"]
        if len(queued) <= _PAGE:
            replies: list[Any] = []
            at = [positions[k] for k in queued]
            watch = [self._commands_at(i).watch(self.task_id(i)) for i in at]
            yield Many(watch, replies.append)
            for k, reply in zip(queued, replies, strict=True):
                state = Commands.read_watch(reply).state
                states[k] = "queued" if state == "unknown" else state
        return states

    def _listing(self, limit: int) -> Operation[list[dict[str, Any]]]:
        shape = yield from self._shaping(limit)
        positions = range(len(shape))
        states = yield from self._looking_at(positions)
        records = yield from self._records(positions)
        rows = zip(positions, shape, states, records, strict=True)
        return [self._row(*row) for row in rows]

    def _rows_at(self, positions: Sequence[int]) -> Operation[list[dict[str, Any]]]:
        states = yield from self._looking_at(positions)
        records = yield from self._records(positions)
        nameless = ShapeNode("", 0, ())
        rows = zip(positions, states, records, strict=True)
        return [self._row(at, nameless, state, record) for at, state, record in rows]

    def _row(
        self, position: int, node: ShapeNode, state: str, record: list[bytes | None]
    ) -> dict[str, Any]:
        _, _, reason, attempt, run_ms, worker, finished = (
            None if value is None else value.decode("utf-8", "replace") for value in record
        )
        ended = state in SETTLED
        return {
            "id": self.task_id(position),
            "name": node.name,
            "layer": node.layer,
            "parents": list(node.parents),
            "state": state,
            "reason": (reason or "") if state != "succeeded" else "",
            "attempt": int(attempt or 1),
            "worker": worker or "",
            "run_s": float(run_ms) / 1000 if run_ms and ended else None,
            "finished_at": int(finished) if finished and ended else None,
        }

    # -- waiting and acting ----------------------------------------------------------------------

    def _waiting(self, timeout: float | None, ends: Ends) -> Operation[None]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            # The last end before the counters: whatever ends after them is read.
            last = yield self._commands.last_end(self.name)
            counts = yield from self._counting()
            if not counts["waiting"]:
                return
            left = NOTICE_S if end is None else min(NOTICE_S, end - time.monotonic())
            if left <= 0:
                ended = counts["total"] - counts["waiting"]
                state = f"unfinished ({ended:,} of {counts['total']:,} tasks have ended)"
                raise ResultTimeout(self.name, timeout or 0.0, state, "", "graph")
            after = last[0][0].decode() if last else "0-0"
            command = self._commands.next_end(self.name, after, max(1, int(left * 1000)))
            yield NextEnd(ends, left, command)
            yield Sleep(BURST_S)

    def _ends(self) -> Ends:
        return Ends(self._commands.keys.settled(self.name), "")

    def _cancelling(self, running: Wish) -> Operation[int]:
        wish = wish_of(running)
        cancelled = 0
        total = yield from self._find_total()
        # From the end: what runs after others is cancelled by this, not because of them.
        ids = (self.task_id(i) for i in reversed(range(total)))
        for part in portions(ids):
            reply = yield self._commands.cancel(part, _CANCELLED_TTL_MS, wish)
            cancelled += sum(word in (b"cancelled", b"asked") for word in reply)
        return cancelled

    def _ended_badly(self) -> Operation[tuple[list[str], list[int]]]:
        """Return how all tasks stand, and the positions of those that a resumption runs again."""
        total = yield from self._find_total()
        states = yield from self._states(range(total))
        bad = SETTLED - {"succeeded"}
        return states, [i for i, state in enumerate(states) if state in bad]

    def _resuming_unplanned(self, states: list[str], ended: list[int]) -> Operation[int]:
        if lost := [i for i in ended if states[i] != "failed"]:
            raise ConfigurationError(
                f"{len(lost):,} tasks of graph {self.name!r} were cancelled, and what they were "
                "given is not kept: run the code again that makes the graph (with ... as graph:), "
                "which sends only what is not done"
            )
        again = 0
        for part in portions(self.task_id(i) for i in ended):
            reply = yield self._commands.replay(part)
            again += reply[0]
        return again

    def _deleting(self) -> Operation[None]:
        yield from self._cancelling(None)
        counts = yield from self._counting()
        if counts["waiting"]:
            raise ConfigurationError(
                f"tasks of graph {self.name!r} are running: wait for them (graph.wait()) first"
            )
        for part in portions(self.task_id(i) for i in range(counts["total"])):
            yield self._commands.purge(part)
            yield self._commands.delete_records(part)
        yield self._commands.delete_batch(self.name)
        yield self._commands.unlist_batch(self.name)
        self._total = None

    def __repr__(self) -> str:
        size = len(self._open_plan.tasks) if self._is_open else self._total
        of = "" if size is None else f" of {size:,} tasks"
        return f"<{type(self).__name__} {self.name!r}{of}>"


def frame_of(pandas: Any, rows: list[dict[str, Any]]) -> Any:
    """Return the rows of a graph's tasks as a DataFrame."""
    index = pandas.RangeIndex(len(rows), name="position")
    columns = ["id", "name", "layer", "parents", "state", "reason", "attempt", "worker"]
    frame = pandas.DataFrame(rows, index=index, columns=[*columns, "run_s", "finished_at"])
    when = pandas.to_datetime(frame["finished_at"].astype("Int64"), unit="ms", utc=True)
    frame["finished_at"] = when.astype("datetime64[ms, UTC]")
    kinds = dict.fromkeys(("id", "name", "state", "reason", "worker"), "str")
    return frame.astype({**kinds, "layer": "int64", "attempt": "int64", "run_s": "float64"})


def _state_of(state: bytes | None, entry: bytes | None) -> str:
    if state is not None:
        return state.decode("utf-8", "replace")
    return "queued" if entry else ""


def checked_name(name: Any) -> str:
    """Return a graph's name; raises ConfigurationError for what is none."""
    right = isinstance(name, str) and is_text(name) and not any(c.isspace() for c in name)
    if right and 0 < len(name) <= 100:
        return str(name)
    raise ConfigurationError(
        f"a graph's name is 1 to 100 characters without spaces, not {shown(name)}"
    )
