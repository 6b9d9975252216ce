"""A server that says no for a while, or lacks something: who waits, who goes on, who is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions as rex
from redis.utils import HIREDIS_AVAILABLE
from support.servers import Server, free_port
from support.workers import Command, command, history, registered, until

from redistq import (
    AsyncTaskProducer,
    Client,
    ConfigurationError,
    RedistqError,
    ServerFull,
    ServerUnavailable,
    TaskMonitor,
    TaskProducer,
    TaskScheduler,
    TaskWorker,
)
from redistq.connection.redis_py import ServerError, meaning_of
from redistq.errors import ConnectionLost, GroupMissing, Refused

JOBS = "from redistq import task\n\n@task\ndef double(payload):\n    return payload * 2\n"


def parsed(text: str) -> Exception:
    """An error as the client library hands it over."""
    assert HIREDIS_AVAILABLE
    from redis._parsers.base import BaseParser

    error: Exception = BaseParser.parse_error(text)
    return error


# -- what errors mean ------------------------------------------------------------------------------

PASSING = [
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "UNKILLABLE Sorry the script already executed write commands against the dataset.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "MOVED 3999 127.0.0.1:6381",
    "EXECABORT Transaction discarded because of previous errors.",
    "ERR max number of clients reached",
    "ERR max number of clients + cluster connections reached",
    "ERR backend server 'server5' not available",
    "ERR Connection refused",
    "ERR upstream failure",
    "no upstream host",
]

IN_SCRIPTS = [text for text in PASSING if text.split()[0] not in ("ERR", "no", "MOVED")]


@pytest.mark.parametrize("text", PASSING)
def test_refusals_that_pass_are_told_from_others(text: str) -> None:
    """Whatever a server or a proxy says that will be otherwise soon is asked again."""
    assert isinstance(meaning_of(parsed(text)), ConnectionLost)


@pytest.mark.parametrize("text", IN_SCRIPTS)
@pytest.mark.parametrize(
    "wrapped",
    [
        "{} script: 2f3f7d9c0a1b, on @user_script:12.",
        "ERR Error running script (call to f_2f3f): @user_script:5: @user_script: 5: -{}",
        "ERR {} script: 2f3f7d9c0a1b, on @user_script:12.".replace("ERR ", "ERR Error: -"),
    ],
)
def test_refusals_inside_a_script_are_recognised(text: str, wrapped: str) -> None:
    """Each server reports the error of a script's command in its own way; its words are kept."""
    meaning = meaning_of(parsed(wrapped.format(text)))
    assert isinstance(meaning, ConnectionLost)
    assert text.split()[-1].strip(".") in str(meaning)


@pytest.mark.parametrize(
    ("text", "kind", "advice"),
    [
        ("NOAUTH Authentication required.", ConfigurationError, "password|refused"),
        ("WRONGPASS invalid username-password pair", ConfigurationError, "refused"),
        ("NOPERM User app has no permissions to run the 'xadd' command", ConfigurationError, "ACL"),
        (
            "ERR ACL failure in script: No permissions to access a channel script: on @user_s:1.",
            ConfigurationError,
            "ACL",
        ),
        (
            "ERR The user executing the script can't run this command or subcommand script: 5",
            ConfigurationError,
            "ACL",
        ),
        ("WRONGTYPE Operation against a key", ConfigurationError, "another name"),
        ("ERR unknown command 'XADD', with args beginning with: ", ConfigurationError, "renamed"),
        ("CROSSSLOT Keys in request don't hash", ConfigurationError, "redis.cluster"),
        ("DENIED Redis is running in protected mode", ConfigurationError, "from here"),
        ("ERR DB index is out of range", ConfigurationError, "database"),
        ("OOM command not allowed when used memory > 'maxmemory'.", ServerFull, "maxmemory"),
        ("NOGROUP No such key 'tasks' or consumer group 'workers'", GroupMissing, "NOGROUP"),
        ("ERR value is not an integer or out of range", ServerError, "out of range"),
    ],
)
def test_what_does_not_pass_is_said_at_once(text: str, kind: type, advice: str) -> None:
    """Settings, rights and keys that are wrong stay wrong; the message says what to do."""
    meaning = meaning_of(parsed(text))
    assert isinstance(meaning, kind)
    assert not isinstance(meaning, ConnectionLost)
    with pytest.raises(kind, match=advice):
        raise meaning


def test_every_answer_of_a_server_is_one_of_our_errors() -> None:
    """Who catches RedistqError, or redis-py's ResponseError, catches what nobody expected too."""
    error = meaning_of(parsed("ERR something new"))
    assert isinstance(error, RedistqError)
    assert isinstance(error, rex.ResponseError)


# -- living through them ---------------------------------------------------------------------------


@contextlib.contextmanager
def refusing(server: Server, how: str) -> Iterator[None]:
    """A server that refuses in one of the ways a real one does, until the block's end."""
    with server.client(retry=None) as db:
        if how == "no replicas":
            db.config_set("min-replicas-to-write", 1)
            yield
            db.config_set("min-replicas-to-write", 0)
        elif how == "no primary":
            db.execute_command("REPLICAOF", "127.0.0.1", free_port())
            yield
            db.execute_command("REPLICAOF", "NO", "ONE")
        else:
            db.config_set("lua-time-limit", 10)

            def hog() -> None:
                with (
                    server.client(retry=None, socket_timeout=60) as busy,
                    contextlib.suppress(redis.RedisError),
                ):
                    busy.eval("while true do end", 0)

            thread = threading.Thread(target=hog)
            thread.start()
            until(lambda: _says_busy(db), "the script that holds the server")
            yield
            db.execute_command("SCRIPT", "KILL")
            thread.join(10)


def _says_busy(db: redis.Redis) -> bool:
    try:
        db.ping()
    except redis.RedisError as error:
        return "BUSY" in str(error) or "busy" in str(error)
    return False


WAYS = ["no replicas", "no primary", "busy"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("flavour", ["valkey", "redis7", "redis62"])
def test_a_call_waits_for_a_server_that_refuses_for_now(
    private_server: Callable[..., Server], flavour: str, how: str
) -> None:
    """Stored when the server gives way within the timeout; else ServerUnavailable in its words."""
    if (flavour, how) == ("redis62", "no replicas"):
        pytest.skip("this server lets scripts write without replicas")
    server = private_server(flavour)
    words = {"no replicas": "NOREPLICAS", "no primary": "READONLY", "busy": "BUSY"}[how]

    async def awaited(timeout: float) -> Any:
        async with AsyncTaskProducer(url=server.url, timeout=timeout) as producer:
            return await producer.add_task("a")

    with TaskProducer(url=server.url, timeout=20) as patient:
        with refusing(server, how):
            with TaskProducer(url=server.url, timeout=0.3) as hasty:
                for call in (lambda: hasty.add_task("a"), lambda: hasty.add_tasks([("a", 1)] * 9)):
                    with pytest.raises(ServerUnavailable, match=words):
                        call()
            with pytest.raises(ServerUnavailable, match=words):
                asyncio.run(awaited(0.3))
            with (
                TaskMonitor(url=server.url, timeout=0.3) as monitor,
                contextlib.suppress(ServerUnavailable),  # reading may go on
            ):
                monitor.snapshot()
            ids: list[str] = []
            waiting = [
                threading.Thread(target=lambda: ids.append(patient.add_task("a"))),
                threading.Thread(target=lambda: ids.append(asyncio.run(awaited(20)))),
            ]
            for thread in waiting:
                thread.start()
            time.sleep(0.3)  # they are refused meanwhile
            assert not ids
        for thread in waiting:
            thread.join(10)
        assert len(ids) == 2
        assert patient.snapshot().ready == 2


@pytest.mark.parametrize("how", WAYS)
def test_workers_and_clients_live_through_a_server_that_refuses(
    private_server: Callable[..., Server], tmp_path: Path, how: str
) -> None:
    """For longer than a lease: the same processes go on, and whoever waited has the result."""
    server = private_server()
    (tmp_path / "jobs.py").write_text(JOBS)
    worker = Command(
        tmp_path, "-m", "redistq.worker", "jobs", "--lease", "1", "--processes", "2", url=server.url
    )
    try:
        worker.says("ready:")
        with server.client() as db, TaskProducer(url=server.url) as producer:
            before = until(lambda: len(p := registered(db)) == 2 and p, "two workers")
            with Client(url=server.url, signing_key="k" * 32) as client:
                assert client.submit("double", 1).result(10) == 2
                with refusing(server, how):
                    time.sleep(2.5)  # longer than the lease
                    assert worker.process.poll() is None
                assert client.submit("double", 2).result(20) == 4
            task = producer.add_task("double", 3)
            assert producer.get_result(task, 10) == 6
            assert history(db, task) == ["succeeded"]
            assert registered(db) == before
        assert "Traceback" not in worker.output
    finally:
        worker.close()


@pytest.mark.parametrize("how", ["no primary", "busy", "too many clients"])
def test_a_worker_waits_to_start_while_its_server_refuses(
    private_server: Callable[..., Server],
    tmp_path: Path,
    how: str,
) -> None:
    """Started beside a server that is loading or without its primary it is ready when that is; one
    that is told to end meanwhile ends."""
    server = private_server()
    (tmp_path / "jobs.py").write_text(JOBS)
    # Only how long one question may take; the wait has no end of its own.
    (tmp_path / "quick.py").write_text(
        "import sys\n"
        "from redistq.cli import worker as worker_cli\n"
        "Broker = worker_cli.Broker\n"
        "worker_cli.Broker = lambda *a, **k: Broker(*a, **{**k, 'timeout': 0.3})\n"
        "sys.exit(worker_cli.main())\n"
    )
    with server.client(retry=None) as db, contextlib.ExitStack() as workers:
        if how == "too many clients":
            db.config_set("maxclients", 1)
            block: Any = contextlib.nullcontext()
        else:
            db.config_set("replica-serve-stale-data", "no")
            block = refusing(server, how)
        with block:
            one, other = (
                workers.enter_context(command(tmp_path, "quick.py", "jobs", url=server.url))
                for _ in range(2)
            )
            for each in (one, other):
                each.says("waiting to start")
            other.process.terminate()
            assert other.process.wait(10) == 0
            time.sleep(0.5)  # longer than one question
            assert one.process.poll() is None
        db.config_set("maxclients", 1000)
        one.says("ready:")
        with TaskProducer(url=server.url) as producer:
            assert producer.get_result(producer.add_task("double", 3), 10) == 6


# -- servers that lack something -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CLIENT", "EVALSHA", "SUBSCRIBE", "INFO", "CONFIG"])
def test_commands_that_were_renamed_away_are_done_without(
    private_server: Callable[..., Server], name: str
) -> None:
    """Names of connections, script hashes, channels and settings are comforts."""
    server = private_server(args=("--rename-command", name, ""))
    with (
        TaskWorker(url=server.url, task_handlers={"double": lambda n: n * 2}),
        TaskProducer(url=server.url, timeout=5) as producer,
    ):
        assert producer.get_result(producer.add_task("double", 2), 10) == 4
        ids = producer.add_tasks([("double", n) for n in range(300)])
        assert [producer.get_result(i, 10) for i in ids] == [n * 2 for n in range(300)]

    async def awaited() -> Any:
        async with AsyncTaskProducer(url=server.url, timeout=5) as producer:
            return await producer.add_task("double")

    assert asyncio.run(awaited())


def test_a_scheduler_that_may_not_listen_looks_by_itself(
    private_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a right to the channel delayed tasks are hardly late, and one line says why."""
    server = private_server()
    with server.client() as db:
        db.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "resetchannels", "+@all")
    user = server.url.replace("//", "//app:pw@")
    with (
        TaskScheduler(url=user),
        TaskProducer(url=server.url) as producer,
        server.client() as db,
        caplog.at_level(logging.WARNING, "redistq"),
    ):
        for _ in range(2):
            at = time.monotonic()
            producer.add_task("a", delay=0.2)
            until(lambda: producer.snapshot().delayed == 0, "the due task")
            assert time.monotonic() - at < 0.2 + 0.5 + 0.5
        assert [r.levelname for r in caplog.records if "channel" in r.getMessage()] == ["WARNING"]
        assert "&wake:tasks" in caplog.text


def test_a_refusal_is_no_answer_of_the_next_call(
    private_server: Callable[..., Server],
) -> None:
    """The connection is kept and its time limit with it, however often a call was refused."""
    server = private_server()
    with TaskProducer(url=server.url, timeout=0.4) as producer:
        producer.add_task("a")
        with refusing(server, "no replicas"):
            for _ in range(3):
                with pytest.raises(ServerUnavailable, match=r"refuses for 0\.4 s"):
                    producer.add_task("a")
        wire = producer.broker._idle[-1]
        assert wire.opened == 1
        assert wire._transport is not None
        assert wire._transport._limit == 0.4  # type: ignore[attr-defined]
        assert producer.snapshot().ready == 1
    assert issubclass(Refused, ConnectionLost)
