"""Old import path; the code is in :mod:`ts.metrics.legacy`."""

from __future__ import annotations

from ts.metrics.legacy import MetricsStore

__all__ = ["MetricsStore"]
