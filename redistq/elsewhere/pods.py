"""Pods: what ``client.start_workers(on=Kubernetes(...))`` returns."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from ..connection.address import Address
from ..display.notebook import say
from ..errors import ConfigurationError
from ..logger import logger
from ..protocol.options import wait_seconds
from ..system.interpreter import require
from ..worker.settings import WorkerSettings
from .kubernetes import LABEL, Kubernetes

log = logger("redistq.elsewhere")

POLL_S = 5.0
"""Seconds between two looks at the pods."""
LINES = 1000
"""Lines of a pod's log that ``logs`` returns."""
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""What a pod's own account has."""
_DEAD = ("Failed", "Unknown")


class Pods:
    """Worker processes in pods of one Job: ``processes``, ``running``, ``logs()``, ``stop()``."""

    def __init__(
        self,
        place: Kubernetes,
        address: Address,
        settings: WorkerSettings,
        processes: int | None,
        apis: tuple[Any, Any] | None = None,
    ) -> None:
        """``apis``: what talks to the cluster, the client's CoreV1Api and BatchV1Api."""
        self.place = place
        self.settings = settings
        self.faults: dict[str, str] = {}
        """Why pods ended that nobody had asked to, by their names."""
        self.name = f"redistq-{secrets.token_hex(4)}"
        """The name of the Job and of its Secret."""
        self._each = 1 if processes is None else processes
        self._manifests = place.manifests(self.name, address, settings, self._each)
        self.namespace = place.namespace or ""
        """Where they are in the cluster."""
        if apis is None:
            apis, namespace = _connect(place)
            self.namespace = self.namespace or namespace
        self._core, self._batch = apis
        self._running = 0
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self) -> Pods:
        """Make Secret and Job; returns when all pods run. Raises ConfigurationError when they do
        not in time: nothing is left then."""
        secret, job = self._manifests
        deadline = time.monotonic() + self.place.timeout
        try:
            self._core.create_namespaced_secret(self.namespace, secret)
            made = self._batch.create_namespaced_job(self.namespace, job)
            owner = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": self.name,
                "uid": made.metadata.uid,
            }
            self._core.patch_namespaced_secret(
                self.name, self.namespace, {"metadata": {"ownerReferences": [owner]}}
            )
            while self._look() < self.place.pods:
                if time.monotonic() > deadline or self.faults:
                    raise ConfigurationError(
                        f"{self._running} of {self.place.pods} pods run after waiting: "
                        f"{self._why() or 'kubectl describe job ' + self.name}"
                    )
                self._stopped.wait(min(1.0, POLL_S))
        except BaseException:  # whatever it is, an interrupt too: no pod is left behind
            self.stop(0)
            raise
        self._watcher = threading.Thread(
            target=self._watch, name="redistq-elsewhere-pods", daemon=True
        )
        self._watcher.start()
        return self

    def _pods(self) -> list[Any]:
        found = self._core.list_namespaced_pod(
            self.namespace, label_selector=f"{LABEL}={self.name}"
        )
        return list(found.items)

    def _look(self) -> int:
        """Return how many pods run, and take note of those that have died."""
        pods = self._pods()
        self._running = sum(pod.status.phase == "Running" for pod in pods)
        for pod in pods:
            name, why = pod.metadata.name, _why_dead(pod)
            if why and name not in self.faults and not self._stopped.is_set():
                self.faults[name] = why
                say(f"the workers of pod {name} have ended: {why}", log)
        return self._running

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_S):
            with contextlib.suppress(Exception):  # the cluster does not answer: the next time
                self._look()

    def _why(self) -> str:
        return "; ".join(f"{name}: {why}" for name, why in self.faults.items())

    @property
    def running(self) -> bool:
        """Whether any of them ran when it was last looked."""
        return not self._stopped.is_set() and self._running > 0

    @property
    def processes(self) -> int:
        """How many worker processes run, in all pods together."""
        return self._running * self._each if self.running else 0

    def logs(self, machine: str | None = None) -> list[str]:
        """Return what they have logged and printed last, of one pod or of all: of these each line
        begins with its pod's name."""
        lines = []
        for pod in self._pods():
            name = pod.metadata.name
            if machine not in (None, name):
                continue
            text = self._core.read_namespaced_pod_log(name, self.namespace, tail_lines=LINES)
            lines += [line if machine else f"{name}: {line}" for line in text.splitlines()]
        return lines

    def stop(self, timeout: float | None = None) -> bool:
        """Delete the Job: its pods drain within ``timeout`` seconds (default:
        ``shutdown_timeout``), and the Secret goes with it. Return whether it was deleted."""
        asked = wait_seconds(timeout)
        patience = self.settings.shutdown_timeout if asked is None else asked
        self._stopped.set()
        gone = True
        for delete, options in (
            (self._batch.delete_namespaced_job, {"propagation_policy": "Foreground"}),
            (self._core.delete_namespaced_secret, {}),
        ):
            try:
                delete(self.name, self.namespace, grace_period_seconds=int(patience), **options)
            except Exception as error:  # of the client, which is imported where it is used
                gone = gone and getattr(error, "status", None) == 404
        watcher = self._watcher
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join(POLL_S)
        return gone

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._stopped.is_set() else f"{self._running} pods run"
        why = f", ended: {self._why()}" if self.faults else ""
        return f"<Pods of job {self.name!r}: {state}{why}>"


def _connect(place: Kubernetes) -> tuple[tuple[Any, Any], str]:
    """Return what talks to the cluster of this pod, or of kubectl, and the namespace there."""
    client = require("kubernetes.client", "kubernetes", "workers on Kubernetes")
    config = require("kubernetes.config", "kubernetes", "workers on Kubernetes")
    namespace = "default"
    try:
        if place.context is None and _OWN_NAMESPACE.is_file():
            config.load_incluster_config()
            namespace = _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
        else:
            config.load_kube_config(context=place.context)
            contexts, current = config.list_kube_config_contexts()
            wanted = place.context or current["name"]
            (found,) = (one for one in contexts if one["name"] == wanted)
            namespace = found["context"].get("namespace") or namespace
    except Exception as error:  # of the client, which is imported where it is used
        raise ConfigurationError(
            f"no cluster is configured here ({error}): kubectl config view shows what is"
        ) from error
    return (client.CoreV1Api(), client.BatchV1Api()), namespace


def _why_dead(pod: Any) -> str:
    status = pod.status
    if status.phase in _DEAD:
        return str(status.message or status.reason or status.phase)
    for container in status.container_statuses or ():
        waiting = container.state.waiting
        if waiting is not None and waiting.reason in (
            *("ErrImagePull", "ImagePullBackOff", "InvalidImageName"),
            *("CrashLoopBackOff", "CreateContainerConfigError"),
        ):
            return f"{waiting.reason}: {waiting.message or 'see kubectl describe pod'}"
    return ""
