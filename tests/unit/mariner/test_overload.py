"""What is refused under load, and what the refused are told; numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from mariner.batching import JobQueue, make_queue
from mariner.errors import RequestTimeout
from mariner.jobs import Job, JobState, Outcome, Request
from mariner.overload import MARGIN, expected_wait, retry_after


@dataclass
class Ready:
    """A worker that is ready."""

    cost: float = 0.1
    idle: bool = False
    lanes: int = 1
    free: float = 0.0

    def free_in(self, _now: float) -> float:
        return self.free


@pytest.mark.parametrize(
    ("waiting", "batch_size", "workers", "expected"),
    [
        (0, 1, [Ready(free=0.04)], (0.04, 0.1)),  # what runs has to end
        (3, 1, [Ready(free=0.04)], (0.34, 0.1)),  # and what came before
        (3, 4, [Ready(free=0.04)], (0.04, 0.1)),  # which goes in the same batch
        (4, 4, [Ready(free=0.04)], (0.14, 0.1)),
        (4, 1, [Ready(), Ready()], (0.2, 0.1)),  # two share the work
        (6, 1, [Ready(cost=0.1), Ready(cost=0.2)], (0.4, 2 / 15)),  # and each does what it can
        (4, 1, [Ready(lanes=4)], (0.1, 0.1)),  # as do the requests that one runs side by side
        (0, 1, [Ready(), Ready(idle=True)], (0.0, 0.0)),  # somebody takes it at once
        (9, 1, [Ready(cost=0.0)], (0.0, 0.0)),  # nothing is known
        (9, 1, [], (0.0, 0.0)),
    ],
)
def test_a_wait_is_what_is_left_of_the_work_before(
    waiting: int, batch_size: int, workers: list[Ready], expected: tuple[float, float]
) -> None:
    assert expected_wait(waiting, batch_size, workers, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize(("estimate", "told"), [(0.0, 1.0), (0.2, 1.0), (7.5, 7.5), (4000.0, 60.0)])
def test_clients_are_told_to_wait_within_bounds(estimate: float, told: float) -> None:
    assert retry_after(estimate) == told


# -- the queue -------------------------------------------------------------------------------------------------------


class Waiting:
    """A queue, what its jobs were told, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.outcomes: dict[str, Outcome] = {}
        self.queue: JobQueue = make_queue(
            "eager", "m", batch_size=1, max_delay=0.0, capacity=10, clock=lambda: self.now
        )

    def put(self, name: str, left: float = math.inf) -> Job:
        job = Job(
            Request(name, b"", []),
            lambda outcome: self.outcomes.update({name: outcome}),
            deadline=self.now + left,
            created=self.now - 2.5,
        )
        self.queue.put(job)
        return job

    def take(self, seconds: float) -> list[str]:
        return [job.request.id for job in self.queue.take(seconds=seconds / MARGIN)]


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_what_would_be_answered_too_late_is_not_begun_while_something_else_can_be(waiting: Waiting) -> None:
    waiting.put("hopeless", 0.5)
    waiting.put("next", 1.5)
    assert waiting.take(1.0) == ["next"]
    error = waiting.outcomes["hopeless"]
    assert isinstance(error, RequestTimeout)
    assert (error.status, error.retry_after, waiting.queue.refusals) == (408, 2.5, {"deadline_exceeded": 1})


def test_what_has_not_waited_is_begun_whatever_the_estimate_says(waiting: Waiting) -> None:
    waiting.put("hurried", 3.0)  # of 5.5 s when it came
    waiting.put("patient")
    assert waiting.take(4.0) == ["hurried"]


def test_an_estimate_alone_leaves_no_worker_without_work(waiting: Waiting) -> None:
    """The estimate may be wrong, and only work corrects it."""
    waiting.put("a", 0.5)
    waiting.put("b", 0.7)
    assert waiting.take(1.0) == ["a"]
    assert waiting.take(1.0) == ["b"]
    assert waiting.outcomes == {}


def test_what_has_no_time_left_is_never_begun(waiting: Waiting) -> None:
    job = waiting.put("a", 0.5)
    waiting.now += 0.5
    assert waiting.take(0.0) == []
    assert job.state is JobState.ENDED


def test_a_job_without_a_deadline_is_not_judged(waiting: Waiting) -> None:
    waiting.put("a")
    assert waiting.take(1e9) == ["a"]
