"""A notebook in JupyterLab as people use it: magics, the stop button, a restart in mid-graph.

Skipped, with the reason, where Chromium, JupyterLab or playwright is missing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY
from support.lab import MISSING, Lab, chromium, code_cells, jupyterlab, wait
from support.servers import Server

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.timeout(240),
]

CELLS = (
    """
from redistq import Client
from redistq.dashboard import Dashboard

client = Client(queue="pages")
workers = client.start_workers(2)
%load_ext redistq
""",
    "Dashboard(client)",
    """
%%task -o model
print("training")
model = {"depth": 5}
len(model)
""",
    """
%%batch -i range(40) -o squares --name squares
item * item
""",
    """
def step(n, *before):
    import os, time

    with open(FOLDER + "/runs", "a") as file:
        file.write(f"{n}\\n")
    while n > 1 and not os.path.exists(FOLDER + f"/go-{n}"):
        time.sleep(0.02)
    return n + sum(before)


with client.graph("pipeline") as graph:
    node = graph.submit(step, 0)
    for n in range(1, 5):
        node = graph.submit(step, n, node)
graph
""",
    "node.result()",
    "print(model, sum(squares), client.submit(abs, -42).result())",
)
DASHBOARD, TASK, BATCH, GRAPH, WAITS, AFTER = range(1, 7)
GONE = "its kernel has gone"


@pytest.fixture
def lab(server: Server, tmp_path: Path) -> Iterator[str]:
    """A JupyterLab with that notebook; its address."""
    cells = code_cells([cell.replace("FOLDER", repr(str(tmp_path))) for cell in CELLS])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    with jupyterlab(tmp_path, book, REDISTQ_URL=server.url, REDISTQ_SIGNING_KEY=KEY) as address:
        yield address


def test_a_notebook_is_run_stopped_and_started_again(lab: str, db: Any, tmp_path: Path) -> None:
    """Cells on workers show what they print and give; the stop button ends the wait, not the work,
    and the kernel is usable. A restart in mid-graph leaves no picture that seems live, and Run All
    runs nothing again that was done."""
    pictures = Path(os.environ.get("REDISTQ_TEST_PICTURES") or tmp_path)
    runs = tmp_path / "runs"

    def settled() -> int:
        return int(db.hget("counters:pages", "succeeded") or 0)

    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        book = Lab(page)
        book.open(lab)
        for cell in range(GRAPH + 1):
            book.run(cell)
        wait(lambda: book.count(GRAPH)[0] == GRAPH + 1, "the first cells did not end", 60)
        assert "training" in book.output(TASK)
        assert "1" in book.output(TASK)
        assert "40" in book.output(BATCH)
        wait(lambda: "live · updated" in book.output(DASHBOARD), "no dashboard")

        # The stop button.
        book.run(WAITS)
        wait(lambda: book.count(WAITS)[1] == "running", "it does not wait")
        wait(lambda: runs.exists() and runs.read_text().split() == ["0", "1", "2"], "no third task")
        before = settled()
        book.command("notebook:interrupt-kernel")
        wait(lambda: "KeyboardInterrupt" in book.output(WAITS), "the wait did not end")
        (tmp_path / "go-2").touch()
        wait(lambda: settled() == before + 1, "the work did not go on")
        book.run(AFTER)
        wait(lambda: "{'depth': 5} 20540 42" in book.output(AFTER), "the kernel cannot be used")
        book.run(DASHBOARD)  # the one before ended with the interrupt, and left a still picture
        wait(lambda: "live · updated" in book.output(DASHBOARD), "no second dashboard")
        for theme in ("light", "dark"):
            book.theme(theme)
            page.screenshot(path=str(pictures / f"lab-{theme}.png"))

        # A restart in mid-graph: the fourth task runs, the fifth waits for it.
        wait(lambda: runs.read_text().split() == ["0", "1", "2", "3"], "no fourth task")
        book.command("notebook:restart-kernel")
        page.locator(".jp-Dialog .jp-mod-accept").click()
        wait(lambda: GONE in book.output(DASHBOARD), "the picture seems live")
        assert "live · " not in book.output(DASHBOARD)
        assert not page.get_by_role("button", name="Pause").is_visible()
        page.screenshot(path=str(pictures / "lab-restarted.png"))
        done = settled()
        (tmp_path / "go-3").touch()
        (tmp_path / "go-4").touch()
        book.command("notebook:run-all-cells")
        wait(
            lambda: "{'depth': 5} 20540 42" in book.output(AFTER) and book.count(AFTER)[0] == 7,
            "Run All did not end",
            60,
        )
        assert "10" in book.output(WAITS)
        # Beside the two tasks of the graph only the %%task and the last cell are run once more.
        assert settled() - done <= 4
        assert {n: k for n, k in Counter(runs.read_text().split()).items() if k > 1} in (
            {},
            {"3": 2},
        )
        assert "live · updated" in book.output(DASHBOARD)
        assert GONE not in book.output(DASHBOARD)
        page.screenshot(path=str(pictures / "lab-again.png"))
