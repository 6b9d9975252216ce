"""A client among things that break: servers, workers, kernels. Nothing hangs, nothing runs twice
unseen, nothing stays behind.

Kernels are real Jupyter kernels, ended with SIGKILL by their process id.
"""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.clients import KEY, gate, serving, session, store_function
from support.kernels import Kernel
from support.servers import Server
from support.workers import alive, registered, until

from redistq import Client, ServerUnavailable, UnknownTask


def sent(client: Client) -> bool:
    """Whether nothing is on its way to the server."""
    return session(client).exchange.sender.is_idle


# -- servers -------------------------------------------------------------------------------------


def test_futures_outlive_a_restart_of_the_server(
    private_server: Callable[..., Server], tmp_path: Path
) -> None:
    """With an append-only file: what was outstanding is resolved afterwards, each task once."""
    server = private_server(appendonly=True, appendfsync="always")
    log = tmp_path / "log"
    log.mkdir()
    wait_for_it, let_go = gate(tmp_path)

    def work(n: int) -> int:
        if n == 0:
            wait_for_it()
        (log / f"{n}-{time.monotonic_ns()}").touch()
        return n

    with Client(server.url, signing_key=KEY) as client:
        client.start_workers(1)
        futures = [client.submit(work, n) for n in range(300)]
        until(futures[0].running, "the first to run")
        server.kill()
        server.start()
        late = client.submit(work, 300)
        let_go()
        assert [future.result(60) for future in [*futures, late]] == list(range(301))
    runs = Counter(path.name.split("-")[0] for path in log.iterdir())
    # The one that ran while the server was killed may have run again; all others ran once.
    assert set(runs) == {str(n) for n in range(301)}
    assert [n for n, times in runs.items() if times > 1 and n != "0"] == []


def test_futures_of_a_server_that_lost_everything_fail_clearly(
    private_server: Callable[..., Server],
) -> None:
    """Restarted without its data: UnknownTask says so; what is submitted then works."""
    server = private_server()
    client = Client(server.url, signing_key=KEY)
    futures = [client.submit(abs, -n) for n in range(50)]
    until(lambda: sent(client), "all to be sent, and the answers read")
    server.kill()
    server.start()
    started = time.monotonic()
    for future in futures:
        assert isinstance(future.exception(30), UnknownTask)
    assert time.monotonic() - started < 20
    assert "restarted without its data" in str(futures[0].exception().__notes__)  # type: ignore[union-attr]
    client.start_workers(1)
    assert client.submit(abs, -1).result(30) == 1, "the function is stored again"
    client.close()


def test_flushall_fails_what_was_outstanding(private_server: Callable[..., Server]) -> None:
    """No connection is lost, so the client finds out when it asks; then it goes on."""
    server = private_server()
    client = Client(server.url, signing_key=KEY)
    session(client).exchange.listener.look_s = 0.2
    futures = [client.submit(abs, -n) for n in range(50)]
    until(lambda: sent(client), "all to be sent, and the answers read")
    with server.client() as db:
        db.flushall()
    for future in futures:
        assert isinstance(future.exception(30), UnknownTask)
    client.start_workers(1)
    assert client.submit(abs, -1).result(30) == 1
    client.close()


def test_a_function_lost_with_the_servers_memory_is_stored_again(
    private_server: Callable[..., Server],
) -> None:
    """The first failure for want of it tells the client that what it believes there is gone."""
    server = private_server()
    with Client(server.url, signing_key=KEY) as client:
        client.start_workers(1)

        def f() -> str:
            return "here"

        assert client.submit(f).result(20) == "here"
        with server.client() as db:
            for key in db.scan_iter("blob:*"):
                db.delete(key)

        def g() -> str:
            return "there"

        session(client).blobs.put("function", b"")  # believed to be there
        assert client.submit(f).result(20) == "here", "the worker has it still"
        digest = store_function(client, g)
        with server.client() as db:
            db.delete(f"blob:tasks:{digest}")
        error = client.submit(g).exception(20)
        assert "no longer on the server" in str(error)
        assert client.submit(g).result(20) == "there"


def test_a_server_that_stays_away_ends_the_wait(private_server: Callable[..., Server]) -> None:
    """After a time futures fail with ServerUnavailable, naming how to ask again."""
    server = private_server()
    client = Client(server.url, signing_key=KEY, timeout=0.5)
    session(client).exchange.listener.give_up_s = 1.0
    future = client.submit(abs, 1)
    server.kill()
    with pytest.raises(ServerUnavailable, match="asks for it again"):
        future.result(30)
    late = client.submit(abs, 1)
    assert isinstance(late.exception(30), ServerUnavailable)
    started = time.monotonic()
    client.close()
    assert time.monotonic() - started < 3


def test_a_batch_outlives_a_restart_of_the_server(private_server: Callable[..., Server]) -> None:
    """Waiting goes on over it, and the counts are complete."""
    server = private_server(appendonly=True, appendfsync="always")

    def slow(n: int) -> int:
        import time

        time.sleep(0.005)
        return n

    with Client(server.url, signing_key=KEY) as client:
        client.start_workers(2)
        batch = client.map_batch(slow, range(400))
        given = batch.as_completed(60)
        seen = [next(given)]
        server.kill()
        server.start()
        seen.extend(given)
        assert sorted(seen) == [(n, n) for n in range(400)]
        assert batch.counts()["succeeded"] == 400


def test_a_client_that_died_leaves_nothing_for_ever(server: Server, tmp_path: Path) -> None:
    """Inbox, functions, arguments, records, batches: all of it expires."""
    from support.workers import command

    (tmp_path / "dies.py").write_text(
        textwrap.dedent(
            """
            import os, redistq
            client = redistq.Client()
            client.start_workers(1)
            def fail(): raise ValueError
            client.submit(fail).exception(20)
            client.submit(len, b"x" * 200_000).result(20)
            client.options(logs=True).submit(print, "x").result(20)
            client.options(cache="1d").submit(abs, 1).result(20)
            client.map_batch(abs, range(10), name="b").results(20)
            print("ready", flush=True)
            os.kill(os.getpid(), 9)
            """
        )
    )
    with command(tmp_path, "dies.py", url=server.url, REDISTQ_SIGNING_KEY=KEY) as script:
        script.says("ready")
        script.wait()
    with server.client() as db:
        until(lambda: not registered(db), "its workers to leave", 30)
        own = {"tasks", "history:tasks", "counters:tasks", "meta:tasks", "batches:tasks"}
        own |= {"dead:tasks", "workers:tasks"}
        lasting = {key.partition("!")[0] for key in db.scan_iter() if db.ttl(key) == -1}
        assert lasting <= own  # those of each priority, too
        assert db.keys("blob:*")
        assert db.keys("inbox:*")


# -- workers -------------------------------------------------------------------------------------


def test_twenty_thousand_items_with_failures_and_a_killed_worker(tmp_path: Path) -> None:
    """5 % fail, one of two workers is killed half-way: every item is accounted for once."""

    def work(n: int) -> int:
        if n % 20 == 7:
            raise ValueError(n)
        return n

    with serving(2) as client:
        total = 20_000
        with client.server.client() as db:
            pids = registered(db)
        batch = client.map_batch(work, range(total))
        seen: Counter[int] = Counter()
        killed = False
        for index, value in batch.as_completed(100, on_error="return"):
            seen[index] += 1
            if index % 20 == 7:
                assert isinstance(value, ValueError)
                assert value.args == (index,)
            else:
                assert value == index
            if not killed and len(seen) > total // 2:
                killed = True
                os.kill(next(iter(pids.values())), signal.SIGKILL)
        assert len(seen) == total
        assert set(seen.values()) == {1}
        counts = batch.counts()
        assert (counts["succeeded"], counts["failed"]) == (19_000, 1_000)
        failures = batch.failures()
        assert list(failures["item"]) == [n for n in range(total) if n % 20 == 7]


def test_slow_calls_after_quick_ones_are_shared_out() -> None:
    """A worker that took many because the last ones were quick gives back what others could do."""

    def slow(_: int) -> int:
        import time

        time.sleep(0.02)
        return os.getpid()

    with serving(2) as client:
        assert list(client.map(abs, range(400))) == list(range(400))
        by = Counter(client.map(slow, range(160)))
        assert len(by) == 2
        assert min(by.values()) >= 40, by


# -- kernels -------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Callable[[str], Kernel]]:
    """A factory of kernels, all of which end with the test."""
    started: list[Kernel] = []

    def start(url: str) -> Kernel:
        started.append(Kernel(tmp_path, url))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(Exception):
            one.kill()


SETUP = """
    import os, time
    from redistq import Client
    client = Client()
    workers = client.start_workers(2)
    def work(n):
        with open("log", "a") as file:
            file.write(f"{n}\\n")
        time.sleep(0.02)
        return n * n
"""


def test_a_killed_kernel_leaves_no_orphan_and_the_next_one_goes_on(
    server: Server, kernel: Callable[[str], Kernel], tmp_path: Path
) -> None:
    """kill -9 half-way; a new kernel finds the batch, and the same cell again resumes it."""
    first = kernel(server.url)
    assert "Error" not in first.run(SETUP)
    assert "200 tasks" in first.run("batch = client.map_batch(work, range(200), name='b'); batch")
    with server.client() as db:
        pids = list(registered(db).values())
        assert len(pids) == 2
        until(lambda: int(db.hget("batch:tasks:b", "succeeded") or 0) > 20, "some to be done")
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids), "its workers to end", 30)
        done = int(db.hget("batch:tasks:b", "succeeded"))
        assert done < 200
    second = kernel(server.url)
    second.run(SETUP)
    assert "200 tasks" in second.run("client.batch('b')")
    again = second.run(
        """
        batch = client.map_batch(work, range(200), name='b')
        batch.results(60) == [n * n for n in range(200)], batch.counts()["succeeded"]
        """
    )
    assert "(True, 200)" in again
    runs = Counter((tmp_path / "log").read_text().split())
    assert len(runs) == 200
    # What ran while the kernel was killed may have run again: at most two tasks a worker's hands.
    assert sum(runs.values()) <= 204
    assert "None" in second.run("print(client.shutdown())")


def test_interrupting_a_cell_stops_the_wait_and_not_the_work(
    server: Server, kernel: Callable[[str], Kernel]
) -> None:
    """The stop button: KeyboardInterrupt, a sentence, and the same workers go on working."""
    notebook = kernel(server.url)
    notebook.run(SETUP)
    waiting = notebook.send(
        "batch = client.map_batch(work, range(150), name='i')\nprint('go')\nbatch.results()"
    )
    notebook.output(waiting, until="go")
    with server.client() as db:
        pids = registered(db)
        until(lambda: int(db.hget("batch:tasks:i", "succeeded") or 0) > 5, "some to be done")
        notebook.manager.interrupt_kernel()
        said = notebook.output(waiting)
        assert "KeyboardInterrupt" in said
        assert "batch 'i' goes on" in said
        assert "150" in notebook.run("len(batch.results(60))")
        assert registered(db) == pids, "the workers did not notice"
    notebook.run("client.shutdown()")


@pytest.mark.parametrize(
    "what",
    [
        "future",
        "client.map_batch(abs, [-1], progress=False)",
        "asyncio.gather(future, client.submit(abs, -2))",
        "asyncio.wait_for(future, 60)",
    ],
    ids=["future", "batch", "gather", "wait_for"],
)
def test_the_stop_button_ends_an_await(
    server: Server, kernel: Callable[[str], Kernel], what: str
) -> None:
    """Whatever is awaited, the cell ends while nothing happens in the kernel's loop; the call is
    left alone, and no timer goes on afterwards."""
    notebook = kernel(server.url)
    notebook.run(
        "import asyncio, time\nfrom redistq import Client\n"
        "from redistq.client import awaiting\nclient = Client()"
    )
    notebook.run("future = client.submit(abs, -1)")
    waiting = notebook.send(f"print('go')\nawait {what}")
    notebook.output(waiting, until="go")
    time.sleep(0.5)  # the await has no signal that it waits
    notebook.manager.interrupt_kernel()
    began = time.monotonic()
    said = notebook.output(waiting, 20)
    assert time.monotonic() - began < 5
    assert "Error" in said or "Interrupt" in said
    waits = "[alarm.waits for alarm in awaiting._alarms.values()]"
    assert "([0], False)" in notebook.run(f"({waits}, future.cancelled())")
    notebook.run("client.start_workers(1)")
    assert "1" in notebook.run("await future")
    notebook.run("client.close()")


def test_waiting_without_workers_is_a_grey_line_in_a_notebook(
    server: Server, kernel: Callable[[str], Kernel]
) -> None:
    """Shown below the cell as it runs, not as a red box of standard error; said once."""
    notebook = kernel(server.url)
    notebook.run(
        "from redistq import Client\nfrom redistq.producer import diagnosis\n"
        "diagnosis.WAIT_S = 0.3\nclient = Client()"
    )
    waiting = notebook.send("client.submit(abs, -1).result(4)")
    replies = []
    while True:
        message = notebook.client.get_iopub_msg(timeout=30)
        if message["parent_header"].get("msg_id") == waiting:
            replies.append(message)
            if message["content"].get("execution_state") == "idle":
                break
    assert not [m for m in replies if m["msg_type"] == "stream"]
    shown = [m["content"]["data"] for m in replies if m["msg_type"] == "display_data"]
    assert len(shown) == 1
    assert "no worker serves queue" in shown[0]["text/html"]
    assert "client.start_workers()" in shown[0]["text/plain"]
    notebook.run("client.close()")


def test_a_notebook_that_silenced_our_log_sees_no_grey_line(
    server: Server, kernel: Callable[[str], Kernel]
) -> None:
    """Lines below a cell obey the level of the logger, as they would in a program."""
    notebook = kernel(server.url)
    said = notebook.run(
        "import logging\nfrom redistq import Client\nfrom redistq.producer import diagnosis\n"
        "diagnosis.WAIT_S = 0.3\n"
        "logging.getLogger('redistq').setLevel(logging.ERROR)\nclient = Client()\n"
        "try:\n    client.submit(abs, -1).result(2)\nexcept TimeoutError as error:\n"
        "    print(error)"
    )
    assert "no worker serves queue" in said, "it was asked why nothing comes"
    assert "still waiting" not in said
    notebook.run("client.close()")


def test_a_notebook_reads_well(server: Server, kernel: Callable[[str], Kernel]) -> None:
    """await at top level, an error that shows the line of the cell it came from, panels, a client
    made again in the same cell."""
    notebook = kernel(server.url)
    notebook.run(SETUP)
    assert notebook.run("await client.submit(work, 7)").strip() == "49"
    notebook.run(
        """
        def helper(x):
            return 1 / x  # this is the line

        def fails(x):
            return helper(x)
        """
    )
    shown = notebook.run("client.submit(fails, 0).result(20)")
    assert "ZeroDivisionError: division by zero" in shown
    assert "return 1 / x  # this is the line" in shown
    assert "RemoteTraceback" in shown
    assert "TaskFuture" in notebook.run("client.submit(work, 1)")
    with server.client() as db:
        before = set(registered(db).values())
        notebook.run(SETUP + "    del workers\n    client.submit(work, 1).result(20)\n")
        until(
            lambda: not any(alive(pid) for pid in before), "the first client's workers to end", 30
        )
        assert "9" in notebook.run("client.submit(work, 3).result(20)")
    notebook.run("client.shutdown()")
