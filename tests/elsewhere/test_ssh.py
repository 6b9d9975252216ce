"""Workers over SSH, with a real sshd on loopback: the way, its ends, and what does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import KEY
from support.sshd import Sshd
from support.workers import alive, command, until

from redistq import SSH, Client, ConfigurationError, Registry, ServerUnavailable
from redistq.elsewhere import environment
from redistq.elsewhere.workers import RemoteWorkers


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One sshd for all of these tests."""
    started = Sshd(tmp_path_factory.mktemp("sshd"))
    yield started
    started.close()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A client without workers."""
    client = Client(url, signing_key=KEY)
    yield client
    client.close()


def place(sshd: Sshd, **options: Any) -> SSH:
    """The host that is reached through sshd, with the Python of these tests."""
    return SSH(sshd.host, **sshd.login(**{"python": sys.executable, **options}))


def whereabouts() -> tuple[int, str, str]:
    return os.getpid(), os.getcwd(), os.environ.get("GREETING", "")


# -- the whole way -------------------------------------------------------------------------------


def test_calls_run_there(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    """A cell's functions run in the folder and environment that the place names; the server of
    localhost is reached by a tunnel."""
    there = place(sshd, folder=str(tmp_path), env={"GREETING": "good day"})
    workers = client.start_workers(2, on=there)
    assert (workers.processes, workers.running, client.has_workers()) == (2, True, True)
    pid, folder, greeting = client.submit(whereabouts).result(30)
    assert (pid != os.getpid(), folder, greeting) == (True, str(tmp_path), "good day")
    assert workers.stop() is True
    assert (workers.processes, workers.running, workers.faults) == (0, False, {})
    assert not alive(pid)


def test_nothing_secret_on_a_command_line(client: Client, sshd: Sshd) -> None:
    """Neither the signing key nor the server's address stands on a command line or in a file."""
    workers = client.start_workers(1, on=place(sshd))
    assert client.submit(abs, -1).result(30) == 1
    shown = subprocess.run(["ps", "axww", "-o", "args="], capture_output=True, text=True).stdout
    assert "redistq.elsewhere.there" in shown
    for secret in (KEY, KEY.encode().hex()):
        assert secret not in shown
    words = workers.remotes[0]._launch.command
    assert client.address.url not in " ".join(words)


def test_the_tunnel_is_for_the_same_user_alone(client: Client, sshd: Sshd) -> None:
    """The socket over there can be opened by its owner only, and is gone afterwards."""
    workers = client.start_workers(1, on=place(sshd))
    socket = Path(workers.remotes[0]._launch.socket)
    assert socket.stat().st_mode & 0o777 == 0o600
    workers.stop()
    assert not socket.exists()


def test_embedded_server_by_tunnel(sshd: Sshd) -> None:
    """The server that a client starts itself serves workers elsewhere, too."""
    with Client() as client:
        assert client.address.embedded
        client.start_workers(1, on=place(sshd))
        assert client.submit(pow, 2, 5).result(30) == 32


def test_password_and_database_go_with_the_tunnel(private_server: Any, sshd: Sshd) -> None:
    """A server with a password and a database of its own is the same one there."""
    server = private_server()
    password = "it's 1+1=2 & more"
    with server.client() as db:
        db.config_set("requirepass", password)
    with Client(redis_host="127.0.0.1", redis_port=server.port, db=3, password=password) as client:
        client.start_workers(1, on=place(sshd))
        assert client.submit(abs, -3).result(30) == 3


def test_named_tasks_travel(client: Client, sshd: Sshd) -> None:
    """Handlers of this program run there."""
    from redistq import TaskProducer

    def shout(payload: str) -> str:
        return payload.upper()

    registry = Registry()
    registry.task(name="shout")(shout)
    with TaskProducer(address=client.address) as producer:
        client.start_workers(1, on=place(sshd), handlers=registry)
        assert producer.get_result(producer.add_task("shout", "hello"), timeout=30) == "HELLO"


# -- logs ----------------------------------------------------------------------------------------


def test_logs_come_here(client: Client, sshd: Sshd, capfd: pytest.CaptureFixture[str]) -> None:
    """What tasks print is in logs(); warnings are said at once, and everything with show="all"."""

    def talk() -> None:
        import logging

        print("a plain line", flush=True)
        logging.getLogger("mine").warning("beware of %s", "the dog")

    said: list[str] = []
    import redistq.elsewhere.workers as module

    before, module.say = module.say, lambda text, *_: said.append(text)
    try:
        workers = client.start_workers(1, on=place(sshd))
        client.submit(talk).result(30)
        until(lambda: [line for line in said if "beware of the dog" in line], "a warning said")
    finally:
        module.say = before
    assert until(lambda: [x for x in workers.logs(sshd.host) if "a plain line" in x], "a line")
    assert not [line for line in said if "a plain line" in line]
    assert all(line.startswith(sshd.host) for line in workers.logs())
    with pytest.raises(ConfigurationError, match="not on 'mars'"):
        workers.logs("mars")


# -- ends ----------------------------------------------------------------------------------------


def test_stop_drains(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    """A task that runs finishes before its worker ends."""
    from support.clients import gate

    wait_for_it, go = gate(tmp_path)

    def begun() -> str:
        (tmp_path / "begun").touch()
        return wait_for_it()

    workers = client.start_workers(1, on=place(sshd))
    future = client.submit(begun)
    until((tmp_path / "begun").exists, "the task's begin", 30)
    for remote in workers.remotes:
        remote.ask_to_stop(20)
    go()
    assert workers.stop(20) is True
    assert future.result(10) == "went"


def test_death_is_said(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks is said, with the reason; what is over there drains and ends."""
    said: list[str] = []
    monkeypatch.setattr("redistq.elsewhere.workers.say", lambda text, *_: said.append(text))
    workers = client.start_workers(1, on=place(sshd))
    pid, *_ = client.submit(whereabouts).result(30)
    os.kill(workers.remotes[0].pid, signal.SIGKILL)
    until(lambda: workers.faults, "the end to be noticed")
    assert "killed by SIGKILL" in workers.faults[sshd.host]
    assert "ended" in repr(workers)
    until(lambda: said, "the end to be said")
    assert f"the workers on {sshd.host} have ended" in said[-1]
    assert not workers.running
    until(lambda: not alive(pid), "the end of what ran there", 30)


def test_a_killed_program_leaves_nothing(url: str, sshd: Sshd, tmp_path: Path) -> None:
    """Workers elsewhere end with the program that started them, however that ends."""
    (tmp_path / "program.py").write_text(
        "import os, sys, json\n"
        "from redistq import SSH, Client\n"
        "host, login = json.loads(sys.argv[1])\n"
        f"client = Client({url!r}, signing_key={KEY!r})\n"
        "client.start_workers(1, on=SSH(host, python=sys.executable, **login))\n"
        "print('worker', client.submit(os.getpid).result(30), flush=True)\n"
        "input() if sys.stdin.isatty() else os.read(os.pipe()[0], 1)\n"
    )
    login = json.dumps([sshd.host, sshd.login()], default=str)
    with command(tmp_path, "program.py", login) as program:
        program.says("worker ", 60)
        line = next(line for line in program.lines if line.startswith("worker "))
        pid = int(line.split()[1])
        assert alive(pid)
        program.send(signal.SIGKILL)
        until(lambda: not alive(pid), "the end of its worker", 40)


# -- what does not fit ---------------------------------------------------------------------------


def test_no_such_python(client: Client, sshd: Sshd) -> None:
    """An interpreter that is not there is named, and the way to name another."""
    with pytest.raises(ConfigurationError, match=r"there is no /no/python there.*python="):
        client.start_workers(1, on=place(sshd, python="/no/python"))
    assert not client.has_workers()


def test_another_python(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of one minor version of Python are not sent to another."""
    monkeypatch.setattr("redistq.elsewhere.remote.PYTHON", (3, 2))
    with pytest.raises(ConfigurationError, match=r"functions of Python 3\.2 run in 3\.2 alone"):
        client.start_workers(1, on=place(sshd))


def test_another_redistq(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same release is needed at both ends."""
    monkeypatch.setattr("redistq.elsewhere.remote.__version__", "7.7")
    with pytest.raises(ConfigurationError, match=r"and here it is 7\.7"):
        client.start_workers(1, on=place(sshd))


def test_without_redistq(client: Client, sshd: Sshd) -> None:
    """A Python without the package says how to install it."""
    python = sys.base_prefix + "/bin/python3"
    with pytest.raises(ConfigurationError, match=r"has no redistq: pip install redistq=="):
        client.start_workers(1, on=place(sshd, python=python))


def test_no_such_folder(client: Client, sshd: Sshd) -> None:
    """A folder that is not there is an error of its own."""
    with pytest.raises(ConfigurationError, match=r"its folder: .*/no/folder"):
        client.start_workers(1, on=place(sshd, folder="/no/folder"))


def test_login_refused(client: Client, sshd: Sshd, tmp_path: Path) -> None:
    """What ssh says is in the error."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    login = sshd.login(identity=tmp_path / "other", options={"IdentitiesOnly": "yes"})
    with pytest.raises(ConfigurationError, match=r"Permission denied"):
        client.start_workers(1, on=SSH(sshd.host, **login))


def test_server_out_of_reach(client: Client, sshd: Sshd) -> None:
    """The server is looked for from there before any worker starts."""
    with pytest.raises(ServerUnavailable, match=r"cannot reach the server at redis://127\.0\.0\.1"):
        client.start_workers(1, on=place(sshd, url="redis://127.0.0.1:1"))


def test_local_server_without_a_tunnel(client: Client, sshd: Sshd) -> None:
    """localhost means another machine there: refused before anything is started."""
    with pytest.raises(ConfigurationError, match="can only be reached from this machine"):
        client.start_workers(1, on=place(sshd, tunnel=False))


def test_one_bad_host_ends_all(client: Client, sshd: Sshd) -> None:
    """Hosts that are fine are left without workers, too: the call fails as a whole."""
    hosts = [sshd.host, "127.0.0.1.invalid"]
    login = sshd.login(python=sys.executable)
    with pytest.raises(ConfigurationError, match=r"no workers on 127\.0\.0\.1\.invalid"):
        client.start_workers(1, on=SSH(hosts, **login))
    assert not client.has_workers()


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": []},
        {"hosts": "-oProxyCommand=reboot"},
        {"hosts": "two words"},
        {"hosts": "h", "port": 0},
        {"hosts": "h", "identity": "/no/key"},
        {"hosts": "h", "env": {"a b": "c"}},
        {"hosts": "h", "show": "some"},
        {"hosts": "h", "tunnel": True, "url": "redis://h"},
    ],
    ids=str,
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    """What cannot work is said when the place is made."""
    with pytest.raises(ConfigurationError):
        SSH(**wrong)


# -- the environment -----------------------------------------------------------------------------


def test_differences_in_words() -> None:
    """Missing ones first; a few are named, the others counted."""
    here = {"a": "1", "b": "2", "c": "3"}
    assert environment.differences(here, here) == ""
    assert environment.differences(here, {"a": "1", "b": "1"}) == (
        "c 3 here, missing there; b 2 here, 1 there"
    )
    many = {f"p{n}": "1" for n in range(20)}
    assert environment.differences(many, {}).endswith("; and 12 more")


def test_differences_are_said(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs over there is said in one line, and workers start all the same."""
    said: list[str] = []
    monkeypatch.setattr("redistq.elsewhere.workers.say", lambda text, *_: said.append(text))
    monkeypatch.setattr(
        "redistq.elsewhere.workers.imported_packages", lambda: {"redis": "0.1", "nonsense": "2"}
    )
    workers = client.start_workers(1, on=place(sshd))
    assert isinstance(workers, RemoteWorkers)
    words = f"{sshd.host}: nonsense 2 here, missing there; redis 0.1 here, "
    assert [line for line in said if line.startswith(words)]


def test_imported_packages_are_those_of_calls() -> None:
    """The packages of this program, without those of its tools."""
    found = environment.imported_packages()
    assert "redis" in found
    assert "pytest" not in found
