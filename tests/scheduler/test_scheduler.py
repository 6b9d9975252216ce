"""TaskScheduler: due tasks move once, on time, whatever happens to servers and schedulers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.servers import Server
from support.workers import Proxy, commands_in, history, lapse, until

from redistq import TaskProducer, TaskScheduler, TaskWorker
from redistq.scheduler.scheduler import LONGEST_SLEEP


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


def ready(db: redis.Redis) -> list[str]:
    """The ids in the stream, in order."""
    entries: Any = db.xrange("tasks")
    return [fields["id"] for _, fields in entries]


def listening(db: redis.Redis, how_many: int = 1) -> bool:
    """Whether so many schedulers wait to be woken."""
    counts: Any = db.pubsub_numsub("wake:tasks")
    return bool(counts[0][1] >= how_many)


def lateness(db: redis.Redis, due_ms: float) -> float:
    """Milliseconds by the server's own clock from the due time to the entry of the stream."""
    ((entry, _),) = db.xrange("tasks")
    return float(entry.split("-")[0]) - due_ms


def test_due_tasks_come_in_the_order_of_their_times(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """Added in any order, the earliest is ready first, and each carries what it was given."""
    at = time.time() + 0.3
    ids = {n: producer.schedule_task("a", n, at + n / 50) for n in (3, 1, 4, 0, 2)}
    with TaskScheduler(url=url):
        until(lambda: len(ready(db)) == 5, "all are due")
    assert ready(db) == [ids[n] for n in range(5)]
    assert [fields["payload"] for _, fields in db.xrange("tasks")] == list("01234")
    assert db.zcard("delayed:tasks") == 0


def test_a_task_is_never_early_and_hardly_late(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """By the server's clock a task is ready at its time or a few milliseconds later."""
    late = []
    with TaskScheduler(url=url):
        until(lambda: listening(db), "the scheduler")
        for _ in range(10):
            task_id = producer.add_task("a", delay=0.05)
            due = db.zscore("delayed:tasks", task_id)
            assert isinstance(due, float)
            until(lambda: ready(db), "it is due")
            late.append(lateness(db, due))
            db.delete("tasks")
    assert min(late) >= 0
    assert sorted(late)[5] < 20


def test_an_earlier_task_wakes_a_sleeping_scheduler(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """A scheduler that sleeps until a far time moves a nearer task when that is due."""
    producer.add_task("a", delay=3600)
    with TaskScheduler(url=url):
        until(lambda: listening(db), "the scheduler")
        assert commands_in(db, lapse(0.5)) < 10  # it sleeps and does not poll
        near = producer.add_task("a", delay=0.2)
        until(lambda: ready(db) == [near], "the nearer one", 3)
    assert LONGEST_SLEEP > 10  # what woke it was the announcement


def test_several_schedulers_move_each_task_once(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """Three at once, due tasks by the hundred: each task is in the stream exactly once."""
    at = time.time() + 0.4
    items = [{"type": "a", "payload": n, "execute_at": at + (n % 7) / 100} for n in range(1500)]
    ids = producer.add_tasks(items)
    schedulers = [TaskScheduler(url=url).start() for _ in range(3)]
    try:
        until(lambda: db.zcard("delayed:tasks") == 0, "all are due")
    finally:
        for scheduler in schedulers:
            scheduler.stop()
    assert sorted(ready(db)) == sorted(ids)


def test_start_and_stop_may_be_called_in_any_order(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """Stop before start, twice, start twice, and again after a stop."""
    scheduler = TaskScheduler(url=url)
    scheduler.stop()
    for _ in range(2):
        assert scheduler.start() is scheduler
        assert scheduler.start() is scheduler
        task_id = producer.add_task("a", delay=0.05)
        until(lambda i=task_id: i in ready(db), "it is due")
        started = time.monotonic()
        scheduler.stop()
        scheduler.stop()
        assert time.monotonic() - started < 1
    task_id = producer.add_task("a", delay=0.01)
    until(lapse(0.1), "the task is due")
    assert task_id not in ready(db)
    assert scheduler.promote_due() == 1
    assert scheduler.promote_due() == 0
    assert task_id in ready(db)
    scheduler.stop()


def test_a_scheduler_that_cannot_reach_its_server_can_be_stopped() -> None:
    """Without a server start returns, and stop does so soon."""
    scheduler = TaskScheduler(url="redis://127.0.0.1:1/0").start()
    until(lapse(0.3), "some tries in vain")
    started = time.monotonic()
    scheduler.stop()
    assert time.monotonic() - started < 6


def test_a_scheduler_survives_a_restart_of_the_server(
    private_server: Callable[..., Server],
) -> None:
    """Tasks that were due while the server was away, and later ones, are moved once it is back."""
    server = private_server(appendonly=True, appendfsync="always")
    with TaskProducer(url=server.url) as producer, TaskScheduler(url=server.url):
        ids = [producer.add_task("a", delay=delay) for delay in (0.2, 1.0)]
        server.kill()
        until(lapse(0.4), "the first is due")
        server.start()
        with server.client() as client:
            until(lambda: ready(client) == ids, "both", 15)
            later = producer.add_task("a", delay=0.1)
            until(lambda: ready(client) == [*ids, later], "a third", 5)


def test_a_scheduler_survives_lost_connections_and_answers(server: Server, db: redis.Redis) -> None:
    """Cut connections and a lost answer of promote neither lose nor double a task."""
    with (
        Proxy(server.port) as proxy,
        TaskProducer(url=server.url) as producer,
        TaskScheduler(url=proxy.url),
    ):
        until(lambda: listening(db), "the scheduler")
        proxy.lose(lambda data: data.startswith(b"*5\r\n:1"))  # one was moved
        first = producer.add_task("a", delay=0.1)
        until(lambda: ready(db) == [first], "the first")
        until(lambda: proxy.lost == 1, "its answer is lost")
        proxy.cut()
        second = producer.add_task("a", delay=0.1)
        until(lambda: ready(db) == [first, second], "the second")
    assert db.zcard("delayed:tasks") == 0


def test_odd_words_on_its_channel_are_passed_over(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """What others publish there wakes nobody wrongly and breaks nothing."""
    heard: list[str] = []
    with TaskScheduler(url=url, on_message=heard.append):
        until(lambda: listening(db), "the scheduler")
        for word in (b"\xff\xfe", b"", b"-5", b"1e9", b"paused", "٣".encode(), b"9" * 400):
            db.publish("wake:tasks", word)
        until(lambda: "paused" in heard, "the words")
        task_id = producer.add_task("a", delay=0.1)
        until(lambda: ready(db) == [task_id], "the task", 3)


def test_a_delayed_id_without_a_record_is_passed_over(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """An id that somebody put into the set by hand is dropped and holds up nothing."""
    db.zadd("delayed:tasks", {"stray": 1})
    with TaskScheduler(url=url):
        task_id = producer.add_task("a", delay=0.05)
        until(lambda: ready(db) == [task_id], "the task")
    assert db.zcard("delayed:tasks") == 0


def test_a_delayed_key_of_ones_own_is_used_by_all(url: str, db: redis.Redis) -> None:
    """Producer, worker and scheduler meet in the set that delayed_key names."""
    with (
        TaskProducer(url=url, delayed_key="later") as producer,
        TaskWorker(
            url=url,
            task_handlers={"a": str},
            delayed_key="later",
            scheduler=False,
            lease=2,
        ),
    ):
        task_id = producer.add_task("a", 1, delay=0.05)
        assert db.zscore("later", task_id) is not None
        until(lapse(0.3), "it is due, and the worker has no scheduler")
        assert producer.get_task(task_id).state == "delayed"
        with TaskScheduler(url=url, delayed_key="later"):
            assert producer.get_result(task_id, 10) == "1"
        assert history(db, task_id) == ["succeeded"]
        assert db.exists("delayed:tasks") == 0


def test_a_worker_schedules_by_itself(url: str, producer: TaskProducer) -> None:
    """A worker alone runs a delayed task on time, unless the queue is paused."""
    with TaskWorker(url=url, task_handlers={"a": str}, lease=2):
        started = time.monotonic()
        assert producer.get_result(producer.add_task("a", 1, delay=0.3), 10) == "1"
        assert 0.3 <= time.monotonic() - started < 1.5
        producer.pause()
        task_id = producer.add_task("a", 2, delay=0.1)
        until(lambda: producer.get_task(task_id).state == "queued", "it is due, and waits")
        threading.Timer(0.2, producer.resume).start()
        assert producer.get_result(task_id, 10) == "2"
