"""Answers with a tensor."""

from __future__ import annotations

from typing import Any

import torch


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any]:
    return [torch.arange(3.0) for _ in data or ()]
