"""The manifests for Kubernetes are valid, and agree with the worker's options and the guide."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from redistq.cli.health import parser as health_parser
from redistq.cli.worker import parser
from redistq.cli.worker_options import settings_of
from redistq.monitor.scale import Scale
from redistq.worker.supervisor import KILL_GRACE_S

kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
LATEST = kubernetes_validate.latest_version()
OLDEST = "1.29"

SCALED_OBJECT = {
    # What KEDA's own definition asks of a ScaledObject with a metrics-api trigger.
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["scaleTargetRef", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {"type": "object", "required": ["name"]},
                "minReplicaCount": {"type": "integer", "minimum": 0},
                "maxReplicaCount": {"type": "integer", "minimum": 1},
                "pollingInterval": {"type": "integer", "minimum": 1},
                "cooldownPeriod": {"type": "integer", "minimum": 0},
                "initialCooldownPeriod": {"type": "integer", "minimum": 0},
                "fallback": {
                    "type": "object",
                    "required": ["failureThreshold", "replicas"],
                    "additionalProperties": False,
                    "properties": {
                        "failureThreshold": {"type": "integer"},
                        "replicas": {"type": "integer"},
                        "behavior": {"type": "string"},
                    },
                },
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "metadata"],
                        "properties": {
                            "type": {"const": "metrics-api"},
                            "metricType": {"enum": ["AverageValue", "Value"]},
                            "metadata": {
                                "type": "object",
                                "required": ["url", "valueLocation", "targetValue"],
                                "additionalProperties": {"type": "string"},
                                "properties": {"format": {"enum": ["json", "prometheus", "xml"]}},
                            },
                        },
                    },
                },
            },
        },
    },
}


def documents() -> list[tuple[str, dict[str, Any]]]:
    """Every document of every manifest, by its file's name."""
    return [
        (path.name, document)
        for path in MANIFESTS
        for document in yaml.safe_load_all(path.read_text())
    ]


def manifest(name: str, kind: str) -> dict[str, Any]:
    """The one document of that kind in a file."""
    (found,) = (d for file, d in documents() if file == name and d["kind"] == kind)
    return found


@pytest.mark.parametrize(("name", "document"), documents(), ids=lambda x: str(x)[:20])
def test_a_manifest_is_valid(name: str, document: dict[str, Any]) -> None:
    """By the schemas of Kubernetes, old and new, strictly; by one of ours for KEDA's."""
    if document["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(document, SCALED_OBJECT)
        return
    for version in (OLDEST, LATEST):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_worker_is_given_time_to_drain() -> None:
    """Its command is accepted, and the grace period is longer than its shutdown timeout."""
    spec = manifest("worker.yaml", "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    args = parser().parse_args([*container["command"][3:], *container["args"]])
    assert spec["terminationGracePeriodSeconds"] > args.shutdown_timeout + KILL_GRACE_S
    settings = settings_of(args)
    assert isinstance(settings.max_rss, int)
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert settings.max_rss * args.processes <= 0.9 * 2 * 1024**3


def test_probes_are_commands_that_there_are() -> None:
    """With options that they take, and more time than they wait."""
    spec = manifest("worker.yaml", "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert "livenessProbe" not in container
    for probe in (container["startupProbe"], container["readinessProbe"]):
        name, command, *options = probe["exec"]["command"]
        assert (name, command) == ("redistq", "health")
        args = health_parser().parse_args(options)
        assert args.worker
        assert probe["timeoutSeconds"] > args.timeout


def test_names_agree() -> None:
    """Selectors find the pods, the scaler its deployment, its service and a value of the answer."""
    worker = manifest("worker.yaml", "Deployment")
    labels = worker["spec"]["template"]["metadata"]["labels"]
    assert worker["spec"]["selector"]["matchLabels"] == labels
    assert manifest("disruption.yaml", "PodDisruptionBudget")["spec"]["selector"] == {
        "matchLabels": labels
    }
    scaled = manifest("scaledobject.yaml", "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    service = manifest("metrics.yaml", "Service")
    port = service["spec"]["ports"][0]["port"]
    assert f"{service['metadata']['name']}.default.svc:{port}/scale" in trigger["metadata"]["url"]
    assert f'"{trigger["metadata"]["valueLocation"]}":' in GUIDE
    args = manifest("worker.yaml", "Deployment")["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    parsed = parser().parse_args(["jobs", *args])
    assert int(trigger["metadata"]["targetValue"]) == parsed.processes * parsed.threads


def test_the_guide_names_every_file_and_value() -> None:
    """And what it shows of the answer is what the answer has."""
    for path in MANIFESTS:
        assert f"`{path.name}`" in GUIDE
    written = inspect.getsource(Scale.figures)
    shown = GUIDE.split("```json\n")[1].split("```")[0]
    for value in json.loads(shown):
        assert f'"{value}":' in written
