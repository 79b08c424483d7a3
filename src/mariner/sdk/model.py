"""``Model``: what a data scientist says of a model, and what can be done with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from mariner.archive.write import ArchiveError, ArchiveSpec, write_model_archive
from mariner.errors import InvalidModel
from mariner.sdk.image import write_image_context
from mariner.sdk.manifests import inference_service, serving_runtime, to_yaml
from mariner.sdk.names import sanitize_string
from mariner.sdk.serving_config import Serving, check_serving_config, require_file, require_handler

if TYPE_CHECKING:
    from mariner.sdk.deployment import Deployment

__all__ = ["Model", "ModelFramework"]

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # it becomes a part of paths
_EXPORTS = Path("exports")


class Where(TypedDict, total=False):
    """Where in a cluster a service is; see :meth:`Model.deploy`."""

    namespace: str
    url: str | None
    timeout: float


class ModelFramework(StrEnum):
    """What a model is made with."""

    PYTORCH = "pytorch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model: what it is called, what it is made of, how it is served.

    A changed copy is made with :func:`dataclasses.replace`, say for the next version.

    Attributes:
        id: identity, ``dev/mnist``; names of the archive and the service are made of it, see ``sanitize_string``.
        name: what people call it; the id if not given.
        description: a sentence about it.
        version: becomes that of the archive.
        framework: ``pytorch``.
        framework_version: which PyTorch it was trained with.
        main_file: the program that trains it; not part of the archive.
        extra_files: files that the program and the model import.
        base_image: container image to build on.
        image_name: container image to build.
        serving_config: texts under the keys ``model_file`` and ``handler`` (mandatory), ``serialized_file``,
            ``extra_files``, ``requirements_file``, ``config_properties``.
        requirements: file with the packages it needs.

    Raises:
        InvalidModel: a value cannot be used; the message names its key and what to write.
    """

    id: str
    name: str = ""
    description: str = ""
    version: str = "1.0"
    framework: str = ModelFramework.PYTORCH
    framework_version: str | None = None
    main_file: str | None = None
    extra_files: Sequence[str] = ()
    base_image: str | None = None
    image_name: str | None = None
    serving_config: Mapping[str, str] = field(default_factory=dict)
    requirements: str | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked before files are needed."""
        for key in ("id", "name", "description", "version", "framework"):
            _require_text(key, getattr(self, key))
        for key in ("framework_version", "main_file", "base_image", "image_name", "requirements"):
            if getattr(self, key) is not None:
                _require_text(key, getattr(self, key))
        self._set("name", self.name or self.id)
        sanitize_string(self.id)
        if not _VERSION.fullmatch(self.version):
            raise InvalidModel(
                f"version: {self.version!r} is no version.", hint="Use letters, digits, dots and hyphens: '0.0.1'."
            )
        if self.framework not in list(ModelFramework):
            raise InvalidModel(f"framework: {self.framework!r} is not served.", hint="Write framework='pytorch'.")
        if isinstance(self.extra_files, str) or not all(isinstance(name, str) for name in self.extra_files):
            raise InvalidModel("extra_files must be a list of paths.", hint="Write extra_files=['model.py'].")
        self._set("extra_files", list(self.extra_files))
        if self.serving_config or not isinstance(self.serving_config, Mapping):
            self._set("serving_config", check_serving_config(self.serving_config))

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    @property
    def service_name(self) -> str:
        """The name of the archive, and of the model where it is served."""
        return sanitize_string(self.id)

    @property
    def export_file(self) -> Path:
        """Where training leaves the state_dict: it is served if ``serving_config`` names no ``serialized_file``."""
        return _EXPORTS / self.service_name / self.version / "model.pt"

    def package(self, directory: str | PathLike[str] = ".") -> Path:
        """Writes the archive, in place of one that is there; the same as ``torch-model-archiver`` writes.

        Args:
            directory: where it goes; made if missing.

        Returns:
            Its path.

        Raises:
            InvalidModel: a key is missing or a file is not there.
        """
        serving = self.serving()
        Path(directory).mkdir(parents=True, exist_ok=True)
        spec = ArchiveSpec(
            model_name=self.service_name,
            handler=serving.handler,
            version=self.version,
            serialized_file=serving.serialized_file,
            model_file=serving.model_file,
            extra_files=serving.extra_files,
            requirements_file=serving.requirements_file,
            export_path=str(directory),
            force=True,
        )
        try:
            return write_model_archive(spec)
        except ArchiveError as error:
            raise InvalidModel(f"The archive of {self.id} cannot be written: {error}") from error

    def serving(self) -> Serving:
        """What the archive is made of.

        Raises:
            InvalidModel: a key is missing or a file is not there.
        """
        config = check_serving_config(self.serving_config)
        properties = config.get("config_properties")
        return Serving(
            model_file=require_file("serving_config['model_file']", config["model_file"]),
            handler=require_handler(config["handler"]),
            serialized_file=self._serialized_file(config.get("serialized_file")),
            extra_files=self._extra_files(config.get("extra_files")),
            requirements_file=self._requirements_file(config.get("requirements_file")),
            config_properties=Path(require_file("serving_config['config_properties']", properties))
            if properties
            else None,
        )

    def _serialized_file(self, given: str | None) -> str:
        if given:
            return require_file("serving_config['serialized_file']", given)
        if not self.export_file.is_file():
            raise InvalidModel(
                f"serving_config['serialized_file'] is not given, and training has exported no {self.export_file}.",
                hint="Name the file of the state_dict, or export it: torch.save(net.state_dict(), model.export()).",
            )
        return str(self.export_file)

    def _extra_files(self, given: str | None) -> str | None:
        if given is not None:
            for name in filter(None, map(str.strip, given.split(","))):
                _require_path("serving_config['extra_files']", name)
            return given
        for name in self.extra_files:
            _require_path("extra_files", name)
            if "," in name:
                raise InvalidModel(f"extra_files: the path {name!r} has a comma.", hint="Rename the file.")
        return ",".join(self.extra_files) or None

    def _requirements_file(self, given: str | None) -> str | None:
        if given:
            return require_file("serving_config['requirements_file']", given)
        return require_file("requirements", self.requirements) if self.requirements else None

    def export(self) -> Path:
        """Makes the directory of :attr:`export_file` and returns the file: ``torch.save(state, model.export())``."""
        self.export_file.parent.mkdir(parents=True, exist_ok=True)
        return self.export_file

    # -- a cluster ----------------------------------------------------------------------------------------------------

    def image_context(self, directory: str | PathLike[str]) -> Path:
        """Writes what the container image is built from: a Dockerfile, the archive, the configuration, the program.

        The image has the layout of KServe's mounts: ``/mnt/models/model-store`` and ``/mnt/models/config``. It is built
        on ``base_image``, which must have Mariner. ``main_file`` and ``extra_files`` can be imported in it.

        Args:
            directory: where it goes; made if missing.

        Returns:
            The directory: ``docker build -t IMAGE_NAME DIRECTORY``.

        Raises:
            InvalidModel: the model lacks something.
        """
        return write_image_context(self, directory)

    def manifests(self, *, namespace: str = "default", canary_traffic_percentage: int | None = None) -> str:
        """The objects that KServe needs, as YAML for ``kubectl apply``.

        Args:
            namespace: where they go.
            canary_traffic_percentage: the share of this version beside the one before it; None: it takes over.

        Raises:
            InvalidModel: the model has no ``image_name``, or a name that KServe refuses.
        """
        service = inference_service(self, namespace, canary_traffic_percentage=canary_traffic_percentage)
        return to_yaml(serving_runtime(namespace), service)

    # -- serving ------------------------------------------------------------------------------------------------------

    def deploy(
        self,
        target: str = "local",
        *,
        replace: bool = False,
        workers: int | None = None,
        port: int = 0,
        keep: bool | None = None,
        namespace: str = "default",
        url: str | None = None,
        timeout: float = 600.0,
    ) -> Deployment:
        """Serves the model, and returns when it answers.

        Args:
            target: ``local`` is this machine: the model is packaged for it. ``kserve`` is a cluster, which pulls
                ``image_name``: build it from :meth:`image_context` and push it first.
            replace: takes the place of the same model if it is deployed already; every request is answered, by one or
                the other.
            workers: processes that serve it, pods in a cluster; one unless its own configuration says otherwise.
            port: ``local``: of the service; 0 for a free one.
            keep: ``local``: it outlives this program, until ``undeploy()``; by default that of a notebook does.
            namespace: ``kserve``: where in the cluster.
            url: ``kserve``: where the service is reached from here; by default the address that KServe gives.
            timeout: ``kserve``: seconds until it must be ready.

        Raises:
            InvalidModel: the model lacks something.
            DeploymentError: it does not start; the message has the reason.
        """
        if _is_local(target):
            from mariner.sdk import local  # noqa: PLC0415 - describing and packaging need no server

            return local.deploy(self, port=port, workers=workers, replace=replace, keep=keep)
        from mariner.sdk import cluster  # noqa: PLC0415 - nor a cluster

        return cluster.deploy(self, namespace=namespace, workers=workers, replace=replace, url=url, timeout=timeout)

    def deployment(
        self, target: str = "local", *, namespace: str = "default", url: str | None = None, timeout: float = 600.0
    ) -> Deployment:
        """The model as it is deployed, whichever version that is; the arguments are those of :meth:`deploy`.

        Raises:
            DeploymentError: it is not.
        """
        if _is_local(target):
            from mariner.sdk import local  # noqa: PLC0415 - as above

            return local.find(self.service_name)
        from mariner.sdk import cluster  # noqa: PLC0415 - as above

        return cluster.find(self.service_name, namespace=namespace, url=url, timeout=timeout)

    def deploy_canary(
        self, target: str = "local", *, canary_traffic_percentage: int = 30, **where: Unpack[Where]
    ) -> Deployment:
        """Starts this version beside the deployed one, with a share of its requests.

        Raises:
            InvalidModel: the model lacks something.
            DeploymentError: there is no other version, or this one does not start.
        """
        deployment = self.deployment(target, **where)
        deployment.deploy_canary(self, canary_traffic_percentage=canary_traffic_percentage)
        return deployment

    def deploy_shadow(
        self, target: str = "local", *, shadow_traffic_percentage: int = 100, **where: Unpack[Where]
    ) -> Deployment:
        """Starts this version as a shadow of the deployed one; see :meth:`Deployment.deploy_shadow`."""
        deployment = self.deployment(target, **where)
        deployment.deploy_shadow(self, shadow_traffic_percentage=shadow_traffic_percentage)
        return deployment

    def promote_canary(self, target: str = "local", **where: Unpack[Where]) -> Deployment:
        """Lets the canary of this model answer everything; see :meth:`Deployment.promote_canary`."""
        deployment = self.deployment(target, **where)
        deployment.promote_canary()
        return deployment

    def rollback(self, target: str = "local", **where: Unpack[Where]) -> Deployment:
        """Ends the canary of this model; see :meth:`Deployment.rollback`."""
        deployment = self.deployment(target, **where)
        deployment.rollback()
        return deployment


def _is_local(target: str) -> bool:
    if target not in {"local", "kserve"}:
        raise InvalidModel(f"target: {target!r} is unknown.", hint="Write target='local' or target='kserve'.")
    return target == "local"


def _require_text(key: str, value: object) -> None:
    if not isinstance(value, str) or (not value.strip() and key in {"id", "version"}):
        raise InvalidModel(f"{key}: {value!r} is no text.", hint=f"Write {key}='...'.")


def _require_path(key: str, name: str) -> None:
    """A file, a directory, or a pattern that the archiver looks at."""
    if not Path(name).exists() and not any(sign in name for sign in "*?["):
        raise InvalidModel(f"{key}: there is no file {name!r}.", hint="Paths are relative to the working directory.")
