"""Describes itself if asked to."""

from __future__ import annotations

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any]:
    if data is None:
        return []
    if context.get_request_header(0, "describe") == "True":
        return [{"labels": ["cat", "dog"]}]
    return ["not asked"]
