"""What the server and a worker tell each other beside the connection."""

from __future__ import annotations

import math
import time

import pytest

from ts.page import PAGE_BYTES, Page
from ts.wire import Request

SLOTS = PAGE_BYTES // 8 - 16


def request(deadline: float = math.inf) -> Request:
    return Request("r", b"", [], deadline)


@pytest.fixture
def page() -> Page:
    return Page()


def test_the_running_batch_is_noted(page: Page) -> None:
    assert page.running == 0
    page.running = (1 << 64) - 1
    assert page.running == (1 << 64) - 1


def test_nothing_is_given_up_at_first(page: Page) -> None:
    jobs = [(job_id, request()) for job_id in (0, 1, SLOTS, 1 << 40)]
    assert page.stale(jobs) == set()
    assert page.stale([]) == set()


def test_a_job_that_was_given_up_is_stale_and_no_other(page: Page) -> None:
    page.give_up(7)
    page.give_up(9)
    assert page.stale([(job_id, request()) for job_id in range(6, 12)]) == {7, 9}
    assert (page.given_up(7), page.given_up(8)) == (True, False)


def test_jobs_given_up_in_any_order_are_seen(page: Page) -> None:
    page.give_up(9)
    page.give_up(7)
    assert page.stale([(7, request()), (8, request()), (9, request())]) == {7, 9}


def test_a_later_job_in_the_same_cell_is_never_taken_for_an_earlier_one(page: Page) -> None:
    page.give_up(5)
    assert page.stale([(5 + SLOTS, request())]) == set()
    page.give_up(5 + SLOTS)
    assert page.given_up(5 + SLOTS)
    assert not page.given_up(5)  # it runs in vain, which is all that may happen


def test_a_job_past_its_deadline_is_stale(page: Page) -> None:
    now = time.monotonic()
    assert page.stale([(1, request(now - 0.001)), (2, request(now + 60.0)), (3, request())]) == {1}
