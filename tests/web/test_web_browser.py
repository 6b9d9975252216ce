"""The web dashboard as people see it: in a headless Chromium, with real clicks and pictures.

Skipped, with the reason, where Chromium or playwright is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.browsers import CHROMIUM, FLAGS, contrast
from support.servers import Server, free_port
from support.workers import command

from redistq import TaskProducer, TaskWorker

MISSING = [name for name in ("playwright", "uvicorn", "starlette") if find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("chromium (apt-get install chromium)")

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.timeout(180),
]
EVIL = "<script>window.hacked = true</script>"
QUEUE = "pictures"


def resize(payload: Any) -> str:
    """A task of which some fail until they are sent again."""
    if payload.get("broken"):
        raise ValueError(f"no such image: {EVIL}")
    return "done"


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def opened(browser: Any, address: str, width: int = 1280, **options: Any) -> Any:
    """A page of a reader of its own."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(address)
    return page


def test_a_queue_is_watched_and_steered(
    server: Server, browser: Any, db: Any, tmp_path: Path
) -> None:
    """A task appears live and one that failed is retried; what a reader has opened and typed stays;
    viewers have no buttons; without JavaScript it works; it can be read in both themes, and at
    600 pixels without scrolling sideways."""
    pictures = Path(os.environ.get("REDISTQ_TEST_PICTURES") or tmp_path)
    port = str(free_port())
    with (
        command(tmp_path, "-m", "redistq", "web", "--port", port, url=server.url) as served,
        TaskWorker(url=server.url, stream=QUEUE, task_handlers={"resize": resize}, threads=2),
        TaskProducer(url=server.url, stream=QUEUE) as producer,
    ):
        served.says("Ctrl-C ends it")
        full, viewer = re.findall(r"http://\S+token=\S+", served.output)
        at = f"http://127.0.0.1:{port}/queue?q={QUEUE}"
        producer.get_result(producer.add_task("resize", {"n": 1}), timeout=20)
        page = opened(browser, full)
        page.get_by_role("link", name=QUEUE).click()
        page.get_by_text("live", exact=True).first.wait_for()
        assert page.url == at, "the token is not in the address"
        page.evaluate("window.kept = 1")

        # What happens is shown, and a reader is not disturbed.
        page.get_by_role("searchbox").fill("half a wo")
        broken = {"type": "resize", "payload": {"broken": 1}, "retries": 0}
        producer.add_tasks([broken, broken])
        group = page.locator("summary", has_text="ValueError").first
        group.press("Enter")
        page.get_by_role("searchbox").focus()
        producer.add_tasks([broken])
        page.get_by_role("button", name="Retry failed (3)").wait_for()
        assert page.locator("details[open]").count() == 1
        assert page.locator("details[open] details").count() == 3
        assert page.evaluate("document.activeElement.type") == "search"
        assert page.get_by_role("searchbox").input_value() == "half a wo"
        assert page.evaluate("window.kept") == 1

        # One that failed, on a page of its own.
        page.locator("details[open] details summary").first.press("Enter")
        page.locator("details[open] details a").first.click()
        page.get_by_text("Traceback (most recent call last)").wait_for()
        page.screenshot(path=str(pictures / "web-task.png"), full_page=True)
        page.get_by_role("button", name="Retry", exact=True).click()
        page.get_by_text("sent again.").wait_for()
        page.go_back()

        # All of them: it asks first.
        page.get_by_role("button", name=re.compile(r"Retry failed \(\d\)")).focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="No, leave it").press("Enter")
        assert not page.get_by_role("dialog").is_visible()
        page.get_by_role("button", name=re.compile(r"Retry failed \(\d\)")).click()
        page.get_by_role("button", name="Yes, retry").click()
        page.get_by_text("failed tasks sent again.").wait_for()
        page.get_by_role("button", name="Pause", exact=True).click()
        page.get_by_role("button", name="Resume").wait_for()
        assert db.hget(f"meta:{QUEUE}", "paused") == "1"
        page.get_by_role("button", name="Resume").click()
        page.get_by_role("button", name="Pause", exact=True).wait_for()
        assert page.evaluate("window.hacked") is None

        page.screenshot(path=str(pictures / "web-light.png"), full_page=True)
        assert contrast(page, "body") >= 4.5
        dark = opened(browser, full, color_scheme="dark")
        dark.goto(at)
        dark.screenshot(path=str(pictures / "web-dark.png"), full_page=True)
        assert contrast(dark, "body") >= 4.5
        narrow = opened(browser, full, width=600)
        narrow.goto(at)
        narrow.screenshot(path=str(pictures / "web-600.png"), full_page=True)
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 600

        only = opened(browser, viewer)
        only.goto(at)
        only.get_by_text("read-only").wait_for()
        assert only.get_by_role("button").all_inner_texts() == ["Find"]
        status = only.evaluate(
            "fetch('/act?q=pictures', {method: 'POST', body: new URLSearchParams({what: 'pause'})})"
            ".then((answer) => answer.status)"
        )
        assert status == 403
        plain = opened(browser, full, java_script_enabled=False)
        plain.goto(at)
        plain.get_by_role("button", name="Pause", exact=True).press("Enter")
        plain.get_by_role("button", name="Resume").wait_for()
        assert db.hget(f"meta:{QUEUE}", "paused") == "1"

        # It ends while pages are open, and they say so.
        served.process.terminate()
        assert served.wait() == 0, served.output
        page.get_by_text("trying again").wait_for()
