"""One metric of a handler: checks an update and hands it on."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.unit import unit_name
from ts.wire import Sample

__all__ = ["CachingMetric", "Sink"]

Sink = Callable[[Sample], None]

# Named after the module that handlers and tests know: they filter the log by it.
logger = logging.getLogger("ts.metrics.caching_metric")


@cache
def _hostname() -> str:
    return socket.gethostname() or "Unknown"


class CachingMetric:
    """A metric with a fixed name, unit and type.

    Nothing is accumulated here: every update is emitted as it comes, and the server adds up.

    Args:
        metric_name: its name.
        unit: a short name such as ``ms``, or any other text.
        dimension_names: labels, in the order in which their values will be given.
        metric_type: counter, gauge or histogram.

    Attributes:
        unit: the published name of the unit.
        sent_type: type under which the server knows the metric.
        sink: takes the emitted samples; None writes them to the log.
    """

    def __init__(
        self,
        metric_name: str,
        unit: str | None,
        dimension_names: list[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = unit_name(unit)
        self.dimension_names = list(dimension_names or ())
        self.metric_type = metric_type
        self.sent_type = metric_type
        self.sink: Sink | None = None

    def add_or_update(
        self, value: Any, dimension_values: Sequence[Any] | None = None, request_id: str | None = ""
    ) -> None:
        """Emits a value. One that does not fit is reported in the log, because a metric must not fail a request.

        Args:
            value: the increment of a counter, the value of a gauge, the observation of a histogram.
            dimension_values: one value for each dimension name, in the same order.
            request_id: the request or requests it belongs to.
        """
        values = dimension_values or ()
        if len(values) != len(self.dimension_names):
            self._refuse(value, values, f"it has the dimensions {self.dimension_names}")
            return
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            self._refuse(value, values, "the value is no number")
            return
        if self.metric_type is MetricTypes.COUNTER and not 0 <= number < math.inf:
            self._refuse(value, values, "a counter grows by a finite number that is not negative")
            return
        if self.sink is None:
            logger.info("%s", self._line(value, values, request_id))
            return
        dimensions = [(name, str(given)) for name, given in zip(self.dimension_names, values, strict=False)]
        # The name's slot is read past the Enum descriptor: this runs for every batch.
        self.sink(Sample(self.metric_name, self.unit, self.sent_type._value_, number, dimensions, request_id or ""))

    def update(self, value: Any, request_id: str | None = "", dimensions: Sequence[Dimension] | None = None) -> None:
        """Replaces the dimension names by those given, then emits.

        Args:
            value: as for :meth:`add_or_update`.
            request_id: the request or requests it belongs to.
            dimensions: names and values.
        """
        logger.warning("Overriding existing dimensions of metric %s", self.metric_name)
        given = list(dimensions or ())
        self.dimension_names = [dimension.name for dimension in given]
        self.add_or_update(value, [dimension.value for dimension in given], request_id)

    def _line(self, value: Any, values: Sequence[Any], request_id: str | None) -> str:
        dimensions = ",".join(f"{name}:{given}" for name, given in zip(self.dimension_names, values, strict=False))
        origin = f"{_hostname()},{int(time.time())}"
        if request_id:
            origin += f",{request_id}"
        return (
            f"[METRICS]{self.metric_name}.{self.unit}:{value}|#{dimensions}|#type:{self.metric_type.name}"
            f"|#hostname:{origin}"
        )

    def _refuse(self, value: Any, values: Sequence[Any], reason: str) -> None:
        logger.error(
            "[METRICS]Failed to update metric with name:%s and dimensions: %s with value: %s: %s",
            self.metric_name,
            list(values),
            value,
            reason,
        )
