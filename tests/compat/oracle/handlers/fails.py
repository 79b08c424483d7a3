"""Fails in the way that the body names."""

from __future__ import annotations

import os
import time
from typing import Any

from ts.utils.util import PredictionException


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    for row in data or ():
        match row["body"]:
            case "value":
                raise ValueError("boom")
            case "prediction":
                raise PredictionException("no such label", 513)
            case "prediction 413":
                raise PredictionException("too much", 413)
            case "memory":
                raise MemoryError
            case "CUDA":
                raise RuntimeError("CUDA error: device-side assert triggered")
            case "exit":
                os._exit(9)
            case "for ever":
                time.sleep(600)
    return ["fine" for _ in data or ()]
