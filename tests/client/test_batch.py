"""Durable batches: counted, resumed, in order, retried, cancelled and deleted, by any client."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, gate, kept, serving, session
from support.servers import Server
from support.workers import command, until

from redistq import (
    Client,
    ConfigurationError,
    RedistqError,
    ResultTimeout,
    TaskCancelled,
    TaskWorker,
    UnknownTask,
)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes."""
    with serving() as client:
        yield client


@pytest.fixture
def idle(url: str) -> Iterator[Client]:
    """A client without workers: what it submits waits."""
    client = Client(url, signing_key=KEY)
    yield client
    client.close()


def odd_fails(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n * 10


def test_results_come_in_the_order_of_the_items(client: Client) -> None:
    """Whatever the order in which they end; counts add up."""

    def late(n: int) -> int:
        import time

        time.sleep(0.001 * (20 - n))
        return n

    batch = client.map_batch(late, range(20))
    assert batch.results(20) == list(range(20))
    assert batch.done
    assert len(batch) == batch.total == 20
    assert batch.counts() == {
        "total": 20,
        "succeeded": 20,
        "failed": 0,
        "cancelled": 0,
        "expired": 0,
        "retried": 0,
        "waiting": 0,
    }


def test_results_can_be_read_again_and_again(client: Client) -> None:
    """Reading takes nothing away."""
    batch = client.map_batch(abs, [-1, -2])
    assert batch.results(20) == batch.results() == [1, 2]
    assert sorted(batch.as_completed()) == sorted(batch.as_completed()) == [(0, 1), (1, 2)]


def test_an_empty_batch_is_done(client: Client) -> None:
    """No items, no waiting."""
    batch = client.map_batch(abs, [])
    assert batch.results(5) == []
    assert batch.done
    assert list(batch.as_completed(5)) == []
    assert list(batch.failures().columns) == [
        "item",
        "error",
        "message",
        "traceback",
        "attempts",
        "task_id",
        "version",
    ]


def test_as_completed_gives_what_is_there_while_others_run(client: Client, tmp_path: Path) -> None:
    """Pairs of position and result, each once."""
    wait_for_it, let_go = gate(tmp_path)

    def work(n: int) -> Any:
        return wait_for_it() if n == 0 else n

    given = client.map_batch(work, range(3)).as_completed(20)
    assert {next(given), next(given)} == {(1, 1), (2, 2)}
    let_go()
    assert list(given) == [(0, "went")]


def test_errors_are_raised_skipped_or_returned(client: Client) -> None:
    """on_error says which; anything else is refused before waiting."""
    batch = client.map_batch(odd_fails, range(4))
    batch.wait(20)
    with pytest.raises(ValueError, match="1 is odd") as caught:
        batch.results(20)
    assert "raise ValueError" in str(caught.value.__cause__)
    assert [frame.path.name for frame in caught.traceback] == ["test_batch.py"]
    assert batch.results(on_error="skip") == [0, 20]
    results = batch.results(on_error="return")
    assert [results[0], results[2]] == [0, 20]
    assert [str(results[1]), str(results[3])] == ["1 is odd", "3 is odd"]
    assert sorted(batch.as_completed(on_error="skip")) == [(0, 0), (2, 20)]
    with pytest.raises(ConfigurationError, match="'raise', 'skip' or 'return'"):
        batch.results(on_error="ignore")


@pytest.mark.parametrize("awaited", [False, True], ids=["results", "await"])
def test_the_first_error_is_raised_at_once(client: Client, tmp_path: Path, awaited: bool) -> None:
    """It does not wait for tasks that still run, which go on; it says how to see all of them."""
    wait_for_it, let_go = gate(tmp_path)

    def work(n: int) -> str:
        if n == 1:
            raise ValueError("the second item")
        return wait_for_it()

    batch = client.map_batch(work, range(3))

    async def gather() -> list[Any]:
        found: list[Any] = await batch
        return found

    with pytest.raises(ValueError, match="the second item") as caught:
        asyncio.run(gather()) if awaited else batch.results(20)
    assert batch.counts()["waiting"] == 2, "the others still run"
    (note,) = caught.value.__notes__
    assert batch.id in note
    assert "results(on_error='return')" in note
    let_go()
    results = batch.results(20, on_error="return")
    assert (results[0], str(results[1]), results[2]) == ("went", "the second item", "went")


@pytest.mark.parametrize("how", ["results", "as_completed"])
def test_an_error_of_before_is_not_raised_while_its_task_runs_again(
    client: Client, tmp_path: Path, how: str
) -> None:
    """A batch that is resumed runs again what failed: only its new end counts."""
    wait_for_it, let_go = gate(tmp_path)

    def fails(n: int) -> str:
        raise ValueError(n)

    client.map_batch(fails, range(2), name=f"twice-{how}").wait(20)
    batch = client.map_batch(lambda n: wait_for_it(), range(2), name=f"twice-{how}")
    threading.Timer(0.3, let_go).start()
    if how == "results":
        assert batch.results(20) == ["went", "went"]
    else:
        assert sorted(batch.as_completed(20)) == [(0, "went"), (1, "went")]


def test_awaiting_a_task_that_raised_stop_iteration_ends(client: Client) -> None:
    """It would be taken for the end of a generator, so it arrives as a RuntimeError."""

    def stop(_: Any = None) -> None:
        raise StopIteration("enough")

    async def main(what: Any) -> None:
        with pytest.raises(RuntimeError) as caught:
            await what
        assert isinstance(caught.value.__cause__, StopIteration)

    asyncio.run(asyncio.wait_for(main(client.submit(stop)), 20))
    asyncio.run(asyncio.wait_for(main(client.map_batch(stop, [1])), 20))


def test_a_batch_that_is_waited_for_ends_with_its_client(url: str) -> None:
    """Closing the client ends the wait with an error that says how to go on."""
    client = Client(url, signing_key=KEY)
    batch = client.map_batch(abs, [-1], name="left")
    threading.Timer(0.2, client.close).start()
    with pytest.raises(RedistqError, match=r"Client.*batch.'left'. finds it"):
        batch.results(20)


def test_failures_is_a_frame_of_what_went_wrong(client: Client) -> None:
    """One row a failed item, indexed by its position, with what is needed to act on it."""
    batch = client.map_batch(odd_fails, [0, 5, 6, 7])
    batch.wait(20)
    frame = batch.failures()
    assert list(frame.index) == [1, 3]
    assert frame.index.name == "position"
    assert list(frame["item"]) == [5, 7]
    assert list(frame["error"]) == ["ValueError"] * 2
    assert list(frame["message"]) == ["5 is odd", "7 is odd"]
    assert list(frame["attempts"]) == [1, 1]
    assert all("raise ValueError" in text for text in frame["traceback"])
    assert list(frame["task_id"]) == [f"{batch.id}:1", f"{batch.id}:3"]


def test_failures_shows_large_items_too(client: Client) -> None:
    """An item that was stored apart is fetched for the frame."""

    def fail(data: bytes) -> None:
        raise ValueError(len(data))

    batch = client.map_batch(fail, [b"z" * 200_000])
    batch.wait(20)
    assert batch.failures()["item"].iloc[0] == b"z" * 200_000


def test_retry_failed_sends_again_what_failed(client: Client, tmp_path: Path) -> None:
    """Only that; the counts follow, and the results are complete when it succeeds."""
    flag, log = tmp_path / "mended", tmp_path / "log"

    def may_fail(n: int) -> int:
        import os

        with open(str(log), "a") as file:
            file.write(f"{n}\n")
        if n % 2 and not os.path.exists(str(flag)):
            raise OSError("not yet")
        return n

    batch = client.map_batch(may_fail, range(6))
    batch.wait(20)
    assert batch.counts()["failed"] == 3
    flag.touch()
    assert batch.retry_failed() == 3
    assert batch.results(20) == list(range(6))
    counts = batch.counts()
    assert (counts["succeeded"], counts["failed"], counts["waiting"]) == (6, 0, 0)
    assert batch.retry_failed() == 0
    assert sorted(log.read_text().split()) == sorted(["0", "2", "4", *"113355"])
    assert len(batch.failures()) == 0


def test_retries_are_counted(client: Client, tmp_path: Path) -> None:
    """options(retries=) for a batch: counts tells how often a task was tried again."""
    from redistq import Retry

    def flaky(path: str) -> str:
        with open(path, "a+") as file:
            file.write(".")
            file.seek(0)
            if len(file.read()) < 2:
                raise Retry(delay=0.0)
        return "ok"

    paths = [str(tmp_path / n) for n in "ab"]
    batch = client.options(retries=2).map_batch(flaky, paths)
    assert batch.results(20) == ["ok", "ok"]
    assert batch.counts()["retried"] == 2


def test_cancel_cancels_what_has_not_started(idle: Client) -> None:
    """And answers how many; their results are TaskCancelled, and the batch is done."""
    batch = idle.map_batch(abs, range(500))
    assert batch.cancel() == 500
    assert batch.cancel() == 0
    assert batch.done
    with pytest.raises(TaskCancelled):
        batch.results(5)
    assert batch.results(5, on_error="skip") == []
    assert batch.counts()["cancelled"] == 500


def test_the_same_cell_again_runs_only_what_is_missing(idle: Client, tmp_path: Path) -> None:
    """Resumed by name, by its items: what succeeded is not run again; what failed or was cancelled
    is, with the function as it is now."""
    log = tmp_path / "log"

    def first(n: int) -> int:
        with open(str(log), "a") as file:
            file.write(f"{n}\n")
        if n == 2:
            raise ValueError("bug")
        return n

    batch = idle.map_batch(first, range(4), name="nightly")
    assert session(idle).queue().cancel(("nightly:3",)) == {"nightly:3": "cancelled"}
    idle.start_workers(1)
    batch.wait(20)
    assert (batch.counts()["failed"], batch.counts()["cancelled"]) == (1, 1)

    def fixed(n: int) -> int:
        with open(str(log), "a") as file:
            file.write(f"{n}\n")
        return n * 100

    again = idle.map_batch(fixed, range(4), name="nightly", resume="items")
    assert again.results(20) == [0, 1, 200, 300]
    assert again.counts()["succeeded"] == 4
    assert sorted(log.read_text().split()) == ["0", "1", "2", "2", "3"]


def test_a_name_that_is_taken_can_be_refused(idle: Client) -> None:
    """resume=False, another number of items, and names that cannot be."""
    idle.map_batch(abs, range(3), name="taken")
    with pytest.raises(ConfigurationError, match="there is a batch 'taken' already"):
        idle.map_batch(abs, range(3), name="taken", resume=False)
    with pytest.raises(ConfigurationError, match="started with 3 items and has 2 now"):
        idle.map_batch(abs, range(2), name="taken")
    for name in ("with space", "x" * 101):
        with pytest.raises(ConfigurationError, match="1 to 100 characters"):
            idle.map_batch(abs, [1], name=name)


def test_results_that_have_expired_are_made_again_and_counted_once(idle: Client) -> None:
    """A resume after the results' time runs everything anew, and the counts end complete."""
    idle.start_workers(1)
    batch = idle.map_batch(abs, range(5), name="old")
    batch.wait(20)
    for index in range(5):
        idle.broker.call(("DEL", idle.keys.task(f"old:{index}")))
    with pytest.raises(UnknownTask):
        batch.results(5)
    again = idle.map_batch(abs, range(5), name="old")
    assert again.results(20) == list(range(5))
    assert again.counts()["succeeded"] == 5
    assert again.counts()["waiting"] == 0


def test_another_process_takes_a_batch_up(client: Client, tmp_path: Path) -> None:
    """By its name alone: counts, results, failures; an unknown name is an error."""
    url = client.server.url  # type: ignore[attr-defined]
    client.map_batch(odd_fails, range(4), name="handover")
    (tmp_path / "other.py").write_text(
        "from redistq import Client\n"
        f"client = Client({url!r}, signing_key={KEY!r})\n"
        "batch = client.batch('handover')\n"
        "print(batch.results(20, on_error='skip'), list(batch.failures()['item']), len(batch))\n"
        "client.close()\n"
    )
    with command(tmp_path, "other.py", PYTHONPATH=str(Path(__file__).parents[1])) as other:
        assert other.wait(30) == 0, other.output
        assert "[0, 20] [1, 3] 4" in other.output
    with pytest.raises(UnknownTask):
        client.batch("nobody-knows")


def test_delete_leaves_nothing_of_a_batch(idle: Client, server: Server) -> None:
    """No record, no counters, no stream; it refuses while tasks run, and cancels what waits."""
    idle.map_batch(abs, range(300), name="gone").delete()
    with server.client() as db:
        assert db.keys("*gone*") == []
        assert db.zcard("batches:tasks") == 0
        assert db.xlen("tasks") == 0
    idle.start_workers(1)
    assert idle.map_batch(abs, [-1], name="gone").results(20) == [1]


def test_delete_refuses_while_tasks_run(client: Client, tmp_path: Path) -> None:
    """Their results would come to a batch that is not there."""
    wait_for_it, let_go = gate(tmp_path)
    batch = client.map_batch(lambda _: wait_for_it(), [1])
    until(lambda: session(client).queue().watch(f"{batch.id}:0").state == "running", "a run")
    with pytest.raises(ConfigurationError, match="are running"):
        batch.delete()
    let_go()
    batch.wait(20)
    batch.delete()


def test_a_wait_times_out_and_the_batch_goes_on(idle: Client) -> None:
    """ResultTimeout, a TimeoutError, after the time given."""
    batch = idle.map_batch(abs, [-1])
    started = time.monotonic()
    with pytest.raises(ResultTimeout):
        batch.results(timeout=0.2)
    with pytest.raises(TimeoutError):
        list(batch.as_completed(timeout=0.1))
    assert time.monotonic() - started < 2
    idle.start_workers(1)
    assert batch.results(20) == [1]


def test_an_interrupted_wait_says_how_to_go_on(
    idle: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the batch, how to find it and how to cancel it; the work goes on."""
    batch = idle.map_batch(abs, [-1], name="long-one")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("redistq.client.queues.ClientQueue.batch_counts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            batch.results()
    said = capsys.readouterr().err
    assert "client.batch('long-one')" in said
    assert "goes on" in said
    assert ".cancel()" in said
    assert not batch.done


def test_progress_is_quiet_without_a_terminal(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """In pipes and logs nothing is drawn, unless it was asked for."""
    client.map_batch(abs, range(5)).results(20)
    assert capsys.readouterr().err == ""


def test_progress_shows_failures_when_asked_for(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """progress=True draws everywhere: done, failed; a batch that is done already draws nothing."""
    wait_for_it, let_go = gate(tmp_path)

    def work(n: int) -> Any:
        if n == 1:
            raise ValueError
        return wait_for_it() if n == 2 else n

    batch = client.map_batch(work, range(3), name="shown", progress=True)
    threading.Timer(0.3, let_go).start()
    batch.results(20, on_error="skip")
    said = capsys.readouterr().err
    assert "shown" in said
    assert "3/3" in said
    assert "failed=1" in said
    batch.results(20, on_error="skip")
    assert capsys.readouterr().err == ""


def test_a_batch_can_be_awaited(client: Client, idle: Client) -> None:
    """await gives the results; cancelling the wait leaves the batch alone and holds no thread."""

    async def main() -> Any:
        results = await client.map_batch(abs, range(10))
        waiting = idle.map_batch(abs, [1])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(waiting), 0.1)
        return results, waiting.counts()["waiting"]

    async def _await(it: Any) -> Any:
        return await it

    started = time.monotonic()
    assert asyncio.run(main()) == (list(range(10)), 1)
    assert time.monotonic() - started < 4, "the loop's end waited for the batch"
    idle.batch(idle.broker.call(("ZRANGE", idle.keys.batches, 0, -1))[0].decode()).cancel()


def test_a_scope_waits_for_its_work(client: Client) -> None:
    """Leaving the block normally returns when all of it is done."""
    with client.batch_scope() as scope:
        futures = [scope.submit(time.sleep, 0.05), *scope.map(abs, [-1, -2])]
    assert all(future.done() for future in futures)
    assert "3/3" in repr(scope)


@pytest.mark.parametrize("why", [ValueError, KeyboardInterrupt])
def test_a_scope_left_by_an_error_cancels_what_has_not_started(
    idle: Client, why: type[BaseException]
) -> None:
    """An interrupt, too; nothing of the cell is left in the queue."""
    futures: list[Any] = []

    def cell() -> None:
        with idle.batch_scope() as scope:
            futures.extend(scope.map(abs, range(300)))
            raise why

    with pytest.raises(why):
        cell()
    assert len(futures) == 300
    assert all(future.cancelled() for future in futures)
    assert session(idle).queue().snapshot().ready == 0


def test_representations_are_escaped(idle: Client) -> None:
    """A batch's name is somebody's input."""
    batch = idle.map_batch(abs, [1], name="<script>")
    assert "<script>" not in batch._repr_html_()
    assert "waiting" in batch._repr_html_()
    assert repr(batch) == "<Batch '<script>' of 1 tasks>"
    batch.cancel()
    batch.delete()
    assert "<script>" not in batch._repr_html_(), "also when it is gone"


def test_a_batch_expires(idle: Client) -> None:
    """Nothing of a batch is kept for ever, finished or not."""
    batch = idle.map_batch(abs, [1, 2], name="mortal")
    keys = idle.keys
    assert 0 < idle.broker.call(("TTL", keys.batch("mortal"))) <= 30 * 86_400
    idle.start_workers(1)
    batch.wait(20)
    for key in (keys.batch("mortal"), keys.settled("mortal"), keys.task("mortal:0")):
        assert 0 < idle.broker.call(("TTL", key)) <= 7 * 86_400


@pytest.mark.parametrize("done", [0, 7])
def test_a_bar_begins_at_what_was_done(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So its rate and the time left are those of what runs now."""
    import io

    from redistq.client.batch_bar import BatchBar

    monkeypatch.setattr("sys.stderr", io.StringIO())
    bar = BatchBar("resumed", True)
    bar.show({"succeeded": done, "waiting": 10 - done, "total": 10})
    try:
        drawn: Any = bar._bar
        facts = drawn._bar.format_dict
        assert (facts["n"], facts["initial"]) == (done, done)
        bar.show({"succeeded": done + 2, "waiting": 8 - done, "total": 10})
        facts = drawn._bar.format_dict
        assert (facts["n"], facts["initial"]) == (done + 2, done)
    finally:
        bar.close()


def begun(url: str, *args: Any, **how: Any) -> tuple[Any, TaskWorker, weakref.ref[Client]]:
    """A batch whose client nobody else holds, its workers, and whether that client is there."""
    client = Client(url, signing_key=KEY)
    workers = client.start_workers(1)
    return client.map_batch(*args, progress=False, **how), workers, kept(client)


@pytest.mark.parametrize("name", [None, "kept"])
@pytest.mark.parametrize("held", [True, False], ids=["held", "dropped"])
def test_an_unfinished_batch_keeps_its_client_and_lets_go_at_its_end(
    url: str, tmp_path: Path, name: str | None, held: bool
) -> None:
    """Also where nobody holds the batch either; what a notebook remembers keeps no workers."""
    wait_for_it, go = gate(tmp_path)
    batch, workers, client = begun(url, lambda n: (wait_for_it(), n)[1], range(3), name=name)
    batch_id = batch.id
    if not held:
        del batch
    gc.collect()
    assert client() is not None
    assert workers.running
    go()
    with Client(url, signing_key=KEY) as other:
        assert other.batch(batch_id).results(20) == [0, 1, 2]
    until(lambda: gc.collect() is not None and client() is None, "its client to go", 20)
    until(lambda: not workers.running, "its workers to stop", 20)
    if held:
        assert batch.results(20) == [0, 1, 2]
        assert batch.counts()["succeeded"] == 3


@pytest.mark.parametrize(
    "wait",
    [
        lambda batch: batch.results(20, on_error="return"),
        lambda batch: list(batch.as_completed(20, on_error="return")),
        lambda batch: batch.wait(20),
    ],
    ids=["results", "as_completed", "wait"],
)
def test_a_batch_that_was_waited_for_is_read_without_its_client(
    url: str, wait: Callable[[Any], Any]
) -> None:
    """Everything works as before; what is sent again waits for workers."""
    batch, workers, client = begun(url, odd_fails, range(2))
    wait(batch)
    gc.collect()
    until(lambda: client() is None, "its client to go", 20)
    until(lambda: not workers.running, "its workers to stop", 20)
    assert batch.results(20, on_error="skip") == [0]
    assert list(batch.failures()["error"]) == ["ValueError"]
    assert batch.retry_failed() == 1
    assert batch.counts()["waiting"] == 1
    with Client(url, signing_key=KEY) as other:
        other.start_workers(1)
        assert batch.wait(20).counts()["failed"] == 1


def test_failed_tasks_that_are_sent_again_keep_the_client(url: str, tmp_path: Path) -> None:
    """It is unfinished once more."""
    wait_for_it, go = gate(tmp_path)

    def fails_first(n: int) -> str:
        first = tmp_path / "first"
        if not first.exists():
            first.touch()
            raise ValueError("first")
        return wait_for_it()

    client = Client(url, signing_key=KEY)
    workers, gone = client.start_workers(1), kept(client)
    batch = client.map_batch(fails_first, [0], progress=False)
    batch.wait(20)
    assert batch.retry_failed() == 1
    del client
    gc.collect()
    assert workers.running
    go()
    assert batch.results(20) == ["went"]
    until(lambda: gc.collect() is not None and gone() is None, "its client to go", 20)


def test_a_batch_that_was_found_keeps_its_client_while_it_is_held(idle: Client, url: str) -> None:
    """Who only looks leaves nothing behind."""
    idle.map_batch(abs, range(2), name="looked-at", progress=False)
    found = Client(url, signing_key=KEY).batch("looked-at")
    gone = weakref.ref(found._session)
    gc.collect()
    assert gone() is not None
    assert found.counts()["waiting"] == 2
    del found
    gc.collect()
    until(lambda: gone() is None, "the client to go")
