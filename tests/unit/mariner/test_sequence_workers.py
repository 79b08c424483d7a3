"""Sequences in a pool of workers, with a fake engine and a fake clock."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from mariner.engines import WorkerSpec
from mariner.errors import Draining, SequenceEnded, TooManySequences, WorkerDied
from mariner.jobs import Outcome, Part, Reply, Request, pack_headers
from mariner.pool import WorkerPool
from mariner.recipe import Recipe
from mariner.sequences import Rules, SequenceJob, SequenceQueue
from mariner.testing import FakeClock, FakeEngine, settle
from ts.wire import Load


class Scene:
    """A pool with everything around it; each request is named after its sequence and its number: ``a1``."""

    def __init__(
        self,
        *,
        batch_size: int = 4,
        delay: float = 0.0,
        overlap: int = 0,
        echo: bool = False,
        continuous: bool = False,
        **rules: Any,
    ) -> None:
        self.clock = FakeClock()
        self.engine = FakeEngine((lambda requests: [r.id.encode() for r in requests]) if echo else None)
        self.outcomes: dict[str, list[Outcome]] = {}
        queue = SequenceQueue(
            'Model "m"',
            Rules(**{"max_open": 8, "max_waiting": 4, "max_idle": 60.0, **rules}),
            batch_size=batch_size,
            max_delay=delay,
            capacity=100,
            clock=self.clock.time,
        )
        recipe = Recipe(
            model="m",
            version="1.0",
            spec=lambda id_: WorkerSpec(f"W-{id_}-m_1.0", "python", {}),
            load=lambda _: Load("m", "/models/m", "handler.py", continuous_batching=continuous),
            next_id=itertools.count(9000).__next__,
            response_timeout=10.0,
            startup_timeout=20.0,
            retry_window=300.0,
            overlap=overlap,
        )
        self.pool = WorkerPool(recipe, engine=self.engine, queue=queue, clock=self.clock)

    def put(self, *names: str) -> SequenceJob:
        for name in names:
            self.outcomes[name] = []
            job = SequenceJob(
                Request(name, pack_headers([("ts_request_sequence_id", name[0])]), [Part("body", "", b"")]),
                self.outcomes[name].append,
                created=self.clock.time(),
            )
            self.pool.put(job)
        return job

    async def start(self, workers: int) -> None:
        self.pool.scale(workers, workers)
        await self.pool.settle()

    def sent(self, process: int) -> list[list[str]]:
        """The batches that a process got, in names of requests."""
        return [[request.id for _, request in batch.jobs] for batch in self.engine.processes[process].batches]

    async def answer(self, process: int, **more: Any) -> None:
        """Answers the latest batch of a process."""
        self.engine.processes[process].reply(self.engine.processes[process].batches[-1], b"", **more)
        await settle()

    def outcome(self, name: str) -> Outcome:
        (outcome,) = self.outcomes[name]
        return outcome


async def test_each_worker_gets_the_requests_of_its_own_sequences() -> None:
    s = Scene(echo=True)
    await s.start(2)
    for number in "12":
        s.put(*(f"{sequence}{number}" for sequence in "abcd"))
        await settle()
    assert [s.sent(0), s.sent(1)] == [[["a1", "c1"], ["a2", "c2"]], [["b1", "d1"], ["b2", "d2"]]]
    assert all(isinstance(s.outcome(name), Reply) for name in s.outcomes)


async def test_a_worker_is_fed_though_the_one_before_it_has_nothing_to_do() -> None:
    s = Scene(echo=True)
    await s.start(3)
    s.put("a1", "b1", "c1")
    await settle()
    s.put("c2")
    await settle()
    assert s.sent(2) == [["c1"], ["c2"]]


async def test_a_fast_worker_does_not_get_the_next_request_of_a_sequence_ahead() -> None:
    s = Scene()
    await s.start(1)
    s.put("a1")
    await settle()
    await s.answer(0, seconds=0.0001)
    s.put("a2", "a3", "b1")
    await settle()
    assert s.sent(0) == [["a1"], ["a2", "b1"]]
    await s.answer(0, seconds=0.0001)
    assert s.sent(0)[2:] == [["a3"]]


async def test_the_timer_of_the_pool_sends_a_batch_that_was_held_back() -> None:
    s = Scene(delay=0.5)
    await s.start(1)
    s.put("a1")
    await s.clock.advance(0.4)
    assert s.sent(0) == []
    await s.clock.advance(0.1)
    assert s.sent(0) == [["a1"]]


async def test_the_sequences_of_a_worker_that_dies_end_and_the_others_go_on() -> None:
    s = Scene()
    await s.start(2)
    s.put("a1", "b1")
    await settle()
    s.put("a2", "b2")
    s.engine.processes[0].die()
    await settle()
    assert isinstance(s.outcome("a1"), WorkerDied)
    refused = s.outcome("a2")
    assert isinstance(refused, SequenceEnded)
    assert refused.message == 'Model "m": sequence a has ended: the worker that kept its state is gone.'
    assert refused.hint == "Begin it anew: send its first request with the header ts_request_sequence_start: true."
    with pytest.raises(SequenceEnded):
        s.put("a3")
    await s.answer(1)
    assert s.sent(1) == [["b1"], ["b2"]]


async def test_a_worker_that_starts_again_knows_no_sequence_of_before() -> None:
    s = Scene(max_open=1)
    await s.start(1)
    s.put("a1")
    await settle()
    s.engine.processes[0].die()
    await settle()
    s.put("b1")  # its place is free at once, and it waits for the new process
    await s.clock.advance(1)
    assert s.sent(1) == [["b1"]]


async def test_what_a_dead_worker_had_not_begun_is_not_begun_elsewhere() -> None:
    s = Scene(batch_size=1)
    await s.start(2)
    s.put("a1", "b1", "c1")
    await settle()
    await s.answer(0, seconds=0.0001)  # now it gets batches ahead
    s.put("a2")
    await settle()
    assert s.sent(0) == [["a1"], ["c1"], ["a2"]]
    s.engine.processes[0].die()
    await s.clock.advance(1)
    assert [type(s.outcome(name)) for name in ("c1", "a2")] == [WorkerDied, SequenceEnded]
    assert [s.sent(1), s.sent(2)] == [[["b1"]], []]


async def test_scaling_down_stops_the_worker_with_the_fewest_sequences() -> None:
    s = Scene(echo=True)
    await s.start(2)
    s.put("a1", "b1", "c1")
    await s.clock.advance(30)
    s.put("b2", "d1")
    await s.clock.advance(30)  # a and c have idled, so that the older worker has none
    s.pool.scale(1, 1)
    await settle()
    assert [process.finishing for process in s.engine.processes] == [True, False]
    s.put("b3", "d2")
    await settle()
    assert s.sent(1) == [["b1"], ["b2", "d1"], ["b3", "d2"]]


async def test_a_worker_that_goes_answers_what_it_has_and_refuses_what_waits_for_it() -> None:
    s = Scene()
    await s.start(2)
    s.put("a1", "b1", "c1")
    await settle()
    s.pool.scale(1, 1)
    s.put("b2")
    await s.answer(1)
    assert isinstance(s.outcome("b1"), Reply)
    assert isinstance(s.outcome("b2"), SequenceEnded)


async def test_a_pool_that_takes_the_place_of_another_does_not_pretend_to_know_its_sequences() -> None:
    old, new = Scene(echo=True), Scene(echo=True)
    await old.start(1)
    await new.start(1)
    old.put("a1", "b1")
    await settle()
    new.pool.take_over(old.pool)
    for name in ("a2", "b2"):
        with pytest.raises(SequenceEnded, match="the worker that kept its state is gone"):
            new.put(name)
    new.put("c1")
    await settle()
    assert new.sent(0) == [["c1"]]


async def test_a_pool_serves_sequences_that_nobody_has_begun_for_another() -> None:
    old, new = Scene(), Scene(echo=True)
    old.engine.loads = False
    old.pool.scale(1, 1)
    await new.start(1)
    old.put("a1", "a2")
    new.pool.take_over(old.pool)
    await settle()
    assert isinstance(old.outcome("a1"), Reply)
    new.put("a3")
    await settle()
    assert new.sent(0) == [["a1"], ["a2"], ["a3"]]


async def test_draining_answers_what_waits_of_each_sequence() -> None:
    s = Scene(echo=True)
    await s.start(1)
    s.put("a1", "a2", "b1", "a3")
    assert await s.pool.drain(10.0)
    assert all(isinstance(s.outcome(name), Reply) for name in s.outcomes)
    with pytest.raises(Draining):
        s.put("a4")


async def test_draining_that_takes_too_long_leaves_nothing_unanswered() -> None:
    s = Scene()
    await s.start(1)
    s.put("a1", "a2")
    await settle()
    in_time, _ = await asyncio.gather(s.pool.drain(5.0), s.clock.advance(5.0))
    assert not in_time
    assert [type(s.outcome(name)) for name in ("a1", "a2")] == [WorkerDied, Draining]


async def test_the_places_of_sequences_that_idle_are_given_away_without_a_timer() -> None:
    s = Scene(echo=True, max_open=1, max_idle=60.0)
    await s.start(1)
    s.put("a1")
    await settle()
    with pytest.raises(TooManySequences):
        s.put("b1")
    await s.clock.advance(60)
    s.put("b1")
    await settle()
    assert s.sent(0) == [["a1"], ["b1"]]


async def test_in_continuous_batches_requests_of_one_sequence_run_side_by_side() -> None:
    s = Scene(batch_size=1, overlap=4, side_by_side=True, continuous=True)
    await s.start(1)
    s.put("a1", "a2", "b1")
    await settle()
    assert s.sent(0) == [["a1"], ["a2"], ["b1"]]


async def test_a_worker_is_told_once_nobody_waits_for_what_it_streams() -> None:
    s = Scene(batch_size=1, overlap=4, side_by_side=True, continuous=True)
    await s.start(1)
    job = s.put("a1")
    await settle()
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"piece", more=True)
    assert process.dropped == []
    job.cancel()
    process.reply(process.batches[0], b"piece", more=True)
    assert process.dropped == [process.batches[0].jobs[0][0]]
    await s.answer(0)
    assert s.pool.in_flight == 0
