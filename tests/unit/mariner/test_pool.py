"""Workers of a version, told with a fake engine and a fake clock."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from mariner.batching import make_queue
from mariner.bodies import Arena
from mariner.engines import WorkerSpec
from mariner.errors import (
    DeadlineTooShort,
    Draining,
    MarinerError,
    NoWorker,
    QueueFull,
    RequestTimeout,
    WorkerDied,
    WorkerStartFailed,
)
from mariner.jobs import Job, Outcome, Part, Reply, Request
from mariner.lifecycle import State
from mariner.pool import WorkerPool
from mariner.recipe import Recipe
from mariner.testing import FakeClock, FakeEngine, settle
from ts.wire import Load


@dataclass
class Scene:
    """A pool with everything around it."""

    engine: FakeEngine
    clock: FakeClock
    pool: WorkerPool
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)

    def put(self, name: str, *, timeout: float = math.inf) -> Job:
        self.outcomes[name] = []
        job = Job(
            Request(name, b"", [Part("body", "", name.encode())]),
            self.outcomes[name].append,
            deadline=self.clock.time() + timeout,
            created=self.clock.time(),
        )
        self.pool.put(job)
        return job

    def bodies(self, *names: str) -> list[bytes]:
        """The single, final answers."""
        answers = []
        for name in names:
            (outcome,) = self.outcomes[name]
            assert isinstance(outcome, Reply), outcome
            answers.append(bytes(outcome.body))
        return answers

    def error(self, name: str) -> MarinerError:
        (outcome,) = self.outcomes[name]
        assert isinstance(outcome, MarinerError)
        return outcome

    async def warm(self) -> None:
        """One answer tells the worker that its batches are short, so that it gets the next ones ahead."""
        self.put("first")
        await settle()
        (process,) = self.engine.processes
        process.reply(process.batches[0], b"first", seconds=0.0001)


SceneMaker = Callable[..., Scene]


@pytest.fixture
def scene() -> SceneMaker:
    def make(
        *,
        batch_size: int = 1,
        capacity: int = 100,
        policy: str = "eager",
        max_delay: float = 0.1,
        echo: bool = False,
        handler: Callable[[list[Request]], Sequence[bytes]] | None = None,
        loads: bool = True,
        retry_window: float = 300.0,
        overlap: int = 0,
        isolates: bool = False,
        quarantine: float = 0.0,
    ) -> Scene:
        clock = FakeClock()
        engine = FakeEngine(
            (lambda requests: [bytes(request.parts[0].value) for request in requests]) if echo else handler,
            loads=loads,
        )
        queue = make_queue(
            policy, 'Model "m"', batch_size=batch_size, max_delay=max_delay, capacity=capacity, clock=clock.time
        )
        recipe = Recipe(
            model="m",
            version="1.0",
            spec=lambda id_: WorkerSpec(f"W-{id_}-m_1.0", "python", {}),
            load=lambda _: Load("m", "/models/m", "handler.py", isolate_batch_errors=isolates),
            next_id=itertools.count(9000).__next__,
            response_timeout=10.0,
            startup_timeout=20.0,
            retry_window=retry_window,
            overlap=overlap,
            quarantine_time=quarantine,
        )
        return Scene(engine, clock, WorkerPool(recipe, engine=engine, queue=queue, clock=clock))

    return make


async def test_a_request_goes_through_a_worker_and_back(scene: SceneMaker) -> None:
    s = scene(echo=True)
    s.pool.scale(1, 1)
    await s.pool.settle()
    s.put("hello")
    await settle()
    assert s.bodies("hello") == [b"hello"]


async def test_an_idle_worker_takes_a_partial_batch_at_once(scene: SceneMaker) -> None:
    s = scene(batch_size=8)
    s.pool.scale(1, 1)
    await settle()
    for name in "abc":
        s.put(name)
    await settle()
    assert [len(batch.jobs) for batch in s.engine.processes[0].batches] == [3]


async def test_the_fill_policy_waits_for_a_full_batch_or_the_delay(scene: SceneMaker) -> None:
    s = scene(batch_size=2, policy="fill", max_delay=0.5)
    s.pool.scale(1, 1)
    await settle()
    process = None
    s.put("a")
    await settle()
    process = s.engine.processes[0]
    assert process.batches == []
    await s.clock.advance(0.5)
    assert [len(batch.jobs) for batch in process.batches] == [1]
    process.reply(process.batches[0], b"1")
    s.put("b")
    s.put("c")
    await settle()
    assert [len(batch.jobs) for batch in process.batches] == [1, 2]


async def test_two_idle_workers_each_get_a_batch_before_one_gets_two(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(2, 2)
    await settle()
    s.put("a")
    s.put("b")
    await settle()
    assert [len(process.batches) for process in s.engine.processes] == [1, 1]


async def test_a_fast_model_gets_several_batches_in_one_frame(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("probe")
    await settle()
    process.reply(process.batches[0], b"", seconds=0.0001)
    for index in range(7):
        s.put(f"r{index}")
    await settle()
    assert (process.frames, len(process.batches)) == (2, 8)


async def test_a_fast_model_gets_a_frame_while_the_server_still_receives(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("probe")
    await settle()
    process.reply(process.batches[0], b"", seconds=0.0001)
    await settle()
    for index in range(8):
        s.put(f"r{index}")
    assert (process.frames, len(process.batches)) == (2, 9)  # without a turn of the event loop


async def test_a_slow_model_gets_one_batch_at_a_time(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("probe")
    await settle()
    process.reply(process.batches[0], b"", seconds=0.5)
    s.put("a")
    s.put("b")
    await settle()
    assert len(process.batches) == 2
    process.reply(process.batches[1], b"", seconds=0.5)
    await settle()
    assert len(process.batches) == 3


async def test_answers_are_matched_by_id_whatever_their_order(scene: SceneMaker) -> None:
    s = scene(batch_size=3)
    s.pool.scale(1, 1)
    await settle()
    for name in "abc":
        s.put(name)
    await settle()
    (process,) = s.engine.processes
    process.say_replies([Reply(job_id, request.id.encode()) for job_id, request in reversed(process.batches[0].jobs)])
    assert s.bodies("a", "b", "c") == [b"a", b"b", b"c"]


async def test_expired_jobs_never_reach_a_worker(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("running")
    await settle()
    s.put("stale", timeout=1)
    s.put("fresh", timeout=60)
    await s.clock.advance(2)
    assert isinstance(s.error("stale"), RequestTimeout)
    process.reply(process.batches[0], b"")
    await settle()
    assert [request.id for batch in process.batches for _, request in batch.jobs] == ["running", "fresh"]


async def test_cancelled_jobs_never_reach_a_worker_and_free_their_place(scene: SceneMaker) -> None:
    s = scene(capacity=1)
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("running")
    await settle()
    s.put("gone").cancel()
    s.put("kept")
    process.reply(process.batches[0], b"")
    await settle()
    assert [request.id for _, request in process.batches[1].jobs] == ["kept"]
    assert s.outcomes["gone"] == []


async def test_one_runs_n_wait_and_the_next_is_refused(scene: SceneMaker) -> None:
    s = scene(capacity=2)
    s.pool.scale(1, 1)
    await settle()
    s.put("running")
    await settle()
    s.put("first")
    s.put("second")
    await settle()
    with pytest.raises(QueueFull, match="2 requests wait") as refusal:
        s.put("third")
    assert refusal.value.retry_after


async def test_jobs_that_a_busy_worker_holds_count_as_waiting(scene: SceneMaker) -> None:
    s = scene(capacity=3)
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("probe")
    await settle()
    process.reply(process.batches[0], b"", seconds=0.00001)
    for name in ("running", "a", "b"):
        s.put(name)
    await settle()
    assert len(process.batches) == 4  # all are in the window
    s.put("c")
    await settle()
    with pytest.raises(QueueFull):
        s.put("d")


async def test_a_death_fails_the_running_batch_and_returns_the_others_untouched(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("probe")
    await settle()
    process.reply(process.batches[0], b"", seconds=0.0001)
    for name in ("running", "next", "later"):
        s.put(name)
    await settle()
    process.die(-11)
    await settle()
    assert isinstance(s.error("running"), WorkerDied)
    assert str(s.error("running")) == "Worker died."
    successor = s.engine.processes[1]
    assert [request.id for _, request in successor.batches[0].jobs] == ["next"]
    successor.reply(successor.batches[0], b"next")
    await settle()
    successor.reply(successor.batches[1], b"later")
    assert s.bodies("next", "later") == [b"next", b"later"]


async def test_the_log_names_the_requests_that_a_death_concerns(
    scene: SceneMaker, caplog: pytest.LogCaptureFixture
) -> None:
    s = scene()
    s.pool.scale(1, 1)
    s.put("probe")
    await settle()
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"", seconds=0.0001)
    for name in ("running", "next", "later"):
        s.put(name)
    await settle()
    process.die(-11)
    await settle()
    assert "W-9000-m_1.0 died while it ran request running." in caplog.messages


async def test_a_death_and_a_recovery_are_told_in_the_words_scripts_look_for(
    scene: SceneMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    s = scene(loads=False)
    s.pool.scale(1, 1)
    await settle()
    s.engine.processes[0].loaded("no such file", ok=False)
    await settle()
    (first,) = (line for line in caplog.messages if "ended" in line)
    assert re.fullmatch(
        r"W-9000-m_1\.0 ended: no such file\. Worker disconnected\. Auto recovery start timestamp: \d{13}\. "
        r"Retry worker: 9000 in 1 seconds\.",
        first,
    )
    await s.clock.advance(1.0)
    s.engine.processes[1].loaded("no such file", ok=False)
    await settle()
    assert "Auto recovery failed again. Retry worker: 9000 in 1 seconds." in caplog.messages[-1]
    await s.clock.advance(1.0)
    s.engine.processes[2].loaded()
    await settle()
    assert caplog.messages[-1] == ("W-9000-m_1.0 is ready after 0.00 s. Auto recovery succeeded, reset recoveryStartTS")


async def test_missing_answers_are_counted_until_one_comes(scene: SceneMaker, caplog: pytest.LogCaptureFixture) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    for number in (1, 2):
        s.put(f"slow {number}")
        await settle()
        await s.clock.advance(10.0)
        await s.clock.advance(1.0)
        assert any(line.endswith(f"Number or consecutive unsuccessful inference {number}") for line in caplog.messages)
    s.put("quick")
    await settle()
    s.engine.processes[-1].reply(s.engine.processes[-1].batches[0], b"")
    s.put("slow 3")
    await settle()
    await s.clock.advance(10.0)
    assert caplog.text.count("inference 1\n") == 2


async def test_a_worker_that_died_once_restarts_at_once_then_backs_off(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.engine.processes[0].die()
    await settle()
    assert len(s.engine.processes) == 2
    s.engine.processes[1].die()
    await settle()
    assert len(s.engine.processes) == 2
    await s.clock.advance(1)
    assert len(s.engine.processes) == 3


async def test_a_model_that_cannot_load_is_retried_then_parked_and_says_so(scene: SceneMaker) -> None:
    s = scene(loads=False, retry_window=3.0)
    s.pool.scale(1, 1)
    await settle()
    s.engine.processes[0].loaded("ValueError: no weights in /models/m/model.pt", ok=False)
    with pytest.raises(WorkerStartFailed, match=r"Failed to start workers for model m version: 1\.0") as failure:
        await s.pool.settle()
    assert failure.value.hint == "ValueError: no weights in ./model.pt"
    s.put("waiting")
    for index in (1, 2):
        await s.clock.advance(2)
        s.engine.processes[index].loaded("ValueError: no weights", ok=False)
    await settle()
    assert s.pool.broken
    assert isinstance(s.error("waiting"), NoWorker)
    with pytest.raises(NoWorker, match="failed too often"):
        s.put("late")


async def test_scaling_a_parked_model_revives_it(scene: SceneMaker) -> None:
    s = scene(loads=False, retry_window=0.0)
    s.pool.scale(1, 1)
    await settle()
    s.engine.processes[0].loaded("no", ok=False)
    await settle()
    assert s.pool.broken
    s.engine.loads = True
    s.pool.scale(1, 1)
    await s.pool.settle()
    assert s.pool.ready


async def test_a_worker_without_an_answer_in_time_is_replaced(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("slow")
    await s.clock.advance(10.5)
    assert s.engine.processes[0].killed
    assert isinstance(s.error("slow"), WorkerDied)
    assert len(s.engine.processes) == 2


async def test_each_streamed_piece_gives_the_worker_its_time_anew(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("stream")
    await settle()
    for _ in range(3):
        await s.clock.advance(8)
        process.reply(process.batches[0], b"piece", more=True)
    process.reply(process.batches[0], b"end")
    assert not process.killed
    assert [bytes(piece.body) for piece in s.outcomes["stream"] if isinstance(piece, Reply)] == [b"piece"] * 3 + [
        b"end"
    ]


async def test_scaling_down_lets_the_youngest_finish_what_it_has(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(2, 2)
    await settle()
    s.put("a")
    s.put("b")
    await settle()
    old, young = s.engine.processes
    s.pool.scale(1, 1)
    await settle()
    assert (old.finishing, young.finishing) == (False, True)
    young.reply(young.batches[0], b"b")
    await settle()
    assert s.bodies("b") == [b"b"]
    assert not young.alive
    assert [worker.state for worker in s.pool.workers] == [State.READY]


async def test_no_workers_means_a_refusal_at_once(scene: SceneMaker) -> None:
    s = scene()
    with pytest.raises(NoWorker, match='Model "m" has no worker to serve inference request'):
        s.put("a")


async def test_requests_that_wait_while_the_last_worker_goes_keep_their_deadlines(scene: SceneMaker) -> None:
    s = scene(loads=False)
    s.pool.scale(1, 1)
    s.put("a", timeout=1.0)
    s.put("b", timeout=2.0)
    s.pool.scale(0, 0)
    await s.clock.advance(1.0)
    assert isinstance(s.error("a"), RequestTimeout)
    assert s.outcomes["b"] == []
    await s.clock.advance(1.0)
    assert isinstance(s.error("b"), RequestTimeout)


async def test_requests_wait_for_a_worker_that_loads_but_not_for_ever(scene: SceneMaker) -> None:
    s = scene(loads=False)
    s.pool.scale(1, 1)
    await settle()
    s.put("patient")
    await s.clock.advance(9)
    assert s.outcomes["patient"] == []
    await s.clock.advance(2)
    assert isinstance(s.error("patient"), NoWorker)


async def test_drain_answers_what_waits_and_refuses_what_is_new(scene: SceneMaker) -> None:
    s = scene(echo=True)
    s.pool.scale(1, 1)
    await s.pool.settle()
    for index in range(5):
        s.put(f"r{index}")
    assert await s.pool.drain(30.0)
    assert s.bodies(*(f"r{index}" for index in range(5))) == [f"r{index}".encode() for index in range(5)]
    assert not s.engine.processes[0].alive
    with pytest.raises(Draining):
        s.put("late")


async def test_a_drain_that_takes_too_long_ends_the_worker_and_tells_every_client(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("running")
    await settle()
    s.put("waiting")
    import asyncio  # noqa: PLC0415

    drain = asyncio.create_task(s.pool.drain(5.0))
    await s.clock.advance(6)
    assert not await drain
    assert isinstance(s.error("running"), WorkerDied)
    assert isinstance(s.error("waiting"), Draining)


async def test_a_process_that_cannot_be_created_is_tried_again(scene: SceneMaker) -> None:
    s = scene(echo=True)
    s.engine.fails = OSError("Resource temporarily unavailable")
    s.pool.scale(1, 1)
    await settle()
    assert s.pool.workers[0].state is State.WAITING
    await s.clock.advance(1)
    assert s.pool.ready


async def test_a_worker_that_speaks_nonsense_is_ended(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.pool.workers[0].received(b"HTTP/1.1 200 OK\r\n\r\n")
    await settle()
    assert s.engine.processes[0].killed


# -- workers that run requests side by side --------------------------------------------------------------------------


async def test_an_overlapping_worker_takes_requests_while_it_works_up_to_its_bound(scene: SceneMaker) -> None:
    s = scene(overlap=3)
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    for name in "abcde":
        s.put(name)
        await settle()
    assert [request.id for batch in process.batches for _, request in batch.jobs] == ["a", "b", "c"]
    process.reply(process.batches[1], b"B", seconds=60.0)
    await settle()
    assert s.bodies("b") == [b"B"]
    assert [request.id for _, request in process.batches[-1].jobs] == ["d"]


async def test_what_an_overlapping_worker_runs_does_not_count_as_waiting(scene: SceneMaker) -> None:
    s = scene(overlap=3, capacity=1)
    s.pool.scale(1, 1)
    await settle()
    for name in "abc":
        s.put(name)
        await settle()
    s.put("waits")
    with pytest.raises(QueueFull):
        s.put("refused")
    (process,) = s.engine.processes
    for batch in list(process.batches):
        process.reply(batch, b"")
    await settle()
    assert s.pool.queue.ahead == 0


async def test_all_that_an_overlapping_worker_runs_is_lost_with_it(scene: SceneMaker) -> None:
    s = scene(overlap=8)
    s.pool.scale(1, 1)
    await settle()
    for name in "abc":
        s.put(name)
    await settle()
    s.engine.processes[0].die()
    await settle()
    assert all(isinstance(s.error(name), WorkerDied) for name in "abc")
    assert s.pool.queue.ahead == 0


async def test_each_overlapping_request_has_the_response_timeout_for_itself(scene: SceneMaker) -> None:
    s = scene(overlap=8)
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("old")
    await s.clock.advance(6.0)
    s.put("new")
    await s.clock.advance(3.0)
    process.reply(process.batches[0], b"")
    await s.clock.advance(6.9)
    assert not process.killed
    await s.clock.advance(0.2)
    assert process.killed
    assert isinstance(s.error("new"), WorkerDied)


async def test_answers_of_others_do_not_extend_the_time_of_a_stuck_request(scene: SceneMaker) -> None:
    s = scene(overlap=8)
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("stuck")
    await s.clock.advance(9.0)
    s.put("quick")
    await settle()
    process.reply(process.batches[1], b"")
    await s.clock.advance(1.1)
    assert process.killed


async def test_an_answer_for_a_part_of_a_batch_starts_the_response_timeout_anew(scene: SceneMaker) -> None:
    s = scene(batch_size=2)
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    s.put("a")
    s.put("b")
    await s.clock.advance(9.0)
    process.say_replies([Reply(process.batches[0].jobs[0][0], b"")])
    await s.clock.advance(9.0)
    assert not process.killed
    await s.clock.advance(1.1)
    assert process.killed


# -- when a request's turn came --------------------------------------------------------------------------------------


async def test_a_job_begins_when_the_batch_before_it_is_answered(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    await s.warm()
    first, second = s.put("a"), s.put("b")
    await settle()
    began = s.clock.time()
    (process,) = s.engine.processes
    await s.clock.advance(3.0)
    process.reply(process.batches[-2], b"a")
    await s.clock.advance(4.0)
    process.reply(process.batches[-1], b"b")
    assert (first.taken, first.begun) == (began, began)
    assert (second.taken, second.begun) == (began, began + 3.0)


async def test_replies_in_one_frame_began_one_after_the_other(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    await s.warm()
    first, second = s.put("a"), s.put("b")
    await settle()
    began = s.clock.time()
    (process,) = s.engine.processes
    await s.clock.advance(7.0)
    jobs = [batch.jobs[0][0] for batch in process.batches[-2:]]
    process.say_replies([Reply(jobs[0], b"a", handler_seconds=3.0), Reply(jobs[1], b"b", handler_seconds=4.0)])
    assert (first.begun, second.begun) == (began, began + 3.0)


async def test_where_batches_overlap_a_job_begins_when_it_is_sent(scene: SceneMaker) -> None:
    s = scene(overlap=2)
    s.pool.scale(1, 1)
    await settle()
    s.put("a")
    await s.clock.advance(1.0)
    second = s.put("b")
    await settle()
    (process,) = s.engine.processes
    sent = s.clock.time()
    await s.clock.advance(2.0)
    process.reply(process.batches[0], b"a")
    process.reply(process.batches[1], b"b")
    assert (second.taken, second.begun) == (sent, sent)


# -- deadlines -------------------------------------------------------------------------------------------------------


async def test_a_request_that_runs_past_its_deadline_is_answered_while_the_handler_goes_on(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("late", timeout=1.5)
    s.put("waits", timeout=1.0)
    s.put("patient")
    await settle()
    (process,) = s.engine.processes
    await s.clock.advance(0.99)
    assert not s.outcomes["waits"]
    await s.clock.advance(0.01)
    assert isinstance(s.error("waits"), RequestTimeout)
    assert not s.outcomes["late"]
    await s.clock.advance(0.5)
    error = s.error("late")
    assert isinstance(error, RequestTimeout)
    assert (error.status, str(error)) == (504, 'Model "m": no answer within the 1.5 s the request had.')
    assert not process.killed
    process.reply(process.batches[0], b"too late")
    await settle()
    process.reply(process.batches[1], b"patient")
    assert s.bodies("patient") == [b"patient"]
    assert len(s.outcomes["late"]) == 1


async def test_a_body_stays_with_the_worker_until_it_is_done_with_a_late_request(scene: SceneMaker) -> None:
    arena = Arena(1 << 16)
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    job = s.put("late", timeout=1.0)
    job.slot = arena.allocate(100)
    await settle()
    await s.clock.advance(1.0)
    assert isinstance(s.error("late"), RequestTimeout)
    assert arena.used > 0
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"x")
    assert arena.used == 0
    arena.close()


async def test_a_stream_that_has_begun_has_no_deadline(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("streams", timeout=1.0)
    await settle()
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"a", more=True)
    await s.clock.advance(5.0)
    process.reply(process.batches[0], b"b")
    assert [bytes(outcome.body) for outcome in s.outcomes["streams"] if isinstance(outcome, Reply)] == [b"a", b"b"]


async def test_a_late_request_of_a_worker_that_dies_is_not_run_again(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    await s.warm()
    s.put("runs")
    s.put("late", timeout=1.0)
    await settle()
    await s.clock.advance(1.0)
    assert isinstance(s.error("late"), RequestTimeout)
    s.engine.processes[0].die()
    await s.clock.advance(1.0)
    assert isinstance(s.error("runs"), WorkerDied)
    assert s.engine.processes[1].batches == []


async def test_a_worker_is_told_what_is_left_of_a_deadline(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("hurried", timeout=2.5)
    await settle()
    (process,) = s.engine.processes
    ((_, request),) = process.batches[0].jobs
    assert request.deadline == 2.5  # on the clock of the process, which begins at 0 here


async def test_a_worker_is_shown_what_nobody_wants_any_more(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    await s.warm()
    left, late, _ = s.put("left"), s.put("late", timeout=1.0), s.put("kept")
    await settle()
    (process,) = s.engine.processes
    assert process.given_up == []
    left.cancel()
    assert process.given_up == [2]
    await s.clock.advance(1.0)
    assert process.given_up == [2, 3]
    assert isinstance(s.error("late"), RequestTimeout)
    assert late.slot is None


async def test_a_job_that_waits_behind_others_in_a_worker_expires_as_one_that_waits(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    await s.warm()
    s.put("runs", timeout=1.0)
    s.put("waits", timeout=1.0)
    await settle()
    assert s.pool.in_flight == 2
    await s.clock.advance(1.0)
    assert [s.error(name).status for name in ("runs", "waits")] == [504, 408]
    assert s.pool.queue.refusals == {"deadline_exceeded": 2}


async def test_an_answer_at_the_deadline_is_late_even_before_the_timer_says_so(scene: SceneMaker) -> None:
    """A handler that saw the deadline pass may have stopped halfway."""
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("late", timeout=1.0)
    await settle()
    s.clock.set(s.clock.time() + 1.0)
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"half")
    assert s.error("late").status == 504
    await s.clock.advance(1.0)
    assert len(s.outcomes["late"]) == 1


async def test_a_job_that_the_process_left_out_is_answered_as_late(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    await s.warm()
    s.put("hurried", timeout=1.0)
    await settle()
    cost = s.pool.workers[0].cost
    (process,) = s.engine.processes
    process.say_replies([Reply(2, b"", 0, failed=True)])  # its clock was a little ahead
    error = s.error("hurried")
    assert isinstance(error, RequestTimeout)
    assert (error.status, s.pool.in_flight, s.pool.workers[0].cost) == (408, 0, cost)


# -- overload --------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_answered_in_time_is_refused_at_once(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("first")
    await settle()
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"", seconds=1.0)
    s.put("alone", timeout=0.5)  # nothing is before it: it may be faster than the average
    await settle()
    s.put("next")
    with pytest.raises(DeadlineTooShort, match=r"in about 3\.000 s, and has 2\.900 s") as refusal:
        s.put("late", timeout=2.9)
    assert (refusal.value.reason, refusal.value.status, refusal.value.retry_after) == ("deadline", 503, 2.0)
    s.put("in time", timeout=3.1)
    assert s.pool.queue.refusals == {"deadline": 1}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
async def test_at_three_times_its_capacity_a_model_still_works_for_somebody(scene: SceneMaker, batch_size: int) -> None:
    s = scene(batch_size=batch_size, capacity=1000)
    s.pool.scale(1, 1)
    await settle()
    (process,) = s.engine.processes
    costs = itertools.cycle([0.018, 0.020, 0.025])
    begun = 0
    in_time: list[float] = []
    seconds, capacity = 4.0, batch_size / 0.021

    def finish(number: int, cost: float) -> None:
        process.reply(process.batches[number], b"", seconds=cost)

    for number in range(int(3 * capacity * seconds)):
        name, sent = str(number), s.clock.time()
        with suppress(DeadlineTooShort):
            job = s.put(name, timeout=1.0)
            job._deliver = lambda outcome, sent=sent: in_time.extend(
                [sent] if isinstance(outcome, Reply) and s.clock.time() < sent + 1.0 else []
            )
        await s.clock.advance(1 / (3 * capacity))
        while begun < len(process.batches):
            cost = next(costs)
            s.clock.call_at(s.clock.time() + cost, finish, begun, cost)
            begun += 1
    steady = [sent for sent in in_time if 1001.0 <= sent < 1000.0 + seconds - 1.0]
    assert len(steady) >= 0.9 * capacity * (seconds - 2.0)


async def test_those_whose_clients_have_gone_keep_nobody_waiting(scene: SceneMaker) -> None:
    s = scene()
    s.pool.scale(1, 1)
    await settle()
    s.put("first")
    await settle()
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"", seconds=1.0)
    s.put("runs")
    await settle()
    for job in [s.put(name) for name in "abcde"]:
        job.cancel()
    s.put("in time", timeout=2.6)
    assert not s.pool.queue.refusals


async def test_a_full_queue_says_when_it_will_have_been_served(scene: SceneMaker) -> None:
    s = scene(capacity=5)
    s.pool.scale(1, 1)
    await settle()
    s.put("first")
    await settle()
    (process,) = s.engine.processes
    process.reply(process.batches[0], b"", seconds=2.0)
    for name in ("runs", *"abcde"):
        s.put(name)
        await settle()
    with pytest.raises(QueueFull) as refusal:
        s.put("refused")
    assert refusal.value.retry_after == 12.0
    assert s.pool.queue.refusals == {"queue_full": 1}


async def test_each_refusal_has_a_reason_of_its_own(scene: SceneMaker) -> None:
    s = scene(loads=False, retry_window=0.0)
    with pytest.raises(NoWorker) as none:
        s.put("none")
    s.pool.scale(1, 1)
    await settle()
    s.put("waits")
    await s.clock.advance(10.0)
    loading = s.error("waits")
    assert "it is loading, for 10 s so far" in str(loading)
    assert loading.retry_after == 10.0
    s.engine.processes[0].loaded("no", ok=False)
    await settle()
    with pytest.raises(NoWorker) as broken:
        s.put("broken")
    s.pool.draining = True
    with pytest.raises(Draining) as draining:
        s.put("draining")
    assert [none.value.reason, loading.reason, broken.value.reason, draining.value.reason] == [
        *("no_worker", "loading", "broken", "draining")
    ]
    assert broken.value.retry_after is None  # nothing will be better by itself
    assert s.pool.queue.refusals == {"no_worker": 1, "loading": 1, "broken": 1, "draining": 1}


async def test_one_timer_watches_all_deadlines(scene: SceneMaker) -> None:
    s = scene(echo=True)
    s.pool.scale(1, 1)
    await settle()
    before = len(s.clock._timers)
    for index in range(50):
        s.put(str(index), timeout=1.0 + index)
        await settle()
    assert s.bodies(*map(str, range(50))) == [str(index).encode() for index in range(50)]
    assert len(s.clock._timers) - before <= 2
    await s.clock.advance(100.0)
    assert s.pool._timer is None
