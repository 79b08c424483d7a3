"""Recipe: how the workers of one version are made, from its archive, its settings and the server's."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mariner.archive.read import Archive
from mariner.config import SETTINGS, Config, MetricsMode
from mariner.engines import THREAD_VARIABLES, WorkerSpec
from mariner.memory import Footprint, Room
from mariner.model_settings import ModelSettings
from mariner.recycling import Limits
from ts.wire import Load

__all__ = ["Recipe", "RoomCheck", "make_recipe", "worker_environment"]

RoomCheck = Callable[[int, Sequence[Footprint], Sequence[int | None]], Awaitable[Room]]

_MENTIONS_TORCH = re.compile(rb"torch|transformers")  # whatever else builds on PyTorch is rarely used without its name
_SECRETS = frozenset(setting.variable for setting in SETTINGS.values() if setting.secret)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the workers of a pool are made.

    Attributes:
        model: name of the model.
        version: its version.
        spec: process to start, for a worker id.
        load: what that worker loads.
        next_id: hands out worker ids.
        response_timeout: seconds for each reply.
        startup_timeout: seconds for loading.
        retry_window: seconds during which loading may fail.
        overlap: most requests that a worker runs side by side; 0 if it runs one batch after the other.
        job_ticket: a request is taken only if a worker is idle.
        limits: beyond which a worker is replaced.
        quarantine_time: seconds for which a request that has killed two workers is not run again; 0 for none.
        idle_timeout: seconds without work after which a worker above the minimum stops; None if workers come and go
            by calls alone.
        room: how many of so many further workers fit into the memory, beside those that are ready and the GPUs of
            those that load; None if that is not to be asked.
    """

    model: str
    version: str
    spec: Callable[[int], WorkerSpec]
    load: Callable[[int], Load]
    next_id: Callable[[], int]
    response_timeout: float
    startup_timeout: float
    retry_window: float
    overlap: int = 0
    job_ticket: bool = False
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    quarantine_time: float = 0.0
    idle_timeout: float | None = None
    room: RoomCheck | None = None


def make_recipe(
    name: str,
    version: str,
    *,
    handler: str,
    archive: Archive,
    settings: ModelSettings,
    config: Config,
    python: str,
    environment: Mapping[str, str],
    next_id: Callable[[], int],
    device: Callable[[int], int | None],
    spare_processors: bool,
    room: RoomCheck,
) -> Recipe:
    """The recipe of a version.

    Args:
        name: name it is registered under.
        version: its version.
        handler: handler spec.
        archive: its files.
        settings: what it runs with.
        config: the server's settings.
        python: interpreter of its processes.
        environment: of its processes.
        next_id: hands out worker ids.
        device: the GPU of a worker id, None for CPU.
        spare_processors: there are more processors than workers, so that one may be kept awake.
        room: see :class:`Recipe`.
    """

    def load(id_: int) -> Load:
        return Load(
            model_name=name,
            model_version=version,
            model_dir=str(archive.model_dir),
            handler=handler,
            batch_size=settings.batch_size,
            gpu_id=device(id_),
            envelope=config.service_envelope or "",
            limit_max_image_pixels=config.limit_max_image_pixels,
            decode_input_request=config.decode_input_request,
            max_response_size=config.max_response_size,
            metrics_config=str(config.metrics_config or ""),
            poll_seconds=config.worker_poll_time if spare_processors else 0.0,
            isolate_batch_errors=settings.isolate_batch_errors,
            async_communication=settings.overlap > 0 and not settings.config.continuous_batching,
            continuous_batching=bool(settings.config.continuous_batching),
            shared_weights=str(archive.holder / "weights") if settings.shared_weights else "",
            every_metric=config.metrics_mode is not MetricsMode.PROMETHEUS,
        )

    warm = (
        settings.warm_start
        and _imports_torch(archive)
        and not (config.install_py_dep_per_model and archive.manifest.requirements_file)
    )  # what is imported already cannot be taken from the packages of the model
    return Recipe(
        model=name,
        version=version,
        spec=lambda id_: WorkerSpec(f"W-{id_}-{name}_{version}", python, environment, warm),
        load=load,
        next_id=next_id,
        response_timeout=settings.response_timeout,
        startup_timeout=settings.startup_timeout,
        retry_window=settings.retry_window,
        overlap=settings.overlap,
        job_ticket=settings.job_ticket,
        limits=Limits()  # the state of sequences would go with a worker
        if settings.config.sequence_batching
        else Limits(settings.max_requests_per_worker, settings.max_worker_memory_mb << 20),
        quarantine_time=config.quarantine_time,
        idle_timeout=settings.idle_timeout if settings.autoscale else None,
        room=room,
    )


def _imports_torch(archive: Archive) -> bool:
    """A guess. A wrong yes costs a start without PyTorch its quickness, a wrong no the memory that could be shared."""
    sources = list(archive.model_dir.glob("*.py"))
    if not sources:
        return True  # a built-in handler
    for source in sources:
        with suppress(OSError):
            if _MENTIONS_TORCH.search(source.read_bytes()):
                return True
    return False


def worker_environment(base: Mapping[str, str], config: Config, threads: int) -> dict[str, str]:
    """The environment of a worker: the server's, what TorchServe adds, a thread budget.

    Less the server's secrets, and the blocked names.

    Args:
        base: the server's environment.
        config: the server's settings.
        threads: threads that numeric libraries may use, unless the environment says so already.
    """
    environment = {name: value for name, value in base.items() if name not in _SECRETS}
    for name in THREAD_VARIABLES:
        environment.setdefault(name, str(threads))
    for part in ("id", "start", "end"):  # a handler's context looks here for the names
        environment.setdefault(f"TS_REQUEST_SEQUENCE_{part.upper()}", getattr(config, f"ts_header_key_sequence_{part}"))
    environment["TS_DECODE_INPUT_REQUEST"] = str(config.decode_input_request).lower()
    environment["TS_IPEX_ENABLE"] = str(config.ipex_enable).lower()
    environment["TS_IPEX_GPU_ENABLE"] = str(config.ipex_gpu_enable).lower()
    if config.blacklist_env_vars:
        blocked = config.blacklist_env_vars.fullmatch
        environment = {name: value for name, value in environment.items() if not blocked(name)}
    return environment
