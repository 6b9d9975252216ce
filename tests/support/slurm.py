"""A cluster of one node: munged, slurmctld and slurmd of Debian, for one folder, as root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from support.sshd import free_port

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sinfo")


class Slurm:
    """The cluster; ``SLURM_CONF`` names its ``config``."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
        if missing:
            pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
        if os.geteuid() != 0:
            pytest.skip("a cluster of one's own is started by root alone")
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.chmod(0o755)
        node = socket.gethostname().partition(".")[0]
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.config = folder / "slurm.conf"
        self.config.write_text(
            f"ClusterName=test\nSlurmctldHost={node}(127.0.0.1)\nSlurmUser=root\n"
            f"SlurmctldPort={free_port()}\nSlurmdPort={free_port()}\n"
            f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.sock\n"
            f"CredType=cred/munge\nStateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\n"
            f"SlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/slurmd.pid\n"
            f"SlurmctldLogFile={folder}/ctld.log\nSlurmdLogFile={folder}/slurmd.log\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\n"
            "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n"
            "SelectType=select/cons_tres\nReturnToService=2\nSwitchType=switch/none\n"
            f"NodeName={node} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN\n"
            f"PartitionName=all Nodes={node} Default=YES MaxTime=INFINITE State=UP\n"
        )
        for name in ("state", "spool"):
            (folder / name).mkdir()
        files = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "log", "pid", "seed")]
        try:
            self._run("munged", "--foreground", "--force", f"--socket={folder}/munge.sock", *files)
            self._wait((folder / "munge.sock").exists, "munged's socket")
            self._run("slurmctld", "-D", "-f", str(self.config))
            self._run("slurmd", "-D", "-f", str(self.config), "-N", node)
            self._wait(self._is_idle, "a node that is ready")
        except BaseException:  # whatever it is, an interrupt too: no process is left behind
            self.close()
            raise

    def environment(self) -> dict[str, str]:
        """Return what makes Slurm's commands use this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.config)}

    def jobs(self) -> list[str]:
        """Return the states of the jobs that there are."""
        return self._ask("squeue", "-h", "-o", "%T").split()

    def cancel_all(self) -> None:
        """Cancel every job."""
        self._ask("scancel", "--name=redistq")

    def _ask(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment())
        return done.stdout

    def _is_idle(self) -> bool:
        return "idle" in self._ask("sinfo", "-h", "-o", "%T")

    def _run(self, name: str, *words: str) -> None:
        program = shutil.which(name, path=PATH)
        assert program is not None
        with open(self._folder / f"{name}.out", "wb") as out:
            self._processes.append(
                subprocess.Popen(
                    [program, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=self.environment(),
                )
            )

    def _wait(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline or any(p.poll() is not None for p in self._processes):
                logs = [path.read_text()[-800:] for path in self._folder.glob("*.out")]
                pytest.skip(f"Slurm does not run here, no {what}: {' '.join(logs)}")
            time.sleep(0.05)

    def close(self) -> None:
        """End its processes, the last one first."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
