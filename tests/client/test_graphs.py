"""Graphs of calls: sent as one thing, looked at, resumed in order, found again, and drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY, gate, serving
from support.workers import command, until

from redistq import Client, ConfigurationError, ResultTimeout, TaskCancelled
from redistq.client.graph import CallGraph
from redistq.errors import UnknownBatch
from redistq.flows import chain, chord, group, sig
from redistq.handlers import Registry
from redistq.monitor.graph_plot import boxes_of, places

pd = pytest.importorskip("pandas")


def double(payload: int) -> int:
    return 2 * payload


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client with two worker processes that know a named task, and everybody's calls."""
    with serving(0, shared=True) as client:
        registry = Registry()
        registry.add("double", double)
        client.start_workers(2, handlers=registry)
        assert client.submit(abs, -1).result(30) == 1  # its threads have started
        yield client


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def noted(folder: Path) -> Callable[[Any], Any]:
    """A function that writes down each of its calls, and fails where it is told to."""
    path = str(folder)

    def note(value: Any) -> Any:
        import os

        with open(os.path.join(path, "calls"), "a") as file:
            file.write(f"{value}\n")
        if os.path.exists(os.path.join(path, f"fail-{value}")):
            raise ValueError(f"told to fail at {value}")
        return value

    return note


def calls(folder: Path) -> list[str]:
    """What was called since the last look."""
    file = folder / "calls"
    found = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return found


def test_a_graph_is_sent_when_its_block_ends(client: Client) -> None:
    """Nodes are arguments of each other; results, counts and the table of nodes tell of it."""
    with client.graph("first") as graph:
        ones = graph.map(add, range(4))
        total = graph.submit(sum, ones)
        named = graph.after(total).submit("double", 21)
        both = graph.submit(add, named, b={"x": [total]}["x"][0])
        assert len(graph) == 7
    assert graph.wait(20) is graph
    assert (both.result(5), total.result(5), named.result(5)) == (52, 10, 42)
    assert graph.counts()["succeeded"] == graph.total == 7
    nodes = graph.nodes()
    assert list(nodes.columns) == [
        *("id", "name", "layer", "parents", "state", "reason", "attempt", "worker"),
        *("run_s", "finished_at"),
    ]
    assert list(nodes["layer"]) == [0, 0, 0, 0, 1, 2, 3]
    assert nodes["parents"][6] == [5, 4]
    assert set(nodes["state"]) == {"succeeded"}
    assert str(nodes["finished_at"].dtype) == "datetime64[ms, UTC]"
    assert "7 tasks" in graph._repr_html_()
    assert "first" in repr(graph)


def test_the_results_are_those_of_its_ends(client: Client, tmp_path: Path) -> None:
    """In the order in which they were added, of calls and named tasks, for another client as well;
    the error of the first that failed, and of a wait that is over."""
    with client.graph("ends") as graph:
        one = graph.submit(add, 1)
        graph.submit("double", 4)
        inner = graph.submit(add, one, 10)
        graph.map(add, [inner, one], [100, 200])
    assert graph.results(20) == [8, 112, 202]
    with Client(address=client.address, signing_key=KEY) as other:
        assert other.graph("ends").results(20) == [8, 112, 202]
    wait_for_it, let_go = gate(tmp_path)
    with client.graph("bad-ends") as graph:
        graph.submit(wait_for_it)
        graph.submit(add, graph.submit(add, "x"))
    with pytest.raises(ResultTimeout, match=r"after 0\.2 s"):
        graph.results(0.2)
    let_go()
    with pytest.raises(TaskCancelled, match="TypeError"):
        graph.results(20)


def test_an_error_in_the_block_sends_nothing(client: Client) -> None:
    """What is half written is not there."""

    def halved(graph: CallGraph) -> None:
        with graph:
            graph.submit(add, 1)
            raise ZeroDivisionError

    graph = client.graph("halved")
    with pytest.raises(ZeroDivisionError):
        halved(graph)
    with pytest.raises(UnknownBatch):
        client.graph("halved").counts()
    with pytest.raises(ConfigurationError, match="while it is open"):
        graph.submit(add, 1)
    with pytest.raises(ConfigurationError, match="no tasks"), client.graph("empty"):
        pass


def test_made_again_it_runs_what_is_not_done(client: Client, tmp_path: Path) -> None:
    """The same graph runs nothing; where one argument is another, that task and what depends on it
    run."""
    note = noted(tmp_path)

    def make(second: int) -> CallGraph:
        with client.graph("again") as graph:
            one = graph.submit(note, 1)
            two = graph.submit(note, second)
            graph.submit(note, graph.submit(add, one, 10))
            graph.submit(note, graph.submit(add, two, 100))
        return graph.wait(20)  # type: ignore[no-any-return]

    assert make(2).reused == 0
    assert sorted(calls(tmp_path)) == ["1", "102", "11", "2"]
    assert make(2).reused == 6
    assert calls(tmp_path) == []
    again = make(3)
    assert again.reused == 3
    assert sorted(calls(tmp_path)) == ["103", "3"]
    assert again.counts()["succeeded"] == 6


def test_resume_runs_what_failed_and_what_depends_on_it_in_order(
    client: Client, tmp_path: Path
) -> None:
    """What is done stays; what was cancelled waits for what failed."""
    note = noted(tmp_path)
    (tmp_path / "fail-2").touch()
    with client.graph("mended") as graph:
        one = graph.submit(note, 1)
        two = graph.submit(note, add(1))
        last = graph.submit(note, graph.submit(add, two, 40))
        graph.submit(add, last, one)
    counts = graph.wait(20).counts()
    assert (counts["succeeded"], counts["failed"], counts["cancelled"]) == (1, 1, 3)
    with pytest.raises(TaskCancelled, match="told to fail at 2"):
        last.result(5)
    assert list(graph.failures()["message"]) == ["told to fail at 2"]
    with pytest.raises(ConfigurationError, match="run the code again"):
        client.graph("mended").resume()
    (tmp_path / "fail-2").unlink()
    calls(tmp_path)
    assert graph.resume() == 4
    assert graph.wait(20).counts()["succeeded"] == 5
    assert calls(tmp_path) == ["2", "42"]
    assert client.future("mended:4").result(5) == 43
    assert graph.resume() == 0


def test_cancel_ends_all_that_waits(client: Client, tmp_path: Path) -> None:
    """What runs goes on; the rest is cancelled, and runs again by resume."""
    wait_for_it, go = gate(tmp_path)
    with client.graph("stopped") as graph:
        slow = graph.submit(wait_for_it)
        for _ in range(5):
            slow = graph.submit(str.upper, slow)
    until(lambda: graph.nodes()["state"][0] == "running", "the first runs")
    with pytest.raises(ResultTimeout, match="unfinished"):
        graph.wait(0.2)
    assert graph.cancel() == 5
    with pytest.raises(ConfigurationError, match="are running"):
        graph.delete()
    go()
    assert graph.wait(10).counts()["cancelled"] == 5
    graph.resume()
    assert graph.wait(10).counts()["succeeded"] == 6
    graph.delete()
    assert client.broker.call(("KEYS", "*stopped*")) == []


def test_another_graph_of_that_name_is_refused(client: Client, tmp_path: Path) -> None:
    """Another number of tasks, or other tasks while the old ones are at work."""
    wait_for_it, go = gate(tmp_path)

    def make(argument: Any, more: int = 0) -> CallGraph:
        with client.graph("taken") as graph:
            first = graph.submit(wait_for_it)
            graph.submit(add, first, argument)
            graph.map(abs, range(more))
        return graph

    graph = make("a")
    with pytest.raises(ConfigurationError, match="was sent with 2 tasks and has 5 now"):
        make("a", more=3)
    with pytest.raises(ConfigurationError, match="still at work on other tasks"):
        make("b")
    go()
    graph.wait(10)
    assert make("b").wait(10).counts()["succeeded"] == 2
    assert client.future("taken:1").result(5) == "wentb"


def test_flows_and_options_in_a_graph(client: Client) -> None:
    """A chain, a chord and options of a task; nodes of one graph are arguments outside of it."""
    with client.graph("flows") as graph:
        nodes = graph.add_flow(chain(sig(add, 1), sig(add, 5).options(name="plus"), add))
        end = graph.add_flow(chord(group(sig(add, 1), sig("double", 4)), sum))[-1]
        graph.options(priority=None, retries=1).map(abs, [-1])
    assert nodes[-1].result(10) == 8
    assert end.result(10) == 10
    assert client.submit(add, nodes[-1], end).result(10) == 18
    assert "plus" in set(graph.nodes()["name"])


def test_a_graph_survives_its_program(client: Client, tmp_path: Path) -> None:
    """A program that is killed in mid-graph leaves a graph that ends; run again from the top it
    takes what was done, and runs nothing twice."""
    url = client.server.url  # type: ignore[attr-defined]
    (tmp_path / "program.py").write_text(
        "import os, sys, time\n"
        "from redistq import Client\n"
        f"client = Client({url!r}, signing_key={KEY!r}, shared=True)\n"
        "def note(value):\n"
        f"    open({str(tmp_path / 'calls')!r}, 'a').write(f'{{value}}\\n')\n"
        "    return value\n"
        "def slow(value):\n"
        "    time.sleep(0.3)\n"
        "    return note(value)\n"
        "with client.graph('survivor') as graph:\n"
        "    firsts = graph.map(slow, range(6))\n"
        "    total = graph.submit(sum, firsts)\n"
        "    last = graph.submit(note, total)\n"
        "if sys.argv[1:] == ['die']:\n"
        "    os.kill(os.getpid(), 9)\n"
        "print('result', last.result(20), 'reused', graph.reused)\n"
        "client.close()\n"
    )
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with command(tmp_path, "program.py", "die", **path) as first:
        assert first.wait(30) == -9, first.output
    graph = client.graph("survivor")
    assert not graph.done
    until(lambda: graph.done, "the graph ends", 20)
    assert graph.counts()["succeeded"] == 8
    assert sorted(calls(tmp_path)) == ["0", "1", "15", "2", "3", "4", "5"]
    with command(tmp_path, "program.py", **path) as second:
        assert second.wait(30) == 0, second.output
        assert "result 15 reused 8" in second.output
    assert calls(tmp_path) == []


# -- pictures --------------------------------------------------------------------------------------


def test_the_picture_of_a_small_graph(client: Client, tmp_path: Path) -> None:
    """Each task is a mark in its layer, in the colour of its state; edges join them."""
    pytest.importorskip("matplotlib")
    note = noted(tmp_path)
    (tmp_path / "fail-3").touch()
    with client.graph("drawn") as graph:
        ends = [graph.submit(note, graph.submit(add, i)) for i in range(4)]
        graph.submit(sum, ends)
    graph.wait(20)
    figure = graph.plot()
    (ax,) = figure.axes
    marks = [c for c in ax.collections if len(c.get_offsets()) and c.get_label() != "edges"]
    drawn = sum(len(c.get_offsets()) for c in marks if type(c).__name__ == "PathCollection")
    assert drawn == 9
    texts = {text.get_text() for text in ax.get_legend().get_texts()}
    assert texts == {"succeeded 7", "failed 1", "cancelled 1"}
    assert "drawn" in ax.get_title(loc="left")
    assert "7 succeeded, 1 failed, 1 cancelled" in repr(figure)


def test_the_picture_of_a_large_graph_reads_little(client: Client) -> None:
    """Groups of one name and layer are boxes; few of the tasks are asked for, whatever its size."""
    pytest.importorskip("matplotlib")
    with client.graph("wide") as graph:
        ones = graph.map(add, range(600))
        twos = [graph.submit(abs, one) for one in ones]
        graph.submit(sum, twos)
    graph.wait(60)
    server = client.server  # type: ignore[attr-defined]
    with server.client() as db:
        before = db.info("commandstats")["cmdstat_hmget"]["calls"]
        started = time.monotonic()
        figure = graph.plot()
        assert time.monotonic() - started < 10
        asked = db.info("commandstats")["cmdstat_hmget"]["calls"] - before
    assert asked < 300
    (ax,) = figure.axes
    said = {text.get_text().split("\n")[-1] for text in ax.texts}
    assert {"×600", "×1"} <= said
    assert "1,201 tasks" in ax.get_title(loc="left")


def test_a_deep_graph_is_drawn_in_few_columns(client: Client) -> None:
    """Layers that follow each other share a column."""
    with client.graph("deep") as graph:
        last = graph.submit(add, 0)
        for _ in range(59):
            last = graph.submit(add, last)
    summary = graph.summary()
    assert summary.layers == 60
    boxes, links = boxes_of(summary)
    assert len(boxes) == 12
    assert sum(box.count for box in boxes) == 60
    assert set(links) == {(i, i + 1) for i in range(11)}
    assert graph.wait(20).counts()["succeeded"] == 60


def test_places_keep_edges_apart() -> None:
    """Nodes stand near those they are tied to: two chains side by side do not cross."""
    layers = [0, 0, 1, 1, 2, 2]
    parents = [[], [], [1], [0], [2], [3]]
    height = places(layers, parents)
    assert (height[0] < height[1]) == (height[3] < height[2]) == (height[5] < height[4])
