"""A handler that does what each request says: answer, take its time, leave a trace, raise, exit, crash."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any


class Faulty:
    def initialize(self, context: Any) -> None:
        del context

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        del context
        return [self.answer(row["body"], len(data)) for row in data]

    def answer(self, request: dict[str, Any], batch: int) -> dict[str, Any]:
        fail = request.get("fail")
        if fail == "raise":
            raise ValueError("as the request said")
        if fail == "exit":
            os._exit(3)
        if fail == "crash":
            ctypes.string_at(0)
        if "trace" in request:
            Path(request["trace"]).touch()
        time.sleep(request.get("seconds", 0.0))
        return {"number": request["number"], "doubled": 2 * request["number"], "batch": batch}
