"""Has not enough memory for its model."""

from __future__ import annotations

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    raise MemoryError
