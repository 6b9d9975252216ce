"""Resources: no task starts without room for it; others pass, nothing is lost or starves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import Command, registered, until, worker_commands

from redistq import Client, ConfigurationError, Registry, TaskContext, TaskProducer, TaskWorker
from redistq.protocol import resources
from redistq.worker.ledger import Ledger, share, visible
from redistq.worker.settings import WorkerSettings

JOBS = '''
import os
import time
from pathlib import Path

from redistq import task


@task(resources={"gpu": 1}, retries=0)
def train(payload, context):
    """Say what it has, and keep it until it is let go."""
    here = Path(payload)
    (here / context.task_id).write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']} {context.resources}")
    while not (here / "go").exists():
        time.sleep(0.005)
    (here / context.task_id).unlink()
    return [os.environ["CUDA_VISIBLE_DEVICES"], context.resources, os.getpid()]


@task(resources={"gpu": 1})
async def train_async(payload, context):
    return context.resources


@task(resources={"licence": 1}, retries=0)
def alone(payload, context):
    os.close(os.open(payload, os.O_CREAT | os.O_EXCL))
    time.sleep(0.03)
    os.unlink(payload)
    return context.resources


@task
def plain(payload, context):
    return [context.resources, os.getpid()]
'''


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Command]]:
    (tmp_path / "jobs.py").write_text(JOBS)
    with worker_commands(tmp_path, url, "jobs", "--threads", "4") as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    with TaskProducer(url=url) as producer:
        yield producer


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where tasks say that they run."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def running(here: Path) -> list[str]:
    """The tasks that run."""
    return sorted(path.name for path in here.iterdir() if path.name != "go" and path.read_text())


# -- the worker ------------------------------------------------------------------------------------


def test_no_more_run_than_there_is_room_for(
    start: Callable[..., Command], producer: TaskProducer, here: Path
) -> None:
    """Each process sees its own card; what needs none passes by; all of them come to their turn."""
    start("--processes", "2", "--resources", "gpu=2", CUDA_VISIBLE_DEVICES="4,7")
    ids = producer.add_tasks([("train", str(here))] * 12)
    until(lambda: len(running(here)) == 2, "as many run as there are cards")
    others = producer.add_tasks([("plain", n) for n in range(40)])
    pids = {producer.get_result(task_id, 20)[1] for task_id in others}
    assert len(pids) == 2
    assert len(running(here)) == 2
    (here / "go").touch()
    results = [producer.get_result(task_id, 40) for task_id in ids]
    assert {result[0] for result in results} == {"4", "7"}
    assert all(result[1] == {"gpu": [0]} for result in results), "counted as its process sees it"
    assert len({(result[0], result[2]) for result in results}) == 2, "a card belongs to a process"


def test_one_process_may_have_several(
    start: Callable[..., Command], producer: TaskProducer, here: Path
) -> None:
    """Its tasks are told which are theirs; coroutines too."""
    start("--resources", "gpu=3")
    for _ in range(5):
        producer.add_task("train", str(here))
    until(lambda: len(running(here)) == 3, "all cards are in use")
    said = sorted((here / name).read_text() for name in running(here))
    assert said == [f"0,1,2 {{'gpu': [{n}]}}" for n in range(3)]
    waits = producer.add_task("train_async", None)
    (here / "go").touch()
    assert producer.get_result(waits, 20)["gpu"][0] in (0, 1, 2)


def test_what_is_no_device_is_shared_by_all_processes(
    start: Callable[..., Command], producer: TaskProducer, tmp_path: Path
) -> None:
    """One licence: one task at a time, in whichever process."""
    start("--processes", "2", "--resources", "licence=1")
    ids = producer.add_tasks([("alone", str(tmp_path / "lock"))] * 40)
    assert all(producer.get_result(task_id, 60) == {"licence": [0]} for task_id in ids)


def test_what_needs_much_is_not_overtaken_for_ever(
    start: Callable[..., Command], producer: TaskProducer, here: Path
) -> None:
    """While it waits nothing that came later takes what becomes free."""
    start("--resources", "gpu=2")
    small = [producer.add_task("train", str(here)) for _ in range(2)]
    until(lambda: len(running(here)) == 2, "both cards are in use")
    big = producer.add_task("train", str(here), resources={"gpu": 2})
    later = [producer.add_task("train", str(here)) for _ in range(3)]
    (here / "go").touch()
    assert len(producer.get_result(big, 20)[1]["gpu"]) == 2
    for task_id in (*small, *later):
        producer.get_result(task_id, 30)


def test_a_task_too_big_says_so_and_waits_for_a_worker(
    start: Callable[..., Command], producer: TaskProducer, here: Path
) -> None:
    """However long: it is no dead letter, and runs where there is room."""
    (here / "go").touch()
    start("--resources", "gpu=2", "--unknown-grace", "1")
    task_id = producer.add_task("train", str(here), resources={"gpu": 4})
    why = "waits for room: it needs gpu=4; no worker here has gpu=4 (the most here is 2): start one"
    until(lambda: why in producer.get_task(task_id).why, "it says so", 20)
    assert producer.get_task(task_id).state in ("delayed", "queued", "running")
    start("--resources", "gpu=4")
    assert producer.get_result(task_id, 40)[1] == {"gpu": [0, 1, 2, 3]}


def test_a_worker_without_leaves_them_to_others(
    start: Callable[..., Command], producer: TaskProducer, here: Path
) -> None:
    """On one queue with one that has some."""
    (here / "go").touch()
    start()
    start("--resources", "gpu=1")
    ids = producer.add_tasks([("train", str(here))] * 8)
    assert {producer.get_result(task_id, 60)[0] for task_id in ids} == {"0"}


def test_what_a_killed_process_had_is_free_again(
    start: Callable[..., Command], producer: TaskProducer, here: Path, db: redis.Redis
) -> None:
    """Its supervisor gives it back; the others are counted as before."""
    start("--processes", "2", "--resources", "licence=1,gpu=1")
    one = producer.add_task("train", str(here), retries=3)
    until(lambda: running(here), "it runs")
    two = producer.add_task("train", str(here), resources={"gpu": 0.5})
    for pid in registered(db).values():
        os.kill(pid, signal.SIGKILL)
    (here / one).unlink()
    (here / "go").touch()
    assert producer.get_result(one, 30)[1] == {"gpu": [0]}
    assert producer.get_result(two, 30)[1] == {"gpu": [0]}


def test_what_waits_can_be_cancelled_and_goes_back_at_the_end(
    start: Callable[..., Command], producer: TaskProducer, here: Path, db: redis.Redis
) -> None:
    """Nothing that waits for room holds up a drain."""
    one = start("--resources", "gpu=1", "--shutdown-timeout", "5")
    first = producer.add_task("train", str(here))
    until(lambda: running(here), "it runs")
    second, third = (producer.add_task("train", str(here)) for _ in range(2))
    until(lambda: db.xpending("tasks", "workers")["pending"] >= 2, "it waits in the process")
    producer.cancel(second, running="ask")
    until(lambda: producer.get_task(second).state == "cancelled", "it is cancelled", 20)
    one.send(15)
    one.says("draining")
    (here / "go").touch()
    assert one.wait(20) == 0
    assert producer.get_task(first).state == "succeeded"
    assert producer.get_task(third).state in ("queued", "delayed")
    start("--resources", "gpu=1")
    producer.get_result(third, 20)


def test_more_cards_than_are_shown_are_refused(
    start: Callable[..., Command], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything starts, by both figures."""
    one = start("--resources", "gpu=2", ready=False, CUDA_VISIBLE_DEVICES="3")
    one.says("resources declare gpu=2, and CUDA_VISIBLE_DEVICES='3' shows 1")
    assert one.wait() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigurationError, match="shows 0"):
        TaskWorker(url=url, task_handlers={"x": len}, processes=1, resources="gpu=1")
    TaskWorker(url=url, task_handlers={"x": len}, processes=1, resources="licence=1")


def test_parts_of_one(start: Callable[..., Command], producer: TaskProducer, here: Path) -> None:
    """Four tasks share one card, in two processes that both see it."""
    start("--processes", "2", "--resources", "gpu=1")
    for _ in range(6):
        producer.add_task("train", str(here), resources={"gpu": 0.25})
    until(lambda: len(running(here)) == 4, "four run at a time", 20)
    assert {(here / name).read_text() for name in running(here)} == {"0 {'gpu': [0]}"}
    (here / "go").touch()


def test_threads_of_an_application_have_them_too(url: str) -> None:
    """And the functions of a client."""
    jobs = Registry()

    @jobs.task(resources={"licence": 2})
    def job(payload: Any, context: TaskContext) -> Any:
        return context.resources

    with (
        TaskWorker(url=url, task_handlers=jobs, resources={"licence": 2}),
        TaskProducer(url=url) as producer,
    ):
        assert producer.get_result(producer.add_task("job", 1), 20) == {"licence": [0, 1]}
    with Client(url) as client:
        client.start_workers(1, resources="gpu=1")
        future = client.options(resources={"gpu": 0.5}).submit(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert future.result(20) == "0"


# -- the parts -------------------------------------------------------------------------------------


def test_amounts_are_checked_by_name() -> None:
    """Those of tasks, and those of workers."""
    assert resources.needed("resources", {"gpu": 0.25, "a": 3}) == (("a", 3000), ("gpu", 250))
    assert resources.declared("resources", "gpu=2, licence") == (("gpu", 2000), ("licence", 1000))
    for wrong in ({}, {"gpu": 0}, {"gpu": 1.5}, {"gpu": -1}, {"gpu": True}, {"a b": 1}, "gpu=1", 3):
        with pytest.raises(ConfigurationError, match="resources"):
            resources.needed("resources", wrong)
    for wrong in ("gpu=0", "gpu=x", {"gpu": 0.5}, {"gpu": 2000}, 3, "a b=1"):
        with pytest.raises(ConfigurationError, match="resources"):
            WorkerSettings(resources=wrong)  # type: ignore[arg-type]
    again = WorkerSettings.of(WorkerSettings(resources="gpu=2").as_dict())
    assert again.has == (("gpu", 2000),)


def test_cards_are_shared_out() -> None:
    """All of them, each to one process where there are enough."""
    assert [share(5, place, 2) for place in range(2)] == [[0, 1, 2], [3, 4]]
    assert [share(2, place, 5) for place in range(5)] == [[0], [1], [0], [1], [0]]
    assert visible([1, 2], "GPU-a,GPU-b,GPU-c") == "GPU-b,GPU-c"
    assert visible([1], None) == "1"


def test_a_ledger_counts_what_is_taken() -> None:
    """All of a task's needs or none; first come, first served; a dead process has nothing."""
    declared = resources.declared("resources", "gpu=2,licence=1")
    one = Ledger.create(declared, 2)
    two = Ledger(os.dup(one.descriptor), declared, row=1)
    one.join()
    two.join()
    gpu, half, both = (("gpu", 1000),), (("gpu", 500),), (("gpu", 2000), ("licence", 1000))
    assert one.has(both)
    assert not one.has((("gpu", 3000),))
    first = one.take(half, one.ticket())
    assert first == {"gpu": [0]}
    assert two.take(half, two.ticket()) == {"gpu": [0]}, "where one is in part already"
    assert two.take(half, two.ticket()) == {"gpu": [1]}
    waiting = one.ticket()
    assert one.take(both, waiting) is None
    one.show_waiting({"gpu": waiting, "licence": waiting})
    assert two.take((("licence", 1000),), two.ticket()) is None, "somebody waits for longer"
    two.clear(1)
    assert one.take(gpu, waiting) == {"gpu": [1]}
    assert one.take(half, waiting) == {"gpu": [0]}
    one.show_waiting({})
    assert two.take((("licence", 1000),), two.ticket()) == {"licence": [0]}
    one.close()
    two.close()
