"""A real sshd of OpenSSH on a free port of loopback, run as the current user, for one folder.

Used by the tests of workers on other machines. Host key, login key and configuration are its own:
neither this machine's sshd nor the user's ``~/.ssh`` takes part.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PRIVILEGES = Path("/run/sshd")
"""Where sshd of root wants to lock its helpers up; packages make it when the service starts."""


class Sshd:
    """One sshd, and what ``SSH(...)`` needs to log in there without a question."""

    def __init__(self, folder: Path) -> None:
        if SSHD is None or shutil.which("ssh-keygen") is None:
            pytest.skip("OpenSSH's server is not installed: apt-get install openssh-server")
        if os.geteuid() == 0:
            PRIVILEGES.mkdir(exist_ok=True)
        self._folder = folder
        self.port = free_port()
        for name in ("host", "login"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
                stdin=subprocess.DEVNULL,
            )
        keys = folder / "authorized_keys"
        shutil.copy(folder / "login.pub", keys)
        keys.chmod(0o600)
        public = (folder / "host.pub").read_text().split()
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {keys}\nPidFile {folder}/pid\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        )
        (folder / "config").write_text("")
        self._log = folder / "log"
        self._process = subprocess.Popen(
            [SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(self._log)],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, "sshd does not listen"
                time.sleep(0.02)

    @property
    def host(self) -> str:
        """Whom to log in as, and where."""
        return f"{getpass.getuser()}@127.0.0.1"

    def login(self, **options: Any) -> dict[str, Any]:
        """Return the keywords of ``SSH(sshd.host, ...)``."""
        more = {"UserKnownHostsFile": str(self._folder / "known"), **options.pop("options", {})}
        return {
            "port": self.port,
            "identity": self._folder / "login",
            "config": self._folder / "config",
            "options": more,
            **options,
        }

    def sessions(self) -> list[int]:
        """Return the ids of the processes that serve a login."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def close(self) -> None:
        """End it; logins end with what they run."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)


def free_port() -> int:
    """A port of loopback that nobody listens at just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
