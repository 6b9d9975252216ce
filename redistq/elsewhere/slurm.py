"""Workers as jobs of Slurm, each started by ``srun``: its end is the end of the job.

The login node and the compute nodes share folders, as clusters do: workers start in the client's
folder with its Python, unless others are named.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping

from ..connection.address import Address
from ..errors import ConfigurationError
from ..protocol.options import count
from .place import Launch, Place, Show


class Slurm(Place):
    """Jobs for ``client.start_workers(4, on=Slurm(jobs=2))``: two jobs of four processes each.

    Each job has one node and a processor for each process. ``options`` are what ``srun`` takes:
    ``["--partition=long", "--mem=8G", "--gpus=1"]``. ``python`` is the interpreter there (this
    one), ``folder`` where workers start (this one), ``env`` variables for them; ``url`` is the
    server's address as nodes call it. ``timeout`` is how long jobs may wait for their turn.
    ``show`` says what of the logs is said here: "warnings", "all" or "nothing".
    """

    kind = "slurm"

    def __init__(
        self,
        jobs: int = 1,
        *,
        options: Iterable[str] = (),
        python: str | None = None,
        folder: str | None = None,
        env: Mapping[str, str] | None = None,
        url: str | None = None,
        timeout: float = 600.0,
        show: Show = "warnings",
        srun: str = "srun",
    ) -> None:
        super().__init__(
            python=python or sys.executable,
            folder=folder or os.getcwd(),
            env=env,
            url=url,
            timeout=timeout,
            show=show,
        )
        self.jobs = count("jobs", jobs, least=1, most=10_000)
        if isinstance(options, str):
            raise ConfigurationError(f"options is a list of words: [{options!r}]")
        self._options = list(options)
        self._srun = srun

    def launches(self, address: Address, processes: int | None) -> list[Launch]:
        """Return one program a job."""
        program = shutil.which(self._srun)
        if program is None:
            raise ConfigurationError(
                f"there is no program {self._srun!r} here: run this on a login node of the "
                "cluster, or pass Slurm(..., srun='/path/to/srun')"
            )
        there = self.address_from_there(address)
        words = [program, "--job-name=redistq", "--nodes=1", "--ntasks=1", "--unbuffered"]
        if processes is not None:
            words.append(f"--cpus-per-task={max(processes, 1)}")
        # Nodes may lack this folder: workers go to theirs by themselves, and say what is wrong.
        words += ["--chdir=/", *self._options, *self.boot()]
        return [Launch(f"job {n + 1}", words, there) for n in range(self.jobs)]

    def __repr__(self) -> str:
        return f"Slurm(jobs={self.jobs})"
