"""Registry: which models and versions there are, and which version answers when none is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from mariner.archive.read import Archive
from mariner.errors import BadRequest, Conflict, DefaultVersionInUse, ModelNotFound, VersionNotFound
from mariner.jobs import Job
from mariner.model_settings import ModelSettings, RegisterOptions
from mariner.pool import WorkerPool
from mariner.shadow import Shadow
from mariner.traffic import Shares

__all__ = ["ModelVersion", "Registry"]


@dataclass(eq=False, slots=True)
class ModelVersion:
    """One running version of a model.

    Attributes:
        name: model name.
        version: version text.
        archive: its unpacked files.
        settings: what it runs with.
        pool: its workers and, through them, its queue.
        runtime: runtime of the manifest or the registration.
        loaded_at_startup: it came with the server's start, not by a call.
        options: what was asked for when it was registered.
        scaled: a call has decided how many workers it has.
        label: what metrics call the requests that reach it without naming a version.
        put: queues a job; the pool's, unless another version is its shadow.
    """

    name: str
    version: str
    archive: Archive
    settings: ModelSettings
    pool: WorkerPool
    runtime: str = "python"
    loaded_at_startup: bool = False
    options: RegisterOptions = field(default_factory=RegisterOptions)
    scaled: bool = False
    label: str = "default"
    put: Callable[[Job], None] = field(init=False)

    def __post_init__(self) -> None:
        """Jobs go to the pool."""
        self.put = self.pool.put


@dataclass(slots=True)
class _Model:
    default: str
    versions: dict[str, ModelVersion] = field(default_factory=dict)
    shares: Shares | None = None
    shadow: Shadow | None = None


class Registry:
    """Names to versions. The first version of a name becomes its default.

    Attributes:
        route: the version that serves a request, called with the name of a model and the version that the request
            names, or None. It is :meth:`get` until the versions of some model share its traffic.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self.route: Callable[[str, str | None], ModelVersion] = self.get

    def __iter__(self) -> Iterator[ModelVersion]:
        """All versions of all models."""
        for model in list(self._models.values()):
            yield from list(model.versions.values())

    def add(self, version: ModelVersion) -> None:
        """Registers a version.

        Raises:
            Conflict: that version of that name is registered.
        """
        self.check_free(version.name, version.version)
        model = self._models.setdefault(version.name, _Model(version.version))
        model.versions[version.version] = version
        if model.shares is not None or model.shadow is not None:
            self._connect(model)

    def check_free(self, name: str, version: str) -> None:
        """Refuses a name and version that are taken.

        Raises:
            Conflict: they are.
        """
        if name in self._models and version in self._models[name].versions:
            raise Conflict(f"Model version {version} is already registered for model {name}")

    def replace(self, old: ModelVersion, new: ModelVersion) -> None:
        """Puts a version of the same model into the place of another, also as the default one.

        Raises:
            ModelNotFound, VersionNotFound: the old one is not registered any more.
            Conflict: a third has the number of the new one.
        """
        if self.get(old.name, old.version) is not old:
            raise VersionNotFound(f"Model version: {old.version} of model: {old.name} was registered anew meanwhile")
        if new.version != old.version:
            self.check_free(new.name, new.version)
        model = self._models[old.name]
        model.versions = {
            (new if each is old else each).version: new if each is old else each for each in model.versions.values()
        }
        if model.default == old.version:
            model.default = new.version
        if model.shares is not None:
            model.shares = model.shares.renamed(old.version, new.version)
        if model.shadow is not None and model.shadow.version == old.version:
            model.shadow = model.shadow.moved(new.version, new.pool.put)
        self._connect(model)

    def get(self, name: str, version: str | None = None) -> ModelVersion:
        """A version, the default one if none is named.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"Model not found: {name}")
        found = model.versions.get(model.default if version is None else version)
        if found is None:
            raise VersionNotFound(f"Model version: {version} does not exist for model: {name}")
        return found

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, in the order of their registration.

        Raises:
            ModelNotFound: there is no such model.
        """
        self.get(name)
        return list(self._models[name].versions.values())

    def defaults(self) -> list[ModelVersion]:
        """The default version of each model, sorted by name."""
        return [self.get(name) for name in sorted(self._models)]

    def is_default(self, version: ModelVersion) -> bool:
        """Whether requests that name no version reach this one."""
        return self._models[version.name].default == version.version

    def set_default(self, name: str, version: str) -> None:
        """Makes a version the default.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"Model not found: {name}")
        if version not in model.versions:
            raise VersionNotFound(f"Model version {version} does not exist for model {name}")
        model.default = version
        model.shares = None
        if model.shadow is not None and model.shadow.version == version:
            model.shadow = None
        self._connect(model)

    # -- traffic ------------------------------------------------------------------------------------------------------

    def share(self, name: str, weights: Mapping[str, float], shadow: tuple[str, float] | None = None) -> None:
        """Divides the requests that name no version among versions; without weights the default gets them all again.

        Args:
            name: of the model.
            weights: by version.
            shadow: a version, and the percentage of what the others are asked that it is asked, too.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
            BadRequest: the weights are no weights, or the shadow answers requests itself.
        """
        for version in weights:
            self.get(name, version)
        default = self.get(name).version
        shares = Shares(weights) if weights else None
        made = None
        if shadow is not None:
            version, percentage = shadow
            if version == default or weights.get(version):
                raise BadRequest(
                    f"Version {version} answers requests of model {name}, so it cannot be its shadow.",
                    hint="Choose a version that is not the default one and has no weight.",
                )
            made = Shadow(version, percentage, self.get(name, version).pool.put)
        model = self._models[name]
        model.shares, model.shadow = shares, made
        self._connect(model)

    def weights(self, name: str) -> dict[str, float]:
        """The weights of the versions of a model; empty if the default one gets all requests that name none."""
        model = self._models.get(name)
        return dict(model.shares.weights) if model is not None and model.shares is not None else {}

    def shadow(self, name: str) -> Shadow | None:
        """The shadow of a model's versions, if they have one."""
        model = self._models.get(name)
        return model.shadow if model is not None else None

    def _connect(self, model: _Model) -> None:
        """Lets requests go where the shares and the shadow of a model say."""
        for version in model.versions.values():
            version.label = "default" if model.shares is None else version.version
            version.put = version.pool.put
            if model.shadow is not None and model.shadow.version != version.version:
                version.put = model.shadow.behind(version.pool.put)
        shared = any(each.shares is not None for each in self._models.values())
        self.route = self._route_shared if shared else self.get

    def _route_shared(self, name: str, version: str | None) -> ModelVersion:
        model = self._models.get(name)
        if version is None and model is not None and model.shares is not None:
            return model.versions[model.shares.pick()]
        return self.get(name, version)

    # -- going --------------------------------------------------------------------------------------------------------

    def check_removable(self, version: ModelVersion) -> None:
        """Refuses to remove a default version that has siblings.

        Raises:
            DefaultVersionInUse: it has.
        """
        if self.is_default(version) and len(self._models[version.name].versions) > 1:
            raise DefaultVersionInUse(
                f"Cannot remove default version for model {version.name}",
                hint="Make another version the default first (set-default), or unregister the others.",
            )

    def remove(self, version: ModelVersion) -> None:
        """Forgets a version."""
        model = self._models[version.name]
        del model.versions[version.version]
        if not model.versions:
            del self._models[version.name]
        elif model.default == version.version:
            model.default = next(iter(model.versions))
        if model.shares is not None:
            model.shares = model.shares.without(version.version)
        if model.shadow is not None and model.shadow.version == version.version:
            model.shadow = None
        self._connect(model)
