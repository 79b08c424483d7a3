"""What one registered version runs with, resolved from all the places that may say so.

Pure. TorchServe's precedence differs per key and is kept where it is sane:

==================  =========================================================================================
worker counts       model YAML (a valid pair) > request > ``models`` (start-up only) > ``default_workers_per_model``
batch size, delay   request > model YAML > ``models`` > default
timeouts            request > model YAML > ``models`` > server default (TorchServe ignored the request beside a YAML)
queue, retries,     model YAML > server default
isolation
==================  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mariner.archive.model_config import ModelConfig
from mariner.config import Config

__all__ = ["ModelSettings", "RegisterOptions", "resolve"]

DEFAULT_BATCH_DELAY = 0.1  # seconds; TorchServe's default


@dataclass(frozen=True, slots=True)
class RegisterOptions:
    """What a registration asks for; None where it says nothing. Times in seconds.

    Attributes:
        sha256: hash of the archive file.
        s3_sse_kms: its download is signed with the server's AWS credentials.
    """

    model_name: str | None = None
    handler: str | None = None
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay: float | None = None
    initial_workers: int | None = None
    response_timeout: float | None = None
    startup_timeout: float | None = None
    worker_bounds: tuple[int, int] | None = None  # exactly these, whatever the archive says
    sha256: str | None = None
    s3_sse_kms: bool = False


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a version runs. Times in seconds.

    Attributes:
        min_workers: workers to keep.
        max_workers: upper bound.
        batch_size: most requests in a batch.
        max_batch_delay: most seconds a request waits for its batch to fill.
        batching_policy: name of a row of ``mariner.batching.POLICIES``.
        queue_size: most requests that wait.
        response_timeout: for each reply of a worker.
        startup_timeout: for loading.
        retry_window: how long loading may fail without one success.
        client_timeout: deadline of a request that names none; 0 for none.
        isolate_batch_errors: a batch that fails is run again in parts. Never for models that keep state between the
            requests of a sequence or a stream: a second run would count twice.
        overlap: most requests that a worker runs side by side (``asyncCommunication``); 0 if it runs batches one after
            the other. Such workers get single requests.
        config: the whole model YAML, for what is passed through.
    """

    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay: float
    batching_policy: str
    queue_size: int
    response_timeout: float
    startup_timeout: float
    retry_window: float
    client_timeout: float
    isolate_batch_errors: bool
    overlap: int
    config: ModelConfig


def resolve(
    config: Config,
    yaml: ModelConfig,
    options: RegisterOptions,
    *,
    preset: Mapping[str, Any],
    automatic_workers: int | None,
) -> ModelSettings:
    """Merges the sources.

    Args:
        config: the server's settings.
        yaml: the archive's model config.
        options: the registration call.
        preset: the entry of the ``models`` key for this name and version.
        automatic_workers: how many workers a model that is loaded at start-up gets when nobody says; None for a
            model registered by a call, which gets none then.
    """
    min_workers, max_workers = options.worker_bounds or _workers(config, yaml, options, preset, automatic_workers)
    batch_size = max(1, _first(options.batch_size, yaml.batch_size, _positive(preset, "batchSize"), 1))
    queue_size = yaml.job_queue_size or config.job_queue_size
    return ModelSettings(
        min_workers=min_workers,
        max_workers=max_workers,
        batch_size=1 if yaml.async_communication else batch_size,
        max_batch_delay=_first(
            options.max_batch_delay,
            _seconds(yaml.max_batch_delay) or None,
            _seconds(_positive(preset, "maxBatchDelay")),
            DEFAULT_BATCH_DELAY,
        ),
        batching_policy=yaml.batching_policy or config.batching_policy.value,
        queue_size=queue_size,
        response_timeout=_first(
            options.response_timeout,
            yaml.response_timeout,
            _positive(preset, "responseTimeout"),
            config.default_response_timeout,
        ),
        startup_timeout=_first(
            options.startup_timeout,
            yaml.startup_timeout,
            _positive(preset, "startupTimeout"),
            config.default_startup_timeout,
        ),
        retry_window=_first(yaml.max_retry_timeout_in_sec, 300),
        client_timeout=_seconds(yaml.client_timeout_in_mills) or 0.0,
        isolate_batch_errors=_first(yaml.isolate_batch_errors, config.isolate_batch_errors)
        and not (yaml.sequence_batching or yaml.continuous_batching),
        overlap=queue_size if yaml.async_communication else 0,
        config=yaml,
    )


def _workers(
    config: Config,
    yaml: ModelConfig,
    options: RegisterOptions,
    preset: Mapping[str, Any],
    automatic: int | None,
) -> tuple[int, int]:
    if yaml.min_workers and yaml.max_workers and yaml.max_workers >= yaml.min_workers:
        return yaml.min_workers, yaml.max_workers
    default = config.default_workers_per_model
    if automatic is not None:
        wanted = _first(_positive(preset, "minWorkers"), default or None, automatic)
        return wanted, max(wanted, _positive(preset, "maxWorkers") or 0)
    wanted = max(0, _first(options.initial_workers, default))
    return wanted, wanted


def _first(*candidates: Any) -> Any:
    """The first that is set."""
    return next(candidate for candidate in candidates if candidate is not None)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _positive(preset: Mapping[str, Any], key: str) -> int | None:
    """An entry of ``models``; numeric strings count, zero and below mean unset, anything else is ignored."""
    try:
        number = int(preset[key])
    except (KeyError, TypeError, ValueError):
        return None
    return number if number > 0 else None
