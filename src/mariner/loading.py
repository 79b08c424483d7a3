"""From the ``url`` of a registration to a version that can be registered: archive, settings, packages, pool."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mariner.archive.download import fetch
from mariner.archive.manifest import Runtime
from mariner.archive.model_config import ModelConfig
from mariner.archive.read import Archive, derive_model_name, open_archive
from mariner.archive.s3 import sign_get
from mariner.autoscaling import MAX_WORKERS, Start, Stop
from mariner.batching import JobQueue, make_queue
from mariner.clock import Clock
from mariner.config import Config
from mariner.deaths import DeathCertificate, DeathRegister
from mariner.devices import Accelerators, DeviceAssigner, Vendor, cpu_quota, threads_per_worker
from mariner.engines import Engine
from mariner.errors import BadRequest, InvalidArchive
from mariner.jobs import Job, Reply, Sample
from mariner.memory import Footprint, Room, measure_room
from mariner.metrics import Metrics
from mariner.model_settings import SCALED, Choice, Explained, ModelSettings, RegisterOptions, choose, explain, resolve
from mariner.pool import PoolObserver, WorkerPool
from mariner.recipe import make_recipe, worker_environment
from mariner.registry import ModelVersion
from mariner.requirements import install_requirements, interpreter
from mariner.sequences import Rules, SequenceQueue
from mariner.slo import SloQueue
from mariner.worker import Worker

__all__ = ["MAX_WORKERS", "ModelLoader"]

log = logging.getLogger(__name__)


class ModelLoader:
    """Makes versions.

    Args:
        config: the server's settings.
        engine: starts their workers.
        clock: time and timers.
        metrics: counts what happens in their pools.
        accelerators: the devices of this machine.
        temp_dir: where archives are unpacked.
        deaths: keeps the death certificates of their workers.
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
        deaths: DeathRegister,
    ) -> None:
        self._config = config
        self._engine = engine
        self._clock = clock
        self._accelerators = accelerators
        self._temp_dir = temp_dir
        self._devices = DeviceAssigner(accelerators.count)
        self._observer = _Observer(metrics, clock, self._devices, deaths)
        self._next_worker = itertools.count(config.initial_worker_port).__next__

    async def open(self, url: str, options: RegisterOptions, *, reuse: bool = False) -> Archive:
        """Finds or fetches an archive and unpacks it.

        Args:
            url: archive or directory of the model store, or a remote archive.
            options: what the caller asks for.
            reuse: a file of that name that is in the model store already is taken instead of a remote one.

        Raises:
            ModelNotFound, InvalidArchive, DownloadFailed, Conflict, BadRequest: it cannot be done.
        """
        _runtime(options.runtime)  # nothing is fetched for a call that is wrong
        return await asyncio.to_thread(
            open_archive,
            url,
            model_store=self._config.model_store,
            allowed_urls=self._config.allowed_urls if self._config.is_set("allowed_urls") else (),
            temp_dir=self._temp_dir,
            download=partial(fetch, sign=partial(sign_get, environ=os.environ)) if options.s3_sse_kms else fetch,
            sha256=options.sha256,
            reuse_download=reuse,
        )

    def make(self, url: str, archive: Archive, options: RegisterOptions, *, at_startup: bool = False) -> ModelVersion:
        """A version, not registered and without workers.

        Args:
            url: what the archive was asked for by.
            archive: open.
            options: what the caller asks for.
            at_startup: it comes with the server's start; it may be named after its file and gets workers of its own.

        Raises:
            InvalidArchive, BadRequest: archive and options do not make a model.
        """
        manifest = archive.manifest
        name = options.model_name or manifest.model_name or (derive_model_name(url) if at_startup else "")
        if not name:
            raise InvalidArchive("Model name is not defined.", hint="Give model_name, or put it in the manifest.")
        handler = options.handler or manifest.handler or self._config.default_service_handler or ""
        if not handler:
            raise InvalidArchive(
                f"Model {name} has no handler.", hint="Give handler, or set default_service_handler in the config."
            )
        for warning in archive.warnings:
            log.warning("Model %s: %s", name, warning)
        preset = self._config.models.get(name, {}).get(manifest.model_version, {})
        yaml = self._usable_config(name, archive.config)
        settings = resolve(
            self._config,
            yaml,
            options,
            preset=preset,
            automatic_workers=max(1, self._accelerators.count) if at_startup else None,
        )
        # They share the processors also when they are as many as they may become.
        workers = max(settings.max_workers if settings.autoscale else settings.min_workers, 1)
        if settings.min_workers > MAX_WORKERS:
            raise BadRequest(
                f"Model {name} asks for {settings.min_workers} workers; at most {MAX_WORKERS} are started."
            )
        self._require_devices(name, settings)
        recipe = make_recipe(
            name,
            manifest.model_version,
            handler=handler,
            archive=archive,
            settings=settings,
            config=self._config,
            python=interpreter(archive),
            environment=self._environment(yaml, workers),
            next_id=self._next_worker,
            device=lambda _: self._device_for(f"{name}/{manifest.model_version}", yaml),
            spare_processors=cpu_quota() > workers,
            room=partial(self._room, f"{name}/{manifest.model_version}", yaml),
        )
        queue = self._queue(f'Model "{name}"', settings)
        pool = WorkerPool(recipe, engine=self._engine, queue=queue, clock=self._clock, observer=self._observer)
        return ModelVersion(
            name,
            manifest.model_version,
            archive,
            settings,
            pool,
            runtime=_runtime(options.runtime or preset.get("runtimeType")) or manifest.runtime.value,
            loaded_at_startup=at_startup,
            options=options,
        )

    def explain(self, version: ModelVersion) -> list[Explained]:
        """What a version runs with, and which place decided about each value."""
        chosen = choose(
            self._config,
            version.settings.config,
            version.options,
            preset=self._config.models.get(version.name, {}).get(version.version, {}),
            automatic_workers=max(1, self._accelerators.count) if version.loaded_at_startup else None,
        )
        if version.scaled:
            bounds = {"min_workers": version.pool.min_workers, "max_workers": version.pool.max_workers}
            chosen |= {name: Choice(value, SCALED) for name, value in bounds.items()}
        return explain(version.settings.config, chosen)

    async def remake(self, old: ModelVersion) -> ModelVersion:
        """A version made anew from what the archive of another is now: same name, same wishes, no workers yet.

        Raises:
            ModelNotFound, InvalidArchive, BadRequest: it cannot be done.
        """
        options = replace(old.options, model_name=old.name)
        archive = await self.open(old.archive.url, options, reuse=True)
        archive = replace(archive, downloaded=old.archive.downloaded)  # else it would stay when the model goes
        try:
            return self.make(archive.url, archive, options, at_startup=old.loaded_at_startup)
        except BaseException:
            await asyncio.to_thread(archive.remove, keep_download=True)
            raise

    async def install(self, version: ModelVersion, *, cancelled: Callable[[], bool]) -> None:
        """Gives a version its packages and interpreter.

        Args:
            version: made, without workers.
            cancelled: asked now and then; the installation ends once it is true.

        Raises:
            InvalidArchive: they cannot be installed.
        """
        await asyncio.to_thread(
            install_requirements,
            version.name,
            version.archive,
            enabled=self._config.install_py_dep_per_model,
            temp_dir=self._config.temp_dir,
            cache_size=self._config.package_cache_size,
            environment=worker_environment(os.environ, self._config, threads_per_worker(1)),
            cancelled=cancelled,
        )

    def _queue(self, model: str, settings: ModelSettings) -> JobQueue:
        """Where the requests of a version wait."""
        yaml = settings.config
        batch_size = 1 if settings.overlap else settings.batch_size
        if yaml.batching_policy == "slo":
            return SloQueue(
                model,
                target=(yaml.latency_slo_ms or 0.0) / 1000,
                batch_size=batch_size,
                max_delay=settings.max_batch_delay,
                capacity=settings.queue_size,
                clock=self._clock.time,
            )
        if not yaml.sequence_batching:
            return make_queue(
                settings.batching_policy,
                model,
                batch_size=batch_size,
                max_delay=settings.max_batch_delay,
                capacity=settings.queue_size,
                clock=self._clock.time,
            )
        rules = Rules(
            max_open=yaml.max_num_sequence or 1,
            max_waiting=yaml.max_sequence_job_queue_size or 1,
            max_idle=(yaml.sequence_max_idle_msec or 0) / 1000,
            max_life=(yaml.sequence_timeout_msec or math.inf) / 1000,
            side_by_side=bool(yaml.continuous_batching),
            id_header=self._config.ts_header_key_sequence_id,
            start_header=self._config.ts_header_key_sequence_start,
            end_header=self._config.ts_header_key_sequence_end,
        )
        return SequenceQueue(
            model,
            rules,
            batch_size=batch_size,
            max_delay=settings.max_batch_delay if settings.batching_policy == "fill" else 0.0,
            capacity=settings.queue_size,
            clock=self._clock.time,
        )

    def _usable_config(self, name: str, yaml: ModelConfig) -> ModelConfig:
        """The model config, less a list of devices that do not all exist.

        Raises:
            InvalidArchive: it asks for what does not exist yet, for sequences that would never end, or for batches that
                keep to a target it does not name.
        """
        if yaml.sequence_batching and not yaml.sequence_max_idle_msec:
            raise InvalidArchive(
                f"Model {name} has sequenceBatching without sequenceMaxIdleMSec.",
                hint="Set sequenceMaxIdleMSec above 0 in its model config: the time after which a sequence that nobody "
                "continues is given up.",
            )
        if yaml.batching_policy == "slo" and not yaml.latency_slo_ms:
            raise InvalidArchive(
                f"Model {name} has batchingPolicy: slo without latencySloMs.",
                hint="Set latencySloMs in its model config: the milliseconds within which requests are to be answered.",
            )
        if yaml.batching_policy == "slo" and yaml.sequence_batching:
            raise InvalidArchive(
                f"Model {name} has batchingPolicy: slo and sequenceBatching, which exclude each other.",
                hint="Choose batchingPolicy: eager or fill for sequences.",
            )
        if refused := yaml.refused():
            raise InvalidArchive(
                f"Model {name} cannot be served by this version: its model config has {', '.join(refused)}.",
                hint="The reference page of the model config lists what is not there yet.",
            )
        if yaml.device_ids and self._devices.usable(yaml.device_ids) != tuple(dict.fromkeys(yaml.device_ids)):
            return replace(yaml, device_ids=None)
        return yaml

    def _require_devices(self, name: str, settings: ModelSettings) -> None:
        """A handler that spreads over several GPUs by itself (``parallelType: custom``) is alone with all of them."""
        yaml, level = settings.config, settings.config.parallel_level or 0
        count = len(self._devices.usable(yaml.device_ids))
        if level < 2 or not count or yaml.device_type == "cpu":
            return
        if level > count:
            raise InvalidArchive(
                f"No enough gpu devices for model:{name} parallelLevel:{level}", hint=f"It may use {count} of them."
            )
        if settings.max_workers > 1:
            raise InvalidArchive(
                f"Model {name} cannot be served by this version: several workers on {level} GPUs each.",
                hint="Set minWorkers and maxWorkers to 1: the one worker sees all GPUs.",
            )

    def _environment(self, yaml: ModelConfig, workers: int) -> dict[str, str]:
        """What the workers of a version find in their environment; those for the CPU see no GPU.

        Much copied handlers ask ``torch.cuda.is_available()`` and not whether their worker was given a GPU.
        """
        environment = worker_environment(os.environ, self._config, threads_per_worker(workers))
        if yaml.device_type == "cpu" and self._accelerators.visible_variable:
            environment[self._accelerators.visible_variable] = ""
        return environment

    def _device_for(self, version: str, yaml: ModelConfig) -> int | None:
        """The GPU of the next worker, None for the CPU."""
        if yaml.device_type == "cpu":
            return None
        return self._devices.assign(version, yaml.device_ids)

    async def _room(
        self,
        version: str,
        yaml: ModelConfig,
        wanted: int,
        ready: Sequence[Footprint],
        coming: Sequence[int | None],
    ) -> Room:
        """How many of so many further workers fit into the memory; see :class:`mariner.recipe.Recipe`."""
        on_cpu = yaml.device_type == "cpu"
        devices = [None] * wanted if on_cpu else self._devices.foresee(version, yaml.device_ids, wanted)
        gpus = self._accelerators.ids if self._accelerators.vendor is Vendor.NVIDIA and not on_cpu else ()
        return await asyncio.to_thread(measure_room, devices, ready=ready, coming=coming, gpus=gpus)


def _runtime(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return Runtime(name).value
    except ValueError:
        raise BadRequest(f"Invalid RuntimeType value: {name}") from None


class _Observer(PoolObserver):
    """Counts what happens in pools, keeps death certificates, and takes back the devices of workers that have gone."""

    def __init__(self, metrics: Metrics, clock: Clock, devices: DeviceAssigner, deaths: DeathRegister) -> None:
        self._metrics = metrics
        self._clock = clock
        self._devices = devices
        self._deaths = deaths

    def finished(self, pool: WorkerPool, job: Job, reply: Reply, batch_size: int) -> None:
        if not reply.failed:
            now, model = self._clock.time(), pool.recipe.model
            queued, ran = job.taken - job.created, reply.handler_seconds
            self._metrics.inference_finished(model, job.label, now - job.created, queued, ran, batch_size)

    def loaded(self, pool: WorkerPool, worker: Worker, seconds: float) -> None:  # noqa: ARG002
        self._metrics.worker_loaded(worker.spec.name, seconds)

    def started(self, pool: WorkerPool, why: Start) -> None:
        self._metrics.worker_started(pool.recipe.model, pool.recipe.version, why.value)

    def stopped(self, pool: WorkerPool, why: Stop) -> None:
        self._metrics.worker_stopped(pool.recipe.model, pool.recipe.version, why.value)

    def sampled(self, pool: WorkerPool, worker: Worker, sample: Sample) -> None:  # noqa: ARG002
        self._metrics.worker_sample(*sample)

    def died(self, pool: WorkerPool, worker: Worker, certificate: DeathCertificate) -> None:  # noqa: ARG002
        self._deaths.add(certificate)
        self._metrics.worker_died(certificate.model, certificate.version, certificate.cause.value)

    def gone(self, pool: WorkerPool, worker: Worker) -> None:
        self._devices.release(f"{pool.recipe.model}/{pool.recipe.version}", worker.load.gpu_id)
