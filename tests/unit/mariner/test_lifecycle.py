"""States of a worker and when it is started again."""

from __future__ import annotations

import pytest

from mariner.lifecycle import DEATHS_BEFORE_PARKING, RESTART_DELAYS, TRANSITIONS, Event, Recovery, State, next_state


def test_every_state_has_its_row_and_leads_to_the_end() -> None:
    assert set(TRANSITIONS) == set(State)
    for start in State:
        reached, frontier = {start}, [start]
        while frontier:
            for state in TRANSITIONS[frontier.pop()].values():
                if state not in reached:
                    reached.add(state)
                    frontier.append(state)
        assert State.STOPPED in reached


def test_the_ordinary_life() -> None:
    state = State.STARTING
    for event in (Event.STARTED, Event.LOADED, Event.FAILED, Event.RETRY, Event.STARTED, Event.LOADED, Event.DRAIN):
        state = next_state(state, event)
    assert next_state(state, Event.GONE) is State.STOPPED


def test_what_cannot_happen_is_a_defect() -> None:
    with pytest.raises(ValueError, match="A worker that is stopped cannot be loaded"):
        next_state(State.STOPPED, Event.LOADED)


def test_loading_is_retried_on_the_documented_schedule() -> None:
    recovery = Recovery(window=300)
    assert [recovery.load_failed(now) for now in range(6)] == [1, 1, 2, 3, 5, 8]


def test_loading_is_given_up_after_the_window() -> None:
    recovery = Recovery(window=300)
    assert recovery.load_failed(1000) is not None
    assert recovery.load_failed(1299) is not None
    assert recovery.load_failed(1300) is None


def test_the_schedule_ends_with_its_longest_delay() -> None:
    recovery = Recovery(window=1e9)
    assert [recovery.load_failed(0) for _ in range(30)][-1] == RESTART_DELAYS[-1]


def test_a_success_opens_a_new_window() -> None:
    recovery = Recovery(window=300)
    recovery.load_failed(0)
    recovery.loaded()
    assert recovery.load_failed(1000) == 1


def test_the_first_death_restarts_at_once_and_further_ones_back_off() -> None:
    recovery = Recovery(window=300)
    assert [recovery.died() for _ in range(4)] == [0, 1, 1, 2]


def test_deaths_by_suspects_restart_at_once_and_leave_the_schedule_as_it_is() -> None:
    recovery = Recovery(window=300)
    suspected = [False, True, True, False, True, False]
    assert [recovery.died(suspected=suspect) for suspect in suspected] == [0, 0, 0, 1, 0, 1]


def test_deaths_by_suspects_park_the_model_too() -> None:
    recovery = Recovery(window=300)
    delays = [recovery.died(suspected=number > 0) for number in range(DEATHS_BEFORE_PARKING)]
    assert delays == [0] * (DEATHS_BEFORE_PARKING - 1) + [None]


def test_good_answers_between_deaths_keep_the_model_alive() -> None:
    recovery = Recovery(window=300)
    for _ in range(5 * DEATHS_BEFORE_PARKING):
        assert recovery.died() == 0
        recovery.answered()


def test_deaths_in_a_row_park_the_model() -> None:
    recovery = Recovery(window=300)
    assert [recovery.died() for _ in range(DEATHS_BEFORE_PARKING)][-1] is None


def test_a_window_of_zero_never_restarts() -> None:
    assert Recovery(window=0).died() is None
    assert Recovery(window=0).load_failed(5) is None
