"""Fails when its model is loaded."""

from __future__ import annotations

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    raise ValueError("the weights are damaged")
