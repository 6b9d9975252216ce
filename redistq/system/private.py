"""What is this user's alone: folders and files that no one else can have put there, and names under
which a web server of ours is asked for.

Folders and files are used for the signing key, the embedded server's folder, and files that name a
key or an address. What others may write is refused, for it is not ours but theirs: one who chooses
the key runs code here. A folder is judged by the descriptor it was opened with, and so is each file
in it, which is never a symbolic link: between looking and opening nothing can be exchanged.

Root is no exception. It takes nothing from other users; other users take things from root.

The names are used by the dashboard's page and by the figures for Prometheus. A page of any web
site, open in a browser here, can reach every port of this machine, and the site's owner can
make its name point here (DNS rebinding): then the browser lets the page read the answers. Such a
request names the site in its ``Host``.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigurationError

POSIX = os.name == "posix"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
ENV_HOME = "REDISTQ_HOME"
ENV_KEY = "REDISTQ_SIGNING_KEY"
"""The signing key, for where no file shall hold it."""


def whole(folder: Path) -> Path:
    """Return a folder's whole path, without symbolic links; raises ConfigurationError for links
    that other users have made on the way, and where ``~`` means nothing."""
    try:
        if POSIX:
            _check_links(folder.expanduser().absolute())
        return folder.expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise ConfigurationError(
            f"{folder} cannot be found ({error}): set {ENV_HOME} to a folder of your own"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder for this user alone, where there is none, and check one that is there.

    Raises ConfigurationError when others could write to it or exchange it, with the command that
    mends it, and OSError when it cannot be made.
    """
    missing = []
    for part in (folder, *folder.parents):
        if os.path.lexists(part):
            break
        missing.append(part)
    for part in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o700)
            if POSIX:  # whatever the umask took away
                os.chmod(part, 0o700)
    if POSIX:
        os.close(open_folder(folder))


def open_folder(folder: Path) -> int:
    """Return a descriptor of a folder that is this user's alone; -1 where there is no such thing.

    Raises ConfigurationError when it is not, with the command that mends it.
    """
    if not POSIX:
        return -1
    _check_way(folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)
    except OSError as error:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ConfigurationError(
                f"{folder} is no folder of its own: remove it, or set {ENV_HOME} to another"
            ) from error
        raise
    try:
        status = os.fstat(descriptor)
        _check_owner(folder, status)
        if status.st_mode & 0o022:
            raise ConfigurationError(
                f"others can write to {folder}, and so choose what runs here: chmod 700 {folder}"
            )
    except BaseException:  # whatever it is, an interrupt too: the descriptor is closed
        os.close(descriptor)
        raise
    return descriptor


def read_secret(folder: int, name: str, path: Path) -> bytes:
    """Return what a file of an open folder holds that no one else may read or write.

    Raises FileNotFoundError, and ConfigurationError for one that others can get at.
    """
    descriptor = _open(folder, name, path, os.O_RDONLY)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if POSIX and status.st_mode & 0o077:
            raise ConfigurationError(
                f"{path} is a secret that others can {_what_others_can(status)}; delete it, and a "
                f"new one is made, or if nobody has seen it: chmod 600 {path}"
            )
        return file.read()


def make_secret(folder: int, name: str, path: Path, content: bytes) -> None:
    """Write a new file in an open folder, whole or not at all; FileExistsError if it is there."""
    at = {"dir_fd": folder} if folder >= 0 else {}
    draft = f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    draft = draft if at else str(path.with_name(draft))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
    with open(os.open(draft, flags, 0o600, **at), "wb") as file:
        if POSIX:
            os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        if at:
            os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        else:
            os.link(draft, path)
    finally:
        os.unlink(draft, **at)


def read_given(path: Path, what: str) -> bytes:
    """Return what a file holds that a setting names: links are followed, as in mounted secrets, and
    others may read it. Raises ConfigurationError when it cannot be read or others can write it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if POSIX:
                _check_owner(path, status, "")
                if status.st_mode & 0o022:
                    raise ConfigurationError(
                        f"others can write to {path}, and so choose {what}: chmod go-w {path}"
                    )
            return file.read()
    except OSError as error:
        raise ConfigurationError(f"{what} in {path} cannot be read: {error}") from error


def _open(folder: int, name: str, path: Path, flags: int) -> int:
    try:
        if folder < 0:
            return os.open(path, flags | getattr(os, "O_BINARY", 0))
        descriptor = os.open(name, flags | _NO_LINK | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror}): a symbolic link, or somebody else's? "
            "remove it, and a new one is made"
        ) from error
    try:
        status = os.fstat(descriptor)
        _check_owner(path, status)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path} is no file: remove it, and a new one is made")
    except BaseException:  # whatever it is, an interrupt too: the descriptor is closed
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(
    path: Path, status: os.stat_result, instead: str = f", or set {ENV_HOME} to another folder"
) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"{path} belongs to user {status.st_uid}, who could so choose what runs here, and you "
            f"are user {os.geteuid()}: chown {os.geteuid()} {path}{instead}"
        )


def _check_way(folder: Path) -> None:
    """Refuse a folder on the way where all can write: it could be exchanged."""
    for part in folder.parents:
        mode = os.lstat(part).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ConfigurationError(
                f"everybody can write to {part}, and so exchange {folder}: chmod o-w {part}, or "
                f"set {ENV_HOME} to a folder elsewhere"
            )


def _check_links(path: Path) -> None:
    """Links on the way are ours or root's; the way is followed as the kernel does."""
    for _ in range(40):
        for part in (*reversed(path.parents), path):
            try:
                status = os.lstat(part)
            except OSError:
                return  # what is not there yet is no link
            if stat.S_ISLNK(status.st_mode):
                _check_owner(part, status)
                target = os.path.normpath(part.parent / os.readlink(part))
                path = Path(target) / path.relative_to(part)
                break
        else:
            return


def _what_others_can(status: os.stat_result) -> str:
    return "write" if status.st_mode & 0o022 else "read"


# -- names of a web server -------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def named_here(host: str, more: Sequence[str] = ()) -> Callable[[str], bool]:
    """Return which names in a request mean a server that listens at ``host``.

    One that only this machine can reach has its own names. One that others can reach has every IP
    address too: only a name can be made to point here by the owner of a web site.
    """
    local = is_loopback(host)
    names = {"localhost", host, *more}
    if not local:
        names |= {socket.gethostname(), socket.getfqdn()}
    names = {_plain(name) for name in names}

    @functools.lru_cache(1000)
    def is_own_name(name: str) -> bool:
        name = _plain(name)
        if name in names:
            return True
        try:
            ip = ipaddress.ip_address(name)
        except ValueError:
            return False
        return ip.is_loopback or not local

    return is_own_name


def host_in(header: str) -> str:
    """Return the name in a ``Host`` header, without its port."""
    if header.startswith("["):
        return header.partition("]")[0][1:]
    return header.partition(":")[0]


def _plain(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")
