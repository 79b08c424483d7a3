"""A handler that looks at a large body without computing with it: what remains is moving the bytes."""

from __future__ import annotations

from typing import Any

PROBE_STEP = 65_536  # bytes; ten probes prove that a 602 KB body arrived in one piece, at no cost


class Raw:
    def initialize(self, context: Any) -> None:
        del context  # nothing to load

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        del context
        return [{"bytes": len(row["body"]), "probe": sum(row["body"][::PROBE_STEP])} for row in rows]
