"""What becomes of the requests of a dead worker, with values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import pytest

from mariner.batching import make_queue
from mariner.jobs import Job, Outcome, Reply, Request
from mariner.suspects import Triage, name_requests, triage


class Sent(NamedTuple):
    """A batch as a worker has it."""

    id: int
    size: int


def job(name: str) -> Job:
    return Job(Request(name, b"", []), lambda _: None)


def jobs(names: str) -> list[Job]:
    return [job(name) for name in names]


def ids(found: Iterable[Job]) -> str:
    return "".join(job.request.id for job in found)


def groups(found: Iterable[Job]) -> list[str]:
    return [ids(group) for _, group in itertools.groupby(found, key=lambda job: job.suspicion)]


def after_death(batch: list[Job], *, size: int = 0, runs_again: bool = True) -> Triage:
    """The worker died while it ran that batch, of which those are not answered."""
    sent = Sent(1, size or len(batch))
    return triage([(job, sent) for job in batch], began=lambda _: True, runs_again=lambda _: runs_again)


def test_what_the_worker_had_not_begun_is_untouched() -> None:
    running, held = Sent(7, 2), Sent(8, 1)
    a, b, c = jobs("abc")
    found = triage(
        [(a, running), (b, running), (c, held)], began=lambda batch: batch.id == 7, runs_again=lambda _: True
    )
    assert (ids(found.untouched), ids(found.again), found.lost, found.guilty) == ("c", "ab", [], [])
    assert (c.alone, c.suspicion, found.suspected) == (False, None, False)


@pytest.mark.parametrize(
    ("batch", "parts"), [("a", ["a"]), ("ab", ["a", "b"]), ("abc", ["ab", "c"]), ("abcdefgh", ["abcd", "efgh"])]
)
def test_a_batch_runs_again_in_two_halves_that_are_alone(batch: str, parts: list[str]) -> None:
    found = after_death(jobs(batch))
    assert groups(found.again) == parts
    assert all(job.alone for job in found.again)


def test_a_half_that_kills_another_worker_runs_again_one_by_one() -> None:
    half = after_death(jobs("abcdefgh")).again[:4]
    found = after_death(half)
    assert groups(found.again) == ["a", "b", "c", "d"]
    assert found.suspected


def test_a_request_that_kills_a_second_worker_alone_is_guilty() -> None:
    (alone,) = after_death(jobs("a")).again
    found = after_death([alone])
    assert (found.again, found.guilty, found.lost, found.suspected) == ([], [alone], [], True)


def test_the_last_of_a_group_is_not_guilty_before_it_has_run_alone() -> None:
    half = after_death(jobs("abcd")).again[:2]
    half[0].cancel()  # it may have been this one
    found = after_death(half)
    assert (ids(found.again), found.guilty, ids(found.lost)) == ("b", [], "a")
    assert after_death(found.again).guilty == found.again


def test_what_nobody_waits_for_or_has_begun_to_stream_does_not_run_again() -> None:
    gone, streams, other = jobs("abc")
    gone.cancel()
    streams.piece(Reply(1, b"piece", more=True))
    found = after_death([gone, streams, other])
    assert (ids(found.lost), ids(found.again)) == ("ab", "c")


def test_an_answer_that_was_streamed_is_not_begun_anew_although_the_worker_was_further() -> None:
    (streams,) = jobs("a")
    streams.piece(Reply(1, b"piece", more=True))
    found = triage([(streams, Sent(1, 1))], began=lambda _: False, runs_again=lambda _: True)
    assert (found.lost, found.untouched) == ([streams], [])


def test_where_nothing_may_run_again_all_that_ran_is_lost() -> None:
    found = after_death(jobs("ab"), runs_again=False)
    assert (ids(found.lost), found.again) == ("ab", [])


def test_of_requests_that_ran_side_by_side_each_runs_again_once_and_none_is_guilty() -> None:
    sent = [Sent(1, 1), Sent(2, 1)]
    side_by_side = list(zip(jobs("ab"), sent, strict=True))
    first = triage(side_by_side, began=lambda _: True, runs_again=lambda _: True)
    assert groups(first.again) == ["a", "b"]
    second = triage(side_by_side, began=lambda _: True, runs_again=lambda _: True)
    assert (second.again, second.guilty, ids(second.lost)) == ([], [], "ab")


def test_a_line_of_the_log_names_twenty_requests() -> None:
    names = [str(number) for number in range(25)]
    assert name_requests([job(name) for name in names]) == f"request {', '.join(names[:20])} and 5 more"


# -- from the first death to the last answer ---------------------------------------------------------------------------


def run_until_answered(size: int, poison: set[int]) -> tuple[int, dict[int, str], list[int]]:
    """Serves one batch and ten innocent requests behind it with a worker that poison kills.

    Returns:
        Deaths, the ends of all requests, and the sizes of the batches that the suspects ran in.
    """
    ends: dict[int, str] = {}
    queue = make_queue("eager", "m", batch_size=size, max_delay=0.0, capacity=100, clock=lambda: 0.0)

    def deliver(number: int, outcome: Outcome) -> None:
        assert number not in ends
        ends[number] = "good" if isinstance(outcome, Reply) else "error"

    for number in range(size + 10):
        queue.put(Job(Request(str(number), b"", []), lambda outcome, number=number: deliver(number, outcome)))  # type: ignore[misc]
    deaths, sizes = 0, []
    while batch := queue.take():
        numbers = [int(job.request.id) for job in batch]
        if any(job.suspicion for job in batch):
            assert max(numbers) < size, "a suspect shares its batch with an innocent request"
            sizes.append(len(batch))
        if poison.isdisjoint(numbers):
            for job in batch:
                job.end(Reply(1, b""))
            continue
        deaths += 1
        for job in batch:
            job.begin(0.0)
        found = after_death(batch)
        queue.put_back([*found.untouched, *found.again])
        for job in found.guilty:
            ends[int(job.request.id)] = "error"
    return deaths, ends, sizes


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 32])
def test_one_guilty_request_costs_three_workers_at_most_and_only_itself(size: int) -> None:
    for guilty in range(size):
        deaths, ends, _ = run_until_answered(size, {guilty})
        assert deaths <= 3
        assert ends == {number: "error" if number == guilty else "good" for number in range(size + 10)}


def test_any_number_of_guilty_requests_is_found() -> None:
    for count in range(1, 7):
        for guilty in itertools.combinations(range(6), count):
            deaths, ends, _ = run_until_answered(6, set(guilty))
            assert deaths <= 1 + 2 + count
            assert {number for number, end in ends.items() if end == "error"} == set(guilty)
            assert len(ends) == 16


def test_a_death_that_was_nobodys_fault_costs_two_calls() -> None:
    queue = make_queue("eager", "m", batch_size=32, max_delay=0.0, capacity=100, clock=lambda: 0.0)
    queue.put_back(after_death(jobs("abcdefgh")).again)
    assert [ids(queue.take()), ids(queue.take()), queue.take()] == ["abcd", "efgh", []]


def test_the_other_half_runs_before_the_requests_of_the_half_that_failed() -> None:
    _, _, sizes = run_until_answered(8, {0})
    assert sizes == [4, 4, 1, 1, 1, 1]
