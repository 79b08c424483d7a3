"""Batches for a latency target: what is learnt of a model, and what is made of it. The clock is a number."""

from __future__ import annotations

import pytest
from slo_simulation import LOADS, MODELS, Model, best_fixed, goodput, slo

from mariner.jobs import Job, Request
from mariner.slo import GROWTH, Curve, SloQueue


class Told:
    """A queue with a target of 100 ms, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.queue = SloQueue(
            'Model "m"', target=0.1, batch_size=64, max_delay=0.1, capacity=1000, clock=lambda: self.now
        )

    def put(self, count: int, every: float = 0.0) -> None:
        for _ in range(count):
            self.now += every
            self.queue.put(Job(Request("", b"", []), lambda outcome: None, created=self.now))

    def learn(self, seconds: dict[int, float], times: int = 10) -> None:
        for _ in range(times):
            for size, taken in seconds.items():
                self.queue.measured(size, taken)


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_curve_knows_quantiles_and_what_lies_between() -> None:
    curve = Curve()
    for milliseconds in range(1, 11):
        curve.add(4, milliseconds / 1e3)
        curve.add(8, milliseconds / 1e3 + 0.010)
    assert curve.usual(4) == pytest.approx(0.005, rel=0.1)
    assert curve.slow(4) == pytest.approx(0.009, rel=0.1)
    assert curve.usual(4) < curve.usual(6) < curve.usual(8) < curve.usual(16)


def test_a_larger_batch_is_never_said_to_take_less() -> None:
    curve = Curve()
    for size, seconds in ((1, 0.010), (2, 0.030), (4, 0.020)):
        curve.add(size, seconds)
    assert curve.usual(1) <= curve.usual(2) <= curve.usual(4)


def test_a_model_that_became_faster_is_known_anew() -> None:
    curve = Curve()
    for _ in range(600):
        curve.add(1, 0.5)
    for _ in range(600):
        curve.add(1, 0.1)
    assert curve.slow(1) == pytest.approx(0.1)


def test_a_lone_request_goes_at_once(told: Told) -> None:
    told.put(1)
    assert len(told.queue.take()) == 1
    told.learn({1: 0.02, 8: 0.03})
    told.put(50, every=0.001)
    told.queue.remove_all()
    told.put(1)
    assert len(told.queue.take()) == 1


def test_what_is_not_known_is_tried_step_by_step(told: Told) -> None:
    told.put(500, every=0.0001)
    sizes = []
    for _ in range(4):
        batch = told.queue.take()
        sizes.append(len(batch))
        told.now += 0.02
        told.queue.measured(len(batch), 0.02)
    assert sizes == [GROWTH**step for step in range(4)]


def test_a_batch_is_as_large_as_the_oldest_job_has_time_for(told: Told) -> None:
    told.learn({size: 0.002 * size for size in (1, 2, 4, 8, 16, 24)})
    told.put(1)
    told.now += 0.0785  # 21.5 ms are left, of which one is for the way
    told.put(15)
    assert len(told.queue.take()) == 10


def test_a_busy_worker_is_left_alone_with_less_than_a_batch(told: Told) -> None:
    told.learn({1: 0.001, 2: 0.001, 4: 0.001})
    told.put(1)
    assert told.queue.take(partial=False) == []
    assert len(told.queue.take()) == 1


def test_a_target_that_cannot_be_met_is_said_once_and_throughput_counts(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.put(200, every=0.001)
    told.learn({1: 0.2, 2: 0.21, 4: 0.22, 8: 0.23})
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith('Model "m": a batch of one takes 200.0 ms, so that latencySloMs, 100, cannot be met.')
    assert len(told.queue.take()) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_it_keeps_within_a_tenth_of_the_best_fixed_setting(model: Model, load: float) -> None:
    best, size, delay = best_fixed(model, load)
    assert goodput(model, load, slo) >= 0.9 * best, f"the best is batches of {size} after {delay} s"
