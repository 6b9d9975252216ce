"""Random walks over the gate: the steps of `gate_steps` in an order that a seed gives."""

from __future__ import annotations

import random
from collections.abc import Callable

from support.gate_model import (
    CONFLICTS,
    GROUPS,
    LIMIT_KEYS,
    ORDER_KEYS,
    UNIQUE_KEYS,
)
from support.gate_steps import GateModel
from support.gate_world import FAR, Gate, GateWorld


class GateWalk:
    """The steps of the model in an order that a seed gives."""

    def __init__(self, world: GateWorld, seed: int) -> None:
        self.model, self.random = GateModel(world), random.Random(seed)
        self._moves: list[Callable[[], None]] = [
            *[self._add] * 6,
            *[self._fetch] * 5,
            *[self._settle] * 6,
            *[self._retry] * 2,
            *[self._limit] * 2,
            *[self._promote] * 2,
            *[self._return] * 3,
            *(self._pause, self._cancel, self._replay, self._other, self._die),
            *(self._batch, self._regate, self._again, self._recount),
        ]

    def run(self, steps: int) -> None:
        """Walk; raises Broken at the first thing that does not hold."""
        for _ in range(steps):
            self.random.choice(self._moves)()
        self.model.drain()

    def _n(self) -> int:
        return self.random.randrange(1000)

    def _maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def _gate(self) -> Gate:
        chance = self.random
        keys = chance.sample(LIMIT_KEYS, chance.choice([0, 1, 1, 2]))
        return Gate(
            limits={key: chance.choice([1, 1, 1, 2]) for key in keys},
            order=chance.choice(ORDER_KEYS) if self._maybe(0.3) else "",
            group=chance.choice(GROUPS) if self._maybe(0.25) else "",
            weight=chance.choice([1, 1, 3]),
            priority=chance.choice([-10, 5, 10]) if self._maybe(0.15) else 0,
            unique=chance.choice(UNIQUE_KEYS) if self._maybe(0.4) else "",
            scope=chance.choice(["s", "s", "s", "t", "d60000"]),
            expires=chance.choice([FAR, "+1"]) if self._maybe(0.1) else "",
        )

    def _add(self) -> None:
        chance = self.random
        gate = self._gate()
        parents = [(self._n(), chance.choice("ssef")) for _ in range(chance.choice([0, 0, 1, 2]))]
        if not parents and not gate.text:
            gate = Gate({"a": 1})
        self.model.add(
            [gate] * (1 if gate.unique else chance.choice([1, 1, 2])),
            lane=chance.choice([0, 1, 1, 2]),
            parents=parents,
            due=chance.choice(["", "+60000"] if gate.unique else ["", "", "", "+60000"]),
            conflict=chance.choice(CONFLICTS) if gate.unique else "",
            batch=chance.choice([0, 0, True, 2 + self._n(), 2 + self._n()]),
        )

    def _fetch(self) -> None:
        self.model.fetch(self._n(), self._n(), self.random.randint(1, 3))

    def _settle(self) -> None:
        state = self.random.choice(["succeeded", "succeeded", "failed"])
        spawn = self.random.choice([0, 0, 0, 1, 2])
        self.model.settle(self._n(), state, stale=self._maybe(0.2), spawn=spawn)

    def _retry(self) -> None:
        state = self.random.choice(["retried", "retried", "snoozed"])
        delay = self.random.choice([0, 60_000])
        self.model.retry(self._n(), state, delay, stale=self._maybe(0.2))

    def _limit(self) -> None:
        self.model.set_limit(self._n(), self._n(), self._n())

    def _pause(self) -> None:
        if self._maybe(0.2):
            self.model.penalize(self._n())
        else:
            self.model.pause(self._n(), paused=self._maybe(0.5))

    def _promote(self) -> None:
        self.model.promote(time_passes=self._maybe(0.7))

    def _cancel(self) -> None:
        picks = [self._n() for _ in range(self.random.randint(1, 3))]
        self.model.cancel(picks, self.random.choice(["", "", "ask", "force"]))

    def _replay(self) -> None:
        self.model.replay(self._n())

    def _again(self) -> None:
        picks = [self._n() for _ in range(self.random.randint(1, 4))]
        self.model.resubmit(picks, gated_again=self._maybe(0.8), keep_edges=self._maybe(0.5))

    def _batch(self) -> None:
        self.model.open_batch(self._n(), self.random.randint(1, 4))

    def _regate(self) -> None:
        self.model.regate(self._n())

    def _recount(self) -> None:
        self.model.recount(self.random.choice([1, 3, 1000]))

    def _return(self) -> None:
        chance = self.random
        gates = [self._gate() if self._maybe(0.4) else Gate() for _ in range(chance.randint(1, 3))]
        gates = [Gate(g.limits, g.order, g.group, g.weight, g.priority) for g in gates]
        self.model.give_back(
            self._n(),
            gates,
            chained=self._maybe(0.5),
            parents=[(self._n(), chance.choice("sse"))] if self._maybe(0.3) else [],
            stale=self._maybe(0.2),
            in_batch=self._maybe(0.3),
            there=self._n() if self._maybe(0.15) else None,
        )

    def _other(self) -> None:
        if self._maybe(0.5):
            self.model.park(self._n(), self.random.choice([60_000, 0]))
        else:
            self.model.release(self._n())

    def _die(self) -> None:
        self.model.die(self._n(), self._n(), started=self._maybe(0.5), limit=self._n() % 3 + 1)
