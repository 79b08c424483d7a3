"""Fails in the way that the body names."""

from __future__ import annotations

import os
import sys
from typing import Any

from ts.errors import PredictionException


def handle(data: list[dict[str, Any]] | None, context: Any) -> Any:
    for row in data or ():
        match row["body"]:
            case "value":
                raise ValueError("boom")
            case "memory":
                raise MemoryError
            case "cuda":
                raise RuntimeError("CUDA error: out of memory")
            case "prediction":
                raise PredictionException("no such label", 422)
            case "length":
                return []
            case "exit":
                sys.exit(7)
            case "crash":
                os._exit(9)
    return [row["body"] for row in data or ()]
