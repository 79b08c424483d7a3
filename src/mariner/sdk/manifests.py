"""The KServe objects of a model: the runtime that serves models of an image, and the service of one model. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from mariner.errors import InvalidModel
from mariner.sdk.image import DEFAULT_BASE_IMAGE

if TYPE_CHECKING:
    from mariner.sdk.model import Model

__all__ = ["RUNTIME", "Manifest", "inference_service", "serving_runtime", "to_yaml"]

Manifest = dict[str, Any]

RUNTIME = "mariner"
_PORT = 8085  # of the inference_address that is generated
_METRICS_PORT = 8082
_GRACE = 130  # seconds; longer than the server takes to answer what it has
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # what KServe's webhook lets pass


def serving_runtime(namespace: str) -> Manifest:
    """The runtime; one for all models of a namespace, which bring their own images."""
    words = ["torchserve", "--start", "--model-store=/mnt/models/model-store"]
    words += ["--ts-config=/mnt/models/config/config.properties", "--ncs"]
    security = {
        "runAsUser": 1000,
        "runAsNonRoot": True,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "kserve-container",
        "image": DEFAULT_BASE_IMAGE,
        "args": words,
        # The metrics are the only ones who have no address in the generated file, and are asked for by other machines.
        "env": [{"name": "MARINER_METRICS_ADDRESS", "value": f"http://0.0.0.0:{_METRICS_PORT}"}],
        "ports": [{"name": "http1", "containerPort": _PORT, "protocol": "TCP"}],
        # KServe puts the name of the service into the container; the model is registered under it.
        "readinessProbe": {"httpGet": {"path": "/v2/models/{{.Name}}/ready", "port": _PORT}, "periodSeconds": 5},
        "securityContext": security,
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {
            "name": RUNTIME,
            "namespace": namespace,
            "annotations": {"serving.kserve.io/server-type": "torchserve"},
        },
        "spec": {
            "annotations": {"prometheus.kserve.io/port": str(_METRICS_PORT), "prometheus.kserve.io/path": "/metrics"},
            "supportedModelFormats": [{"name": "pytorch", "version": "1", "autoSelect": False}],
            "protocolVersions": ["v1", "v2"],
            "containers": [container],
        },
    }


def inference_service(
    model: Model,
    namespace: str,
    *,
    canary_traffic_percentage: int | None = None,
    replicas: Mapping[str, int] | None = None,
) -> Manifest:
    """The service of a model.

    Args:
        model: what is served, by its image.
        namespace: where.
        canary_traffic_percentage: the share of this model beside the one before it; None: it takes over.
        replicas: ``minReplicas`` and ``maxReplicas``, where somebody has chosen them.

    Raises:
        InvalidModel: it has no image, or a name that KServe refuses.
    """
    if model.image_name is None:
        raise InvalidModel(
            "image_name is missing.", hint="Name the image that the cluster pulls: image_name='registry/model:tag'."
        )
    if not _SERVICE_NAME.fullmatch(model.service_name):
        raise InvalidModel(
            f"id: KServe refuses the name {model.service_name!r}.", hint="Let the id begin with a letter: 'dev/mnist'."
        )
    predictor: Manifest = {
        **({} if canary_traffic_percentage is None else {"canaryTrafficPercent": canary_traffic_percentage}),
        **(replicas or {}),
        "terminationGracePeriodSeconds": _GRACE,
        "model": {
            "modelFormat": {"name": "pytorch", "version": "1"},
            "runtime": RUNTIME,
            "protocolVersion": "v1",
            "image": model.image_name,
        },
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": model.service_name,
            "namespace": namespace,
            "annotations": {"mariner/model-id": model.id, "mariner/model-version": model.version},
        },
        "spec": {"predictor": predictor},
    }


def to_yaml(*manifests: Manifest) -> str:
    """Manifests as one file."""
    return yaml.safe_dump_all(manifests, sort_keys=False)
