"""When workers come and go, told with values."""

from __future__ import annotations

import math

import pytest

from mariner.autoscaling import Demand, Growth, Idle, ScalingPolicy


def demand(
    batches: int, *, ready: int = 1, idle: int = 0, coming: int = 0, free: int = 3, cost: float = 0.05
) -> Demand:
    return Demand(batches=batches, idle=idle, ready=ready, coming=coming, free=free, cost=cost)


def policy(*, start: float = 0.2, idle_timeout: float = 60.0) -> ScalingPolicy:
    made = ScalingPolicy(idle_timeout)
    made.loaded(start)
    return made


# -- more ------------------------------------------------------------------------------------------------------------


def test_work_for_longer_than_a_start_gets_a_worker_per_batch_at_once() -> None:
    growth = policy(start=0.2).grow(100.0, demand(9, cost=0.05))
    assert growth == Growth(3, "about 0.45 s of work wait and a start takes 0.20 s")


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        pytest.param(demand(2, cost=1.0), 2, id="no more than batches wait"),
        pytest.param(demand(9, cost=1.0, free=1), 1, id="no more than the maximum"),
        pytest.param(demand(9, cost=1.0, coming=2), 3, id="those that come count"),
        pytest.param(demand(2, cost=1.0, coming=2), 0, id="enough come"),
        pytest.param(demand(9, cost=1.0, idle=1), 0, id="a worker is idle and waits for the batch to fill"),
        pytest.param(demand(9, cost=1.0, ready=0, coming=1), 0, id="it has not shown that it loads"),
        pytest.param(demand(0, cost=1.0), 0, id="nothing waits"),
    ],
)
def test_how_many_are_started(waiting: Demand, expected: int) -> None:
    assert policy().grow(100.0, waiting).workers == expected


def test_a_blip_that_is_over_sooner_than_a_start_gets_none() -> None:
    scaling = policy(start=5.0)
    assert scaling.grow(100.0, demand(40, cost=0.05)) == Growth(0, look_at=100.5)  # 2 s of work
    assert scaling.grow(100.5, demand(30, cost=0.05)) == Growth(0, look_at=101.0)
    assert scaling.grow(101.0, demand(20, cost=0.05)) == Growth(0, look_at=101.5)
    assert scaling.grow(101.5, demand(10, cost=0.05)) == Growth(0, look_at=102.0)


def test_work_that_does_not_become_less_is_no_blip() -> None:
    scaling = policy(start=5.0)
    assert scaling.grow(100.0, demand(9)).workers == 0
    assert scaling.grow(100.4, demand(9)) == Growth(0, look_at=100.5)
    assert scaling.grow(100.5, demand(9)) == Growth(3, "work has waited for 0.50 s and does not become less")


def test_the_doubt_lasts_no_longer_than_a_start() -> None:
    scaling = policy(start=0.2)
    assert scaling.grow(100.0, demand(1)) == Growth(0, look_at=100.2)
    assert scaling.grow(100.2, demand(1)).workers == 1


def test_the_cost_of_a_first_batch_that_still_runs_is_unknown_and_waits_for_the_doubt_alone() -> None:
    scaling = policy(start=2.0)
    assert scaling.grow(100.0, demand(1, cost=0.0)) == Growth(0, look_at=100.5)
    assert scaling.grow(100.5, demand(1, cost=0.0)).workers == 1


def test_an_idle_worker_between_ends_the_story() -> None:
    scaling = policy(start=5.0)
    scaling.grow(100.0, demand(9))
    scaling.relieve()
    assert scaling.grow(100.5, demand(9)) == Growth(0, look_at=101.0)


def test_a_worker_that_came_is_given_time_to_help() -> None:
    scaling = policy(start=5.0)
    scaling.grow(100.0, demand(9))
    scaling.loaded(5.0)
    assert scaling.grow(100.5, demand(9, ready=2)) == Growth(0, look_at=101.0)


def test_failed_starts_are_retried_later_and_later() -> None:
    scaling = policy()
    assert [scaling.failed(100.0) for _ in range(9)] == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert scaling.grow(101.0, demand(9)) == Growth(0, look_at=400.0)
    assert scaling.grow(400.0, demand(9)).workers == 3
    scaling.loaded(0.2)
    assert scaling.failed(500.0) == 5


def test_failing_for_days_does_not_overflow() -> None:
    scaling = policy()
    assert {scaling.failed(0.0) for _ in range(3000)} == {5, 10, 20, 40, 80, 160, 300}


def test_memory_is_looked_at_again_after_a_while() -> None:
    scaling = policy()
    scaling.no_room(100.0)
    assert scaling.grow(101.0, demand(9)) == Growth(0, look_at=105.0)
    assert scaling.grow(105.0, demand(9)).workers == 3


# -- fewer -----------------------------------------------------------------------------------------------------------


def test_the_youngest_of_those_that_were_idle_for_long_stops_first() -> None:
    idle = [Idle(100.0), Idle(107.0), Idle(103.0), None]
    scaling = policy()
    assert scaling.shrink(162.0, idle, 3) == (None, 163.0)
    assert scaling.shrink(163.0, idle, 3) == (2, 169.0)


def test_one_stops_at_a_time() -> None:
    scaling = policy()
    assert scaling.shrink(170.0, [Idle(100.0)] * 4, 3) == (3, 176.0)
    assert scaling.shrink(172.0, [Idle(100.0)] * 3, 2) == (None, 176.0)
    assert scaling.shrink(176.0, [Idle(100.0)] * 3, 2) == (2, 182.0)


def test_the_fullest_device_gives_first() -> None:
    idle = [Idle(100.0, 2), Idle(100.0, 1), Idle(100.0, 2)]
    assert policy().shrink(170.0, idle, 2)[0] == 2
    idle = [Idle(100.0, 2), Idle(100.0, 2), Idle(100.0, 1)]
    assert policy().shrink(170.0, idle, 2)[0] == 1


@pytest.mark.parametrize(
    ("idle", "surplus", "look_at"),
    [
        pytest.param([Idle(100.0), Idle(130.0)], 1, 160.0, id="not yet"),
        pytest.param([None, None], 1, 210.0, id="all work"),
        pytest.param([Idle(10.0), Idle(10.0)], 0, math.inf, id="none is above the minimum"),
    ],
)
def test_who_is_needed_or_not_idle_for_long_stays(idle: list[Idle | None], surplus: int, look_at: float) -> None:
    assert policy().shrink(150.0, idle, surplus) == (None, look_at)


def test_a_worker_is_idle_for_at_least_as_long_as_its_start_took() -> None:
    scaling = policy(start=90.0, idle_timeout=60.0)
    assert scaling.shrink(170.0, [Idle(100.0), Idle(100.0)], 1) == (None, 190.0)
    assert scaling.shrink(190.0, [Idle(100.0), Idle(100.0)], 1)[0] == 1
