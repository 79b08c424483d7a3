"""What has killed two workers is known again; the clock is a number."""

from __future__ import annotations

import hashlib
import logging

import pytest

from mariner.bodies import Arena
from mariner.errors import Quarantined
from mariner.jobs import Job, Part, Request, Shared, pack_headers
from mariner.quarantine import CAPACITY, Quarantine


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine('Model "m"', 60.0, clock)


def job(body: bytes, name: str = "id", *, part: str = "body", media: str = "", **headers: str) -> Job:
    return Job(Request(name, pack_headers(headers.items()), [Part(part, media, body)]), lambda _: None)


def refused(quarantine: Quarantine, job: Job) -> bool:
    return quarantine.refusal(job) is not None


def test_what_is_identical_is_refused_and_told_why(quarantine: Quarantine) -> None:
    quarantine.add(job(b"poison"), "cert-1")
    error = quarantine.refusal(job(b"poison", "another id"))
    assert isinstance(error, Quarantined)
    assert (error.status, error.reason, error.death_id, error.retry_after) == (500, "quarantined", "cert-1", 60.0)
    assert error.message == 'Model "m" does not run this request: an identical one killed two workers.'
    assert error.hint == "It may be tried again in 60 s; the server's log names what killed the workers."


@pytest.mark.parametrize(
    "other",
    [
        job(b"poisoN"),
        job(b"poison!"),
        job(b"poison", part="data"),
        job(b"poison", media="text/plain"),
        job(b"poison", explain="True"),
        job(b"poison", url_path="v2/generate"),
    ],
)
def test_what_differs_in_what_the_handler_sees_is_let_pass(quarantine: Quarantine, other: Job) -> None:
    quarantine.add(job(b"poison", explain="False"))
    assert not refused(quarantine, other)
    assert refused(quarantine, job(b"poison", explain="False", traceparent="00-1"))


def test_parts_are_not_mistaken_for_one_another(quarantine: Quarantine) -> None:
    def form(*values: bytes) -> Job:
        return Job(Request("id", b"", [Part("field", "", value) for value in values]), lambda _: None)

    quarantine.add(form(b"ab", b"c"))
    assert not refused(quarantine, form(b"a", b"bc"))


def test_a_body_in_shared_memory_is_the_same_as_one_that_travels(quarantine: Quarantine) -> None:
    arena = Arena(1 << 16)
    slot = arena.allocate(6)
    assert slot is not None
    slot.view[:] = b"poison"
    large = Job(Request("id", b"", [Part("body", "", Shared(slot.offset, slot.size))]), lambda _: None, slot=slot)
    quarantine.add(large)
    assert refused(quarantine, large)
    assert refused(quarantine, job(b"poison"))
    slot.view[:] = b"potion"
    assert not refused(quarantine, large)
    slot.release()
    arena.close()


def test_it_ends(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.add(job(b"first"))
    clock.now += 30
    quarantine.add(job(b"again"))
    clock.now += 30
    assert [refused(quarantine, job(body)) for body in (b"first", b"again")] == [False, True]
    assert len(quarantine.inmates) == 1
    clock.now += 30
    assert not refused(quarantine, job(b"again"))
    assert not quarantine.inmates


def test_a_time_of_zero_turns_it_off(clock: Clock) -> None:
    quarantine = Quarantine("m", 0.0, clock)
    quarantine.add(job(b"poison"))
    assert not quarantine.inmates


def test_the_oldest_leaves_for_the_newest(quarantine: Quarantine) -> None:
    for number in range(CAPACITY + 1):
        quarantine.add(job(b"%04d" % number))
    assert len(quarantine.inmates) == CAPACITY
    assert [refused(quarantine, job(b"%04d" % number)) for number in (0, 1, CAPACITY)] == [False, True, True]


def test_a_body_of_another_length_or_end_is_not_hashed(quarantine: Quarantine, monkeypatch: pytest.MonkeyPatch) -> None:
    quarantine.add(job(b"poison" * 21))

    def no_hash(**_: int) -> object:
        raise AssertionError("hashed")

    monkeypatch.setattr(hashlib, "blake2b", no_hash)
    assert not refused(quarantine, job(b"one more" + b"poison" * 20))
    assert not refused(quarantine, job(b"potion" * 21))
    with pytest.raises(AssertionError, match="hashed"):
        refused(quarantine, job(b"potion" + b"poison" * 20))


def test_the_log_tells_of_each_once(quarantine: Quarantine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    quarantine.add(job(b"poison", "r1"))
    for name in ("r2", "r3"):
        refused(quarantine, job(b"poison", name))
    assert caplog.messages == [
        'Model "m": request r1 killed two workers. What is identical to it is refused for 60 s (quarantine_time).',
        'Model "m": request r2 is refused: it is identical to one that killed two workers.',
    ]
