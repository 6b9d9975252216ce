"""``redistq dashboard --serve``, started for real: who is let in, and what others can see.

What the page shows is looked at in a browser, by test_dashboard_browser.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.servers import Server, free_port
from support.workers import until

from redistq import TaskProducer
from redistq.dashboard import serve
from redistq.system import private

pytestmark = pytest.mark.skipif(find_spec("voila") is None, reason="needs voila")
PASSWORD = "s3cret-w0rd"


@dataclass
class Site:
    """A dashboard that is served."""

    port: int
    token: str
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str, *, host: str | None = None, **headers: str) -> tuple[int, str]:
        """Status and text of a page, asked for at 127.0.0.1."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        if host is not None:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def socket(self, kernel: str, **options: Any) -> Any:
        """A web socket to a kernel."""
        import websocket

        path = f"/api/kernels/{kernel}/channels?session_id=abc"
        return websocket.create_connection(
            f"ws://127.0.0.1:{self.port}{path}", timeout=10, **options
        )


@contextlib.contextmanager
def serving(server: Server, folder: Path, *options: str) -> Iterator[Site]:
    """The command, started and ended."""
    log, port = folder / "serve.log", free_port()
    url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "redistq",
                "dashboard",
                "--serve",
                "--port",
                str(port),
                *options,
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "REDISTQ_URL": url, "REDISTQ_SIGNING_KEY": PASSWORD + " as a key"},
        )
    site = Site(port, "", log, process)
    try:
        said = until(
            lambda: process.poll() is not None or re.search(r"token=([0-9a-f]+)", log.read_text()),
            "the address is printed",
            60,
        )
        assert said is not True, log.read_text()
        site.token = said[1]

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                return site.get("/voila/static/")[0] > 0
            return False

        until(answers, "it answers", 60)
        yield site
    finally:
        process.terminate()
        code = process.wait(30)
    assert code == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server that wants a password."""
    with Server() as server:
        with server.client() as db:
            db.config_set("requirepass", PASSWORD)
        yield server


@pytest.fixture(scope="module")
def site(locked: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A dashboard served to this machine."""
    with serving(locked, tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture(scope="module")
def kernel(site: Site) -> str:
    """The kernel of a visitor who has the token, as the page names it."""
    status, page = site.get(f"/?token={site.token}")
    found = re.search(r'"kernelId":\s*"([0-9a-f-]{36})"', page)
    assert status == 200
    assert found
    assert PASSWORD not in page
    return found[1]


def test_nobody_comes_in_without_the_token(site: Site, kernel: str) -> None:
    """On this machine too: neither the page, nor a kernel, by path, query, header or socket."""
    for path in ("/", "/?token=", "/?token=0", f"/?token={site.token[:-1]}"):
        status, page = site.get(path)
        assert (status, "kernelId" in page) == (200, False)
        assert "password" in page.lower(), "the login page"
    assert "kernelId" not in site.get("/", Authorization="token 0")[1]
    assert "kernelId" in site.get("/", Authorization=f"token {site.token}")[1]
    with pytest.raises(Exception, match="403"):
        site.socket(kernel)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "192.0.2.1", ""])
def test_a_name_that_is_not_its_own_is_refused(site: Site, kernel: str, host: str) -> None:
    """A web site elsewhere whose name was made to point here gets nothing, token or not."""
    key = {"Authorization": f"token {site.token}"}
    where = f"{host}:{site.port}" if host else ""
    for path in ("/", "/login", "/voila/static/voila.js", f"/api/kernels/{kernel}/channels"):
        assert site.get(path, host=where, **key)[0] in (400, 403), path
    if host:
        with pytest.raises(Exception, match="403"):
            site.socket(kernel, host=where, origin=f"http://{where}", header=key)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_another_page_of_the_browser_is_refused(site: Site, kernel: str, origin: str) -> None:
    """What comes from the page of another site, or of another port here, is not answered."""
    key = {"Authorization": f"token {site.token}"}
    assert site.get("/", Origin=origin, **key)[0] == 403
    with pytest.raises(Exception, match="403"):
        site.socket(kernel, origin=origin, header=key)


def test_a_visitor_runs_no_code(site: Site, kernel: str, tmp_path: Path) -> None:
    """The socket of a visitor takes the messages of widgets; what asks for code is dropped."""
    trap = tmp_path / "sprung"
    socket = site.socket(
        kernel,
        origin=f"http://127.0.0.1:{site.port}",
        header={"Authorization": f"token {site.token}"},
    )

    def send(kind: str, **content: Any) -> None:
        header = {
            "msg_id": kind,
            "username": "",
            "session": "abc",
            "msg_type": kind,
            "version": "5.3",
            "date": "",
        }
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        socket.send(json.dumps({**message, "channel": "shell", "buffers": []}))

    code = f"open({str(trap)!r}, 'w')"
    for kind in ("execute_request", "complete_request", "inspect_request", "input_reply"):
        send(kind, code=code, silent=False, store_history=False, user_expressions={"a": code})
    send("kernel_info_request")  # answered after all that came before
    while json.loads(socket.recv())["parent_header"].get("msg_id") != "kernel_info_request":
        pass
    socket.close()
    assert not trap.exists()


NO_PAGES = (
    "/api/kernels",
    "/api/contents",
    "/api/sessions",
    "/api/terminals",
    "/api/kernelspecs",
    "/tree",
    "/api/shutdown",
    "/voila/files/redistq.ipynb",
    "/voila/files/%2e%2e/url",
)


@pytest.mark.parametrize("path", NO_PAGES)
def test_there_is_the_page_and_nothing_else(site: Site, path: str) -> None:
    """No interface to kernels, files or a shell, and no second page under another path."""
    assert site.get(path, Authorization=f"token {site.token}")[0] in (403, 404, 405)


def test_neither_token_nor_password_can_be_seen(site: Site, kernel: str) -> None:
    """Not in what any library logs, the arguments of a process, or the environment of kernels."""
    for path in ("missing", "voila/static/../../x", "voila/files/x", "api/kernels/x", "logout"):
        site.get(f"/{path}?token={site.token}")
        site.get(f"/{path}?a=b&tok%65n={site.token}")
    me = psutil.Process(site.process.pid)
    kernels = me.children(recursive=True)
    assert kernels
    for process in (me, *kernels):
        for secret in (PASSWORD, site.token):
            assert secret not in " ".join(process.cmdline())
    for process in kernels:
        for secret in (PASSWORD, site.token):
            assert secret not in str(process.environ())
    log = site.log.read_text()
    assert log.count(site.token) == 1, "the address to open is all"
    assert PASSWORD not in log


def test_it_is_served_elsewhere_when_asked(locked: Server, tmp_path: Path) -> None:
    """``--host``: under the machine's addresses and names, and those that are allowed."""
    options = ("--host", "0.0.0.0", "--allow-host", "queue.example")
    with serving(locked, tmp_path, *options) as site:
        assert "kernelId" not in site.get("/")[1]
        for host in ("192.0.2.1", "queue.example", "QUEUE.example:80"):
            assert site.get("/login", host=host)[0] == 200
        assert site.get("/login", host="evil.example")[0] == 403


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


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({}, True),
        ({"Origin": "http://localhost:1"}, True),
        ({"Origin": "https://LOCALHOST:1"}, True),
        ({"Origin": "http://localhost"}, False),
        ({"Origin": ""}, True),
        ({"Sec-Websocket-Origin": "http://evil.example"}, False),
    ],
)
def test_which_pages_may_ask(headers: dict[str, str], let_in: bool) -> None:
    """Its own, and what is no page at all."""
    mine: Callable[[str], bool] = private.named_here("127.0.0.1", [])
    request = SimpleNamespace(headers={"Host": "localhost:1", **headers}, host_name="localhost")
    assert (serve.refusal_of(request, mine) == "") is let_in


def test_a_port_that_is_taken_ends_it(server: Server) -> None:
    """Exit code 1 and a word, no page at another port."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "redistq",
            "dashboard",
            "--serve",
            "--url",
            server.url,
            "--port",
            str(server.port),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "in use" in done.stderr + done.stdout


def test_events_are_sent_as_they_happen(site: Site, locked: Server) -> None:
    """To whoever has the token; from the last event on that a program has got."""
    assert site.get("/events")[0] == 403
    assert site.get("/events?since=x", Authorization=f"token {site.token}")[0] == 400
    url = f"redis://:{PASSWORD}@127.0.0.1:{locked.port}"

    def listen(**headers: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{site.port}/events")
        request.add_header("Authorization", f"token {site.token}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        answer = urllib.request.urlopen(request, timeout=30)
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.readline() == b": here\n"
        return answer

    def told(answer: Any) -> tuple[str, dict[str, Any]]:
        cursor = ""
        for line in answer:
            if line.startswith(b"id: "):
                cursor = line[4:].decode().strip()
            elif line.startswith(b"data: "):
                return cursor, json.loads(line[6:])
        raise AssertionError("it has ended")

    with TaskProducer(url=url) as producer:
        with listen(Last_Event_ID="0") as answer:
            first = producer.add_task("work", 1)
            cursor, event = told(answer)
            assert (event["type"], event["id"], event["cursor"]) == ("added", first, cursor)
            second = producer.add_task("work", 2)
            assert told(answer)[1]["id"] == second
        with listen(Last_Event_ID=cursor) as answer:
            assert told(answer)[1]["id"] == second
            producer.cancel(first, second)
            ends = [told(answer)[1] for _ in range(2)]
            assert {(e["type"], e["state"]) for e in ends} == {("ended", "cancelled")}
    assert site.token not in site.log.read_text().partition("(Ctrl-C")[2]
