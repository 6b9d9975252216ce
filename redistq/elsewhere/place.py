"""What a place is: how the program of its workers is started, and with what.

``Launch`` is one such program. The command that starts it holds no secret: server and signing key
are sent to its standard input, once what is there has been found to fit.
"""

from __future__ import annotations

import json
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from ..connection.address import Address
from ..errors import ConfigurationError
from ..protocol.options import seconds, shown
from ..system.private import is_loopback

Show = Literal["warnings", "all", "nothing"]
"""What of the logs over there is said here as it comes; all of it is kept."""
MARK = "@redistq "
"""What a report begins with: a login may print lines of its own."""
_VARIABLE = re.compile(r"[A-Za-z_]\w*")

# Any Python runs this, so that a wrong one can be named. No single quote and no "!" in it.
_BOOT = f"""\
import json, os, sys
line = b""
while not line.endswith(b"\\n"):
    byte = os.read(0, 1)
    if not byte:
        sys.exit(0)
    line += byte
first = json.loads(line.decode())
def report(**what):
    os.write(1, ("\\n{MARK}" + json.dumps(what) + "\\n").encode())
os.environ.update(first["env"])
try:
    if first["folder"]:
        os.chdir(os.path.expanduser(first["folder"]))
except OSError as error:
    report(failure="its folder: " + str(error))
    sys.exit(1)
report(python=list(sys.version_info[:3]), program=sys.executable)
os.execv(sys.executable, [sys.executable, "-u", "-m", "redistq.elsewhere.there"])
"""


@dataclass(frozen=True, slots=True)
class Launch:
    """One program over there: the command that starts it here, and what is told it at first."""

    name: str
    """What people call it: a host, or a job."""
    command: list[str]
    address: Address
    """Where the server is, seen from there."""
    socket: str = ""
    """A socket over there that leads to the server; removed at the end."""


class Place(ABC):
    """Where workers are started that are not on this machine."""

    kind = "elsewhere"

    def __init__(
        self,
        *,
        python: str,
        folder: str | None,
        env: Mapping[str, str] | None,
        url: str | None,
        timeout: float,
        show: Show,
    ) -> None:
        if not isinstance(python, str) or not python:
            raise ConfigurationError(f"python is the path of an interpreter, not {shown(python)}")
        if show not in get_args(Show):
            raise ConfigurationError(f'show is "warnings", "all" or "nothing", not {shown(show)}')
        self.python = python
        self.folder = folder
        self.env = _checked_variables(env)
        self.address = None if url is None else Address(url)
        self.timeout = seconds("timeout", timeout, positive=True)
        self.show: Show = show

    @abstractmethod
    def launches(self, address: Address, processes: int | None) -> list[Launch]:
        """Return the programs to start, where the server is ``address`` from here; raises
        ConfigurationError for a server that cannot be reached from there."""

    def boot(self) -> list[str]:
        """Return the command that runs over there, word by word."""
        return [self.python, "-c", f"exec({json.dumps(_BOOT)})"]

    def boot_line(self) -> str:
        """Return the same for a shell, as ``ssh`` passes it on."""
        python, flag, program = self.boot()
        if python.startswith("~/"):  # the shell over there knows whose home it is
            return f"~/{shlex.quote(python[2:])} {flag} {shlex.quote(program)}"
        return shlex.join([python, flag, program])

    def address_from_there(self, address: Address, instead: str = "") -> Address:
        """Return the server's address for another machine: ``url``, or what it is here; raises
        ConfigurationError for one that means another server there, or none."""
        if self.address is not None:
            return self.address
        if only_here(address):
            what = "the embedded server" if address.embedded else f"the server at {address}"
            raise ConfigurationError(
                f"{what} can only be reached from this machine{instead}: use one that other "
                "machines reach, Client('redis://name:6379'), or say how it is called there: "
                f"{type(self).__name__}(..., url='redis://name:6379')"
            )
        return address


def only_here(address: Address) -> bool:
    """Return whether the address of a server means it on this machine alone."""
    parts = urlsplit(address.url)
    if parts.scheme == "unix":
        return True
    hosts = parts.netloc.rpartition("@")[2].split(",")
    return all(is_loopback(_host(host)) for host in hosts)


def _host(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] or "localhost"


def _checked_variables(env: Mapping[str, str] | None) -> dict[str, str]:
    given = dict(env or {})
    for name, value in given.items():
        if not (isinstance(name, str) and _VARIABLE.fullmatch(name) and isinstance(value, str)):
            raise ConfigurationError(
                f"env holds names of variables and their text, not {shown(name)}: {shown(value)}"
            )
    return given


def checked_path(what: str, path: str | Path | None) -> str | None:
    """Return the path of a file that is there, with ``~`` read; raises ConfigurationError."""
    if path is None:
        return None
    whole = Path(path).expanduser()
    if not whole.is_file():
        raise ConfigurationError(f"{what} is a file, and there is none at {whole}")
    return str(whole)
