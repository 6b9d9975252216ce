"""Workers as pods of one Job of Kubernetes, by its official client (redistq[kubernetes]).

Server and signing key are a Secret that the pods read as files; it belongs to the Job, and goes
with it. The pods run ``python -m redistq.worker`` until the Job is deleted or its time is over.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from ..connection.address import Address
from ..errors import ConfigurationError
from ..protocol.options import count
from ..worker.settings import WorkerSettings
from .place import Launch, Place, Show

MOUNT = "/var/run/redistq"
GRACE_S = 10
"""Seconds beyond the time for its tasks in which a pod has to end."""
LABEL = "app.kubernetes.io/name"
_IMAGE = re.compile(r"[\w./:@-]+")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PASSED = {
    "lease": "--lease",
    "result_ttl": "--result-ttl",
    "unknown_grace": "--unknown-grace",
    "max_recoveries": "--max-recoveries",
    "start_timeout": "--start-timeout",
    "low_share": "--low-share",
    "async_concurrency": "--async-concurrency",
    "max_tasks": "--max-tasks",
    "max_rss": "--max-rss",
    "blas_threads": "--blas-threads",
}
_OWN = frozenset({"queue", "queues", "group", "threads", "shutdown_timeout", "signing_key", "home"})


class Kubernetes(Place):
    """Pods for ``client.start_workers(2, on=Kubernetes("me/image:1", pods=3))``: two processes
    each.

    ``image`` has Python and the same redistq as here. ``namespace`` and ``context`` are those of
    your kubectl, or of the pod that this runs in. ``cpu`` and ``memory`` are what a pod requests
    ("500m", "2Gi"); ``env`` variables, ``modules`` those with handlers of named tasks,
    ``service_account`` the pods' account. ``url`` is the server's address as pods call it.
    ``lifetime`` is after how many seconds the Job ends by itself: a program that is killed leaves
    its pods until then. ``timeout`` is how long pods may take to run, ``show`` what of their logs
    is said here.
    """

    kind = "kubernetes"

    def __init__(
        self,
        image: str,
        *,
        pods: int = 1,
        namespace: str | None = None,
        context: str | None = None,
        cpu: str | None = None,
        memory: str | None = None,
        service_account: str | None = None,
        modules: tuple[str, ...] = (),
        python: str = "python",
        folder: str | None = None,
        env: Mapping[str, str] | None = None,
        url: str | None = None,
        lifetime: int = 86_400,
        timeout: float = 300.0,
        show: Show = "warnings",
    ) -> None:
        super().__init__(python=python, folder=folder, env=env, url=url, timeout=timeout, show=show)
        if not isinstance(image, str) or not _IMAGE.fullmatch(image):
            raise ConfigurationError(f"image names a container's image, not {image!r}")
        if namespace is not None and not _NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(f"namespace is a name of Kubernetes, not {namespace!r}")
        self.image = image
        self.pods = count("pods", pods, least=1, most=10_000)
        self.lifetime = count("lifetime", lifetime, least=1, most=10**8)
        self.namespace = namespace
        self.context = context
        self._requests = {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v is not None}
        self._account = service_account
        self._modules = tuple(modules)

    def launches(self, address: Address, processes: int | None) -> list[Launch]:
        """There is no program to start here: see ``manifests``."""
        return []

    def manifests(
        self, name: str, address: Address, settings: WorkerSettings, processes: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the Secret and the Job of that name. Raises ConfigurationError for a server that
        pods cannot reach, and for settings that the worker's command does not take."""
        there = self.address_from_there(address)
        metadata = {"name": name, "labels": {LABEL: name}}
        key = bytes.fromhex(settings.signing_key or "")
        if key != key.strip():
            raise ConfigurationError("a signing key for pods neither begins nor ends with blanks")
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "data": {"url": _encoded(there.url.encode()), "key": _encoded(key)},
        }
        return secret, {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata,
            "spec": {
                "parallelism": self.pods,
                "backoffLimit": 6,
                "activeDeadlineSeconds": self.lifetime,
                "ttlSecondsAfterFinished": 300,
                "template": {
                    "metadata": {"labels": {LABEL: name}},
                    "spec": self._pod(name, settings, processes),
                },
            },
        }

    def _pod(self, name: str, settings: WorkerSettings, processes: int) -> dict[str, Any]:
        env = {"REDISTQ_URL_FILE": f"{MOUNT}/url", **self.env}
        container: dict[str, Any] = {
            "name": "worker",
            "image": self.image,
            "command": [self.python, "-m", "redistq.worker", *self._modules],
            "args": _arguments(settings, processes),
            "env": [{"name": key, "value": value} for key, value in env.items()],
            "volumeMounts": [{"name": "redistq", "mountPath": MOUNT, "readOnly": True}],
        }
        if self.folder is not None:
            container["workingDir"] = self.folder
        if self._requests:
            container["resources"] = {"requests": self._requests}
        pod: dict[str, Any] = {
            "restartPolicy": "OnFailure",
            "terminationGracePeriodSeconds": int(settings.shutdown_timeout) + GRACE_S,
            "containers": [container],
            "volumes": [{"name": "redistq", "secret": {"secretName": name, "defaultMode": 0o444}}],
        }
        if self._account is not None:
            pod["serviceAccountName"] = self._account
        return pod

    def __repr__(self) -> str:
        return f"Kubernetes({self.image!r}, pods={self.pods})"


def _arguments(settings: WorkerSettings, processes: int) -> list[str]:
    """Return the options of the worker's command."""
    usual, given = WorkerSettings().as_dict(), settings.as_dict()
    words = ["--signing-key-file", f"{MOUNT}/key", "--processes", str(processes)]
    words += ["--threads", str(settings.threads), "--group", settings.group]
    words += ["--shutdown-timeout", f"{settings.shutdown_timeout:g}"]
    for queue in settings.queues:
        words += ["--queue", queue]
    for option, value in given.items():
        if option in _OWN or value == usual[option]:
            continue
        if option not in _PASSED:
            raise ConfigurationError(f"{option} cannot be set for workers on Kubernetes")
        words += [_PASSED[option], str(value)]
    return words


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
