"""How few calls find the guilty requests, and that no other request fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts.isolation import isolate


class Trial:
    """A batch whose parts fail by a rule; keeps what was tried and how each request ended."""

    def __init__(self, size: int, fails: Callable[[Sequence[int]], bool]) -> None:
        self.tried: list[Sequence[int]] = []
        self.failed: list[int] = []
        self.answered: list[int] = []
        self._fails = fails
        self.calls = isolate(range(size), self._attempt)

    def _attempt(self, part: Sequence[int]) -> bool:
        self.tried.append(part)
        if not self._fails(part):
            self.answered += part
            return True
        if len(part) == 1:
            self.failed += part
        return len(part) == 1


def guilty(*members: int) -> Callable[[Sequence[int]], bool]:
    return lambda part: any(member in part for member in members)


@given(st.integers(2, 70).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))))
def test_exactly_the_guilty_fail_whoever_they_are_within_the_bound(case: tuple[int, set[int]]) -> None:
    size, bad = case
    trial = Trial(size, guilty(*bad))
    assert sorted(trial.failed) == sorted(bad)
    assert sorted(trial.failed + trial.answered) == list(range(size))
    assert trial.calls == len(trial.tried) <= 2 * size - 2


@pytest.mark.parametrize("member", [0, 13, 31])
def test_one_guilty_request_of_32_costs_ten_calls(member: int) -> None:
    assert Trial(32, guilty(member)).calls == 10


def test_where_everything_fails_halving_is_given_up() -> None:
    trial = Trial(32, lambda _: True)
    assert [len(part) for part in trial.tried] == [16, 16, 8, 8, 8, 8, *[1] * 32]


def test_parts_that_fail_for_their_size_are_halved_until_they_fit() -> None:
    trial = Trial(32, lambda part: len(part) > 8)
    assert (trial.failed, trial.calls) == ([], 6)


def test_a_batch_of_two_is_run_as_two() -> None:
    assert Trial(2, guilty(1)).tried == [range(1), range(1, 2)]
