"""Certificates: what is in them, how long they are kept, and what a pool does with them."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import pytest

from mariner.batching import make_queue
from mariner.causes import Cause, Ending
from mariner.deaths import (
    KEPT,
    KEPT_VERSIONS,
    DeathCertificate,
    DeathRegister,
    HeldRequest,
    blame,
    issue,
    log_block,
    log_death,
)
from mariner.deaths import describe_death as describe
from mariner.engines import Exit, WorkerSpec
from mariner.errors import MarinerError, NoWorker, WorkerDied, WorkerStartFailed
from mariner.jobs import Job, Outcome, Part, Request, Shared
from mariner.lifecycle import DEATHS_BEFORE_PARKING
from mariner.pool import PoolObserver, WorkerPool
from mariner.recipe import Recipe
from mariner.testing import FakeClock, FakeEngine, FakeProcess, settle
from mariner.worker import Worker
from ts.wire import STACK_SIGNAL, Load

MiB = 1 << 20
EXITED = Exit(3)


def certificate(model: str = "m", version: str = "1.0", exit_: Exit = EXITED, **known: Any) -> DeathCertificate:
    who = {"worker": f"W-9000-{model}_{version}", "worker_id": 9000, "pid": 77, "state": "ready", "uptime": 12.34}
    load = Load(model, "/models/m", "handler.py", version, gpu_id=known.pop("gpu", None))
    return issue(exit_, Ending(), load, known.pop("requests", ()), loaded=True, **{**who, **known})


def test_no_two_certificates_have_the_same_id() -> None:
    assert len({certificate().id for _ in range(100)}) == 100


def test_requests_are_listed_running_ones_first_and_counted_beyond_fifty() -> None:
    requests = [HeldRequest(f"r{number}", 10, number == 59) for number in range(60)]
    issued = certificate(requests=requests)
    assert [request.id for request in issued.requests] == ["r59", *(f"r{number}" for number in range(49))]
    assert issued.more_requests == 10
    assert describe(issued)["moreRequests"] == 10


def test_the_size_of_a_request_is_that_of_its_parameters_wherever_they_lie() -> None:
    parts = [Part("body", "", b"12345"), Part("file", "", Shared(4096, 1000))]
    job = Job(Request("id", b"", parts), lambda _: None)
    assert HeldRequest.of(job, running=True) == ("id", 1005, True)


def test_a_line_that_is_too_long_is_cut() -> None:
    assert certificate(exit_=Exit(3, 0, ("x" * 9000,))).exit.last_lines == ("x" * 500,)


def test_a_version_keeps_its_latest_certificates() -> None:
    register = DeathRegister()
    issued = [certificate() for _ in range(KEPT + 5)]
    for each in issued:
        register.add(each)
    register.add(certificate(version="2.0"))
    assert list(register.of("m", "1.0")) == issued[:4:-1]
    assert register.of("m", "3.0") == ()


def test_versions_whose_last_death_is_the_oldest_are_forgotten_first() -> None:
    register = DeathRegister()
    for number in range(KEPT_VERSIONS):
        register.add(certificate(f"m{number}"))
    register.add(certificate("m0"))
    register.add(certificate("one more"))
    assert len(register.of("m0", "1.0")) == 2
    assert register.of("m1", "1.0") == ()
    assert len(register.of("m2", "1.0")) == 1


def test_the_version_that_died_last_is_known() -> None:
    register = DeathRegister()
    for version in ("1.0", "2.0", "1.0"):
        register.add(certificate(version=version))
    register.add(certificate("other", "7.0"))
    assert register.latest_version("m") == "1.0"
    assert register.latest_version("none") is None


def test_an_error_is_blamed_on_a_death() -> None:
    issued = certificate()
    error = blame(WorkerDied("Worker died."), issued)
    assert (error.reason, error.death_id, str(error)) == ("exit", issued.id, "Worker died.")
    assert (WorkerDied.reason, blame(WorkerDied("x"), None).reason) == ("worker_died", "worker_died")


def test_a_certificate_is_shown_with_all_that_is_known() -> None:
    memory = ((2.0, 100 * MiB), (1.04, 200 * MiB))
    issued = certificate(exit_=Exit(-9, 1, ("last words",), memory, 1), gpu=2, requests=[HeldRequest("id", 5, True)])
    shown = describe(issued)
    assert shown.pop("id") == issued.id
    assert shown.pop("time").endswith("Z")
    assert shown == {
        "workerId": "9000",
        "pid": 77,
        "workerState": "ready",
        "uptimeSeconds": 12.34,
        "cause": "oom_kill",
        "summary": "it was killed by signal 9 (SIGKILL) by the kernel, for lack of memory",
        "signal": "SIGKILL",
        "gpu": 2,
        "oomKills": 1,
        "requests": [{"id": "id", "size": 5, "running": True}],
        "memory": [{"secondsBefore": 2.0, "bytes": 100 * MiB}, {"secondsBefore": 1.0, "bytes": 200 * MiB}],
        "stderr": ["last words"],
    }
    assert describe(issued, brief=True).keys() == describe(issued).keys() - {"memory", "stderr"}


def test_the_block_of_the_log_says_the_same() -> None:
    memory = tuple((float(age), (100 - age) * MiB) for age in range(60, 0, -1))
    exit_ = Exit(
        1, 1, ("Traceback (most recent call last):", '  File "/models/m/h.py", line 3, in f', "KeyError: 1"), memory
    )
    requests = [HeldRequest("a", 5, True), HeldRequest("b", 6, False)]
    assert log_block(certificate(exit_=exit_, requests=requests)).splitlines() == [
        "  process   77, ready, lived 12.3 s",
        "  exit      code 1",
        "  exception KeyError: 1",
        "  location  h.py:3 in f",
        "  requests  a (5 bytes, running), b (6 bytes, waiting)",
        "  memory    " + ", ".join(f"{100 - age} MiB {age} s before" for age in (*range(60, 0, -6), 1)),
        "  stderr",
        "    Traceback (most recent call last):",
        '      File "/models/m/h.py", line 3, in f',
        "    KeyError: 1",
    ]


def test_the_log_has_a_death_in_one_record_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    issued = certificate()
    log_death(issued)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    death = vars(record)["death"]
    assert (death["model"], death["version"], death["id"]) == ("m", "1.0", issued.id)
    assert json.dumps(death)


# -- in a pool ---------------------------------------------------------------------------------------------------------


class Scene(PoolObserver):
    """A pool of one worker, what died in it, and what became of one request after the other."""

    def __init__(self, *, retry_window: float = 300.0) -> None:
        self.clock, self.engine = FakeClock(), FakeEngine()
        self.deaths: list[DeathCertificate] = []
        self.outcomes: list[Outcome] = []
        queue = make_queue("eager", 'Model "m"', batch_size=1, max_delay=0.0, capacity=9, clock=self.clock.time)
        recipe = Recipe(
            model="m",
            version="1.0",
            spec=lambda id_: WorkerSpec(f"W-{id_}-m_1.0", "python", {}),
            load=lambda _: Load("m", "/models/m", "handler.py"),
            next_id=itertools.count(9000).__next__,
            response_timeout=10.0,
            startup_timeout=20.0,
            retry_window=retry_window,
        )
        self.pool = WorkerPool(recipe, engine=self.engine, queue=queue, clock=self.clock, observer=self)

    def died(self, pool: WorkerPool, worker: Worker, certificate: DeathCertificate) -> None:
        self.deaths.append(certificate)

    async def start(self) -> FakeProcess:
        self.pool.scale(1, 1)
        await settle()
        return self.engine.processes[-1]

    async def ask(self) -> None:
        now = self.clock.time()
        self.pool.put(Job(Request("r", b"", [Part("body", "", b"12345")]), self.outcomes.append, created=now))
        await settle()


async def test_the_request_of_a_dead_worker_is_told_which_death_it_was() -> None:
    s = Scene()
    process = await s.start()
    await s.ask()
    process.die(-11)
    await settle()
    (death,) = s.deaths
    (error,) = s.outcomes
    assert isinstance(error, WorkerDied)
    assert (error.reason, error.death_id) == ("crash", death.id)
    assert error.hint == "W-9000-m_1.0: it was killed by signal 11 (SIGSEGV)."
    assert (death.worker, death.pid, death.state) == ("W-9000-m_1.0", process.pid, "ready")
    assert death.requests == (("r", 5, True),)


async def test_a_worker_that_hangs_is_asked_where_and_gets_nothing_more() -> None:
    s = Scene()
    process = await s.start()
    await s.ask()
    await s.clock.advance(10.0)
    assert (process.killed, process.asked) == (True, STACK_SIGNAL)
    assert s.deaths[0].cause is Cause.RESPONSE_TIMEOUT


async def test_a_worker_that_is_asked_where_it_hangs_takes_no_work_and_its_answer_is_void(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s = Scene()
    process = await s.start()
    monkeypatch.setattr(process, "kill", lambda ask: None)  # it has its moment to say where it is
    await s.ask()
    await s.clock.advance(10.0)
    process.reply(process.batches[0], b"late")  # the signal woke it
    await s.ask()
    assert s.outcomes == []
    assert len(process.batches) == 1
    process.die(-9, killed=True)
    await settle()
    (error,) = s.outcomes  # the other request waits for the next process
    assert isinstance(error, WorkerDied)
    assert error.reason == "response_timeout"
    assert s.deaths[0].requests == (("r", 5, True),)


@pytest.mark.parametrize("code", [0, None])
async def test_a_worker_that_goes_when_asked_leaves_no_certificate(code: int | None) -> None:
    s = Scene()
    process = await s.start()
    if code is None:
        s.pool.workers[0].kill("it did not go when asked to")
        s.pool.scale(0, 0)
    else:
        s.pool.scale(0, 0)
    await settle()
    assert not process.alive
    assert s.deaths == []


async def test_a_worker_that_crashes_when_asked_to_go_leaves_one() -> None:
    s = Scene()
    process = await s.start()
    await s.ask()
    s.pool.scale(0, 0)
    process.die(-11)
    await settle()
    assert [death.cause for death in s.deaths] == [Cause.CRASH]


async def test_a_process_that_cannot_be_created_has_a_certificate() -> None:
    s = Scene(retry_window=0.0)
    s.engine.fails = OSError(12, "Cannot allocate memory")
    s.pool.scale(1, 1)
    await settle()
    (death,) = s.deaths
    assert (death.cause, death.pid) == (Cause.NOT_STARTED, 0)
    assert death.summary == "its process could not be created: [Errno 12] Cannot allocate memory"
    with pytest.raises(WorkerStartFailed) as raised:
        await s.pool.settle()
    assert raised.value.death_id == death.id


async def test_a_crash_loop_backs_off_then_the_model_is_broken_with_the_reason() -> None:
    s = Scene()
    process = await s.start()
    for number in range(1, DEATHS_BEFORE_PARKING + 1):
        process.die(-11 if number < DEATHS_BEFORE_PARKING else 3)
        await settle()
        await s.clock.advance(60.0)
        process = s.engine.processes[-1]
    assert len(s.deaths) == DEATHS_BEFORE_PARKING
    assert s.pool.broken
    with pytest.raises(NoWorker) as raised:
        await s.ask()
    assert (raised.value.reason, raised.value.death_id) == ("broken", s.deaths[-1].id)
    assert "The last worker: it exited with code 3: code that it ran called exit." in raised.value.hint
    await s.start()
    assert s.pool.ready


async def test_who_waits_in_vain_for_a_model_that_fails_to_load_is_told_why() -> None:
    s = Scene()
    s.engine.loads = False
    process = await s.start()
    await s.ask()
    process.loaded("no weights", ok=False, exception="ValueError: no weights", file="handler.py", line=5)
    await s.clock.advance(11.0)
    (error,) = s.outcomes
    assert isinstance(error, NoWorker)
    assert (error.reason, error.death_id) == ("loading", s.deaths[0].id)
    assert s.deaths[0].summary in error.hint


async def test_an_error_that_is_about_no_death_names_none() -> None:
    assert (MarinerError("x").death_id, MarinerError("x").reason) == ("", "")
