"""Takes half a second for a request."""

from __future__ import annotations

import time
from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    if data:
        time.sleep(0.5)
    return ["done" for _ in data or ()]
