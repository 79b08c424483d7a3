"""Old import path; the code is in :mod:`ts.metrics.store`."""

from __future__ import annotations

from ts.metrics.store import MetricsCacheYamlImpl

__all__ = ["MetricsCacheYamlImpl"]
