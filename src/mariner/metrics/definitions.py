"""Which metrics exist: the table, and the metrics YAML that may take its place."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from mariner.errors import ConfigurationError

__all__ = [
    "BUILT_IN",
    "METRICS",
    "OWN",
    "PER_REQUEST",
    "SIZE_BUCKETS",
    "TIME_BUCKETS",
    "Definition",
    "Kind",
    "Section",
    "load_definitions",
    "problem_of",
]

logger = logging.getLogger(__name__)


class Kind(Enum):
    """What an update does: a counter adds, a gauge replaces, a histogram observes."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Section(Enum):
    """Who records a metric, and where a metrics file declares it."""

    SERVER = "ts_metrics"
    MODEL = "model_metrics"
    OWN = "mariner"  # always there, whatever the file says


DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # TorchServe's
# From half a millisecond (a trivial handler) to two minutes (the default response timeout).
TIME_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. Values meet ``labels`` by position; a model metric ends with ``Hostname``."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    section: Section
    doc: str = ""
    buckets: tuple[float, ...] = DEFAULT_BUCKETS

    @property
    def help(self) -> str:
        """The HELP text; TorchServe's own for its sections."""
        if self.section is Section.OWN:
            return self.doc
        return f"Torchserve prometheus {self.kind.value} metric with unit: {self.unit}"


_HOST = ("Level", "Hostname")
_DEVICE = ("Level", "DeviceId", "Hostname")
_LOAD = ("WorkerName", "Level", "Hostname")
_CALL = ("model_name", "model_version", "hostname")
_MODEL = ("ModelName", "Level", "Hostname")
_OWN = ("model_name", "model_version")
_WHY = (*_OWN, "reason")
_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_S, _M, _O = Section.SERVER, Section.MODEL, Section.OWN

METRICS: tuple[Definition, ...] = (
    Definition("Requests2XX", _C, "Count", _HOST, _S, "Responses with status 200-299."),
    Definition("Requests4XX", _C, "Count", _HOST, _S, "Responses with status 400-499."),
    Definition("Requests5XX", _C, "Count", _HOST, _S, "Responses with any other status."),
    Definition("ts_inference_requests_total", _C, "Count", _CALL, _S, "Inference requests, refused ones included."),
    Definition(
        "ts_inference_latency_microseconds", _C, "Microseconds", _CALL, _S, "Time from arrival to answer, summed."
    ),
    Definition(
        "ts_queue_latency_microseconds", _C, "Microseconds", _CALL, _S, "Time from arrival to a worker, summed."
    ),
    Definition("QueueTime", _G, "Milliseconds", _HOST, _S, "What the latest answered request waited for a worker."),
    Definition("WorkerThreadTime", _G, "Milliseconds", _HOST, _S, "What else it took, the handler left out."),
    Definition("WorkerLoadTime", _G, "Milliseconds", _LOAD, _S, "What a worker took to start and to load its model."),
    Definition("CPUUtilization", _G, "Percent", _HOST, _S, "Processor time in use since the previous sample."),
    Definition("MemoryUsed", _G, "Megabytes", _HOST, _S, "Memory in use, in MiB."),
    Definition("MemoryAvailable", _G, "Megabytes", _HOST, _S, "Memory that can be had without swapping, in MiB."),
    Definition("MemoryUtilization", _G, "Percent", _HOST, _S, "Share of the memory in use."),
    Definition("DiskUsage", _G, "Gigabytes", _HOST, _S, "Space in use on the root file system, in GiB."),
    Definition("DiskAvailable", _G, "Gigabytes", _HOST, _S, "Space left on the root file system, in GiB."),
    Definition("DiskUtilization", _G, "Percent", _HOST, _S, "Share of the root file system in use."),
    Definition("GPUMemoryUtilization", _G, "Percent", _DEVICE, _S, "Time during which GPU memory was accessed."),
    Definition("GPUMemoryUsed", _G, "Megabytes", _DEVICE, _S, "GPU memory in use, in MiB."),
    Definition("GPUUtilization", _G, "Percent", _DEVICE, _S, "Time during which the GPU ran a kernel."),
    Definition("HandlerTime", _G, "ms", _MODEL, _M, "What the base handler took for its latest batch."),
    Definition("PredictionTime", _G, "ms", _MODEL, _M, "What the handler took for its latest batch."),
    Definition(
        "mariner_request_latency_seconds", _H, "Seconds", _OWN, _O, "Time from arrival to answer.", TIME_BUCKETS
    ),
    Definition("mariner_queue_seconds", _H, "Seconds", _OWN, _O, "Time from arrival to a worker.", TIME_BUCKETS),
    Definition(
        "mariner_handler_seconds", _H, "Seconds", _OWN, _O, "Time the handler took for the batch.", TIME_BUCKETS
    ),
    Definition("mariner_batch_size", _H, "Count", _OWN, _O, "Size of the batch, seen by each request.", SIZE_BUCKETS),
    Definition(
        "mariner_refusals_total", _C, "Count", (*_OWN, "reason"), _O, "Requests that got no turn or no answer in time."
    ),
    Definition("mariner_queue_depth", _G, "Count", _OWN, _O, "Requests of the version that wait for a worker."),
    Definition("mariner_worker_deaths_total", _C, "Count", (*_OWN, "cause"), _O, "Workers that died, by cause."),
    Definition("mariner_workers", _G, "Count", _OWN, _O, "Workers of the version that are ready."),
    Definition("mariner_worker_starts_total", _C, "Count", _WHY, _O, "Workers started, by reason."),
    Definition("mariner_worker_stops_total", _C, "Count", _WHY, _O, "Workers stopped on purpose, by reason."),
)

BUILT_IN = {row.name: row for row in METRICS}
OWN = tuple(row for row in METRICS if row.section is Section.OWN)
PER_REQUEST = tuple(row for row in OWN if row.kind is Kind.HISTOGRAM)

# -- metrics file ----------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


def load_definitions(path: Path, *, strict: bool = True) -> tuple[Definition, ...]:
    """The metrics a metrics YAML declares, and those of our own.

    A file that cannot be read or has the wrong shape costs its metrics, not the server: the log says what is wrong.

    Args:
        path: the file.
        strict: a duplicate, or a name Prometheus cannot take, stops the server; else that row is logged and left out.

    Raises:
        ConfigurationError: a row cannot be exposed and ``strict`` is set.
    """
    try:
        rows = list(_read_rows(yaml.safe_load(path.read_bytes())))
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.error("Failed to load metrics configuration: %s: %s", path, error)  # noqa: TRY400 - the text says it all
        return OWN
    accepted: dict[str, Definition] = {}
    for row in (*OWN, *rows):
        if not (problem := problem_of(row, accepted)):
            accepted[row.name] = row
        elif strict:
            raise ConfigurationError(
                f"Invalid configuration: {path}: {problem}", hint="Rename the metric or remove it."
            )
        else:
            logger.error("A metric of %s is left out: %s", path, problem)
    logger.info("Successfully loaded metrics configuration from %s", path)
    return tuple(accepted.values())


def _read_rows(document: object) -> Iterator[Definition]:
    sections = _mapping(document, "the file", ("dimensions", "ts_metrics", "model_metrics"))
    for section in (Section.SERVER, Section.MODEL):
        kinds = _mapping(sections.get(section.value) or {}, section.value, [kind.value for kind in Kind])
        for kind in Kind:
            place = f"{section.value}.{kind.value}"
            for item in _list(kinds.get(kind.value), place):
                fields = _mapping(item, f"a metric of {place}", ("name", "unit", "dimensions"))
                name, unit = fields.get("name"), fields.get("unit")
                if not name:
                    raise ValueError(f"Metric name cannot be empty. See {place}.")
                if not unit:
                    raise ValueError(f"Metric unit cannot be empty. See {name} in {place}.")
                labels = _list(fields.get("dimensions"), f"the dimensions of {name}")
                hostname = ("Hostname",) if section is Section.MODEL else ()
                yield Definition(str(name), kind, str(unit), (*map(str, labels), *hostname), section)


def _mapping(value: object, where: str, keys: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping.")  # noqa: TRY004 - a wrong file, not a wrong call
    if unknown := sorted(str(key) for key in value if key not in keys):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(keys)}.")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise ValueError(f"{where} must be a list.")  # noqa: TRY004 - as above
    return value or []


def problem_of(row: Definition, taken: Collection[str]) -> str:
    """Why Prometheus cannot have this metric beside those taken; empty if it can."""
    if row.name in taken:
        return f"the metric {row.name} is declared twice."
    if not _NAME.fullmatch(row.name):
        return f"{row.name!r} is no metric name; letters, digits, _ and : may be used, no digit first."
    for label in row.labels:
        if not _LABEL.fullmatch(label) or label == "le":
            return f"{label!r} is no dimension name ({row.name}); letters, digits and _ may be used, no digit first."
    if len(set(row.labels)) < len(row.labels):
        return f"{row.name} names a dimension twice; Hostname is appended to model metrics by the server."
    return ""
