"""Durable steps of function calls: kept signed, seen, run again here, gone on with."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, serving
from support.workers import until

from redistq import Client, RedistqError, TaskProducer, UntrustedPayload, current_task


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


@pytest.fixture(autouse=True)
def no_events(client: Client) -> None:
    """No event is kept from the test before."""
    client.broker.call(("DEL", client.keys.event_prefix + "go"))


def lines(path: Path) -> list[str]:
    """What steps have written, in order."""
    return path.read_text().split() if path.exists() else []


def job(path: str, how: str = "") -> Any:
    """Two steps that write a line each, and what comes between them."""
    context = current_task()

    def write(line: str) -> set[str]:
        with open(path, "a") as file:
            file.write(line + "\n")
        return {line}

    first = context.step("one", write, "one")
    if how == "sleep":
        context.sleep(0.1)
    if how == "wait":
        first |= {context.wait_for("go", 60)}
    if how == "fail":
        raise ValueError("between")
    return [first, context.step("two", write, "two")]


async def ajob(path: str, how: str = "") -> Any:
    """The same, asynchronous."""
    context = current_task()

    async def write(line: str) -> set[str]:
        with open(path, "a") as file:
            file.write(line + "\n")
        return {line}

    first = await context.step("one", write, "one")
    if how == "sleep":
        await context.asleep(0.1)
    if how == "wait":
        first |= {await context.await_for("go", 60)}
    if how == "fail":
        raise ValueError("between")
    return [first, await context.astep("two", write, "two")]


def test_steps_of_a_function_run_once(client: Client, tmp_path: Path) -> None:
    """They may come to anything that can be pickled."""
    for number, fn in enumerate((job, ajob)):
        path = tmp_path / str(number)
        future = client.submit(fn, str(path), "sleep")
        assert future.result(20) == [{"one"}, {"two"}]
        assert lines(path) == ["one", "two"]
        assert [s.name for s in future.steps()] == ["one", "sleep", "two"]


def test_a_function_takes_signed_events(client: Client, tmp_path: Path) -> None:
    """From a client; what a producer sends without the key is refused, and says what to do."""
    for number, fn in enumerate((job, ajob)):
        future = client.submit(fn, str(tmp_path / f"a{number}"), "wait")
        until(lambda f=future: len(f.steps()) == 2, "it waits")
        client.send_event("other", "no")
        assert client.send_event("go", "went", task=future) == 1
        assert future.result(20) == [{"one", "went"}, {"two"}]
    future = client.submit(job, str(tmp_path / "b"), "wait")
    until(lambda: len(future.steps()) == 2, "it waits")
    with TaskProducer(address=client.address) as producer:
        assert producer.send_event("go", "faked") == 1
        with pytest.raises(UntrustedPayload, match=r"not signed.*client\.send_event"):
            future.result(20)
        producer.broker.call(("DEL", producer.keys.event_prefix + "go"))
    again = future.replay(forget_steps=True)
    until(lambda: len(again.steps()) == 2, "it waits")
    assert client.send_event("go", "for all") == 1
    assert again.result(20) == [{"one", "for all"}, {"two"}]
    assert client.submit(job, str(tmp_path / "c"), "wait").result(20)[0] == {"one", "for all"}


def test_an_event_is_for_its_name_and_task_alone(client: Client, tmp_path: Path) -> None:
    """One that is signed, and put elsewhere on the server, is refused."""
    keys = client.keys
    future = client.submit(job, str(tmp_path / "a"), "wait")
    until(lambda: len(future.steps()) == 2, "it waits")
    client.send_event("another name", "1")
    packet = client.broker.call(("GET", keys.event_prefix + "another name"))
    body = packet.partition(b"\n")[2]
    commands = client._session.queue().commands
    client.broker.call(commands.send_event("go", "mark", body, 60_000, future.task_id))
    with pytest.raises(UntrustedPayload):
        future.result(20)


def failed(client: Client, path: Path, fn: Any = job) -> Any:
    """A future of a call that failed after its first step."""
    future = client.submit(fn, str(path), "fail")
    with pytest.raises(ValueError, match="between"):
        future.result(20)
    return future


def record_key(client: Client, future: Any) -> str:
    """The key of a task's record."""
    key: str = client.keys.task(future.task_id)
    return key


def test_steps_cannot_be_faked(client: Client, tmp_path: Path) -> None:
    """Whoever can write to the server can neither change a step, nor take one of another place, of
    another name or of another task."""
    one, two = failed(client, tmp_path / "a"), failed(client, tmp_path / "b")
    call = client.broker.call
    own = call(("HGET", record_key(client, one), "step:1"))
    other = call(("HGET", record_key(client, two), "step:1"))
    head, _, body = own.partition(b"-\n")
    assert body.startswith(b"\0rq2")
    forged = [
        other,
        own.replace(b"one\n", b"two\n", 1),
        head + b"-\n" + body[:-1] + b"!",
        head + b"-\n" + b'"json"',
    ]
    for value in forged:
        call(("HSET", record_key(client, one), "step:1", value))
        again = one.replay()
        with pytest.raises((UntrustedPayload, RedistqError)):
            again.result(20)
    call(("HSET", record_key(client, one), "step:1", own))
    with pytest.raises(ValueError, match="between"):
        one.replay().result(20)
    assert lines(tmp_path / "a") == ["one"]


def test_debug_runs_the_call_here_with_its_steps(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is given back, and where it raises the debugger stops."""
    future = failed(client, tmp_path / "a")
    with pytest.raises(ValueError, match="between"):
        future.debug(post_mortem=False)
    assert lines(tmp_path / "a") == ["one"]
    stopped: list[Any] = []
    monkeypatch.setattr("pdb.post_mortem", stopped.append)
    with pytest.raises(ValueError, match="between"):
        future.debug()
    assert stopped

    async def in_a_loop() -> None:  # as in a cell of a notebook
        with pytest.raises(ValueError, match="between"):
            future.debug(post_mortem=False)

    asyncio.run(in_a_loop())
    asynchronous = failed(client, tmp_path / "b", ajob)
    with pytest.raises(ValueError, match="between"):
        asyncio.run(asynchronous.debug(post_mortem=False))
    assert lines(tmp_path / "b") == ["one"]
    with pytest.raises(RedistqError, match="no task runs here"):
        current_task()


def test_debug_of_a_task_that_waits(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is given an event, later steps run here, and nothing of it is kept."""
    future = client.submit(job, str(tmp_path / "a"), "wait")
    until(lambda: len(future.steps()) == 2, "it waits")
    with pytest.raises(RedistqError, match=r"future\.debug\(events="):
        future.debug(post_mortem=False)
    assert future.debug(events={"go": "here"}) == [{"one", "here"}, {"two"}]
    assert lines(tmp_path / "a") == ["one", "two"]
    assert len(future.steps()) == 2
    client.send_event("go", "there", task=future.task_id)
    assert future.result(20) == [{"one", "there"}, {"two"}]
    assert lines(tmp_path / "a") == ["one", "two", "two"]


def test_a_failed_call_goes_on_with_the_mended_function(client: Client, tmp_path: Path) -> None:
    """The same arguments, after the steps that are done."""

    def mended(path: str, how: str = "") -> Any:
        return job(path)

    future = failed(client, tmp_path / "a")
    again = future.continue_with(mended)
    assert again.task_id == future.task_id
    assert again.result(20) == [{"one"}, {"two"}]
    assert lines(tmp_path / "a") == ["one", "two"]
    with pytest.raises(RedistqError, match="has not failed, it is succeeded"):
        again.continue_with(mended)
    with pytest.raises(TypeError, match="takes a function"):
        again.continue_with("mended")  # type: ignore[arg-type]


def test_a_gated_call_goes_on_with_the_mended_function(client: Client, tmp_path: Path) -> None:
    """Whatever its deadline was, and with its limits."""

    def mended(path: str, how: str = "") -> Any:
        return job(path)

    calls = client.options(limits="one", expires=0.5)
    future = calls.submit(job, str(tmp_path / "a"), "fail")
    with pytest.raises(ValueError, match="between"):
        future.result(20)
    threading.Event().wait(0.6)
    assert future.continue_with(mended).result(20) == [{"one"}, {"two"}]


def test_a_batch_of_other_items_begins_anew(client: Client, tmp_path: Path) -> None:
    """Steps of the same call go on; those of another item are no answer to this one."""
    flag = tmp_path / "mended"

    def work(item: str) -> Any:
        def write() -> str:
            with open(item, "a") as file:
                file.write("x")
            return item

        done = current_task().step("write", write)
        if not os.path.exists(flag):
            raise ValueError("no")
        return done

    items = [str(tmp_path / "a"), str(tmp_path / "b")]
    batch = client.map_batch(work, items, name="steps")
    batch.wait(20)
    assert batch.counts()["failed"] == 2
    flag.touch()
    items[1] = str(tmp_path / "c")
    again = client.map_batch(work, items, name="steps")
    assert list(again.results()) == items
    assert [Path(name).read_text() for name in items] == ["x", "x"]


def test_a_client_without_the_key_cannot_read_steps(client: Client, tmp_path: Path) -> None:
    """It sees that they are there."""
    future = failed(client, tmp_path / "a")
    with Client(address_of(client), signing_key="another key " + KEY) as other:
        seen = other.future(future.task_id)
        assert [step.name for step in seen.steps()] == ["one"]
        with pytest.raises(UntrustedPayload):
            seen.debug(post_mortem=False)


def address_of(client: Client) -> str:
    """The server's URL."""
    url: str = client.server.url  # type: ignore[attr-defined]
    return url
