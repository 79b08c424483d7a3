"""What one registered version runs with, resolved from all the places that may say so.

Pure. TorchServe's precedence differs per key and is kept where it is sane:

==================  =========================================================================================
worker counts       model YAML (a valid pair) > request > ``models`` (start-up only) > ``default_workers_per_model``
batch size, delay   request > model YAML > ``models`` > default
timeouts            request > model YAML > ``models`` > server default (TorchServe ignored the request beside a YAML)
queue, retries,     model YAML > server default
isolation, start,
scaling by itself
==================  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from mariner.archive.model_config import ModelConfig, plain, rows
from mariner.config import Config, Source

__all__ = [
    "MODEL_CONFIG",
    "SCALED",
    "Choice",
    "Explained",
    "ModelSettings",
    "RegisterOptions",
    "choose",
    "explain",
    "resolve",
]

DEFAULT_BATCH_DELAY: Final = 0.1  # seconds; TorchServe's default, as are the others
DEFAULT_RETRY_WINDOW: Final = 300  # seconds
NO_TIMEOUT: Final = 2**31 - 1  # seconds; what TorchServe has and shows with debug=true

MODEL_CONFIG: Final = "model config"
API: Final = "API"
SCALED: Final = "API, scaled"
_MODELS: Final = "models"


@dataclass(frozen=True, slots=True)
class RegisterOptions:
    """What a registration asks for; None where it says nothing. Times in seconds.

    Attributes:
        sha256: hash of the archive file.
        s3_sse_kms: its download is signed with the server's AWS credentials.
        asked_by: what to call the place that asks, where it wins.
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
    asked_by: str = field(default=API, compare=False)


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
        job_ticket: a request is taken only if a worker is idle.
        isolate_batch_errors: a batch that fails is run again in parts. Never for models that keep state between the
            requests of a sequence or a stream: a second run would count twice.
        warm_start: its workers fork from a process that has imported PyTorch, where they use it.
        overlap: most requests that a worker runs side by side (``asyncCommunication``, ``continuousBatching``); 0 if it
            runs batches one after the other. Such workers get single requests.
        shared_weights: its workers on the CPU have their weights in one file.
        max_requests_per_worker: requests after which a worker is replaced; 0 for never.
        max_worker_memory_mb: MiB beyond which it is; 0 for never.
        autoscale: workers come and go between the bounds as work does. Never for models that keep state between the
            requests of a sequence: it would go with a worker.
        idle_timeout: seconds without work after which a worker above the minimum stops.
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
    job_ticket: bool
    isolate_batch_errors: bool
    warm_start: bool
    overlap: int
    shared_weights: bool
    max_requests_per_worker: int
    max_worker_memory_mb: int
    autoscale: bool
    idle_timeout: float
    config: ModelConfig


class Choice(NamedTuple):
    """A value, and the place that decided."""

    value: Any
    place: str


class Explained(NamedTuple):
    """A key of the model config, its value as the file would have it, and the place that decided."""

    key: str
    value: str
    place: str


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
    chosen = choose(config, yaml, options, preset=preset, automatic_workers=automatic_workers)
    return ModelSettings(**{name: choice.value for name, choice in chosen.items()}, config=yaml)


def choose(
    config: Config,
    yaml: ModelConfig,
    options: RegisterOptions,
    *,
    preset: Mapping[str, Any],
    automatic_workers: int | None,
) -> dict[str, Choice]:
    """The settings by their names in :class:`ModelSettings`, each with the place that decided.

    Args:
        config: the server's settings.
        yaml: the archive's model config.
        options: the registration call, or what stands for it.
        preset: as for :func:`resolve`.
        automatic_workers: as for :func:`resolve`.
    """

    def server(key: str) -> Choice:
        origin = config.origin(key)
        place = "default" if origin.source is Source.DEFAULT else f"{key}, {origin}"
        value = getattr(config, key)
        return Choice(value.value if isinstance(value, Enum) else value, place)

    def model(value: Any) -> Choice:
        return Choice(value, MODEL_CONFIG)

    def models(key: str, scale: float = 1) -> Choice:
        value = _positive(preset, key)
        return Choice(value if value is None or scale == 1 else value * scale, f"{_MODELS}, {config.origin('models')}")

    def asked(value: Any) -> Choice:
        return Choice(value, options.asked_by)

    autoscale = _first(model(yaml.autoscale), server("autoscale"))
    if yaml.sequence_batching:
        autoscale = Choice(False, MODEL_CONFIG)
    minimum, maximum = _workers(config, yaml, options, preset, automatic_workers)
    if not minimum.value and minimum.place == MODEL_CONFIG and not autoscale.value:
        minimum = minimum._replace(value=1)  # as in TorchServe: nobody else would start it
    batch_size = _first(asked(options.batch_size), model(yaml.batch_size), models("batchSize"), Choice(1, "default"))
    if yaml.async_communication and not yaml.continuous_batching:
        batch_size = Choice(1, f"{MODEL_CONFIG}, asyncCommunication")
    queue_size = _first(model(yaml.job_queue_size or None), server("job_queue_size"))
    isolate = _first(model(yaml.isolate_batch_errors), server("isolate_batch_errors"))
    if yaml.sequence_batching or yaml.continuous_batching:
        isolate = Choice(False, MODEL_CONFIG)
    timeouts = {
        "response_timeout": _first(
            asked(options.response_timeout),
            model(yaml.response_timeout),
            models("responseTimeout"),
            server("default_response_timeout"),
        ),
        "startup_timeout": _first(
            asked(options.startup_timeout),
            model(yaml.startup_timeout),
            models("startupTimeout"),
            server("default_startup_timeout"),
        ),
    }
    if config.debug:
        timeouts = dict.fromkeys(timeouts, Choice(NO_TIMEOUT, server("debug").place))
    return {
        "min_workers": minimum,
        "max_workers": maximum,
        "batch_size": batch_size._replace(value=max(1, batch_size.value)),
        "max_batch_delay": _first(
            asked(options.max_batch_delay),
            model(_seconds(yaml.max_batch_delay) or None),
            models("maxBatchDelay", 0.001),
            Choice(DEFAULT_BATCH_DELAY, "default"),
        ),
        "batching_policy": _first(model(yaml.batching_policy), server("batching_policy")),
        "queue_size": queue_size,
        **timeouts,
        "retry_window": _first(model(yaml.max_retry_timeout_in_sec), Choice(DEFAULT_RETRY_WINDOW, "default")),
        "client_timeout": _first(model(_seconds(yaml.client_timeout_in_mills)), Choice(0.0, "default")),
        "job_ticket": _first(model(yaml.use_job_ticket), Choice(False, "default")),
        "isolate_batch_errors": isolate,
        "warm_start": _first(model(yaml.warm_start), server("warm_start")),
        "shared_weights": _first(model(yaml.shared_weights), server("shared_weights")),
        "max_requests_per_worker": _first(model(yaml.max_requests_per_worker), server("max_requests_per_worker")),
        "max_worker_memory_mb": _first(model(yaml.max_worker_memory_mb), server("max_worker_memory_mb")),
        "autoscale": autoscale,
        "idle_timeout": _first(model(yaml.worker_idle_timeout_sec), server("worker_idle_timeout")),
        "overlap": Choice(_overlap(yaml, batch_size.value, queue_size.value), MODEL_CONFIG),
    }


def _overlap(yaml: ModelConfig, batch_size: int, queue_size: int) -> int:
    if yaml.continuous_batching:
        # With sequences, a request that ends a running one must find room beside a full batch.
        return max(1, batch_size) * (2 if yaml.sequence_batching else 1)
    return queue_size if yaml.async_communication else 0


# The fields of the settings that are keys of the model config under another name.
_FIELDS: Final = {
    "job_queue_size": "queue_size",
    "max_retry_timeout_in_sec": "retry_window",
    "client_timeout_in_mills": "client_timeout",
    "use_job_ticket": "job_ticket",
    "worker_idle_timeout_sec": "idle_timeout",
}
_MILLISECONDS: Final = frozenset({"max_batch_delay", "client_timeout_in_mills"})


def explain(yaml: ModelConfig, chosen: Mapping[str, Choice]) -> list[Explained]:
    """Every key of the model config.

    Args:
        yaml: the archive's model config.
        chosen: what :func:`choose` made of it and the other places.
    """
    explained = []
    for name, row in rows(ModelConfig).items():
        choice = chosen.get(_FIELDS.get(name, name))
        if choice is not None:
            value = round(choice.value * 1000) if name in _MILLISECONDS else choice.value
            explained.append(Explained(row.key, _text(value), choice.place))
        else:
            value = getattr(yaml, name)
            place = "default" if value is None else MODEL_CONFIG
            explained.append(Explained(row.key, _text(value) or row.default.replace("`", "") or "unset", place))
    return explained


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else plain(value)


def _workers(
    config: Config,
    yaml: ModelConfig,
    options: RegisterOptions,
    preset: Mapping[str, Any],
    automatic: int | None,
) -> tuple[Choice, Choice]:
    if options.worker_bounds is not None:
        low, high = options.worker_bounds
        return Choice(low, options.asked_by), Choice(high, options.asked_by)
    if yaml.min_workers is not None and yaml.max_workers and yaml.max_workers >= yaml.min_workers:
        return Choice(yaml.min_workers, MODEL_CONFIG), Choice(yaml.max_workers, MODEL_CONFIG)
    origin = config.origin("default_workers_per_model")
    default = config.default_workers_per_model
    server = Choice(default or None, f"default_workers_per_model, {origin}")
    if automatic is None:
        wanted = _first(Choice(options.initial_workers, options.asked_by), server, Choice(0, "default"))
        wanted = wanted._replace(value=max(0, wanted.value))
        return wanted, wanted
    place = f"{_MODELS}, {config.origin('models')}"
    alone = Choice(1 if config.debug else automatic, "default")
    wanted = _first(Choice(_positive(preset, "minWorkers"), place), server, alone)
    most = Choice(_positive(preset, "maxWorkers"), place)
    return wanted, (most if most.value is not None and most.value > wanted.value else wanted)


def _first(*candidates: Choice) -> Choice:
    """The first that is set."""
    return next(candidate for candidate in candidates if candidate.value is not None)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _positive(preset: Mapping[str, Any], key: str) -> int | None:
    """An entry of ``models``; numeric strings count, zero and below mean unset, anything else is ignored."""
    try:
        number = int(preset[key])
    except (KeyError, TypeError, ValueError):
        return None
    return number if number > 0 else None
