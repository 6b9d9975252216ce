"""Graphs: tasks that run after each other, sent, watched, cancelled and resumed as one thing.

``Graph`` is what all graphs do, ``AsyncGraph`` the same for ``await``, by graph_operations.py;
``TaskGraph`` is one of named tasks; clients have one of calls. On the
server a graph is a batch, whose counters move with every end of a task, and the ids of its tasks
are its name and their position. So whoever knows its name finds it again, and the same graph made
again, from the top of a notebook, sends only what is not done.

What was done counts where it answers the task of now: a task is named by what it is called, what it
is given, and the names of those it runs after. Another payload makes that task run anew, and all
that come after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..connection.broker import Broker
from ..display.html import badge, escape, panel
from ..protocol.commands import Commands
from ..protocol.options import wait_seconds
from ..system.interpreter import require
from .graph_operations import GraphOperations, frame_of
from .operations import Wish
from .sansio import run, run_async
from .shape import ShapeNode, Summary

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..connection.async_broker import AsyncBroker

GRAPH_TTL_S = 7 * 86_400.0
"""Seconds that results of a graph are kept."""
NODES_READ = 10_000
"""Tasks that ``nodes()`` lists where nothing else is said."""


class Graph(GraphOperations):
    """The tasks of one graph, by name.

    As a context manager it is written: what is added inside is sent, all of it, when the block
    ends; after an error in it nothing is. Otherwise it is a graph that was sent before, by this
    program or another. ``counts()``, ``nodes()`` and ``plot()`` look; ``wait()`` waits without
    polling; ``cancel()`` and ``resume()`` act.
    """

    def __init__(self, broker: Broker, commands: Commands, name: str) -> None:
        super().__init__(commands, name)
        self._broker = broker

    @property
    def total(self) -> int:
        """How many tasks it has; raises UnknownBatch where there is no such graph."""
        return run(self._broker, self._find_total())

    def __enter__(self) -> Any:
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_open = False
        if kind is None:
            self._send()

    def _send(self) -> None:
        run(self._broker, self._sending())

    # -- looking ---------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return how many tasks: total, succeeded, failed, cancelled, expired, waiting (for others,
        for a worker, or running), and how often one was retried."""
        return run(self._broker, self._counting())

    @property
    def done(self) -> bool:
        """Whether every task has come to its end."""
        return self.counts()["waiting"] == 0

    def summary(self) -> Summary:
        """Return the graph in groups of tasks with one name in one layer."""
        return run(self._broker, self._summarising())

    def shape(self, limit: int) -> list[ShapeNode]:
        """Return the first tasks, as they were added: what each is called, and runs after."""
        return run(self._broker, self._shaping(limit))

    def states_at(self, positions: Sequence[int]) -> list[str]:
        """Return how the tasks at these positions stand; running is told from queued for a few."""
        return run(self._broker, self._looking_at(positions))

    def rows_at(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return how the tasks at these positions stand, as ``nodes`` lists them but without their
        names and parents; those of a batch that is no graph, too."""
        return run(self._broker, self._rows_at(positions))

    def nodes(self, limit: int = NODES_READ) -> pd.DataFrame:
        """Return one row a task, by position: id, name, layer, parents, state, reason, attempt,
        worker, run_s, finished_at."""
        pandas = require("pandas", "notebook", "DataFrames")
        found: pd.DataFrame = frame_of(pandas, run(self._broker, self._listing(limit)))
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
        ends = self._ends()
        try:
            run(self._broker, self._waiting(wait_seconds(timeout), ends))
            return self
        finally:
            if ends.connection is not None:
                ends.connection.close()

    def cancel(self, *, running: Wish = None) -> int:
        """Cancel what no worker has yet, all that waits included; return how many tasks that were.

        With ``running`` ("ask" or "force", see TaskProducer.cancel) the tasks that run are asked to
        end, and count too.
        """
        return run(self._broker, self._cancelling(running))

    def resume(self) -> int:
        """Let what failed or was cancelled run again, in order; return how many tasks that are.

        What is done stays. A graph of another program can only be resumed where nothing was
        cancelled: what its tasks were given is kept of failed ones alone.
        """
        states, ended = run(self._broker, self._ended_badly())
        if ended and self._plan is None:
            return run(self._broker, self._resuming_unplanned(states, ended))
        if ended:
            self._send()
        return len(ended)

    def delete(self) -> None:
        """Forget the graph and its results; what has not started is cancelled before.

        Raises ConfigurationError while tasks of it are running.
        """
        run(self._broker, self._deleting())

    # -- looks -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._open_plan.tasks) if self._is_open else self.total

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


class AsyncGraph(GraphOperations):
    """Graph for ``await``: the same methods, the same promises, one event loop. ``total`` and
    ``done`` are methods; a picture is drawn by ``TaskProducer.graph(name).plot()``."""

    def __init__(self, broker: AsyncBroker, commands: Commands, name: str) -> None:
        super().__init__(commands, name)
        self._broker = broker

    async def __aenter__(self) -> Any:
        self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_open = False
        if kind is None:
            await run_async(self._broker, self._sending())

    async def total(self) -> int:
        """As Graph.total."""
        return await run_async(self._broker, self._find_total())

    async def counts(self) -> dict[str, int]:
        """As Graph.counts."""
        return await run_async(self._broker, self._counting())

    async def done(self) -> bool:
        """As Graph.done."""
        return (await self.counts())["waiting"] == 0

    async def summary(self) -> Summary:
        """As Graph.summary."""
        return await run_async(self._broker, self._summarising())

    async def shape(self, limit: int) -> list[ShapeNode]:
        """As Graph.shape."""
        return await run_async(self._broker, self._shaping(limit))

    async def states_at(self, positions: Sequence[int]) -> list[str]:
        """As Graph.states_at."""
        return await run_async(self._broker, self._looking_at(positions))

    async def nodes(self, limit: int = NODES_READ) -> pd.DataFrame:
        """As Graph.nodes."""
        pandas = require("pandas", "notebook", "DataFrames")
        rows = await run_async(self._broker, self._listing(limit))
        found: pd.DataFrame = frame_of(pandas, rows)
        return found

    async def wait(self, timeout: float | None = None) -> Any:
        """As Graph.wait; a wait that is cancelled leaves the graph alone."""
        ends = self._ends()
        try:
            await run_async(self._broker, self._waiting(wait_seconds(timeout), ends))
            return self
        finally:
            if ends.async_connection is not None:
                await ends.async_connection.close()

    async def cancel(self, *, running: Wish = None) -> int:
        """As Graph.cancel."""
        return await run_async(self._broker, self._cancelling(running))

    async def resume(self) -> int:
        """As Graph.resume."""
        states, ended = await run_async(self._broker, self._ended_badly())
        if ended and self._plan is None:
            return await run_async(self._broker, self._resuming_unplanned(states, ended))
        if ended:
            await run_async(self._broker, self._sending())
        return len(ended)

    async def delete(self) -> None:
        """As Graph.delete."""
        await run_async(self._broker, self._deleting())
