"""The object behind ``context.metrics``: metrics by type and name, and the calls that update them."""

# handlers call these with positional arguments

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ts.metrics.caching import CachingMetric, Sink
from ts.metrics.definitions import DEFAULT_METRICS, read_definitions
from ts.metrics.dimension import Dimension
from ts.metrics.errors import MetricsCacheKeyError, MetricsCacheTypeError, MetricsCacheValueError
from ts.metrics.metric_type_enum import MetricTypes

__all__ = ["MetricsCache", "MetricsCacheYamlImpl"]

logger = logging.getLogger(__name__)

TIME_UNITS = ("ms", "s")
SIZE_UNITS = ("MB", "kB", "GB", "B")


class MetricsCache:
    """Metrics of one worker.

    Args:
        config_file_path: metrics file whose ``model_metrics`` :meth:`initialize_cache` registers; None or "" for the
            default metrics.

    Attributes:
        cache: the metrics by type and name.
        store: always empty; kept for code that looks at it.
        request_ids: the requests that are running: index in the batch to id, or one id, or None.
        model_name: value of the ``ModelName`` dimension.
    """

    def __init__(self, config_file_path: str | None = None) -> None:
        self.config_file_path = config_file_path
        self.cache: dict[MetricTypes, dict[str, CachingMetric]] = {kind: {} for kind in MetricTypes}
        self.store: list[Any] = []
        self.request_ids: Mapping[int, str] | str | None = None
        self.model_name: str | None = None
        self._declared: dict[str, MetricTypes] = {}
        self._sink: Sink | None = None

    @property
    def sink(self) -> Sink | None:
        """Takes every emitted sample; None writes ``[METRICS]`` lines to the log."""
        return self._sink

    @sink.setter
    def sink(self, sink: Sink | None) -> None:
        self._sink = sink
        for metrics in self.cache.values():
            for metric in metrics.values():
                metric.sink = sink

    def initialize_cache(self) -> None:
        """Registers the metrics of the metrics file, or the default ones.

        Raises:
            MetricsCacheIOError: the file cannot be read.
            MetricsCachePyYamlError: it is not YAML.
            MetricsCacheKeyError: a section, a type or an entry is not as it must be.
            MetricsCacheValueError: it defines no metric.
            MetricsCacheTypeError: a value has the wrong type.
        """
        path = self.config_file_path
        for name, unit, dimensions, kind in read_definitions(path) if path else DEFAULT_METRICS:
            self._declared[name] = kind
            self.add_metric_to_cache(name, unit, list(dimensions), kind)

    def set_request_ids(self, request_ids: Mapping[int, str] | str | None) -> None:
        """Says which requests the next updates belong to."""
        self.request_ids = request_ids

    # -- metrics as objects ------------------------------------------------------------------------------------------

    def add_metric_to_cache(
        self,
        metric_name: Any = None,
        unit: Any = None,
        dimension_names: Any = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
        *,
        name: Any = None,
    ) -> CachingMetric:
        """Registers a metric without emitting anything; a metric of the same type and name is replaced.

        Args:
            metric_name: its name.
            unit: a short name such as ``ms``, or any other text.
            dimension_names: labels, in the order in which their values will be given. None are added.
            metric_type: counter, gauge or histogram.
            name: the same as ``metric_name``.

        Raises:
            MetricsCacheTypeError: an argument has the wrong type.
        """
        metric_name = name if metric_name is None else metric_name
        if not isinstance(metric_name, str):
            raise MetricsCacheTypeError("`metric_name` must be a str")
        if not isinstance(unit, str):
            raise MetricsCacheTypeError("`unit` must be a str")
        if not isinstance(metric_type, MetricTypes):
            raise MetricsCacheTypeError("`metric_type` must be a MetricTypes enum")
        names = dimension_names or []
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise MetricsCacheTypeError("`dimension_names` should be a list of dimension name strings")
        metrics = self.cache[metric_type]
        if metric_name in metrics:
            logger.warning("Overriding existing key %s:%s in the metrics cache", metric_type.value, metric_name)
        metric = CachingMetric(metric_name, unit, names, metric_type)
        # What the metrics file says is what the server does with it; an `add_time` may well feed a declared histogram,
        # and then no update may be taken for one that the next replaces.
        metric.sent_type = self._declared.get(metric_name, metric_type)
        metric.sink = self._sink
        metrics[metric_name] = metric
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """A registered metric.

        Raises:
            MetricsCacheTypeError: an argument has the wrong type.
            MetricsCacheKeyError: there is no such metric.
        """
        if not isinstance(metric_name, str):
            raise MetricsCacheTypeError("`metric_name` must be a str")
        if not isinstance(metric_type, MetricTypes):
            raise MetricsCacheTypeError("`metric_type` must be a MetricTypes enum")
        try:
            return self.cache[metric_type][metric_name]
        except KeyError:
            raise MetricsCacheKeyError(
                f"Metric of type '{metric_type}' and name '{metric_name}' doesn't exist"
            ) from None

    def cache_keys(self) -> list[str]:
        """The registered metrics as ``type:name``, types first, names in the order of registration."""
        return [f"{kind.value}:{name}" for kind, metrics in self.cache.items() for name in metrics]

    # -- updates -----------------------------------------------------------------------------------------------------

    def add_metric(
        self,
        name: Any = None,
        value: Any = None,
        unit: Any = None,
        idx: Any = None,
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
        *,
        metric_name: Any = None,
        dimension_names: Any = None,
    ) -> CachingMetric | None:
        """Emits a metric of any type and unit, registering it on first use.

        Called with ``metric_name`` or ``dimension_names`` it registers only, which was its meaning in 0.8.

        Args:
            name: its name.
            value: the increment of a counter, the value of a gauge, the observation of a histogram.
            unit: a short name such as ``ms``, or any other text.
            idx: index of the request in the batch; None for all of them.
            dimensions: labels; ``ModelName`` and ``Level`` are appended.
            metric_type: counter, gauge or histogram.
            metric_name: the same as ``name``, for registering.
            dimension_names: labels, for registering.

        Returns:
            The metric if it was only registered, else None.

        Raises:
            MetricsCacheTypeError: name, unit or type have the wrong type.
        """
        if metric_name is not None or dimension_names is not None:
            given = name if metric_name is None else metric_name
            return self.add_metric_to_cache(given, unit, dimension_names, metric_type)
        self._emit(name, value, unit, self._request_id(idx), dimensions, metric_type)
        return None

    def add_counter(
        self, name: str, value: Any, idx: Any = None, dimensions: Sequence[Dimension] | None = None
    ) -> None:
        """Adds to a counter.

        Args:
            name: its name.
            value: the increment.
            idx: index of the request in the batch; None for all of them.
            dimensions: labels; ``ModelName`` and ``Level`` are appended.

        Raises:
            MetricsCacheTypeError: the name is no text.
        """
        self._emit(name, value, "count", self._request_id(idx), dimensions, MetricTypes.COUNTER)

    def add_time(
        self,
        name: str,
        value: Any,
        idx: Any = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Emits a duration.

        Args:
            name: its name.
            value: the duration in ``unit``.
            idx: index of the request in the batch; None for all of them.
            unit: ``ms`` or ``s``.
            dimensions: labels; ``ModelName`` and ``Level`` are appended.
            metric_type: counter, gauge or histogram.

        Raises:
            MetricsCacheValueError: another unit.
            MetricsCacheTypeError: name or type have the wrong type.
        """
        if unit not in TIME_UNITS:
            raise MetricsCacheValueError("the unit for a timed metric should be one of ['ms', 's']")
        self._emit(name, value, unit, self._request_id(idx), dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: Any,
        idx: Any = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Emits a size.

        Args:
            name: its name.
            value: the size in ``unit``.
            idx: index of the request in the batch; None for all of them.
            unit: ``MB``, ``kB``, ``GB`` or ``B``.
            dimensions: labels; ``ModelName`` and ``Level`` are appended.
            metric_type: counter, gauge or histogram.

        Raises:
            ValueError: another unit.
            MetricsCacheTypeError: name or type have the wrong type.
        """
        if unit not in SIZE_UNITS:
            raise ValueError("The unit for size based metric is one of ['MB','kB', 'GB', 'B']")
        self._emit(name, value, unit, self._request_id(idx), dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: Any,
        idx: Any = None,
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Emits a percentage.

        Args:
            name: its name.
            value: the percentage.
            idx: index of the request in the batch; None for all of them.
            dimensions: labels; ``ModelName`` and ``Level`` are appended.
            metric_type: counter, gauge or histogram.

        Raises:
            MetricsCacheTypeError: name or type have the wrong type.
        """
        self._emit(name, value, "percent", self._request_id(idx), dimensions, metric_type)

    def add_error(self, name: str, value: Any, dimensions: Sequence[Dimension] | None = None) -> None:
        """Counts an error; it belongs to no request.

        Args:
            name: its name.
            value: the increment.
            dimensions: labels; ``Level`` is appended.

        Raises:
            MetricsCacheTypeError: the name is no text.
        """
        self._emit(name, value, "", None, dimensions, MetricTypes.COUNTER)

    def _request_id(self, idx: Any) -> str | None:
        ids = self.request_ids
        if ids is None or isinstance(ids, str):
            return ids
        return ids[idx] if idx in ids else ",".join(ids.values())

    def _emit(
        self,
        name: str,
        value: Any,
        unit: str,
        request_id: str | None,
        dimensions: Sequence[Dimension] | None,
        metric_type: MetricTypes,
    ) -> None:
        if request_id is None:
            defaults: tuple[tuple[str, Any], ...] = (("Level", "Error"),)
        else:
            defaults = (("ModelName", self.model_name), ("Level", "Model"))
        if dimensions:
            pairs = {dimension.name: dimension.value for dimension in dimensions}
            for label, default in defaults:
                pairs.setdefault(label, default)
        else:
            pairs = dict(defaults)
        metrics = self.cache.get(metric_type)
        metric = metrics.get(name) if metrics is not None else None
        if metric is None:
            metric = self.add_metric_to_cache(name, unit, list(pairs), metric_type)
        metric.add_or_update(value, list(pairs.values()), request_id)


# The name in the public contract; "impl" says nothing about what it is.
MetricsCacheYamlImpl = MetricsCache
