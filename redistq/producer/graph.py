"""Graphs: tasks that run after each other, sent, watched, cancelled and resumed as one thing.

``Graph`` is what all graphs do, ``TaskGraph`` one of named tasks; clients have one of calls. On the
server a graph is a batch, whose counters move with every end of a task, and the ids of its tasks
are its name and their position. So whoever knows its name finds it again, and the same graph made
again, from the top of a notebook, sends only what is not done.

What was done counts where it answers the task of now: a task is named by what it is called, what it
is given, and the names of those it runs after. Another payload makes that task run anew, and all
that come after it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import slots
from ..connection.broker import Broker
from ..display.html import badge, escape, panel
from ..errors import ConfigurationError, ConnectionLost, ResultTimeout, UnknownBatch
from ..protocol.commands import SETTLED, Commands
from ..protocol.keys import batch_task_id, is_text
from ..protocol.options import shown, wait_seconds
from ..protocol.plain_commands import portions
from ..system.interpreter import require
from .graph_plan import GraphPlan
from .operations import Wish, wish_of
from .sansio import NOTICE_S
from .shape import PART, SUMMARY, ShapeNode, Summary, read_part, read_summary

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRAPH_TTL_S = 7 * 86_400.0
"""Seconds that results of a graph are kept."""
_CANCELLED_TTL_MS = 7 * 86_400_000
BURST_S = 0.01
"""Seconds between two looks while tasks end fast."""
NODES_READ = 10_000
"""Tasks that ``nodes()`` lists where nothing else is said."""
_PAGE = 100


class Graph:
    """The tasks of one graph, by name.

    As a context manager it is written: what is added inside is sent, all of it, when the block
    ends; after an error in it nothing is. Otherwise it is a graph that was sent before, by this
    program or another. ``counts()``, ``nodes()`` and ``plot()`` look; ``wait()`` waits without
    polling; ``cancel()`` and ``resume()`` act.
    """

    def __init__(self, broker: Broker, commands: Commands, name: str) -> None:
        self.name = checked_name(name)
        self._broker = broker
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

    @property
    def total(self) -> int:
        """How many tasks it has; raises UnknownBatch where there is no such graph."""
        if self._total is None:
            found = self._broker.call(self._commands.batch_total(self.name))
            if found is None:
                raise UnknownBatch(self.name)
            self._total = int(found)
        return self._total

    # -- writing ---------------------------------------------------------------------------------

    def __enter__(self) -> Any:
        self._plan = GraphPlan(self.name)
        self._is_open = True
        self._total = None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_open = False
        if kind is None:
            self._send()

    @property
    def _open_plan(self) -> GraphPlan:
        """The plan while tasks may be added to it."""
        if self._plan is None or not self._is_open:
            raise ConfigurationError(
                f"graph {self.name!r} takes tasks while it is open: with ....graph(name) as graph: "
                "and then graph.add(...) in the block"
            )
        return self._plan

    def _send(self) -> None:
        assert self._plan is not None
        self.reused = self._plan.send(self._broker, self._commands, self._states)
        self._total = len(self._plan.tasks)

    # -- looking ---------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return how many tasks: total, succeeded, failed, cancelled, expired, waiting (for others,
        for a worker, or running), and how often one was retried."""
        raw = self._broker.call(self._commands.batch_record(self.name))
        if not raw:
            raise UnknownBatch(self.name)
        found = dict(zip(raw[::2], raw[1::2], strict=True))
        names = ("total", "succeeded", "failed", "cancelled", "expired", "retried")
        counts = {name: int(found.get(name.encode(), 0)) for name in names}
        ended = sum(counts[name] for name in ("succeeded", "failed", "cancelled", "expired"))
        self._total = counts["total"]
        return {**counts, "waiting": max(counts["total"] - ended, 0)}

    @property
    def done(self) -> bool:
        """Whether every task has come to its end."""
        return self.counts()["waiting"] == 0

    def task_id(self, position: int) -> str:
        """Return the id of the task at a position, in the order in which tasks were added."""
        return batch_task_id(self.name, position)

    def _states(self, positions: Iterable[int]) -> list[str]:
        """Return how these tasks stand, by their records; '' where there is none."""
        return [_state_of(state, entry) for state, entry, *_ in self._records(positions)]

    def _records(self, positions: Iterable[int]) -> Iterator[list[bytes | None]]:
        commands = (self._commands.node(self.task_id(i)) for i in positions)
        while page := list(itertools.islice(commands, _PAGE)):
            yield from list(self._broker.call_many(page))

    def summary(self) -> Summary:
        """Return the graph in groups of tasks with one name in one layer."""
        (raw,) = self._broker.call(self._commands.shape(self.name, (SUMMARY,)))
        if raw is None:
            raise UnknownBatch(self.name)
        return read_summary(raw)

    def shape(self, limit: int) -> list[ShapeNode]:
        """Return the first tasks, as they were added: what each is called, and runs after."""
        found: list[ShapeNode] = []
        parts = range(-(-min(limit, self.total) // PART))
        for part in parts:
            (raw,) = self._broker.call(self._commands.shape(self.name, (f"part:{part}",)))
            if raw is None:
                break
            found += read_part(raw)
        return found[:limit]

    def states_at(self, positions: Sequence[int]) -> list[str]:
        """Return how the tasks at these positions stand; running is told from queued for a few."""
        states = [state or "queued" for state in self._states(positions)]
        queued = [k for k, state in enumerate(states) if state == "queued"]
        if len(queued) <= _PAGE:
            watch = (self._commands.watch(self.task_id(positions[k])) for k in queued)
            for k, reply in zip(queued, list(self._broker.call_many(watch)), strict=True):
                found = Commands.read_watch(reply).state
                states[k] = "queued" if found == "unknown" else found
        return states

    def nodes(self, limit: int = NODES_READ) -> pd.DataFrame:
        """Return one row a task, by position: id, name, layer, parents, state, reason, attempt,
        worker, run_s, finished_at."""
        pandas = require("pandas", "notebook", "DataFrames")
        shape = self.shape(limit)
        rows = []
        positions = range(len(shape))
        states = self.states_at(positions)
        for i, node, state, record in zip(
            positions, shape, states, self._records(positions), strict=True
        ):
            _, _, reason, attempt, run_ms, worker, finished = (
                None if value is None else value.decode("utf-8", "replace") for value in record
            )
            ended = state in SETTLED
            rows.append(
                {
                    "id": self.task_id(i),
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
            )
        index = pandas.RangeIndex(len(rows), name="position")
        columns = ["id", "name", "layer", "parents", "state", "reason", "attempt", "worker"]
        frame = pandas.DataFrame(rows, index=index, columns=[*columns, "run_s", "finished_at"])
        when = pandas.to_datetime(frame["finished_at"].astype("Int64"), unit="ms", utc=True)
        frame["finished_at"] = when.astype("datetime64[ms, UTC]")
        kinds = dict.fromkeys(("id", "name", "state", "reason", "worker"), "str")
        found: pd.DataFrame = frame.astype(
            {**kinds, "layer": "int64", "attempt": "int64", "run_s": "float64"}
        )
        return found

    def plot(self, *, ax: Axes | None = None) -> Figure:
        """Draw it from left to right, in the colours of the states: each task, or, of more than
        some hundred, the groups of those with one name in one layer."""
        from ..monitor.graph_plot import draw_graph

        return draw_graph(self, ax=ax)

    # -- waiting and acting ----------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until every task has ended, without polling; return the graph.

        Raises ResultTimeout after ``timeout`` seconds; the graph goes on.
        """
        timeout = wait_seconds(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        connection = self._broker.connection()
        try:
            while True:
                # The last end before the counters: whatever ends after them is read.
                last = self._broker.call(self._commands.last_end(self.name))
                counts = self.counts()
                if not counts["waiting"]:
                    return self
                left = NOTICE_S if end is None else min(NOTICE_S, end - time.monotonic())
                if left <= 0:
                    ended = counts["total"] - counts["waiting"]
                    state = f"unfinished ({ended:,} of {counts['total']:,} tasks have ended)"
                    raise ResultTimeout(self.name, timeout or 0.0, state, "", "graph")
                after = last[0][0].decode() if last else "0-0"
                with contextlib.suppress(ConnectionLost), slots.lent():
                    command = self._commands.next_end(self.name, after, max(1, int(left * 1000)))
                    connection.read(command, left + self._broker.timeout)
                time.sleep(BURST_S)
        finally:
            connection.close()

    def cancel(self, *, running: Wish = None) -> int:
        """Cancel what no worker has yet, all that waits included; return how many tasks that were.

        With ``running`` ("ask" or "force", see TaskProducer.cancel) the tasks that run are asked to
        end, and count too.
        """
        wish = wish_of(running)
        cancelled = 0
        # From the end: what runs after others is cancelled by this, not because of them.
        ids = (self.task_id(i) for i in reversed(range(self.total)))
        for part in portions(ids):
            reply = self._broker.call(self._commands.cancel(part, _CANCELLED_TTL_MS, wish))
            cancelled += sum(word in (b"cancelled", b"asked") for word in reply)
        return cancelled

    def resume(self) -> int:
        """Let what failed or was cancelled run again, in order; return how many tasks that are.

        What is done stays. A graph of another program can only be resumed where nothing was
        cancelled: what its tasks were given is kept of failed ones alone.
        """
        states = self._states(range(self.total))
        ended = [i for i, state in enumerate(states) if state in SETTLED and state != "succeeded"]
        if not ended:
            return 0
        if self._plan is None:
            return self._resume_unplanned(states, ended)
        self._send()
        return len(ended)

    def _resume_unplanned(self, states: list[str], ended: list[int]) -> int:
        if lost := [i for i in ended if states[i] != "failed"]:
            raise ConfigurationError(
                f"{len(lost):,} tasks of graph {self.name!r} were cancelled, and what they were "
                "given is not kept: run the code again that makes the graph (with ... as graph:), "
                "which sends only what is not done"
            )
        again = 0
        for part in portions(self.task_id(i) for i in ended):
            again += self._broker.call(self._commands.replay(part))[0]
        return again

    def delete(self) -> None:
        """Forget the graph and its results; what has not started is cancelled before.

        Raises ConfigurationError while tasks of it are running.
        """
        self.cancel()
        if self.counts()["waiting"]:
            raise ConfigurationError(
                f"tasks of graph {self.name!r} are running: wait for them (graph.wait()) first"
            )
        for part in portions(self.task_id(i) for i in range(self.total)):
            self._broker.call(self._commands.purge(part))
            self._broker.call(self._commands.delete_records(part))
        self._broker.call(self._commands.delete_batch(self.name))
        self._broker.call(self._commands.unlist_batch(self.name))
        self._total = None

    # -- looks -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._open_plan.tasks) if self._is_open else self.total

    def __repr__(self) -> str:
        size = len(self._open_plan.tasks) if self._is_open else self._total
        of = "" if size is None else f" of {size:,} tasks"
        return f"<{type(self).__name__} {self.name!r}{of}>"

    def _repr_html_(self) -> str:
        if self._is_open:
            return panel(f"Graph {self.name}", escape("not sent yet"), [])
        try:
            counts = self.counts()
            layers = self.summary().layers
        except Exception as error:  # broad: a picture is no place for a traceback
            return panel(f"Graph {self.name}", escape(error), [])
        names = ("waiting", "succeeded", "failed", "cancelled", "expired", "retried")
        rows = [(name, f"{counts[name]:,}") for name in names if counts[name] or name != "expired"]
        rows.insert(0, ("layers", f"{layers:,}"))
        bad = counts["failed"] or counts["cancelled"] or counts["expired"]
        state = "running" if counts["waiting"] else "failed" if bad else "succeeded"
        return panel(f"Graph {self.name} of {counts['total']:,} tasks", badge(state), rows)


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
