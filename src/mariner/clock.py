"""The time and its timers, as everything that waits is given them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Clock", "sleep"]


class Clock(Protocol):
    """An event loop, or the fake clock of :mod:`mariner.testing`."""

    def time(self) -> float:
        """Seconds; only differences mean something."""

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> object:
        """Calls ``callback`` in the next turn of the event loop."""

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        """Calls ``callback`` at that time."""


async def sleep(clock: Clock, seconds: float) -> None:
    """Waits until so many seconds have passed on a clock."""
    if seconds <= 0:
        return
    woken = asyncio.get_running_loop().create_future()
    handle = clock.call_at(clock.time() + seconds, woken.set_result, None)
    try:
        await woken
    finally:
        handle.cancel()
