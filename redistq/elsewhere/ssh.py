"""Workers on hosts that OpenSSH's ``ssh`` reaches, with whatever your configuration says of them.

A server that only this machine can reach (the embedded one, a socket, localhost) is offered over
there by a reverse tunnel, as a socket that only the same user can open.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ..connection.address import Address
from ..errors import ConfigurationError
from ..protocol.options import shown
from .place import Launch, Place, Show, checked_path, only_here

_OURS = {
    "BatchMode": "yes",  # nobody could answer a question
    "ControlMaster": "no",  # a shared connection would end with another's, or live on after ours
    "ControlPath": "none",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ExitOnForwardFailure": "yes",
}


class SSH(Place):
    """Hosts for ``client.start_workers(4, on=SSH(["host1", "user@host2"]))``: four processes each.

    Hosts are what ``ssh`` takes: names, ``user@name``, and names of your ``~/.ssh/config``. You
    must be able to log in without a question (a key, or an agent), to hosts whose keys are known.

    ``port``, ``identity`` (a private key's file), ``config`` (a file instead of ``~/.ssh/config``)
    and ``options`` (``{"ProxyJump": "gate"}``, any of ``ssh_config``) hold for all hosts.
    ``python`` is the interpreter there, which has redistq; ``folder`` where the workers start (the
    login's home); ``env`` variables for them. ``url`` is the server's address as it is called
    there; ``tunnel`` leads there through the connection (default: where the server can only be
    reached from here). ``timeout`` is how long a host may take to be ready. ``show`` says what of
    the logs is said here: "warnings", "all" or "nothing".
    """

    kind = "ssh"

    def __init__(
        self,
        hosts: str | Iterable[str],
        *,
        port: int | None = None,
        identity: str | Path | None = None,
        config: str | Path | None = None,
        options: Mapping[str, str] | None = None,
        python: str = "python3",
        folder: str | None = None,
        env: Mapping[str, str] | None = None,
        url: str | None = None,
        tunnel: bool | None = None,
        timeout: float = 60.0,
        show: Show = "warnings",
        ssh: str = "ssh",
    ) -> None:
        super().__init__(python=python, folder=folder, env=env, url=url, timeout=timeout, show=show)
        self.hosts = _checked_hosts(hosts)
        if port is not None and not (isinstance(port, int) and 0 < port < 65536):
            raise ConfigurationError(f"port is a number from 1 to 65535, not {shown(port)}")
        if tunnel and url is not None:
            raise ConfigurationError("a tunnel leads to the client's server: leave out url")
        self._port = port
        self._identity = checked_path("identity", identity)
        self._config = checked_path("config", config)
        self._options = dict(options or {})
        self._tunnel = tunnel
        self._ssh = ssh

    def launches(self, address: Address, processes: int | None) -> list[Launch]:
        """Return one program a host."""
        program = shutil.which(self._ssh)
        if program is None:
            raise ConfigurationError(
                f"there is no program {self._ssh!r} here: install OpenSSH's client, or pass "
                "SSH(..., ssh='/path/to/ssh')"
            )
        tunnel = self._tunnel
        if tunnel is None:
            tunnel = self.address is None and only_here(address)
        found = []
        for host in self.hosts:
            if tunnel:
                socket = f"/tmp/redistq-{secrets.token_hex(8)}.sock"
                there = _through(address, socket)
                forward = ["-R", f"{socket}:{_end_of_tunnel(address)}"]
            else:
                socket, forward = "", []
                there = self.address_from_there(address, ", and tunnel=False was set")
            found.append(Launch(host, self._command(program, host, forward), there, socket))
        return found

    def _command(self, program: str, host: str, forward: list[str]) -> list[str]:
        options = {**_OURS, **({} if forward else {"ClearAllForwardings": "yes"})}
        options = {**options, **self._options}
        words = [program, "-T"]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        if self._port is not None:
            words += ["-p", str(self._port)]
        if self._identity is not None:
            words += ["-i", self._identity]
        if self._config is not None:
            words += ["-F", self._config]
        return [*words, *forward, "--", host, self.boot_line()]

    def __repr__(self) -> str:
        return f"SSH({self.hosts!r})"


def _checked_hosts(hosts: str | Iterable[str]) -> list[str]:
    found = [hosts] if isinstance(hosts, str) else list(hosts)
    for host in found:
        if not isinstance(host, str) or not host or host.startswith("-") or host.split() != [host]:
            raise ConfigurationError(f"a host is a name such as user@host1, not {shown(host)}")
    if not found:
        raise ConfigurationError("SSH takes the names of hosts: SSH(['host1', 'user@host2'])")
    return found


def _end_of_tunnel(address: Address) -> str:
    """Return where ``ssh`` finds the server here."""
    parts = urlsplit(address.url)
    if parts.scheme == "unix":
        return unquote(parts.path)
    if parts.scheme != "redis":
        raise ConfigurationError(
            f"no tunnel can lead to the server at {address}: only to redis:// and unix://, since "
            "TLS, Sentinel and Cluster name hosts of their own; use an address that others reach"
        )
    host = parts.hostname or "localhost"
    return f"[{host}]:{parts.port or 6379}" if ":" in host else f"{host}:{parts.port or 6379}"


def _through(address: Address, socket: str) -> Address:
    """Return the address of the tunnel's other end: the same user, password and database."""
    parts = urlsplit(address.url)
    secret, mark, _ = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query))
    if parts.scheme == "redis" and (database := parts.path.strip("/")):
        options.setdefault("db", database)
    query = f"?{urlencode(options)}" if options else ""
    return Address(f"unix://{secret}{mark}{socket}{query}")
