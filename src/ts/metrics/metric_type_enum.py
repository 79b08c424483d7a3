"""The kinds of metrics."""

from __future__ import annotations

from enum import Enum

__all__ = ["MetricTypes"]


class MetricTypes(Enum):
    """Counters add up, gauges keep the last value, histograms observe each one."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
