"""A coroutine as handler."""

from __future__ import annotations

import asyncio
from typing import Any


class Awaits:
    def initialize(self, context: Any) -> None:
        self.loop = asyncio.get_event_loop()

    async def handle(self, data: list[dict[str, Any]], context: Any) -> list[bool]:
        await asyncio.sleep(0)
        return [asyncio.get_running_loop() is self.loop for _ in data]
