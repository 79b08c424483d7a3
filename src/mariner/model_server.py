"""ModelServer: every use case of the server, free of protocols. HTTP, tests and tools all call it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mariner import initial_models
from mariner.bodies import Slot
from mariner.clock import Clock
from mariner.config import Config
from mariner.deaths import DeathCertificate, DeathRegister
from mariner.deployment import Deployment
from mariner.description import Metadata, ask_for_metadata, describe_version, read_metadata
from mariner.devices import Accelerators, read_gpu_usage
from mariner.engines import Engine
from mariner.errors import BadRequest, Draining, MarinerError, NotFound, WorkerStartFailed
from mariner.jobs import Job, Outcome, Reply, Request
from mariner.lifecycle import Phase, Readiness, State
from mariner.loading import MAX_WORKERS, ModelLoader
from mariner.metrics import Metrics
from mariner.model_settings import Explained, RegisterOptions
from mariner.registry import ModelVersion, Registry
from mariner.snapshot import SnapshotModel

__all__ = ["ModelServer", "Registered"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration did.

    Attributes:
        name: name the model is registered under.
        version: its version.
        workers: workers that were started.
        ready: all of them are ready; False if the call did not wait for them.
        on_demand: the first request starts a worker.
    """

    name: str
    version: str
    workers: int
    ready: bool
    on_demand: bool = False


class ModelServer:
    """The models of one server.

    Args:
        config: its settings.
        engine: starts workers.
        clock: time and timers; the event loop.
        metrics: counts what happens.
        accelerators: the devices of this machine.
        temp_dir: where archives are unpacked; private to this server.

    Attributes:
        phase: whether it starts, serves or stops.
        changed: called when a call has changed the models, their default versions or the number of their workers.
    """

    def __init__(
        self,
        config: Config,
        *,
        engine: Engine,
        clock: Clock,
        metrics: Metrics,
        accelerators: Accelerators,
        temp_dir: Path,
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.registry = Registry()
        self.draining = False
        self.phase = Phase.SERVING
        self.changed: Callable[[], object] = lambda: None
        self._deaths = DeathRegister()
        self._engine = engine
        self._clock = clock
        self._accelerators = accelerators
        self._loader = ModelLoader(
            config,
            engine=engine,
            clock=clock,
            metrics=metrics,
            accelerators=accelerators,
            temp_dir=temp_dir,
            deaths=self._deaths,
        )
        self._deployment = Deployment(
            self._loader,
            self.registry,
            clock=clock,
            drain_timeout=config.unregister_model_timeout,
            stopping=lambda: self.draining,
            replaced=lambda: self.changed(),  # noqa: PLW0108 - who listens may change
        )
        metrics.watch_queues(self._queues)
        metrics.watch_workers(self._ready_workers)

    # -- inference ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        version: str | None,
        request: Request,
        deliver: Callable[[Outcome], None],
        *,
        slot: Slot | None = None,
        timeout: float | None = None,
        alone: bool = False,
    ) -> Job:
        """Queues a request; ``deliver`` is called with the pieces of the answer and with its end.

        Args:
            name: model.
            version: version, None for the default one.
            request: what the handler is to see.
            deliver: see :class:`mariner.jobs.Job`.
            slot: shared memory that holds the body; the job's from here on, the caller's if this raises.
            timeout: seconds after which nobody wants the answer; None for the model's own limit.
            alone: it shares its batch with no other.

        Raises:
            ModelNotFound, VersionNotFound, QueueFull, NoWorker, Draining: it cannot be served.
        """
        if self.draining:
            raise Draining("The server is stopping.", hint="Send the request to another server.", retry_after=5.0)
        found = self.registry.route(name, version)
        label = version or found.label
        self.metrics.inference_requested(name, label)
        now = self._clock.time()
        limit = timeout or found.settings.client_timeout or math.inf
        make = found.pool.queue.job_type
        job = make(request, deliver, deadline=now + limit, created=now, slot=slot, label=label, alone=alone)
        found.put(job)
        return job

    def now(self) -> float:
        """Seconds on the clock that stamps jobs."""
        return self._clock.time()

    def only_initial_model(self) -> str | None:
        """The name of the model the server started with, if it is one alone."""
        names = {version.name for version in self.registry if version.loaded_at_startup}
        return names.pop() if len(names) == 1 else None

    async def predict(self, name: str, version: str | None, request: Request, *, timeout: float | None = None) -> Reply:
        """Sends a request and waits for the whole answer; the pieces of a streamed one are joined.

        Raises:
            MarinerError: what :meth:`submit` raises, or what became of the request later.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        pieces: list[bytes] = []

        def deliver(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, MarinerError):
                future.set_exception(outcome)
            elif outcome.more:
                pieces.append(bytes(outcome.body))
            else:
                future.set_result(outcome._replace(body=b"".join([*pieces, outcome.body])) if pieces else outcome)

        job = self.submit(name, version, request, deliver, timeout=timeout)
        try:
            return await future
        except asyncio.CancelledError:
            job.cancel()
            raise

    # -- management ---------------------------------------------------------------------------------------------------

    async def register(
        self, url: str, options: RegisterOptions | None = None, *, synchronous: bool = True
    ) -> Registered:
        """Loads an archive and starts its workers.

        Args:
            url: archive or directory of the model store, or a remote archive.
            options: what the caller asks for.
            synchronous: wait for the workers; if one fails, the model is unregistered again.

        Raises:
            ModelNotFound, InvalidArchive, DownloadFailed, Conflict, BadRequest, WorkerStartFailed: it cannot be done.
        """
        self._deployment.require_open()
        options = options or RegisterOptions()
        version = await self._deployment.enter(url, await self._deployment.open(url, options), options)
        await self._deployment.start(version)
        self.changed()
        workers = version.settings.min_workers
        if workers and synchronous:
            try:
                await version.pool.settle()
            except WorkerStartFailed:
                await self._deployment.remove(version)
                self.changed()
                raise
        on_demand = version.pool.scaler.on_demand
        return Registered(version.name, version.version, workers, not workers or synchronous, on_demand)

    async def load_initial_models(self, specs: Sequence[str]) -> None:
        """Registers the models the server starts with; one that fails does not stop the others.

        Of several versions of a model the first one named is the default, whichever was read first.

        Args:
            specs: ``all``, or any number of ``url`` and ``name=url``. What is there already, from a snapshot, is left.
        """
        await initial_models.load_named(self._deployment, specs, self.config.model_store)

    async def restore(self, models: Sequence[SnapshotModel]) -> None:
        """Registers the models of a snapshot; one that fails does not stop the others."""
        await initial_models.restore(self._deployment, models)

    async def wait_until_ready(self, progress: Callable[[ModelVersion, bool], object] | None = None) -> None:
        """Waits until every worker of every model has loaded or failed once.

        Args:
            progress: told of each version when its turn has come, and whether it is ready.
        """

        async def settle(version: ModelVersion) -> None:
            ready = True
            try:
                await version.pool.settle()
            except WorkerStartFailed:
                ready = False
            if progress is not None:
                progress(version, ready)

        await asyncio.gather(*(settle(version) for version in self.registry))

    def not_loaded(self) -> int:
        """How many initial models have no version, because their archive could not be used."""
        return len(self._deployment.not_loaded)

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Answers what waits, stops the workers and deletes the unpacked files.

        Raises:
            ModelNotFound, VersionNotFound, DefaultVersionInUse: it cannot be done.
        """
        found = self.registry.get(name, version)
        self.registry.check_removable(found)
        await self._deployment.remove(found)
        self.changed()

    async def reload_version(self, name: str, version: str | None = None) -> ModelVersion:
        """Loads the archive of a version anew and puts the result into its place, without losing a request.

        Returns:
            What is in its place; the old version has answered what it had and is gone.

        Raises:
            MarinerError: the archive cannot be loaded; the old version goes on.
        """
        self._deployment.require_open()
        return await self._deployment.replace(name, version)

    async def reload(self) -> None:
        """Replaces each version whose archive has changed since it was opened, one after the other.

        Requests go to the old version until the workers of the new one are ready; then it answers what it has and
        goes. An archive that cannot be loaded leaves the old version as it is. The log says what happened.
        """
        await self._deployment.replace_changed()

    async def scale(
        self, name: str, version: str | None, min_workers: int, max_workers: int, *, synchronous: bool
    ) -> bool:
        """Changes the number of workers.

        Returns:
            Whether all of them are ready; False if the call did not wait.

        Raises:
            ModelNotFound, VersionNotFound, BadRequest, WorkerStartFailed: it cannot be done.
        """
        if min_workers < 0:
            raise BadRequest("min_worker cannot be negative.")
        if max_workers < min_workers:
            raise BadRequest("max_worker cannot be less than min_worker.")
        if min_workers > MAX_WORKERS:
            raise BadRequest(f"min_worker cannot be more than {MAX_WORKERS}.")
        found = self.registry.get(name, version)
        pool, found.scaled = found.pool, True
        log.debug("updateModel: %s, count: %d", name, min_workers)
        pool.scale(min_workers, max_workers)
        self.changed()
        if not synchronous:
            return False
        try:
            await pool.settle()
        except WorkerStartFailed as error:
            error.message = f"Failed to start workers for model {name} version: {version or 'null'}"
            raise
        return True

    def set_default(self, name: str, version: str) -> None:
        """Makes a version answer the requests that name none.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        self.registry.set_default(name, version)
        log.debug("Setting default version to %s for model %s", version, name)
        self.changed()

    def share_traffic(self, name: str, weights: Mapping[str, float], shadow: tuple[str, float] | None = None) -> None:
        """See :meth:`mariner.registry.Registry.share`.

        Raises:
            ModelNotFound, VersionNotFound, BadRequest: it cannot be done.
        """
        self.registry.share(name, weights, shadow)
        behind = "" if shadow is None else f", {shadow[1]:g} % mirrored to version {shadow[0]}"
        log.info("Traffic of model %s: %s%s", name, dict(weights) or "all to the default version", behind)
        self.changed()

    def list_models(self) -> list[tuple[str, str]]:
        """Names and urls of the default versions, sorted by name."""
        return [(version.name, version.archive.url) for version in self.registry.defaults()]

    def metadata(self, name: str, version: str | None) -> Metadata:
        """What a version is, and which others there are.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        found = self.registry.get(name, version)
        return read_metadata(found, [each.version for each in self.registry.versions(name)])

    async def describe(
        self, name: str, version: str | None, *, all_versions: bool = False, customized: bool = False
    ) -> list[dict[str, Any]]:
        """What TorchServe's describe call shows, one entry per version; of a model that is going, what is left of it.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
            NoWorker: ``customized`` needs a worker and there is none.
        """
        try:
            found = self.registry.versions(name) if all_versions else [self.registry.get(name, version)]
        except NotFound:
            found = [old for old in self._deployment.leaving if old.name == name and version in {None, old.version}]
            if not found:
                raise
        usage: dict[int, str] = {}
        if any(worker.load.gpu_id is not None for each in found for worker in each.pool.workers):
            usage = await asyncio.to_thread(read_gpu_usage, self._accelerators.ids)
        has_gpu = self._accelerators.count > 0
        descriptions = [
            describe_version(
                each,
                has_gpu=has_gpu,
                clock=self._clock,
                gpu_usage=usage,
                deaths=self._deaths.of(each.name, each.version),
            )
            for each in found
        ]
        if weights := self.registry.weights(name):
            for description in descriptions:
                description["trafficWeight"] = weights.get(description["modelVersion"], 0)
        if customized and (metadata := await ask_for_metadata(found[0], self._clock)):
            descriptions[0]["customizedMetadata"] = metadata
        return descriptions

    def explain(self, name: str, version: str | None) -> list[Explained]:
        """What a version runs with, and which place decided about each value.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        return self._loader.explain(self.registry.get(name, version))

    def deaths(self, name: str, version: str | None) -> tuple[str, Sequence[DeathCertificate]]:
        """A version and the death certificates of its workers, latest first; also of one that is no longer registered.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version, and no worker of one has died.
        """
        try:
            found = self.registry.get(name, version).version
        except NotFound:
            found = version or self._deaths.latest_version(name) or ""
            if not self._deaths.of(name, found):
                raise
        return found, self._deaths.of(name, found)

    def worker_pids(self) -> list[int]:
        """The processes of all workers."""
        return [worker.pid for version in self.registry for worker in version.pool.workers if worker.pid]

    def _queues(self) -> list[tuple[str, str, int, Mapping[str, int]]]:
        return [
            (version.name, version.version, version.pool.waiting, version.pool.queue.refusals)
            for version in self.registry
        ]

    def _ready_workers(self) -> list[tuple[str, str, int]]:
        return [
            (version.name, version.version, sum(worker.state is State.READY for worker in version.pool.workers))
            for version in self.registry
        ]

    # -- health and end -----------------------------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether the default version of each model has the workers it should, or may still get them."""
        pools = [version.pool for version in self.registry.defaults()]
        return all(pool.healthy_workers >= pool.min_workers and not pool.broken for pool in pools)

    def ready(self) -> bool:
        """Whether every initial model can answer, as far as it should have workers at all, and none is broken."""
        return self.condition() is Readiness.READY

    def condition(self) -> Readiness | Phase:
        """What a load balancer should know: why the server is not ready, or that it is."""
        if self.phase is not Phase.SERVING:
            return self.phase
        if self.draining:
            return Readiness.DRAINING
        if self._deployment.not_loaded or not self.healthy():
            return Readiness.BROKEN
        initial = (version.pool for version in self.registry if version.loaded_at_startup)
        return Readiness.READY if all(pool.ready for pool in initial if pool.min_workers) else Readiness.LOADING

    def readiness(self, name: str, version: str | None) -> Readiness:
        """Whether a version can answer.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        return self.registry.get(name, version).pool.readiness

    def serves(self, name: str, version: str | None) -> bool:
        """Whether a version answers a request that comes now, perhaps when it has been loaded for it.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        return self.registry.get(name, version).pool.serves

    async def drain(self, timeout: float) -> bool:
        """Takes nothing new, answers what it has, stops all workers, deletes what was unpacked.

        Returns:
            Whether everything was answered in time.
        """
        self.draining = True
        in_time = await self._deployment.drain(timeout)
        await self._engine.close()
        return in_time
