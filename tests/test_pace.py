"""How much work a worker process takes ahead, by what tasks of each name take there."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redistq import Registry, TaskProducer
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.handlers import Handler
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.worker.attempt import Delivery
from redistq.worker.durations import (
    NAMES,
    UNKNOWN,
    UNSEEN_NS,
    Durations,
    Forecast,
    fitting,
    total_ns,
)
from redistq.worker.executor import Executor
from redistq.worker.processor import PREFETCH_TASKS, Processor
from redistq.worker.scoreboard import Scoreboard
from redistq.worker.settings import WorkerSettings

MS = 1_000_000


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
    execution = Executor(WorkerSettings(), registry, "me", None)  # type: ignore[arg-type]

    def of(name: str) -> Durations:
        fields = [b"id", b"1", b"name", name.encode()]
        (times,) = execution.times([(b"1-0", fields, 0)])
        return times

    assert of("call:a") is of("call:a")
    assert len({of("call"), of("call:a"), of("call:b"), of("work")}) == 4
    assert of("work:a") is of("nobody") is UNKNOWN
    assert execution.times([(b"1-0", [], 0), (b"2-0", [b"x", b"y"], 0)]) == [UNKNOWN, UNKNOWN]
    own = {of(f"call:{n}") for n in range(2 * NAMES)}
    assert NAMES - 5 < len(own) <= NAMES
    assert of(f"call:{2 * NAMES - 1}") is of("call")


# -- what is kept ----------------------------------------------------------------------------------


class Fetcher:
    """A crew whose threads do not run: the test fetches, and sees what it keeps."""

    def __init__(self, url: str, tmp_path: Path, threads: int = 1) -> None:
        handlers = {name: lambda payload: payload for name in ("short", "long", "new")}
        self.broker, self.commands = Broker(Address(url)), Commands(QueueKeys())
        self.sent: list[str] = []
        settings = WorkerSettings(lease=2, threads=threads)
        scoreboard = Scoreboard.create(200)
        registry = Registry(handlers)
        self.crew = Processor(settings, registry, self.broker, [self.commands], "me", scoreboard)
        self.broker.call(self.commands.create_group())
        for name, ms in (("short", 0.01), ("long", 20)):
            times = self.crew._executor._bound[name.encode()].times
            times.busy_ns, times.done = int(ms * MS * 100), 100
        self.crew._forecast.read(Counter(self.crew._executor.times([named("short")])))

    def read(self, room: int) -> list[str]:
        """Read as the fetcher does; the payloads it keeps unstarted."""
        wire = self.broker.connection(5)
        tasks = self.crew._read(wire.request(self.commands.fetch("me", room, None)))
        wire.close()
        self.crew._take(tasks, drained=len(tasks) < room)
        return self.kept()

    def kept(self) -> list[str]:
        """The payloads of what is unstarted."""
        return [flat[5].decode() for _, flat, _ in self.crew._ready]


def named(name: str) -> Delivery:
    """An entry of a task."""
    return (b"1-0", [b"id", b"1", b"name", name.encode()], 0)


@pytest.fixture
def fetcher(url: str, tmp_path: Path) -> Iterator[Fetcher]:
    """A fetcher that has seen only short tasks lately."""
    fetcher = Fetcher(url, tmp_path)
    yield fetcher
    fetcher.broker.close()


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


def unread(client: redis.Redis) -> list[str]:
    """The payloads that nobody has fetched, in order."""
    group: Any = client.xinfo_groups("tasks")[0]
    entries: Any = client.xrange("tasks", f"({group['last-delivered-id']}")
    return [fields["payload"] for _, fields in entries]


@pytest.mark.parametrize(("name", "kept"), [("short", 450), ("long", 2), ("new", 1)])
def test_no_more_is_kept_than_a_moments_work(
    fetcher: Fetcher, producer: TaskProducer, client: redis.Redis, name: str, kept: int
) -> None:
    """What was read beyond it is there for others, all of it, in the order it had."""
    assert fetcher.crew._room_for() == PREFETCH_TASKS
    producer.add_tasks([(name, n) for n in range(450)])
    numbers = [str(n) for n in range(450)]
    assert fetcher.read(PREFETCH_TASKS) == numbers[:kept]
    assert unread(client) == numbers[kept:]
    assert len(fetcher.crew._held) == producer.snapshot().pending == kept
    assert not fetcher.crew._look_again
    assert fetcher.crew._room_for() <= 0


def test_short_tasks_before_long_ones_are_kept(
    fetcher: Fetcher, producer: TaskProducer, client: redis.Redis
) -> None:
    """It is time that counts, not the number of tasks nor the name of the last."""
    names = ["short"] * 100 + ["long"] * 20 + ["short"] * 10
    producer.add_tasks([(name, n) for n, name in enumerate(names)])
    assert fetcher.read(PREFETCH_TASKS) == [str(n) for n in range(102)]
    assert len(unread(client)) == 28


@pytest.mark.parametrize("name", ["long", "new"])
def test_each_idle_runner_gets_a_task(
    url: str, tmp_path: Path, producer: TaskProducer, name: str
) -> None:
    """What idle runners start at once is no prefetch, however long it takes."""
    fetcher = Fetcher(url, tmp_path, threads=4)
    fetcher.crew._idle = 4
    producer.add_tasks([(name, n) for n in range(40)])
    most = {"long": 10, "new": 4}[name]
    assert fetcher.read(PREFETCH_TASKS) == [str(n) for n in range(most)]
    fetcher.broker.close()


def test_with_a_backlog_nothing_is_offered(
    fetcher: Fetcher, producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full page means that there is more to read: no call is made, and no more is read."""
    producer.add_tasks([("new", n) for n in range(60)])
    with monkeypatch.context() as patch:
        patch.setattr(fetcher.crew, "_release", lambda *_: pytest.fail("a call was made"))
        assert len(fetcher.read(50)) == 50
    assert fetcher.crew._room_for() <= 0


def test_others_that_have_enough_to_do_are_asked_seldom(
    fetcher: Fetcher, producer: TaskProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal leaves every task at its place; the next look is the later the more is held."""
    producer.add_tasks([("new", n) for n in range(30)])
    numbers, asked = [str(n) for n in range(30)], []
    release = fetcher.crew._release

    def late(tasks: list[Delivery], drained_only: bool) -> bool:
        if not asked:
            producer.add_task("short", "late")  # comes between the reading and the offer
        asked.append(len(tasks))
        return release(tasks, drained_only)

    monkeypatch.setattr(fetcher.crew, "_release", late)
    assert fetcher.read(PREFETCH_TASKS) == numbers
    assert asked == [29]
    assert fetcher.crew._room_for() <= 0
    fetcher.crew._look_at = 0.0
    for _ in range(5):
        fetcher.crew._offer_stuck()
    assert asked == [29, 29]
    assert fetcher.crew._look_at > time.monotonic() + 0.1  # 3 s of work
    assert fetcher.kept() == numbers
    assert fetcher.read(1)[-1] == '"late"'
    fetcher.crew._look_at = 0.0
    fetcher.crew._offer_stuck()  # now nothing is left to read
    assert fetcher.kept() == numbers[:1]
