"""client.every and client.schedules: functions that run at their times, whoever is there."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.clients import KEY, serving
from support.schedules import record, shift
from support.workers import until

from redistq import Client, ConfigurationError, TaskProducer, UnknownSchedule, UntrustedPayload
from redistq.client.schedules import STORED_S

HOUR = "0 * * * *"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with a worker process."""
    with serving(1) as client:
        yield client


@pytest.fixture
def lone(url: str) -> Iterator[Client]:
    """A client without workers."""
    client = Client(url, signing_key=KEY)
    yield client
    client.close()


@pytest.fixture
def server_of(client: Client) -> Iterator[redis.Redis]:
    """A connection to the module's server."""
    # What is no text goes through as it is.
    how = {"decode_responses": True, "encoding_errors": "surrogateescape"}
    with client.server.client(**how) as db:  # type: ignore[attr-defined]
        yield db


def blobs_of(db: redis.Redis, name: str) -> list[str]:
    """The keys of what a schedule keeps."""
    return [f"blob:tasks:{blob}" for blob in record(db, name)["keeps"].split()]


def test_a_function_runs_at_its_times(client: Client, server_of: redis.Redis) -> None:
    """Each occurrence once, by value; its result is there as that of every call."""

    def report() -> str:
        return "made"

    assert client.every("0 6 * * mon", tz="Europe/Berlin")(report) is report
    schedule = client.schedules["report"]
    assert (schedule.rule, schedule.source) == ("At 06:00 on Monday (Europe/Berlin)", "function")
    assert schedule.last is None
    week_ms = 7 * 86_400_000
    shift(server_of, "report", -week_ms)
    until(lambda: client.schedules["report"].fired == 1, "it has fired", 20)
    last = client.schedules["report"].last
    assert last is not None
    assert last.result(20) == "made"
    assert client.schedules["report"].run_now().result(20) == "made"
    assert client.schedules["report"].delete()
    with pytest.raises(UnknownSchedule):
        client.schedules["report"]


def test_every_so_often(client: Client, tmp_path: Path) -> None:
    """An interval, with options of a call; a partial has its arguments."""

    def note(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")

    path = tmp_path / "notes"
    client.options(retries=2, timeout=10).every(0.2, name="notes")(
        functools.partial(note, str(path))
    )
    until(lambda: path.exists() and len(path.read_text()) >= 3, "three times", 20)
    client.schedules.delete("notes")


def test_sent_again_it_is_another_version(client: Client, server_of: redis.Redis) -> None:
    """The same again changes nothing; what is gone expires in a week, what is named stays."""

    def make(word: str) -> Any:
        def nightly() -> str:
            return word

        return nightly

    client.every(HOUR)(make("one"))
    first, blobs = record(server_of, "nightly"), blobs_of(server_of, "nightly")
    assert blobs
    assert [server_of.ttl(blob) for blob in blobs] == [-1] * len(blobs)
    client.every(HOUR)(make("one"))
    assert record(server_of, "nightly") == first
    assert client.schedules["nightly"].run_now().result(20) == "one"
    client.every(HOUR)(make("two"))
    second = record(server_of, "nightly")
    assert (second["next"], second["version"] > first["version"]) == (first["next"], True)
    assert client.schedules["nightly"].run_now().result(20) == "two"
    newer = blobs_of(server_of, "nightly")
    assert [server_of.ttl(blob) for blob in newer] == [-1] * len(newer)
    for blob in set(blobs) - set(newer):
        assert 600_000 < server_of.ttl(blob) <= 7 * 86_400
    client.every(HOUR)(make("one"))  # back, while that of the first is there still
    assert [server_of.ttl(blob) for blob in blobs] == [-1] * len(blobs)
    client.schedules["nightly"].delete()
    for blob in blobs:
        assert 600_000 < server_of.ttl(blob) <= 7 * 86_400


def test_no_client_takes_away_what_a_schedule_names(client: Client, server_of: redis.Redis) -> None:
    """Calls of the same function, by many clients, are done and forgotten."""

    def shared() -> int:
        return 7

    client.every(HOUR)(shared)
    (blob,) = blobs_of(server_of, "shared")
    assert client.submit(shared).result(20) == 7
    assert list(client.map(lambda _: shared(), range(3))) == [7, 7, 7]
    assert server_of.ttl(blob) == -1
    client.every(HOUR, name="other")(shared)
    client.schedules.delete("other")
    assert server_of.ttl(blob) == -1
    assert client.schedules["shared"].run_now().result(20) == 7
    client.schedules.delete("shared")


def test_a_function_that_expires_just_then_is_stored_again(
    lone: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schedule never names what is not there."""
    broker, lost = lone.broker, []
    call = type(broker).call

    def losing(self: Any, command: Any, *more: Any) -> Any:
        reply = call(self, command, *more)
        if command[0] == "SET" and not lost:
            lost.append(command[1])
            db.delete(command[1])
        return reply

    monkeypatch.setattr(type(broker), "call", losing)
    lone.every(HOUR, name="rare")(time.time)
    assert lost
    assert db.ttl(lost[0]) == -1
    assert STORED_S == 86_400


def test_its_source_comes_back_from_another_kernel(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the next cell, whose run makes the next version; and as a function."""

    @client.every("*/5 * * * *", tz="Europe/Rome")
    def mail() -> str:
        # to everybody
        return "sent"

    assert mail() == "sent"
    with Client(address=client.address, signing_key=KEY) as other:
        schedule = other.schedules["mail"]
        text = schedule.open()
        assert text.startswith('@client.every("*/5 * * * *", tz="Europe/Rome")\ndef mail()')
        assert "# to everybody" in text
        assert schedule.function() == "sent"
        cells: list[str] = []

        class Shell:
            set_next_input = staticmethod(cells.append)

        monkeypatch.setattr("redistq.client.schedules.shell", Shell)
        schedule.open()
        assert cells == [text.rstrip()]
        other.every(60, name="plain")(mail)
        assert other.schedules["plain"].open() == text
    client.schedules.delete("mail")


def test_a_builtin_has_no_source(lone: Client) -> None:
    """What is given then is a cell to write it in."""
    lone.every("15m", tz="Europe/Rome", name="clock")(time.time)
    text = lone.schedules["clock"].open()
    assert text.startswith("@client.every(900, name='clock')\n# the source")


def test_it_is_paused_resumed_and_looked_at(client: Client) -> None:
    """As a producer's; those of named tasks are there too, whose code is their workers'."""

    def tidy() -> None:
        pass

    client.every(HOUR, paused=True)(tidy)
    assert client.schedules["tidy"].next is None
    client.schedules["tidy"].resume()
    assert client.schedules["tidy"].next is not None
    client.schedules["tidy"].pause()
    assert client.schedules["tidy"].next is None
    with TaskProducer(address=client.address) as producer:
        producer.schedules.set("named", every="1h", task="work")
        assert (
            producer.schedules["tidy"].task
            == "redistq.call:test_it_is_paused_resumed_and_looked_at.tidy"
        )
    assert {"named", "tidy"} <= {schedule.name for schedule in client.schedules}
    with pytest.raises(ConfigurationError, match="whose code its workers have"):
        client.schedules["named"].open()
    client.schedules.delete("named")
    client.schedules.delete("tidy")


def test_a_call_that_nobody_signed_runs_nowhere(client: Client, server_of: redis.Redis) -> None:
    """Nor does that of another schedule."""
    for name in ("good", "bad"):
        client.every(HOUR, name=name)(time.time)
    stolen, own = (str(server_of.hget("schedules:tasks", name)) for name in ("good", "bad"))
    value = own.partition("\n")[0] + "\n" + stolen.partition("\n")[2]
    server_of.hset("schedules:tasks", "bad", value.encode("utf-8", "surrogateescape"))  # type: ignore[arg-type]
    with pytest.raises(UntrustedPayload):
        client.schedules["bad"].run_now().result(20)
    with pytest.raises(UntrustedPayload):
        _ = client.schedules["bad"].code
    assert client.schedules["good"].run_now().result(20) > 0


def test_another_priority(client: Client) -> None:
    """Its tasks are in the queue of that priority."""
    client.options(priority="high").every(HOUR, name="urgent")(time.time)
    schedule = client.schedules["urgent"]
    assert schedule.queue == "tasks!high"
    future = schedule.run_now()
    assert future.result(20) > 0
    client.schedules.delete("urgent")


def test_what_cannot_be_is_said_at_the_call(lone: Client) -> None:
    """Nothing is set then."""
    with pytest.raises(ConfigurationError, match="five fields"):
        lone.every("0 6 * *")
    with pytest.raises(ConfigurationError, match="zone"):
        lone.every(HOUR, tz="Europe/Atlantis")
    with pytest.raises(ConfigurationError, match="never fires"):
        lone.every("0 0 31 2 *", name="never")(time.time)
    with pytest.raises(ConfigurationError, match="every"):
        lone.every("soon")
    with pytest.raises(ConfigurationError, match="without arguments"):
        lone.every(HOUR)(lambda n: n)
    with pytest.raises(ConfigurationError, match="a lambda needs a name"):
        lone.every(HOUR)(lambda: 1)
    with pytest.raises(ConfigurationError, match="no delay and no cache"):
        lone.options(delay=5).every(HOUR, name="x")(time.time)
    with pytest.raises(TypeError):
        lone.every(HOUR)("report")  # type: ignore[type-var]
    assert list(lone.schedules) == []


def test_one_that_failed_goes_on_with_a_mended_function(client: Client) -> None:
    """Its call is that of the schedule, and what is sent again is its own."""

    def broken() -> None:
        raise ValueError("broken")

    client.every(HOUR)(broken)
    future = client.schedules["broken"].run_now()
    with pytest.raises(ValueError, match="broken"):
        future.result(20)
    with pytest.raises(ValueError, match="broken"):
        future.rerun_here()
    mended = future.continue_with(lambda: "mended")
    assert mended.result(20) == "mended"
    client.schedules.delete("broken")
