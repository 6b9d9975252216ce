"""The plan of a graph: its tasks before they are sent, and how all, or what is not done, is sent.

Used by graphs. Everything was checked and encoded when it was added: sending only sends, in
requests of a bounded size, of which several are under way at once. A plan that is sent again, after
a lost answer or a killed program, doubles nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..protocol.commands import SETTLED, Command, Commands
from ..protocol.keys import new_task_id
from ..protocol.plain_commands import MAX_BYTES, MAX_TASKS
from .gated import refusal
from .sansio import Many, Operation
from .shape import Shape

OPEN_TTL_MS = 30 * 86_400_000
"""A graph that does not end is forgotten after 30 days; a finished one after a week."""
_SHAPE_TTL_S = OPEN_TTL_MS // 1000 + 8 * 86_400
MOST_EDGES = 5_000
"""About how many edges one request carries."""
AHEAD = 4
"""Requests that are sent before the shape is packed: meanwhile workers run what they added."""
_DIGEST = 16
_UNKNOWN = bytes(_DIGEST)


@dataclass(slots=True)  # not frozen: to make one would take three times as long
class PlannedTask:
    """One task that is not sent yet: its fields, what it waits for, and what names it."""

    fields: tuple[str, str, bytes, bytes, str]
    conditions: str
    digest: bytes
    edges: int


class GraphPlan:
    """The tasks of a graph, in an order in which each comes after those it runs after."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shape = Shape()
        self.tasks: list[PlannedTask] = []
        self._called: dict[bytes, bytes] = {}  # digests of what tasks are called

    def add(
        self,
        fields: tuple[str, str, bytes, bytes, str],
        conditions: Sequence[str],
        called: str,
        digest: bytes,
        parents: Sequence[int],
    ) -> None:
        """Append a task that runs after those at these positions, and when its conditions are
        met."""
        self.shape.add(called, parents)
        text = "\n".join(conditions)
        self.tasks.append(PlannedTask(fields, text, digest, len(conditions)))

    def digest(self, called: bytes, given: bytes, parents: Sequence[int]) -> bytes:
        """Return what names a task: what it is called, what it is given, and by whom."""
        begin = self._called.get(called)
        if begin is None:
            begin = self._called[called] = hashlib.blake2b(called, digest_size=8).digest()
        tasks = self.tasks
        whole = b"".join([given, *[tasks[parent].digest for parent in parents]])
        return begin + hashlib.blake2b(whole, digest_size=8).digest()

    def sending(
        self, commands: Commands, states_of: Callable[[range], Operation[list[str]]]
    ) -> Operation[int]:
        """Send all of it, or what an earlier graph of this name has not done; return how many
        results of that count. ``states_of`` tells how tasks stand.

        Raises ConfigurationError where that one has another size, or is at work on other tasks.
        """
        size = len(self.tasks)
        if not size:
            raise ConfigurationError(f"graph {self.name!r} has no tasks")
        created, total = yield commands.open_batch(self.name, self.name, size, OPEN_TTL_MS)
        if total != size:
            raise ConfigurationError(
                f"graph {self.name!r} was sent with {total:,} tasks and has {size:,} now: "
                "choose another name, or delete it: graph.delete()"
            )
        earlier = None
        if not created:
            states = yield from states_of(range(size))
            earlier = yield from self._earlier(commands, states)
        # Before any task: what another program that makes this graph compares.
        digests = b"".join(task.digest for task in self.tasks)
        yield commands.name_calls(self.name, digests, _SHAPE_TTL_S)

        def check(reply: Any) -> None:
            for answered in Commands.read_gated(reply) if type(reply) is list else ():
                if answered.outcome == "refused":
                    raise refusal(commands.keys, answered)

        requests = self._requests(commands, earlier)
        first = itertools.islice(requests, AHEAD)
        yield Many(itertools.chain(first, self._kept_shape(commands), requests), check)
        return 0 if earlier is None else earlier.reused

    def _earlier(self, commands: Commands, states: list[str]) -> Operation[Earlier]:
        """Return how an earlier graph stands beside this one."""
        stored = (yield commands.calls_of(self.name)) or b""
        digests = [task.digest for task in self.tasks]
        then = [stored[_DIGEST * i : _DIGEST * (i + 1)] for i in range(len(digests))]
        others = [i for i, digest in enumerate(digests) if then[i] != digest]
        at_work = sum(states[i] not in ("", *SETTLED) for i in others)
        if at_work:
            raise ConfigurationError(
                f"graph {self.name!r} is still at work on other tasks ({at_work:,} of "
                f"{len(digests):,}): choose another name, wait for it (graph.wait()), or end it "
                "(graph.cancel())"
            )
        if others:
            # Unknown from here on: should we be cut off, nothing old is taken for an answer.
            for i in others:
                digests[i] = _UNKNOWN
            yield commands.name_calls(self.name, b"".join(digests), _SHAPE_TTL_S)
        outdated = {i for i in others if states[i] == "succeeded"}
        return Earlier(states, outdated, frozenset(others))

    def _kept_shape(self, commands: Commands) -> Iterator[Command]:
        for fields in self.shape.fields():
            yield commands.store_shape(self.name, fields)
        yield commands.expire_shape(self.name, _SHAPE_TTL_S)

    def _requests(self, commands: Commands, earlier: Earlier | None) -> Iterator[Command]:
        for start, end in itertools.pairwise([0, *self._ends()]):
            part = self.tasks[start:end]
            if earlier is not None:
                yield commands.resubmit_gated(new_task_id(), earlier.rows(start, part))
            elif any(b'"gate"' in task.fields[3] for task in part):
                rows = ((*task.fields, task.conditions) for task in part)
                yield commands.enqueue_gated([*itertools.chain(*rows)])
            else:
                yield commands.enqueue([*itertools.chain(*(task.fields for task in part))])

    def _ends(self) -> Iterator[int]:
        """Yield where each request ends."""
        tasks = edges = size = 0
        for position, task in enumerate(self.tasks, 1):
            tasks += 1
            edges += task.edges
            size += len(task.fields[2])
            if tasks >= MAX_TASKS or edges >= MOST_EDGES or size >= MAX_BYTES:
                yield position
                tasks = edges = size = 0
        if tasks:
            yield len(self.tasks)


@dataclass(frozen=True, slots=True)
class Earlier:
    """How the tasks of an earlier graph of the same name stand, by position; the results of those
    that are ``outdated`` answer other tasks, and ``others`` were other tasks, whose steps are not
    those of now."""

    states: list[str]
    outdated: set[int]
    others: frozenset[int] = frozenset()

    @property
    def reused(self) -> int:
        """How many results count."""
        return self.states.count("succeeded") - len(self.outdated)

    def rows(self, start: int, tasks: Sequence[PlannedTask]) -> Iterator[tuple[Any, ...]]:
        """Yield what ``resubmit_gated`` takes of tasks, the first of which stands at ``start``."""
        for i, task in enumerate(tasks, start):
            outdated = "1" if i in self.outdated else "0" if i in self.others else ""
            yield (*task.fields, self.states[i], outdated, task.conditions)
