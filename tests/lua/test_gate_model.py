"""The gate against a model: whatever is done in whatever order, its invariants hold.

A state machine looks for the shortest history that breaks one; walks by seeds go farther. What is
asked after each step stands in `gate_checks`, what a step may change in `gate_model`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from support.gate_model import (
    CONFLICTS,
    GROUPS,
    LIMIT_KEYS,
    ORDER_KEYS,
    UNIQUE_KEYS,
)
from support.gate_steps import GateModel
from support.gate_walk import GateWalk
from support.gate_world import FAR, Gate, GateWorld
from support.mutants import bounded
from support.servers import Server

FLAVOURS = ("valkey", "redis62")
some = st.integers(0, 7)
lanes = st.sampled_from([1, 1, 0, 2])
flags = st.booleans()
batches = st.sampled_from([0, 0, True, 2, 3])
delays = st.sampled_from([0, 60_000])
gates = st.builds(
    Gate,
    limits=st.dictionaries(st.sampled_from(LIMIT_KEYS), st.integers(1, 2), max_size=2),
    order=st.sampled_from(["", "", *ORDER_KEYS]),
    group=st.sampled_from(["", "", *GROUPS]),
    weight=st.sampled_from([1, 3]),
    priority=st.sampled_from([0, 0, -10, 10]),
    unique=st.sampled_from(["", "", *UNIQUE_KEYS]),
    scope=st.sampled_from(["s", "t", "d60000"]),
    expires=st.sampled_from(["", "", "", FAR, "+1"]),
).filter(lambda gate: gate.text)
plain = st.sampled_from([Gate(), Gate(), Gate({"a": 1}), Gate(order="o1"), Gate(group="g1")])
parents = st.lists(st.tuples(some, st.sampled_from("ssef")), max_size=2)


def seeds(usual: int, whole: int) -> list[Any]:
    """Those of walks: so many always, the others where the whole is asked for."""
    later = [pytest.param(seed, marks=pytest.mark.whole) for seed in range(usual, whole)]
    return [*range(usual), *later]


class GateMachine(RuleBasedStateMachine):
    """Every step of the model, in an order that hypothesis chooses."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        with server.client() as admin:
            admin.flushall()
        self.world = GateWorld(server)
        self.model = GateModel(self.world)
        self.whole = True

    @rule(gate=gates, lane=lanes, after=parents, due=st.sampled_from(["", "", "+60000"]),
          conflict=st.sampled_from(CONFLICTS), batch=batches)  # fmt: skip
    def add(self, gate, lane, after, due, conflict, batch) -> None:  # type: ignore[no-untyped-def]
        """A new task."""
        conflict = conflict if gate.unique else ""
        self._do("add", [gate], lane=lane, parents=after, due=due, conflict=conflict, batch=batch)

    @rule(gate=gates, count=st.integers(2, 4))
    def add_several(self, gate: Gate, count: int) -> None:
        """New tasks that need the same."""
        self._do("add", [gate] * (1 if gate.unique else count))

    @rule(lane=lanes, consumer=some, count=st.integers(1, 4))
    def fetch(self, lane: int, consumer: int, count: int) -> None:
        """A worker reads."""
        self._do("fetch", lane, consumer, count)

    @rule(pick=some, failed=flags, stale=flags, spawn=st.integers(0, 2))
    def settle(self, pick: int, failed: bool, stale: bool, spawn: int) -> None:
        """A worker ends a task, or tries."""
        self._do("settle", pick, "failed" if failed else "succeeded", stale=stale, spawn=spawn)

    @rule(pick=some, children=st.lists(plain, min_size=1, max_size=3), chained=flags, stale=flags,
          after=parents, in_batch=flags, there=st.none() | some)  # fmt: skip
    def give_back(self, pick, children, chained, stale, after, in_batch, there) -> None:  # type: ignore[no-untyped-def]
        """A task returns others."""
        self._do("give_back", pick, children, chained=chained, stale=stale,
                 parents=after[:1], in_batch=in_batch, there=there)  # fmt: skip

    @rule(pick=some)
    def regate(self, pick: int) -> None:
        """A name has a rule."""
        self._do("regate", pick)

    @rule(lane=lanes, total=st.integers(1, 3))
    def open_batch(self, lane: int, total: int) -> None:
        """A batch that others may wait for."""
        self._do("open_batch", lane, total)

    @rule(limit=st.sampled_from([1, 3, 1000]))
    def recount(self, limit: int) -> None:
        """Slots are counted."""
        self._do("recount", limit)

    @rule(pick=some)
    def succeed(self, pick: int) -> None:
        """A worker ends a task well."""
        self._do("settle", pick, "succeeded")

    @rule(pick=some, state=st.sampled_from(["retried", "snoozed"]), delay=delays, stale=flags)
    def retry(self, pick: int, state: str, delay: int, stale: bool) -> None:
        """An attempt failed, or a task sleeps."""
        self._do("retry", pick, state, delay, stale=stale)

    @rule(pick=some, grace=delays)
    def park(self, pick: int, grace: int) -> None:
        """A worker does not know a name."""
        self._do("park", pick, grace)

    @rule(pick=some)
    def release(self, pick: int) -> None:
        """Work goes back."""
        self._do("release", pick)

    @rule(lane=lanes, consumer=some, started=flags, limit=st.sampled_from([1, 2, 200]))
    def die(self, lane: int, consumer: int, started: bool, limit: int) -> None:
        """A worker dies."""
        self._do("die", lane, consumer, started=started, limit=limit)

    @rule(picks=st.lists(some, min_size=1, max_size=3), wish=st.sampled_from(["", "ask", "force"]))
    def cancel(self, picks: list[int], wish: str) -> None:
        """Tasks are cancelled."""
        self._do("cancel", picks, wish)

    @rule(pick=some)
    def replay(self, pick: int) -> None:
        """A dead letter runs again."""
        self._do("replay", pick)

    @rule(picks=st.lists(some, min_size=1, max_size=4), gated_again=flags, keep_edges=flags)
    def resubmit(self, picks: list[int], gated_again: bool, keep_edges: bool) -> None:
        """Ended tasks are submitted again, as a graph, too."""
        self._do("resubmit", picks, gated_again=gated_again, keep_edges=keep_edges)

    @rule(time_passes=flags)
    def promote(self, time_passes: bool) -> None:
        """Schedulers do their work."""
        self._do("promote", time_passes=time_passes)

    @rule(key=st.integers(0, 7), rule=st.integers(0, 9), lane=lanes)
    def limit(self, key: int, rule: int, lane: int) -> None:
        """A rule changes."""
        self._do("set_limit", key, rule, lane)

    @rule(key=st.integers(0, 9), paused=flags)
    def pause(self, key: int, paused: bool) -> None:
        """A key is paused or resumed."""
        self._do("pause", key, paused=paused)

    @rule(key=some)
    def penalize(self, key: int) -> None:
        """A key is punished."""
        self._do("penalize", key)

    def _do(self, step: str, *args: object, **options: object) -> None:
        self.whole = False
        getattr(self.model, step)(*args, **options)
        self.whole = True

    def teardown(self) -> None:
        """All ends, and nothing of the gate is left; unless a step has failed already."""
        try:
            if self.whole:
                self.model.drain()
        finally:
            self.world.close()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_history_breaks_the_gate(servers_by_flavour, flavour: str) -> None:  # type: ignore[no-untyped-def]
    """Thousands of steps that hypothesis chooses, the same in every run."""
    server = servers_by_flavour(flavour)
    server.flush()
    run_state_machine_as_test(
        lambda: GateMachine(server),
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("seed", seeds(3, 8))
def test_what_follows_is_the_same_by_timers(every_server: Server, seed: int) -> None:
    """A walk in which three steps follow from a call, and timers do all others."""
    world = GateWorld(every_server, mutants=bounded(3))
    walk = GateWalk(world, seed)
    walk.run(120)
    assert len(walk.model.tasks) > 10
    world.close()


@pytest.mark.parametrize("seed", seeds(4, 12))
def test_random_walks_conserve_every_gated_task(every_server: Server, seed: int) -> None:
    """A walk of 120 steps over three lanes; at its end everything ends, and nothing is left."""
    world = GateWorld(every_server)
    walk = GateWalk(world, seed)
    walk.run(120)
    assert len(walk.model.tasks) > 10
    world.close()


def test_the_walks_do_all_there_is(server: Server) -> None:
    """Over a few seeds a task waits for each reason, ends in each way, and meets each answer."""
    happened: set[str] = set()
    for seed in range(24):
        server.flush()
        world = GateWorld(server)
        walk = GateWalk(world, seed)
        walk.run(120)
        happened |= walk.model.happened
        world.close()
    assert {
        *(f"waits for {reason}" for reason in ("parents", "limit", "rate", "order", "paused")),
        *("succeeded", "failed", "cancelled", "expired", "again by hand"),
        *("added", "joined", "replaced", "pushed", "again", "dropped", "regated", "returned"),
        *("a graph again", "a batch succeeded", "a batch failed"),
        *("ends as what it returned, succeeded", "ends as what it returned, failed"),
    } <= happened
