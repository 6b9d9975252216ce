"""Notebooks in real kernels: two side by side, one that is started again, and edited modules."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.clients import KEY
from support.kernels import Kernel
from support.servers import Server
from support.workers import until

from redistq import Client

Start = Callable[[str], Kernel]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for the module; every test has a queue of its own."""
    with Server() as started:
        yield started


@pytest.fixture
def kernel_in(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Starts kernels in folders of their own."""
    started: list[Kernel] = []

    def start(folder: str) -> Kernel:
        (tmp_path / folder).mkdir(exist_ok=True)
        started.append(Kernel(tmp_path / folder, server.url))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def write(file: Path, text: str, at: int) -> None:
    """Save a file, as of a second that no other version has."""
    file.write_text(textwrap.dedent(text))
    os.utime(file, (1_700_000_000 + at, 1_700_000_000 + at))


BEGIN = "from redistq import Client; import helper; c = Client(queue='{}'); w = c.start_workers(1)"


def test_two_notebooks_on_one_queue(kernel_in: Start, tmp_path: Path) -> None:
    """Each has its own module of the same name, its own files, and its own functions."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.txt").write_text(folder)
        write(tmp_path / folder / "helper.py", f"def who(x): return {folder!r}\n", 0)
    kernels = [kernel_in(folder) for folder in "ab"]
    for kernel in kernels:
        assert "Error" not in kernel.run(BEGIN.format("side-by-side"))
    cell = (
        "read = c.submit(lambda: open('data.txt').read()).result(60)\n"
        "print({*c.map(helper.who, range(20)), read})"
    )
    sent = [(kernel, kernel.send(cell)) for kernel in kernels]
    assert [kernel.output(message).strip() for kernel, message in sent] == ["{'a'}", "{'b'}"]


def test_a_kernel_started_again_goes_on(kernel_in: Start, tmp_path: Path) -> None:
    """Its batch is found, with what was unfinished; another notebook has not touched it."""
    define = (
        "import os\ndef work(n):\n    import os, time\n    open(f'ran-{n}', 'a').write('.')\n"
        "    while n > 1 and not os.path.exists('go'): time.sleep(0.02)\n"
        "    return n, os.path.basename(os.getcwd())\n"
    )
    batch = "b = c.map_batch(work, range(5), name='unfinished', progress=False)"
    begin = "from redistq import Client; c = Client(queue='again'); w = c.start_workers(1)"
    first = kernel_in("a")
    first.run(f"{begin}\n{define}\n{batch}\nnext(b.as_completed())")
    other = kernel_in("b")
    other.run(begin)
    first.kill()
    (tmp_path / "a" / "go").touch()
    assert other.run("print(c.submit(abs, -1).result(60))").strip() == "1"
    second = kernel_in("a")
    shown = second.run(f"{begin}\n{define}\n{batch}\nprint(b.results(60))")
    assert str([(n, "a") for n in range(5)]) in shown
    assert not list((tmp_path / "b").glob("ran-*"))
    assert (tmp_path / "a" / "ran-0").read_text() == "."


def test_edits_reach_workers_through_autoreload(kernel_in: Start, tmp_path: Path) -> None:
    """Whatever kind of edit, and however autoreload brings it into the kernel."""
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "helper.py"
    text = "RATE = 1\nclass Thing:\n    def m(self): return 'm1'\ndef go(x): return x * RATE\n"
    write(file, text, 0)
    kernel = kernel_in("a")
    kernel.run(BEGIN.format("autoreload") + "\n%load_ext autoreload\n%autoreload 2")
    kernel.run("def use(x): return helper.go(x), helper.Thing().m()")
    look = "print(use(2), c.submit(use, 2).result(60), c.submit(helper.go, 2).result(60))"
    assert kernel.run(look).strip() == "(2, 'm1') (2, 'm1') 2"
    edits = [
        ("x * RATE", "x + 40", "(42, 'm1') (42, 'm1') 42"),
        ("'m1'", "'m2'", "(42, 'm2') (42, 'm2') 42"),
        ("x + 40", "x * RATE", "(2, 'm2') (2, 'm2') 2"),
        ("RATE = 1", "RATE = 9", "(18, 'm2') (18, 'm2') 18"),
        ("return x * RATE", "return added(x)\ndef added(x): return -x", "(-2, 'm2') (-2, 'm2') -2"),
    ]
    for n, (old, new, shown) in enumerate(edits, 1):
        text = text.replace(old, new)
        write(file, text, n)
        assert kernel.run(look).strip() == shown


def test_a_schedule_outlives_its_kernel_and_comes_back_in_another(
    kernel_in: Start, tmp_path: Path
) -> None:
    """A cell is run every so often, with the module beside it; its source is the next cell of
    another kernel, after the first was killed."""
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "helper.py", "def who(): return 'helper of a'\n", 0)
    begin = "from redistq import Client; client = Client(queue='mornings')"
    first = kernel_in("a")
    cell = (
        "import helper\n\n@client.every('0 6 * * mon', tz='Europe/Berlin')\n"
        "def report():\n    # every Monday\n    return helper.who()\n"
    )
    assert "Error" not in first.run(f"{begin}\n")
    said = first.run(cell)
    assert "Error" not in said
    first.kill()
    second = kernel_in("a")
    # Workers of its folder serve what belongs there.
    ran = second.run(
        f"{begin}\nw = client.start_workers(1)\n"
        "print(client.schedules['report'].run_now().result(60))"
    )
    assert "helper of a" in ran
    message = second.send("text = client.schedules['report'].open()")
    second.output(message)
    reply = second.client.get_shell_msg(timeout=60)
    while reply["parent_header"].get("msg_id") != message:
        reply = second.client.get_shell_msg(timeout=60)
    (payload,) = reply["content"]["payload"]
    assert payload["source"] == "set_next_input"
    assert payload["text"].startswith("@client.every('0 6 * * mon', tz='Europe/Berlin')")
    assert "# every Monday" in payload["text"]


GRAPHS = """
def step(kind, n, *before):
    import os, time
    with open(r'{folder}/runs', 'a') as file:
        file.write(f'{{kind}}{{n}}\\n')
    while n > 1 and not os.path.exists(r'{folder}/go'):
        time.sleep(0.02)
    return n + sum(before)

with c.graph('killed') as graph:
    node = graph.submit(step, 'graph', 0)
    for n in range(1, 4):
        node = graph.submit(step, 'graph', n, node)

lazy = c.lazy(step)
call = lazy('lazy', 0)
for n in range(1, 4):
    call = lazy('lazy', n, call)
future = call.submit()
"""


@pytest.mark.parametrize("workers", ["the kernel's", "others"])
def test_a_kernel_killed_in_mid_graph_goes_on(
    workers: str, server: Server, kernel_in: Start, tmp_path: Path
) -> None:
    """By SIGKILL, a graph and lazy calls half done: run again from the top in a new kernel, nothing
    that had settled runs twice, and both end."""
    queue = "killed-" + workers.split()[0]
    begin = f"from redistq import Client; c = Client(queue='{queue}')"
    cells = GRAPHS.format(folder=tmp_path)
    with contextlib.ExitStack() as stack:
        if workers == "the kernel's":
            begin += "; w = c.start_workers(2)"
        else:
            # In the folder and environment of nobody, for everybody's calls.
            client = stack.enter_context(Client(server.url, queue=queue, signing_key=KEY))
            client.start_workers(2, shared=True)
        db = stack.enter_context(server.client())
        first = kernel_in("a")
        assert "Error" not in first.run(begin)
        assert "Error" not in first.run(cells)
        runs = tmp_path / "runs"
        until(lambda: runs.exists() and len(runs.read_text().split()) == 6, "both are half done")
        until(lambda: db.hget(f"counters:{queue}", "succeeded") == "4", "four are settled")
        os.kill(first.pid, signal.SIGKILL)
        assert db.hget(f"counters:{queue}", "succeeded") == "4"
        second = kernel_in("a")
        assert "Error" not in second.run(begin)
        assert "Error" not in second.run(cells)
        assert second.run("print(graph.counts()['total'], graph.done)").strip() == "4 False"
        (tmp_path / "go").touch()
        shown = second.run("print(node.result(60), future.result(60), graph.wait(60))")
        assert shown.split()[:2] == ["6", "6"]
        assert db.hget(f"counters:{queue}", "succeeded") == "8"
        counted = Counter(runs.read_text().split())
        assert [counted[f"{kind}{n}"] for kind in ("graph", "lazy") for n in (0, 1)] == [1] * 4
        assert set(counted) == {f"{kind}{n}" for kind in ("graph", "lazy") for n in range(4)}
