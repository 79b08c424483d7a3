"""Says through one named pipe that it is running, and goes on when another one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    for row in data or ():
        if row["body"] == "wait":
            Path("running").write_text("yes")
            Path("go").read_text()
    return ["done" for _ in data or ()]
