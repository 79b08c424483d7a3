"""For continuous batches: counts down from the number in the body, one step at a time."""

from __future__ import annotations

from typing import Any

LEFT: dict[str, int] = {}


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    pieces = []
    for index, row in enumerate(data or ()):
        request = context.request_ids[index]
        LEFT[request] = int(row["body"]) if row else LEFT[request] - 1
        pieces.append(f"{LEFT[request]} ")
    context.stopping_criteria = [lambda piece: piece == "1 " for _ in pieces]
    return pieces
