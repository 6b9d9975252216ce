"""``redistq web``, started for real: what it says, what others can see, how it ends.

What pages show is in test_web.py, and looked at in a browser in test_web_browser.py.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support.servers import Server, free_port
from support.workers import Command, command, until

from redistq import TaskProducer
from redistq.system import private
from redistq.web.command import main

PASSWORD = "s3cret-w0rd"


@dataclass
class Site:
    """A dashboard that is served; ``token`` and ``viewer`` are what it printed."""

    port: int
    token: str
    viewer: str
    process: Command

    def ask(self, path: str, **headers: str) -> httpx.Response:
        """The answer to a request of somebody with the token."""
        known = {"Authorization": f"Bearer {self.token}", **headers}
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=known, timeout=20)

    def listen(self, path: str, **headers: str) -> Any:
        """A connection that goes on."""
        known = {"Authorization": f"Bearer {self.token}", **headers}
        at = f"http://127.0.0.1:{self.port}{path}"
        return httpx.stream("GET", at, headers=known, timeout=20)


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server that wants a password."""
    with Server() as server:
        with server.client() as db:
            db.config_set("requirepass", PASSWORD)
        yield server


def url_of(server: Server) -> str:
    """The address with the password."""
    return f"redis://:{PASSWORD}@127.0.0.1:{server.port}"


@pytest.fixture
def site(locked: Server, tmp_path: Path) -> Iterator[Site]:
    """A dashboard served to this machine."""
    port = free_port()
    words = ("-m", "redistq", "dashboard", "--serve", "--port", str(port), "--queue", "tasks")
    with command(tmp_path, *words, url=url_of(locked)) as process:
        process.says("Ctrl-C ends it")
        tokens = re.findall(r"token=([\w-]+)", process.output)
        assert len(tokens) == 2, process.output
        yield Site(port, *tokens, process)


def told(lines: Iterator[str]) -> tuple[str, dict[str, Any]]:
    """The next event of a stream: its id and its data."""
    place = ""
    for line in lines:
        if line.startswith("id: "):
            place = line[4:]
        elif line.startswith("data: "):
            return place, json.loads(line[6:])
    raise AssertionError("it has ended")


def test_a_page_is_live_and_events_are_told_until_it_ends(site: Site, locked: Server) -> None:
    """Sections as they change, through an outage of the server; a signal ends it in good order
    though somebody listens. Token and password are nowhere to be seen."""
    with TaskProducer(url=url_of(locked)) as producer:
        with site.listen("/live?q=tasks") as page:
            assert page.headers["content-type"].startswith("text/event-stream")
            lines = page.iter_lines()
            head = told(lines)[1]["head"]
            assert PASSWORD not in head
            first = producer.add_task("work", 1)
            until(lambda: ">1</div>" in told(lines)[1].get("head", ""), "the task is shown")
            locked.stop()
            until(lambda: "No answer" in told(lines)[1].get("head", ""), "that nothing answers")
            assert site.ask("/health").status_code == 503
            locked.start()
            with locked.client() as db:
                db.config_set("requirepass", PASSWORD)
            until(lambda: "No answer" not in told(lines)[1].get("head", ""), "it goes on")

        assert site.ask("/events?since=x").status_code == 400
        with site.listen("/events", **{"Last-Event-ID": "0"}) as listener:
            lines = listener.iter_lines()
            first = producer.add_task("work", 1)
            cursor, event = told(lines)
            assert (event["type"], event["id"], event["cursor"]) == ("added", first, cursor)
            second = producer.add_task("work", 2)
            assert told(lines)[1]["id"] == second
        with site.listen(f"/events?since={cursor}") as listener, site.listen("/live?q=tasks"):
            lines = listener.iter_lines()
            assert told(lines)[1]["id"] == second
            producer.cancel(first, second)
            ends = [told(lines)[1] for _ in range(2)]
            assert {(e["type"], e["state"]) for e in ends} == {("ended", "cancelled")}

            for path in ("missing", "static/../../x", "queue", "api/queues"):
                site.ask(f"/{path}?token={site.token}&tok%65n={site.token}")
            words = " ".join(psutil.Process(site.process.process.pid).cmdline())
            for secret in (PASSWORD, site.token, site.viewer):
                assert secret not in words
            started = time.monotonic()
            site.process.process.send_signal(signal.SIGTERM)
            site.process.wait()
            assert time.monotonic() - started < 5.0, "a second, on a machine that is not busy"
    assert site.process.process.returncode == 0, site.process.output
    assert site.process.output.count(site.token) == 1, "the address to open is all"
    assert PASSWORD not in site.process.output
    assert "Traceback" not in site.process.output


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is loaded on Linux")
def test_the_first_page_is_shown_without_what_charts_need(site: Site) -> None:
    """It is there at once: numpy, pandas and matplotlib are loaded when a picture is drawn."""
    assert site.ask("/queue?q=tasks").status_code == 200
    loaded = Path(f"/proc/{site.process.process.pid}/maps").read_text()
    assert [name for name in ("numpy", "pandas", "matplotlib") if f"/{name}/" in loaded] == []


def test_a_request_is_for_this_server_and_from_its_pages(site: Site) -> None:
    """By its names alone; a cookie that scripts and other sites do not get; no script from
    elsewhere."""
    for host in ("evil.example", "localhost.evil.example", "192.0.2.1", ""):
        assert site.ask("/", Host=host).status_code == 403
    assert site.ask("/health", Host=f"localhost:{site.port}").status_code == 200
    browser = {"Accept": "text/html", "Authorization": ""}
    answer = site.ask(f"/queue?q=tasks&token={site.viewer}", **browser)
    assert (answer.status_code, answer.headers["location"]) == (303, "/queue?q=tasks")
    cookie = answer.headers["set-cookie"]
    assert re.search(r"HttpOnly; Path=/; SameSite=strict$", cookie, re.I)
    assert site.viewer not in cookie
    linked = site.ask("/queue?q=tasks", **browser, **{"Sec-Fetch-Site": "cross-site"})
    assert '<meta http-equiv="refresh" content="0;url=/queue?q=tasks">' in linked.text
    page = site.ask("/queue?q=tasks", Accept="text/html")
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "same-origin"
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert PASSWORD not in page.text
    script = re.search(r'src="(/static/page.js\?v=\w+)"', page.text)
    assert script
    kept = site.ask(script[1], Authorization="")
    assert "immutable" in kept.headers["cache-control"]
    assert site.ask("/").status_code == 303, "there is one queue"
    assert site.ask("/queue?q=other").status_code == 400


def test_a_port_that_is_taken_ends_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and one sentence, no page at another port; 2 for an address that is none."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["--url", url, "--port", port]) == 1
    said = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 cannot be had" in said
    assert said.count("\n") == 1
    assert main(["--url", "nonsense"]) == 2


@pytest.mark.parametrize(
    ("host", "name", "own"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "[::1]", True),
        ("127.0.0.1", "127.1.2.3", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("localhost", "LOCALHOST.", True),
        ("::", "2001:db8::1", True),
        ("::", "evil.example", False),
        ("queue.internal", "queue.internal", True),
        ("queue.internal", "proxy.example", True),
        ("queue.internal", "", False),
    ],
)
def test_which_names_are_its_own(host: str, name: str, own: bool) -> None:
    """Its address, its names, those that are allowed; numbers where it is not for us alone."""
    assert private.named_here(host, ["proxy.example"])(name) is own
