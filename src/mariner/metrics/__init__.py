"""Server metrics: the table, counters that are cheap to raise, samples from workers, the Prometheus text.

The text is written here and not by a client library: stock clients rename counters (``Requests2XX_total``), add
``_created`` series and write numbers differently, while dashboards and scripts match TorchServe's spelling literally.
What the machine is doing is read by ``mariner.devices``.
"""

from __future__ import annotations

from mariner.metrics.definitions import METRICS, Definition, Kind, Section, load_definitions
from mariner.metrics.recording import Metrics, MetricsMode, parse_line

__all__ = ["METRICS", "Definition", "Kind", "Metrics", "MetricsMode", "Section", "load_definitions", "parse_line"]
