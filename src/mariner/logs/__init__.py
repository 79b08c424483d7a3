"""Where lines go: the console, and the files that TorchServe writes. Whoever has a line decides what is worth one."""

from __future__ import annotations

from mariner.logs.console import MODEL_LOG, STARTED, announce, configure, relay
from mariner.logs.files import MODEL_METRICS, SERVER_METRICS, AccessLog, LogFiles

__all__ = [
    "MODEL_LOG",
    "MODEL_METRICS",
    "SERVER_METRICS",
    "STARTED",
    "AccessLog",
    "LogFiles",
    "announce",
    "configure",
    "relay",
]
