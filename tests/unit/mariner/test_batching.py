"""Which jobs form the next batch; the clock is a number."""

from __future__ import annotations

import itertools
import math

import pytest

from mariner.batching import POLICIES, JobQueue, make_queue
from mariner.errors import BadRequest, QueueFull, RequestTimeout
from mariner.jobs import Job, JobState, Outcome, Request, Suspicion


class Told:
    """A clock that says what it is told, and what the jobs were told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.outcomes: list[tuple[str, Outcome]] = []

    def queue(self, policy: str = "eager", *, batch_size: int = 3, delay: float = 0.5, capacity: int = 10) -> JobQueue:
        return make_queue(
            policy, "m", batch_size=batch_size, max_delay=delay, capacity=capacity, clock=lambda: self.now
        )

    def job(self, name: str = "j", *, timeout: float = math.inf, alone: bool = False) -> Job:
        return Job(
            Request(name, b"", []),
            lambda outcome: self.outcomes.append((name, outcome)),
            deadline=self.now + timeout,
            created=self.now,
            alone=alone,
        )


@pytest.fixture
def told() -> Told:
    return Told()


def ids(batch: list[Job]) -> list[str]:
    return [job.request.id for job in batch]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_batch_goes_at_once_and_in_order(told: Told, policy: str) -> None:
    queue = told.queue(policy)
    for name in "abcd":
        queue.put(told.job(name))
    assert ids(queue.take()) == ["a", "b", "c"]
    assert len(queue) == 1


def test_eager_takes_what_is_there(told: Told) -> None:
    queue = told.queue()
    queue.put(told.job("a"))
    assert ids(queue.take()) == ["a"]


def test_a_busy_worker_takes_only_full_batches(told: Told) -> None:
    queue = told.queue()
    queue.put(told.job("a"))
    queue.put(told.job("b"))
    assert queue.take(partial=False) == []
    queue.put(told.job("c"))
    assert ids(queue.take(partial=False)) == ["a", "b", "c"]


def test_fill_waits_for_the_delay_of_the_oldest(told: Told) -> None:
    queue = told.queue("fill")
    queue.put(told.job("a"))
    told.now += 0.4
    queue.put(told.job("b"))
    assert queue.take() == []
    assert queue.wake_at() == pytest.approx(100.5)
    told.now += 0.1
    assert ids(queue.take()) == ["a", "b"]


def test_eager_has_nothing_to_wake_up_for(told: Told) -> None:
    queue = told.queue()
    queue.put(told.job("a"))
    assert queue.wake_at() == math.inf


def test_it_wakes_up_for_the_earliest_deadline(told: Told) -> None:
    queue = told.queue("fill", delay=60)
    queue.put(told.job(timeout=9))
    queue.put(told.job(timeout=5))
    assert queue.wake_at() == pytest.approx(105.0)


def test_an_empty_queue_never_wakes_up(told: Told) -> None:
    assert told.queue("fill").wake_at() == told.queue().wake_at() == math.inf


def test_expired_jobs_are_answered_and_not_taken(told: Told) -> None:
    queue = told.queue(batch_size=1)
    queue.put(told.job("stale", timeout=1))
    queue.put(told.job("fresh", timeout=60))
    told.now += 2
    assert ids(queue.take()) == ["fresh"]
    ((name, outcome),) = told.outcomes
    assert name == "stale"
    assert isinstance(outcome, RequestTimeout)
    assert "waited 2.000 s" in outcome.message


def test_cancelled_jobs_take_no_place(told: Told) -> None:
    queue = told.queue(capacity=2)
    gone = told.job("gone")
    queue.put(gone)
    queue.put(told.job("a"))
    gone.cancel()
    queue.put(told.job("b"))
    assert ids(queue.take()) == ["a", "b"]
    assert told.outcomes == []


def test_only_cancelled_jobs_make_no_batch(told: Told) -> None:
    for batch_size in (1, 3):
        queue = told.queue(batch_size=batch_size)
        job = told.job()
        queue.put(job)
        job.cancel()
        assert queue.take() == []
        assert not queue


def test_a_full_queue_refuses_with_its_numbers(told: Told) -> None:
    queue = told.queue(capacity=2)
    queue.put(told.job())
    queue.put(told.job())
    with pytest.raises(QueueFull, match="2 requests wait, job_queue_size is 2"):
        queue.put(told.job())


def test_jobs_handed_over_but_not_begun_count_as_waiting(told: Told) -> None:
    queue = told.queue(capacity=2)
    queue.ahead = 2
    with pytest.raises(QueueFull):
        queue.put(told.job())


def test_jobs_put_back_come_first_in_their_old_order_even_into_a_full_queue(told: Told) -> None:
    queue = told.queue(capacity=2)
    queue.put(told.job("c"))
    queue.put(told.job("d"))
    jobs = [told.job("a", timeout=7), told.job("b")]
    for job in jobs:
        job.begin(told.now)
    queue.put_back(jobs)
    assert all(job.state is JobState.WAITING for job in jobs)
    assert queue.wake_at() == pytest.approx(107.0)
    assert ids(queue.take()) == ["a", "b", "c"]


def test_suspects_come_before_what_is_put_back_with_them_and_after_those_that_wait(told: Told) -> None:
    queue = told.queue()
    queue.put(told.job("waits"))
    waiting, suspect, innocent = told.job("first"), told.job("suspect"), told.job("innocent")
    for job in (waiting, suspect):
        job.alone, job.suspicion = True, Suspicion()
    queue.put_back([waiting])
    queue.put_back([innocent, suspect])
    assert [ids(queue.take()) for _ in range(3)] == [["first"], ["suspect"], ["innocent", "waits"]]


def test_suspects_of_one_group_are_a_batch_whatever_the_policy_and_whoever_asks(told: Told) -> None:
    queue = told.queue("fill", batch_size=8)
    group = [told.job(name) for name in "abc"]
    suspicion = Suspicion()
    for job in group:
        job.alone, job.suspicion = True, suspicion
    queue.put(told.job("innocent"))
    queue.put_back(group)
    group[1].cancel()
    assert ids(queue.take(partial=False)) == ["a", "c"]
    assert queue.take() == []


def test_suspects_that_may_not_run_yet_are_overtaken_and_keep_their_places(told: Told) -> None:
    queue = told.queue("fill", batch_size=2)
    group = [told.job(name) for name in "xyz"]
    for job, suspicion in zip(group, (first := Suspicion(), first, Suspicion()), strict=True):
        job.alone, job.suspicion = True, suspicion
    queue.put_back(group)
    for name in "abc":
        queue.put(told.job(name))
    queue.may_risk = lambda: False
    assert ids(queue.take()) == ["a", "b"]
    assert queue.take() == []
    assert queue.wake_at() == pytest.approx(100.5)
    group[0].cancel()
    assert (ids(queue.take()), len(queue)) == ([], 3)
    queue.may_risk = lambda: True
    assert [ids(queue.take()), ids(queue.take())] == [["y"], ["z"]]


def test_a_suspect_that_is_overtaken_keeps_its_deadline_though_others_expire_meanwhile() -> None:
    clock = itertools.count(100)  # a second passes whenever somebody looks
    queue = make_queue("eager", "m", batch_size=1, max_delay=0.0, capacity=10, clock=lambda: float(next(clock)))
    suspect = Job(Request("suspect", b"", []), lambda _: None, deadline=200.0)
    suspect.alone, suspect.suspicion = True, Suspicion()
    queue.put_back([suspect])
    queue.put(Job(Request("expires", b"", []), lambda _: None, deadline=101.0))
    queue.may_risk = lambda: False
    assert queue.take() == []
    assert queue.wake_at() == pytest.approx(200.0)


def test_fill_needs_no_timer_for_what_is_due_already(told: Told) -> None:
    queue = told.queue("fill")
    queue.put(told.job("a", timeout=9))
    told.now += 0.5
    assert queue.wake_at() == pytest.approx(109.0)


def test_a_suspect_whose_deadline_has_passed_does_not_run_again(told: Told) -> None:
    queue = told.queue()
    suspect = told.job("suspect", timeout=1)
    suspect.alone, suspect.suspicion = True, Suspicion()
    queue.put_back([suspect])
    told.now += 1
    assert queue.take() == []
    assert isinstance(told.outcomes[0][1], RequestTimeout)


def test_a_job_that_wants_to_be_alone_shares_no_batch(told: Told) -> None:
    queue = told.queue("fill")
    queue.put(told.job("a"))
    queue.put(told.job("alone", alone=True))
    queue.put(told.job("b"))
    assert ids(queue.take()) == ["a"]
    assert ids(queue.take()) == ["alone"]
    assert queue.take() == []


def test_remove_all_empties_it(told: Told) -> None:
    queue = told.queue()
    queue.put(told.job("a", timeout=1))
    assert ids(queue.remove_all()) == ["a"]
    assert (len(queue), queue.wake_at()) == (0, math.inf)


def test_an_unknown_policy_is_refused_with_the_known_ones(told: Told) -> None:
    with pytest.raises(BadRequest, match="'sloppy' is unknown; choose one of eager, fill"):
        told.queue("sloppy")
