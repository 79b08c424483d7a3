"""Where lines go: the console, and the files that TorchServe writes. What is worth a line is decided elsewhere."""

from __future__ import annotations

from mariner.logs.console import BLOCK, MODEL_LOG, STARTED, announce, configure, relay
from mariner.logs.files import MODEL_METRICS, SERVER_METRICS, AccessLog, LogFiles, client_part, request_part

__all__ = [
    "BLOCK",
    "MODEL_LOG",
    "MODEL_METRICS",
    "SERVER_METRICS",
    "STARTED",
    "AccessLog",
    "LogFiles",
    "announce",
    "client_part",
    "configure",
    "relay",
    "request_part",
]
