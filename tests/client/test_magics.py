"""Magics: cells that run on workers, and a look at the queue from a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import gate, serving
from support.kernels import Kernel

from redistq.client.queues import StreamTail

pytest.importorskip("IPython")


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    """An IPython with the magics loaded, and a client with two worker processes."""
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    try:
        with serving() as client:
            shell.user_ns["client"] = client
            shell.run_line_magic("load_ext", "redistq")
            yield shell
    finally:
        InteractiveShell.clear_instance()


def run(shell: Any, cell: str) -> Any:
    """What a cell gives; raises what it raises."""
    done = shell.run_cell(cell)
    done.raise_error()
    return done.result


def test_a_cell_runs_on_a_worker(shell: Any) -> None:
    """With what it reads of the notebook; its last line's value comes back, names by -o."""
    run(shell, "import os\nk = 5\ndef square(x):\n    return x * x + k")
    here = run(shell, "os.getpid()")
    away = run(shell, "%%task -o y,z\ny = square(3)\nz = [y]\nos.getpid()")
    assert away != here
    assert (shell.user_ns["y"], shell.user_ns["z"]) == (14, [14])
    assert run(shell, "%%task\ny;") is None
    assert run(shell, "%%task\nlocal = 1") is None
    assert "local" not in shell.user_ns


def test_what_it_prints_comes(shell: Any, capsys: Any) -> None:
    """Line by line, while it runs."""
    run(shell, "%%task\nfor i in range(3):\n    print('line', i)")
    assert capsys.readouterr().out.splitlines()[-3:] == ["line 0", "line 1", "line 2"]


def test_a_cell_may_await(shell: Any) -> None:
    """At its top level, as in any cell."""
    assert run(shell, "%%task\nimport asyncio\nawait asyncio.sleep(0, 7)") == 7


def test_an_error_shows_the_line_of_the_cell(shell: Any) -> None:
    """The worker's traceback, with its source; of ours only what is hidden."""
    with pytest.raises(ZeroDivisionError) as raised:
        run(shell, "%%task\nx = 1\nx / 0")
    assert "line 3, in cell\n    x / 0" in str(raised.value.__cause__)
    ours = [frame for frame in raised.traceback if "redistq" in str(frame.path)]
    assert all("__tracebackhide__" in frame.locals and frame.name != "_watched" for frame in ours)


def test_a_cell_that_prints_nothing_waits_for_no_output(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at once that it has ended; one that runs long is asked for seldom."""
    waits: list[float] = []
    read = StreamTail.read

    def noted(tail: StreamTail, block_s: float, **more: Any) -> Any:
        waits.append(block_s)
        return read(tail, block_s, **more)

    monkeypatch.setattr(StreamTail, "read", noted)
    assert run(shell, "%%task\nimport time\ntime.sleep(0.3)\n1") == 1
    assert waits[0] <= 0.02
    assert 0.02 < max(waits) < 0.1


def test_a_future_instead_of_a_wait(shell: Any, tmp_path: Path) -> None:
    """The cell goes on at once."""
    shell.user_ns["wait_for_it"], let_go = gate(tmp_path)
    run(shell, "%%task -f later --name mine --retries 1\nwait_for_it()")
    future = shell.user_ns["later"]
    assert (future.done(), future.name) == (False, "mine")
    let_go()
    assert future.result(10) == "went"


def test_a_cell_over_items(shell: Any) -> None:
    """Its last line's value for each, in order; a name of one's own for the item."""
    run(shell, "inputs = [1, 2, 3]")
    assert run(shell, "%%batch -i inputs\nitem * 2") == [2, 4, 6]
    run(shell, "%%batch -i range(3) -v n -o found\nm = n + 1\nm * m")
    assert shell.user_ns["found"] == [1, 4, 9]
    run(shell, "%%batch -i inputs -b batch --name doubled\nitem * 2")
    assert (shell.user_ns["batch"].id, shell.user_ns["batch"].results(10)) == ("doubled", [2, 4, 6])


def test_a_look_at_the_queue(shell: Any) -> None:
    """Status and failures, by pandas."""
    assert run(shell, "%redistq")["queue"] == run(shell, "%redistq status")["queue"] == "tasks"
    with pytest.raises(LookupError):
        run(shell, "%%task\nraise LookupError")
    assert "LookupError" in set(run(shell, "%redistq failures")["error_type"])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%%task\n!ls", "no magics and no shell commands"),
        ("%%task\nfrom os import *", "import names by themselves"),
        ("%%task -o 3x\n1", "3x is no name"),
        ("%%task -c nobody\n1", "nobody is no Client"),
        ("%%task -t -5\n1", "timeout"),
        ("%%batch\nitem", "-i/--items"),
        ("%redistq dance", "%redistq status"),
        ("%redistq workers many", "takes a number"),
    ],
)
def test_slips_are_said(shell: Any, cell: str, words: str) -> None:
    """In one line, before anything is sent."""
    from IPython.core.error import UsageError

    with pytest.raises(UsageError, match=words.replace("-i/--items", "items")):
        run(shell, cell)


def test_workers_are_started_and_stopped(shell: Any, capsys: Any) -> None:
    """All that this notebook has started."""
    run(shell, "%redistq workers 1")
    run(shell, "%redistq stop")
    assert "stopped 3 worker processes" in capsys.readouterr().out


def test_a_kernel_shows_what_is_printed_once(url: str, tmp_path: Path) -> None:
    """Though workers of the notebook print into it, too; a future's print comes that way."""
    kernel = Kernel(tmp_path, url, watches_files=True)
    try:
        assert "Error" not in kernel.run("%load_ext redistq\n%redistq workers 1")
        shown = kernel.run("%%task\nprint('said', 'once')")
        shown += kernel.run("%%task -f later\nprint('said', 'later')")
        shown += kernel.run("later.result(); import time; time.sleep(0.5)")
        assert shown.count("said once") == 1
        assert shown.count("said later") == 1
    finally:
        kernel.kill()


def test_a_wait_that_was_stopped_prints_nothing_below_the_next_cell(
    url: str, tmp_path: Path
) -> None:
    """What the task prints from then on is with the task."""
    kernel = Kernel(tmp_path, url)
    try:
        assert "Error" not in kernel.run("%load_ext redistq\n%redistq workers 1")
        cell = kernel.send(
            """
            %%task
            import time
            from pathlib import Path

            print("before")
            while not Path("stopped").exists():
                time.sleep(0.01)
            print("after")
            """
        )
        assert "before" in kernel.output(cell, until="before")
        kernel.manager.interrupt_kernel()
        assert "The wait was stopped" in kernel.output(cell)
        shown = kernel.run(
            """
            import threading
            from pathlib import Path

            Path("stopped").touch()
            for thread in threading.enumerate():
                if thread.name == "redistq-cell-output":
                    thread.join(20)
                    print("the thread has", "not" if thread.is_alive() else "", "ended")
            """
        )
        assert "has  ended" in shown
        assert "after" not in shown
    finally:
        kernel.kill()
