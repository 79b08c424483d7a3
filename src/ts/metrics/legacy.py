"""The metrics of the first handler API: values with a text form, and the store that makes them.

Kept for scripts that build a context by hand and for custom collectors; ``context.metrics`` in a worker is
:class:`ts.metrics.store.MetricsCache`.
"""

# handlers call these with positional arguments

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from json import JSONEncoder
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.unit import unit_name

__all__ = ["Metric", "MetricEncoder", "MetricsStore"]

logger = logging.getLogger("ts.metrics.metric")


class Metric:
    """One value.

    Args:
        name: its name.
        value: its value.
        unit: a short name such as ``ms``, or any other text.
        dimensions: labels.
        request_id: the request or requests it belongs to.
        metric_method: ``counter`` if the value is an increment.
    """

    def __init__(
        self,
        name: str,
        value: Any,
        unit: str | None,
        dimensions: Sequence[Dimension] | None,
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.unit = unit_name(unit)
        self.dimensions = list(dimensions or ())
        self.request_id = request_id
        self.metric_method = metric_method
        self.hostname = socket.gethostname()
        self.timestamp = int(time.time())

    def update(self, value: Any) -> None:
        """Emits another value; the one of this object stays."""
        self.timestamp = int(time.time())
        logger.info("[METRICS]%s", self._text(value))

    def reset(self) -> None:
        """Emits zero."""
        self.update(0)

    def to_dict(self) -> dict[str, Any]:
        """The metric as it appears in JSON."""
        return {
            "MetricName": self.name,
            "Value": self.value,
            "Unit": self.unit,
            "Dimensions": self.dimensions,
            "Timestamp": self.timestamp,
            "HostName": self.hostname,
            "RequestId": self.request_id,
        }

    def __str__(self) -> str:
        return self._text(self.value)

    def _text(self, value: Any) -> str:
        dimensions = ",".join(map(str, self.dimensions))
        text = f"{self.name}.{self.unit}:{value}|#{dimensions}|#hostname:{self.hostname},{self.timestamp}"
        return f"{text},{self.request_id}" if self.request_id else text


class MetricEncoder(JSONEncoder):
    """Writes metrics and dimensions as JSON."""

    def default(self, o: Any) -> Any:
        """The JSON form of ``o``.

        Raises:
            TypeError: neither a metric nor a dimension, nor anything JSON knows.
        """
        return o.to_dict() if isinstance(o, (Metric, Dimension)) else super().default(o)


class MetricsStore:
    """Metrics of one batch; the first value of a metric is kept, later ones are emitted.

    Args:
        request_ids: index in the batch to request id, or one id, or None.
        model_name: value of the ``ModelName`` dimension.

    Attributes:
        store: the metrics in the order of their creation.
        cache: the same by name, unit, request and dimensions.
    """

    def __init__(self, request_ids: Mapping[int, str] | str | None, model_name: str | None) -> None:
        self.request_ids = request_ids
        self.model_name = model_name
        self.store: list[Metric] = []
        self.cache: dict[str, Metric] = {}

    def set_request_ids(self, request_ids: Mapping[int, str] | str | None) -> None:
        """Says which requests the next values belong to."""
        self.request_ids = request_ids

    def add_metric(
        self, name: str, value: Any, unit: str | None, idx: Any = None, dimensions: list[Dimension] | None = None
    ) -> None:
        """Adds a value of any unit.

        Raises:
            ValueError: ``dimensions`` is no list.
        """
        self._add(name, value, self._request_id(idx), unit, dimensions)

    def add_counter(self, name: str, value: Any, idx: Any = None, dimensions: list[Dimension] | None = None) -> None:
        """Adds an increment.

        Raises:
            ValueError: ``dimensions`` is no list.
        """
        self._add(name, value, self._request_id(idx), "count", dimensions, "counter")

    def add_time(
        self, name: str, value: Any, idx: Any = None, unit: str = "ms", dimensions: list[Dimension] | None = None
    ) -> None:
        """Adds a duration in ``ms`` or ``s``.

        Raises:
            ValueError: another unit, or ``dimensions`` is no list.
        """
        if unit not in ("ms", "s"):
            raise ValueError("the unit for a timed metric should be one of ['ms', 's']")
        self._add(name, value, self._request_id(idx), unit, dimensions)

    def add_size(
        self, name: str, value: Any, idx: Any = None, unit: str = "MB", dimensions: list[Dimension] | None = None
    ) -> None:
        """Adds a size in ``MB``, ``kB``, ``GB`` or ``B``.

        Raises:
            ValueError: another unit, or ``dimensions`` is no list.
        """
        if unit not in ("MB", "kB", "GB", "B"):
            raise ValueError("The unit for size based metric is one of ['MB','kB', 'GB', 'B']")
        self._add(name, value, self._request_id(idx), unit, dimensions)

    def add_percent(self, name: str, value: Any, idx: Any = None, dimensions: list[Dimension] | None = None) -> None:
        """Adds a percentage.

        Raises:
            ValueError: ``dimensions`` is no list.
        """
        self._add(name, value, self._request_id(idx), "percent", dimensions)

    def add_error(self, name: str, value: Any, dimensions: list[Dimension] | None = None) -> None:
        """Adds an error, often a text; it belongs to no request.

        Raises:
            ValueError: ``dimensions`` is no list.
        """
        self._add(name, value, None, "", dimensions)

    def _request_id(self, idx: Any) -> str | None:
        ids = self.request_ids
        if ids is None or isinstance(ids, str):
            return ids
        return ids[idx] if idx in ids else ",".join(ids.values())

    def _add(
        self,
        name: str,
        value: Any,
        request_id: str | None,
        unit: str | None,
        dimensions: list[Dimension] | None,
        method: str | None = None,
    ) -> None:
        if not isinstance(dimensions or [], list):
            raise ValueError("Please provide a list of dimensions")  # noqa: TRY004  # callers catch ValueError
        labels = list(dimensions or ())
        present = {label.name for label in labels}
        if request_id is None:
            defaults = [Dimension("Level", "Error")]
        else:
            defaults = [Dimension("ModelName", self.model_name), Dimension("Level", "Model")]
        labels += [default for default in defaults if default.name not in present]
        key = "-".join([name, str(unit), str(request_id), *map(str, labels)])
        if key in self.cache:
            self.cache[key].update(value)
            return
        metric = Metric(name, value, unit, labels, request_id, method)
        self.store.append(metric)
        self.cache[key] = metric
