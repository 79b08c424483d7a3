"""The model config (``--config-file``): the keys of it that the server reads, one row each.

A wrong value never fails a registration: it is left out and a warning says so. Everything else in the file is the
handler's; the worker reads the file itself. Values keep the units of their keys.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

__all__ = ["ModelConfig", "Row", "Torchrun", "parse_yaml", "read_model_config"]

MAX_INT = 2**31 - 1  # TorchServe's integers have 32 bits; a larger number is a mistake there and here
MAX_CONFIG_SIZE = 1 << 20  # bytes; two seconds for the reader
MAX_ALIASES = 50  # this and the next are the bounds of the reader TorchServe uses
MAX_DEPTH = 50
MAX_MERGED_KEYS = 10_000  # merge keys (<<) copy, so that 50 of them could still double 50 times


class Row(NamedTuple):
    """How one key is read.

    Attributes:
        key: its name in the file.
        read: value as YAML has it to value as the server wants it; raises :class:`_Rejected`.
        doc: what it does, for the reference page.
    """

    key: str
    read: Callable[[Any], Any]
    doc: str


class _Rejected(ValueError):
    """A value is not what its key expects; the text says what that is."""


# -- kinds of values -------------------------------------------------------------------------------------------------


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Rejected("should be true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Rejected("should be a text")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_INT:
        raise _Rejected("should be a whole number")
    return value


def _raised_to(least: int) -> Callable[[Any], int]:
    """A whole number; a smaller one becomes the least there is."""

    def read(value: Any) -> int:
        return max(least, _integer(value))

    return read


def _at_least(least: int) -> Callable[[Any], int]:
    """A whole number; a smaller one is a mistake."""

    def read(value: Any) -> int:
        number = _integer(value)
        if number < least:
            raise _Rejected(f"should be at least {least}")
        return number

    return read


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_INT:
        raise _Rejected("should be a number above 0")
    return float(value)


def _one_of(*words: str) -> Callable[[Any], str]:
    """One of the words, in any case."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise _Rejected(f"should be one of {', '.join(words)}")
        return value.lower()

    return read


def _device_ids(value: Any) -> tuple[int, ...]:
    rejected = _Rejected("should be a list of device numbers from 0")
    if not isinstance(value, list):
        raise rejected
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MAX_INT for item in value):
        raise rejected
    return tuple(value)


def _row(key: str, read: Callable[[Any], Any], doc: str, *, default: Any = None) -> Any:
    return field(default=default, metadata={"row": Row(key, read, doc)})


# -- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Torchrun:
    """The ``torchrun`` section: how the ranks of one worker are started."""

    nproc_per_node: int = _row("nproc-per-node", _at_least(1), "Ranks per worker; the parallel level.", default=1)
    nnodes: int = _row("nnodes", _at_least(1), "Machines.", default=1)
    rdzv_backend: str = _row("rdzv-backend", _text, "How ranks find each other.", default="c10d")
    rdzv_endpoint: str | None = _row("rdzv-endpoint", _text, "Where ranks find each other.")
    rdzv_conf: str | None = _row("rdzv-conf", _text, "Accepted, not used.")
    monitor_interval: int = _row("monitor-interval", _at_least(1), "Accepted, not used.", default=5)
    node_rank: int = _row("node-rank", _at_least(0), "Accepted, not used.", default=0)
    omp_number_threads: int = _row("OMP_NUMBER_THREADS", _at_least(1), "OMP_NUM_THREADS of each rank.", default=1)


def _torchrun(value: Any) -> Torchrun:
    if not isinstance(value, Mapping):
        raise _Rejected("should be a mapping")
    return _read(Torchrun, value)[0]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model asks of the server. None where it says nothing, so that other sources may."""

    min_workers: int | None = _row("minWorkers", _raised_to(1), "Workers to keep; needs maxWorkers beside it.")
    max_workers: int | None = _row("maxWorkers", _at_least(0), "Most workers.")
    batch_size: int | None = _row("batchSize", _raised_to(1), "Most requests in a batch.")
    max_batch_delay: int | None = _row(
        "maxBatchDelay", _at_least(0), "Most milliseconds that a request waits for its batch to fill; 0 means unset."
    )
    response_timeout: int | None = _row("responseTimeout", _at_least(1), "Seconds for one reply of a worker.")
    startup_timeout: int | None = _row("startupTimeout", _at_least(1), "Seconds for loading.")
    device_type: Literal["cpu", "gpu"] | None = _row(
        "deviceType", _one_of("cpu", "gpu"), "Where workers run; gpu if there is one."
    )
    device_ids: tuple[int, ...] | None = _row("deviceIds", _device_ids, "The accelerators that workers may use.")
    parallel_type: Literal["pp", "tp", "pptp", "custom"] | None = _row(
        "parallelType", _one_of("pp", "tp", "pptp", "custom"), "How one worker spreads over several devices."
    )
    parallel_level: int | None = _row("parallelLevel", _at_least(0), "Devices per worker; needs parallelType.")
    torchrun: Torchrun | None = _row(  # noqa: RUF009  (a field like the others)
        "torchrun", _torchrun, "How ranks are started; sets parallelLevel."
    )
    max_retry_timeout_in_sec: int | None = _row(
        "maxRetryTimeoutInSec", _raised_to(0), "Seconds of failing loads after which nothing is restarted."
    )
    client_timeout_in_mills: int | None = _row(
        "clientTimeoutInMills", _raised_to(0), "Milliseconds after which nobody wants the answer; 0 for never."
    )
    job_queue_size: int | None = _row("jobQueueSize", _raised_to(0), "Most requests that wait; 0 means unset.")
    use_job_ticket: bool | None = _row("useJobTicket", _boolean, "Refuse a request when no worker waits for one.")
    continuous_batching: bool | None = _row("continuousBatching", _boolean, "Requests join and leave running batches.")
    sequence_batching: bool | None = _row("sequenceBatching", _boolean, "Requests of a sequence share a worker.")
    sequence_max_idle_msec: int | None = _row(
        "sequenceMaxIdleMSec", _raised_to(0), "Milliseconds without a request after which a sequence is dropped."
    )
    sequence_timeout_msec: int | None = _row(
        "sequenceTimeoutMSec", _raised_to(0), "Milliseconds that a sequence lives; 0 for no limit."
    )
    max_sequence_job_queue_size: int | None = _row(
        "maxSequenceJobQueueSize", _raised_to(1), "Most requests of one sequence that wait."
    )
    max_num_sequence: int | None = _row("maxNumSequence", _raised_to(1), "Most sequences at a time.")
    async_communication: bool | None = _row("asyncCommunication", _boolean, "The worker takes requests while it works.")
    use_venv: bool | None = _row("useVenv", _boolean, "The model has a virtual environment of its own.")
    # Ours
    batching_policy: Literal["eager", "fill", "slo"] | None = _row(
        "batchingPolicy", _one_of("eager", "fill", "slo"), "When a batch starts."
    )
    isolate_batch_errors: bool | None = _row(
        "isolateBatchErrors", _boolean, "A batch that fails is split, so that only guilty requests do."
    )
    worker_idle_timeout_sec: float | None = _row(
        "workerIdleTimeoutSec", _amount, "Seconds without work after which a worker above minWorkers stops."
    )
    latency_slo_ms: float | None = _row("latencySloMs", _amount, "Milliseconds that the slo batching policy aims at.")
    autoscale: bool | None = _row("autoscale", _boolean, "Workers come and go between minWorkers and maxWorkers.")
    warm_start: bool | None = _row("warmStart", _boolean, "Workers start from a process that has imported torch.")
    max_requests_per_worker: int | None = _row(
        "maxRequestsPerWorker", _at_least(1), "Requests after which a worker is replaced."
    )
    max_worker_memory_mb: int | None = _row(
        "maxWorkerMemoryMB", _at_least(1), "Megabytes of memory above which a worker is replaced."
    )

    @classmethod
    def parse(cls, mapping: Mapping[Any, Any]) -> tuple[ModelConfig, list[str]]:
        """The config, and a warning per value that was left out. Keys that are not the server's are not looked at."""
        config, warnings = _read(cls, mapping)
        section = mapping.get("torchrun")
        if config.torchrun is not None and isinstance(section, Mapping):
            known = {_row_of(row).key for row in fields(Torchrun)}
            warnings += _read(Torchrun, section)[1]
            warnings += [f"torchrun: unsupported parameter {key}" for key in section if key not in known]
            # TorchServe sets the level from both keys as it meets them: the one further down in the file stands.
            keys = list(mapping)
            if config.parallel_level is None or keys.index("torchrun") > keys.index("parallelLevel"):
                config = replace(config, parallel_level=config.torchrun.nproc_per_node)
        if config.parallel_type is None and config.parallel_level is not None:
            config = replace(config, parallel_level=None)
        return config, warnings


_Section = TypeVar("_Section", ModelConfig, Torchrun)


def _read(section: type[_Section], mapping: Mapping[Any, Any]) -> tuple[_Section, list[str]]:
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for column in fields(section):
        row = _row_of(column)
        if row.key not in mapping:
            continue
        value = mapping[row.key]
        try:
            values[column.name] = row.read(value)
        except _Rejected as reason:
            warnings.append(f"Invalid {row.key}: {_shown(value)}, {reason}")
    return section(**values), warnings


def _row_of(column: Any) -> Row:
    row: Row = column.metadata["row"]
    return row


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() else reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- the file --------------------------------------------------------------------------------------------------------


def read_model_config(path: Path) -> tuple[ModelConfig | None, list[str]]:
    """The config in a file and its warnings; None if the file cannot be read, which is one warning.

    An empty file is a config that says nothing.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_SIZE + 1)
        if len(text) > MAX_CONFIG_SIZE:
            return None, [f"Failed to parse model config file {path.name}: it is larger than {MAX_CONFIG_SIZE} bytes."]
        document = parse_yaml(text)
    except OSError as error:
        return None, [f"Failed to parse model config file {path.name}: {error.strerror}."]
    except yaml.YAMLError as error:
        return None, [f"Failed to parse model config file {path.name}: {' '.join(str(error).split())}"]
    if document is None:
        return ModelConfig(), []
    if not isinstance(document, Mapping):
        return None, [f"Failed to parse model config file {path.name}: it is not a mapping of keys to values."]
    return ModelConfig.parse(document)


def parse_yaml(text: bytes | str) -> Any:
    """One YAML 1.1 document from somebody we do not trust: plain values only, and no more of them than were written.

    Raises:
        yaml.YAMLError: it is none, or it goes beyond the bounds.
    """
    try:
        return yaml.load(text, _BoundedLoader)  # noqa: S506  (a subclass of SafeLoader)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # Values that look like a date or a number and are none: 2024-13-45, a number of 5000 digits.
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


class _BoundedLoader(yaml.SafeLoader):
    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._aliases = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        pairs: Sequence[Any] = node.value
        if len(pairs) > MAX_MERGED_KEYS:
            raise yaml.YAMLError(f"a mapping of more than {MAX_MERGED_KEYS} keys")
