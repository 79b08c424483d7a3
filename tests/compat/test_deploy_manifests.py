"""The manifests in deploy/: well-formed, in the shape that TorchServe's Helm chart and KServe's runtime have, and in
step with the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mariner import __version__
from mariner.cli import _torchserve_parser
from mariner.config import Config

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DEPLOY.glob("**/*.yaml"))


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


SERVICE, DEPLOYMENT = read("kubernetes/torchserve.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
(RUNTIME,) = read("kserve/serving-runtime.yaml")
(PREDICTOR,) = RUNTIME["spec"]["containers"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_document_says_what_it_is(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        assert {"apiVersion", "kind", "metadata", "spec"} <= document.keys()
        assert document["metadata"]["name"]


def test_the_service_has_the_ports_and_annotations_of_the_helm_chart() -> None:
    assert SERVICE["metadata"]["name"] == "torchserve"
    assert SERVICE["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true", "prometheus.io/path": "/metrics", "prometheus.io/port": "8082",
    }  # fmt: skip
    ports = {port["name"]: (port["port"], port["targetPort"]) for port in SERVICE["spec"]["ports"]}
    assert ports == {
        "preds": (8080, "ts"), "mdl": (8081, "ts-management"), "metrics": (8082, "ts-metrics"),
        "grpc": (7070, "ts-grpc"),
    }  # fmt: skip


def test_the_service_finds_the_pods_and_their_ports() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels.items()
    named = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert {port["targetPort"]: port["port"] for port in SERVICE["spec"]["ports"]} == named


def test_the_deployment_has_the_replicas_words_and_volume_of_the_helm_chart() -> None:
    shared = "/home/model-server/shared/"
    assert DEPLOYMENT["spec"]["replicas"] == 2
    words = ["torchserve", "--start", "--model-store", f"{shared}model-store/", "--ts-config"]
    assert CONTAINER["args"][:6] == [*words, f"{shared}config/config.properties"]
    assert "command" not in CONTAINER  # it would take the place of the entry point
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert mounts == {"models": shared, "temporary": "/home/model-server/tmp"}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"] if "emptyDir" not in volume]
    assert claims == ["efs-claim"]


@pytest.mark.parametrize("container", [CONTAINER, PREDICTOR], ids=["kubernetes", "kserve"])
def test_containers_run_as_the_user_of_the_image_without_privileges(container: dict[str, Any]) -> None:
    security = {**POD["securityContext"], **container["securityContext"]}
    assert (security["runAsUser"], security["runAsNonRoot"]) == (1000, True)
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("container", [CONTAINER, PREDICTOR], ids=["kubernetes", "kserve"])
def test_containers_name_the_image_of_this_version_and_flags_that_exist(container: dict[str, Any]) -> None:
    assert container["image"] == f"mariner:{__version__}-cpu"
    _, unknown = _torchserve_parser().parse_known_args(container["args"][1:])
    assert unknown == []


def test_pods_have_the_time_to_answer_what_runs() -> None:
    (service,) = read("kserve/inference-service.yaml")
    for pod in (POD, service["spec"]["predictor"]):
        assert pod["terminationGracePeriodSeconds"] > Config().drain_timeout


def test_the_runtime_is_the_one_of_kserve_without_its_wrapper() -> None:
    assert (RUNTIME["kind"], RUNTIME["apiVersion"]) == ("ServingRuntime", "serving.kserve.io/v1alpha1")
    assert RUNTIME["metadata"]["annotations"] == {"serving.kserve.io/server-type": "torchserve"}
    assert RUNTIME["spec"]["annotations"] == {
        "prometheus.kserve.io/port": "8082", "prometheus.kserve.io/path": "/metrics",
    }  # fmt: skip
    assert RUNTIME["spec"]["protocolVersions"] == ["v1", "v2"]
    assert PREDICTOR["name"] == "kserve-container"
    assert PREDICTOR["args"][:4] == [
        "torchserve", "--start", "--model-store=/mnt/models/model-store",
        "--ts-config=/mnt/models/config/config.properties",
    ]  # fmt: skip
    assert PREDICTOR["env"] == [{"name": "TS_SERVICE_ENVELOPE", "value": "{{.Labels.serviceEnvelope}}"}]
    assert [port["containerPort"] for port in PREDICTOR["ports"]] == [8085]  # of the generated config.properties


def test_the_inference_service_asks_for_the_runtime_and_a_format_it_has() -> None:
    (service,) = read("kserve/inference-service.yaml")
    model = service["spec"]["predictor"]["model"]
    assert (service["kind"], service["apiVersion"]) == ("InferenceService", "serving.kserve.io/v1beta1")
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert {key: model["modelFormat"][key] for key in ("name", "version")} in [
        {key: row[key] for key in ("name", "version")} for row in RUNTIME["spec"]["supportedModelFormats"]
    ]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    assert model["storageUri"].startswith("pvc://")
