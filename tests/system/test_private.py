"""What is this user's alone: the home, the signing key, the embedded server's files.

Others are imitated by modes, links and, where the tests run as root, by owners.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redistq import ConfigurationError
from redistq.cli.worker_options import _key_in
from redistq.connection import embedded
from redistq.connection.embedded import EmbeddedServerError
from redistq.functions.signing import user_key
from redistq.system import private

ROOT = os.geteuid() == 0
STRANGER = 12_345
as_root = pytest.mark.skipif(not ROOT, reason="only root can give files away")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder for a home, which is there."""
    folder = tmp_path / "home"
    folder.mkdir(0o700)
    return folder


@pytest.fixture
def umask() -> Iterator[Callable[[int], Any]]:
    """Sets the umask, for this test alone."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refusal(home: Path) -> str:
    """The words with which a home is refused: the same for the key and for the server."""
    with pytest.raises(ConfigurationError) as of_key:
        user_key(home)
    with pytest.raises(EmbeddedServerError) as of_server:
        embedded.join(home)
    assert str(of_server.value).startswith(str(of_key.value))
    return str(of_key.value)


@pytest.mark.parametrize("others", [0o777, 0o770, 0o720, 0o702])
def test_a_home_that_others_can_write_to_is_refused(home: Path, others: int) -> None:
    """Whoever can put a key there chooses what runs here; the message says what mends it."""
    home.chmod(others)
    assert f"chmod 700 {home}" in refusal(home)
    assert not list(home.iterdir())
    home.chmod(0o700)
    assert len(user_key(home)) == 32


def test_a_home_that_everybody_could_exchange_is_refused(home: Path) -> None:
    """A folder above it that all can write to, unless it is sticky as /tmp is."""
    home.parent.chmod(0o777)
    assert f"chmod o-w {home.parent}" in refusal(home)
    home.parent.chmod(0o1777)
    assert user_key(home)


@as_root
def test_a_home_of_somebody_else_is_refused(home: Path) -> None:
    """Also by root, whose code it would choose."""
    os.chown(home, STRANGER, STRANGER)
    assert f"belongs to user {STRANGER}" in refusal(home)
    assert "REDISTQ_HOME" in refusal(home)


@as_root
@pytest.mark.parametrize("way", ["the home itself", "a folder above", "a link to a link"])
def test_a_link_that_somebody_else_made_is_not_followed(tmp_path: Path, way: str) -> None:
    """In a folder where all may make links, one that waits for us leads where its maker wants."""
    target = tmp_path / "mine"
    target.mkdir(0o700)
    link = tmp_path / "link"
    link.symlink_to(target)
    os.lchown(link, STRANGER, STRANGER)
    home = link
    if way == "a folder above":
        home = link / "home"
    elif way == "a link to a link":
        home = tmp_path / "first"
        home.symlink_to("link")
    assert f"{link} belongs to user {STRANGER}" in refusal(home)
    assert not list(target.iterdir())
    os.lchown(link, 0, 0)
    assert user_key(home), "one of our own is followed"


def test_a_key_that_is_a_link_is_refused(home: Path, tmp_path: Path) -> None:
    """A key that was put there as a link is not read, and what it names not written."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"a key that they know")
    for target in (theirs, tmp_path / "nothing", home):
        (home / "signing.key").symlink_to(target)
        with pytest.raises(ConfigurationError, match="symbolic link"):
            user_key(home)
        (home / "signing.key").unlink()
    assert not (tmp_path / "nothing").exists()


def test_a_key_that_is_no_file_is_refused_at_once(home: Path) -> None:
    """A pipe would hold us up for ever."""
    os.mkfifo(home / "signing.key", 0o600)
    with pytest.raises(ConfigurationError, match="no file"):
        user_key(home)


@pytest.mark.parametrize(("others", "can"), [(0o644, "read"), (0o660, "write"), (0o606, "write")])
def test_a_key_that_others_can_get_at_is_refused(home: Path, others: int, can: str) -> None:
    """A secret that others can read is none."""
    key = user_key(home)
    (home / "signing.key").chmod(others)
    with pytest.raises(ConfigurationError, match=f"others can {can}.*chmod 600"):
        user_key(home)
    (home / "signing.key").chmod(0o600)
    assert user_key(home) == key


@as_root
def test_a_key_of_somebody_else_is_refused(home: Path) -> None:
    """Its owner can write it at any time."""
    user_key(home)
    os.chown(home / "signing.key", STRANGER, STRANGER)
    with pytest.raises(ConfigurationError, match=f"belongs to user {STRANGER}"):
        user_key(home)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o277, 0o777])
def test_modes_do_not_depend_on_the_umask(
    tmp_path: Path, umask: Callable[[int], Any], mask: int
) -> None:
    """Folders 700, files 600: neither open to others, nor closed to ourselves."""
    home = tmp_path / "above" / "home"
    umask(mask)
    key = user_key(home)
    assert user_key(home) == key
    server = embedded.join(home)
    umask(0o022)
    assert mode(home.parent) == mode(home) == mode(home / "data") == 0o700
    assert mode(server.socket_path) == 0o700
    files = [path for path in home.iterdir() if path.is_file()]
    assert {"signing.key", "users.lock", "supervisor.lock", "server.log"} <= {
        path.name for path in files
    }
    assert {path.name: mode(path) for path in files} == {path.name: 0o600 for path in files}
    embedded.leave(home)


@pytest.mark.parametrize("name", ["users.lock", "supervisor.lock", "server.log"])
def test_the_servers_files_are_no_links(home: Path, tmp_path: Path, name: str) -> None:
    """What a link there names is neither written to nor made."""
    aim = tmp_path / "aim"
    (home / name).symlink_to(aim)
    with pytest.raises(EmbeddedServerError):
        embedded.join(home)
    assert not aim.exists()


def test_a_home_may_be_written_in_many_ways(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tilde, from the working folder, by a link of one's own: it is the same key."""
    key = user_key(home)
    monkeypatch.setenv("HOME", str(home.parent))
    monkeypatch.chdir(home.parent)
    (home.parent / "link").symlink_to("home")
    for way in ("~/home", "home", "./home/", "link", f"{home}/../home"):
        assert user_key(Path(way)) == key


@pytest.mark.parametrize("where", ["no folder", "a file"])
def test_where_no_key_can_be_kept_the_message_names_the_ways_out(
    tmp_path: Path, where: str
) -> None:
    """As in a container whose home cannot be written."""
    (tmp_path / "file").write_text("")
    home = Path("/proc/nowhere") if where == "no folder" else tmp_path / "file"
    with pytest.raises(ConfigurationError, match="REDISTQ_HOME"):
        user_key(home)


def test_without_a_home_the_message_says_so(tmp_path: Path) -> None:
    """A user without an entry and without HOME: no folder named ~ is made in the working one."""
    code = (
        "import os, pwd\n"
        "pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))\n"
        "from redistq import Client, ConfigurationError\n"
        "try: Client('redis://127.0.0.1:1')\n"
        "except ConfigurationError as error: print(error)\n"
    )
    without = {k: v for k, v in os.environ.items() if k not in ("HOME", "REDISTQ_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in without.items() if not k.startswith("XDG")},
    )
    assert "REDISTQ_HOME" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_key_file_that_is_named(tmp_path: Path) -> None:
    """A mounted secret is a link, and others may read it; what others can write is refused."""
    (tmp_path / "data").write_bytes(b"a key from a mounted volume\n")
    (tmp_path / "data").chmod(0o444)
    (tmp_path / "key").symlink_to("data")
    assert _key_in(tmp_path / "key") == b"a key from a mounted volume".hex()
    for others in (0o664, 0o646):
        (tmp_path / "data").chmod(others)
        with pytest.raises(ConfigurationError, match="chmod go-w"):
            _key_in(tmp_path / "key")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        _key_in(tmp_path / "missing")


def test_a_folder_is_judged_by_what_was_opened(home: Path) -> None:
    """What takes its place afterwards is not what the key is read from."""
    key = user_key(home)
    folder = private.open_folder(home)
    try:
        home.rename(home.with_name("moved"))
        home.mkdir(0o700)
        (home / "signing.key").write_bytes(b"another key, of whoever made it")
        (home / "signing.key").chmod(0o600)
        assert private.read_secret(folder, "signing.key", home / "signing.key") == key
    finally:
        os.close(folder)
