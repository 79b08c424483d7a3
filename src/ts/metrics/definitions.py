"""Which metrics a worker knows from the start: those of a metrics file, or the default ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ts.metrics.errors import (
    MetricsCacheIOError,
    MetricsCacheKeyError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    NoModelMetrics,
)
from ts.metrics.metric_type_enum import MetricTypes

__all__ = ["DEFAULT_METRICS", "Definition", "read_definitions"]


class Definition(NamedTuple):
    """What a metrics file says about one metric."""

    name: str
    unit: str
    dimensions: Sequence[str]
    type: MetricTypes


DEFAULT_METRICS = (
    Definition("HandlerTime", "ms", ("ModelName", "Level"), MetricTypes.GAUGE),
    Definition("PredictionTime", "ms", ("ModelName", "Level"), MetricTypes.GAUGE),
)


def read_definitions(path: str | Path) -> Iterator[Definition]:
    """The ``model_metrics`` of a metrics file.

    Raises:
        MetricsCacheIOError: the file cannot be read.
        MetricsCachePyYamlError: it is not YAML.
        NoModelMetrics: the section is missing or empty.
        MetricsCacheKeyError: a type is unknown, or an entry lacks a key.
        MetricsCacheTypeError: a section is not the mapping or the list it must be.
    """
    import yaml  # noqa: PLC0415  # a worker with the default metrics does without

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MetricsCacheIOError(f"Error reading file: {path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MetricsCachePyYamlError(f"Error parsing file: {path}: {error}") from error
    if not isinstance(content, dict) or "model_metrics" not in content:
        raise NoModelMetrics(f"'model_metrics' key not found in yaml file: {path}")
    section = content["model_metrics"]
    if not section:
        raise NoModelMetrics("Missing `model_metrics` specification")
    if not isinstance(section, dict):
        raise MetricsCacheTypeError(f"`model_metrics` in {path} must map metric types to lists of metrics")
    for type_name, entries in section.items():
        try:
            kind = MetricTypes(type_name)
        except ValueError:
            raise MetricsCacheKeyError(f"Invalid metric type: {type_name}") from None
        yield from _definitions(entries or [], kind, path)


def _definitions(entries: Any, kind: MetricTypes, path: str | Path) -> Iterator[Definition]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MetricsCacheTypeError(f"`{kind.value}` in {path} must be a list of metrics, each with a name")
    for entry in entries:
        for key in ("name", "unit", "dimensions"):
            if key not in entry:
                raise MetricsCacheKeyError(f"Key not found in cache spec: '{key}'")
        yield Definition(entry["name"], entry["unit"], entry["dimensions"] or (), kind)
