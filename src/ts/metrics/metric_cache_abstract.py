"""Old import path; the code is in :mod:`ts.metrics.store`."""

from __future__ import annotations

from ts.metrics.store import MetricsCache as MetricCacheAbstract

__all__ = ["MetricCacheAbstract"]
