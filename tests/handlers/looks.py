"""Tells where it runs and what it could import."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import beside  # type: ignore[import-not-found]  # written beside it by the test


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any]:
    return [
        {
            "cwd": str(Path.cwd()),
            "beside": beside.VALUE,
            "torch": "torch" in sys.modules,
            "path": sys.path,
            "python_path": os.environ["PYTHONPATH"],
            "properties": context.system_properties,
        }
        for _ in data or ()
    ]
