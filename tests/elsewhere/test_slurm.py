"""Workers as Slurm jobs, on a real cluster of one node where it can be started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clients import KEY
from support.slurm import Slurm as Cluster
from support.workers import until

import redistq
from redistq import Client, ConfigurationError, Slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all of these tests."""
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    yield started
    started.close()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A client without workers."""
    client = Client(url, signing_key=KEY)
    yield client
    client.close()


def job_name() -> tuple[int, str]:
    return os.getpid(), os.environ.get("SLURM_JOB_NAME", "")


def test_calls_run_in_jobs(
    client: Client, url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job runs calls, is over when it is stopped, and its end by others is said."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.config))
    said: list[str] = []
    monkeypatch.setattr("redistq.elsewhere.workers.say", lambda text, *_: said.append(text))
    place = Slurm(url=url, env={"PYTHONPATH": str(Path(redistq.__file__).parents[1])}, timeout=60)
    workers = client.start_workers(1, on=place)
    assert client.submit(job_name).result(30)[1] == "redistq"
    assert cluster.jobs() == ["RUNNING"]
    assert workers.stop() is True
    until(lambda: "RUNNING" not in cluster.jobs(), "the end of the job", 20)

    workers = client.start_workers(1, on=place)
    cluster.cancel_all()
    until(lambda: workers.faults, "the end of the job to be noticed", 60)
    until(lambda: any("the workers on job 1 have ended" in line for line in said), "a line said")
    assert not workers.running


def test_a_server_of_this_machine_is_refused(client: Client) -> None:
    """Nodes cannot reach localhost: said before any job is made."""
    with pytest.raises(ConfigurationError, match=r"can only be reached from this machine"):
        client.start_workers(1, on=Slurm(srun="true"))


def test_without_srun(client: Client) -> None:
    """A machine without Slurm says so."""
    with pytest.raises(ConfigurationError, match=r"no program 'no-srun' here"):
        client.start_workers(1, on=Slurm(srun="no-srun"))


def test_the_command_of_a_job(client: Client) -> None:
    """A processor for each process, and the user's own options behind ours."""
    place = Slurm(jobs=2, options=["--mem=1G"], url="redis://queue", srun="true")
    first, second = place.launches(client.address, 4)
    assert (first.name, second.name) == ("job 1", "job 2")
    words = first.command
    assert "--cpus-per-task=4" in words
    assert words.index("--mem=1G") < words.index("-c")
    assert str(first.address) == "redis://queue"
    with pytest.raises(ConfigurationError, match=r"options is a list"):
        Slurm(options="--mem=1G")
