"""Lazy calls: written down first, sent as one, named by their code and what they are given.

What ran is counted in files that the functions append to: one line a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, asked, gate, serving
from support.workers import until

from redistq import (
    Client,
    ConfigurationError,
    PayloadError,
    ResultTimeout,
    TaskCancelled,
    compute,
)
from redistq.client.lazy import LazyCall
from redistq.client.sender import Sender
from redistq.functions import fingerprint
from redistq.functions.blobs import Blobs


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


@pytest.fixture
def noted(tmp_path: Path) -> tuple[Callable[[Any], Any], Callable[[], list[str]]]:
    """A function that notes each run and returns what it is given, and what was noted."""
    path = str(tmp_path / "runs")

    def note(value: Any) -> Any:
        with open(path, "a") as file:
            file.write(f"{value}\n")
        return value

    return note, lambda: sorted(Path(path).read_text().split()) if Path(path).exists() else []


def add(*parts: Any) -> Any:
    return sum(parts)


def fail(message: Any) -> None:
    raise ValueError(message)


# -- calls ---------------------------------------------------------------------------------------


def test_nothing_is_sent_before_a_result_is_asked_for(client: Client, noted: Any) -> None:
    """A call that is written down costs no command and no run."""
    note, runs = noted
    call = client.lazy(note)("a")
    assert (call.state, runs()) == ("not sent", [])
    assert repr(call) == "<LazyCall noted.note not sent>"
    assert call.compute(10) == "a"
    assert (call.state, runs()) == ("succeeded", ["a"])


def test_a_call_stands_for_its_result_anywhere(client: Client) -> None:
    """In lists, tuples, sets, dicts, and inside other objects, by position and by name."""

    class Holder:
        def __init__(self, value: Any) -> None:
            self.value = value

    def look(deep: Any, *, held: Any) -> Any:
        return deep["x"][0][0], sorted(deep["y"]), held.value

    lazy = client.lazy(add)
    one, two = lazy(1), lazy(1, 1)
    call = client.lazy(look)({"x": [(one,)], "y": {one, two}}, held=Holder(two))
    assert call.compute(10) == (1, [1, 2], 2)


def test_what_is_given_is_what_it_was_at_the_call(client: Client) -> None:
    """A list that is changed later, or that comes to hold the call itself, changes nothing."""
    lazy = client.lazy(lambda parts: sum(parts))
    parts: list[Any] = [client.lazy(add)(1), 2]
    call = lazy(parts)
    parts.append(call)
    assert call.compute(10) == 3


def test_run_again_only_what_has_changed_runs(client: Client, noted: Any) -> None:
    """The same code with the same inputs, from another client as well."""
    note, runs = noted

    def results(client: Client, inputs: list[int]) -> int:
        load = client.lazy(note)
        return int(client.lazy(sum)([load(n) for n in inputs]).compute(10))

    assert results(client, [1, 2, 3]) == 6
    assert results(client, [1, 2, 3]) == 6
    assert runs() == ["1", "2", "3"]
    with Client(address=client.address, signing_key=KEY) as other:
        assert results(other, [1, 2, 4]) == 7
    assert runs() == ["1", "2", "3", "4"]


def test_two_that_want_the_same_share_one_run(client: Client, noted: Any, tmp_path: Path) -> None:
    """While it runs as well: the second waits for the first."""
    note, runs = noted
    wait_for_it, let_go = gate(tmp_path)

    def slow(value: Any) -> Any:
        wait_for_it()
        return note(value)

    first = client.lazy(slow)("x").submit()
    with Client(address=client.address, signing_key=KEY) as other:
        second = other.lazy(slow)("x").submit()
        let_go()
        assert (first.result(10), second.result(10), runs()) == ("x", "x", ["x"])


def test_compute_takes_nested_values_and_keeps_their_form(client: Client) -> None:
    """One value as it is, several as a tuple; what holds no call is the very object."""
    lazy = client.lazy(add)
    plain = [1, 2]
    assert compute({"a": [lazy(1), (lazy(2),)], "b": plain}, timeout=10) == {
        "a": [1, (2,)],
        "b": plain,
    }
    assert compute(plain) is plain
    assert compute(lazy(1), 7, timeout=10) == (1, 7)


def test_it_can_be_awaited(client: Client) -> None:
    """As a future is."""

    async def main() -> Any:
        return await client.lazy(add)(20, 22)

    assert asyncio.run(main()) == 42


def test_a_long_chain_needs_no_deep_stack(client: Client) -> None:
    """Thousands of calls, each of the one before."""
    lazy = client.lazy(add)
    call = lazy(0)
    for _ in range(2000):
        call = lazy(call, 1)
    assert call.compute(60) == 2000


def test_an_error_is_that_of_the_call_that_failed(client: Client) -> None:
    """Also where what was asked for never ran for want of it; its future says that."""
    broken = client.lazy(fail)("no bread")
    after = client.lazy(add)(1, client.lazy(add)(1, broken))
    with pytest.raises(ValueError, match="no bread") as seen:
        after.compute(10)
    assert "in fail" in str(seen.value.__cause__)
    with pytest.raises(ValueError, match="no bread"):
        compute([after], timeout=10)
    with pytest.raises(TaskCancelled, match=r"parent .* ValueError: no bread"):
        after.submit().result(10)

    async def awaited() -> Any:
        return await client.lazy(add)(2, broken)

    with pytest.raises(ValueError, match="no bread"):
        asyncio.run(awaited())


def test_what_failed_runs_again_with_what_needs_it(client: Client, tmp_path: Path) -> None:
    """Both are sent in one go: the second waits for the new run, not for the old failure."""
    there = tmp_path / "there"

    def load(path: str) -> str:
        return Path(path).read_text()

    def results() -> Any:
        return client.lazy(len)(client.lazy(load)(str(there))).submit()

    assert isinstance(results().exception(10), TaskCancelled)
    there.write_text("four")
    assert results().result(10) == 4


def test_options_are_those_of_the_client(client: Client, tmp_path: Path) -> None:
    """Of the decorator, of the function, and with them another time that results are kept."""
    tries = tmp_path / "tries"

    def flaky(path: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        if len(Path(path).read_text()) < 3:
            raise OSError("not yet")
        return 3

    lazy = client.options(retries=5).lazy(flaky).options(name="flaky", cache="1h")
    call = lazy(str(tries))
    assert (call.name, call.options.retries, call.options.cache) == ("flaky", 5, 3600)
    assert client.lazy(add)(1).options.cache == 7 * 86_400
    assert call.compute(20) == 3


def test_a_lazy_function_in_another_function_is_the_function(client: Client) -> None:
    """A worker has no client of ours: there it simply runs."""
    double = client.lazy(lambda x: 2 * x)

    def use(x: Any) -> Any:
        return double(x) + 1

    assert client.submit(use, 3).result(10) == 7


def test_slips_are_said(client: Client) -> None:
    """What is no function, what cannot be known yet, and a delay."""
    call = client.lazy(add)(1)
    with pytest.raises(TypeError, match="lazy takes a function"):
        client.lazy("add")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not known before it is computed"):
        list(call)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="true is not known"):
        bool(call)
    with pytest.raises(ConfigurationError, match="no delay"):
        client.options(delay=3).lazy(add)
    assert client.lazy(client.lazy(add))(1).compute(10) == 1


def test_a_wait_has_its_limit(client: Client, tmp_path: Path) -> None:
    """The call goes on."""
    wait_for_it, let_go = gate(tmp_path)
    call = client.lazy(wait_for_it)()
    with pytest.raises(ResultTimeout, match=r"after 0\.1 s"):
        compute(call, timeout=0.1)
    with pytest.raises(ResultTimeout, match=r"after 0\.2 s"):
        call.graph().results(0.2)
    let_go()
    assert call.compute(10) == "went"


# -- sent as one -----------------------------------------------------------------------------------


def test_many_calls_are_sent_in_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and what they share is looked at once."""
    looked, stored, sent = [], [], []
    code_of, put, send_many = fingerprint.code_of, Blobs.put, Sender.send_many

    def noted_send(sender: Sender, items: Any, *, more: bool) -> None:
        sent.append(len(items))
        send_many(sender, items, more=more)

    def noted_put(blobs: Blobs, kind: Any, *given: Any) -> str:
        stored.append(kind)
        return put(blobs, kind, *given)

    monkeypatch.setattr(fingerprint, "code_of", lambda fn: looked.append(fn) or code_of(fn))
    monkeypatch.setattr(Blobs, "put", noted_put)
    monkeypatch.setattr(Sender, "send_many", noted_send)
    with serving(0) as client:
        before = asked(client, "evalsha")
        with client.graph() as graph:
            first = graph.submit(add)
            graph.map(add, [first] * 999, range(999))
        keys = [client.keys.task(future.task_id) for future in graph.futures]
        until(lambda: client.broker.call(("EXISTS", *keys)) == 1000, "all on the server")
        assert asked(client, "evalsha") - before < 15
    assert sent == [200] * 5
    assert looked == [add]
    assert stored.count("function") <= 2


def test_sent_together_they_have_the_names_they_have_alone(client: Client) -> None:
    """So what one notebook has computed is found by all."""
    lazy, value = client.lazy(add), {"deep": [1, b"x", None]}
    one = lazy(1)
    cases: list[tuple[Any, ...]] = [(2,), (one, 3), ([one], value), (1.5, "text")]
    calls = [client.lazy(lambda *parts: len(parts))(*case) for case in cases]
    compute(calls, timeout=10)
    alone = client.options(cache=60)
    for call, case in zip(calls, cases, strict=True):
        given = [part.submit() if part is one else part for part in case]
        given = [[part[0].submit()] if part == [one] else part for part in given]
        assert alone.submit(call.fn, *given).task_id == call.submit().task_id


def test_after_an_error_those_before_it_are_sent(client: Client, noted: Any) -> None:
    """The one that cannot be sent is as it was."""
    note, runs = noted
    good = client.lazy(note)("sent")
    bad = client.lazy(add)(good, threading.Lock())
    with pytest.raises(PayloadError, match="argument 2"):
        bad.submit()
    assert bad.state == "not sent"
    assert good.state != "not sent"
    assert good.compute(10) == "sent"
    assert runs() == ["sent"]


def test_a_closed_client_sends_none(client: Client) -> None:
    """Each time that it is asked for, it says so."""
    other = Client(address=client.address, signing_key=KEY)
    call = other.lazy(add)(other.lazy(add)(1))
    other.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="after shutdown"):
            call.compute(10)
        assert call.state == "not sent"


# -- graphs without a name -----------------------------------------------------------------------


def test_a_graph_is_written_and_read(client: Client) -> None:
    """Calls with arguments that are calls; the results of its ends, in order."""
    with client.graph() as graph:
        one = graph.submit(add, 1)
        ends = graph.map(add, [one, one], [1, 2])
    assert graph.results(10) == [2, 3]
    assert graph.counts() == {
        "total": 3,
        "succeeded": 3,
        "failed": 0,
        "cancelled": 0,
        "expired": 0,
        "retried": 0,
        "waiting": 0,
    }
    assert (len(graph), graph.done, one.state) == (3, True, "succeeded")
    assert graph.states_at([0, 2]) == ["succeeded", "succeeded"]
    frame = graph.nodes()
    assert list(frame["layer"]) == [0, 1, 1]
    assert list(frame["parents"]) == [[], [0], [0]]
    assert isinstance(ends[0], LazyCall)


def test_after_an_error_in_the_block_nothing_is_sent(client: Client, noted: Any) -> None:
    """Nor can calls be added outside of it."""
    note, runs = noted
    graph = client.graph()
    with contextlib.suppress(KeyError), graph:
        graph.submit(note, "lost")
        raise KeyError
    with pytest.raises(ConfigurationError, match="while it is open"):
        graph.submit(note, "late")
    assert runs() == []


def test_a_graph_is_resumed_in_order(client: Client, tmp_path: Path) -> None:
    """What failed and what came after it; the rest stays."""
    there = tmp_path / "there"
    with client.graph() as graph:
        text = graph.submit(Path.read_text, there)
        graph.submit(len, text)
        graph.submit(add, 40, 2)
    graph.wait(10)
    assert (graph.counts()["failed"], graph.counts()["cancelled"]) == (1, 1)
    there.write_text("seven")
    assert graph.resume() == 2
    assert graph.results(10) == [5, 42]


def test_a_graph_is_cancelled(client: Client, tmp_path: Path) -> None:
    """What has not started ends; its results cannot be deleted, they may be those of others."""
    wait_for_it, let_go = gate(tmp_path)
    with client.graph() as graph:
        first = graph.submit(wait_for_it)
        graph.map(add, [first] * 3, ["1", "2", "3"])
    assert graph.cancel() >= 3
    let_go()
    assert graph.wait(10).counts()["cancelled"] >= 3
    with pytest.raises(ConfigurationError, match="expire by themselves"):
        graph.delete()


def test_a_call_is_drawn_before_and_after(client: Client) -> None:
    """In the colours of the states; nothing is sent for a picture."""
    lazy = client.lazy(add)
    call = lazy(lazy(1), lazy(5, 6))
    before = call.visualize()
    assert call.state == "not sent"
    assert before.axes[0].get_title(loc="left") or before.axes[0].texts
    call.compute(10)
    counts = call.graph().counts()
    assert (counts["total"], counts["succeeded"]) == (3, 3)
    assert "succeeded" in call.graph()._repr_html_()
    assert "LazyCall" in call._repr_html_()
