"""Figures out of what came back. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mariner.bench.load import Outcomes

__all__ = ["PERCENTILES", "Bucket", "Summary", "histogram", "percentile", "summarize"]

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Answers that took between two times.

    Attributes:
        low: seconds.
        high: seconds.
        count: answers above ``low`` and up to ``high``.
    """

    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one target. Times are seconds.

    Attributes:
        good: answers with a status below 400.
        answers: all answers.
        failures: requests without an answer, by what happened.
        statuses: answers by status.
        unsent: requests that fell due and were never sent.
        seconds: length of the measurement.
        rate: good answers per second.
        mean: of the good answers, as all that follow; NaN if there was none.
        fastest: the shortest.
        slowest: the longest.
        percentiles: by the percentage.
        within: good answers within the limit; None without a limit.
        goodput: those per second; None without a limit.
        buckets: how the times are spread.
    """

    good: int
    answers: int
    failures: dict[str, int]
    statuses: dict[int, int]
    unsent: int
    seconds: float
    rate: float
    mean: float
    fastest: float
    slowest: float
    percentiles: dict[float, float]
    within: int | None
    goodput: float | None
    buckets: tuple[Bucket, ...]

    @property
    def flawless(self) -> bool:
        """Every request was answered, and with a status below 400."""
        return self.good == self.answers > 0 and not self.failures and not self.unsent

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times in milliseconds, as everybody's dashboards have them."""
        return {
            "seconds": self.seconds,
            "answers": self.answers,
            "good": self.good,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failures": self.failures,
            "unsent": self.unsent,
            "rate": self.rate,
            "goodput": self.goodput,
            "latency_ms": {
                "mean": _milliseconds(self.mean),
                "min": _milliseconds(self.fastest),
                "max": _milliseconds(self.slowest),
                **{f"p{percent:g}": _milliseconds(value) for percent, value in self.percentiles.items()},
            },
            "histogram_ms": [[bucket.low * 1e3, bucket.high * 1e3, bucket.count] for bucket in self.buckets],
        }


def summarize(outcomes: Outcomes, limit: float | None = None) -> Summary:
    """The figures of what came back.

    Args:
        outcomes: of one target.
        limit: seconds within which an answer is of use.
    """
    times = sorted(outcomes.latencies)
    seconds = max(outcomes.seconds, 1e-9)
    within = None if limit is None else bisect_right(times, limit)
    return Summary(
        good=len(times),
        answers=outcomes.statuses.total(),
        failures=dict(outcomes.failures),
        statuses=dict(outcomes.statuses),
        unsent=outcomes.unsent,
        seconds=outcomes.seconds,
        rate=len(times) / seconds,
        mean=math.fsum(times) / len(times) if times else math.nan,
        fastest=times[0] if times else math.nan,
        slowest=times[-1] if times else math.nan,
        percentiles={percent: percentile(times, percent) for percent in PERCENTILES},
        within=within,
        goodput=None if within is None else within / seconds,
        buckets=histogram(times),
    )


def percentile(times: Sequence[float], percent: float) -> float:
    """The smallest of the sorted times that ``percent`` of them do not exceed (nearest rank); NaN if there is none."""
    if not times:
        return math.nan
    return times[max(0, math.ceil(len(times) * percent / 100) - 1)]


def histogram(times: Sequence[float], most: int = 12) -> tuple[Bucket, ...]:
    """At most ``most`` buckets, each as much wider than the last as the next; the last holds what is above the 99.9 %.

    Args:
        times: sorted.
        most: buckets.
    """
    if not times:
        return ()
    low, high = times[0], percentile(times, 99.9)
    if high <= low:
        return (Bucket(low, times[-1], len(times)),)
    count = min(most - 1, len(times))
    bounds = [low * (high / low) ** (step / count) for step in range(count)] + [high, times[-1]]
    buckets = []
    below = 0
    for lower, upper in pairwise(bounds):
        reached = len(times) if upper == times[-1] else bisect_right(times, upper)
        buckets.append(Bucket(lower, upper, reached - below))
        below = reached
    return tuple(bucket for bucket in buckets if bucket.count or bucket.high > bucket.low)


def _milliseconds(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds * 1e3
