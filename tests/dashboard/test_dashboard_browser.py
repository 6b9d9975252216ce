"""The dashboard as people see it: JupyterLab in a headless Chromium, with real clicks and pictures.

Skipped, with the reason, where Chromium, JupyterLab or playwright is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browsers import contrast
from support.lab import MISSING, Lab, chromium, code_cells, jupyterlab, text_of, wait
from support.servers import Server

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.timeout(180),
]

QUEUE = "browser"
BATCH = """
import logging
import threading
import time

from redistq import TaskProducer, TaskWorker

logging.getLogger("redistq").setLevel(logging.CRITICAL)


seen = threading.Event()


def resize(payload):
    # Slowly until the test has seen the figures move, however long the page takes to show them.
    time.sleep(0.02 if seen.is_set() else 0.2)
    if payload["n"] % 40 == 7:
        raise ValueError("no such image: <script>window.hacked = true</script>")


producer = TaskProducer(stream="browser")
producer.add_tasks(
    {"type": "resize <script>window.hacked = true</script>", "payload": {"n": n}, "retries": 0}
    for n in range(400)
)
producer.add_tasks({"type": "later", "delay": 3600} for _ in range(3))
worker = TaskWorker(
    stream="browser",
    task_handlers={"resize <script>window.hacked = true</script>": resize},
    thread_count=4,
).start()
# A cell that is busy and never looks at the kernel's messages, until the test has seen enough.
deadline = time.monotonic() + 30
while time.monotonic() < deadline and not producer.broker.call(("EXISTS", "seen")):
    time.sleep(0.1)
seen.set()
"""
LEFT = """
import threading

import comm

print("threads", sum(t.name.startswith("redistq-ui") for t in threading.enumerate()))
open_comms = comm.get_comm_manager().comms.values()
print("comms", sum(c.target_name == "jupyter.widget" for c in open_comms))
"""
CLEAN = """
worker.stop()
producer.close()
"""


class Watched(Lab):
    """The notebook with the dashboard, and the cell that counts what it leaves."""

    def left(self) -> dict[str, int]:
        """How many dashboard threads and widget comms the kernel has; runs the cell that counts."""
        before = self.count(3)[0]
        self.run(3)
        wait(lambda: self.count(3)[0] not in (before, None), "the counting cell did not run")
        wait(lambda: "comms" in text_of(self.outputs(3)), "the counting cell printed nothing")
        return {name: int(n) for name, n in re.findall(r"(\w+) (\d+)", text_of(self.outputs(3)))}

    def figure(self, label: str) -> int:
        """One of the header figures."""
        found = re.search(r"([\d,]+)\s+\S " + label, self.panel())
        assert found, self.panel()
        return int(found[1].replace(",", ""))


@pytest.fixture
def lab(server: Server, tmp_path: Path) -> Iterator[str]:
    """A JupyterLab over a copy of the dashboard notebook with three more cells; its address."""
    book = json.loads((ROOT / "notebooks" / "dashboard.ipynb").read_text(encoding="utf-8"))
    book["cells"] += code_cells((BATCH, LEFT, CLEAN))
    with jupyterlab(tmp_path, book, REDISTQ_URL=server.url, REDISTQ_QUEUE=QUEUE) as address:
        yield address


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with chromium() as started:
        yield started


def test_a_batch_is_watched_steered_and_left_behind_clean(
    lab: str, browser: Any, db: Any, tmp_path: Path
) -> None:
    """Figures move while another cell is busy; Pause, Retry and Cancel do what they say; hostile
    text stays text; both themes can be read; Close leaves a still picture and nothing else."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    book = Watched(page)
    pictures = Path(os.environ.get("REDISTQ_TEST_PICTURES") or tmp_path)
    book.open(lab)
    book.run(1)
    wait(lambda: "Nothing waits and nothing runs" in book.panel(), "the dashboard did not appear")

    book.run(2)
    wait(lambda: book.figure("succeeded") > 10, "no figure moved")
    first = book.figure("succeeded")
    wait(lambda: book.figure("succeeded") > first + 20, "the figures stand still")
    assert book.count(2)[1] == "running", "the cell with the batch ended before the figures moved"
    db.set("seen", 1)
    wait(lambda: book.count(2)[1] == "idle", "the batch's cell did not end")

    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    wait(lambda: "Paused: no worker starts another task" in book.panel(), "it did not pause")
    assert db.hget(f"meta:{QUEUE}", "paused") == "1"
    page.get_by_role("button", name="Resume").click()
    wait(lambda: "Paused: no worker" not in book.panel(), "it did not resume")

    wait(lambda: book.figure("queued") == 0 and book.figure("running") == 0, "not drained")
    failed = book.figure("failed")
    assert failed == db.zcard(f"dead:{QUEUE}") == 10
    page.get_by_role("button", name="▸ Show").first.click()
    page.locator("summary").first.click()
    wait(lambda: "Traceback (most recent call last)" in book.panel(), "no traceback opened")
    for theme in ("light", "dark"):
        book.theme(theme)
        area = page.locator(".jp-OutputArea-output").first
        area.screenshot(path=str(pictures / f"dashboard-{theme}.png"))
        assert contrast(page, ".jp-OutputArea-output", ".widget-html-content *") >= 4.5, (
            f"text is hard to read in the {theme} theme"
        )

    page.get_by_role("button", name="Retry failed (10)").click()
    page.get_by_role("button", name="Yes, retry").click()
    wait(lambda: "10 failed tasks sent again" in book.panel(), "it did not retry")
    wait(lambda: book.figure("failed") == 20, "the retried tasks did not run")
    page.get_by_role("button", name="Cancel not started (3)").click()
    page.get_by_role("button", name="No, leave it").click()
    wait(lambda: not page.get_by_role("button", name="No, leave it").is_visible(), "it asks on")
    assert db.zcard(f"delayed:{QUEUE}") == 3
    page.get_by_role("button", name="Cancel not started (3)").click()
    page.get_by_role("button", name="Yes, cancel them").click()
    wait(lambda: "3 tasks cancelled" in book.panel(), "it did not cancel")
    assert db.zcard(f"delayed:{QUEUE}") == 0

    assert page.evaluate("window.hacked") is None
    assert "resize <script>window.hacked = true</script>" in book.panel()

    assert book.left()["threads"] == 1
    page.get_by_role("button", name="Close").click()
    wait(lambda: "stopped: closed" in book.panel(), "no still picture was left")
    assert book.left() == {"threads": 0, "comms": 0}
    saved = book.outputs(1)
    assert [sorted(output["data"]) for output in saved] == [["text/html", "text/plain"]]

    # Cleared instead of closed: it notices, and nothing is left either.
    book.run(1)
    wait(lambda: "live · updated" in book.panel(), "it did not come back")
    wait(lambda: book.left()["threads"] == 1, "it is not live")
    book.clear(1)
    wait(lambda: book.left() == {"threads": 0, "comms": 0}, "something was left behind", 15)
    book.run(4)
    wait(lambda: book.count(4)[1] == "idle" and book.count(4)[0], "the worker did not stop")
