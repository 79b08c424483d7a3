"""The model config (``--config-file``): the keys of it that the server reads, one row each.

A wrong value never fails a registration: it is left out and a warning says so. Everything else in the file is the
handler's; the worker reads the file itself. Values keep the units of their keys.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

__all__ = ["ModelConfig", "Row", "Torchrun", "parse_yaml", "plain", "read_model_config", "rows"]

MAX_INT = 2**31 - 1  # TorchServe's integers have 32 bits; a larger number is a mistake there and here
MAX_CONFIG_SIZE = 1 << 20  # bytes; two seconds for the reader
MAX_ALIASES = 50  # this and the next are the bounds of the reader TorchServe uses
MAX_DEPTH = 50
CLOSE = 0.85  # likeness from which a name is taken for a misspelt one; handlers have keys of their own
MAX_MERGED_KEYS = 10_000  # merge keys (<<) copy, so that 50 of them could still double 50 times
_OF_SEQUENCES = ("sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxSequenceJobQueueSize", "maxNumSequence")


class Kind(NamedTuple):
    """What values of a key are.

    Attributes:
        text: for the reference page.
        read: value as YAML has it to value as the server wants it; raises :class:`_Rejected`.
    """

    text: str
    read: Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One key.

    Attributes:
        key: its name in the file.
        kind: what its values are.
        doc: what it does, for the reference page.
        default: what holds where no other place says anything either, for the reference page.
        ours: TorchServe has no such key.
        refused: values of a feature that does not exist yet: such a model is not registered.
    """

    key: str
    kind: Kind
    doc: str
    default: str = ""
    ours: bool = False
    refused: frozenset[Any] = frozenset()


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


def _raised_to(least: int, unit: str = "") -> Kind:
    """A whole number; a smaller one becomes the least there is."""

    def read(value: Any) -> int:
        return max(least, _integer(value))

    return Kind(f"{_whole(unit)}; below {least} means {least}", read)


def _at_least(least: int, unit: str = "") -> Kind:
    """A whole number; a smaller one is a mistake."""

    def read(value: Any) -> int:
        number = _integer(value)
        if number < least:
            raise _Rejected(f"should be at least {least}")
        return number

    return Kind(f"{_whole(unit)} of at least {least}", read)


def _whole(unit: str) -> str:
    return f"whole number ({unit})" if unit else "whole number"


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_INT:
        raise _Rejected("should be a number above 0")
    return float(value)


def _one_of(*words: str) -> Kind:
    """One of the words, in any case."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise _Rejected(f"should be one of {', '.join(words)}")
        return value.lower()

    return Kind(", ".join(f"`{word}`" for word in words), read)


def _device_ids(value: Any) -> tuple[int, ...]:
    rejected = _Rejected("should be a list of device numbers from 0")
    if not isinstance(value, list):
        raise rejected
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MAX_INT for item in value):
        raise rejected
    return tuple(value)


def _mapping(value: Any) -> Torchrun:
    if not isinstance(value, Mapping):
        raise _Rejected("should be a mapping")
    return _read(Torchrun, value)[0]


_SWITCH = Kind("true or false", _boolean)
_WORD = Kind("text", _text)


def _row(key: str, kind: Kind, doc: str, *, value: Any = None, **more: Any) -> Any:
    return field(default=value, metadata={"row": Row(key=key, kind=kind, doc=doc, **more)})


# -- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Torchrun:
    """The ``torchrun`` section: how the ranks of one worker are started."""

    nproc_per_node: int = _row("nproc-per-node", _at_least(1), "Ranks per worker; the parallel level.", value=1)
    nnodes: int = _row("nnodes", _at_least(1), "Machines.", value=1)
    rdzv_backend: str = _row("rdzv-backend", _WORD, "How ranks find each other.", value="c10d")
    rdzv_endpoint: str | None = _row("rdzv-endpoint", _WORD, "Where ranks find each other.")
    rdzv_conf: str | None = _row("rdzv-conf", _WORD, "Accepted, not used.")
    monitor_interval: int = _row("monitor-interval", _at_least(1), "Accepted, not used.", value=5)
    node_rank: int = _row("node-rank", _at_least(0), "Accepted, not used.", value=0)
    omp_number_threads: int = _row("OMP_NUMBER_THREADS", _at_least(1), "`OMP_NUM_THREADS` of each rank.", value=1)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model asks of the server. None where it says nothing, so that other sources may."""

    min_workers: int | None = _row(
        "minWorkers", _raised_to(0),
        "Workers to keep; with 0 the first request starts one, with `autoscale: false` 0 means 1. Counts together with "
        "a `maxWorkers` that is not smaller, nor 0.",
    )  # fmt: skip
    max_workers: int | None = _row("maxWorkers", _at_least(0), "Most workers.")
    batch_size: int | None = _row("batchSize", _raised_to(1), "Most requests in a batch.", default="1")
    max_batch_delay: int | None = _row(
        "maxBatchDelay", _at_least(0, "ms"), "Longest time a request waits for its batch to fill; 0 means unset.",
        default="100",
    )  # fmt: skip
    response_timeout: int | None = _row(
        "responseTimeout", _at_least(1, "s"), "Longest time for one reply of a worker, which is restarted then.",
        default="`default_response_timeout`",
    )  # fmt: skip
    startup_timeout: int | None = _row(
        "startupTimeout", _at_least(1, "s"), "Longest time for loading.", default="`default_startup_timeout`"
    )
    device_type: Literal["cpu", "gpu"] | None = _row(
        "deviceType", _one_of("cpu", "gpu"), "Where workers run; `gpu` means the CPU where there is no GPU.",
        default="`gpu`",
    )  # fmt: skip
    device_ids: tuple[int, ...] | None = _row(
        "deviceIds", Kind("list of whole numbers", _device_ids),
        "The GPUs that workers may use, in turn. If one of them does not exist, the list is ignored with a warning.",
        default="all",
    )  # fmt: skip
    parallel_type: Literal["pp", "tp", "pptp", "custom"] | None = _row(
        "parallelType", _one_of("pp", "tp", "pptp", "custom"),
        "How one worker spreads over several GPUs. `custom`: the handler does it by itself, in its one process.",
        refused=frozenset({"pp", "tp", "pptp"}),
    )  # fmt: skip
    parallel_level: int | None = _row(
        "parallelLevel", _at_least(0),
        "GPUs per worker; needs `parallelType`. A model that asks for more than there are is refused, and in this "
        "version one with several workers on several GPUs each.",
    )  # fmt: skip
    torchrun: Torchrun | None = _row(  # noqa: RUF009  (a field like the others)
        "torchrun", Kind("mapping", _mapping),
        "How ranks are started; sets `parallelLevel`. Without `parallelType` it has no effect.",
    )  # fmt: skip
    max_retry_timeout_in_sec: int | None = _row(
        "maxRetryTimeoutInSec", _raised_to(0, "s"),
        "How long loading may fail before the model is given up; 0 never starts a failed worker again.", default="300",
    )  # fmt: skip
    client_timeout_in_mills: int | None = _row(
        "clientTimeoutInMills", _raised_to(0, "ms"),
        "Time after which nobody wants the answer any more: 408 in the queue, 504 while the handler runs. 0 for never. "
        "The header `X-Request-Timeout-Ms` of a request wins.", default="0",
    )  # fmt: skip
    job_queue_size: int | None = _row(
        "jobQueueSize", _raised_to(0), "Most requests that wait; 0 means unset.", default="`job_queue_size`"
    )
    use_job_ticket: bool | None = _row(
        "useJobTicket", _SWITCH, "Takes a request only if a worker is idle, and answers 503 otherwise; nothing waits.",
        default="false",
    )  # fmt: skip
    continuous_batching: bool | None = _row(
        "continuousBatching", _SWITCH,
        "The handler is called step by step; requests join and leave between steps. See [Stateful sequences]"
        "(../how-to/stateful-sequences.md#continuous-batches).",
        default="false",
    )  # fmt: skip
    sequence_batching: bool | None = _row(
        "sequenceBatching", _SWITCH,
        "Requests of a sequence go to one worker, in order. Needs `sequenceMaxIdleMSec`. See [Stateful sequences]"
        "(../how-to/stateful-sequences.md).",
        default="false",
    )  # fmt: skip
    sequence_max_idle_msec: int | None = _row(
        "sequenceMaxIdleMSec", _raised_to(0, "ms"),
        "Time without a request after which a sequence ends. Must be above 0 with `sequenceBatching`.",
    )  # fmt: skip
    sequence_timeout_msec: int | None = _row(
        "sequenceTimeoutMSec", _raised_to(0, "ms"), "Longest life of a sequence; 0 for no limit.", default="0"
    )
    max_sequence_job_queue_size: int | None = _row(
        "maxSequenceJobQueueSize", _raised_to(1),
        "Most requests of one sequence that wait; counts in place of `jobQueueSize`.", default="1",
    )  # fmt: skip
    max_num_sequence: int | None = _row("maxNumSequence", _raised_to(1), "Most sequences at a time.", default="1")
    async_communication: bool | None = _row(
        "asyncCommunication", _SWITCH, "One worker runs the requests of an `async` handler side by side.",
        default="false",
    )  # fmt: skip
    use_venv: bool | None = _row(
        "useVenv", _SWITCH, "The packages of the model get a virtual environment of its own.", default="false"
    )
    batching_policy: Literal["eager", "fill", "slo"] | None = _row(
        "batchingPolicy", _one_of("eager", "fill", "slo"),
        "When a batch that is not full starts: at once, or when it has waited for `maxBatchDelay`. With `slo`, sized "
        "as `latencySloMs` allows, and up to `batchSize`; a model that has it without `latencySloMs`, or with "
        "`sequenceBatching`, is refused. See [Batching](../explanation/batching.md#batches-for-a-latency-target).",
        default="`batching_policy`", ours=True,
    )  # fmt: skip
    isolate_batch_errors: bool | None = _row(
        "isolateBatchErrors", _SWITCH,
        "Runs a batch that failed, or whose worker died, again in parts, so that only the guilty requests fail.",
        default="`isolate_batch_errors`", ours=True,
    )  # fmt: skip
    warm_start: bool | None = _row(
        "warmStart", _SWITCH, "Forks workers from a process that has imported PyTorch.", default="`warm_start`",
        ours=True,
    )  # fmt: skip
    worker_idle_timeout_sec: float | None = _row(
        "workerIdleTimeoutSec", Kind("number (s) above 0", _amount),
        "Time without work after which a worker above `minWorkers` stops; never before it was idle for as long as its "
        "start took.", default="`worker_idle_timeout`", ours=True,
    )  # fmt: skip
    latency_slo_ms: float | None = _row(
        "latencySloMs", Kind("number (ms) above 0", _amount),
        "Time within which the policy `slo` has requests answered, from their arrival at the server.", ours=True,
    )  # fmt: skip
    autoscale: bool | None = _row(
        "autoscale", _SWITCH,
        "Workers come when work waits, up to `maxWorkers`, and go when idle, down to `minWorkers`. Not for models with "
        "`sequenceBatching`.", default="`autoscale`", ours=True,
    )  # fmt: skip
    shared_weights: bool | None = _row(
        "sharedWeights", _SWITCH,
        "Workers on the CPU have one copy of the weights: those of the networks that the handler holds as attributes.",
        default="`shared_weights`", ours=True,
    )  # fmt: skip
    max_requests_per_worker: int | None = _row(
        "maxRequestsPerWorker", _raised_to(0),
        "Requests after which a worker is replaced, looked at each second; 0 for never. No request is lost by it.",
        default="`max_requests_per_worker`", ours=True,
    )  # fmt: skip
    max_worker_memory_mb: int | None = _row(
        "maxWorkerMemoryMB", _raised_to(0, "MiB"),
        "Resident memory beyond which a worker is replaced, as above; 0 for never.",
        default="`max_worker_memory_mb`", ours=True,
    )  # fmt: skip

    def refused(self) -> list[str]:
        """The keys, with their values, that ask for what does not exist yet."""
        asked = [(row, getattr(self, name)) for name, row in rows(ModelConfig).items()]
        return [f"{row.key}: {plain(value)}" for row, value in asked if value in row.refused]

    @classmethod
    def parse(cls, mapping: Mapping[Any, Any]) -> tuple[ModelConfig, list[str]]:
        """The config, and a warning per value that was left out. Keys that are not the server's are not looked at."""
        config, warnings = _read(cls, mapping)
        section = mapping.get("torchrun")
        if config.torchrun is not None and isinstance(section, Mapping):
            known = {row.key for row in rows(Torchrun).values()}
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
    for name, row in rows(section).items():
        if row.key not in mapping:
            continue
        value = mapping[row.key]
        try:
            values[name] = row.kind.read(value)
        except _Rejected as reason:
            warnings.append(f"Invalid {row.key}: {_shown(value)}, {reason}")
    return section(**values), warnings


def rows(section: type[ModelConfig | Torchrun]) -> dict[str, Row]:
    """The rows of a table by the names of their fields."""
    return {column.name: column.metadata["row"] for column in fields(section)}


def plain(value: Any) -> str:
    """A value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


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
    config, warnings = ModelConfig.parse(document)
    return config, [*warnings, *_without_effect(config, document), *_misspelt(document)]


def _without_effect(config: ModelConfig, document: Mapping[Any, Any]) -> list[str]:
    texts = []
    for key, given, dependent in (
        ("parallelType", config.parallel_type, ("parallelLevel", "torchrun")),
        ("sequenceBatching", config.sequence_batching, _OF_SEQUENCES),
        ("batchingPolicy: slo", config.batching_policy == "slo", ("latencySloMs",)),
    ):
        ignored = [name for name in dependent if document.get(name) not in (None, 0, 1)]
        texts += [f"Without {key} there is no effect of {' and '.join(ignored)}."] if ignored and not given else []
    return texts


def _misspelt(document: Mapping[Any, Any]) -> list[str]:
    """Keys that look as if they were meant for the server; all others belong to the handler."""
    known = {row.key.lower(): row.key for row in rows(ModelConfig).values()}
    texts = []
    for key in document:
        if isinstance(key, str) and key not in known.values():
            close = difflib.get_close_matches(re.sub("[-_ ]", "", key).lower(), known, n=1, cutoff=CLOSE)
            texts += [
                f"Unknown key {_shown(key)} is left to the handler. Did you mean {known[name]}?" for name in close
            ]
    return texts


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
