"""What travels in a call: functions, arguments, results, errors, output; and who is trusted.

Keys and bytes are counted on the server itself.
"""

from __future__ import annotations

import collections
import enum
import functools
import io
import json
import pickle
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clients import KEY, producer_of, send, serving, session, store_function
from support.servers import Server
from support.workers import command, until

from redistq import (
    Client,
    ConfigurationError,
    PayloadError,
    PayloadTooLarge,
    TaskFailed,
    TaskMonitor,
)
from redistq.errors import ModuleMissing, UntrustedPayload, WrongPython
from redistq.functions.blobs import LARGE, MAX_BLOB_BYTES, Blobs, digest_of
from redistq.functions.function import load_function
from redistq.functions.pickling import PYTHON, dump, load
from redistq.functions.signing import MAGIC, OLD_MAGIC, Signer, key_from, user_key
from redistq.functions.written import Call


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


def server_of(client: Client) -> Server:
    server: Server = client.server  # type: ignore[attr-defined]
    return server


# -- functions -----------------------------------------------------------------------------------


def test_closures_lambdas_partials_methods_and_callables(client: Client) -> None:
    """Whatever can be called can be sent, with what it has closed over."""
    offset = 10

    def add(n: int) -> int:
        return n + offset

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def __call__(self, m: int) -> int:
            return self.n + m

        def method(self, m: int) -> int:
            return self.n - m

    calls: list[Any] = [add, lambda n: n * 2, functools.partial(pow, 2), Adder(1), Adder(9).method]
    assert [client.submit(call, 3).result(10) for call in calls] == [13, 6, 8, 4, 6]
    assert client.submit(str.upper, "x").result(10) == "X"
    assert client.submit(collections.Counter, "aab").result(10) == {"a": 2, "b": 1}


def test_coroutines_and_generators_are_carried_through(client: Client) -> None:
    """An async function is run, a generator's items come as a list, an async generator's too."""

    async def coroutine(n: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return n

    def generator(n: int) -> Iterator[int]:
        yield from range(n)

    async def async_generator(n: int) -> Any:
        for i in range(n):
            yield i

    assert client.submit(coroutine, 5).result(10) == 5
    assert client.submit(generator, 3).result(10) == [0, 1, 2]
    assert client.submit(async_generator, 3).result(10) == [0, 1, 2]
    assert list(client.map(generator, [1, 2], chunksize=2)) == [[0], [0, 1]]


def test_what_main_defines_travels_by_value(tmp_path: Path) -> None:
    """Functions, classes, enums and exceptions of a script or notebook need no module there."""
    with Server() as server:
        (tmp_path / "script.py").write_text(
            textwrap.dedent(
                """
                import enum, dataclasses
                from redistq import Client

                class Colour(enum.IntEnum):
                    RED = 1
                    BLUE = 2

                @dataclasses.dataclass
                class Point:
                    x: int
                    def doubled(self): return Point(2 * self.x)

                class Odd(Exception): pass

                def helper(n): return n + 1
                def work(n, colour=Colour.RED):
                    if n % 2: raise Odd(n)
                    return Point(helper(n)).doubled(), colour

                if __name__ == "__main__":
                    with Client() as client:
                        client.start_workers(1)
                        print(*client.submit(work, 2, Colour.BLUE).result(20))
                        try:
                            client.submit(work, 1).result(20)
                        except Odd as error:
                            print("odd", error)
                """
            )
        )
        with command(tmp_path, "script.py", url=server.url) as script:
            assert script.wait(40) == 0, script.output
            assert "Point(x=6) 2\nodd 1\n" in script.output


def test_an_unpicklable_part_is_named_with_the_way_to_it(client: Client) -> None:
    """In arguments, closures and globals: the error says where it is and what it is."""
    lock = io.FileIO(0, closefd=False)

    def uses_lock() -> Any:
        return lock

    with pytest.raises(PayloadError, match=r"closure 'lock': _io.FileIO"):
        client.submit(uses_lock)
    with pytest.raises(PayloadError, match=r"at argument 1\['deep'\]\[1\]: _io.FileIO"):
        client.submit(abs, {"deep": [1, lock]})
    with pytest.raises(PayloadError, match="open files, connections and locks inside"):
        client.submit(functools.partial(print, lock))
    with pytest.raises(PayloadError, match="FileIO"):
        client.map_batch(abs, [1, lock], name="never-began")
    assert client.broker.call(("EXISTS", client.keys.batch("never-began"))) == 0


def test_a_worker_without_the_module_says_so(client: Client, tmp_path: Path) -> None:
    """Not a traceback from inside pickle: which module, which machine, what to do."""
    folder = tmp_path / "site-packages"  # as if installed: what is beside a notebook is sent
    folder.mkdir()
    (folder / "only_here.py").write_text("class Thing: pass\ndef f(x=None): return x\n")
    sys.path.insert(0, str(folder))
    try:
        import only_here  # type: ignore[import-not-found]

        for call in (
            lambda: client.submit(only_here.f),
            lambda: client.submit(print, only_here.Thing()),
            lambda: client.submit(print, [only_here.Thing(), b"x" * LARGE]),
        ):
            error = call().exception(10)
            assert isinstance(error, ModuleMissing)
            assert "has no module 'only_here'" in str(error)
            assert "install it there" in str(error)
    finally:
        sys.path.remove(str(folder))
        del sys.modules["only_here"]


def test_another_minor_version_of_python_is_refused_in_words(client: Client) -> None:
    """Bytecode of another version is not tried."""
    strange = dump(((3, 99), {}, dump(abs)))
    with pytest.raises(WrongPython, match=r"sent by Python 3.99 and this worker runs 3\.\d+"):
        load_function(strange)
    digest = session(client).blobs.put("function", strange)
    context = session(client).queue().context_of("strange")
    packet = session(client).signer.pack("call", context, Call(digest, (1,), {}).pickled())
    future = send(client, "strange", "redistq.call:strange", packet)
    error = future.exception(10)
    assert isinstance(error, WrongPython)
    assert "same minor version" in str(error)


# -- arguments and results -----------------------------------------------------------------------


def test_a_large_argument_shared_by_many_calls_is_stored_once() -> None:
    """Of 60 calls with the same 4 MB, 4 MB and little else cross to the server."""
    with serving() as client:
        server = server_of(client)
        big = numpy.random.default_rng(1).random(500_000)
        with server.client() as db:
            start: Any = db.info("stats")
            sums = list(client.map(lambda a, n: float(a[n]), [big] * 60, range(60)))
            end: Any = db.info("stats")
        assert sums == [float(big[n]) for n in range(60)]
        crossed = end["total_net_input_bytes"] - start["total_net_input_bytes"]
        assert 4_000_000 < crossed < 4_000_000 + 300_000


def test_a_large_argument_inside_a_list_and_keywords_is_stored_apart(client: Client) -> None:
    """The task itself stays small wherever in the arguments the large one is."""
    big = b"y" * (2 * LARGE)
    assert client.submit(len, [big, big]).result(10) == 2
    assert client.submit(lambda *, data: len(data), data=big).result(10) == 2 * LARGE


def test_each_task_has_its_own_copy_of_a_large_argument(client: Client) -> None:
    """A function that changes its argument changes it for no other call."""
    big = list(range(LARGE))

    def change(items: list[int]) -> int:
        items.append(0)
        return len(items)

    assert [client.submit(change, big).result(10) for _ in range(3)] == [LARGE + 1] * 3
    assert len(big) == LARGE


def test_arrays_and_frames_travel_both_ways(client: Client) -> None:
    """Values, types, index and order are those that were sent."""
    array = numpy.arange(200_000, dtype="int16").reshape(400, 500)
    back = client.submit(lambda a: a.T * 2, array).result(10)
    assert back.dtype == array.dtype
    assert numpy.array_equal(back, array.T * 2)
    frame = pandas.DataFrame(
        {
            "t": pandas.date_range("2024-01-01", periods=3, tz="UTC"),
            "c": pandas.Categorical(["a", "b", "a"]),
            "n": [1.5, None, 3.0],
        },
        index=["x", "y", "x"],
    )
    pandas.testing.assert_frame_equal(client.submit(lambda f: f, frame).result(10), frame)


def test_what_compresses_is_compressed(client: Client) -> None:
    """Zeros cross as a few bytes, random bytes as they are."""
    signer = session(client).signer
    assert len(signer.pack("argument", "x", bytes(1_000_000))) < 20_000
    noise = numpy.random.default_rng(1).bytes(1_000_000)
    assert 0 < len(signer.pack("argument", "x", noise)) - 1_000_000 < 100


def test_a_large_result_comes_back(client: Client) -> None:
    """More than an inbox carries: it is fetched from the record."""
    result = client.submit(numpy.random.default_rng(3).bytes, 3_000_000).result(20)
    assert len(result) == 3_000_000


def test_a_large_result_does_not_stay_long_on_the_server(client: Client) -> None:
    """Once its client has it, unless it was told for how long; small ones stay as usual."""

    def ttl_of(future: Any) -> int:
        future.result(10)
        key = client.keys.task(future.task_id)
        until(lambda: client.broker.call(("TTL", key)) > 0, "a time to live")
        time.sleep(0.05)  # the sender shortens it after it has told us
        return int(client.broker.call(("TTL", key)))

    noise = numpy.random.default_rng(3).bytes
    assert 0 < ttl_of(client.submit(noise, 100_000)) <= 600
    assert ttl_of(client.options(result_ttl=5000).submit(noise, 100_000)) > 4900
    assert ttl_of(client.submit(noise, 10)) > 80_000


def test_results_that_are_not_kept_arrive_all_the_same(client: Client) -> None:
    """result_ttl=0: the inbox is the only place a result ever is, large or small."""
    once = client.options(result_ttl=0)
    assert [once.submit(bytes, n).result(10) for n in (3, 100_000)] == [bytes(3), bytes(100_000)]
    assert list(once.map(abs, range(300))) == list(range(300))


def test_limits_say_what_to_do(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload beyond the client's limit, an argument beyond the blobs' limit."""
    client = Client(url, signing_key=KEY, max_payload_bytes=1000)
    with pytest.raises(PayloadTooLarge, match=r"limit is 1,000; .* raise max_payload_bytes"):
        client.submit(print, *range(1000))
    monkeypatch.setattr("redistq.functions.blobs.MAX_BLOB_BYTES", 100_000)
    with pytest.raises(PayloadTooLarge, match="pass its path") as caught:
        client.submit(len, numpy.random.default_rng(1).bytes(200_000))
    assert caught.value.limit == 100_000
    client.close()
    assert MAX_BLOB_BYTES == 256 * 1024**2


def test_chunks_share_what_their_calls_share(client: Client) -> None:
    """In a chunk a large argument is a reference too."""
    big = numpy.arange(100_000)
    assert list(client.map(lambda a, n: int(a[n]), [big] * 20, range(20), chunksize=7)) == list(
        range(20)
    )


# -- cached calls --------------------------------------------------------------------------------


def test_a_cached_call_is_made_once(client: Client, tmp_path: Path) -> None:
    """The same code with the same arguments: a stored result, also for another client."""
    path = str(tmp_path / "runs")

    def slow(n: int) -> int:
        with open(path, "a") as file:
            file.write(f"{n}\n")
        return n * n

    cached = client.options(cache="1d")
    assert [cached.submit(slow, n).result(10) for n in (3, 3, 4)] == [9, 9, 16]
    futures = [cached.submit(slow, 5) for _ in range(10)]
    assert [future.result(10) for future in futures] == [25] * 10
    other = Client(server_of(client).url, signing_key=KEY)
    assert other.options(cache=60).submit(slow, 3).result(10) == 9
    other.close()
    assert list(cached.map(slow, [3, 4, 6])) == [9, 16, 36]
    assert list(cached.map(slow, [3, 6, 6])) == [9, 36, 36]
    for _ in range(2):
        assert list(cached.map(slow, [7, 8], chunksize=2)) == [49, 64]
    assert sorted(Path(path).read_text().split()) == ["3", "4", "5", "6", "7", "8"]


def test_other_code_or_arguments_are_another_cached_call(client: Client) -> None:
    """What a function does, has closed over and calls decides; its name does not."""
    from redistq.functions.fingerprint import fingerprint

    def make(n: int, twice: bool) -> Any:
        def helper(x: int) -> int:
            return x + n

        if twice:
            return lambda x: helper(helper(x))
        return lambda x: helper(x)

    prints = [fingerprint(make(n, t), (1,), {}) for n in (1, 2) for t in (False, True)]
    assert len(set(prints)) == 4
    assert prints[0] == fingerprint(make(1, False), (1,), {})
    assert prints[0] != fingerprint(make(1, False), (2,), {})
    assert prints[0] != fingerprint(make(1, False), (1,), {"x": 2})


def test_a_cached_call_that_failed_is_tried_again(client: Client, tmp_path: Path) -> None:
    """Errors are not cached; the next call runs, and its result is."""
    flag = tmp_path / "mended"

    def may_fail() -> str:
        import os

        if not os.path.exists(str(flag)):
            raise OSError("not yet")
        return "fine"

    cached = client.options(cache="1h")
    for _ in range(10):  # none is given the end of the one before
        assert isinstance(cached.submit(may_fail).exception(10), OSError)
        assert isinstance(cached.submit(may_fail).exception(10), OSError)
    flag.touch()
    assert cached.submit(may_fail).result(10) == "fine"
    flag.unlink()
    assert cached.submit(may_fail).result(10) == "fine"


def test_a_cached_call_that_was_cancelled_can_be_made(url: str) -> None:
    """Cancelling is no result."""
    client = Client(url, signing_key=KEY)
    cached = client.options(cache="1h")
    assert cached.submit(abs, -1).cancel()
    client.start_workers(1)
    assert cached.submit(abs, -1).result(20) == 1
    client.close()


def test_cancelling_one_of_several_waits_for_a_cached_call_leaves_the_others(url: str) -> None:
    """The task goes on for those who still want it."""
    client = Client(url, signing_key=KEY)
    cached = client.options(cache="1h")
    first, second = cached.submit(abs, -1), cached.submit(abs, -1)
    assert first.cancel()
    client.start_workers(1)
    assert second.result(20) == 1
    client.close()


def test_an_ordinary_call_is_never_made_again_by_a_lost_answer(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose first answer was lost, and which failed meanwhile, is not run a second time."""
    path = tmp_path / "runs"

    def fail() -> None:
        with open(str(path), "a") as file:
            file.write("x")
        raise ValueError("once")

    real, first = client.broker.call, [True]

    def lossy(asked: Any) -> Any:
        answer = real(asked)
        if first and asked[:2] == session(client).queue().commands.enqueue(())[:2]:
            first.clear()
            until(lambda: path.exists(), "the first run")
            time.sleep(0.1)  # its failure is settled
            return real(asked)  # as the broker does when the connection broke in between
        return answer

    monkeypatch.setattr(session(client).broker, "call", lossy)
    assert isinstance(client.submit(fail).exception(10), ValueError)
    assert path.read_text() == "x"


# -- output and post-mortem ----------------------------------------------------------------------


def test_output_can_be_read_live_and_afterwards(client: Client, tmp_path: Path) -> None:
    """print, stderr and logging, line by line while it runs; bounded in size."""
    flag = str(tmp_path / "go")

    def talk() -> None:
        import logging
        import os
        import time

        print("one")
        print("two", "parts", sep="\n")
        while not os.path.exists(flag):
            time.sleep(0.01)
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("logged %d", 7)
        print("no newline", end="")

    import sys

    future = client.options(logs=True).submit(talk)
    lines = future.logs(follow=True)
    assert [next(lines) for _ in range(3)] == ["one", "two", "parts"]
    assert not future.done()
    Path(flag).touch()
    rest = ["to stderr", "WARNING mine: logged 7", "no newline"]
    assert list(lines) == rest
    assert future.logs() == "\n".join(["one", "two", "parts", *rest])

    def endless() -> None:
        for n in range(20_000):
            print("x" * 100, n)

    long = client.options(logs=True).submit(endless)
    long.result(20)
    text = long.logs()
    assert len(text) < 400_000
    assert "left out" in text or len(text.splitlines()) <= 2500
    assert client.submit(print, "quiet").result(10) is None


def test_a_failed_task_keeps_its_last_lines_without_being_asked(client: Client) -> None:
    """logs() of a failure is what it printed last."""

    def fail() -> None:
        for n in range(100):
            print("line", n)
        raise ValueError

    future = client.submit(fail)
    future.exception(10)
    assert future.logs().splitlines() == [f"line {n}" for n in range(50, 100)]


def test_what_a_failure_printed_last_is_shown_with_its_task(client: Client) -> None:
    """In dashboards and monitors, also where nobody asked for its output while it ran."""

    def fail() -> None:
        print("so far so good")
        raise ValueError("no further")

    future = client.submit(fail)
    future.exception(10)
    with TaskMonitor(url=str(client.address)) as monitor:
        assert monitor.records.task(future.task_id).output == ("so far so good",)


def test_the_report_of_a_failure_shows_locals_but_no_secrets(client: Client) -> None:
    """Host, Python, locals bounded in length; names that look secret are hidden."""

    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no text")

    def fail(user: str, password: str, api_key: str) -> None:
        auth_token = password * 2
        long = "x" * 100_000
        rude = Rude()
        raise ValueError(user, len(long), rude is None, auth_token is None)

    future = client.submit(fail, "ann", "hunter2", "k-123")
    future.exception(10)
    report = future.report
    assert report["type"] == "ValueError"
    assert report["host"]
    assert report["python"].startswith(f"{PYTHON[0]}.{PYTHON[1]}")
    frame = report["locals"][-1]
    assert frame["function"] == "fail"
    assert frame["locals"]["user"] == "'ann'"
    assert (frame["locals"]["password"], frame["locals"]["api_key"]) == ("<hidden>", "<hidden>")
    assert frame["locals"]["auth_token"] == "<hidden>"
    assert len(frame["locals"]["long"]) <= 200
    assert "Rude" in frame["locals"]["rude"]
    assert "hunter2" not in json.dumps({**report, "pickle": ""})


def test_a_failed_call_can_be_run_here(client: Client) -> None:
    """The same function with the same arguments, large ones too, in this process."""
    here: list[int] = []
    big = numpy.arange(100_000)

    def fail(data: Any, *, where: str) -> None:
        raise KeyError(where, int(data.sum()))

    future = client.submit(fail, big, where="x")
    future.exception(10)
    with pytest.raises(KeyError) as caught:
        future.rerun_here()
    assert caught.value.args == ("x", int(big.sum()))
    assert here == []
    done = client.submit(abs, 1)
    done.result(10)
    with pytest.raises(Exception, match="only failed tasks keep theirs"):
        done.rerun_here()


def test_a_failed_call_can_be_debugged_here(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """debug=True opens the debugger where the error was raised, then raises it."""
    seen: list[str] = []
    monkeypatch.setattr(
        "pdb.post_mortem", lambda tb: seen.append(tb.tb_next.tb_frame.f_code.co_name)
    )

    def fail() -> None:
        raise ValueError("look at me")

    future = client.submit(fail)
    future.exception(10)
    with pytest.raises(ValueError, match="look at me"):
        future.rerun_here(debug=True)
    assert seen == ["fail"]


def test_a_failed_call_can_be_sent_again(client: Client, tmp_path: Path) -> None:
    """replay answers a new future; a task that did not fail is not replayed."""
    flag = tmp_path / "mended"

    def may_fail() -> str:
        import os

        if not os.path.exists(str(flag)):
            raise OSError("not yet")
        return "fine"

    future = client.submit(may_fail)
    future.exception(10)
    flag.touch()
    again = future.replay()
    assert again.result(10) == "fine"
    assert isinstance(future.exception(0), OSError), "what was told stays told"
    with pytest.raises(Exception, match="no dead letter"):
        again.replay()


# -- trust ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker_key", "allow", "runs"),
    [(KEY, False, True), ("another key for tests", False, False), ("", True, True)],
)
def test_a_worker_runs_what_is_signed_with_its_key(
    url: str, worker_key: str, allow: bool, runs: bool
) -> None:
    """With another key the call is refused before it is unpickled; with allow_pickle it runs."""
    from redistq import TaskWorker

    client = Client(url, signing_key=KEY, allow_pickle=True)
    options = {"signing_key": worker_key} if worker_key else {}
    sealed = {**options, "allow_pickle": allow}
    if worker_key:
        sealed["signing_key"] = worker_key.encode().hex()
    with TaskWorker(url=url, task_handlers={"n": lambda n: n}, thread_count=1, **sealed):
        future = client.submit(abs, -5)
        if runs:
            assert future.result(20) == 5
        else:
            error = future.exception(20)
            assert error is not None
            assert "signed with another key" in str(error)
            assert "--allow-pickle" in str(error)
    client.close()


def test_a_worker_without_a_key_leaves_function_calls_to_others(url: str) -> None:
    """It does not know their name: they wait for a worker that does."""
    from redistq import TaskWorker

    client = Client(url, signing_key=KEY)
    handlers = {"n": lambda n: n}
    worker = TaskWorker(url=url, task_handlers=handlers, thread_count=1)
    with worker, producer_of(client) as producer:
        future = client.submit(abs, -5)
        until(lambda: producer.get_task(future.task_id).state == "delayed", "a parked call")
        assert worker.running
    client.start_workers(1)
    assert future.result(30) == 5
    client.close()


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_an_unsigned_payload_is_not_unpickled(client: Client, tmp_path: Path) -> None:
    """A task written by somebody without the key fails, and nothing of it was run."""
    trap = tmp_path / "sprung"
    payload = MAGIC + b"\0" + pickle.dumps(("f", (Bomb(str(trap)),), {}, False, False))
    future = send(client, "unsigned", "redistq.call", payload)
    error = future.exception(10)
    assert isinstance(error, UntrustedPayload | TaskFailed)
    assert "not signed" in str(error)
    assert not trap.exists()


@pytest.mark.parametrize("at", ["flags", "signature", "data", "cut"])
def test_a_tampered_payload_is_not_unpickled(client: Client, at: str) -> None:
    """Each byte counts."""
    good = bytearray(session(client).signer.pack("call", "c", Call("f", (1,), {}).pickled()))
    if at == "cut":
        del good[-1]
    else:
        good[{"flags": 4, "signature": 10, "data": -1}[at]] ^= 1
    with pytest.raises(UntrustedPayload):
        session(client).signer.unpack("call", "c", bytes(good))


def test_a_tampered_blob_is_not_unpickled(client: Client, tmp_path: Path) -> None:
    """Another content under a blob's name, or one without our signature, is refused."""
    trap = tmp_path / "sprung"
    evil = MAGIC + b"\0" + dump(((3, 11), {}, pickle.dumps(Bomb(str(trap)))))
    good = store_function(client, lambda: "mine")
    for name in (good, digest_of(evil)):
        client.broker.call(("SET", client.keys.blob(name), evil))
        context = session(client).queue().context_of(f"evil-{name}")
        packet = session(client).signer.pack("call", context, Call(name, (), {}).pickled())
        error = send(client, f"evil-{name}", "redistq.call", packet).exception(10)
        assert error is not None
        assert re.search("not what its name says|not signed", str(error))
    assert not trap.exists()
    client.broker.call(("DEL", client.keys.blob(good)))
    session(client).blobs.forget()


def test_a_result_without_our_signature_is_not_unpickled(url: str, tmp_path: Path) -> None:
    """A client does not trust the server's other users with its own process."""
    trap = tmp_path / "sprung"
    client = Client(url, signing_key=KEY)
    future = client.submit(abs, 1)
    evil = MAGIC + b"\0" + pickle.dumps(Bomb(str(trap)))
    told = ("XADD", session(client).exchange.presence.inbox.key, "*", "id")
    client.broker.call((*told, future.task_id, "state", "succeeded", "body", evil))
    with pytest.raises(UntrustedPayload, match="not signed"):
        future.result(10)
    second = client.submit(abs, 1)
    report = json.dumps(
        {
            "type": "ValueError",
            "message": "evil",
            "traceback": "",
            "pickle": __import__("base64").b64encode(evil).decode(),
        }
    )
    client.broker.call((*told, second.task_id, "state", "failed", "body", report))
    error = second.exception(10)
    assert isinstance(error, TaskFailed)
    assert "own type was not restored" in str(error.__notes__)
    assert not trap.exists()
    client.close()


def test_keys_that_protect_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short key is an error; the user's own key is made once, for this user alone."""
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        key_from("short")
    monkeypatch.setenv("REDISTQ_SIGNING_KEY", "from the environment")
    assert key_from(None) == b"from the environment"
    home = tmp_path / "home"
    key = user_key(home)
    assert user_key(home) == key
    assert len(key) == 32
    path = home / "signing.key"
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="damaged"):
        user_key(home)


class Kind(enum.Enum):
    A = 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=40_000)
    | st.sampled_from(Kind),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.binary(min_size=16), st.binary(min_size=16))
def test_any_value_survives_its_packet_and_no_other_key_opens_it(
    value: Any, key: bytes, other: bytes
) -> None:
    """Packing and unpacking give the same back; a packet is never taken for JSON."""
    packet = Signer(key).pack("result", "t", dump(value))
    assert packet[:1] == b"\0"
    back = load(Signer(key).unpack("result", "t", packet))
    assert back == value
    assert type(back) is type(value)
    assert load(Signer(None, allow_unsigned=True).unpack("result", "t", packet)) == value
    if other != key:
        with pytest.raises(UntrustedPayload):
            Signer(other).unpack("result", "t", packet)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_no_packet(noise: bytes) -> None:
    """Whatever is in its place, unpacking raises UntrustedPayload and nothing else."""
    for data in (noise, MAGIC + noise, OLD_MAGIC + noise):
        with pytest.raises(UntrustedPayload):
            Signer(b"k" * 16).unpack("call", "c", data, old=True)


def test_blobs_are_stored_once_renewed_and_expire(client: Client) -> None:
    """A second put sends nothing; what is put for longer is kept for longer."""
    blobs = Blobs(client.broker, client.keys, session(client).signer)
    name = blobs.put("argument", b"some data")
    key = client.keys.blob(name)
    week = 7 * 86_400
    assert week - 10 < client.broker.call(("TTL", key)) <= week
    client.broker.call(("DEL", key))
    assert blobs.put("argument", b"some data") == name
    assert client.broker.call(("EXISTS", key)) == 0, "it is believed to be there"
    blobs.forget()
    blobs.put("argument", b"some data")
    assert client.broker.call(("EXISTS", key)) == 1
    blobs.put("argument", b"some data", 3 * week)
    assert client.broker.call(("TTL", key)) > 2 * week
    blobs.put("argument", b"some data")
    assert client.broker.call(("TTL", key)) > 2 * week
