"""Answers with the size of the batch; a body "bad" is an error."""

from __future__ import annotations

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    rows = data or []
    if any(row["body"] == "bad" for row in rows):
        raise ValueError("boom")
    return [f"batch of {len(rows)}" for _ in rows]
