"""Who is believed: what somebody who can write to the server, but has no key, can make of it.

Each test does to the server by hand what such a person could do, and looks at the other side.
"""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from support.clients import KEY, gate, serving, session, store_function
from support.workers import until

from redistq import Client, TaskFailed, TaskWorker
from redistq.connection.address import Address
from redistq.connection.broker import Broker
from redistq.errors import PayloadTooLarge, UnknownTask, UntrustedPayload
from redistq.functions import signing as packets
from redistq.functions.blobs import digest_of
from redistq.functions.pickling import PYTHON, dump, load
from redistq.functions.signing import OLD_MAGIC, Kind, Signer
from redistq.functions.written import CALL, Call
from redistq.handlers import Registry
from redistq.protocol.keys import PRIORITIES, at_priority
from redistq.worker.bootstrap import with_function_calls
from redistq.worker.settings import WorkerSettings

KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes, which serve its three priorities."""
    with serving() as client:
        yield client


def write(client: Client, *command: Any) -> Any:
    """What anybody who can write to the server does."""
    return client.broker.call(command)


def record_of(client: Client, task_id: str) -> str:
    return client.keys.task(task_id)


def result_of(client: Client, fn: Any, *args: Any) -> tuple[str, bytes]:
    """A call that was made: its id, and the packet of its result."""
    future = client.submit(fn, *args)
    future.result(20)
    return future.task_id, write(client, "HGET", record_of(client, future.task_id), "result")


def add_entry(
    client: Client, task_id: str, payload: bytes, opts: str = "", priority: str = "normal"
) -> None:
    """An entry by hand."""
    stream = session(client).queue(priority).keys.stream
    fields = ("id", task_id, "name", "redistq.call", "payload", payload)
    more = ("attempt", "1", "recovered", "0", "opts", opts)
    write(client, "XADD", stream, "*", *fields, *more)


def how_it_ended(client: Client, task_id: str, priority: str = "normal") -> dict[str, Any]:
    """The record of a task that was added by hand, once it has ended."""

    def ended() -> dict[bytes, bytes] | None:
        raw = write(client, "HGETALL", session(client).queue(priority).keys.task(task_id))
        record = dict(zip(raw[::2], raw[1::2], strict=True))
        return record if b"state" in record else None

    record = until(ended, "the end of a task added by hand", 20)
    error = json.loads(record[b"error"]) if b"error" in record else {}
    return {"state": record[b"state"].decode(), "error": error, "result": record.get(b"result")}


# -- packets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "read"), [*itertools.product(KINDS, KINDS)])
def test_a_packet_is_good_for_its_own_kind_alone(written: Kind, read: Kind) -> None:
    """A result is no call, an error no result, an argument no function."""
    signer = Signer(b"k" * 16)
    packet = signer.pack(written, "tasks\na", b"data")
    if written == read:
        assert signer.unpack(read, "tasks\na", packet) == b"data"
    else:
        with pytest.raises(UntrustedPayload):
            signer.unpack(read, "tasks\na", packet)


@pytest.mark.parametrize("other", ["tasks\nb", "tasks!high\na", "{tasks}\na", "tasks\na\0", ""])
def test_a_packet_is_good_for_its_own_task_and_queue_alone(other: str) -> None:
    """Neither another id nor another queue will do, whatever the data begins with."""
    signer = Signer(b"k" * 16)
    for data in (b"data", b"1:a", b"\n\0"):
        packet = signer.pack("call", "tasks\na", data)
        with pytest.raises(UntrustedPayload):
            signer.unpack("call", other, packet)


def test_a_packet_of_today_is_none_of_the_last_release() -> None:
    """What is signed for one task cannot be passed for what was signed for any."""
    signer = Signer(b"k" * 16)
    packet = signer.pack("result", "tasks\na", b"data")
    for downgraded in (
        OLD_MAGIC + packet[4:],
        # What is under today's signature, as data under the old one, which covers flags and data.
        OLD_MAGIC + b"7" + packet[5:37] + b":tasks\na" + packet[4:5] + packet[37:],
    ):
        with pytest.raises(UntrustedPayload):
            signer.unpack("result", "tasks\na", downgraded, old=True)


def test_the_name_of_a_blob_tells_nothing_without_the_key() -> None:
    """Whoever guesses an argument cannot look whether it is there; equal ones are stored once."""
    mine, theirs = Signer(b"k" * 16), Signer(b"l" * 16)
    assert mine.name_of("argument", b"x") == mine.name_of("argument", b"x")
    names = {s.name_of(kind, b"x") for s in (mine, theirs) for kind in ("argument", "function")}
    assert len(names) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unpacked_is_bounded(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet that swells beyond what anybody packs is refused before the memory is taken, and
    nobody packs one."""
    monkeypatch.setitem(packets._UNPACKED, kind, 1_000_000)
    open_to_all = Signer(None, allow_unsigned=True)
    whole = open_to_all.pack(kind, "c", bytes(1_000_000))
    assert open_to_all.unpack(kind, "c", whole) == bytes(1_000_000)
    for magic in (packets.MAGIC, OLD_MAGIC):
        bomb = magic + b"\1" + zlib.compress(bytes(1_000_001))
        with pytest.raises(UntrustedPayload, match="more than the 1,000,000 bytes"):
            open_to_all.unpack(kind, "c", bomb, old=True)
    with pytest.raises(PayloadTooLarge):
        open_to_all.pack(kind, "c", bytes(1_000_001))
    for damaged in (whole[:-3], whole[:5] + b"noise"):
        with pytest.raises(UntrustedPayload, match="damaged"):
            open_to_all.unpack(kind, "c", damaged)


def test_a_worker_outlives_a_payload_that_swells(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task fails in words, the next one is run."""
    monkeypatch.setitem(packets._UNPACKED, "call", 1_000_000)
    with (
        Client(url, signing_key=KEY, allow_pickle=True) as client,
        TaskWorker(url=url, task_handlers={}, thread_count=1, allow_pickle=True),
    ):
        add_entry(client, "bomb", packets.MAGIC + b"\1" + zlib.compress(bytes(10_000_000)))
        assert "more than the 1,000,000 bytes" in how_it_ended(client, "bomb")["error"]["message"]
        assert client.submit(abs, -1).result(10) == 1


# -- calls ---------------------------------------------------------------------------------------


def test_a_result_is_not_run_as_a_call(client: Client) -> None:
    """A function whose result looks like a call makes no call of it."""
    function = store_function(client, abs)
    _, packet = result_of(client, lambda: (function, (-1,), {}, False, False))
    add_entry(client, "result-as-call", packet)
    end = how_it_ended(client, "result-as-call")
    assert (end["state"], end["error"]["type"]) == ("failed", "UntrustedPayload")


@pytest.mark.parametrize("queue", ["tasks", "tasks!high"])
def test_a_call_is_run_for_its_own_task_alone(client: Client, queue: str) -> None:
    """Under another id, or in another queue of the same workers, it fails and nothing is run."""
    function = store_function(client, abs)
    own = session(client)
    call = Call(function, (-1,), {})
    packet = own.packer.pack(own.queue().context_of("mine"), call, 600, [])
    task_id = "another" if queue == "tasks" else "mine"
    priority = "normal" if queue == "tasks" else "high"
    add_entry(client, task_id, packet, priority=priority)
    end = how_it_ended(client, task_id, priority)
    assert (end["state"], end["error"]["type"]) == ("failed", "UntrustedPayload")


@pytest.mark.parametrize("what", ["argument for argument", "argument for function"])
def test_one_stored_value_is_not_taken_for_another(client: Client, what: str) -> None:
    """Blobs that change places are refused, whichever the worker wanted."""
    kind: Any = what.split()[0]
    wanted: Any = what.split()[-1]
    good = session(client).blobs.put(wanted, dump(f"wanted {what}"))
    other = session(client).blobs.put(kind, dump(f"other {what}"))
    write(client, "COPY", client.keys.blob(other), client.keys.blob(good), "REPLACE")
    session(client).blobs._cache.clear()
    with pytest.raises(UntrustedPayload):
        session(client).blobs.get(wanted, good)
    with pytest.raises(UntrustedPayload):
        session(client).blobs.get("function" if kind == "argument" else "argument", other)


# -- answers -------------------------------------------------------------------------------------


def told(client: Client, task_id: str, state: str, body: bytes | str) -> None:
    """News by hand, in the inbox of a client."""
    fields = ("id", task_id, "state", state, "body", body)
    write(client, "XADD", session(client).exchange.presence.inbox.key, "*", *fields)


@pytest.mark.parametrize(
    "forged", ["another's result", "JSON", "its own call", "an error's packet", "nothing"]
)
def test_a_future_takes_its_own_result_alone(client: Client, tmp_path: Path, forged: str) -> None:
    """Whatever else stands in the inbox as its result is refused and not unpickled."""
    wait_for_it, let_go = gate(tmp_path)
    _, other = result_of(client, lambda: "another")
    future = client.submit(wait_for_it)
    context = session(client).queue().context_of(future.task_id)
    bodies: dict[str, bytes] = {
        "another's result": other,
        "JSON": b'"forged"',
        "its own call": session(client).signer.pack("call", context, dump("forged")),
        "an error's packet": session(client).signer.pack("error", context, dump(ValueError())),
        "nothing": b"",
    }
    try:
        told(client, future.task_id, "succeeded", bodies[forged])
        with pytest.raises(UntrustedPayload):
            future.result(20)
    finally:
        let_go()


def test_news_that_are_none_end_nothing(client: Client, tmp_path: Path) -> None:
    """A state that there is not leaves the future to the task's own end."""
    wait_for_it, let_go = gate(tmp_path)
    future = client.submit(wait_for_it)
    told(client, future.task_id, "conquered", b'"forged"')
    # What is told after it has been read after it.
    assert client.submit(abs, -1).result(20) == 1
    assert not future.done()
    let_go()
    assert future.result(20) == "went"


def test_a_stored_result_is_read_as_its_own_tasks_alone(client: Client) -> None:
    """Results that change places in the records are refused, also to who asks by id alone."""
    (mine, _), (_, other) = result_of(client, abs, -1), result_of(client, abs, -2)
    for body in (other, b"2"):
        write(client, "HSET", record_of(client, mine), "result", body)
        with pytest.raises(UntrustedPayload):
            client.future(mine).result(20)
    write(client, "HDEL", record_of(client, mine), "result")
    with pytest.raises(UnknownTask):
        client.future(mine).result(20)


def test_results_of_a_batch_that_change_places_are_refused(client: Client) -> None:
    """Each position has its own result or none; the others are not touched."""
    batch = client.map_batch(abs, [-1, -2, -3], name="swapped", progress=False).wait(20)
    records = [record_of(client, f"swapped:{i}") for i in range(3)]
    first = write(client, "HGET", records[0], "result")
    write(client, "HSET", records[1], "result", first)
    write(client, "HSET", records[2], "result", b"3")
    for seen in (batch, client.batch("swapped")):
        values = seen.results(20, on_error="return")
        assert values[0] == 1
        assert [type(value) for value in values[1:]] == [UntrustedPayload] * 2


def test_a_named_tasks_result_is_json(client: Client) -> None:
    """What is no JSON is not unpickled, though it be signed."""
    _, packet = result_of(client, abs, -1)
    future = client.submit("nobody-has-it", 1)
    told(client, future.task_id, "succeeded", packet)
    with pytest.raises(UntrustedPayload, match="where JSON belongs"):
        future.result(20)
    second = client.submit("nobody-has-it", 1)
    told(client, second.task_id, "succeeded", b'{"n":1}')
    assert second.result(20) == {"n": 1}


class Odd(Exception):
    """An error with a type of its own."""


def test_an_error_keeps_its_type_in_its_own_task_alone(client: Client, tmp_path: Path) -> None:
    """Elsewhere it is text, as is what nobody signed: shown, never unpickled."""

    def fail() -> None:
        raise ZeroDivisionError("its own")

    failed = client.submit(fail)
    assert isinstance(failed.exception(20), ZeroDivisionError)
    body = write(client, "HGET", record_of(client, failed.task_id), "error")
    result = base64.b64encode(session(client).signer.pack("result", "", dump(Odd()))).decode()
    plain = json.dumps({"type": "WorkerLost", "message": "it died", "pickle": result})
    for forged, text in ((body, "its own"), (plain, "WorkerLost: it died"), (b"[1]", "failed")):
        future = client.submit("nobody-has-it")
        future.origin = "call"
        told(client, future.task_id, "failed", forged)
        error = future.exception(20)
        assert type(error) is TaskFailed
        assert text in str(error)


# -- the last release's format -------------------------------------------------------------------


def old_call(client: Client, fn: Any, *args: Any) -> bytes:
    """A call as a client of the last release sends it, its function stored."""
    packet = session(client).signer.pack("function", "", dump((PYTHON, {}, dump(fn))), old=True)
    name = digest_of(packet)
    write(client, "SET", client.keys.blob(name), packet)
    return session(client).signer.pack("call", "", Call(name, args, {}).pickled(), old=True)


def test_a_call_of_the_last_release_is_run_and_answered_in_kind(client: Client) -> None:
    """A client that was not upgraded yet can read the answer, and so can who asks by an old id."""
    add_entry(client, "0123456789abcdef0000", old_call(client, abs, -5))
    packet = how_it_ended(client, "0123456789abcdef0000")["result"]
    assert packet[:4] == OLD_MAGIC
    assert load(session(client).signer.unpack("result", "", packet, old=True)) == 5
    assert client.future("0123456789abcdef0000").result(20) == 5


def test_an_old_call_gives_nothing_to_a_task_of_today(client: Client, tmp_path: Path) -> None:
    """Who has a call of the last release, which is bound to no task, can have it run in the place
    of another one, and the answer is refused there."""
    future = client.submit("nobody-has-it")
    future.origin = "call"
    opts = json.dumps({"inbox": session(client).exchange.presence.inbox.name})
    add_entry(client, future.task_id, old_call(client, abs, -6), opts)
    with pytest.raises(UntrustedPayload, match="the last release"):
        future.result(20)


def test_a_batch_of_the_last_release_is_read(client: Client) -> None:
    """A batch that was found again may be that old; one that was begun here is not."""
    batch = client.map_batch(abs, [-1], name="of-old", progress=False).wait(20)
    old = session(client).signer.pack("result", "", dump("old"), old=True)
    write(client, "HSET", record_of(client, "of-old:0"), "result", old)
    assert client.batch("of-old").results(20) == ["old"]
    with pytest.raises(UntrustedPayload):
        batch.results(20)


def test_the_last_releases_format_can_be_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says that such packets are still read, and a setting ends it."""
    old = session(client).signer.pack("call", "", b"data", old=True)
    packets._warn_of_old.cache_clear()
    for _ in range(3):
        assert session(client).signer.unpack("call", "c", old, old=True) == b"data"
    assert [r.getMessage().count("REDISTQ_REFUSE_RQ1") for r in caplog.records] == [1]
    monkeypatch.setenv("REDISTQ_REFUSE_RQ1", "1")
    with pytest.raises(UntrustedPayload, match="REDISTQ_REFUSE_RQ1"):
        Signer(session(client).signer.key).unpack("call", "c", old, old=True)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_client_and_worker_mean_the_same_queue(scheme: str) -> None:
    """What is bound is the stream's name as it is on the server, hash tag and priority included."""
    address = Address(f"{scheme}://127.0.0.1:1")
    client = Client(address=address, signing_key=KEY)
    queues = [at_priority(client.keys.stream, priority) for priority in PRIORITIES]
    for names in (queues, [at_priority("tasks", priority) for priority in PRIORITIES]):
        settings = WorkerSettings.of({"queues": names, "signing_key": KEY.encode().hex()})
        calls = settings.commands_for(address)
        registry = with_function_calls(Registry(), settings, Broker(address), calls)
        stores = registry[CALL].function._stores  # type: ignore[attr-defined]
        assert [stores[name].stream for name in names] == [
            session(client).queue(priority).keys.stream for priority in PRIORITIES
        ]
    client.close()
