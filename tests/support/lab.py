"""JupyterLab in a headless Chromium, for the tests: notebooks as people see them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.browsers import CHROMIUM, FLAGS
from support.quick_json import RUN
from support.servers import free_port

MISSING = [name for name in ("jupyterlab", "ipykernel", "playwright") if find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("chromium (apt-get install chromium)")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, for playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def code_cells(sources: Sequence[str]) -> list[dict[str, Any]]:
    """Cells of code, as a notebook stores them."""
    return [
        {
            "cell_type": "code",
            "id": f"more-{at}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source.strip(),
        }
        for at, source in enumerate(sources)
    ]


@contextlib.contextmanager
def jupyterlab(folder: Path, book: dict[str, Any], **environment: str) -> Iterator[str]:
    """A JupyterLab in a folder of its own, with one notebook; its address."""
    place = folder / "lab"
    place.mkdir()
    (place / "book.ipynb").write_text(json.dumps(book), encoding="utf-8")
    port = free_port()
    homes = {
        name: str(folder / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    settings = folder / "jupyter_config_dir" / "lab" / "user-settings" / "@jupyterlab"
    (settings / "apputils-extension").mkdir(parents=True)
    (settings / "apputils-extension" / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False}), encoding="utf-8"
    )
    log = (folder / "lab.log").open("wb")
    process = subprocess.Popen(
        [
            *(*RUN, "jupyterlab", "--no-browser", "--expose-app-in-browser"),
            *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root"),
            *("--IdentityProvider.token=t", f"--ServerApp.root_dir={place}"),
            "--LabApp.extension_manager=readonly",
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **homes, **environment},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        answers(f"{address}/api?token=t", process, folder / "lab.log")
        yield f"{address}/lab/tree/book.ipynb?token=t"
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

    def panel(self) -> str:
        """The text of the dashboard."""
        return str(self.page.locator(".jp-OutputArea-output").first.inner_text())

    def output(self, cell: int) -> str:
        """The text of a cell's outputs, as it is shown."""
        cells = self.page.locator(".jp-Notebook .jp-Cell")
        return str(cells.nth(cell).locator(".jp-OutputArea-output").all_inner_texts())

    def theme(self, name: str) -> None:
        """Change to JupyterLab's light or dark theme, and wait until it is there."""
        self.command("apputils:change-theme", theme=f"JupyterLab {name.title()}")
        light = str(name == "light").lower()
        self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
        self.page.wait_for_timeout(700)  # the theme's style sheet is swapped some moments later

    def all(self) -> str:
        """The text of the whole notebook."""
        return str(self.page.locator(".jp-Notebook").first.inner_text())


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
