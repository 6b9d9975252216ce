"""Tasks sealed by a codec, from producers through workers and back: nothing of them is readable on
the server, nothing is lost for want of a key, and nothing that was changed or moved is believed."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from support.workers import Command, until

from redistq import (
    AsyncTaskProducer,
    Client,
    Registry,
    TaskFailed,
    TaskMonitor,
    TaskProducer,
    TaskWorker,
    chain,
    sig,
)
from redistq.codecs import Codec, Compress, Encrypt, Keys, Sign
from redistq.errors import ConfigurationError, Unreadable, UntrustedPayload
from redistq.protocol.envelope import MAGIC

SECRET = "ann@example.org"
K1, K2 = secrets.token_hex(32), secrets.token_hex(32)
ENCRYPTS = Codec(Compress(), Encrypt(Keys({"k1": K1})), require="encrypted")
SIGNS = Codec(Sign(Keys({"k1": K1})))
registry = Registry()


@registry.task(name="greet")
def greet(payload: Any) -> Any:
    """What comes back has the secret in it."""
    return {"hello": payload}


@registry.task(name="broken", retries=1, backoff=0.01)
def broken(payload: Any) -> None:
    """An error that quotes its payload, in its message and in its traceback."""
    raise ValueError(f"no such customer: {payload}")


@registry.task(name="lavish")
def lavish(payload: Any, context: Any) -> Any:
    """Steps, a checkpoint and children, all with the secret."""
    found = context.step("look up", lambda: f"step {payload}")
    context.checkpoint({"at": payload})
    again = context.step("look up", lambda: f"step {payload}")
    child = context.spawn("greet", payload)
    return {"steps": [found, again], "cursor": context.cursor, "child": child}


@registry.task(name="items")
def items(payload: Any) -> Any:
    """Yields the secret, and fails at its end where it is told to."""
    for i in range(3):
        yield f"{payload} {i}"


@registry.task(name="waits")
def waits(payload: Any, context: Any) -> Any:
    """Waits for an event, and then for a message."""
    return [context.wait_for("news", 20), context.wait_for("mail", 20)]


@registry.task(name="flows")
def flows(payload: Any) -> Any:
    """Returns others that take its place."""
    return chain(sig("greet", payload), sig("after"))


@registry.task(name="after")
def after(payload: Any, context: Any) -> Any:
    """Takes the results of those before it."""
    return ["after", *context.results()]


def everything(db: redis.Redis) -> bytes:
    """All that is on the server, names and values."""
    found = []
    raw = redis.Redis(
        connection_pool=redis.ConnectionPool(
            **{**db.connection_pool.connection_kwargs, "decode_responses": False}
        )
    )
    for key in raw.scan_iter():
        found.append(key)
        kind = raw.type(key)
        if kind == b"string":
            found.append(raw.get(key) or b"")
        elif kind == b"hash":
            found += [part for pair in raw.hgetall(key).items() for part in pair]
        elif kind == b"stream":
            found += [v for _, fields in raw.xrange(key) for v in fields.values()]
        elif kind == b"zset":
            found += raw.zrange(key, 0, -1)
        elif kind == b"list":
            found += raw.lrange(key, 0, -1)
    raw.close()
    return b"\n".join(found)


@pytest.fixture
def producer(url: str) -> Any:
    """A producer that encrypts."""
    with TaskProducer(url=url, codec=ENCRYPTS) as producer:
        yield producer


@pytest.fixture
def worker(url: str) -> Any:
    """A worker that takes nothing else."""
    with TaskWorker(url=url, task_handlers=registry, codec=ENCRYPTS) as worker:
        yield worker


# -- the way there and back ------------------------------------------------------------------------


def test_nothing_of_a_task_can_be_read_on_the_server(
    url: str, db: redis.Redis, producer: TaskProducer
) -> None:
    """Payload, result, error, traceback, steps, checkpoint, items, events and children."""
    payload = {"to": SECRET, "long": SECRET * 1000}
    ids = [
        producer.add_task("greet", payload),
        producer.add_task("broken", payload),
        producer.add_task("lavish", SECRET),
        producer.add_task("items", SECRET),
        producer.add_task("flows", SECRET),
        producer.add_task("greet", SECRET, delay=0.05),
        *producer.add_tasks([("greet", SECRET)] * 3),
        *producer.add_flow(chain(sig("greet", SECRET), sig("after"))),
    ]
    waiting = producer.add_task("waits", SECRET)
    producer.send_event("news", SECRET)
    producer.send_event("mail", SECRET, task=waiting)
    producer.schedules.set("daily", every=3600, task="greet", payload=SECRET)
    assert SECRET.encode() not in everything(db)
    with TaskWorker(url=url, task_handlers=registry, codec=ENCRYPTS):
        results = {}
        for task_id in ids:
            try:
                results[task_id] = producer.get_result(task_id, timeout=20)
            except TaskFailed as error:
                results[task_id] = error
        assert producer.get_result(waiting, timeout=20) == [SECRET, SECRET]
        greeting = {"hello": SECRET}
        assert results[ids[0]] == {"hello": payload}
        failure = results[ids[1]]
        assert failure.type == "ValueError"
        assert SECRET in str(failure)
        assert "raise ValueError" in failure.traceback
        lavish = results[ids[2]]
        assert lavish["steps"] == [f"step {SECRET}"] * 2
        assert lavish["cursor"] == {"at": SECRET}
        assert producer.get_result(lavish["child"], timeout=20) == greeting
        assert results[ids[3]] == {"items": 3}
        assert [*producer.stream(ids[3])] == [f"{SECRET} {i}" for i in range(3)]
        assert results[ids[4]] == ["after", greeting]
        assert [results[i] for i in ids[5:10]] == [greeting] * 5
        assert results[ids[10]] == ["after", greeting]
        fired = producer.schedules.run_now("daily")
        assert producer.get_result(fired, timeout=20) == greeting
        found = everything(db)
        assert SECRET.encode() not in found
        assert b"no such customer" not in found
        assert found.count(MAGIC) > 15
        status = producer.get_task(ids[1])
        assert status.payload == payload
        (letter,) = producer.dead_letters()
        assert letter.payload == payload
        assert SECRET in str(letter.error)
        assert producer.replay(letter.id) == 1
        with pytest.raises(TaskFailed, match="no such customer"):
            producer.get_result(letter.id, timeout=20)


async def _awaited(url: str) -> Any:
    producer = AsyncTaskProducer(url=url, codec=ENCRYPTS)
    task_id = await producer.add_task("greet", SECRET)
    found = await producer.get_result(task_id, timeout=20)
    await producer.close()
    return found


def test_with_await_and_from_a_client(url: str, worker: TaskWorker, db: redis.Redis) -> None:
    """The awaited producer, a Client's named tasks and a graph's are sealed alike."""
    assert asyncio.run(_awaited(url)) == {"hello": SECRET}
    with Client(url, codec=ENCRYPTS) as client:
        assert client.submit("greet", SECRET).result(20) == {"hello": SECRET}
        failed = client.submit("broken", SECRET)
        assert SECRET in str(failed.exception(20))
    with TaskProducer(url=url, codec=ENCRYPTS) as producer:
        with producer.graph("two") as graph:
            first = graph.add("greet", SECRET)
            last = graph.add("after", after=first)
        assert producer.get_result(last, timeout=20) == ["after", {"hello": SECRET}]
    assert SECRET.encode() not in everything(db)


def test_who_sends_plain_tasks_is_answered_plainly(url: str, db: redis.Redis) -> None:
    """Without ``require``, other producers go on as they are: another language's, say."""
    with (
        TaskProducer(url=url) as plain,
        TaskProducer(url=url, codec=SIGNS) as signing,
        TaskWorker(url=url, task_handlers=registry, codec=SIGNS),
    ):
        first = plain.add_task("greet", 1)
        second = signing.add_task("greet", 2)
        assert plain.get_result(first, timeout=20) == {"hello": 1}
        assert signing.get_result(first, timeout=20) == {"hello": 1}
        assert signing.get_result(second, timeout=20) == {"hello": 2}
        assert db.hget(f"task:tasks:{first}", "result") == '{"hello":1}'
        with pytest.raises(Unreadable, match=rf"result of task {second} .*signing key k1"):
            plain.get_result(second, timeout=20)
        assert plain.get_task(second).result == "(signed, key k1)"


def test_what_is_only_compressed_needs_no_codec(url: str) -> None:
    """A worker and a producer without a codec read it, for nothing lacks."""
    large = "a" * 100_000
    with (
        TaskProducer(url=url, codec=Codec(Compress())) as compressing,
        TaskProducer(url=url) as plain,
        TaskWorker(url=url, task_handlers=registry),
    ):
        task_id = compressing.add_task("greet", large)
        assert plain.get_result(task_id, timeout=20) == {"hello": large}
        assert compressing.get_result(task_id, timeout=20) == {"hello": large}


def test_a_unique_task_that_is_replaced(url: str, producer: TaskProducer, db: redis.Redis) -> None:
    """The later payload runs under the earlier task's id, and moves nowhere else."""
    from redistq import Unique

    unique = Unique("cart:7", conflict="replace")
    first = producer.add_task("greet", "first", delay=0.2, unique=unique)
    later = producer.add_task("greet", "later", delay=0.2, unique=unique)
    assert (later.outcome, later) == ("replaced", first)
    with TaskWorker(url=url, task_handlers=registry, codec=ENCRYPTS):
        assert producer.get_result(first, timeout=20) == {"hello": "later"}
        moved = producer.add_task("greet", "other", delay=0.2, unique=Unique("cart:8"))
        _swap(db, moved, producer.add_task("greet", "x", delay=60, unique=Unique("cart:9")))
        with pytest.raises(TaskFailed, match="another task"):
            producer.get_result(moved, timeout=20)


# -- what is refused -------------------------------------------------------------------------------


def _raw(db: redis.Redis) -> Any:
    kwargs = {**db.connection_pool.connection_kwargs, "decode_responses": False}
    return redis.Redis(connection_pool=redis.ConnectionPool(**kwargs))


def _swap(db: redis.Redis, task_id: str, of: str) -> None:
    """Put the payload of another delayed task into this one, as whoever can write could."""
    with _raw(db) as raw:
        raw.hset(f"task:tasks:{task_id}", "payload", raw.hget(f"task:tasks:{of}", "payload"))


def test_a_payload_that_was_moved_or_changed_never_runs(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """Another task's, another name's, and one with a byte changed: each is a dead letter that says
    so, with its payload as it was."""
    ids = [producer.add_task("greet", n, delay=0.3) for n in range(4)]
    _swap(db, ids[0], ids[3])
    with _raw(db) as raw:
        raw.hset(f"task:tasks:{ids[1]}", "name", "after")
        payload = bytearray(raw.hget(f"task:tasks:{ids[2]}", "payload"))
        payload[-1] ^= 1
        raw.hset(f"task:tasks:{ids[2]}", "payload", bytes(payload))
    with TaskWorker(url=url, task_handlers=registry, codec=ENCRYPTS):
        for task_id in ids[:3]:
            with pytest.raises(TaskFailed, match="another task") as raised:
                producer.get_result(task_id, timeout=20)
            assert raised.value.type == "UntrustedPayload"
        assert producer.get_result(ids[3], timeout=20) == {"hello": 3}
        letter = {one.id: one for one in producer.dead_letters()}[ids[2]]
        assert letter.payload == "(encrypted, key k1)"
        with _raw(db) as raw:
            assert raw.hget(f"task:tasks:{ids[2]}", "payload") == bytes(payload)


def test_a_result_that_was_moved_is_not_believed(
    worker: TaskWorker, producer: TaskProducer, db: redis.Redis
) -> None:
    """One task's result, put into another's record, or a payload put there, or a plain one."""
    first, second = (producer.add_task("greet", n) for n in range(2))
    assert producer.get_result(first, timeout=20) == {"hello": 0}
    assert producer.get_result(second, timeout=20) == {"hello": 1}
    with _raw(db) as raw:
        place = f"task:tasks:{first}"
        mine = raw.hget(place, "result")
        for forged in (
            raw.hget(f"task:tasks:{second}", "result"),
            mine[:-1] + bytes([mine[-1] ^ 1]),
            b'{"hello":2}',
        ):
            raw.hset(place, "result", forged)
            with pytest.raises(UntrustedPayload):
                producer.get_result(first, timeout=20)
            assert producer.get_task(first).state == "succeeded"
        raw.hset(place, "result", mine)
    assert producer.get_result(first, timeout=20) == {"hello": 0}


def test_plain_tasks_are_refused_where_that_is_required(url: str, worker: TaskWorker) -> None:
    """Whoever has no key can let nothing run, with a word to whoever forgot it."""
    with TaskProducer(url=url) as plain, TaskProducer(url=url, codec=SIGNS) as signs:
        for one, words in ((plain, "not encrypted"), (signs, "signed, key k1")):
            with pytest.raises(TaskFailed, match=words) as raised:
                one.get_result(one.add_task("greet", SECRET), timeout=20)
            assert raised.value.type == "UntrustedPayload"


def test_another_key_of_the_same_name(url: str, worker: TaskWorker) -> None:
    """A key that is not ours is no missing one: the task fails, and says which key."""
    other = Codec(Encrypt(Keys({"k1": K2})))
    with (
        TaskProducer(url=url, codec=other) as producer,
        pytest.raises(TaskFailed, match="'k1'"),
    ):
        producer.get_result(producer.add_task("greet", SECRET), timeout=20)


# -- a key that is missing -------------------------------------------------------------------------


def test_a_task_waits_for_a_worker_with_its_key(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """A worker without it leaves the task alone, uncounted, until one that has it comes."""
    task_id = producer.add_task("greet", SECRET)
    with TaskWorker(url=url, task_handlers=registry):
        until(lambda: db.hget(f"task:tasks:{task_id}", "parked_ms"), "the task is parked")
        assert producer.get_task(task_id).state in ("delayed", "queued", "running")
        with TaskWorker(url=url, task_handlers=registry, codec=ENCRYPTS):
            assert producer.get_result(task_id, timeout=20) == {"hello": SECRET}
    assert db.xlen("history:tasks") == 1


def test_a_key_that_nobody_has_makes_a_dead_letter_that_can_be_replayed(
    url: str, producer: TaskProducer, db: redis.Redis
) -> None:
    """It names the key and the next step; nothing is lost."""
    task_id = producer.add_task("greet", SECRET)
    with TaskWorker(url=url, task_handlers=registry, unknown_grace=0.1):
        with pytest.raises(TaskFailed, match=r"encryption key k1 .* replay") as raised:
            producer.get_result(task_id, timeout=20)
        assert raised.value.type == "Unreadable"
    with TaskWorker(url=url, task_handlers=registry, codec=ENCRYPTS):
        assert producer.replay(task_id) == 1
        assert producer.get_result(task_id, timeout=20) == {"hello": SECRET}


def test_keys_are_rotated_while_tasks_run(url: str) -> None:
    """Workers take the new key first, then producers seal with it, then the old one goes."""
    old = Codec(Encrypt(Keys({"k1": K1})))
    both = Codec(Encrypt(Keys({"k1": K1, "k2": K2}, current="k1")))
    new = Codec(Encrypt(Keys({"k2": K2})))
    with (
        TaskProducer(url=url, codec=old) as before,
        TaskProducer(url=url, codec=both) as between,
    ):
        with TaskWorker(url=url, task_handlers=registry, codec=both):
            task_id = before.add_task("greet", 1)
            assert before.get_result(task_id, timeout=20) == {"hello": 1}
        turned = Codec(Encrypt(Keys({"k1": K1, "k2": K2}, current="k2")))
        with TaskWorker(url=url, task_handlers=registry, codec=turned):
            task_id = between.add_task("greet", 2)
            assert between.get_result(task_id, timeout=20) == {"hello": 2}
        with (
            TaskProducer(url=url, codec=new) as after,
            TaskWorker(url=url, task_handlers=registry, codec=new),
        ):
            task_id = after.add_task("greet", 3)
            assert after.get_result(task_id, timeout=20) == {"hello": 3}
            assert between.get_result(task_id, timeout=20) == {"hello": 3}


# -- what people see -------------------------------------------------------------------------------


def test_monitors_say_how_a_task_is_sealed_and_show_it_where_they_have_the_key(
    url: str, worker: TaskWorker, producer: TaskProducer, tmp_path: Path
) -> None:
    """Lists, one task, and the command: never garbage, and the content with ``--codec`` alone."""
    task_id = producer.add_task("greet", SECRET)
    failed = producer.add_task("broken", SECRET * 20)
    waits = producer.add_task("greet", SECRET, delay=60)
    producer.get_result(task_id, timeout=20)
    with pytest.raises(TaskFailed):
        producer.get_result(failed, timeout=20)
    with TaskMonitor(url=url) as monitor:
        (delayed,) = monitor.records.delayed(10)
        (dead,) = monitor.records.dead(10)
        (ticked,) = monitor.tick().dead
        task = monitor.records.task(task_id)
        assert delayed.preview == dead.preview == "(encrypted, key k1)"
        for letter in (dead, ticked):
            assert (letter.error_type, letter.error) == ("(sealed)", "(encrypted, key k1)")
        assert task.result == "(encrypted, key k1)"
        assert monitor.records.task(failed).error == "(encrypted, key k1)"
    with TaskMonitor(url=url, codec=ENCRYPTS) as monitor:
        assert json.loads(monitor.records.task(task_id).result) == {"hello": SECRET}
        assert monitor.records.task(failed).error_type == "ValueError"
        assert monitor.records.task(waits).payload == f'"{SECRET}"'
    path = tmp_path / "codec.toml"
    path.write_text(f'[encrypt.keys]\nk1 = "{K1}"\n')
    path.chmod(0o600)
    for more, shown in (([], "encrypted, key k1"), (["--codec", str(path)], SECRET)):
        args = ["-m", "redistq", "monitor", "task", task_id, "--url", url, *more]
        done = subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


def test_a_newer_format_is_left_to_newer_workers(
    url: str, db: redis.Redis, producer: TaskProducer
) -> None:
    """Options that say so are not read by halves: the task waits, and its dead letter says why."""
    fields = {"name": "greet", "payload": "1", "attempt": "1", "recovered": "0", "opts": '{"v":2}'}
    db.xadd("tasks", {"id": "new", **fields})
    with TaskWorker(url=url, task_handlers=registry, unknown_grace=0.1):
        until(lambda: db.hget("task:tasks:new", "state") == "failed", "the grace is over")
    assert json.loads(db.hget("task:tasks:new", "error") or "")["message"].startswith(
        "no worker here has the format 2 that its payload needs"
    )


# -- processes and files ---------------------------------------------------------------------------

JOBS = """
from redistq import task


@task
def greet(payload):
    return {"hello": payload}


@task(retries=0)
def broken(payload):
    raise ValueError("gone: " + payload)
"""


@pytest.mark.parametrize("way", ["--codec", "REDISTQ_CODEC"])
def test_the_command_reads_a_file_and_tells_nobody(url: str, tmp_path: Path, way: str) -> None:
    """Worker processes have the keys; neither their command lines nor their logs do."""
    path = tmp_path / "codec.toml"
    path.write_text(f'require = "encrypted"\n[encrypt.keys]\nk1 = "{K1}"\n')
    path.chmod(0o600)
    (tmp_path / "jobs.py").write_text(JOBS)
    args = ["-m", "redistq.worker", "jobs", "--log-level", "DEBUG"]
    more = {"REDISTQ_CODEC": str(path)} if way != "--codec" else {}
    command = Command(
        tmp_path, *args, *(["--codec", str(path)] if not more else []), url=url, **more
    )
    try:
        command.says("ready")
        with TaskProducer(url=url, codec=Codec.from_file(path)) as producer:
            task_id = producer.add_task("greet", SECRET)
            assert producer.get_result(task_id, timeout=20) == {"hello": SECRET}
            with pytest.raises(TaskFailed, match=f"gone: {SECRET}"):
                producer.get_result(producer.add_task("broken", SECRET), timeout=20)
        hexed = K1.encode().hex()
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found = line.read_bytes()
            except OSError:
                continue
            assert K1.encode() not in found
            assert hexed.encode() not in found
    finally:
        command.send(15)
        command.wait()
    assert K1 not in command.output
    assert hexed not in command.output


def test_a_codec_that_is_none_is_said_at_once(url: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Producers, workers and clients say so when they are made; the command ends with 2."""
    for make in (TaskProducer, Client):
        with pytest.raises(ConfigurationError, match="codec is a"):
            make(url=url, codec="aes")  # type: ignore[operator]
    with pytest.raises(ConfigurationError, match="codec is a"):
        TaskWorker(url=url, task_handlers=registry, codec="aes")
    monkeypatch.setenv("REDISTQ_CODEC", "{}x")
    with pytest.raises(ConfigurationError, match="no JSON"):
        TaskProducer(url=url)
    (tmp_path / "jobs.py").write_text(JOBS)
    command = Command(tmp_path, "-m", "redistq.worker", "jobs", url=url)
    assert command.wait() == 2
    assert "REDISTQ_CODEC is no JSON" in command.output
