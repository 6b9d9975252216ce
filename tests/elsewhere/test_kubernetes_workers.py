"""Workers in pods: the manifests by Kubernetes' own schemas, and what is asked of the cluster."""

from __future__ import annotations

import base64
import sys
from types import SimpleNamespace as Thing
from typing import Any

import kubernetes_validate
import pytest
from support.clients import KEY

from redistq import Client, ConfigurationError, Kubernetes
from redistq.cli.worker_options import parser
from redistq.connection.address import Address
from redistq.elsewhere import pods
from redistq.elsewhere.pods import Pods
from redistq.worker.settings import WorkerSettings

SERVER = Address("redis://:secret@queue:6379/0")
SETTINGS = WorkerSettings(
    queues=("tasks!high", "tasks"), threads=2, max_rss="1GB", signing_key=KEY.encode().hex()
)


def place(**options: Any) -> Kubernetes:
    return Kubernetes("me/image:1", **{"namespace": "science", "timeout": 10, **options})


def test_manifests_are_valid() -> None:
    """Strictly, by old and new schemas, with every option and with none."""
    full = place(
        pods=3,
        cpu="500m",
        memory="2Gi",
        service_account="worker",
        folder="/srv",
        env={"A": "b"},
        modules=("jobs",),
    )
    for one in (place(), full):
        for document in one.manifests("redistq-1", SERVER, SETTINGS, 2):
            for version in ("1.29", kubernetes_validate.latest_version()):
                kubernetes_validate.validate(document, version, strict=True)


def test_secrets_are_in_the_secret_alone() -> None:
    """Neither key nor URL stands in the Job, and the command takes its words."""
    secret, job = place().manifests("redistq-1", SERVER, SETTINGS, 2)
    assert base64.b64decode(secret["data"]["key"]).decode() == KEY
    assert base64.b64decode(secret["data"]["url"]).decode() == SERVER.url
    assert "secret@" not in str(job)
    assert KEY not in str(job)
    assert KEY.encode().hex() not in str(job)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    args = parser().parse_args([*container["command"][3:], *container["args"]])
    assert (args.processes, args.threads, args.queue) == (2, 2, ["tasks!high", "tasks"])
    assert args.max_rss == str(SETTINGS.max_rss)


def test_what_pods_cannot_have_is_refused() -> None:
    """A server of this machine, and a setting that the command does not take."""
    with pytest.raises(ConfigurationError, match=r"can only be reached from this machine"):
        place().manifests("redistq-1", Address("redis://localhost"), SETTINGS, 1)
    settings = WorkerSettings(history_max=5, signing_key=SETTINGS.signing_key)
    with pytest.raises(ConfigurationError, match=r"history_max cannot be set"):
        place().manifests("redistq-1", SERVER, settings, 1)
    with pytest.raises(ConfigurationError, match=r"image names"):
        Kubernetes("two words")


def test_without_the_package(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install the client, and nothing was started."""
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    with Client(url, signing_key=KEY) as client:
        with pytest.raises(ImportError, match=r"pip install redistq\[kubernetes\]"):
            client.start_workers(1, on=place(url="redis://queue"))
        assert not client.has_workers()


class Cluster:
    """What a cluster would do, by the names of the official client's two interfaces."""

    def __init__(self, phase: str = "Running") -> None:
        self.calls: list[str] = []
        self.phase = phase
        self.reason = ""

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **_: Any) -> Any:
            self.calls.append(name)
            return Thing(metadata=Thing(uid="7"))

        return call

    def list_namespaced_pod(self, namespace: str, label_selector: str) -> Any:
        status = Thing(phase=self.phase, message=None, reason=self.reason, container_statuses=None)
        return Thing(items=[Thing(metadata=Thing(name="pod-1"), status=status)])

    def read_namespaced_pod_log(self, name: str, namespace: str, tail_lines: int) -> str:
        return "ready\nsteady\n"


def test_the_life_of_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made, looked at, read, their death said, deleted with their Secret."""
    monkeypatch.setattr(pods, "POLL_S", 0.01)
    said: list[str] = []
    monkeypatch.setattr(pods, "say", lambda text, *_: said.append(text))
    cluster = Cluster()
    workers = Pods(place(), SERVER, SETTINGS, 2, (cluster, cluster)).start()
    assert (workers.running, workers.processes) == (True, 2)
    assert workers.logs() == ["pod-1: ready", "pod-1: steady"]
    cluster.phase, cluster.reason = "Failed", "Evicted"
    workers._look()
    assert said == ["the workers of pod pod-1 have ended: Evicted"]
    assert not workers.running
    assert workers.stop() is True
    assert cluster.calls == [
        *("create_namespaced_secret", "create_namespaced_job", "patch_namespaced_secret"),
        *("delete_namespaced_job", "delete_namespaced_secret"),
    ]


def test_pods_that_do_not_run_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up, or one has died, Job and Secret are deleted and the reason is told."""
    monkeypatch.setattr(pods, "say", lambda *_: None)
    cluster = Cluster("Failed")
    cluster.reason = "NoMemory"
    with pytest.raises(ConfigurationError, match=r"pod-1: NoMemory"):
        Pods(place(), SERVER, SETTINGS, 2, (cluster, cluster)).start()
    assert "delete_namespaced_secret" in cluster.calls


def test_the_names_are_those_of_the_official_client() -> None:
    """Where it is installed: every call that is made of it exists."""
    client = pytest.importorskip("kubernetes.client")
    for name in ("create_namespaced_secret", "patch_namespaced_secret", "list_namespaced_pod"):
        assert hasattr(client.CoreV1Api, name)
    for name in ("read_namespaced_pod_log", "delete_namespaced_secret"):
        assert hasattr(client.CoreV1Api, name)
    for name in ("create_namespaced_job", "delete_namespaced_job"):
        assert hasattr(client.BatchV1Api, name)
