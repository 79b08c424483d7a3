"""Pools that grow and shrink by themselves, told with a fake engine and a fake clock."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator, Sequence

import pytest

from mariner.autoscaling import Start, Stop
from mariner.batching import make_queue
from mariner.engines import WorkerSpec
from mariner.errors import Draining, NoWorker
from mariner.jobs import Job, Outcome, Part, Request
from mariner.lifecycle import Readiness, State
from mariner.memory import Footprint, Room
from mariner.pool import PoolObserver, WorkerPool
from mariner.recipe import Recipe, RoomCheck
from mariner.testing import FakeClock, FakeEngine, FakeProcess, settle
from ts.wire import Load

LOAD_SECONDS = 1.0


class Observer(PoolObserver):
    """Remembers why workers came and went."""

    def __init__(self) -> None:
        self.reasons: list[Start | Stop] = []

    def started(self, pool: WorkerPool, why: Start) -> None:
        self.reasons.append(why)

    def stopped(self, pool: WorkerPool, why: Stop) -> None:
        self.reasons.append(why)


class Scene:
    """A pool whose workers take a second to load and what a test says to answer."""

    def __init__(
        self,
        *,
        idle_timeout: float | None = 60.0,
        room: RoomCheck | None = None,
        job_ticket: bool = False,
        gpus: int = 0,
        retry_window: float = 300.0,
        response_timeout: float = 10.0,
    ) -> None:
        self.clock = FakeClock()
        self.engine = FakeEngine(loads=False)
        self.observer = Observer()
        self.outcomes: list[Outcome] = []
        turns: Iterator[int] = itertools.count()
        recipe = Recipe(
            model="m",
            version="1.0",
            spec=lambda id_: WorkerSpec(f"W-{id_}-m_1.0", "python", {}),
            load=lambda _: Load("m", "/models/m", "handler.py", gpu_id=next(turns) % gpus if gpus else None),
            next_id=itertools.count(9000).__next__,
            response_timeout=response_timeout,
            startup_timeout=20.0,
            retry_window=retry_window,
            job_ticket=job_ticket,
            idle_timeout=idle_timeout,
            room=room,
        )
        queue = make_queue("eager", 'Model "m"', batch_size=1, max_delay=0.1, capacity=100, clock=self.clock.time)
        self.pool = WorkerPool(recipe, engine=self.engine, queue=queue, clock=self.clock, observer=self.observer)

    def put(self, count: int = 1) -> None:
        for _ in range(count):
            request = Request("r", b"", [Part("body", "", b"x")])
            self.pool.put(Job(request, self.outcomes.append, created=self.clock.time()))

    async def load(self) -> None:
        """Lets those that start take their second."""
        await settle()
        await self.clock.advance(LOAD_SECONDS)
        for process in self.starting:
            process.loaded()
        await settle()

    @property
    def starting(self) -> list[FakeProcess]:
        pids = {worker.pid for worker in self.pool.workers if worker.state is State.LOADING}
        return [process for process in self.engine.processes if process.pid in pids]

    async def answer(self, *, seconds: float = 0.5) -> None:
        """Answers what workers have, until nothing is left."""
        while self.pool.in_flight:
            for process in self.engine.processes:
                for batch in list(process._open):
                    process.reply(batch, b"done", seconds=seconds)
            await settle()

    async def started(self, minimum: int, maximum: int) -> None:
        """Has its minimum, and a first answer has told what a batch costs."""
        self.pool.scale(minimum, maximum)
        await self.load()
        if minimum:
            self.put()
            await settle()
            await self.answer()

    def states(self) -> list[str]:
        return [worker.state.value for worker in self.pool.workers]


async def test_waiting_work_gets_workers_up_to_the_maximum(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mariner.scaler")
    s = Scene()
    await s.started(1, 4)
    s.put(10)
    await settle()
    assert s.states() == ["ready", "loading", "loading", "loading"]
    assert caplog.messages == [
        "Model m version 1.0: 3 more workers, 4 in all (1 to 4): about 4.50 s of work wait and a start takes 1.00 s."
    ]
    await s.load()
    assert [worker.in_flight for worker in s.pool.workers] == [1, 1, 1, 1]
    assert s.observer.reasons == [Start.BOUNDS] + [Start.WAITING_WORK] * 3


async def test_what_the_workers_clear_soon_starts_none() -> None:
    s = Scene()
    await s.started(1, 4)
    for _ in range(3):  # the second is a new story, not the first going on
        s.put(2)
        await settle()
        await s.clock.advance(0.3)
        await s.answer()
        await s.clock.advance(5.0)
    assert s.states() == ["ready"]


async def test_work_that_never_stops_waiting_gets_a_worker_after_half_a_second() -> None:
    s = Scene()
    await s.started(1, 4)
    s.put(2)
    await settle()
    await s.clock.advance(0.4)
    assert s.states() == ["ready"]
    await s.clock.advance(0.1)
    assert s.states() == ["ready", "loading"]


@pytest.mark.parametrize("idle_timeout", [None, 60.0])
async def test_a_pool_that_may_not_grow_does_not(idle_timeout: float | None) -> None:
    s = Scene(idle_timeout=idle_timeout)
    await s.started(1, 4 if idle_timeout is None else 1)
    s.put(50)
    await settle()
    await s.clock.advance(5.0)
    assert s.states() == ["ready"]
    assert not s.pool.scaler.may_grow


async def test_surplus_workers_stop_after_the_idle_timeout_the_youngest_first() -> None:
    s = Scene()
    await s.started(1, 4)
    s.put(10)
    await s.load()
    await s.answer()
    await s.clock.advance(59.0)
    assert len(s.pool.workers) == 4
    await s.clock.advance(1.0)
    assert [worker.id for worker in s.pool.workers] == [9000, 9001, 9002]
    await s.clock.advance(6.0)
    assert [worker.id for worker in s.pool.workers] == [9000, 9001]
    await s.clock.advance(1000.0)
    assert [worker.id for worker in s.pool.workers] == [9000]
    assert s.observer.reasons[-3:] == [Stop.IDLE] * 3


async def test_a_worker_that_never_had_work_is_idle_since_it_has_loaded() -> None:
    s = Scene()
    s.pool.scale(1, 3)
    s.pool.scaler.start_with(2)
    await s.load()
    await s.clock.advance(58.0)
    s.pool.scale(1, 3)
    s.pool.scaler.start_with(3)
    await s.load()
    assert len(s.pool.workers) == 3
    await s.clock.advance(1.0)
    assert [worker.id for worker in s.pool.workers] == [9000, 9002]


async def test_a_worker_that_works_is_not_idle() -> None:
    s = Scene()
    await s.started(1, 2)
    s.put(10)
    await s.load()
    await s.answer()
    for _ in range(3):
        await s.clock.advance(50.0)
        s.put(2)
        await settle()
        await s.answer()
    assert len(s.pool.workers) == 2


async def test_lower_bounds_let_workers_go_when_they_are_idle() -> None:
    s = Scene()
    await s.started(3, 3)
    s.pool.scale(1, 3)
    assert len(s.pool.workers) == 3
    await s.clock.advance(70.0)
    assert len(s.pool.workers) == 1


async def test_a_worker_is_not_stopped_while_the_one_that_must_stay_is_dead() -> None:
    s = Scene(idle_timeout=0.5)
    await s.started(1, 2)
    s.put(10)
    await s.load()
    await s.answer()
    s.engine.processes[0].die(1)
    await s.clock.advance(10.0)
    assert s.states() == ["loading", "ready"]
    assert s.observer.reasons[-1] is Start.RESTART
    s.starting[0].loaded()
    await s.clock.advance(20.0)
    assert s.states() == ["ready"]


async def test_a_worker_does_not_stop_when_a_request_has_just_come() -> None:
    s = Scene()
    s.pool.scale(0, 1)
    s.put()
    await s.load()
    await s.answer()
    s.clock.set(s.clock.time() + 60.0)
    s.put()
    s.pool._wake()  # before the request is handed to the worker
    assert s.states() == ["ready"]
    await settle()
    await s.answer()
    assert len(s.outcomes) == 2


async def test_from_zero_the_first_request_waits_for_a_worker() -> None:
    s = Scene()
    s.pool.scale(0, 2)
    await s.clock.advance(100.0)
    assert (s.pool.readiness, s.pool.serves) == (Readiness.UNLOADED, True)
    s.put(3)
    assert (s.pool.readiness, s.pool.serves) == (Readiness.LOADING, True)
    await s.load()
    assert len(s.engine.processes) == 1
    await s.answer()
    assert len(s.outcomes) == 3
    assert s.observer.reasons == [Start.FIRST_REQUEST]


async def test_to_zero_and_from_it_again() -> None:
    s = Scene()
    s.pool.scale(0, 2)
    for _ in range(2):
        s.put()
        await s.load()
        await s.answer()
        await s.clock.advance(60.0)
        assert s.pool.readiness is Readiness.UNLOADED
        assert len(s.pool._keepers) == 0
        await s.clock.advance(600.0)
    assert s.observer.reasons == [Start.FIRST_REQUEST, Stop.IDLE] * 2
    assert len(s.outcomes) == 2


async def test_a_request_waits_no_longer_for_the_first_worker_than_for_an_answer() -> None:
    s = Scene()
    s.pool.scale(0, 2)
    await s.clock.advance(100.0)
    s.put()
    await s.clock.advance(9.9)
    assert s.outcomes == []
    await s.clock.advance(0.1)
    assert isinstance(s.outcomes[0], NoWorker)


@pytest.mark.parametrize(("idle_timeout", "maximum"), [(60.0, 0), (None, 2)])
async def test_without_a_worker_that_may_come_requests_are_refused(idle_timeout: float | None, maximum: int) -> None:
    s = Scene(idle_timeout=idle_timeout)
    s.pool.scale(0, maximum)
    with pytest.raises(NoWorker):
        s.put()
    assert not s.pool.serves


async def test_a_model_that_cannot_be_loaded_on_demand_gives_up_as_others_do() -> None:
    s = Scene(retry_window=0.0)
    s.pool.scale(0, 2)
    s.put()
    await settle()
    s.engine.processes[0].loaded("no weights", ok=False)
    await settle()
    assert isinstance(s.outcomes[0], NoWorker)
    assert (s.pool.readiness, s.pool.serves) == (Readiness.BROKEN, False)


async def test_a_surplus_worker_that_cannot_load_is_given_up_and_not_tried_again_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    s = Scene()
    await s.started(1, 2)
    s.put(10)
    await settle()
    s.starting[0].loaded("no memory", ok=False)
    await settle()
    assert s.states() == ["ready"]
    assert "W-9001-m_1.0 was given up: no memory. The next try is not before 5 s." in caplog.text
    await s.clock.advance(4.9)
    assert s.states() == ["ready"]
    await s.clock.advance(0.1)
    assert s.states() == ["ready", "loading"]
    assert s.observer.reasons == [Start.BOUNDS, Start.WAITING_WORK, Stop.FAILED, Start.WAITING_WORK]


async def test_a_surplus_worker_whose_process_cannot_be_created_is_tried_again_later() -> None:
    s = Scene()
    await s.started(1, 2)
    s.engine.fails = OSError("too many processes")
    s.put(10)
    await settle()
    assert s.states() == ["ready"]
    await s.clock.advance(5.0)
    assert s.states() == ["ready", "loading"]


async def test_a_failed_surplus_worker_fails_no_call_that_scales() -> None:
    s = Scene()
    await s.started(1, 2)
    s.put(10)
    await settle()
    s.pool.scale(1, 2)
    waiting = asyncio.create_task(s.pool.settle())
    await settle()
    s.starting[0].loaded("no memory", ok=False)
    await waiting


async def test_a_worker_of_the_minimum_that_cannot_load_is_kept_and_retried() -> None:
    s = Scene()
    s.pool.scale(2, 4)
    await settle()
    s.engine.processes[0].loaded()
    s.engine.processes[1].loaded("not now", ok=False)
    await settle()
    assert s.states() == ["ready", "waiting"]


async def test_no_more_is_started_than_fits(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[int, list[Footprint], list[int | None]]] = []
    rooms = [Room(1, "it is full"), Room(0, "it is full"), Room(0, "it is full"), Room(2)]

    async def room(wanted: int, ready: Sequence[Footprint], coming: Sequence[int | None]) -> Room:
        asked.append((wanted, list(ready), list(coming)))
        return rooms.pop(0)

    s = Scene(room=room, response_timeout=100.0)
    await s.started(1, 4)
    s.put(10)
    await settle()
    assert s.states() == ["ready", "loading"]
    assert asked == [(3, [Footprint(50_000)], [])]
    await s.load()
    await s.clock.advance(10.0)
    assert (len(s.pool.workers), len(asked)) == (2, 3)
    assert caplog.messages.count("Model m version 1.0: 2 wanted workers not started: it is full.") == 1
    latest = s.pool.scaler.latest
    assert latest is not None
    assert (latest.text, latest.reason) == ("2 wanted workers not started", "it is full")
    await s.clock.advance(5.0)
    assert len(s.pool.workers) == 4


async def test_a_request_that_may_not_wait_still_tells_that_a_worker_is_missing() -> None:
    s = Scene(job_ticket=True)
    s.pool.scale(0, 2)
    s.put()  # the first one waits for the worker it has started
    with pytest.raises(NoWorker):
        s.put()
    await s.load()
    with pytest.raises(NoWorker, match="no worker"):
        s.put()
    await settle()
    assert s.states() == ["ready", "loading"]


async def test_a_pool_that_drains_does_not_grow() -> None:
    s = Scene()
    await s.started(1, 4)
    draining = asyncio.create_task(s.pool.drain(10.0))
    await settle()
    with pytest.raises(Draining):
        s.put(10)
    assert not s.pool.scaler.may_grow
    await draining
    assert len(s.engine.processes) == 1


async def test_a_pool_whose_bounds_are_lowered_while_memory_is_measured_does_not_grow() -> None:
    measured = asyncio.Event()

    async def room(wanted: int, ready: Sequence[Footprint], coming: Sequence[int | None]) -> Room:
        await measured.wait()
        return Room(wanted)

    s = Scene(room=room)
    await s.started(1, 4)
    s.put(10)
    await settle()
    s.pool.scale(1, 1)
    measured.set()
    await settle()
    assert s.states() == ["ready"]
    assert s.pool.scaler.latest is None


async def test_a_pool_that_drains_while_memory_is_measured_does_not_grow() -> None:
    measured = asyncio.Event()

    async def room(wanted: int, ready: Sequence[Footprint], coming: Sequence[int | None]) -> Room:
        await measured.wait()
        return Room(wanted)

    s = Scene(room=room)
    await s.started(1, 4)
    s.put(10)
    await settle()
    draining = asyncio.create_task(s.pool.drain(10.0))
    await settle()
    measured.set()
    await s.answer()
    await draining
    assert len(s.engine.processes) == 1


async def test_workers_leave_the_device_that_has_the_most() -> None:
    s = Scene(gpus=2)
    await s.started(3, 3)
    s.pool._remove(s.pool.workers[1])
    s.pool.scale(0, 3)
    assert [worker.load.gpu_id for worker in s.pool.workers] == [0, 0]
    await s.clock.advance(60.0)
    assert [worker.id for worker in s.pool.workers] == [9000]


async def test_a_pool_in_place_of_another_starts_with_as_many_workers() -> None:
    s = Scene()
    s.pool.scale(1, 4)
    s.pool.scaler.start_with(3)
    assert len(s.pool.workers) == 3
    s.pool.scale(1, 2)
    s.pool.scaler.start_with(3)
    assert len(s.pool.workers) == 2


async def test_what_another_pool_leaves_wakes_one_that_has_no_worker() -> None:
    old, new = Scene(), Scene()
    old.pool.scale(0, 1)
    old.put()
    new.pool.scale(0, 1)
    new.pool.take_over(old.pool)
    await new.load()
    await new.answer()
    assert len(old.outcomes) == 1
