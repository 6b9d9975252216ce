"""What is no Redis server, or a proxy that mixes answers up: every call ends with an error that
says so, and what runs in the background goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.clients import session

from redistq import (
    AsyncTaskProducer,
    Client,
    RedistqError,
    TaskMonitor,
    TaskProducer,
    TaskScheduler,
    UnexpectedReply,
)
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.protocol.commands import Commands
from redistq.protocol.keys import QueueKeys
from redistq.protocol.replies import checked, messages, read
from redistq.worker.queues import Reader, WorkerQueue
from redistq.worker.scoreboard import Scoreboard

PATIENCE_S = 10.0

NONSENSE = {
    "int": b":7\r\n",
    "large": b":4611686018427387904\r\n",
    "null": b"$-1\r\n",
    "word": b"$5\r\nhello\r\n",
    "status": b"+OK\r\n",
    "empty": b"*0\r\n",
    "nulls": b"*2\r\n*1\r\n$-1\r\n*-1\r\n",
    "ints": b"*3\r\n:1\r\n:2\r\n:3\r\n",
    "words": b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "map": b"%1\r\n$1\r\na\r\n:1\r\n",
    "deep": b"*1\r\n*2\r\n$3\r\n1-0\r\n*1\r\n*1\r\n:5\r\n",
    "bytes": b"*2\r\n$2\r\n\xff\xfe\r\n*2\r\n$1\r\n\xff\r\n:1\r\n",
}
"""Well-formed answers that are none to most commands."""


class Liar:
    """A server on 127.0.0.1 that greets like Redis and answers all else with the same thing; with
    ``pong`` it answers PING as well."""

    def __init__(self, answer: bytes, pong: bool = False) -> None:
        self.answer = answer
        self.pong = pong
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                self._open.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), peer, peer.makefile("rb") as lines:
            while head := lines.readline():
                words = []
                for _ in range(int(head[1:])):
                    size = int(lines.readline()[1:])
                    words.append(lines.read(size + 2)[:-2].upper())
                greeting = words[0] in (b"CLIENT", b"SELECT", b"AUTH", b"HELLO")
                answer = b"+OK\r\n" if greeting else self.answer
                peer.sendall(b"+PONG\r\n" if self.pong and words[0] == b"PING" else answer)

    def close(self) -> None:
        """Close every connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for peer in self._open:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)


@pytest.fixture(params=NONSENSE)
def liar(request: pytest.FixtureRequest) -> Iterator[Liar]:
    """A server for each kind of nonsense."""
    made = Liar(NONSENSE[request.param])
    yield made
    made.close()


def ends_well(what: str, call: Callable[[], Any]) -> bool:
    """Whether a call raised a RedistqError; it may answer where the nonsense is an answer to it.
    Fails for every other error, and for a call that takes too long."""
    began = time.monotonic()
    try:
        call()
        return False
    except (RedistqError, TimeoutError):
        return True
    except Exception as error:
        raise AssertionError(f"{what} raised {error!r}") from error
    finally:
        assert time.monotonic() - began < PATIENCE_S, f"{what} took too long"


def test_every_call_of_a_producer_ends_with_an_error_of_ours(liar: Liar) -> None:
    """Whatever the server answers, a producer's calls raise RedistqError or take it as an answer;
    those that read something are never answered by nonsense."""
    with TaskProducer(url=liar.url, timeout=2) as producer:
        calls: dict[str, Callable[[], Any]] = {
            "add_tasks": lambda: producer.add_tasks([("a", 1), ("b", 2)]),
            "add_task": lambda: producer.add_task("a", 1),
            "schedule_task": lambda: producer.schedule_task("a", 1, delay=5),
            "purge": producer.purge,
            "purge one": lambda: producer.purge("x"),
            "pause": producer.pause,
            "resume": producer.resume,
            "dead_letters": producer.dead_letters,
            "replay one": lambda: producer.replay("x"),
        }
        for what, call in calls.items():
            ends_well(what, call)
        reading: dict[str, Callable[[], Any]] = {
            "get_result": lambda: producer.get_result("x", timeout=1),
            "get_task": lambda: producer.get_task("x"),
            "cancel": lambda: producer.cancel("x", "y", "z"),
            "snapshot": producer.snapshot,
            "replay": producer.replay,
        }
        for what, call in reading.items():
            assert ends_well(what, call), f"{what} was answered"


def test_every_call_of_an_async_producer_ends_with_an_error_of_ours(liar: Liar) -> None:
    """As for the producer that blocks."""

    async def ask() -> None:
        async with AsyncTaskProducer(url=liar.url, timeout=2) as producer:
            for call in (
                producer.add_task("a", 1),
                producer.add_tasks([("a", 1), ("b", 2)]),
                producer.pause(),
                producer.purge("x"),
            ):
                with contextlib.suppress(RedistqError):
                    await asyncio.wait_for(call, PATIENCE_S)
            for look in (
                producer.get_result("x", timeout=1),
                producer.get_task("x"),
                producer.cancel("x", "y", "z"),
                producer.snapshot(),
            ):
                with pytest.raises(RedistqError):
                    await asyncio.wait_for(look, PATIENCE_S)

    asyncio.run(ask())


def test_every_call_of_a_monitor_ends_with_an_error_of_ours(liar: Liar) -> None:
    """Whatever the server answers, no look at a queue raises another error than RedistqError."""
    with TaskMonitor(url=liar.url, timeout=2) as monitor:
        for what in ("snapshot", "tick", "get_queue_stats", "get_workers"):
            assert ends_well(what, getattr(monitor, what)), f"{what} was answered"
        for what in ("events", "pending", "delayed", "dead", "failures", "consumers", "batches"):
            ends_well(what, getattr(monitor.records, what))
        assert ends_well("task", lambda: monitor.records.task("x"))
        for what in (name for name in dir(type(monitor)) if name.startswith("get_")):
            given = ("x",) if what == "get_task" else ()
            ends_well(what, partial(getattr(monitor, what), *given))


def test_every_call_of_a_client_ends_with_an_error_of_ours(liar: Liar) -> None:
    """Futures of a client fail with RedistqError, and so does whatever else is asked of it."""
    client = Client(url=liar.url, timeout=2, signing_key="k" * 32)
    session(client).exchange.listener.give_up_s = 1.0
    try:
        calls: dict[str, Callable[[], Any]] = {
            "submit": lambda: client.submit(len, "abc").result(timeout=4),
            "future": lambda: client.future("call-x").result(timeout=4),
            "map": lambda: list(client.map(len, ["a"], timeout=4)),
            "batch of": lambda: client.batch("x").wait(timeout=2),
            "map_batch": lambda: client.map_batch(len, ["a", "b"]).wait(timeout=2),
            "logs": lambda: client.future("call-y").logs,
            "homes_served": client.homes_served,
            "drop_leftovers": client.drop_leftovers,
        }
        for what, call in calls.items():
            ends_well(what, call)
    finally:
        ends_well("shutdown", lambda: client.shutdown(wait=False))


def test_the_error_says_what_was_asked_and_what_came() -> None:
    """It names the command and the beginning of the answer, and asks what this server is."""
    liar = Liar(b"*3\r\n:1\r\n*1\r\n*1\r\n:2\r\n$90\r\n" + b"x" * 90 + b"\r\n")
    try:
        with TaskProducer(url=liar.url, timeout=2) as producer:
            with pytest.raises(UnexpectedReply) as caught:
                producer.snapshot()
            with pytest.raises(UnexpectedReply, match=r"^TIME was answered with \[1, \[\["):
                producer.purge()
    finally:
        liar.close()
    said = str(caught.value)
    assert said.startswith("the script snapshot was answered with [1, [[2]], b'xxxx")
    assert said.endswith("is this really a Redis server, or a proxy that changes answers?")
    assert caught.value.command == "the script snapshot"
    assert len(caught.value.reply) < 100


def test_an_answer_that_belongs_to_another_call_ends_its_connection() -> None:
    """After nonsense the next call begins on a connection of its own: the answer to the last one
    may still be under way."""
    liar = Liar(NONSENSE["nulls"])
    try:
        with TaskProducer(url=liar.url, timeout=2) as producer:
            with pytest.raises(UnexpectedReply):
                producer.add_task("a")
            liar.answer = NONSENSE["empty"]
            producer.add_task("a")
            assert len(liar._open) == 2
    finally:
        liar.close()


def test_a_scheduler_says_it_in_one_line_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """No traceback, and no end of its thread."""
    liar = Liar(NONSENSE["words"])
    try:
        with caplog.at_level(logging.WARNING), TaskScheduler(url=liar.url) as scheduler:
            deadline = time.monotonic() + PATIENCE_S
            while not caplog.records and time.monotonic() < deadline:
                time.sleep(0.01)
            assert scheduler._thread is not None
            assert scheduler._thread.is_alive()
    finally:
        liar.close()
    assert "waits for the server: " in caplog.messages[0]
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.parametrize("pong", [False, True], ids=["PING too", "all but PING"])
def test_a_worker_that_starts_there_ends_and_says_why(pong: bool, tmp_path: Path) -> None:
    """As with any server that cannot be used: one line of error, exit code 1, no other process."""
    (tmp_path / "jobs.py").write_text("from redistq import task\n\n@task\ndef a(x):\n    pass\n")
    liar = Liar(NONSENSE["word"], pong)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "redistq.worker", "jobs", "--url", liar.url],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        liar.close()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    what = "the script rights" if pong else "PING"
    assert f"ERROR redistq.worker: {what} was answered with b'hello'" in done.stderr


@pytest.mark.parametrize("odd", [[b"1-0", b"text"], [b"1-0", 7], [7, [b"a", b"b"]]])
def test_what_is_no_entry_is_said_before_it_is_taken_for_a_task(odd: Any) -> None:
    """The fetcher's read ends with UnexpectedReply, which its loop reports in one line."""
    liar = Liar(b"")
    scoreboard = Scoreboard.create(1)
    queue = WorkerQueue("tasks", COMMANDS, scoreboard, 0)
    broker = Broker(Address(liar.url))
    connection = broker.connection(5.0)
    reader = Reader(broker, [queue], "c", "", lambda seconds: None)
    try:
        for entry in (odd, [b"1-0", None], [b"1-0", [b"a", b"b"]]):
            liar.answer = in_resp([[b"tasks", [entry]]])
            if entry is odd:
                with pytest.raises(UnexpectedReply, match=r"^XREADGROUP was answered with "):
                    reader.read(connection, 1, 10)
            else:
                assert reader.read(connection, 1, 10) == [(*entry, queue)]
    finally:
        connection.close()
        broker.close()
        scoreboard.unmap()
        liar.close()


def in_resp(value: Any) -> bytes:
    """A reply as a server sends it."""
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(in_resp, value))
    if isinstance(value, int):
        return b":%d\r\n" % value
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


COMMANDS = Commands(QueueKeys("tasks"))


@pytest.mark.parametrize(
    ("command", "good", "bad"),
    [
        (("TIME",), [b"1", b"2"], [b"1", b"x"]),
        (("XRANGE", "k", "-", "+"), [[b"1-0", [b"a", b"b"]]], [[b"1-0", [b"a"]]]),
        (("HMGET", "k", "a", "b"), [None, b"x"], [None]),
        (COMMANDS.enqueue(["a"] * 10), [2, [1, b"w", b"id"]], [3]),
        (COMMANDS.enqueue(["a"] * 10), [], [[1, b"w"]]),
        (COMMANDS.settle("c", [("a",) * 11]), [[1, b"w"]], [0]),
        (COMMANDS.cancel(["a", "b"], 1), [b"unknown"] * 2, [b"unknown"]),
        (COMMANDS.watch("a"), [b"queued", [b"entry", b"1-0"], b""], [b"queued", [], b""]),
        (COMMANDS.watch("a"), [b"unknown", [], b""], [b"hello", [], b""]),
        (COMMANDS.browse("history", 5), [1, [[b"1-0", []]], b""], [1, [[b"x", []]], b""]),
        (
            COMMANDS.browse("dead", 5),
            [1, [[b"i", b"1.5", []]], b""],
            [1, [[b"i", b"inf", []]], b""],
        ),
    ],
)
def test_an_answer_is_known_by_its_shape(command: Any, good: Any, bad: Any) -> None:
    """What such a command may answer is let through as it is, what it cannot is an error."""
    assert checked(command, good) is good
    with pytest.raises(UnexpectedReply):
        checked(command, bad)


def test_what_a_reader_cannot_read_is_said_and_its_own_errors_are_left() -> None:
    """Raw errors of reading become UnexpectedReply; ours go through."""
    with pytest.raises(UnexpectedReply, match=r"^GET was answered with b'x'"):
        read(("GET", "k"), b"x", int)

    def refuse(reply: Any) -> Any:
        raise RedistqError("no")

    with pytest.raises(RedistqError, match=r"^no$"):
        read(("GET", "k"), b"x", refuse)
    assert messages(("XREAD",), [[b"s", [[b"1-0", [b"a", b"b"]]]]]) == [("1-0", [b"a", b"b"])]
    assert messages(("XREAD",), None) == []
    for odd in (7, [7], [[b"s", 7]], [[b"s", [[b"1-0", 7]]]]):
        with pytest.raises(UnexpectedReply):
            messages(("XREAD",), odd)
