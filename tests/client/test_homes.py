"""Two notebooks on one queue: each runs its own calls, in its own folder and environment."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.clients import KEY
from support.servers import Server
from support.workers import until

from redistq import Client, TaskWorker
from redistq.protocol.homes import LONG_S, LONGEST_S, PAGE, Home, Passing, home_of

Notebook = Callable[..., Client]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for the module; every test has a queue of its own."""
    with Server() as started:
        yield started


@pytest.fixture
def notebook(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """Makes a client as a notebook in a folder of that name would, all on one queue."""
    made: list[Client] = []

    def make(folder: str, workers: int = 0, **options: object) -> Client:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        queue = f"homes-{tmp_path.name}"
        client = Client(server.url, queue=queue, signing_key=KEY, **options)  # type: ignore[arg-type]
        made.append(client)
        if workers:
            client.start_workers(workers)
        return client

    yield make
    for client in made:
        client.close()


def folder() -> str:
    return os.path.basename(os.getcwd())


def test_calls_run_in_the_folder_of_their_notebook(notebook: Notebook) -> None:
    """However the two mix in the queue, and whatever folder a kernel has gone to since."""
    a, b = notebook("a", 2), notebook("b", 1)
    calls = [(client, client.submit(folder)) for _ in range(40) for client in (a, b)]
    assert {future.result(20) for client, future in calls if client is a} == {"a"}
    assert {future.result(20) for client, future in calls if client is b} == {"b"}
    assert set(a.map_batch(lambda _: folder(), range(20), progress=False).results(20)) == {"a"}
    assert a.options(priority="high").submit(folder).result(20) == "a"
    assert next(iter(b.map(lambda n: folder(), range(3), chunksize=3))) == "b"


def test_a_lone_call_is_with_its_own_worker_at_once(notebook: Notebook) -> None:
    """A worker of another notebook that reads it first gives it back without a delay."""
    a, _ = notebook("a", 1), notebook("b", 3)
    assert a.submit(folder).result(20) == "a"
    took = []
    for _ in range(9):
        started = time.monotonic()
        a.submit(folder).result(20)
        took.append(time.monotonic() - started)
    assert sorted(took)[4] < 0.2


def test_the_calls_of_others_are_neither_run_nor_counted(notebook: Notebook) -> None:
    """They wait, as they were, for a worker of their own: the next kernel's in that folder."""
    a, b = notebook("a"), notebook("b", 1)
    waits = a.map_batch(lambda n: (n, folder()), range(5), name="unfinished", progress=False)
    assert b.submit(folder).result(20) == "b"  # read after those
    assert waits.counts()["waiting"] == 5
    again = notebook("a", 1)
    found = again.batch("unfinished")
    assert found.results(20) == [(n, "a") for n in range(5)]
    assert found.counts()["retried"] == 0
    assert {
        row["attempts"] for row in again.batch("unfinished").failures().to_dict("records")
    } == set()


def test_its_own_call_gets_past_the_backlog_of_another(notebook: Notebook) -> None:
    """Calls that nobody here may run do not stand in the way of one that somebody may."""
    a, b = notebook("a"), notebook("b", 1)
    a.map_batch(abs, range(2000), progress=False)
    assert b.submit(folder).result(20) == "b"
    assert b.submit(folder).result(20) == "b"  # also once its worker rests between its looks


def test_shared_clients_and_shared_workers(notebook: Notebook) -> None:
    """Sharing is asked for: by the client for its calls, or for the workers it starts."""
    anybody = notebook("a", shared=True)
    b = notebook("b", 1)
    assert anybody.submit(folder).result(20) == "b"
    b.close()
    c, d = notebook("c"), notebook("d")
    d.start_workers(1, shared=True)
    assert c.submit(folder).result(20) == "d"


def test_workers_that_are_started_elsewhere_serve_every_home(notebook: Notebook) -> None:
    """A TaskWorker, or the command, runs all calls that it has the key for."""
    a = notebook("a")
    with TaskWorker(url=str(a.address), stream=a.keys.stream, signing_key=KEY.encode().hex()):
        assert a.submit(abs, -3).result(20) == 3
        assert a.homes_served() == {"": 1}


def test_named_tasks_belong_to_no_home(notebook: Notebook) -> None:
    """Any worker that knows the name runs them."""
    a, b = notebook("a"), notebook("b")
    b.start_workers(1, handlers={"where": lambda payload: folder()})
    assert a.submit("where").result(20) == "b"


def test_a_client_knows_whose_workers_live(notebook: Notebook) -> None:
    """By home, with the number of processes; gone when they are."""
    a, b = notebook("a", 2), notebook("b")
    assert a.homes_served() == b.homes_served() == {a.home.name: 2}
    assert b.home.name not in b.homes_served()
    a.close()
    until(lambda: b.homes_served() == {}, "its workers are gone")


def test_a_home_is_a_folder_and_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the same place however it is reached; another one for all else."""
    (tmp_path / "work & play").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "work & play")
    monkeypatch.chdir(tmp_path / "work & play")
    home = Home.here()
    assert home.name.endswith("-work___play")
    monkeypatch.chdir(tmp_path / "link")
    assert Home.here() == home
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert Home.here() != home


@pytest.mark.parametrize(
    ("opts", "home"),
    [
        (b"", ""),
        (b'{"retries":0}', ""),
        (b'{"home":"a","retries":0}', "a"),
        (b'{"retries": 0, "home": "a"}', "a"),
        (b'{"inbox":"\\"home\\":\\"x\\""}', ""),
        (b'{"home":5}', ""),
        (b'{"home":', ""),
    ],
)
def test_the_home_of_a_task_is_read_from_its_options(opts: bytes, home: str) -> None:
    """What is damaged belongs to no home: whoever runs it says what is wrong."""
    assert home_of(opts) == home
    assert Passing("b").is_foreign(opts) is (home != "")
    assert Passing("a").is_foreign(opts) is False


def test_a_worker_that_meets_only_calls_of_others_rests() -> None:
    """It reads larger pages until it has been round, and then rests in proportion."""
    now = [100.0]
    passing = Passing("mine", lambda: now[0])
    backlog = [str(n).encode() for n in range(1000)]
    rests, pages = [], []
    for _ in range(12):
        start = 0
        while passing.rests_until <= now[0]:
            asked = passing.ask(1)
            pages.append(asked)
            page = [backlog[i % 1000] for i in range(start, start + asked)]
            start += asked
            now[0] += 0.001
            passing.passed(page, 0)
        rests.append(passing.rests_until - now[0])
        now[0] = passing.rests_until
    assert rests[0] < rests[-1]
    assert all(LONG_S <= rest <= LONGEST_S for rest in rests[-3:])
    assert max(pages) == PAGE
    passing.passed([], 0)
    assert passing.ask(3) == 3  # the queue is empty of them: as if nothing had been


def test_pages_of_a_mixed_queue_stay_small() -> None:
    """Where its own calls come with those of others it does not rest at all."""
    passing = Passing("mine")
    for n in range(100):
        passing.passed([str(n % 7).encode()], 1)
    assert passing.ask(1) <= 2
    assert passing.rests_until == 0.0


def test_a_resting_worker_stops_at_once(notebook: Notebook) -> None:
    """Its rest is no reason to wait."""
    a, b = notebook("a"), notebook("b", 1)
    a.map_batch(abs, range(50), progress=False)
    assert b.submit(folder).result(20) == "b"
    started = time.monotonic()
    done = threading.Event()
    threading.Thread(target=lambda: (b.close(), done.set())).start()
    assert done.wait(10)
    assert time.monotonic() - started < 10
