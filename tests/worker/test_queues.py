"""One worker for several queues: order of urgency, pauses, recovery, and names of priorities."""

from __future__ import annotations

import threading
import time

import pytest
import redis
from support.workers import scoreboard_of, until

from redistq import ConfigurationError, TaskProducer, TaskWorker
from redistq.connection.address import Address
from redistq.protocol.keys import QueueKeys, at_priority, without_priority
from redistq.worker.settings import WorkerSettings

QUEUES = ("jobs!high", "jobs", "jobs!low")


def test_the_most_urgent_queue_is_served_first(url: str) -> None:
    """With a backlog in every queue, urgent tasks run before normal ones and those before low."""
    order: list[str] = []
    gate = threading.Event()

    def note(payload: str) -> None:
        gate.wait(10)
        order.append(payload)

    producers = {queue: TaskProducer(url=url, stream=queue) for queue in QUEUES}
    for queue in reversed(QUEUES):
        producers[queue].add_tasks([("note", queue)] * 5)
    worker = TaskWorker(
        url=url, queues=QUEUES, task_handlers={"note": note}, thread_count=1, lease=2
    )
    with worker:
        gate.set()
        until(lambda: len(order) == 15, "all tasks have run")
    # The first one was taken from what came first; from then on urgency rules.
    assert order == ["jobs!high"] * 5 + ["jobs"] * 5 + ["jobs!low"] * 5
    for queue, producer in producers.items():
        assert producer.snapshot().counters["succeeded"] == 5, queue
        assert producer.snapshot().workers_total == 0
        producer.close()


def test_less_urgent_queues_keep_their_share(url: str) -> None:
    """While three hundred urgent ones run, a tenth for each of the others: all of theirs, nearly;
    without a share none."""
    urgent: dict[float, int] = {}
    for share in (0.0, 0.1):
        order: list[str] = []

        def note(payload: str, order: list[str] = order) -> None:
            order.append(payload)
            time.sleep(0.002)

        queues = [f"{queue}-{share * 10:.0f}" for queue in ("a", "b", "c")]
        producers = [TaskProducer(url=url, stream=queue) for queue in queues]
        producers[0].add_tasks([("note", "urgent")] * 300)
        for producer in producers[1:]:
            producer.add_tasks([("note", "other")] * 20)
        with TaskWorker(
            url=url,
            queues=queues,
            task_handlers={"note": note},
            thread_count=1,
            lease=2,
            low_share=share,
        ):
            until(lambda order=order: len(order) == 340, "all tasks have run", 30)
        last = len(order) - 1 - order[::-1].index("urgent")
        urgent[share] = order[:last].count("other")
        for producer in producers:
            producer.close()
    assert urgent[0.0] == 0
    assert 20 <= urgent[0.1] <= 40


def test_an_idle_worker_hears_of_every_queue_at_once(url: str) -> None:
    """A worker that sleeps on all its queues wakes for a task in the least urgent of them."""
    with TaskWorker(url=url, queues=QUEUES, task_handlers={"echo": lambda p: p}, lease=2):
        for queue in QUEUES:
            with TaskProducer(url=url, stream=queue) as producer:
                started = time.monotonic()
                assert producer.get_result(producer.add_task("echo", queue), 5) == queue
                assert time.monotonic() - started < 1


def test_a_pause_holds_back_its_own_queue_alone(url: str) -> None:
    """While one queue is paused the others are served; after it, so is the paused one."""
    high, normal = (TaskProducer(url=url, stream=queue) for queue in QUEUES[:2])
    with TaskWorker(
        url=url, queues=QUEUES[:2], task_handlers={"echo": lambda p: p}, lease=2
    ) as worker:
        normal.pause()
        until(
            lambda: scoreboard_of(worker).paused == {1},
            "it hears it",
        )
        waits = normal.add_task("echo", 1)
        assert high.get_result(high.add_task("echo", 2), 5) == 2
        assert normal.get_task(waits).state == "queued"
        normal.resume()
        assert normal.get_result(waits, 5) == 1
    high.close()
    normal.close()


def test_a_worker_takes_from_as_many_queues_as_it_is_told(url: str) -> None:
    """Of twelve, the ninth and the last are paused and held back; the other ten are served."""
    names = [f"part{n}" for n in range(12)]
    producers = [TaskProducer(url=url, stream=name) for name in names]
    with TaskWorker(url=url, queues=names, task_handlers={"echo": lambda p: p}, lease=2) as worker:
        producers[8].pause()
        producers[11].pause()
        until(lambda: scoreboard_of(worker).paused == {8, 11}, "it hears it")
        ids = [producer.add_task("echo", n) for n, producer in enumerate(producers)]
        for n in set(range(12)) - {8, 11}:
            assert producers[n].get_result(ids[n], 10) == n
        assert [producers[n].get_task(ids[n]).state for n in (8, 11)] == ["queued"] * 2
        producers[8].resume()
        assert producers[8].get_result(ids[8], 5) == 8
        assert producers[11].get_task(ids[11]).state == "queued"
    for producer in producers:
        producer.close()


def test_a_worker_without_a_scheduler_hears_a_pause_at_once(url: str, db: redis.Redis) -> None:
    """Pauses and resumes reach it long before its next heartbeat, each for its own queue."""
    high, normal = (TaskProducer(url=url, stream=queue) for queue in QUEUES[:2])
    with TaskWorker(
        url=url,
        queues=QUEUES[:2],
        task_handlers={"echo": lambda p: p},
        lease=300,
        scheduler=False,
    ) as worker:
        assert high.get_result(high.add_task("echo", 1), 5) == 1
        channels = [f"wake:{queue}" for queue in QUEUES[:2]]
        until(lambda: all(n == 1 for _, n in db.pubsub_numsub(*channels)), "it listens")
        normal.pause()
        until(lambda: scoreboard_of(worker).paused == {1}, "it hears the pause", 5)
        high.pause()
        until(lambda: scoreboard_of(worker).paused == {0, 1}, "it hears the other pause", 5)
        waits = normal.add_task("echo", 2)
        normal.resume()
        assert normal.get_result(waits, 5) == 2
    high.close()
    normal.close()


def test_retries_and_delays_stay_in_their_queue(url: str, db: redis.Redis) -> None:
    """A task that fails and a task that is delayed come back to the queue they came from."""
    tried: list[str] = []

    def once(payload: str) -> str:
        tried.append(payload)
        if tried.count(payload) == 1:
            raise ValueError("the first time")
        return payload

    with TaskWorker(url=url, queues=QUEUES, task_handlers={"once": once}, lease=2):
        for queue in QUEUES:
            with TaskProducer(url=url, stream=queue) as producer:
                task_id = producer.add_task("once", queue, delay=0.05)
                assert producer.get_result(task_id, 10) == queue
                assert db.hget(f"counters:{queue}", "retried") == "1"
                assert db.xlen(queue) == 0


def test_a_dead_worker_is_recovered_in_all_its_queues(url: str, db: redis.Redis) -> None:
    """What a lost worker held in any of its queues goes back to that queue."""
    for queue in QUEUES:
        with TaskProducer(url=url, stream=queue) as producer:
            producer.add_task("echo", queue)
            db.xgroup_create(queue, "workers", id="0")
            db.xreadgroup("workers", "lost", {queue: ">"})
            db.zadd(f"workers:{queue}", {"lost": 1, "another": time.time() * 1000 + 60_000})
    with TaskWorker(url=url, queues=QUEUES, task_handlers={"echo": lambda p: p}, lease=2):
        for queue in QUEUES:
            until(
                lambda q=queue: db.hget(f"counters:{q}", "succeeded") == "1",
                f"the task of {queue} has run",
            )
            assert db.hget(f"counters:{queue}", "recovered") == "1"


def test_queues_of_a_worker_are_checked() -> None:
    """The same queue twice, or queues on two nodes of a cluster, are refused."""
    with pytest.raises(ConfigurationError, match="different queues"):
        WorkerSettings(queues=("a", "a"))
    cluster = Address("redis+cluster://localhost:6379")
    with pytest.raises(ConfigurationError, match="share a hash tag"):
        WorkerSettings(queues=("a", "b")).commands_for(cluster)
    calls = WorkerSettings(queues=QUEUES).commands_for(cluster)
    assert [calls.keys.stream for calls in calls] == ["{jobs}!high", "{jobs}", "{jobs}!low"]


def test_priorities_are_queues_with_a_name_of_their_own() -> None:
    """A priority's queue is named after its queue, whose normal tasks stay where they are."""
    assert [at_priority("jobs", p) for p in ("high", "normal", "low")] == list(QUEUES)
    assert {without_priority(queue) for queue in QUEUES} == {"jobs"}
    assert QueueKeys("jobs!high").task("1") == "task:jobs!high:1"
    with pytest.raises(ConfigurationError, match="high, normal, low"):
        at_priority("jobs", "urgent")
