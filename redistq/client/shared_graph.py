"""SharedGraph: lazy calls as one thing, looked at and acted on. Made by clients.

Its tasks are cached calls, which other graphs may share: what another notebook has done, or does,
counts here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, ResultTimeout
from ..producer.graph import Graph
from ..producer.operations import Wish, wish_of
from ..producer.sansio import Operation
from ..producer.shape import Shape, ShapeNode, Summary
from ..protocol.commands import SETTLED, Commands
from ..protocol.options import CallOptions, wait_seconds
from .awaiting import countdown
from .futures import TaskFuture, exception_within
from .lazy import LazyCall, in_order, kept, send_all
from .submission import check_function

if TYPE_CHECKING:
    from .submitting import Submitting

NAME = "calls"


class SharedGraph(Graph):
    """Calls that depend on each other, each named by its code and what it is given.

    As a context manager it is written: what is submitted inside is sent when the block ends, all
    that is not done or under way already, here or in another notebook; after an error in the block
    nothing is. ``counts()``, ``nodes()`` and ``plot()`` look, ``results()`` and ``wait()`` wait,
    ``cancel()`` and ``resume()`` act. A graph with a name, ``client.graph("etl")``, is found again
    by it; this one by the same code, run again.
    """

    def __init__(self, client: Submitting, options: CallOptions) -> None:
        self._client = client
        self._given = kept(options)
        self._queue = client._client._session.queue(options.priority)
        super().__init__(client._client.broker, self._queue.commands, NAME)
        self.calls: list[LazyCall] = []
        """Its calls, each after those it depends on."""
        self._ended_with: list[LazyCall] = []
        self._shape = Shape()

    @classmethod
    def of(cls, client: Submitting, calls: Iterable[LazyCall], *, send: bool = True) -> SharedGraph:
        """Return the graph of these calls and of all that they depend on, which is sent now."""
        graph = cls(client, client._options)
        graph._ended_with = [*calls]
        if send:
            graph._send()
        else:
            graph._lay_out()
        return graph

    # -- writing ---------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> LazyCall:
        """Add a call; return it. As an argument of another it stands for its result."""
        if not self._is_open:
            raise ConfigurationError(
                "a graph takes calls while it is open: with client.graph() as graph: and then "
                "graph.submit(...) in the block"
            )
        check_function(fn, "submit")
        call = LazyCall(self._client, self._given, fn, args, kwargs)
        self._ended_with.append(call)
        return call

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> list[LazyCall]:
        """Add one call an item; return them."""
        return [self.submit(fn, *args) for args in zip(*iterables, strict=False)]

    def _begin(self) -> None:
        self._is_open = True
        self._ended_with = []

    def _lay_out(self) -> None:
        self.calls = in_order(self._ended_with, sent_too=True)
        places = {id(call): place for place, call in enumerate(self.calls)}
        self._shape = Shape()
        for call in self.calls:
            self._shape.add(call.name, [places[id(parent)] for parent in call.parents])
        self._total = len(self.calls)

    def _send(self) -> None:
        self._lay_out()
        send_all(self.calls)

    # -- looking ---------------------------------------------------------------------------------

    @property
    def futures(self) -> list[TaskFuture]:
        """The futures of its calls, in their order."""
        return [call.submit() for call in self.calls]

    def task_id(self, position: int) -> str:
        """Return the id of the task at a position; '' while it is not sent."""
        future = self.calls[position]._future
        return "" if future is None else future.task_id

    def _commands_at(self, position: int) -> Commands:
        future = self.calls[position]._future
        return self._commands if future is None else future.queue.commands

    def _known_here(self, position: int) -> str:
        """Return how a call has ended, as far as this process knows; '' where it does not. Of one
        that was cancelled from here nothing may be kept on the server."""
        future = self.calls[position]._future
        return future.state if future is not None and future.done() else ""

    def _looking_at(self, positions: Sequence[int]) -> Operation[list[str]]:
        found = {i: self._known_here(i) for i in positions}
        asked = [i for i in positions if not found[i] and self.calls[i]._future is not None]
        found |= zip(asked, (yield from super()._looking_at(asked)), strict=True)
        return [found[i] or "waiting" for i in positions]

    def _counting(self) -> Operation[dict[str, int]]:
        positions = range(len(self.calls))
        records = yield from self._records(positions)
        states = Counter(
            self._known_here(i) or (record[0] or b"").decode()
            for i, record in zip(positions, records, strict=True)
        )
        counts = {name: states[name] for name in sorted(SETTLED)}
        retried = sum(max(int(record[3] or 1), 1) - 1 for record in records)
        waiting = len(self.calls) - sum(counts.values())
        return {"total": len(self.calls), **counts, "retried": retried, "waiting": waiting}

    def _summarising(self) -> Operation[Summary]:
        yield from ()
        return self._shape.summary()

    def _shaping(self, limit: int) -> Operation[list[ShapeNode]]:
        yield from ()
        rows = self._shape.rows[:limit]
        return [ShapeNode(name, layer, tuple(parents)) for name, layer, *parents in rows]

    # -- waiting and acting ----------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> SharedGraph:
        """Wait until every call has ended; return the graph. Raises ResultTimeout after
        ``timeout`` seconds; the calls go on."""
        timeout = wait_seconds(timeout)
        left = countdown(timeout)
        for future in self.futures:
            try:
                exception_within(future, left, timeout)
            except ResultTimeout:
                if not future.done():
                    raise
            except CancelledError:
                pass
        return self

    def results(self, timeout: float | None = None) -> list[Any]:
        """Return the results of the calls that no other of the graph takes, in the order in which
        they were added; raises what the first failed one raised."""
        used = {id(parent) for call in self.calls for parent in call.parents}
        self.wait(timeout)
        return [call.compute() for call in self._ended_with if id(call) not in used]

    def cancel(self, *, running: Wish = None) -> int:
        """Cancel what no worker has yet; return how many calls that were.

        What other notebooks wait for is theirs as well, and ends for them too. With ``running``
        ("ask" or "force", see TaskProducer.cancel) calls that run are asked to end, and count.
        """
        wish = wish_of(running)
        # From the end: what runs after others is cancelled by this, not because of them.
        futures = [f for f in reversed(self.futures) if not f.done()]
        if futures:
            self._client._client._session.exchange.cancel(futures, wish)
        return sum(future.cancelled() for future in futures)

    def resume(self) -> int:
        """Send again what failed or was cancelled, in order; return how many calls that are."""
        again = sum([call.forget_failed() for call in self.calls])
        send_all(self.calls)
        return again

    def delete(self) -> None:
        """Refuse: its results may be those of other graphs; they are kept for ``cache`` seconds."""
        raise ConfigurationError(
            "the results of this graph are kept for whoever makes the same calls: they expire by "
            "themselves, after client.options(cache=seconds)"
        )
