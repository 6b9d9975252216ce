"""The Client as an Executor, and its futures as those of ``concurrent.futures``, case by case.

The cases are those of the standard library's own tests of executors, with worker processes behind
a real server instead of a pool; what differs on purpose is said in the test.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, gate, serving, session, threads_of
from support.servers import Server
from support.workers import until

from redistq import (
    Client,
    ConfigurationError,
    MemoryLimitExceeded,
    PayloadError,
    RedistqError,
    TaskFailed,
    TaskWorker,
    TimeLimitExceeded,
    UnknownTask,
    slots,
)
from redistq.client.outcomes import RemoteTraceback, decode_error
from redistq.functions.signing import Signer


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


def divide(a: int, b: int) -> float:
    return a / b


# -- submit and result ---------------------------------------------------------------------------


def test_submit_calls_with_arguments_and_keywords(client: Client) -> None:
    """Positional and keyword arguments arrive, also those called self, fn or client."""
    assert client.submit(pow, 2, 8).result(10) == 256
    assert client.submit(lambda *a, **k: (a, k), 1, self=2, fn=3, client=4).result(10) == (
        (1,),
        {"self": 2, "fn": 3, "client": 4},
    )


def test_submit_needs_something_to_call(client: Client) -> None:
    """No argument at all, or one that cannot be called, is a TypeError here."""
    with pytest.raises(TypeError):
        client.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="submit takes a function, not 5"):
        client.submit(5)  # type: ignore[arg-type]


def test_client_is_an_executor_and_its_futures_are_futures(client: Client) -> None:
    """Code that asks with isinstance is satisfied."""
    assert isinstance(client, concurrent.futures.Executor)
    future = client.submit(abs, -1)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(10) == 1
    assert future.exception(0) is None
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)


def test_none_is_a_result(client: Client) -> None:
    """A function that returns nothing resolves its future with None."""
    assert client.submit(lambda: None).result(10) is None


def test_result_times_out_and_can_be_asked_again(client: Client, tmp_path: Path) -> None:
    """TimeoutError after the time given; the task goes on and its result comes later."""
    wait_for_it, let_go = gate(tmp_path)
    future = client.submit(wait_for_it)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.0)
    let_go()
    assert future.result(10) == "went"


def test_running_is_what_a_worker_has(client: Client, idle: Client, tmp_path: Path) -> None:
    """A task that waits is not running, one that a worker has is, one that ended is not."""
    assert not idle.submit(abs, 1).running()
    wait_for_it, let_go = gate(tmp_path)
    future = client.submit(wait_for_it)
    until(future.running, "a worker to have it")
    let_go()
    assert future.result(10) == "went"
    assert not future.running()


def test_functions_defined_again_are_the_new_ones(client: Client) -> None:
    """Each submit sends the function as it is then, though its name is the same."""

    def make(n: int) -> Any:
        def f() -> int:
            return n

        return f

    assert [client.submit(make(n)).result(10) for n in range(3)] == [0, 1, 2]


def test_named_tasks_travel_as_json(url: str) -> None:
    """A name instead of a function runs the handler of that name with one payload."""
    with Client(url, signing_key=KEY) as client:
        client.start_workers(1, handlers={"double": lambda n: 2 * n})
        assert client.submit("double", 21).result(10) == 42
        with pytest.raises(TypeError, match="one payload"):
            client.submit("double", 1, 2)
        with pytest.raises(PayloadError):
            client.submit("double", object())


# -- errors --------------------------------------------------------------------------------------


def test_an_error_has_its_own_type_and_the_remote_traceback_as_cause(client: Client) -> None:
    """As ProcessPoolExecutor: the type to catch, and below it where it happened."""
    future = client.submit(divide, 1, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        future.result(10)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "return a / b" in str(cause)
    assert "redistq" not in str(cause).replace("tests", ""), "our own callers help nobody"
    assert future.exception(0) is caught.value


def test_base_exceptions_are_told_and_not_done(client: Client) -> None:
    """SystemExit and KeyboardInterrupt in a task are failures of the task; no process ends."""

    def leave(kind: str) -> None:
        raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[kind]("from a task")

    for kind, name in (("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")):
        error = client.submit(leave, kind).exception(10)
        assert isinstance(error, RedistqError)
        assert name in str(error)
    assert client.submit(abs, -2).result(10) == 2


class Stubborn(Exception):
    """Its constructor wants more than it gives to the pickle."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def test_an_error_whose_constructor_cannot_be_called_again_keeps_its_type(client: Client) -> None:
    """It is rebuilt without its constructor, with its text; the worker's traceback is its cause."""

    def fail() -> None:
        raise Stubborn(1, 2)

    error = client.submit(fail).exception(10)
    assert type(error).__name__ == "Stubborn"
    assert isinstance(error, Stubborn)
    assert str(error) == "1 and 2"
    assert "raise Stubborn(1, 2)" in str(error.__cause__)


def test_an_error_that_cannot_be_pickled_keeps_its_type_and_text(client: Client) -> None:
    """The error of a task never gets lost for what it carries; what cannot travel comes as text."""

    def fail() -> None:
        error = ValueError("carries a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    error = client.submit(fail).exception(10)
    assert isinstance(error, ValueError)
    assert str(error) == "carries a lock"
    assert isinstance(error.lock, str)  # type: ignore[attr-defined]


def test_a_result_that_cannot_be_pickled_is_the_tasks_error(client: Client) -> None:
    """It says what was returned and what in it cannot be sent."""
    error = client.submit(lambda: {"open": threading.Lock()}).exception(10)
    assert isinstance(error, PayloadError)
    assert "the function returned what cannot be sent back at result['open']: _thread.lock" in str(
        error
    )
    assert "worker" not in str(error)


def test_a_function_that_uses_the_client_is_told_what_to_do(client: Client) -> None:
    """A client has connections of this process; one of its own is made in a moment."""
    words = r"'client'.* makes a Client\(\) of its own"
    with pytest.raises(PayloadError, match=words) as raised:
        client.submit(lambda: client.submit(abs, -1).result())
    assert [frame.path.name for frame in raised.traceback] == ["test_client.py"]
    with pytest.raises(PayloadError, match=words) as raised:
        client.map_batch(lambda n: client.submit(abs, n).result(), [1])
    assert [frame.path.name for frame in raised.traceback] == ["test_client.py"]


@pytest.mark.parametrize("kind", [TimeLimitExceeded, MemoryLimitExceeded])
def test_the_error_of_a_killed_process_has_its_own_type(kind: type[Exception]) -> None:
    """Though no process was there to pickle it."""
    body = json.dumps({"type": kind.__name__, "message": "it was killed"}).encode()
    error, _ = decode_error(Signer(KEY.encode()), "of a task", "id", body)
    assert type(error) is kind
    assert str(error) == "it was killed"


# -- callbacks, wait, as_completed ---------------------------------------------------------------


def test_callbacks_run_once_before_or_after_the_end(client: Client) -> None:
    """Added early or late, a callback gets the finished future; one that raises harms no other."""
    seen: list[Any] = []
    told = threading.Event()
    future = client.submit(abs, -3)
    future.add_done_callback(lambda f: 1 / 0)
    future.add_done_callback(lambda f: (seen.append(f.result(0)), told.set()))
    assert told.wait(10)
    future.add_done_callback(lambda f: seen.append("late"))
    assert seen == [3, "late"]


def ends_with(kind: str) -> None:
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "other": BaseException}[kind]("no")


class Ending:
    """Its unpickling raises what would end a thread or a process."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return ends_with, (self.kind,)


class EndingError(Exception):
    """Its unpickling raises likewise."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ends_with, (self.args[0],)


def fail_with(kind: str) -> None:
    raise EndingError(kind)


@pytest.mark.parametrize("kind", ["exit", "interrupt", "other"])
def test_an_answer_whose_unpickling_would_end_its_reader_is_an_error(
    client: Client, kind: str
) -> None:
    """Results and errors of one call fail alone, and the answers after them arrive."""
    with pytest.raises(PayloadError, match="when it is unpickled"):
        client.submit(Ending, kind).result(10)
    with pytest.raises(TaskFailed, match="EndingError"):
        client.submit(fail_with, kind).result(10)
    assert client.submit(divide, 1, 2).result(10) == 0.5


def test_a_batch_with_an_answer_that_would_end_its_reader_gives_the_others(client: Client) -> None:
    """What cannot be unpickled is an error of its item."""

    def made(n: int) -> Any:
        return Ending("exit") if n == 1 else n

    batch = client.map_batch(made, range(3))
    assert batch.results(10, on_error="skip") == [0, 2]
    batch.delete()


def test_a_callback_that_exits_does_not_stop_the_answers(client: Client) -> None:
    """SystemExit in a callback is nobody's end; other futures resolve."""

    def leave(_: Any) -> None:
        raise SystemExit

    client.submit(time.sleep, 0.05).add_done_callback(leave)
    assert client.submit(abs, -4).result(10) == 4
    assert all(thread.is_alive() for thread in threads_of(client))


def test_callbacks_may_submit_and_cancel(client: Client) -> None:
    """Chains of calls are made in callbacks, on the sender's own thread."""
    ends: list[int] = []
    done = threading.Event()

    def again(future: Any) -> None:
        ends.append(future.result(0))
        if len(ends) < 5:
            client.submit(abs, -len(ends) - 1).add_done_callback(again)
            client.submit(time.sleep, 0).cancel()
        else:
            done.set()

    client.submit(abs, -1).add_done_callback(again)
    assert done.wait(10)
    assert ends == [1, 2, 3, 4, 5]


def test_wait_knows_first_completed_first_exception_and_all(client: Client, tmp_path: Path) -> None:
    """The three ways of concurrent.futures.wait."""
    wait_for_it, let_go = gate(tmp_path)
    slow, quick, bad = (
        client.submit(wait_for_it),
        client.submit(abs, 1),
        client.submit(divide, 1, 0),
    )
    done, left = concurrent.futures.wait([slow, quick], 10, FIRST_COMPLETED)
    assert (done, left) == ({quick}, {slow})
    done, left = concurrent.futures.wait([slow, bad], 10, FIRST_EXCEPTION)
    assert (done, left) == ({bad}, {slow})
    done, left = concurrent.futures.wait([slow], 0.01, ALL_COMPLETED)
    assert (done, left) == (set(), {slow})
    let_go()
    assert concurrent.futures.wait([slow, quick, bad], 10).not_done == set()


def test_as_completed_gives_each_future_once_in_the_order_of_their_end(
    client: Client, tmp_path: Path
) -> None:
    """Those that were done before, too; TimeoutError when one is not done in time."""
    wait_for_it, let_go = gate(tmp_path)
    slow, quick = client.submit(wait_for_it), client.submit(abs, 1)
    given = concurrent.futures.as_completed([slow, quick, quick], timeout=10)
    assert next(given) is quick
    with pytest.raises(TimeoutError):
        list(concurrent.futures.as_completed([slow], timeout=0.01))
    let_go()
    assert list(given) == [slow]


# -- map -----------------------------------------------------------------------------------------


def test_map_gives_results_in_order(client: Client) -> None:
    """Over one or several iterables, the shortest ends it."""
    assert list(client.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(client.map(pow, [2, 3], [2, 3, 4])) == [4, 27]
    assert list(client.map(abs, [])) == []


@pytest.mark.parametrize("chunksize", [1, 2, 3, 10, 11, 100])
def test_map_in_chunks_gives_the_same(client: Client, chunksize: int) -> None:
    """chunksize changes how calls travel, not what comes back."""
    assert list(client.map(pow, range(10), range(10), chunksize=chunksize)) == [
        n**n for n in range(10)
    ]


def test_chunksize_is_at_least_one(client: Client) -> None:
    """The standard library's error."""
    with pytest.raises(ValueError, match="chunksize"):
        client.map(abs, [1], chunksize=0)


def test_map_raises_in_its_place(client: Client) -> None:
    """Results before the error are given; the error comes when its turn comes."""
    results = client.map(divide, [1, 1, 1, 1], [1, 1, 0, 1])
    assert (next(results), next(results)) == (1.0, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_times_out(client: Client, tmp_path: Path) -> None:
    """TimeoutError counted from the call to map; results that are there are given before."""
    wait_for_it, let_go = gate(tmp_path)

    def one(n: int) -> Any:
        return n or wait_for_it()

    results = client.map(one, [1, 2, 0], timeout=2)
    try:
        assert (next(results), next(results)) == (1, 2)
        with pytest.raises(TimeoutError):
            next(results)
    finally:
        let_go()


def test_map_sends_at_once_and_takes_later(client: Client, tmp_path: Path) -> None:
    """All calls are sent before map returns, whether or not results are taken."""

    def touch(name: str) -> None:
        open(name, "w").close()

    client.map(touch, [str(tmp_path / n) for n in "abc"])
    until(lambda: len(list(tmp_path.iterdir())) == 3, "three files")


def test_map_that_is_left_cancels_the_rest(idle: Client) -> None:
    """As Executor.map: after an error or a timeout what has not started is cancelled."""
    results = idle.map(abs, range(50), timeout=0.01)
    with pytest.raises(TimeoutError, match=r"after 0\.01 s"):
        next(results)
    assert session(idle).queue().snapshot().ready == 0
    assert len(session(idle).exchange.pending) == 0


def test_map_that_is_interrupted_says_what_becomes_of_the_rest(
    idle: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not that it goes on: what has not started is cancelled."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    results = idle.map(abs, range(3))
    monkeypatch.setattr(slots, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        next(results)
    said = capsys.readouterr().err
    assert "3 results to come: what no worker has yet is cancelled" in said
    assert "goes on" not in said
    assert {frame.path.name for frame in raised.traceback} == {"test_client.py"}
    assert session(idle).queue().snapshot().ready == 0


# -- cancel --------------------------------------------------------------------------------------


def test_a_waiting_task_is_cancelled(idle: Client) -> None:
    """cancel answers True, the future raises CancelledError, callbacks and wait are told."""
    future = idle.submit(abs, 1)
    told = threading.Event()
    future.add_done_callback(lambda f: told.set())
    assert future.cancel()
    assert future.cancel(), "a second time it is still cancelled"
    assert future.cancelled()
    assert future.done()
    assert told.wait(5)
    with pytest.raises(concurrent.futures.CancelledError) as raised:
        future.result(0)
    assert [frame.path.name for frame in raised.traceback] == ["test_client.py"]
    assert concurrent.futures.wait([future], 5).done == {future}
    assert session(idle).queue().snapshot().ready == 0


def test_a_running_or_finished_task_is_not_cancelled(client: Client, tmp_path: Path) -> None:
    """cancel answers False, and the result comes."""
    wait_for_it, let_go = gate(tmp_path)
    future = client.submit(wait_for_it)
    until(future.running, "a worker to have it")
    assert not future.cancel()
    let_go()
    assert future.result(10) == "went"
    assert not future.cancel()


def test_cancelling_while_workers_take_them_loses_none(client: Client) -> None:
    """Every future is either cancelled or has its result; none is both or neither."""
    futures = [client.submit(abs, -n) for n in range(300)]
    answers = [future.cancel() for future in reversed(futures)]
    answers.reverse()
    for n, (future, cancelled) in enumerate(zip(futures, answers, strict=True)):
        if cancelled:
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(10)
        else:
            assert future.result(10) == n


def test_a_delayed_call_waits_and_can_be_cancelled(idle: Client) -> None:
    """options(delay=) puts it off."""
    future = idle.options(delay=600).submit(abs, 1)
    assert session(idle).queue().snapshot().delayed == 1
    assert future.cancel()
    assert session(idle).queue().snapshot().delayed == 0


# -- asyncio -------------------------------------------------------------------------------------


def test_futures_can_be_awaited(client: Client) -> None:
    """await, wrap_future, gather and run_in_executor all work."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        return [
            await client.submit(abs, -1),
            await asyncio.wrap_future(client.submit(abs, -2)),
            await loop.run_in_executor(client, abs, -3),
            *await asyncio.gather(*(asyncio.wrap_future(client.submit(abs, -n)) for n in (4, 5))),
        ]

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]


def test_cancelling_an_await_leaves_the_task_alone(client: Client, tmp_path: Path) -> None:
    """Interrupting a notebook's cell that awaits must not cancel the work."""
    wait_for_it, let_go = gate(tmp_path)
    future = client.submit(wait_for_it)

    async def main() -> None:
        await asyncio.wait_for(_await(future), 0.05)

    async def _await(it: Any) -> Any:
        return await it

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())
    assert not future.cancelled()
    let_go()
    assert future.result(10) == "went"


def test_errors_come_through_await(client: Client) -> None:
    """With their own type."""

    async def main() -> None:
        await client.submit(divide, 1, 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


# -- interrupts ----------------------------------------------------------------------------------


def test_an_interrupt_stops_the_wait_and_says_that_work_goes_on(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """The message names the task and how to cancel it."""
    wait_for_it, let_go = gate(tmp_path)
    future = client.submit(wait_for_it)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(future._condition, "wait", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt):
            future.result()
    said = capsys.readouterr().err
    assert future.task_id in said
    assert "goes on" in said
    assert "cancel()" in said
    let_go()
    assert future.result(10) == "went"


def test_an_interrupted_send_loses_no_call(client: Client, monkeypatch: Any) -> None:
    """Calls that another thread was sending when the interrupt came are sent again, once each."""
    real, first = session(client).broker.call, [True]
    enqueue = session(client).queue().commands.enqueue(())

    def interrupted(command: Any) -> Any:
        if first and command[:2] == enqueue[:2]:
            first.clear()
            real(command)
            raise KeyboardInterrupt  # it arrived, and its answer was not read
        return real(command)

    session(client).exchange.sender.last_submit = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(client.broker, "call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.submit(abs, -1)
        assert client.submit(abs, -2).result(10) == 2
    until(lambda: not session(client).exchange.pending, "both to be resolved")


# -- the end -------------------------------------------------------------------------------------


def test_after_shutdown_nothing_is_taken(url: str) -> None:
    """RuntimeError, as the standard library's; shutdown again is harmless."""
    client = Client(url, signing_key=KEY)
    client.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.submit(abs, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.map(abs, [1])
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.map_batch(abs, [1])
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.start_workers(1)
    client.shutdown()
    client.close()
    assert "shut down" in repr(client)


def test_shutdown_waits_for_what_was_submitted(url: str) -> None:
    """Leaving the block returns when every future is done, and stops the workers."""
    with Client(url, signing_key=KEY) as client:
        workers = client.start_workers(1)
        futures = [client.submit(time.sleep, 0.05) for _ in range(3)]
    assert all(future.done() for future in futures)
    assert not workers.running


def test_the_same_call_that_starts_workers_again_says_so(
    idle: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A cell that is run twice: not where another kind is asked for, nor once they have stopped,
    which is one call away."""
    first = idle.start_workers(1)
    idle.start_workers(1, threads=2)
    assert "the same call" not in caplog.text
    again = idle.start_workers(1)
    assert "has started 1 worker before: with these there are 3;" in caplog.text
    assert "client.stop_workers() ends all" in caplog.text
    assert idle.stop_workers(10) is True
    assert not any((first.running, again.running, idle.has_workers()))
    caplog.clear()
    idle.start_workers(1)
    assert "the same call" not in caplog.text
    assert idle.submit(abs, -1).result(20) == 1


def test_all_workers_are_stopped_at_once(idle: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """None goes on with new tasks, or for another timeout, while one before it is waited for."""
    all_asked = threading.Barrier(2, timeout=20)
    stop = TaskWorker.stop

    def asked(worker: TaskWorker, timeout: float | None = None) -> bool:
        all_asked.wait()
        return stop(worker, timeout)

    for threads in (1, 2):
        idle.start_workers(1, threads=threads)
    monkeypatch.setattr(TaskWorker, "stop", asked)
    assert idle.stop_workers(10) is True
    assert not idle.has_workers()


def test_shutdown_without_waiting_finishes_behind_the_scenes(url: str) -> None:
    """It returns at once; the futures come to their end, and the workers stop."""
    client = Client(url, signing_key=KEY)
    workers = client.start_workers(1)
    future = client.submit(time.sleep, 0.3)
    client.shutdown(wait=False)
    assert not future.done()
    assert future.result(10) is None
    until(lambda: not workers.running, "the workers to stop")


def test_shutdown_can_cancel_what_waits(url: str) -> None:
    """cancel_futures=True: what has not started is cancelled."""
    client = Client(url, signing_key=KEY)
    futures = [client.submit(abs, n) for n in range(500)]
    client.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)


def test_shutdown_in_a_callback_does_not_wait_for_itself(url: str) -> None:
    """The sender's thread, which runs callbacks, cannot wait for what it has to bring."""
    client = Client(url, signing_key=KEY)
    client.start_workers(1)
    client.submit(abs, 1).add_done_callback(lambda f: client.shutdown())
    until(session(client).exchange.pending.ended.is_set, "the end")


def test_closing_ends_every_wait_with_an_error(url: str, idle: Client) -> None:
    """A future of a closed client says so instead of hanging, and the task can be found again."""
    client = Client(url, signing_key=KEY)
    future = client.submit(abs, -7)
    errors: list[BaseException | None] = []
    waiting = threading.Thread(target=lambda: errors.append(future.exception(30)))
    waiting.start()
    client.close()
    waiting.join(10)
    assert "closed before" in str(errors[0])
    assert future.task_id in str(errors[0])
    idle.start_workers(1)
    assert idle.future(future.task_id).result(20) == 7


def test_a_future_of_an_unknown_task_fails_at_once(idle: Client) -> None:
    """client.future(id) of an id that never was."""
    with pytest.raises(UnknownTask):
        idle.future("never").result(5)


def test_a_client_nobody_holds_leaves_no_thread_and_no_worker(url: str) -> None:
    """As when a cell that makes a client is run again: without close, all of it goes."""
    client = Client(url, signing_key=KEY)
    workers = client.start_workers(1)
    assert client.submit(abs, -1).result(20) == 1
    threads, gone = threads_of(client), weakref.ref(client)
    del client
    gc.collect()
    until(lambda: gone() is None, "the client to go")
    until(lambda: not any(thread.is_alive() for thread in threads), "its threads to end")
    until(lambda: not workers.running, "its workers to stop", 20)


def test_outstanding_futures_hold_their_client(url: str) -> None:
    """Callbacks come though nobody holds client or future any more."""
    told = threading.Event()
    with Client(url, signing_key=KEY) as other:
        Client(url, signing_key=KEY).submit(abs, 1).add_done_callback(lambda f: told.set())
        gc.collect()
        other.start_workers(1)
        assert told.wait(20)
    gc.collect()


def test_a_forked_process_has_a_client_of_its_own(client: Client) -> None:
    """The child's calls work, the parent's futures fail there at once, and the parent goes on."""
    import multiprocessing

    outstanding = client.submit(time.sleep, 0.3)
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def child() -> None:
        results.put(repr(outstanding.exception(5)))
        results.put(client.submit(os.getppid).result(20) != os.getpid())

    process = context.Process(target=child)
    process.start()
    assert "belongs to the process that forked" in results.get(timeout=20)
    assert results.get(timeout=20)
    process.join(10)
    assert outstanding.result(10) is None
    assert client.submit(abs, -1).result(10) == 1


def test_many_threads_share_a_client(client: Client) -> None:
    """Each gets its own results."""
    wrong: list[Any] = []

    def use(start: int) -> None:
        numbers = range(start, start + 100)
        futures = [client.submit(abs, -n) for n in numbers]
        if [future.result(30) for future in futures] != list(numbers):
            wrong.append(start)

    threads = [threading.Thread(target=use, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert wrong == []


# -- options and looks ---------------------------------------------------------------------------


def test_options_are_checked_when_they_are_set(idle: Client) -> None:
    """Each mistake is named, with what is possible."""
    with pytest.raises(ConfigurationError, match=r"no option 'prio'; did you mean 'priority'\? "):
        idle.options(prio=1)
    for options in ({"retries": -1}, {"retries": True}, {"delay": -1}, {"timeout": "x"}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            idle.options(**options)
    for cache in ("1y", "", "d", "one"):
        with pytest.raises(ConfigurationError, match=r"cache is .* a time such as"):
            idle.options(cache=cache)


def test_options_add_up(idle: Client) -> None:
    """options of options keep what was set before, and change nothing in the client."""
    bound = idle.options(retries=3).options(name="x", cache="2h")
    options = bound._options
    assert (options.retries, options.name, options.cache) == (3, "x", 7200.0)
    assert idle._options.retries == 0


def test_retries_and_timeout_reach_the_worker(client: Client, tmp_path: Path) -> None:
    """A call fails with its first error unless it was sent with retries; a timeout ends it."""
    from redistq import Retry

    path = str(tmp_path / "tries")

    def flaky() -> str:
        with open(path, "a+") as file:
            file.write(".")
            file.seek(0)
            if len(file.read()) < 3:
                raise Retry(delay=0.01)
        return "at last"

    assert isinstance(client.submit(flaky).exception(10), Retry)
    assert client.options(retries=2).submit(flaky).result(20) == "at last"

    def busy() -> None:
        while True:
            time.sleep(0.01)

    late = client.options(timeout=0.2).submit(busy)
    with pytest.raises(TimeLimitExceeded, match=r"^the time limit of 0\.2 s has passed$") as raised:
        late.result(20)
    assert [frame.path.name for frame in raised.traceback] == ["test_client.py"]


def test_representations_are_short_and_escaped(client: Client) -> None:
    """A result's text is anybody's: it is shown as text, in part, and at little cost."""
    future = client.submit(lambda: "<script>" * 1000)
    future.result(10)
    assert len(repr(future)) < 200
    html = future._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert len(html) < 3000
    big = client.submit(lambda: list(range(100_000)))
    big.result(10)
    started = time.perf_counter()
    big._repr_html_()
    assert time.perf_counter() - started < 0.05
    bad = client.submit(divide, 1, 0)
    bad.exception(10)
    assert "ZeroDivisionError" in repr(bad)
    assert "failed" in bad._repr_html_()
    assert "outstanding" in repr(client)
    assert "redis://" in client._repr_html_()
    assert "retries=2" in repr(client.options(retries=2))


def test_a_password_is_not_shown() -> None:
    """Neither in the text nor in the panel of a client."""
    client = Client("redis://:hunter2@localhost:1/0", signing_key=KEY)
    assert "hunter2" not in repr(client) + client._repr_html_()
    client.close()


def test_two_clients_on_one_queue_get_their_own_results(client: Client, url: str) -> None:
    """Also two in one process, as two notebooks that share a queue."""
    other = Client(client.server.url, signing_key=KEY)  # type: ignore[attr-defined]
    mine = [client.submit(abs, -n) for n in range(200)]
    theirs = [other.submit(pow, n, 2) for n in range(200)]
    assert [f.result(20) for f in mine] == list(range(200))
    assert [f.result(20) for f in theirs] == [n * n for n in range(200)]
    other.close()


def test_a_closed_clients_inbox_does_not_stay(url: str, server: Server) -> None:
    """Nothing but the queue's own keys is left without an expiry."""
    with Client(url, signing_key=KEY) as client:
        client.start_workers(1)
        client.submit(abs, 1).result(20)
    own = {"tasks", "history:tasks", "counters:tasks", "meta:tasks", "workers:tasks"}
    with server.client() as db:
        lasting = {k.partition("!")[0] for k in db.scan_iter() if db.ttl(k) == -1}
        assert lasting <= own  # those of each priority, too
        assert not db.keys("inbox:*")
