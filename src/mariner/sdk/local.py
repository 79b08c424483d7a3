"""A model deployed on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mariner.errors import DeploymentError
from mariner.sdk.client import Client, encode, path
from mariner.sdk.deployment import Deployment, Sample, check_percentage, parse_samples
from mariner.sdk.local_server import LocalServer, read_properties
from mariner.sdk.progress import Progress, in_notebook

if TYPE_CHECKING:
    from mariner.sdk.model import Model

__all__ = ["LocalDeployment", "deploy", "find"]

_PERCENT = 100


def deploy(
    model: Model, *, port: int = 0, workers: int | None = None, replace: bool = False, keep: bool | None = None
) -> LocalDeployment:
    """Packages a model and serves it on this machine; see :meth:`mariner.sdk.Model.deploy`."""
    serving = model.serving()  # what is missing is said before anything starts
    progress = Progress(f"{model.service_name} {model.version}")
    properties = read_properties(serving.config_properties)
    if workers is None and "default_workers_per_model" not in properties:
        workers = 1
    with progress.step("finding a server"):
        server = LocalServer.obtain(properties, port=port, keep=in_notebook() if keep is None else keep)
    deployment = LocalDeployment(server, model.service_name)
    try:
        deployment.bring(model, workers, progress, replace=replace)
    except BaseException:
        if server.is_new:
            server.stop()
        raise
    progress.end(f"ready at {deployment.url}")
    return deployment


def find(name: str) -> LocalDeployment:
    """The model of that name, on a server of this program or one that is kept.

    Raises:
        DeploymentError: it is not deployed.
    """
    for server in LocalServer.running():
        deployment = LocalDeployment(server, name)
        if deployment.versions():
            return deployment
    raise DeploymentError(f"{name} is not deployed here.", hint="Call deploy() first.")


class LocalDeployment(Deployment):
    """A model on a server of this machine.

    Args:
        server: where it is.
        name: what it is called there.
    """

    def __init__(self, server: LocalServer, name: str) -> None:
        self.name = name
        self._server = server
        self._inference: Client = server.client("inference")
        self._management: Client = server.client("management")
        self._model = path("models", name)
        self.url = self._inference.address + path("predictions", name)

    # -- use ----------------------------------------------------------------------------------------------------------

    def predict(self, data: Any, *, version: str | None = None, timeout: float | None = None) -> Any:
        """See :meth:`Deployment.predict`."""
        return self._infer("predictions", data, version, timeout)

    def explain(self, data: Any, *, version: str | None = None, timeout: float | None = None) -> Any:
        """See :meth:`Deployment.explain`."""
        return self._infer("explanations", data, version, timeout)

    def _infer(self, what: str, data: Any, version: str | None, timeout: float | None) -> Any:
        body, headers = encode(data)
        target = path(what, self.name, *([version] if version else []))
        return self._inference.call("POST", target, body, headers=headers, timeout=timeout)

    def scale(self, min_workers: int, max_workers: int | None = None) -> None:
        """See :meth:`Deployment.scale`; the version that is scaled is the default one."""
        query = {"min_worker": min_workers, "max_worker": max_workers, "synchronous": "true"}
        self._management.call("PUT", self._model, query=query)

    def logs(self, lines: int = 100) -> str:
        """See :meth:`Deployment.logs`."""
        try:
            text = self._server.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""

    def metrics(self) -> Sequence[Sample]:
        """See :meth:`Deployment.metrics`."""
        answer = self._server.client("metrics").ask("GET", "/metrics")
        return parse_samples(answer.body.decode(), self.name)

    def versions(self) -> dict[str, dict[str, Any]]:
        """What the server says of each version; empty if the model is not there."""
        try:
            described = self._management.call("GET", self._model + "/all")
        except DeploymentError as error:
            if error.status == 404:
                return {}
            raise
        return {each["modelVersion"]: each for each in described}

    # -- change -------------------------------------------------------------------------------------------------------

    def bring(self, model: Model, workers: int | None, progress: Progress, *, replace: bool) -> None:
        """Makes the server serve a model, beside nothing or in the place of what is there.

        Raises:
            DeploymentError: it is there already, or cannot be loaded; what was there goes on.
        """
        there = self.versions()
        if there and not replace:
            raise DeploymentError(
                f"{self.name} is deployed already, in version {', '.join(there)}.",
                hint="deploy(replace=True) puts this one into its place without losing a request; deploy_canary() "
                "gives it a share of them first.",
            )
        if len(there) > 1:
            raise DeploymentError(
                f"{self.name} has a canary.", hint="Call promote_canary() or rollback() before you replace it."
            )
        if model.version in there:
            self._reload(model, progress)
            return
        (old,) = there.values() if there else [None]
        self._register(model, workers if old is None else old["minWorkers"], progress)
        if old is not None:
            with progress.step("taking over"):
                self._make_default(model.version)
                self._remove(old["modelVersion"])

    def deploy_canary(self, model: Model, *, canary_traffic_percentage: int = 30) -> None:
        """See :meth:`Deployment.deploy_canary`."""
        share = check_percentage(canary_traffic_percentage)
        progress = Progress(f"{self.name} {model.version}")
        default = self._start_beside(model, progress)
        self._share({"weights": {default: _PERCENT - share, model.version: share}})
        progress.end(f"a canary with {share} % of the traffic")

    def deploy_shadow(self, model: Model, *, shadow_traffic_percentage: int = 100) -> None:
        """See :meth:`Deployment.deploy_shadow`."""
        share = check_percentage(shadow_traffic_percentage, "shadow_traffic_percentage")
        progress = Progress(f"{self.name} {model.version}")
        self._start_beside(model, progress)
        self._share({"shadow": {"version": model.version, "percentage": share}})
        progress.end(f"a shadow of {share} % of the traffic")

    def shadow(self) -> dict[str, int]:
        """See :meth:`Deployment.shadow`."""
        shadow = self._management.call("GET", self._model + "/traffic").get("shadow")
        if shadow is None:
            return super().shadow()
        return {key: value for key, value in shadow.items() if key not in {"version", "percentage"}}

    def _start_beside(self, model: Model, progress: Progress) -> str:
        """Starts another version unless it runs; returns the version that it stands beside."""
        if model.service_name != self.name:
            raise DeploymentError(
                f"{model.id} is another model than {self.name}.", hint="Give the canary the id of the model."
            )
        default, canary = self._default_and_canary()
        if model.version == default or canary not in {None, model.version}:
            taken = f"{self.name} has version {default}" + (f" and the canary {canary}" if canary else "")
            raise DeploymentError(
                f"{taken}.", hint="Give the canary a version of its own; promote_canary() or rollback() end another."
            )
        if canary is None:
            self._register(model, self.versions()[default]["minWorkers"], progress)
        return default

    def promote_canary(self) -> None:
        """See :meth:`Deployment.promote_canary`."""
        default, canary = self._default_and_canary()
        if canary is None:
            raise _no_canary(self.name)
        self._make_default(canary)
        self._remove(default)

    def rollback(self) -> None:
        """See :meth:`Deployment.rollback`."""
        _, canary = self._default_and_canary()
        if canary is None:
            raise _no_canary(self.name)
        self._share({})
        self._remove(canary)

    def undeploy(self) -> None:
        """See :meth:`Deployment.undeploy`; the server ends with its last model."""
        there = self.versions()
        if there:
            default = self._default_and_canary()[0]
            for version in [*(there.keys() - {default}), default]:
                self._remove(version)
        if not self._management.call("GET", "/models")["models"]:
            self._server.stop()

    def _default_and_canary(self) -> tuple[str, str | None]:
        traffic = self._management.call("GET", self._model + "/traffic")
        default, beside = traffic["defaultVersion"], [*traffic["weights"]]
        if "shadow" in traffic:
            beside.append(traffic["shadow"]["version"])
        return default, next((version for version in beside if version != default), None)

    def _register(self, model: Model, workers: int | None, progress: Progress) -> None:
        archive = self._package(model, progress)
        query = {"url": archive.name, "model_name": self.name, "initial_workers": workers, "synchronous": "true"}
        with progress.step("loading"):
            try:
                self._management.call("POST", "/models", query=query)
            except DeploymentError as error:
                archive.unlink(missing_ok=True)
                error.hint = error.hint or "See the server's log: logs() of a deployment, or server.log."
                raise

    def _reload(self, model: Model, progress: Progress) -> None:
        """Puts an archive into the place of one with the same version."""
        target = self._archive(model.version)
        with tempfile.TemporaryDirectory(dir=self._server.directory) as aside:
            before = shutil.copy2(target, aside) if target.is_file() else None
            self._package(model, progress)
            with progress.step("taking over"):
                try:
                    self._management.call("PUT", self._model + path(model.version, "reload"))
                except DeploymentError:
                    if before is not None:
                        Path(before).replace(target)
                    raise

    def _package(self, model: Model, progress: Progress) -> Path:
        """Writes the archive beside its place and moves it there: half of one is never seen."""
        with progress.step("packaging"), tempfile.TemporaryDirectory(dir=self._server.directory) as aside:
            return model.package(aside).replace(self._archive(model.version))

    def _archive(self, version: str) -> Path:
        return self._server.model_store / f"{self.name}_{version}.mar"  # no name has an underscore

    def _share(self, traffic: dict[str, Any]) -> None:
        body, headers = encode(traffic)
        self._management.call("PUT", self._model + "/traffic", body, headers=headers)

    def _make_default(self, version: str) -> None:
        self._management.call("PUT", self._model + path(version, "set-default"))

    def _remove(self, version: str) -> None:
        self._management.call("DELETE", self._model + path(version))
        with suppress(OSError):
            self._archive(version).unlink()


def _no_canary(name: str) -> DeploymentError:
    return DeploymentError(f"{name} has no canary.", hint="Start one with deploy_canary().")
