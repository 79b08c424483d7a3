"""Figures of a load, from values."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from itertools import pairwise

import pytest

from mariner.bench.load import Outcomes
from mariner.bench.summary import histogram, percentile, summarize


def outcomes(*milliseconds: float, seconds: float = 2.0, **others: object) -> Outcomes:
    times = array("d", [value / 1e3 for value in milliseconds])
    made = Outcomes(seconds=seconds, latencies=times, statuses=Counter({200: len(times)}))
    for name, value in others.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 5), (90, 9), (91, 10), (99.9, 10), (0, 1), (100, 10)], ids=lambda value: f"{value}"
)
def test_a_percentile_is_a_time_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], percent) == expected


def test_without_a_good_answer_there_is_no_percentile() -> None:
    assert math.isnan(percentile([], 50))


def test_throughput_counts_good_answers_only() -> None:
    summary = summarize(outcomes(1, 2, 3, 4, statuses=Counter({200: 4, 503: 6})))
    assert (summary.rate, summary.answers, summary.good) == (2.0, 10, 4)


def test_goodput_counts_answers_within_the_limit_which_belongs_to_it() -> None:
    summary = summarize(outcomes(10, 20, 30, 40), limit=0.030)
    assert (summary.within, summary.goodput) == (3, 1.5)


def test_one_bad_answer_a_failure_or_a_request_that_was_not_sent_is_a_flaw() -> None:
    assert summarize(outcomes(1, 2)).flawless
    assert not summarize(outcomes(1, 2, statuses=Counter({200: 2, 404: 1}))).flawless
    assert not summarize(outcomes(1, 2, failures=Counter({"the connection was reset": 1}))).flawless
    assert not summarize(outcomes(1, 2, unsent=1)).flawless
    assert not summarize(outcomes()).flawless


def test_the_histogram_has_every_answer_once() -> None:
    times = sorted(0.001 * 1.01**step for step in range(2000))
    buckets = histogram(times)
    assert sum(bucket.count for bucket in buckets) == len(times)
    assert (buckets[0].low, buckets[-1].high) == (times[0], times[-1])
    assert all(one.high == other.low for one, other in pairwise(buckets))
    assert len(buckets) <= 12


def test_equal_times_share_one_bucket() -> None:
    assert [bucket.count for bucket in histogram([0.5] * 7)] == [7]


def test_two_rounds_add_up() -> None:
    both = outcomes(1, 2, seconds=1.0)
    both.add(outcomes(3, seconds=2.0, failures=Counter({"no answer in time": 2}), unsent=4))
    summary = summarize(both)
    assert (summary.good, summary.seconds, summary.rate) == (3, 3.0, 1.0)
    assert (summary.failures, summary.unsent) == ({"no answer in time": 2}, 4)


def test_the_figures_are_json_even_without_an_answer() -> None:
    document = json.loads(json.dumps(summarize(outcomes(), limit=0.1).as_dict(), allow_nan=False))
    assert document["latency_ms"]["p99"] is None
    assert document["goodput"] == 0.0
