"""ModelServer: every use case of the server, free of protocols. HTTP, tests and tools all call it."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mariner.archive.manifest import Runtime
from mariner.archive.read import Archive, derive_model_name, list_archives, open_archive
from mariner.batching import make_queue
from mariner.bodies import Slot
from mariner.config import Config
from mariner.description import describe_version
from mariner.devices import Accelerators, DeviceAssigner, cpu_quota, threads_per_worker
from mariner.engines import Engine
from mariner.errors import BadRequest, Draining, InternalError, InvalidArchive, MarinerError, WorkerStartFailed
from mariner.jobs import Job, Outcome, Reply, Request, Sample, pack_headers
from mariner.metrics import Metrics
from mariner.model_settings import RegisterOptions, resolve
from mariner.pool import PoolObserver, WorkerPool
from mariner.recipe import make_recipe, worker_environment
from mariner.registry import ModelVersion, Registry
from mariner.requirements import install_requirements, interpreter
from mariner.worker import Clock, Worker

__all__ = ["ModelServer", "Registered"]

log = logging.getLogger(__name__)

MAX_WORKERS = 1024  # of one version; a typing error must not start a process for each of its digits
DESCRIBE_TIMEOUT = 30.0  # seconds that a handler may take to describe itself before the description does without


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration did.

    Attributes:
        name: name the model is registered under.
        version: its version.
        workers: workers that were started.
        ready: all of them are ready; False if the call did not wait for them.
    """

    name: str
    version: str
    workers: int
    ready: bool


class ModelServer:
    """The models of one server.

    Args:
        config: its settings.
        engine: starts workers.
        clock: time and timers; the event loop.
        metrics: counts what happens.
        accelerators: the devices of this machine.
        temp_dir: where archives are unpacked; private to this server.
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
        self._engine = engine
        self._clock = clock
        self._temp_dir = temp_dir
        self._accelerators = accelerators
        self._devices = DeviceAssigner(accelerators.count)
        self._observer = _Observer(metrics, clock, self._devices)
        self._next_worker = itertools.count(config.initial_worker_port).__next__

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
    ) -> Job:
        """Queues a request; ``deliver`` is called with the pieces of the answer and with its end.

        Args:
            name: model.
            version: version, None for the default one.
            request: what the handler is to see.
            deliver: see :class:`mariner.jobs.Job`.
            slot: shared memory that holds the body; the job's from here on, the caller's if this raises.
            timeout: seconds after which nobody wants the answer; None for the model's own limit.

        Raises:
            ModelNotFound, VersionNotFound, QueueFull, NoWorker, Draining: it cannot be served.
        """
        if self.draining:
            raise Draining("The server is stopping.", hint="Send the request to another server.", retry_after=5.0)
        found = self.registry.get(name, version)
        label = version or "default"
        self.metrics.inference_requested(name, label)
        now = self._clock.time()
        limit = timeout or found.settings.client_timeout or math.inf
        job = Job(request, deliver, deadline=now + limit, created=now, slot=slot, label=label)
        found.pool.put(job)
        return job

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
        version = await self._add(url, options or RegisterOptions())
        workers = version.settings.min_workers
        if workers and synchronous:
            try:
                await version.pool.settle()
            except WorkerStartFailed:
                await self._remove(version)
                raise
        return Registered(version.name, version.version, workers, ready=not workers or synchronous)

    async def load_initial_models(self, specs: Sequence[str]) -> None:
        """Registers the models the server starts with, side by side; one that fails does not stop the others.

        Of several versions of a model the first one named is the default, whichever was read first.

        Args:
            specs: ``all``, or any number of ``url`` and ``name=url``.
        """
        if [spec.lower() for spec in specs] == ["all"]:
            specs = self._store_entries()
        loaded = await asyncio.gather(*(self._load_initial_model(spec) for spec in specs))
        for name, version in reversed([(found.name, found.version) for found in loaded if found is not None]):
            self.registry.set_default(name, version)

    def _store_entries(self) -> list[str]:
        if self.config.model_store is None:
            log.warning("load_models=all has no effect: no model store is configured.")
            return []
        return list_archives(self.config.model_store)

    async def _load_initial_model(self, spec: str) -> ModelVersion | None:
        name, _, url = spec.rpartition("=") if "://" not in spec.partition("=")[0] else ("", "", spec)
        log.info("Loading initial models: %s", url)
        try:
            return await self._add(url, RegisterOptions(model_name=name or None), at_startup=True)
        except MarinerError as error:
            log.warning("Failed to load model: %s: %s %s", spec, error.message, error.hint)
        except Exception:
            log.exception("Failed to load model: %s", spec)
        return None

    async def wait_until_ready(self) -> None:
        """Waits until every worker of every model has loaded or failed once."""
        await asyncio.gather(*(version.pool.settle() for version in self.registry), return_exceptions=True)

    async def _add(self, url: str, options: RegisterOptions, *, at_startup: bool = False) -> ModelVersion:
        """Opens the archive, registers the version and lets its workers start."""
        if self.draining:
            raise Draining("The server is stopping.")
        self._runtime(options)
        archive = await asyncio.to_thread(
            open_archive,
            url,
            model_store=self.config.model_store,
            allowed_urls=self.config.allowed_urls if self.config.is_set("allowed_urls") else (),
            temp_dir=self._temp_dir,
            reuse_download=at_startup,
        )
        try:
            version = self._make_version(url, archive, options, at_startup=at_startup)
            await self._install(version)
            self.registry.add(version)
        except BaseException:
            await asyncio.to_thread(archive.remove)
            raise
        log.info("Model %s loaded.", version.name)
        version.pool.scale(version.settings.min_workers, version.settings.max_workers)
        return version

    async def _install(self, version: ModelVersion) -> None:
        """Gives the version its packages and interpreter."""
        await asyncio.to_thread(
            install_requirements,
            version.name,
            version.archive,
            enabled=self.config.install_py_dep_per_model,
            temp_dir=self.config.temp_dir,
            environment=worker_environment(os.environ, self.config, threads_per_worker(1)),
            cancelled=lambda: self.draining,
        )
        if self.draining:  # pip may have taken minutes
            raise Draining("The server is stopping.")

    def _make_version(self, url: str, archive: Archive, options: RegisterOptions, *, at_startup: bool) -> ModelVersion:
        manifest = archive.manifest
        name = options.model_name or manifest.model_name or (derive_model_name(url) if at_startup else "")
        if not name:
            raise InvalidArchive("Model name is not defined.", hint="Give model_name, or put it in the manifest.")
        self.registry.check_free(name, manifest.model_version)
        handler = options.handler or manifest.handler or self.config.default_service_handler or ""
        if not handler:
            raise InvalidArchive(
                f"Model {name} has no handler.", hint="Give handler, or set default_service_handler in the config."
            )
        for warning in archive.warnings:
            log.warning("Model %s: %s", name, warning)
        preset = self.config.models.get(name, {}).get(manifest.model_version, {})
        settings = resolve(
            self.config,
            archive.config,
            options,
            preset=preset,
            automatic_workers=max(1, self._accelerators.count) if at_startup else None,
        )
        workers = max(settings.min_workers, 1)
        if settings.min_workers > MAX_WORKERS:
            raise BadRequest(
                f"Model {name} asks for {settings.min_workers} workers; at most {MAX_WORKERS} are started."
            )
        recipe = make_recipe(
            name,
            manifest.model_version,
            handler=handler,
            archive=archive,
            settings=settings,
            config=self.config,
            python=interpreter(archive),
            environment=worker_environment(os.environ, self.config, threads_per_worker(workers)),
            next_id=self._next_worker,
            device=lambda _: self._device_for(f"{name}/{manifest.model_version}", archive),
            spare_processors=cpu_quota() > workers,
        )
        queue = make_queue(
            settings.batching_policy,
            f'Model "{name}"',
            batch_size=settings.batch_size,
            max_delay=settings.max_batch_delay,
            capacity=settings.queue_size,
            clock=self._clock.time,
        )
        pool = WorkerPool(recipe, engine=self._engine, queue=queue, clock=self._clock, observer=self._observer)
        return ModelVersion(
            name,
            manifest.model_version,
            archive,
            settings,
            pool,
            runtime=self._runtime(options) or manifest.runtime.value,
            loaded_at_startup=at_startup,
        )

    @staticmethod
    def _runtime(options: RegisterOptions) -> str | None:
        if options.runtime is None:
            return None
        try:
            return Runtime(options.runtime).value
        except ValueError:
            raise BadRequest(f"Invalid RuntimeType value: {options.runtime}") from None

    def _device_for(self, version: str, archive: Archive) -> int | None:
        """The GPU of the next worker, None for the CPU."""
        if archive.config.device_type == "cpu":
            return None
        return self._devices.assign(version, archive.config.device_ids)

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Answers what waits, stops the workers and deletes the unpacked files.

        Raises:
            ModelNotFound, VersionNotFound, DefaultVersionInUse: it cannot be done.
        """
        found = self.registry.get(name, version)
        self.registry.check_removable(found)
        await self._remove(found)

    async def _remove(self, version: ModelVersion) -> None:
        self.registry.remove(version)
        await version.pool.drain(self.config.unregister_model_timeout)
        await asyncio.to_thread(version.archive.remove)
        log.info("Model %s version %s unregistered.", version.name, version.version)

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
        pool = self.registry.get(name, version).pool
        pool.scale(min_workers, max_workers)
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

    def list_models(self) -> list[tuple[str, str]]:
        """Names and urls of the default versions, sorted by name."""
        return [(version.name, version.archive.url) for version in self.registry.defaults()]

    async def describe(
        self, name: str, version: str | None, *, all_versions: bool = False, customized: bool = False
    ) -> list[dict[str, Any]]:
        """What TorchServe's describe call shows, one entry per version.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model or version.
            NoWorker: ``customized`` needs a worker and there is none.
        """
        if all_versions:
            return [self._describe(found) for found in self.registry.versions(name)]
        found = self.registry.get(name, version)
        description = self._describe(found)
        if customized and (metadata := await self._ask_for_metadata(found)):
            description["customizedMetadata"] = metadata
        return [description]

    def _describe(self, version: ModelVersion) -> dict[str, Any]:
        return describe_version(version, has_gpu=self._accelerators.count > 0, clock=self._clock)

    async def _ask_for_metadata(self, version: ModelVersion) -> dict[str, Any]:
        """What the handler says of itself; empty if it says nothing that can be shown."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        now = self._clock.time()
        job = Job(
            Request(str(uuid.uuid4()), pack_headers([("describe", "True")]), []),
            lambda outcome: None if future.done() else future.set_result(outcome),
            deadline=now + DESCRIBE_TIMEOUT,
            created=now,
            alone=True,
        )
        if not version.pool.workers:
            error = version.pool.no_worker()
            error.message = (
                f'Model "{version.name}" has no worker to serve describe request. '
                "Please use scale workers API to add workers."
            )
            raise error
        version.pool.put(job)
        try:
            outcome = await asyncio.wait_for(future, DESCRIBE_TIMEOUT)
        except TimeoutError:
            job.cancel()
            raise InternalError("Failed to get customized model matadata.") from None
        if isinstance(outcome, MarinerError):
            raise outcome
        try:
            metadata = json.loads(bytes(outcome.body))
        except ValueError:
            return {}
        return metadata if isinstance(metadata, dict) and not outcome.failed else {}

    # -- health and end -----------------------------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether the default version of each model has the workers it should, or may still get them."""
        return all(version.pool.healthy_workers >= version.pool.min_workers for version in self.registry.defaults())

    async def drain(self, timeout: float) -> bool:
        """Takes nothing new, answers what it has, stops all workers, deletes what was unpacked.

        Returns:
            Whether everything was answered in time.
        """
        self.draining = True
        versions = list(self.registry)
        in_time = await asyncio.gather(*(version.pool.drain(timeout) for version in versions))
        for version in versions:
            self.registry.remove(version)
            await asyncio.to_thread(version.archive.remove, keep_download=True)
        return all(in_time)


class _Observer(PoolObserver):
    """Counts what happens in pools, and takes back the devices of workers that have gone."""

    def __init__(self, metrics: Metrics, clock: Clock, devices: DeviceAssigner) -> None:
        self._metrics = metrics
        self._clock = clock
        self._devices = devices

    def finished(self, pool: WorkerPool, job: Job, reply: Reply, batch_size: int) -> None:
        if not reply.failed:
            now, model = self._clock.time(), pool.recipe.model
            queued, ran = job.taken - job.created, reply.handler_seconds
            self._metrics.inference_finished(model, job.label, now - job.created, queued, ran, batch_size)

    def loaded(self, pool: WorkerPool, worker: Worker, seconds: float) -> None:  # noqa: ARG002
        self._metrics.worker_loaded(worker.spec.name, seconds)

    def sampled(self, pool: WorkerPool, worker: Worker, sample: Sample) -> None:  # noqa: ARG002
        self._metrics.worker_sample(sample.name, sample.unit, sample.type, sample.value, sample.dimensions)

    def gone(self, pool: WorkerPool, worker: Worker) -> None:
        self._devices.release(f"{pool.recipe.model}/{pool.recipe.version}", worker.load.gpu_id)
