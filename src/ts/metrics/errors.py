"""Errors of the metrics cache. Each is also the built-in error it stands for."""

from __future__ import annotations

try:
    from yaml import YAMLError
except ImportError:  # the default metrics need no YAML, so neither does a worker without it
    YAMLError = Exception  # type: ignore[assignment,misc]

__all__ = [
    "GeneralMetricsCacheError",
    "MetricsCacheIOError",
    "MetricsCacheKeyError",
    "MetricsCachePyYamlError",
    "MetricsCacheTypeError",
    "MetricsCacheValueError",
    "NoModelMetrics",
]


class GeneralMetricsCacheError(Exception):
    """A failure of the cache that is none of the others."""


class MetricsCacheIOError(OSError):
    """The metrics file cannot be read."""


class MetricsCachePyYamlError(YAMLError):
    """The metrics file is not YAML."""


class MetricsCacheTypeError(TypeError):
    """An argument or an entry of the metrics file has the wrong type."""


class MetricsCacheValueError(ValueError):
    """A unit is not allowed, or the metrics file defines nothing."""


class MetricsCacheKeyError(KeyError):
    """No such metric, or an entry of the metrics file is incomplete."""


class NoModelMetrics(MetricsCacheKeyError, MetricsCacheValueError):
    """The metrics file declares no metrics of models: their section is missing or empty."""

    def __str__(self) -> str:  # a KeyError would quote it
        return str(self.args[0])
