"""Finds the guilty requests of a batch that failed, in few calls of the handler.

Pure. A batch of n costs at most 2n - 2 further calls, as many as its halves, their halves and so on number. One guilty
request among 32 costs 10. Where everything fails, halving would only put off what has to come: each request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["isolate"]

T = TypeVar("T")

HOPELESS = 4  # parts of one round; if that many were tried and all failed, smaller parts will hardly do better


def isolate(batch: Sequence[T], attempt: Callable[[Sequence[T]], bool]) -> int:
    """Tries parts of a batch that failed as a whole, until each request was in a part that succeeded or failed alone.

    Innocent requests are answered first: a round tries all parts of one size before it goes on with smaller ones.

    Args:
        batch: what failed; at least two.
        attempt: runs a part; False if it failed and its own parts should be tried. Not called twice for one request
            alone.

    Returns:
        How many parts were tried.
    """
    calls = 0
    parts = _halves(batch)
    while parts:
        calls += len(parts)
        failed = [part for part in parts if not attempt(part) and len(part) > 1]
        if len(failed) == len(parts) >= HOPELESS:
            parts = [[member] for part in failed for member in part]
        else:
            parts = [half for part in failed for half in _halves(part)]
    return calls


def _halves(part: Sequence[T]) -> list[Sequence[T]]:
    middle = len(part) // 2
    return [part[:middle], part[middle:]]
