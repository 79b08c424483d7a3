"""A pool whose workers die of requests, told with a fake engine and a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from test_pool import Scene, SceneMaker, scene  # noqa: F401  (the last is a fixture)

from mariner.bodies import Arena
from mariner.errors import Draining, Quarantined, RequestTimeout, WorkerDied
from mariner.jobs import Part, Reply, Request
from mariner.lifecycle import DEATHS_BEFORE_PARKING, State
from mariner.testing import FakeProcess, settle


def dies_of_poison(requests: list[Request]) -> Sequence[bytes]:
    """Echoes; a request whose body begins with ``poison`` ends the process."""
    bodies = [bytes(part.value) for request in requests for part in request.parts if isinstance(part.value, bytes)]
    if any(body.startswith(b"poison") for body in bodies):
        raise SystemExit(3)
    return bodies


def sent(process: FakeProcess) -> list[list[str]]:
    return [[request.id for _, request in batch.jobs] for batch in process.batches]


async def start(s: Scene, workers: int = 1) -> None:
    s.pool.scale(workers, workers)
    await s.pool.settle()


async def test_one_poison_in_a_batch_of_eight_fails_alone(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(batch_size=8, isolates=True, handler=dies_of_poison)
    await start(s)
    names = ["a", "b", "c", "d", "e", "poison", "f", "g"]
    for name in names:
        s.put(name)
    await s.clock.advance(0.0)  # the deaths follow one another
    await settle()
    assert s.bodies(*(name for name in names if name != "poison")) == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]
    error = s.error("poison")
    assert isinstance(error, WorkerDied)
    assert (error.message, error.reason) == ("Worker died.", "exit")
    assert error.hint == (
        "W-9000-m_1.0: it exited with code 3: code that it ran called exit. "
        "The request had killed another worker before and is not run again."
    )
    assert len(s.engine.processes) == 1 + 3  # three deaths, and nobody moved the clock


async def test_the_model_config_can_turn_it_off(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(batch_size=2, isolates=False, handler=dies_of_poison)
    await start(s)
    s.put("a")
    s.put("poison")
    await settle()
    assert all(isinstance(s.error(name), WorkerDied) for name in ("a", "poison"))


async def test_suspects_run_first_and_apart_from_what_waits(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(batch_size=4, isolates=True)
    await start(s)
    for name in "abcdefgh":
        s.put(name)
    await settle()
    first = s.engine.processes[0]
    assert sent(first) == [["a", "b", "c", "d"]]
    first.die(-11)
    await settle()
    second = s.engine.processes[1]
    for _ in range(3):
        second.reply(second.batches[-1], b"x", seconds=1.0)
        await settle()
    assert sent(second) == [["a", "b"], ["c", "d"], ["e", "f", "g", "h"]]
    assert [len(outcomes) for outcomes in s.outcomes.values()] == [1] * 8


async def test_a_suspect_goes_to_another_worker_at_once_if_a_third_goes_on(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s, workers=3)
    s.engine.loads = False
    s.put("a")
    await settle()
    one, other, _ = s.engine.processes
    one.die(-9)
    await settle()
    assert sent(other) == [["a"]]
    other.reply(other.batches[0], b"done")
    assert s.bodies("a") == [b"done"]


async def test_the_last_worker_is_not_risked_while_another_is_on_its_way(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s, workers=2)
    s.engine.loads = False
    s.put("suspect", timeout=60.0)
    await settle()
    one, other = s.engine.processes
    one.die(-9)
    await settle()
    for number, name in enumerate("abc"):
        s.put(name)
        await settle()
        other.reply(other.batches[number], b"good", seconds=1.0)
    assert s.bodies(*"abc") == [b"good"] * 3
    successor = s.engine.processes[2]
    successor.loaded()
    await settle()
    assert sent(successor) == [["suspect"]]
    successor.reply(successor.batches[0], b"good")
    assert s.bodies("suspect") == [b"good"]


async def test_the_last_worker_is_risked_if_no_other_will_come_soon(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s, workers=2)
    s.engine.loads = False
    s.put("suspect")
    await settle()
    one, other = s.engine.processes
    one.die(-9)
    await settle()
    s.engine.processes[2].loaded("no weights", ok=False)
    await settle()
    assert [worker.state for worker in s.pool.workers] == [State.WAITING, State.READY]
    assert sent(other) == [["suspect"]]


async def test_the_last_worker_is_risked_if_no_other_can_be_created(
    scene: SceneMaker,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail_slowly(*_: object) -> None:
        await settle()
        raise OSError("Resource temporarily unavailable")

    s = scene(isolates=True)
    await start(s, workers=2)
    s.put("suspect")
    await settle()
    one, other = s.engine.processes
    monkeypatch.setattr(s.engine, "start", fail_slowly)
    one.die(-9)
    await settle()
    await settle()
    assert sent(other) == [["suspect"]]


async def test_a_worker_that_has_just_died_counts_as_one_on_its_way(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s, workers=2)
    s.engine.loads = False
    s.put("suspect")
    await settle()
    one, other = s.engine.processes
    one.die(-9)
    s.put("arrives in the same turn of the loop")
    await settle()
    assert sent(other) == [["arrives in the same turn of the loop"]]


async def test_a_suspect_that_may_not_run_yet_keeps_its_deadline(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s, workers=2)
    s.engine.loads = False
    s.put("suspect", timeout=3.0)
    await settle()
    one, other = s.engine.processes
    one.die(-9)
    await settle()
    s.put("patient", timeout=60.0)
    await settle()
    assert sent(other) == [["patient"]]
    await s.clock.advance(3.0)
    assert isinstance(s.error("suspect"), RequestTimeout)


async def test_a_worker_that_is_killed_from_outside_costs_no_answer(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(batch_size=8, isolates=True)
    await start(s)
    for name in "abc":
        s.put(name)
    await settle()
    s.engine.processes[0].die(-9)
    await settle()
    successor = s.engine.processes[1]
    for _ in range(2):
        successor.reply(successor.batches[-1], b"done", seconds=1.0)
        await settle()
    assert s.bodies(*"abc") == [b"done"] * 3


async def test_a_guilty_request_is_not_run_again_if_it_comes_back(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True, quarantine=60.0, handler=dies_of_poison)
    await start(s)
    s.put("poison")
    await settle()
    assert isinstance(s.error("poison"), WorkerDied)
    died = len(s.engine.processes)
    with pytest.raises(Quarantined):
        s.put("poison")
    s.put("harmless")
    await settle()
    assert s.bodies("harmless") == [b"harmless"]
    assert len(s.engine.processes) == died
    await s.clock.advance(60.0)
    s.put("poison")
    await settle()
    assert len(s.engine.processes) == died + 2


async def test_what_is_identical_to_a_guilty_request_and_waits_does_not_run_either(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True, quarantine=60.0)
    await start(s)
    for name in ("poison", "a", "b"):
        s.put(name)
    s.put("twin").request.parts[0] = Part("body", "", b"poison")  # type: ignore[index]
    await settle()
    for index in (0, 1):
        s.engine.processes[index].die(-11)
        await settle()
    assert isinstance(s.error("poison"), WorkerDied)
    assert isinstance(s.error("twin"), Quarantined)
    successor = s.engine.processes[2]
    successor.reply(successor.batches[0], b"A", seconds=1.0)
    await settle()
    successor.reply(successor.batches[1], b"B")
    assert s.bodies("a", "b") == [b"A", b"B"]


async def test_a_body_stays_until_its_request_has_run_again(scene: SceneMaker) -> None:  # noqa: F811
    arena = Arena(1 << 16)
    s = scene(isolates=True)
    await start(s)
    s.put("large").slot = arena.allocate(100)
    await settle()
    s.engine.processes[0].die()
    await settle()
    assert arena.used > 0
    successor = s.engine.processes[1]
    successor.reply(successor.batches[0], b"done")
    assert s.bodies("large") == [b"done"]
    assert arena.used == 0
    arena.close()


async def test_a_stream_that_has_begun_ends_with_its_worker(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s)
    s.put("streams")
    await settle()
    process = s.engine.processes[0]
    process.reply(process.batches[0], b"piece", more=True)
    process.die()
    await settle()
    piece, end = s.outcomes["streams"]
    assert isinstance(piece, Reply)
    assert isinstance(end, WorkerDied)
    assert s.engine.processes[1].batches == []


async def test_what_took_all_its_time_is_answered_and_does_not_take_it_again(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(batch_size=2, isolates=True)
    await start(s)
    s.put("slow")
    s.put("mate")
    await settle()
    await s.clock.advance(10.1)
    assert s.engine.processes[0].killed
    assert all(isinstance(s.error(name), WorkerDied) for name in ("slow", "mate"))
    assert s.engine.processes[1].batches == []


async def test_a_worker_that_sends_nonsense_counts_as_one_that_died(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s)
    s.put("writes to the wrong file")
    await settle()
    s.pool.workers[0].received(b"HTTP/1.1 200 OK\r\n\r\n")
    await settle()
    assert s.outcomes["writes to the wrong file"] == []
    assert sent(s.engine.processes[1]) == [["writes to the wrong file"]]


async def test_deadlines_count_on_while_a_suspect_waits(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s)
    s.engine.loads = False
    s.put("impatient", timeout=3.0)
    await settle()
    s.engine.processes[0].die()
    await s.clock.advance(3.0)
    assert isinstance(s.error("impatient"), RequestTimeout)
    s.engine.processes[1].loaded()
    await settle()
    assert s.engine.processes[1].batches == []


async def test_a_client_that_goes_takes_its_suspect_with_it(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s)
    s.engine.loads = False
    job = s.put("gone")
    await settle()
    s.engine.processes[0].die()
    await settle()
    job.cancel()
    s.engine.processes[1].loaded()
    await settle()
    assert s.engine.processes[1].batches == []
    assert s.outcomes["gone"] == []


async def test_a_request_that_has_an_answer_is_not_run_again_with_its_batch(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(batch_size=3, isolates=True)
    await start(s)
    for name in "abc":
        s.put(name)
    await settle()
    process = s.engine.processes[0]
    process.say_replies([Reply(process.batches[0].jobs[0][0], b"A")])
    process.die()
    await settle()
    assert s.bodies("a") == [b"A"]
    assert sent(s.engine.processes[1])[0] == ["b"]


async def test_draining_that_takes_too_long_answers_what_runs(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s)
    s.put("running")
    await settle()
    drain = asyncio.create_task(s.pool.drain(5.0))
    await s.clock.advance(6)
    async with asyncio.timeout(5):
        assert not await drain
    assert isinstance(s.error("running"), WorkerDied)


async def test_a_suspect_of_a_pool_that_drains_is_answered_too(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True)
    await start(s)
    s.put("running")
    await settle()
    drain = asyncio.create_task(s.pool.drain(5.0))
    await settle()
    s.engine.processes[0].die()
    await s.clock.advance(6)
    assert await drain
    assert isinstance(s.error("running"), Draining)


# -- restarts --------------------------------------------------------------------------------------------------------


async def test_poison_among_good_requests_never_takes_a_model_down_or_into_waiting(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(batch_size=4, isolates=True, handler=dies_of_poison)
    await start(s)
    for number in range(5 * DEATHS_BEFORE_PARKING):
        s.put(f"poison {number}")
        s.put(f"good {number}")
        await settle()
        assert s.bodies(f"good {number}") == [b"good %d" % number]
        assert isinstance(s.error(f"poison {number}"), WorkerDied)
    assert s.clock.time() == 1000.0
    assert s.pool.ready


async def test_nothing_but_poison_parks_the_model_after_ten_deaths(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(isolates=True, handler=dies_of_poison)
    await start(s)
    for number in range(DEATHS_BEFORE_PARKING // 2):
        s.put(f"poison {number}")
        await s.clock.advance(5.0)
    assert s.pool.workers[0].state is State.BROKEN
    assert len(s.engine.processes) == DEATHS_BEFORE_PARKING


# -- workers that run requests side by side --------------------------------------------------------------------------


async def test_what_ran_side_by_side_runs_again_once(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(overlap=8, isolates=True, quarantine=60.0)
    await start(s)
    for name in "ab":
        s.put(name)
    await settle()
    s.engine.processes[0].die()
    await settle()
    second = s.engine.processes[1]
    assert sent(second) == [["a"], ["b"]]
    s.put("c")
    await settle()
    second.reply(second.batches[1], b"B")
    second.die()
    await settle()
    assert s.bodies("b") == [b"B"]
    assert isinstance(s.error("a"), WorkerDied)
    third = s.engine.processes[2]
    assert sent(third) == [["c"]]
    third.reply(third.batches[0], b"C")
    assert s.bodies("c") == [b"C"]
    assert not s.pool.quarantine.inmates  # it may have been c


async def test_beside_a_request_that_hangs_the_others_run_again(scene: SceneMaker) -> None:  # noqa: F811
    s = scene(overlap=8, isolates=True)
    await start(s)
    s.put("hangs")
    await s.clock.advance(6.0)
    s.put("beside")
    await s.clock.advance(4.1)
    assert isinstance(s.error("hangs"), WorkerDied)
    assert sent(s.engine.processes[1]) == [["beside"]]
