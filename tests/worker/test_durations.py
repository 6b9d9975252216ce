"""How much work a worker process takes ahead, by what tasks of each name take there."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.workers import until

from redistq import Registry, TaskProducer
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.handlers import Handler
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.worker.executor import Executor
from redistq.worker.fetcher import Fetcher
from redistq.worker.prefetch import (
    LOOK_S,
    NAMES,
    PREFETCH_MIXED,
    PREFETCH_TASKS,
    STUCK_S,
    UNKNOWN,
    UNSEEN_NS,
    Durations,
    Forecast,
    Prefetch,
    fitting,
    total_ns,
)
from redistq.worker.processor import Processor
from redistq.worker.queues import Delivery, WorkerQueue
from redistq.worker.scoreboard import Scoreboard
from redistq.worker.settings import WorkerSettings

MS = 1_000_000
QUEUE = WorkerQueue("tasks", Commands(QueueKeys()), None, 0)  # type: ignore[arg-type]


def ran(ms: float, times: int = 100, threaded: bool = True) -> Durations:
    """A name whose tasks took so long."""
    found = Durations(threaded)
    found.busy_ns, found.done = int(ms * MS * times), times
    return found


# -- what is known ---------------------------------------------------------------------------------


def test_a_name_that_never_ran_counts_as_long() -> None:
    """Until its first task has ended; then that one is all there is to go by."""
    times = Durations()
    assert times.mean_ns() == UNSEEN_NS
    times.busy_ns, times.done = 3 * MS, 1
    assert times.mean_ns() == 3 * MS


def test_the_mean_follows_what_tasks_take_these_days() -> None:
    """Sixteen tasks move it at once, up faster than down; fewer do when they have taken a while."""
    times = ran(1)
    assert times.mean_ns() == MS
    times.busy_ns, times.done = times.busy_ns + 15 * 9 * MS, times.done + 15
    times._seen_at = time.monotonic() + 60
    assert times.mean_ns() == MS
    times.busy_ns, times.done = times.busy_ns + 9 * MS, times.done + 1
    assert times.mean_ns() == pytest.approx(0.8 * 9 * MS + 0.2 * MS)
    times.done += 16
    assert times.mean_ns() == pytest.approx((0.8 * 9 * MS + 0.2 * MS) / 2)
    times.busy_ns, times.done, times._seen_at = times.busy_ns + 50 * MS, times.done + 1, 0.0
    assert times.mean_ns() > 40 * MS


def test_lost_additions_of_runners_do_no_harm() -> None:
    """Counts that step back, as when two threads add at once, are no mean of their own."""
    times = ran(2)
    assert times.mean_ns() == 2 * MS
    times.busy_ns, times.done = times.busy_ns - 100 * MS, times.done - 20
    assert times.mean_ns() == 2 * MS
    times.done += 60
    assert 0 <= times.mean_ns() <= 2 * MS


def test_many_threads_and_a_reader_need_no_lock() -> None:
    """Whoever adds or asks when, nothing breaks, and the mean is a time."""
    times, seen, interval = Durations(), [], sys.getswitchinterval()

    def add() -> None:
        for _ in range(20_000):
            times.busy_ns += 5
            times.done += 1

    runners = [threading.Thread(target=add) for _ in range(4)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in runners:
            thread.start()
        while any(thread.is_alive() for thread in runners):
            seen.append(times.mean_ns())
    finally:
        sys.setswitchinterval(interval)
    for thread in runners:
        thread.join()
    assert all(mean >= 0 for mean in seen)
    assert times.done > 0


def test_what_fits_is_counted_from_the_first() -> None:
    """Names weigh what they take; coroutines and unknown names take no thread's time."""
    short, long, coroutine = ran(1), ran(20), ran(500, threaded=False)
    tasks = [short] * 5 + [long, coroutine, long] + [UNKNOWN] * 3 + [long]
    assert total_ns(Counter(tasks)) == 65 * MS
    assert fitting(tasks, 50 * MS) == 11
    assert fitting(tasks, 5 * MS) == 5
    assert fitting([ran(60)] * 3, 50 * MS) == 0
    assert fitting(tasks, 65 * MS) == len(tasks)


def test_the_forecast_is_the_mixture_that_came_last() -> None:
    """A page of sixteen says what comes; single tasks change it little by little."""
    short, long = ran(1), ran(33)
    forecast = Forecast()
    forecast.read(Counter([UNKNOWN]))
    assert forecast.mean_ns() is None
    forecast.read(Counter([short]))
    assert forecast.mean_ns() == pytest.approx(MS)
    forecast.read(Counter([long]))
    assert forecast.mean_ns() == pytest.approx((15 * 1 + 33) * MS / 16)
    forecast.read(Counter([short, long] * 8))
    assert forecast.mean_ns() == pytest.approx(17 * MS)
    for _ in range(200):
        forecast.read(Counter([short]))
    assert forecast.mean_ns() == pytest.approx(MS, rel=0.05)
    new = Durations()
    forecast.read(Counter([new] * 20))
    assert forecast.mean_ns() == UNSEEN_NS
    new.busy_ns, new.done = 16 * MS, 16  # what is learnt counts at once
    assert forecast.mean_ns() == MS


def test_names_with_labels_are_kept_apart_up_to_a_number() -> None:
    """``handler:label`` has a mean of its own; beyond the limit it shares its handler's."""
    registry = Registry({"work": lambda payload: payload})
    registry.add_handler(Handler.of("call", lambda payload: payload, raw=True))
    execution = Executor(WorkerSettings(), registry, "me", None, {}, None)  # type: ignore[arg-type]

    def of(name: str) -> Durations:
        fields = [b"id", b"1", b"name", name.encode()]
        (times,) = execution.times([(b"1-0", fields, QUEUE)])
        return times

    assert of("call:a") is of("call:a")
    assert len({of("call"), of("call:a"), of("call:b"), of("work")}) == 4
    assert of("work:a") is of("nobody") is UNKNOWN
    assert execution.times([(b"1-0", [], QUEUE), (b"2-0", [b"x", b"y"], QUEUE)]) == [
        UNKNOWN,
        UNKNOWN,
    ]
    own = {of(f"call:{n}") for n in range(2 * NAMES)}
    assert NAMES - 5 < len(own) <= NAMES
    assert of(f"call:{2 * NAMES - 1}") is of("call")


# -- what Prefetch decides -------------------------------------------------------------------------


def seen(ms: float, threads: int = 1, **kinds: bool) -> Prefetch:
    """A Prefetch that has seen only tasks that take so long."""
    prefetch = Prefetch(threads, **kinds)
    prefetch.learn([ran(ms)])
    return prefetch


def room(prefetch: Prefetch, waiting: int = 0, idle: int = 0, started: int = 1, **loop: int) -> int:
    """How much it would read."""
    return prefetch.room(waiting=waiting, idle=idle, started=started, **loop)


def test_as_much_is_read_as_runs_in_a_moment() -> None:
    """50 ms' worth for each thread, at most 500 tasks; of long tasks one for each idle runner."""
    assert room(seen(1)) == 50
    assert room(seen(1, threads=4)) == 200
    assert room(seen(0.001)) == PREFETCH_TASKS
    assert room(seen(80), idle=3, waiting=1) == 2
    assert room(Prefetch(4), idle=4) == 4  # nothing has been seen yet


def test_many_are_read_at_a_time() -> None:
    """Nothing is read until more than half of a moment's work has been started, but for idle
    runners."""
    prefetch = seen(1)
    assert room(prefetch, waiting=26) == 0
    assert prefetch.low == 24
    assert room(prefetch, waiting=24) == 26
    longer = seen(20)  # two at a time, not one and one
    assert (room(longer, waiting=1), room(longer, waiting=0)) == (0, 2)
    assert room(prefetch, waiting=40, idle=41) == 1


def test_an_event_loop_has_room_of_its_own() -> None:
    """Beside threads it reads a few at a time, for they may turn out to be work for threads."""
    assert room(seen(1, has_sync=False, has_loop=True), loop_room=90) == 90
    assert room(seen(80, has_loop=True), loop_room=90) == PREFETCH_MIXED
    assert room(seen(80, has_loop=True), loop_room=90, waiting=10) == PREFETCH_MIXED - 10
    assert room(seen(80, has_loop=True), loop_room=3) == 3


def test_what_a_page_has_too_much_is_named_from_its_end() -> None:
    """Only when the page was all there was, and weighs more than twice what was meant."""
    prefetch = seen(0.01)
    page = [ran(20)] * 40
    assert prefetch.keep(page, drained=True, idle=0) == 2
    assert prefetch.keep(page, drained=True, idle=4) == 4
    assert prefetch.keep(page, drained=False, idle=0) == 40
    assert prefetch.keep(page[:5], drained=True, idle=0) == 5
    assert prefetch.keep([ran(200)] * 2, drained=True, idle=0) == 1
    mixed = seen(0.01, has_loop=True)
    assert mixed.keep(page[:PREFETCH_MIXED], drained=True, idle=0) == PREFETCH_MIXED
    assert mixed.keep(page, drained=True, idle=0) == 2


def test_what_is_held_is_weighed_once_in_a_while() -> None:
    """Twenty times a second; after a refusal the later, the more is held."""
    prefetch, held = seen(0.01, threads=2), [ran(100)] * 30
    assert prefetch.surplus_is_due(10.0)
    assert not prefetch.surplus_is_due(10.0 + LOOK_S / 2)
    assert prefetch.surplus_is_due(10.0 + LOOK_S)
    assert prefetch.surplus(held) == 28  # each thread keeps one
    assert prefetch.surplus(held[:2]) == 0
    prefetch.surplus_refused(held, 20.0)
    assert not prefetch.surplus_is_due(20.1)
    assert prefetch.surplus_is_due(20.0 + 3 / 16)  # 3 s of work
    prefetch.refused(30.0)
    assert not prefetch.surplus_is_due(30.0 + LOOK_S / 2)


def test_what_no_runner_starts_is_stuck() -> None:
    """For a quarter of a second; offered and still there, for twice as long, and so on."""
    prefetch = seen(0.01)
    at, waited = 10.0, STUCK_S
    assert not prefetch.is_stuck(at, waiting=3, started=1)
    for _ in range(3):
        assert not prefetch.is_stuck(at + waited - 0.01, waiting=3, started=1)
        assert prefetch.is_stuck(at + waited, waiting=3, started=1)
        prefetch.offered_stuck(at + waited, started=1)
        at, waited = at + waited, waited * 2
        assert room(prefetch, idle=0) == 0  # nothing is read ahead of busy runners
    assert not prefetch.is_stuck(at, waiting=3, started=2)  # a runner has started one
    assert room(prefetch, started=2) == PREFETCH_TASKS
    assert prefetch.is_stuck(at + STUCK_S, waiting=3, started=2)


def test_a_page_that_came_or_nothing_that_waits_is_not_stuck() -> None:
    """Time counts from what came last, and only while something waits."""
    prefetch = seen(0.01)
    assert not prefetch.is_stuck(10.0, waiting=1, started=1)
    prefetch.came(10.2)
    assert not prefetch.is_stuck(10.3, waiting=1, started=1)
    assert not prefetch.is_stuck(99.0, waiting=0, started=1)
    assert not prefetch.is_stuck(99.1, waiting=1, started=1)


# -- what is kept ----------------------------------------------------------------------------------


class Fetching:
    """A processor whose threads do not run: the test fetches, and sees what is kept."""

    def __init__(self, url: str, threads: int = 1) -> None:
        handlers = {name: lambda payload: payload for name in ("short", "long", "new")}
        self.broker, commands = Broker(Address(url)), Commands(QueueKeys())
        settings = WorkerSettings(lease=2, threads=threads)
        registry = Registry(handlers)
        self.prefetch = Prefetch(threads)
        self.processor = Processor(
            settings,
            registry,
            self.broker,
            [commands],
            "me",
            Scoreboard.create(200),
            prefetch=self.prefetch,
        )
        self.fetcher: Fetcher = self.processor.fetcher
        self.fetcher.ensure_groups()
        for name, ms in (("short", 0.01), ("long", 20)):
            (times,) = self.processor.executor.times([named(name)])
            times.busy_ns, times.done = int(ms * MS * 100), 100
        self.prefetch.learn(self.processor.executor.times([named("short")]))

    def read(self, room: int) -> list[str]:
        """Read as the fetcher does; the payloads it keeps unstarted."""
        connection = self.broker.connection(5)
        tasks = self.fetcher.reader.read(connection, room, 1)
        connection.close()
        self.fetcher.take(tasks, drained=len(tasks) < room)
        return self.kept()

    def kept(self) -> list[str]:
        """The payloads of what is unstarted."""
        return [flat[5].decode() for _, flat, _ in self.processor.runners.ready]


def named(name: str) -> Delivery:
    """An entry of a task."""
    return (b"1-0", [b"id", b"1", b"name", name.encode()], QUEUE)


@pytest.fixture
def fetching(url: str) -> Iterator[Fetching]:
    """A fetcher that has seen only short tasks lately."""
    fetching = Fetching(url)
    yield fetching
    fetching.broker.close()


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


def unread(db: redis.Redis) -> list[str]:
    """The payloads that nobody has fetched, in order."""
    group: Any = db.xinfo_groups("tasks")[0]
    entries: Any = db.xrange("tasks", f"({group['last-delivered-id']}")
    return [fields["payload"] for _, fields in entries]


@pytest.mark.parametrize(("name", "kept"), [("short", 450), ("long", 2), ("new", 1)])
def test_no_more_is_kept_than_a_moments_work(
    fetching: Fetching, producer: TaskProducer, db: redis.Redis, name: str, kept: int
) -> None:
    """What was read beyond it is there for others, all of it, in the order it had."""
    assert fetching.fetcher.room() == PREFETCH_TASKS
    producer.add_tasks([(name, n) for n in range(450)])
    numbers = [str(n) for n in range(450)]
    assert fetching.read(PREFETCH_TASKS) == numbers[:kept]
    assert unread(db) == numbers[kept:]
    assert len(fetching.fetcher.held) == producer.snapshot().pending == kept
    assert not fetching.fetcher.reader.look_again
    assert fetching.fetcher.room() <= 0


def test_short_tasks_before_long_ones_are_kept(
    fetching: Fetching, producer: TaskProducer, db: redis.Redis
) -> None:
    """It is time that counts, not the number of tasks nor the name of the last."""
    names = ["short"] * 100 + ["long"] * 20 + ["short"] * 10
    producer.add_tasks([(name, n) for n, name in enumerate(names)])
    assert fetching.read(PREFETCH_TASKS) == [str(n) for n in range(102)]
    assert len(unread(db)) == 28


@pytest.mark.parametrize("name", ["long", "new"])
def test_each_idle_runner_gets_a_task(url: str, producer: TaskProducer, name: str) -> None:
    """What idle runners start at once is no prefetch, however long it takes."""
    fetching = Fetching(url, threads=4)
    fetching.processor.runners.idle = 4
    producer.add_tasks([(name, n) for n in range(40)])
    most = {"long": 10, "new": 4}[name]
    assert fetching.read(PREFETCH_TASKS) == [str(n) for n in range(most)]
    fetching.broker.close()


def test_with_a_backlog_nothing_is_offered(
    fetching: Fetching, producer: TaskProducer, db: redis.Redis
) -> None:
    """A full page means that there is more to read: no call is made, and no more is read."""
    producer.add_tasks([("new", n) for n in range(60)])
    fetching.broker.call = lambda command: pytest.fail("a call was made")  # type: ignore[method-assign]
    assert len(fetching.read(50)) == 50
    assert fetching.fetcher.room() <= 0


def test_others_that_have_enough_to_do_are_asked_seldom(
    fetching: Fetching, producer: TaskProducer
) -> None:
    """A refusal leaves every task at its place; with nothing left to read, all but one go."""
    producer.add_tasks([("new", n) for n in range(30)])
    numbers, asked = [str(n) for n in range(30)], []
    call = fetching.broker.call

    def late(command: Any) -> Any:
        if not asked:
            producer.add_task("short", "late")  # comes between the reading and the offer
        asked.append(command)
        return call(command)

    fetching.broker.call = late  # type: ignore[method-assign]
    assert fetching.read(PREFETCH_TASKS) == numbers
    assert len(asked) == 1
    assert fetching.fetcher.room() <= 0
    until(lambda: fetching.prefetch.surplus_is_due(time.monotonic()), "the next look is due")
    fetching.prefetch.refused(time.monotonic() - LOOK_S)  # and is due still
    for _ in range(5):
        fetching.fetcher.offer_unstarted()
    assert len(asked) == 2
    assert fetching.kept() == numbers
    assert fetching.read(1)[-1] == '"late"'
    fetching.prefetch.refused(0.0)
    fetching.fetcher.offer_unstarted()  # now nothing is left to read
    assert fetching.kept() == numbers[:1]
