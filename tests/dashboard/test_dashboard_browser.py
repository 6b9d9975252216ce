"""The dashboard as people see it: JupyterLab in a headless Chromium, with real clicks and pictures.

Skipped, with the reason, where Chromium, JupyterLab or playwright is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.browsers import CHROMIUM, FLAGS, contrast
from support.servers import Server, free_port

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("jupyterlab", "ipykernel", "playwright") if find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("chromium (apt-get install chromium)")

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


@pytest.fixture
def lab(server: Server, tmp_path: Path) -> Iterator[str]:
    """A JupyterLab over a copy of the dashboard notebook with three more cells; its address."""
    book = json.loads((ROOT / "notebooks" / "dashboard.ipynb").read_text(encoding="utf-8"))
    for at, source in enumerate((BATCH, LEFT, CLEAN)):
        book["cells"].append(
            {
                "cell_type": "code",
                "id": f"more-{at}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source.strip(),
            }
        )
    place = tmp_path / "lab"
    place.mkdir()
    (place / "dashboard.ipynb").write_text(json.dumps(book), encoding="utf-8")
    port = free_port()
    homes = {
        name: str(tmp_path / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    settings = tmp_path / "jupyter_config_dir" / "lab" / "user-settings" / "@jupyterlab"
    (settings / "apputils-extension").mkdir(parents=True)
    (settings / "apputils-extension" / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False}), encoding="utf-8"
    )
    log = (tmp_path / "lab.log").open("wb")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser"),
            *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root"),
            *("--IdentityProvider.token=t", f"--ServerApp.root_dir={place}"),
            "--LabApp.extension_manager=readonly",
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **homes, "REDISTQ_URL": server.url, "REDISTQ_QUEUE": QUEUE},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        answers(f"{address}/api?token=t", process, tmp_path / "lab.log")
        yield f"{address}/lab/tree/dashboard.ipynb?token=t"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


class Lab:
    """The notebook in the browser, driven by Lab's own commands."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def open(self, address: str) -> None:
        """Load the notebook and wait for its kernel."""
        self.page.goto(address)
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        self.page.wait_for_function(
            """() => {
                const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
                const session = panel && panel.sessionContext && panel.sessionContext.session;
                return session && session.kernel && session.kernel.status === 'idle';
            }""",
            timeout=60_000,
        )

    def command(self, name: str, **args: Any) -> None:
        """Run one of Lab's commands, without waiting for its end."""
        self.page.evaluate(
            "([name, args]) => { window.jupyterapp.commands.execute(name, args); }", [name, args]
        )

    def run(self, cell: int) -> None:
        """Run one cell; returns at once."""
        self.page.evaluate(
            """(at) => {
                const book = window.jupyterapp.shell.currentWidget.content;
                book.deselectAll(); book.activeCellIndex = at; book.mode = 'command';
                window.jupyterapp.commands.execute('notebook:run-cell');
            }""",
            cell,
        )

    def clear(self, cell: int) -> None:
        """Clear the output of one cell."""
        self.page.evaluate(
            """(at) => {
                window.jupyterapp.shell.currentWidget.content.activeCellIndex = at;
                window.jupyterapp.commands.execute('notebook:clear-cell-output');
            }""",
            cell,
        )

    def count(self, cell: int) -> Any:
        """The execution count of a cell, and its state: idle or running."""
        return self.page.evaluate(
            """(at) => {
                const model = window.jupyterapp.shell.currentWidget.content.widgets[at].model;
                return [model.executionCount, model.executionState];
            }""",
            cell,
        )

    def outputs(self, cell: int) -> list[dict[str, Any]]:
        """A cell's outputs as they would be saved."""
        found: list[dict[str, Any]] = self.page.evaluate(
            """(at) => {
                const book = window.jupyterapp.shell.currentWidget.content;
                return book.widgets[at].model.outputs.toJSON();
            }""",
            cell,
        )
        return found

    def left(self) -> dict[str, int]:
        """How many dashboard threads and widget comms the kernel has; runs the cell that counts."""
        before = self.count(3)[0]
        self.run(3)
        wait(lambda: self.count(3)[0] not in (before, None), "the counting cell did not run")
        wait(lambda: "comms" in text_of(self.outputs(3)), "the counting cell printed nothing")
        return {name: int(n) for name, n in re.findall(r"(\w+) (\d+)", text_of(self.outputs(3)))}

    def panel(self) -> str:
        """The text of the dashboard."""
        return str(self.page.locator(".jp-OutputArea-output").first.inner_text())

    def all(self) -> str:
        """The text of the whole notebook."""
        return str(self.page.locator(".jp-Notebook").first.inner_text())

    def figure(self, label: str) -> int:
        """One of the header figures."""
        found = re.search(r"([\d,]+)\s+\S " + label, self.panel())
        assert found, self.panel()
        return int(found[1].replace(",", ""))


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What a cell printed."""
    parts = (output.get("text", "") for output in outputs)
    return "".join("".join(part) for part in parts)


def wait(condition: Callable[[], Any], failure: str, seconds: float = 20.0) -> None:
    """Wait for something in the browser, which has no signal for us; shows the page on failure."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError):
            if condition():
                return
        if time.monotonic() > deadline:
            cells = getattr(condition, "__closure__", None) or ()
            books = [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Lab)]
            pytest.fail(failure + "".join(f"; the page:\n{book.all()}" for book in books))
        time.sleep(0.1)


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def test_a_batch_is_watched_steered_and_left_behind_clean(
    lab: str, browser: Any, db: Any, tmp_path: Path
) -> None:
    """Figures move while another cell is busy; Pause, Retry and Cancel do what they say; hostile
    text stays text; both themes can be read; Close leaves a still picture and nothing else."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    book = Lab(page)
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
        book.command("apputils:change-theme", theme=f"JupyterLab {theme.title()}")
        light = str(theme == "light").lower()
        page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
        page.wait_for_timeout(700)  # the theme's style sheet is swapped some moments later
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


def answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a web server that is starting says anything at all."""
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"{address} does not answer"
            time.sleep(0.1)  # a poll: a starting server has no signal to wait for
