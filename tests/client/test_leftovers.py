"""What clients leave that have ended: it is known for sure, said, and can be dropped; nothing of a
living client, of a producer, or of a batch that may be resumed goes with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from support.clients import KEY, producer_of, session
from support.workers import until

from redistq import Client, TaskCancelled, TaskProducer
from redistq.client.queues import LIFE_S, has_ended, me

DIES = f"""
import os, signal, sys
from redistq import Client
client = Client(sys.argv[1], signing_key={KEY!r})
{{lines}}
client._session.exchange.sender.flush(patient=True)  # all is with the server
os.kill(os.getpid(), signal.SIGKILL)
"""
THREE = "for n in range(3): client.submit(abs, -n)"


@pytest.fixture
def dead(url: str, tmp_path: Path) -> Callable[..., None]:
    """Runs a program that leaves work and is killed."""

    def run(*lines: str, folder: Path | None = None) -> None:
        code = DIES.format(lines="\n".join(lines))
        done = subprocess.run(
            [sys.executable, "-c", code, url], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == -9, done.stderr

    return run


@pytest.fixture
def heir(url: str) -> Iterator[Client]:
    """A client that comes later, without workers."""
    with Client(url, signing_key=KEY) as client:
        yield client
        client.close()


@pytest.mark.parametrize(
    ("lines", "dropped"),
    [
        ([THREE], 3),
        ([THREE.replace("submit", "options(priority='high').submit")], 3),
        ([THREE.replace("submit", "options(delay=600).submit")], 3),
        (["client.map(abs, range(450))", THREE], 453),
        (["client.map_batch(abs, range(3))"], 3),
        (["client.options(priority='low').map_batch(abs, range(3))"], 3),
        (["client.options(delay=600).map_batch(abs, range(250))"], 250),
    ],
    ids=["calls", "high", "delayed", "many", "batch", "low batch", "delayed batch"],
)
def test_calls_of_a_killed_client_are_dropped(
    dead: Callable[..., None], heir: Client, db: redis.Redis, lines: list[str], dropped: int
) -> None:
    """At once, where it ran on this machine; a second time there is nothing."""
    dead(*lines)
    left = heir.submit(abs, -5)
    assert heir.drop_leftovers() == dropped
    assert heir.drop_leftovers() == 0
    assert db.xlen("tasks") == 1  # our own
    assert not db.exists("delayed:tasks")
    assert db.xlen("tasks!high") == db.xlen("tasks!low") == 0
    heir.start_workers(1)
    assert left.result(20) == 5


@pytest.mark.parametrize("lines", ["client.map_batch(abs, range(3), name='three')"])
def test_batches_with_a_name_go_only_when_asked_for(
    dead: Callable[..., None], heir: Client, lines: str
) -> None:
    """Somebody may resume them: one that is resumed is nobody's leftover any more."""
    dead(lines)
    assert heir.drop_leftovers() == 0
    with Client(heir.address.url, signing_key=KEY) as other:
        other.map_batch(abs, range(3), name="three")
        assert heir.drop_leftovers(batches=True) == 0
        other.close()
    assert heir.drop_leftovers(batches=True) == 3
    assert heir.batch("three").counts()["cancelled"] == 3


def test_nothing_of_the_living_is_dropped(
    dead: Callable[..., None], heir: Client, url: str
) -> None:
    """Calls and batches of another client, of a producer, and what others wait for."""
    dead(
        "client.options(cache='1d').submit(abs, -7)",
        "print(client.submit(abs, -8).task_id, file=open('left', 'w'))",
        "client.map_batch(abs, range(2), name='b')",
        "client.submit('named', 1)",
    )
    alive = Client(url, signing_key=KEY)
    cached = alive.options(cache="1d").submit(abs, -7)
    waits = alive.future(Path("left").read_text().strip())
    Path("left").unlink()
    own = [alive.submit(abs, -1), *(alive.submit(abs, -n) for n in range(3))]
    batch = alive.map_batch(abs, [-1, -2], progress=False)
    with TaskProducer(url=url) as producer:
        producer.add_task("also-named", 1)
        until(lambda: producer.snapshot().ready == 12, "all to be sent")
        assert heir.drop_leftovers() == 0
        alive.start_workers(1)
        assert [f.result(20) for f in (cached, waits, *own)] == [7, 8, 1, 0, 1, 2]
        assert batch.results(20) == [1, 2]
    alive.close()


def test_a_client_that_is_closed_has_ended(heir: Client, url: str, db: redis.Redis) -> None:
    """Though its process lives; and its sign goes with it."""
    with Client(url, signing_key=KEY) as other:
        other.submit(abs, -1)
        assert db.exists(f"client:tasks:{session(other).exchange.presence.inbox.name}")
        assert heir.drop_leftovers() == 0
        other.close()
    assert not db.keys("client:tasks:*")
    assert heir.drop_leftovers() == 1


def test_clients_of_other_machines_live_as_long_as_their_sign(
    dead: Callable[..., None], heir: Client, db: redis.Redis
) -> None:
    """Nobody can see their processes from here."""
    dead(THREE)
    (key,) = db.keys("client:tasks:*")
    assert 0 < db.ttl(key) <= LIFE_S
    db.set(key, "another-machine 1 1")
    assert heir.drop_leftovers() == 0
    db.delete(key)
    assert heir.drop_leftovers() == 3


def test_a_sign_of_life_is_given_again(heir: Client, db: redis.Redis) -> None:
    """Before it expires, and when the server has lost it."""
    session(heir).exchange.listener.sign_s = 0.01
    heir.submit(abs, -1)
    key = f"client:tasks:{session(heir).exchange.presence.inbox.name}"
    db.expire(key, 5)
    until(lambda: db.ttl(key) > 100, "another sign", 20)
    db.delete(key)
    until(lambda: db.exists(key), "a new sign", 20)


def test_calls_without_proof_count_as_left_after_a_week(heir: Client, db: redis.Redis) -> None:
    """Clients of earlier releases give no sign of life."""
    old = int((time.time() - 8 * 86_400) * 1000)
    fields = {"name": "redistq.call:f", "payload": "", "attempt": 1, "recovered": 0}
    for entry, number in ((f"{old}-1", "1"), ("*", "2")):
        opts = json.dumps({"inbox": "0123456789abcdef", "retries": 0})
        added = db.xadd("tasks", {"id": number, **fields, "opts": opts}, id=entry)
        db.hset(f"task:tasks:{number}", "entry", added)
    assert heir.drop_leftovers() == 1
    assert db.xlen("tasks") == 1


def test_calls_of_other_folders_are_dropped_only_when_asked_for(
    dead: Callable[..., None], heir: Client, tmp_path: Path
) -> None:
    """They do not stand before ours: our workers do not run them."""
    dead(THREE, folder=tmp_path)
    assert heir.drop_leftovers() == 0
    assert heir.drop_leftovers(everywhere=True) == 3


def test_what_a_worker_has_begun_is_finished(heir: Client, url: str, tmp_path: Path) -> None:
    """Only what waits is dropped."""
    other = Client(url, signing_key=KEY)
    begun = other.submit(time.sleep, 1)
    heir.start_workers(1)
    until(begun.running, "the first to run")
    waits = other.submit(abs, -1)
    until(lambda: session(heir).queue().snapshot().ready == 1, "the second to wait")
    other.close()
    assert heir.drop_leftovers() == 1
    assert heir.future(begun.task_id).result(20) is None
    with producer_of(heir) as producer, pytest.raises(TaskCancelled):
        producer.get_result(waits.task_id, timeout=5)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["client.submit(abs, -1)"], "1 task of other clients, the oldest from "),
        (["client.submit(abs, -1)"], "stands before yours in queue 'tasks' and is run first; 1 of"),
        ([THREE], "3 of them are of clients that have ended: client.drop_leftovers() drops these"),
        (
            ["client.map_batch(abs, range(2), name='b')"],
            "2 of them are of clients that have ended: client.drop_leftovers(batches=True) drops",
        ),
        (
            [THREE, "client.map_batch(abs, range(2), name='b')"],
            "client.drop_leftovers() drops these, batches=True also the 2 of named batches",
        ),
    ],
    ids=["one", "one-verb", "calls", "named", "both"],
)
def test_it_is_said_when_workers_are_started(
    dead: Callable[..., None],
    heir: Client,
    caplog: pytest.LogCaptureFixture,
    lines: list[str],
    words: str,
) -> None:
    """How many, and what drops them."""
    dead(*lines)
    heir.start_workers(1)
    (line,) = [r.getMessage() for r in caplog.records if "before yours" in r.getMessage()]
    assert words in line


def test_a_process_is_known_by_its_beginning() -> None:
    """Its id may be another's by now; one of another machine may live."""
    assert not has_ended(me().encode())
    assert not has_ended(b"another-machine 1 1")
    machine, pid, _ = me().split(" ")
    assert has_ended(f"{machine} {pid} 1".encode())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: has_ended(f"{machine} {ended.pid} ".encode()) or ended.poll() is not None, "end")
    ended.wait()
    assert has_ended(f"{machine} {ended.pid} ".encode())
