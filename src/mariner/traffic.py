"""Which version answers a request that names none, where several share a model's traffic. Pure."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from itertools import accumulate

from mariner.errors import BadRequest

__all__ = ["Shares"]

_STEP = (math.sqrt(5) - 1) / 2
"""The fraction of the golden ratio: its multiples, without their whole parts, fill an interval as evenly as can be."""


class Shares:
    """Picks one of several names, each as often as its weight says.

    After n picks each name is off its share by a few picks, not by the root of n as it would be with random numbers.
    The picks have no period, so a client that sends two kinds of requests in turn gets every name for both.

    Args:
        weights: numbers from 0 up; only their proportions count.

    Raises:
        BadRequest: a weight is no such number, or none is above 0.
    """

    __slots__ = ("_bounds", "_last", "_names", "_phase", "weights")

    def __init__(self, weights: Mapping[str, object]) -> None:
        self.weights = {name: _number(name, weight) for name, weight in weights.items()}
        total = sum(self.weights.values())
        if not 0 < total < math.inf:
            raise BadRequest("No weight is above 0.", hint="Give each version its share, as in 70 and 30.")
        shared = [(name, weight) for name, weight in self.weights.items() if weight]
        self._names = [name for name, _ in shared]
        self._bounds = [bound / total for bound in accumulate(weight for _, weight in shared)]
        self._last = len(self._names) - 1
        self._phase = 0.0

    def pick(self) -> str:
        """The next name."""
        self._phase = (self._phase + _STEP) % 1.0
        return self._names[min(bisect(self._bounds, self._phase), self._last)]

    def renamed(self, old: str, new: str) -> Shares:
        """The same weights, one of them under another name."""
        return Shares({new if name == old else name: weight for name, weight in self.weights.items()})

    def without(self, name: str) -> Shares | None:
        """The weights of the others; None if nothing is left to share."""
        rest = {other: weight for other, weight in self.weights.items() if other != name}
        return Shares(rest) if sum(weight > 0 for weight in rest.values()) > 1 else None


def _number(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise BadRequest(f"The weight of {name} is {weight!r}.", hint="Weights are numbers from 0 up.")
    return weight
