"""Events: those of each task come whole and in order, from any place on, and no worker pays."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from support.script_world import World, attempt_ended, outcome
from support.servers import Server

from redistq import (
    ConfigurationError,
    TaskCancelled,
    TaskContext,
    TaskMonitor,
    TaskProducer,
    TaskWorker,
    chain,
    sig,
)
from redistq.handlers import Registry
from redistq.monitor import events as module
from redistq.monitor.events import EventReader, TaskEvent

NEXT = {
    "": {"added"},
    "added": {"started", "ended"},
    "ready": {"started", "ended", "ready"},
    "started": {"retried", "snoozed", "recovered", "ended", "ready"},
    "retried": {"ready", "ended"},
    "snoozed": {"ready", "ended"},
    "recovered": {"ready", "ended"},
    "ended": {"added"},
}
"""What may come after what, for one task."""


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    """A queue with fake consumers."""
    world = World(server)
    yield world
    world.close()


class Listener:
    """A reader, and what it was told: by task, in order."""

    def __init__(self, world: World, since: str | None = "0") -> None:
        self.world = world
        self.reader = EventReader(world.commands, since)
        self.events: list[TaskEvent] = []
        self._carry(self.reader.preparing())

    def _carry(self, steps: Any) -> Any:
        answer = None
        try:
            while True:
                answer = self.world.call(steps.send(answer))
        except StopIteration as end:
            return end.value

    def look(self, once: bool = False) -> list[TaskEvent]:
        """One look, or as many as there is more."""
        found = self._carry(self.reader.look())
        while self.reader.is_behind and not once:
            found += self._carry(self.reader.look())
        self.events += found
        return found

    @property
    def told(self) -> dict[str, list[str]]:
        """The types of each task's events."""
        return types_of(self.events)


def types_of(events: list[TaskEvent]) -> dict[str, list[str]]:
    """The types of each task's events, in order."""
    told: dict[str, list[str]] = defaultdict(list)
    for event in events:
        told[event.id].append(event.type)
    return told


class Walk:
    """Whatever may happen to tasks, at random; and what must be told of it."""

    def __init__(self, world: World, seed: int, returns: bool = True) -> None:
        self.returns = returns
        """Whether work goes back unstarted, which leaves no trace but a new entry."""
        self.world = world
        self.random = random.Random(seed)
        self.held: dict[str, dict[str, str]] = {}
        self.ids: list[str] = []
        self.delayed: set[str] = set()
        self.added: dict[str, int] = defaultdict(int)
        self.ends: dict[str, list[str]] = defaultdict(list)

    def step(self) -> None:
        """One thing happens."""
        steps = [self.add, self.add, self.fetch, self.fetch, self.fetch, self.end, self.end]
        steps += [self.end, self.again, self.again, self.due, self.cancel, self.replay]
        steps += [self.release, self.die] if self.returns else []
        self.random.choice(steps)()

    def add(self) -> None:
        for _ in range(self.random.randint(1, 3) if self.returns else 1):
            id = f"t{len(self.ids)}"
            self.ids.append(id)
            self.added[id] += 1
            later = self.random.random() < 0.2
            self.world.add(id, due="+60000" if later else "")
            if later:
                self.delayed.add(id)

    def fetch(self) -> None:
        self.held.update(self.world.fetch("w", self.random.randint(1, 4)))

    def take(self) -> tuple[str, dict[str, str]] | None:
        if not self.held:
            return None
        entry = self.random.choice(list(self.held))
        return entry, self.held.pop(entry)

    def end(self) -> None:
        if (taken := self.take()) is None:
            return
        entry, task = taken
        state = self.random.choice(["succeeded", "failed"])
        ttl = self.random.choice(["0", "600000"])
        self.ends[task["id"]].append("ended")
        body = "{}" if state == "failed" else "null"
        row = outcome(entry, task["id"], state, attempt=task["attempt"], ttl=ttl, body=body)
        assert self.world.settle("w", row) == []

    def again(self) -> None:
        if (taken := self.take()) is None:
            return
        entry, task = taken
        state = self.random.choice(["retried", "snoozed"])
        delay = self.random.choice([0, 60_000]) if state == "retried" else 60_000
        self.ends[task["id"]].append(state)
        row = attempt_ended(
            entry, task["id"], state, attempt=task["attempt"], delay_ms=delay, error="{}"
        )
        assert self.world.retry("w", row) == []

    def release(self) -> None:
        if (taken := self.take()) is not None:
            self.world.call(self.world.commands.release("w", [taken[0].encode()]))

    def die(self) -> None:
        if (taken := self.take()) is None or self.random.random() < 0.5:
            if taken is not None:
                self.held[taken[0]] = taken[1]
            return
        self.world.register("w")
        self.world.register("alive")
        self.ends[taken[1]["id"]].append("recovered")
        self.world.recover(consumer="w", started=[taken[0]], max_recoveries=99)
        self.held.clear()

    def due(self) -> None:
        self.world.make_due()
        if self.returns:
            self.world.promote()
            return
        while self.world.call(self.world.commands.promote(1))[0]:
            time.sleep(0.002)

    def cancel(self) -> None:
        if self.ids:
            id = self.random.choice(self.ids)
            if self.world.state(id) != "cancelled" and self.world.cancel(id) == ["cancelled"]:
                self.ends[id].append("ended")

    def replay(self) -> None:
        if dead := self.world.dead():
            id = self.random.choice(dead)
            if self.world.call(self.world.commands.replay([id]))[0]:
                self.added[id] += 1

    def check(self, told: dict[str, list[str]]) -> None:
        """Whole and in order."""
        for id in self.ids:
            kinds = told.get(id, [])
            ends = [kind for kind in kinds if kind not in ("added", "ready", "started")]
            assert ends == self.ends[id], (id, kinds)
            if kinds:
                assert kinds.count("added") == self.added[id], (id, kinds)
            else:
                assert not self.ends[id]
            for before, after in zip(["", *kinds], kinds, strict=False):
                assert after in NEXT[before] | ({"ready"} if before else set()), (id, kinds)
                if after not in ("added", "ready", "started", "ended"):
                    assert before == "started", (id, kinds)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("often", [1, 5, 60])
def test_whatever_happens_events_are_whole_and_in_order(
    world: World, seed: int, often: int
) -> None:
    """However seldom it is looked: what came and went in between is told all the same."""
    walk, listener = Walk(world, seed), Listener(world)
    for step in range(300):
        walk.step()
        if step % often == 0:
            listener.look()
    for _ in range(3):
        walk.due()
        listener.look()
    walk.check(listener.told)


@pytest.mark.parametrize("seed", range(6))
def test_a_reader_goes_on_after_any_event(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told up to a cursor, and what another reader is told after it, is the whole: though
    it has all come and gone meanwhile. Pages are small, so that many end in between."""
    monkeypatch.setattr(module, "PAGE", 7)
    walk, listener = Walk(world, seed, returns=False), Listener(world)
    for step in range(150):
        walk.step()
        time.sleep(0.002)  # Of entries of one ms a reader that goes on cannot always tell which
        if step % 9 == 0:
            listener.look(once=True)
    walk.due()
    listener.look()
    walk.check(listener.told)
    choose = random.Random(seed)
    for at in choose.sample(range(len(listener.events)), 25):
        later = Listener(world, listener.events[at].cursor)
        later.look()
        walk.check(types_of(listener.events[: at + 1] + later.events))


def test_from_now_on(world: World) -> None:
    """Without a cursor nothing is told of what was before."""
    world.add("old", "older")
    entry, _ = world.one("w")
    world.settle("w", outcome(entry, "old"))
    listener = Listener(world, None)
    assert listener.look() == []
    entry, id = world.one("w")
    world.add("new")
    assert [(e.type, e.id) for e in listener.look()] == [("added", "new"), ("started", "older")]
    world.settle("w", outcome(entry, id))
    (end,) = listener.look()
    assert (end.type, end.state, end.final, end.run_ms) == ("ended", "succeeded", True, 1.0)
    assert listener.look() == []


def test_what_the_history_has_dropped_is_a_gap(server: Server) -> None:
    """It is told once, and then what is kept."""
    world = World(server, history_max=10)
    listener = Listener(world)
    world.add("first")
    listener.look()
    for start in range(0, 400, 100):
        ids = [f"x{start + n}" for n in range(100)]
        world.add(*ids)
        for entry, fields in world.fetch("w", 200):
            world.settle("w", outcome(entry, fields["id"]))
        if start == 0:
            listener.look()
    told = listener.look()
    assert [event.type for event in told].count("gap") == 1
    assert told[0].type == "gap"
    assert told[-1].type == "ended"
    again = Listener(world, told[0].cursor).look()
    assert "gap" not in {event.type for event in again}
    assert [e.id for e in again if e.final] == [e.id for e in told if e.final]
    world.close()


def test_progress_is_told_when_it_has_changed(world: World) -> None:
    """Of what runs, also of what ran before the reader began; as the record says it."""
    world.add("a", "b")
    (first, _), _ = world.fetch("w", 2)
    listener = Listener(world, None)
    assert listener.look() == []
    world.db.hset(world.keys.task("a"), "progress", "1 3 10 1000 2000 half way")
    (event,) = listener.look()
    assert (event.type, event.id, event.done, event.total) == ("progress", "a", 3.0, 10.0)
    assert (event.text, event.attempt, event.at_ms) == ("half way", 1, 2000)
    assert listener.look() == []
    world.db.hset(world.keys.task("a"), "progress", "1 5 - 1000 3000 ")
    (event,) = listener.look()
    assert (event.done, event.total, event.text) == (5.0, None, "")
    world.db.hset(world.keys.task("b"), "progress", "no progress")
    assert listener.look() == []
    world.settle("w", outcome(first, "a"))
    assert [event.type for event in listener.look()] == ["ended"]


def test_cursors_that_are_none_are_refused(url: str) -> None:
    """At the call."""
    with TaskMonitor(url=url) as monitor:
        for wrong in ("", "x", "1-1", "1-1/2-2", 5):
            with pytest.raises(ConfigurationError, match="cursor"):
                monitor.events(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="interval"):
            monitor.events(interval=0)


def test_it_only_reads(world: World) -> None:
    """Nothing on the server is other than before, and no command writes."""
    walk = Walk(world, 1)
    for _ in range(60):
        walk.step()
    before = world.fingerprint()
    Listener(world).look()
    assert world.fingerprint() == before


def test_programs_follow_a_queue(url: str) -> None:
    """Threads and coroutines alike, while workers work; the end is the caller's."""
    registry = Registry()

    @registry.task(name="work", retries=1, backoff=0)
    def work(n: int) -> int:
        if n == 1:
            raise ValueError("odd")
        return n

    with (
        TaskProducer(url=url) as producer,
        TaskMonitor(url=url) as monitor,
        TaskWorker(url=url, task_handlers=registry, processes=0),
    ):
        first: list[TaskEvent] = []
        good = producer.add_task("work", 0)
        producer.get_result(good, 10)
        since = [*monitor.events(follow=False)][-1].cursor
        bad = producer.add_task("work", 1)
        for event in monitor.events(since, interval=0.01):
            first.append(event)
            if event.final:
                break
        kinds = ["added", "started", "retried", "ready", "started", "ended"]
        assert [event.type for event in first] == kinds
        assert {event.id for event in first} == {bad}
        assert (first[-1].state, first[-1].note) == ("failed", "ValueError")
        assert first[2].note == "ValueError"
        assert [event.at_ms for event in first] == sorted(event.at_ms for event in first)

        async def listen() -> list[TaskEvent]:
            found = []
            async for event in monitor.aevents(since, interval=0.01):
                found.append(event)
                if event.final:
                    break
            return found

        told = asyncio.run(asyncio.wait_for(listen(), 10))
        assert [event.type for event in told] == kinds
        row = json.loads(told[-1].json())
        assert (row["type"], row["id"], row["state"]) == ("ended", bad, "failed")


def test_what_handlers_say_of_their_progress_is_told(url: str) -> None:
    """From ``context.progress`` to the program that listens."""
    registry, go_on = Registry(), threading.Event()

    @registry.task(name="long")
    def long(payload: Any, context: TaskContext) -> None:
        context.progress(3, 10, "the third")
        go_on.wait(20)

    with (
        TaskProducer(url=url) as producer,
        TaskMonitor(url=url) as monitor,
        TaskWorker(url=url, task_handlers=registry),
    ):
        task_id = producer.add_task("long")
        told = []
        for event in monitor.events("0", interval=0.01):
            told.append(event)
            if event.type == "progress":
                assert (event.done, event.total, event.text) == (3, 10, "the third")
                go_on.set()
            if event.final:
                break
        assert [event.type for event in told] == ["added", "started", "progress", "ended"]
        assert {event.id for event in told} == {task_id}


@pytest.mark.parametrize("looks", [0.005, 0.0], ids=["often", "afterwards"])
def test_a_task_that_others_take_the_place_of_ends_once(url: str, looks: float) -> None:
    """It continues, and ends as they do; whether that was seen as it came or not. A task that
    waits for others is ready once, and one that never may run is told of, too."""
    registry = Registry()

    @registry.task(name="returns")
    def returns(payload: Any) -> Any:
        return chain(sig("echo", 1), "echo")

    @registry.task(name="echo")
    def echo(payload: Any) -> Any:
        return payload

    @registry.task(name="fails", retries=0)
    def fails(payload: Any) -> Any:
        raise ValueError("no")

    with TaskProducer(url=url) as producer, TaskMonitor(url=url) as monitor:
        first = producer.add_task("returns")
        second = producer.add_task("echo", 2, after=first)
        bad = producer.add_task("fails")
        never = producer.add_task("echo", 3, after=bad)
        told: list[TaskEvent] = []
        stop = threading.Event()

        def listen() -> None:
            for event in monitor.events("0", interval=looks):
                told.append(event)
                if stop.is_set():
                    return

        listener = threading.Thread(target=listen)
        if looks:
            listener.start()
        with TaskWorker(url=url, task_handlers=registry):
            assert producer.get_result(second, 20) == 2
            with pytest.raises(TaskCancelled):
                producer.get_result(never, 20)
        if looks:
            stop.set()
            producer.add_task("the last")
            listener.join(20)
        else:
            told = list(monitor.events(follow=False))
    kinds = types_of(told)
    assert kinds[first] == ["added", "started", "continued", "ended"]
    assert kinds[second] == ["added", "started", "ended"]
    assert kinds[bad] == ["added", "started", "ended"]
    assert kinds[never] == ["added", "ended"]
