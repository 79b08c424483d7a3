"""Emits metrics, logs and prints."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


class Counts:
    def initialize(self, context: Any) -> None:
        logger.info("logged while loading")
        logger.debug("never seen")

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        print("printed while predicting")  # noqa: T201  # that it prints is the point
        for index in range(len(data)):
            context.metrics.add_counter("Seen", 1, index)
            context.metrics.add_time("Took", 1.5, index)
        return ["ok" for _ in data]
