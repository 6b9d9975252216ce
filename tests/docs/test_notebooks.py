"""The notebooks: each runs from top to bottom and shows what its stored outputs show (by nbval)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.quick_json import RUN

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
BOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
NEEDED = ("nbval", "ipykernel", "ipywidgets", "matplotlib", "pandas", "sklearn")
ALSO = {"11_moving_in.ipynb": "dask"}
MISSING = [name for name in NEEDED if find_spec(name) is None]
PICTURED = ("02", "03", "04", "06", "07", "08", "09", "10")
LIMIT_S = 60.0
LIMIT_BYTES = 500_000

needs_kernel = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture
def short_home() -> Iterator[str]:
    """A home for the notebook's own server, with a path short enough for its socket."""
    with tempfile.TemporaryDirectory(prefix="rq-nb-", ignore_cleanup_errors=True) as folder:
        yield folder


def book(name: str) -> dict[str, Any]:
    """A notebook as it is stored."""
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


def environment(home: str, **more: str) -> dict[str, str]:
    """What a notebook runs in: a home of its own, dashboards as still pictures."""
    return {**os.environ, "REDISTQ_HOME": home, "REDISTQ_DASHBOARD": "static", **more}


def test_the_tutorials_are_there() -> None:
    """The tutorials in their order, and the dashboard's own notebook; README lists each."""
    numbers = [f"{number:02}" for number in range(1, 12)]
    assert [name[:2] for name in BOOKS] == [*numbers, "da"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in BOOKS[:-1] if f"(notebooks/{name})" not in readme] == []


@needs_kernel
@pytest.mark.timeout(330)
@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_runs_and_says_what_it_said(name: str, short_home: str) -> None:
    """Every cell runs, and those whose output does not vary print what is stored; within a minute
    where the machine has nothing else to do, on the embedded server."""
    if name in ALSO and find_spec(ALSO[name]) is None:
        pytest.skip(f"needs {ALSO[name]}")
    began = time.monotonic()
    done = subprocess.run(
        [
            *(*RUN, "pytest", "-p", "nbval.plugin", "--nbval", f"notebooks/{name}"),
            *("--nbval-current-env", "--nbval-cell-timeout=120"),
            *("--nbval-kernel-startup-timeout=120", "-p", "no:cacheprovider"),
            "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
        ],
        cwd=ROOT,
        env=environment(short_home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - began < LIMIT_S * crowd


@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_is_stored_well(name: str) -> None:
    """Outputs are there and read well on GitHub: no widgets, no errors, cells counted in order, no
    path of the machine that ran it, and not too large."""
    found = book(name)
    assert "widgets" not in found["metadata"]
    assert (FOLDER / name).stat().st_size < LIMIT_BYTES
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert kinds <= {"text/plain", "text/html", "image/png"}
    text = json.dumps([{**output.get("data", {}), "image/png": ""} for output in outputs])
    text += json.dumps([output.get("text", "") for output in outputs])
    assert not re.search(r"/(root|work|Users)/|/tmp/(?!ipykernel_)|site-packages", text)


@pytest.mark.parametrize("name", [name for name in BOOKS if name[:2] in PICTURED])
def test_a_notebook_has_pictures(name: str) -> None:
    """Where there is something to see, a picture is stored."""
    outputs = [output for cell in book(name)["cells"] for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_no_stored_text_is_checked_that_should_not_be() -> None:
    """Every dashboard and plot is tagged as varying; what is not tagged has no clock in it."""
    for name in BOOKS:
        for cell in book(name)["cells"]:
            if "nbval-ignore-output" in cell["metadata"].get("tags", ()):
                continue
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                assert "monitor.plot." not in source, (name, cell["id"])
                assert "dashboard()" not in source, (name, cell["id"])


@needs_kernel
@pytest.mark.skipif(find_spec("nbconvert") is None, reason="needs nbconvert")
def test_nbconvert_shows_the_dashboard_without_widgets(short_home: str, tmp_path: Path) -> None:
    """Executed and converted, the page holds the figures, and loads nothing for them from afar."""
    done = subprocess.run(
        [
            *(*RUN, "nbconvert", "--to", "html", "--execute", "--output", "page"),
            *("--output-dir", str(tmp_path), "--ExecutePreprocessor.store_widget_state=False"),
            str(FOLDER / "dashboard.ipynb"),
        ],
        cwd=ROOT,
        env=environment(short_home, REDISTQ_DASHBOARD="auto"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Nothing waits and nothing runs" in page
    assert "Queue depth, last 60 s" in page
    assert "unpkg.com" not in page
    assert "jupyter.widget-view" not in page
