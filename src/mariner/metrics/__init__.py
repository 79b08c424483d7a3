"""Server metrics: the table, counters that are cheap to raise, samples from workers, the Prometheus text, log lines.

The text is written here and not by a client library: stock clients rename counters (``Requests2XX_total``), add
``_created`` series and write numbers differently, while dashboards and scripts match TorchServe's spelling literally.
What the machine is doing is read by ``mariner.devices``.
"""

from __future__ import annotations

from mariner.metrics.collector import collect
from mariner.metrics.definitions import METRICS, Definition, Kind, Section, load_definitions
from mariner.metrics.lines import Update, format_line, parse_line
from mariner.metrics.page import reference_page
from mariner.metrics.recording import Metrics

__all__ = [
    "METRICS",
    "Definition",
    "Kind",
    "Metrics",
    "Section",
    "Update",
    "collect",
    "format_line",
    "load_definitions",
    "parse_line",
    "reference_page",
]
