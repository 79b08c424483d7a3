"""Old import path; the code is in :mod:`ts.metrics.caching`."""

from __future__ import annotations

from ts.metrics.caching import CachingMetric

__all__ = ["CachingMetric"]
