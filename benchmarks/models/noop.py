"""A handler that only answers with the id it was sent: what remains is the server."""

from __future__ import annotations

from typing import Any


class NoOp:
    def initialize(self, context: Any) -> None:
        del context  # nothing to load

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        del context
        return [{"id": row["body"]["id"]} for row in rows]
