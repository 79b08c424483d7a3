"""The model of what must hold: what it accepts, and that it finds what it is there to find."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chaos_model import GRACE, HISTORY, Fault, Kind, Model, Seen

RIGHT = {"number": 1, "sum": 3}


def error(status: int, reason: str, at: float = 1.0) -> Seen:
    return Seen(at, status, json.dumps({"code": status, "reason": reason}).encode(), "id")


def right(at: float = 1.0, **more: Any) -> Seen:
    return Seen(at, 200, json.dumps(RIGHT).encode(), **{"request_id": "id", **more})


@pytest.fixture
def model() -> Model:
    return Model()


def texts(model: Model) -> list[str]:
    return [violation.text for violation in model.violations]


def test_the_right_answer_is_right(model: Model) -> None:
    model.see(model.send(Kind.PREDICT, "m", 0.0, (RIGHT,)), right())
    model.check_end({"Requests2XX": 1, "ts_inference_requests_total{m}": 1}, ["m"])
    assert texts(model) == []


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (Seen(1.0, 200, b'{"number": 2, "sum": 3}', "id"), "the wrong answer"),
        (Seen(1.0, 200, b"", "id"), "the wrong answer"),
        (Seen(1.0, 0, note="the connection ended"), "no answer: the connection ended"),
        (right(extra=b"HTTP/1.1 200 OK"), "more than one answer"),
        (error(500, "worker_died"), "must not get with nothing wrong: 500 worker_died"),
        (error(418, ""), "must not get"),
    ],
)
def test_a_wrong_answer_is_found(model: Model, seen: Seen, found: str) -> None:
    model.see(model.send(Kind.PREDICT, "m", 0.0, (RIGHT,)), seen)
    (text,) = texts(model)
    assert text.startswith("request 1 (predict, m) got")
    assert found in text


def test_a_second_answer_is_found(model: Model) -> None:
    sent = model.send(Kind.PREDICT, "m", 0.0)
    model.see(sent, right())
    model.see(sent, right())
    assert ["was answered twice" in text for text in texts(model)] == [True]


def test_an_id_given_twice_is_found(model: Model) -> None:
    model.see(model.send(Kind.PREDICT, "m", 0.0), right())
    model.see(model.send(Kind.PREDICT, "m", 0.0), right())
    assert ["the id of another request, 'id'" in text for text in texts(model)] == [True]


def test_a_request_that_never_ends_is_found(model: Model) -> None:
    model.send(Kind.PREDICT, "m", 0.0)
    model.check_end({}, [])
    assert texts(model) == ["request 1 (predict, m) was never ended"]


@pytest.mark.parametrize(
    ("asked", "sent_at", "seen_at", "allowed"),
    [
        ("m", 10.5, 10.6, True),
        ("m", 9.0, 10.1, True),
        ("m", 11.0 + GRACE, 12.0 + GRACE, True),
        ("m", 9.0, 9.9, False),
        ("m", 11.1 + GRACE, 12.0 + GRACE, False),
        ("n", 10.5, 10.6, False),
    ],
)
def test_a_death_excuses_the_requests_of_its_time_and_its_model(
    model: Model, asked: str, sent_at: float, seen_at: float, *, allowed: bool
) -> None:
    window = model.begin(Fault.WORKER_KILLED, 10.0, "m")
    model.end(window, 11.0)
    model.see(model.send(Kind.PREDICT, asked, sent_at), error(503, "queue_full", seen_at))
    assert (texts(model) == []) is allowed


def test_a_fault_of_all_models_excuses_none_of_what_it_must_not_cause(model: Model) -> None:
    model.begin(Fault.DISK_FULL, 0.0)
    model.see(model.send(Kind.REGISTER, "m", 1.0), Seen(2.0, 500, b'{"message": "Failed to save model"}', "1"))
    assert texts(model) == []
    model.see(model.send(Kind.REGISTER, "m", 1.0), Seen(2.0, 500, b'{"message": "Internal server error."}', "2"))
    model.see(model.send(Kind.PREDICT, "m", 1.0), error(500, ""))
    assert ["500 defect" in text for text in texts(model)] == [True, False]


def test_poison_must_not_get_a_good_answer(model: Model) -> None:
    model.see(model.send(Kind.RAISES, "m", 0.0), right())
    assert len(texts(model)) == 1


@pytest.mark.parametrize(
    ("counted", "found"),
    [
        ({"Requests2XX": 2, "ts_inference_requests_total{m}": 1}, "Requests2XX: the server counted 2, clients saw 1"),
        ({"Requests2XX": 0, "ts_inference_requests_total{m}": 1}, "Requests2XX: the server counted 0, clients saw 1"),
        ({"Requests2XX": 1, "ts_inference_requests_total{m}": 2}, "ts_inference_requests_total of m: the server"),
        ({"Requests2XX": 1, "ts_inference_requests_total{m}": 1, "Requests4XX": 1}, "Requests4XX: the server counted"),
        (
            {"Requests2XX": 1, "ts_inference_requests_total{m}": 1, "mariner_queue_depth{m}": 3},
            "3 requests wait for m, and nobody waits for them",
        ),
    ],
)
def test_counters_that_disagree_are_found(model: Model, counted: dict[str, float], found: str) -> None:
    model.see(model.send(Kind.PREDICT, "m", 0.0), right())
    model.check_end(counted, ["m"])
    assert texts(model)[0].startswith(found)


@pytest.mark.parametrize("counted", [1, 2, 3])
def test_a_client_that_left_may_have_been_answered_once(model: Model, counted: int) -> None:
    model.see(model.send(Kind.PREDICT, "m", 0.0), right())
    model.leave(model.send(Kind.PREDICT, "m", 0.0))
    model.check_end({"Requests2XX": counted, "ts_inference_requests_total{m}": 1}, ["m"])
    assert (texts(model) == []) is (counted < 3)


def test_a_violation_shows_the_last_steps(model: Model) -> None:
    for number in range(60):
        model.step(f"step {number}")
    model.violate("something")
    (violation,) = model.violations
    assert violation.steps == tuple(f"step {number}" for number in range(60 - HISTORY, 60))
