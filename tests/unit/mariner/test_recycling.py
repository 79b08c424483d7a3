"""Workers that have reached a limit, with a fake engine, a fake clock and made-up memory."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from test_pool import Scene

from mariner.batching import make_queue
from mariner.engines import WorkerSpec
from mariner.memory import available_memory, resident_memory
from mariner.pool import WorkerPool
from mariner.recipe import Recipe
from mariner.recycling import Limits, Places, Recycler
from mariner.testing import FakeClock, FakeEngine, settle
from ts.wire import Load

MIB = 1 << 20
PLENTY = 1 << 40


@pytest.mark.parametrize(
    ("limits", "requests", "memory", "reason"),
    [
        (Limits(), 10**9, 10**12, ""),
        (Limits(requests=10), 9, 10**12, ""),
        (Limits(requests=10), 12, 0, "it has got 12 requests (maxRequestsPerWorker: 10)"),
        (Limits(memory=800 * MIB), 10**9, 800 * MIB, ""),
        (Limits(memory=800 * MIB), 0, 812 * MIB, "it has 812 MiB of memory (maxWorkerMemoryMB: 800)"),
        (Limits(requests=1, memory=1), 1, 2, "it has got 1 requests (maxRequestsPerWorker: 1)"),
    ],
)
def test_a_limit_that_is_reached_says_why(limits: Limits, requests: int, memory: int, reason: str) -> None:
    assert limits.reached(requests, memory) == reason
    assert bool(limits) is (limits != Limits())


class Recycled(Scene):
    """A pool whose workers are watched; the memory of each process, and what is left, are what the test says."""

    watching: asyncio.Task[None] | None = None

    def watch(self, limits: Limits, *, room: int = PLENTY) -> None:
        self.memory: dict[int, int] = {}
        pool = self.pool
        places = Places(pool.workers, pool._add_after, pool._remove, pool._fill, pool._settled)
        recycler = Recycler(
            places, limits, sleep=self.pool._sleep, memory=lambda pid: self.memory.get(pid, MIB), room=lambda: room
        )
        self.watching = asyncio.create_task(recycler.run())

    def ids(self) -> list[int]:
        return [worker.id for worker in self.pool.workers]


Make = Callable[..., Recycled]


@pytest.fixture
async def scene() -> AsyncIterator[Make]:
    scenes = []

    def make(*, gpu: int | None = None, limits: Limits | None = None) -> Recycled:
        clock, engine = FakeClock(), FakeEngine()
        ids = itertools.count(1)
        queue = make_queue("eager", "m", batch_size=1, max_delay=0.1, capacity=100, clock=clock.time)
        gpus = itertools.count(gpu or 0)
        recipe = Recipe(
            model="m",
            version="1.0",
            spec=lambda id_: WorkerSpec(f"W-{id_}-m_1.0", "python", {}),
            load=lambda _: Load("m", "/models/m", "handler.py", gpu_id=None if gpu is None else next(gpus)),
            next_id=ids.__next__,
            response_timeout=1000.0,
            startup_timeout=1000.0,
            retry_window=300.0,
            limits=limits or Limits(),
        )
        scenes.append(Recycled(engine, clock, WorkerPool(recipe, engine=engine, queue=queue, clock=clock)))
        return scenes[-1]

    yield make
    for made in scenes:
        if made.watching is not None:
            made.watching.cancel()


async def serve(s: Recycled, *names: str) -> None:
    for name in names:
        s.put(name)
        await settle()
        for process in s.engine.processes:
            for batch in list(process._open):
                process.reply(batch, name.encode())
        await settle()


async def test_the_old_worker_goes_when_the_new_one_is_ready(scene: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    s = scene()
    s.pool.scale(1, 1)
    s.watch(Limits(requests=2))
    await serve(s, "a", "b")
    s.engine.loads = False
    await s.clock.advance(1.0)
    assert s.ids() == [1, 2]
    await serve(s, "c")  # the old one serves on meanwhile
    s.put("d")
    await settle()
    old, new = s.engine.processes
    new.loaded()
    await settle()
    assert s.ids() == [2]
    assert old.alive
    assert old.finishing
    old.reply(old.batches[-1], b"d")
    await settle()
    assert not old.alive
    assert s.bodies("a", "b", "c", "d") == [b"a", b"b", b"c", b"d"]
    assert "W-1-m_1.0 is replaced: it has got 2 requests (maxRequestsPerWorker: 2)." in caplog.messages


async def test_memory_is_looked_at_each_second(scene: Make) -> None:
    s = scene()
    s.pool.scale(2, 2)
    s.watch(Limits(memory=100 * MIB))
    await s.clock.advance(1.0)
    s.memory[s.pool.workers[1].pid] = 101 * MIB
    await s.clock.advance(0.9)
    assert s.ids() == [1, 2]
    await s.clock.advance(0.1)
    assert s.ids() == [1, 3]
    await s.clock.advance(5.0)
    assert s.ids() == [1, 3]


async def test_workers_are_replaced_one_at_a_time(scene: Make) -> None:
    s = scene()
    s.pool.scale(2, 2)
    s.watch(Limits(requests=1))
    s.put("a")
    s.put("b")
    await settle()
    for process in s.engine.processes:
        process.reply(process.batches[0], b"x")
    s.engine.loads = False
    await s.clock.advance(3.0)
    assert s.ids() == [1, 2, 3]
    s.engine.processes[2].loaded()
    await settle()
    assert s.ids() == [2, 3, 4]


async def test_where_memory_is_short_the_new_worker_waits_for_the_end_of_the_old_and_requests_wait(
    scene: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    s = scene()
    s.pool.scale(1, 1)
    s.watch(Limits(requests=1), room=MIB)
    s.put("a")
    await settle()
    await s.clock.advance(1.0)
    assert [process.alive for process in s.engine.processes] == [True]  # it has "a" still
    s.put("b")
    await settle()
    s.engine.processes[0].reply(s.engine.processes[0].batches[0], b"a")
    await settle()
    assert [process.alive for process in s.engine.processes] == [False, True]
    s.engine.processes[1].reply(s.engine.processes[1].batches[0], b"b")
    assert s.bodies("a", "b") == [b"a", b"b"]
    assert s.ids() == [2]
    assert "W-1-m_1.0 is replaced once it has gone: it has got 1 requests (maxRequestsPerWorker: 1)." in caplog.messages


async def test_a_worker_that_waits_for_the_end_of_another_is_not_started_for_a_pool_that_ends(scene: Make) -> None:
    s = scene()
    s.pool.scale(1, 1)
    s.watch(Limits(requests=1), room=MIB)
    s.put("a")
    await settle()
    await s.clock.advance(1.0)
    ending = asyncio.create_task(s.pool.drain(100.0))
    await settle()
    s.engine.processes[0].reply(s.engine.processes[0].batches[0], b"a")
    assert await ending
    assert s.bodies("a") == [b"a"]
    assert len(s.engine.processes) == 1


async def test_on_a_gpu_the_new_worker_takes_the_place_of_the_old(scene: Make) -> None:
    s = scene(gpu=5)
    s.pool.scale(1, 1)
    s.watch(Limits(requests=1))
    old = s.pool.workers[0]
    await serve(s, "a")
    await s.clock.advance(1.0)
    (new,) = s.pool.workers
    assert (old.load.gpu_id, new.load.gpu_id) == (6, 5)  # what is given back is what was assigned to the other
    assert [process.load and process.load.gpu_id for process in s.engine.processes] == [5, 5]


async def test_a_replacement_that_cannot_load_changes_nothing(scene: Make, caplog: pytest.LogCaptureFixture) -> None:
    s = scene()
    s.pool.scale(1, 1)
    s.watch(Limits(requests=1))
    await serve(s, "a")
    s.engine.loads = False
    await s.clock.advance(1.0)
    s.engine.processes[1].loaded("no such file", ok=False)
    await settle()
    assert s.ids() == [1]
    assert "W-1-m_1.0: its replacement could not load, it goes on. no such file" in caplog.messages
    await s.clock.advance(50.0)
    assert len(s.engine.processes) == 2
    await s.clock.advance(15.0)
    assert len(s.engine.processes) == 3  # the next try
    await serve(s, "b")
    assert s.bodies("b") == [b"b"]


async def test_a_model_beyond_the_limit_from_the_start_is_not_replaced_for_ever(
    scene: Make, caplog: pytest.LogCaptureFixture
) -> None:
    s = scene()
    s.pool.scale(1, 1)
    s.watch(Limits(memory=100 * MIB))
    await settle()
    s.memory |= dict.fromkeys(range(50_000, 50_100), 200 * MIB)
    await s.clock.advance(10.0)
    assert s.ids() == [2]
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("W-2-m_1.0 has 200 MiB of memory and has just begun: maxWorkerMemoryMB=100 is too little")


@pytest.mark.parametrize(("bounds", "ids"), [((0, 0), []), ((1, 1), [1]), ((3, 3), [2, 3, 4])])
async def test_a_pool_that_is_scaled_meanwhile_has_the_workers_it_was_told_to_have(
    scene: Make, bounds: tuple[int, int], ids: list[int]
) -> None:
    s = scene()
    s.pool.scale(2, 2)
    s.watch(Limits(requests=1))
    s.put("a")
    await settle()
    s.engine.processes[0].reply(s.engine.processes[0].batches[0], b"a")
    s.engine.loads = False
    await s.clock.advance(1.0)
    assert s.ids() == [1, 2, 3]
    s.pool.scale(*bounds)
    await settle()
    for process in s.engine.processes[2:]:
        if process.alive:
            process.loaded()
    await settle()
    assert s.ids() == ids


async def test_a_pool_with_limits_watches_until_it_ends(scene: Make) -> None:
    s = scene(limits=Limits(requests=1))
    s.pool.scale(1, 1)
    await serve(s, "a")
    await s.clock.advance(1.0)
    assert s.ids() == [2]
    assert await s.pool.drain(1.0)
    await settle()
    assert s.pool._recycler is not None
    assert s.pool._recycler.cancelled()


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert resident_memory(0) == 0
    assert resident_memory(2**22 + 1) == 0


@pytest.mark.parametrize(
    ("limit", "room"),
    [("1000000\n", 1000000 - 700000 + 200000), ("max\n", None)],
)
def test_a_control_group_leaves_what_its_limit_says_and_its_page_cache(
    tmp_path: Path, limit: str, room: int | None
) -> None:
    group = tmp_path / "cgroup" / "kubepods" / "pod"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(limit)
    (group / "memory.current").write_text("700000\n")
    (group / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    (tmp_path / "membership").write_text("0::/kubepods/pod\n")
    found = available_memory(cgroups=tmp_path / "cgroup", membership=tmp_path / "membership")
    assert found == room if room is not None else found > 10 * MIB
