"""A model deployed to KServe. The only home of the Kubernetes client."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mariner.errors import DeploymentError
from mariner.sdk.client import Client, encode, path, transport_errors
from mariner.sdk.deployment import Deployment, Sample, check_percentage, parse_samples
from mariner.sdk.manifests import Manifest, inference_service, serving_runtime
from mariner.sdk.progress import Progress

if TYPE_CHECKING:
    from mariner.sdk.model import Model

__all__ = ["ClusterDeployment", "deploy", "find"]

POLL = 1.0  # seconds between two looks at a service that is not ready

_GROUP = "serving.kserve.io"
_SERVICES = (_GROUP, "v1beta1", "inferenceservices")
_RUNTIMES = (_GROUP, "v1alpha1", "servingruntimes")
_CONTAINER = "kserve-container"
_PODS = "serving.kserve.io/inferenceservice={}"
_METRICS_PORT = 8082


def deploy(
    model: Model, *, namespace: str, workers: int | None, replace: bool, url: str | None, timeout: float
) -> ClusterDeployment:
    """Applies the manifests of a model and waits until it is ready; see :meth:`mariner.sdk.Model.deploy`."""
    service = inference_service(model, namespace, replicas=None if workers is None else {"minReplicas": workers})
    progress = Progress(f"{model.service_name} {model.version}")
    cluster = Cluster(namespace, timeout)
    with progress.step("applying manifests"):
        if cluster.get(_SERVICES, model.service_name) is not None and not replace:
            raise DeploymentError(
                f"{model.service_name} is deployed already in namespace {namespace}.",
                hint="deploy(replace=True) rolls this one out in its place; deploy_canary() gives it a share first.",
            )
        cluster.apply(_RUNTIMES, serving_runtime(namespace))
        applied = cluster.apply(_SERVICES, service)
    with progress.step("waiting for the service"):
        ready = cluster.wait_until_ready(applied)
    deployment = ClusterDeployment(cluster, ready, url)
    progress.end(f"ready at {deployment.url}")
    return deployment


def find(name: str, *, namespace: str, url: str | None, timeout: float) -> ClusterDeployment:
    """The service of that name.

    Raises:
        DeploymentError: there is none.
    """
    cluster = Cluster(namespace, timeout)
    return ClusterDeployment(cluster, cluster.require(name), url)


class Cluster:
    """KServe's objects in one namespace, by the configuration that kubectl uses, or that of the pod we run in.

    Args:
        namespace: where.
        timeout: seconds that a service may take to be ready.

    Raises:
        DeploymentError: there is no configuration.
    """

    def __init__(self, namespace: str, timeout: float) -> None:
        try:
            import kubernetes  # noqa: PLC0415 - an extra of its own
        except ImportError:
            raise DeploymentError(
                "Deploying to KServe needs the package kubernetes.",
                hint="Install it: pip install 'mariner-serve[kserve]'.",
            ) from None
        self.namespace = namespace
        self._timeout = timeout
        try:
            client = kubernetes.client.ApiClient(_configuration(kubernetes))
        except kubernetes.config.ConfigException as error:
            raise DeploymentError(
                f"There is no cluster to talk to: {error}", hint="Set KUBECONFIG, or log in to the cluster."
            ) from error
        self._refused: type[Exception] = kubernetes.client.ApiException
        self._objects = kubernetes.client.CustomObjectsApi(client)
        self._core = kubernetes.client.CoreV1Api(client)

    def get(self, kind: tuple[str, str, str], name: str) -> Manifest | None:
        """An object; None if there is none of that name."""
        group, version, plural = kind
        try:
            with self._errors(f"reading {plural}/{name}"):
                found: Manifest = self._objects.get_namespaced_custom_object(
                    group, version, self.namespace, plural, name
                )
        except DeploymentError as error:
            if error.status == 404:
                return None
            raise
        return found

    def require(self, name: str) -> Manifest:
        """The InferenceService of that name.

        Raises:
            DeploymentError: there is none.
        """
        found = self.get(_SERVICES, name)
        if found is None:
            raise DeploymentError(f"{name} is not deployed in namespace {self.namespace}.", hint="Call deploy() first.")
        return found

    def apply(self, kind: tuple[str, str, str], wanted: Manifest) -> Manifest:
        """Creates an object, or gives one that is there the wanted spec; what others have noted on it stays."""
        group, version, plural = kind
        name = wanted["metadata"]["name"]
        there = self.get(kind, name)
        with self._errors(f"applying {plural}/{name}"):
            if there is None:
                made: Manifest = self._objects.create_namespaced_custom_object(
                    group, version, self.namespace, plural, wanted
                )
                return made
            noted = {**there["metadata"].get("annotations", {}), **wanted["metadata"].get("annotations", {})}
            changed = {**there, "metadata": {**there["metadata"], "annotations": noted}, "spec": wanted["spec"]}
            put: Manifest = self._objects.replace_namespaced_custom_object(
                group, version, self.namespace, plural, name, changed
            )
            return put

    def delete(self, name: str) -> None:
        """Deletes an InferenceService."""
        group, version, plural = _SERVICES
        with self._errors(f"deleting {plural}/{name}"):
            self._objects.delete_namespaced_custom_object(group, version, self.namespace, plural, name)

    def wait_until_ready(self, applied: Manifest) -> Manifest:
        """Waits until KServe has seen a service as it is now and says it is ready.

        Raises:
            DeploymentError: it takes too long; the message has KServe's reason.
        """
        name, generation = applied["metadata"]["name"], applied["metadata"].get("generation", 0)
        end = time.monotonic() + self._timeout
        while True:
            service = self.require(name)
            status = service.get("status", {})
            ready: Manifest = next((each for each in status.get("conditions", []) if each["type"] == "Ready"), {})
            if ready.get("status") == "True" and status.get("observedGeneration", generation) >= generation:
                return service
            if time.monotonic() > end:
                reason = ready.get("message") or "KServe gives no reason"
                raise DeploymentError(
                    f"{name} is not ready after {self._timeout:g} s: {reason}.",
                    hint=f"kubectl describe inferenceservice {name} -n {self.namespace} has the details.",
                )
            time.sleep(POLL)

    def pods(self, name: str) -> list[str]:
        """The names of the pods of a service."""
        with self._errors(f"listing the pods of {name}"):
            found = self._core.list_namespaced_pod(self.namespace, label_selector=_PODS.format(name))
        return [pod.metadata.name for pod in found.items]

    def log(self, pod: str, lines: int) -> str:
        """The last lines that a pod has written."""
        with self._errors(f"reading the log of {pod}"):
            text: str = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=_CONTAINER, tail_lines=lines, _preload_content=True
            )
        return text

    def metrics(self, pod: str) -> str:
        """The metrics of a pod, through the API server."""
        with self._errors(f"reading the metrics of {pod}"):
            response = self._core.connect_get_namespaced_pod_proxy_with_path(
                f"{pod}:{_METRICS_PORT}", self.namespace, "metrics", _preload_content=False
            )
        text: str = response.data.decode()
        return text

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._refused as error:
            status = int(getattr(error, "status", None) or 500)
            raise DeploymentError(f"The cluster refused {doing}: {_reason(error)}.", status=status) from error
        except transport_errors() as error:
            raise DeploymentError(
                f"The cluster does not answer, {doing}: {error}.", hint="Check KUBECONFIG and the network."
            ) from error


def _configuration(kubernetes: Any) -> Any:
    found = kubernetes.client.Configuration()
    try:
        # The variable as it is now: the client has read it when it was imported.
        kubernetes.config.load_kube_config(os.environ.get("KUBECONFIG") or None, client_configuration=found)
    except kubernetes.config.ConfigException:
        kubernetes.config.load_incluster_config(client_configuration=found)
    return found


def _reason(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


class ClusterDeployment(Deployment):
    """A model on KServe.

    Args:
        cluster: where it is.
        service: its InferenceService.
        url: where it is reached from here; None for the address that KServe gives.
    """

    def __init__(self, cluster: Cluster, service: Manifest, url: str | None = None) -> None:
        self.name = service["metadata"]["name"]
        self._cluster = cluster
        self._given = url
        base = url or service.get("status", {}).get("url")
        if not base:
            raise DeploymentError(
                f"{self.name} has no address yet.", hint="Wait until it is ready, or pass url=... to reach it by."
            )
        self._client = Client(base)
        self.url = self._client.address + path("v1", "models", self.name) + ":predict"

    def predict(self, data: Any, *, version: str | None = None, timeout: float | None = None) -> Any:
        """See :meth:`Deployment.predict`; the service wants ``{"instances": [...]}`` and shares out versions itself."""
        return self._infer("predict", data, version, timeout)

    def explain(self, data: Any, *, version: str | None = None, timeout: float | None = None) -> Any:
        """See :meth:`Deployment.explain`."""
        return self._infer("explain", data, version, timeout)

    def _infer(self, what: str, data: Any, version: str | None, timeout: float | None) -> Any:
        if version is not None:
            raise DeploymentError(
                "KServe chooses the version that answers.", hint="Leave version out; a canary has a share of requests."
            )
        body, headers = encode(data)
        target = f"{path('v1', 'models', self.name)}:{what}"
        return self._client.call("POST", target, body, headers=headers, timeout=timeout)

    def scale(self, min_workers: int, max_workers: int | None = None) -> None:
        """See :meth:`Deployment.scale`; on KServe they are pods."""
        replicas = {"minReplicas": min_workers, "maxReplicas": min_workers if max_workers is None else max_workers}
        self._change(lambda predictor: {**predictor, **replicas})

    def logs(self, lines: int = 100) -> str:
        """See :meth:`Deployment.logs`; of all pods, one after the other."""
        return "\n".join(self._cluster.log(pod, lines).rstrip("\n") for pod in self._cluster.pods(self.name))

    def metrics(self) -> Sequence[Sample]:
        """See :meth:`Deployment.metrics`; of all pods."""
        return [
            sample
            for pod in self._cluster.pods(self.name)
            for sample in parse_samples(self._cluster.metrics(pod), self.name)
        ]

    def deploy_canary(self, model: Model, *, canary_traffic_percentage: int = 30) -> None:
        """See :meth:`Deployment.deploy_canary`; needs KServe's serverless mode."""
        share = check_percentage(canary_traffic_percentage)
        there = self._cluster.require(self.name)
        replicas = {key: value for key, value in _predictor(there).items() if key in {"minReplicas", "maxReplicas"}}
        wanted = inference_service(model, self._cluster.namespace, canary_traffic_percentage=share, replicas=replicas)
        if wanted["metadata"]["name"] != self.name:
            raise DeploymentError(
                f"{model.id} is another model than {self.name}.", hint="Give the canary the id of the model."
            )
        if not _has_canary(there) and _predictor(there)["model"].get("image") == model.image_name:
            raise DeploymentError(
                f"{self.name} runs {model.image_name} already.", hint="Give the canary an image_name of its own."
            )
        self._cluster.wait_until_ready(self._cluster.apply(_SERVICES, wanted))

    def promote_canary(self) -> None:
        """See :meth:`Deployment.promote_canary`."""
        self._require_canary()
        self._change(lambda predictor: _without(predictor, "canaryTrafficPercent"))

    def rollback(self) -> None:
        """See :meth:`Deployment.rollback`; the canary gets nothing more, as KServe's documentation has it."""
        self._require_canary()
        self._change(lambda predictor: {**predictor, "canaryTrafficPercent": 0})

    def undeploy(self) -> None:
        """See :meth:`Deployment.undeploy`; the runtime stays, as other models may use it."""
        self._cluster.delete(self.name)

    def _require_canary(self) -> None:
        if not _has_canary(self._cluster.require(self.name)):
            raise DeploymentError(f"{self.name} has no canary.", hint="Start one with deploy_canary().")

    def _change(self, change: Callable[[Manifest], Manifest]) -> None:
        there = self._cluster.require(self.name)
        wanted = {**there, "spec": {**there["spec"], "predictor": change(_predictor(there))}}
        self._cluster.wait_until_ready(self._cluster.apply(_SERVICES, wanted))


def _predictor(service: Manifest) -> Manifest:
    found: Manifest = service["spec"]["predictor"]
    return found


def _has_canary(service: Manifest) -> bool:
    return bool(_predictor(service).get("canaryTrafficPercent"))


def _without(section: Mapping[str, Any], key: str) -> Manifest:
    return {name: value for name, value in section.items() if name != key}
