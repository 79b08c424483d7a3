"""One worker as the server sees it: starts its process, loads the model, keeps a short window of batches with it.

Replies are matched to jobs by id. When the process ends, the jobs it had not begun come back untouched;
:mod:`mariner.suspects` decides about those it ran. Whether and when the worker starts again,
:mod:`mariner.keeper` decides.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from mariner.batching import JobQueue
from mariner.causes import Cause, Ending
from mariner.clock import Clock
from mariner.deaths import Death, DeathCertificate, HeldRequest, blame, issue
from mariner.engines import Buffer, Engine, Exit, Process, WorkerSpec
from mariner.errors import WorkerDied
from mariner.jobs import Job
from mariner.lifecycle import Event, State, next_state
from mariner.refusals import no_answer, waited_too_long
from mariner.suspects import triage
from ts.wire import (
    STACK_SIGNAL,
    Batch,
    Frame,
    FrameDecoder,
    FrameKind,
    Load,
    Loaded,
    Reply,
    Sample,
    WireError,
    decode_replies,
    encode_json,
    encode_predict,
)

__all__ = ["Owner", "Worker"]

log = logging.getLogger(__name__)

WINDOW = 0.002
"""Seconds of estimated work a worker may hold: enough to hide the way there and back, too little to queue behind."""

MAX_AHEAD = 64  # batches in the window; measured: more brought nothing
MAX_FRAMES = 4  # unanswered at a time; what arrives meanwhile fills the next
SMOOTHING = 0.2  # weight of the newest batch in the estimate of how long a batch takes
LOW_WATER = 0.0002  # seconds of work below which a worker takes a batch that is not full although it is busy
SPAWN_TIMEOUT = 120.0  # seconds from the creation of the process to its first word; TorchServe's limit


class Owner(Protocol):
    """What a worker tells its pool."""

    def has_room(self, worker: Worker) -> None:
        """The worker can take more."""

    def finished(self, job: Job, reply: Reply, batch_size: int) -> None:
        """A job got its last reply."""

    def sampled(self, worker: Worker, sample: Sample) -> None:
        """A metric was updated in the worker."""

    def died(self, worker: Worker, certificate: DeathCertificate) -> None:
        """Its process ended, and not because it was asked to."""

    def convicted(self, job: Job, error: WorkerDied) -> None:
        """A job has killed a second worker and is about to be answered with this error."""


class _Batch:
    """Jobs that were sent together and have not all been answered."""

    __slots__ = ("id", "since", "size", "unanswered")

    def __init__(self, id_: int, size: int, now: float) -> None:
        self.id = id_
        self.size = size
        self.unanswered = size
        self.since = now  # when it was sent, or last gave a sign of life


_NOBODY: tuple[Job | None, Any] = (None, None)


class Worker:
    """One worker of a pool.

    Args:
        id_: number that names it in the API and in logs; kept over restarts.
        spec: how to start its process.
        load: what to load.
        engine: starts the process.
        queue: where its jobs come from and go back to.
        owner: the pool.
        clock: time and timers.
        response_timeout: seconds within which each reply must come; a streamed piece, or another reply of the batch,
            starts them anew.
        startup_timeout: seconds for loading the model.
        overlap: most batches that the process runs side by side; 0 if it runs one after the other.
    """

    def __init__(
        self,
        id_: int,
        spec: WorkerSpec,
        load: Load,
        *,
        engine: Engine,
        queue: JobQueue,
        owner: Owner,
        clock: Clock,
        response_timeout: float,
        startup_timeout: float,
        overlap: int = 0,
    ) -> None:
        self.id = id_
        self.spec = spec
        self.load = load
        self.state = State.STARTING
        self.started_at = 0.0  # on the clock; of the current process
        self.cost = 0.0  # estimated seconds per batch; 0 until a batch has been measured
        self.answered = False  # the current process gave at least one good answer
        self.suspected = False  # the last process died while it ran what had killed another before
        self.stopping = False  # it was asked to go: it must not be restarted
        self.certificate: DeathCertificate | None = None  # of the latest process that ended
        self._unanswered = 0  # times in a row that no answer came in time
        self._engine = engine
        self._queue = queue
        self._owner = owner
        self._clock = clock
        self._response_timeout = response_timeout
        self._startup_timeout = startup_timeout
        self._overlap = overlap
        self._process: Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        """Prepares for a new process."""
        self._decoder = FrameDecoder()
        self._batches: dict[int, _Batch] = {}  # in the order in which they were sent
        self._jobs: dict[int, tuple[Job, _Batch]] = {}  # by job id, in the order in which they were sent
        self._frames: deque[int] = deque()  # the last batch of each frame that is not answered
        self._last_batch = self._last_job = 0
        self.answered = False
        self._head_since = 0.0  # when the batch that runs now began, or last gave a sign of life
        self._ending = Ending()
        self._overdue = False  # it was killed because nobody waits any longer for what it runs
        self._loaded: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id, 0 if there is no process."""
        return self._process.pid if self._process is not None else 0

    @property
    def in_flight(self) -> int:
        """Jobs that the process has."""
        return len(self._jobs)

    @property
    def served(self) -> int:
        """Jobs that the process has got since it was started."""
        return self._last_job

    @property
    def idle(self) -> bool:
        """Ready and without work."""
        return self.state is State.READY and not self._batches

    @property
    def lanes(self) -> int:
        """Batches that it runs at a time."""
        return self._overlap or 1

    def free_in(self, now: float) -> float:
        """Estimated seconds until it has done what it runs."""
        if len(self._batches) < self.lanes:
            return 0.0
        return self.cost / self.lanes if self._overlap else max(0.0, self._head_since + self.cost - now)

    @property
    def idle_since(self) -> float:
        """For an idle worker: when it gave its last answer, or had loaded."""
        return self._head_since

    @property
    def fast(self) -> bool:
        """Its batches take so little that larger ones would gain nothing."""
        return 0.0 < self.cost < LOW_WATER

    def move(self, event: Event) -> None:
        """Changes the state as :mod:`mariner.lifecycle` says."""
        before, self.state = self.state, next_state(self.state, event)
        log.debug("%s State change %s -> %s", self.spec.name, before.value, self.state.value)

    async def start(self) -> None:
        """Starts the process and loads the model; the worker is READY when this returns.

        Raises:
            Death: it did not come so far.
        """
        if self.state is State.DRAINING:
            raise Death("it was no longer wanted", loaded=False)
        self._reset()
        self.started_at = self._clock.time()
        self._timer = self._clock.call_at(self.started_at + SPAWN_TIMEOUT, self._too_slow_to_start)
        try:
            process = await self._engine.start(self.spec, self)
            if not self._ended.done():
                self._process = process
                process.send(encode_json(FrameKind.LOAD, self.load))
            if self.stopping:
                process.kill()
            outcomes: set[asyncio.Future[Any]] = {self._loaded, self._ended}
            await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
        except Exception as error:
            log.exception("%s could not be started.", self.spec.name)
            self._ending.decide(Cause.NOT_STARTED, f"its process could not be created: {error}")
            self._certify(Exit(None), [])
            raise Death(self._cause(), loaded=False) from error
        finally:
            self._cancel_timer()
        if not self._loaded.done():
            raise Death(self._cause(), loaded=False)
        self._loaded.result()
        if self.state is State.LOADING:
            self._head_since = self._clock.time()
            self.move(Event.LOADED)
            self._owner.has_room(self)

    async def ended(self) -> Death:
        """Waits for the end of the process; by then its jobs have been answered or put back."""
        await self._ended
        return Death(self._cause(), loaded=self._has_loaded)

    def finish(self) -> None:
        """Asks the process to go when it has answered what it has; it gets nothing more."""
        self.stopping = True
        if not self._loaded.done():
            self.kill("it was no longer wanted")  # it has no work that could be lost
        elif self._process is not None:
            self._process.finish()

    def kill(self, why: str, cause: Cause = Cause.ENDED, *, overdue: bool = False) -> None:
        """Ends the process; one that hangs is asked where, and takes nothing more.

        Args:
            why: for the log and for those whose requests it runs.
            cause: in a word.
            overdue: these are answered with an error in any case, not run again.
        """
        self._ending.decide(cause, why)
        self._overdue = self._overdue or overdue
        if self._process is not None:
            self._process.kill(ask=STACK_SIGNAL if self._ending.hung else 0)

    # -- work ---------------------------------------------------------------------------------------------------------

    def feed(self, limit: int = MAX_AHEAD) -> int:
        """Takes up to ``limit`` batches from the queue, as the window allows; returns how many."""
        taken: list[Batch] = []
        if len(self._frames) >= MAX_FRAMES:
            return 0
        while len(taken) < limit and self._has_room():
            ahead = len(self._batches) * self.cost
            seconds = self.cost if self._overlap else self.cost + ahead
            jobs = self._queue.take(partial=ahead < LOW_WATER, seconds=seconds, worker=self)
            if not jobs:
                break
            taken.append(self._accept(jobs))
        if taken and self._process is not None:
            if not self._overlap:
                self._frames.append(taken[-1].id)
            self._process.send(encode_predict(taken, self._clock.time()))
        return len(taken)

    def _has_room(self) -> bool:
        if self.state is not State.READY or self._process is None or self._ending.cause:
            return False
        count = len(self._batches)
        if self._overlap:
            return count < self._overlap
        return not count or (self.cost > 0.0 and count < MAX_AHEAD and count * self.cost < WINDOW)

    def _accept(self, jobs: list[Job]) -> Batch:
        now = self._clock.time()
        self._last_batch += 1
        batch = _Batch(self._last_batch, len(jobs), now)
        table, id_ = self._jobs, self._last_job
        entries = []
        for job in jobs:
            id_ += 1
            job.begin(now, self)
            table[id_] = job, batch
            request = job.request if job.deadline == math.inf else job.request._replace(deadline=job.deadline)
            entries.append((id_, request))
        self._last_job = id_
        if self._batches and not self._overlap:
            self._queue.ahead += batch.size
        else:
            self._begin(now)
        self._batches[batch.id] = batch
        return Batch(batch.id, entries)

    def _begin(self, now: float) -> None:
        """A batch became the one that runs."""
        self._head_since = now
        if self._timer is None:
            self._timer = self._clock.call_at(now + self._response_timeout, self._check_response)

    def expire(self) -> float:
        """Answers the requests whose deadline has passed, though the handler goes on; returns the next deadline."""
        now, earliest = self._clock.time(), math.inf
        late = []
        for job, batch in self._jobs.values():
            if job.streaming or not job.wanted:
                continue
            if job.deadline <= now:
                late.append((job, batch))
            else:
                earliest = min(earliest, job.deadline)
        running = next(iter(self._batches.values()), None)
        for job, batch in late:  # an answer may bring the next request, and that one may come here
            begun = self._overlap or batch is running
            error = no_answer(self.load.model_name, job) if begun else waited_too_long(self._queue.model, job, now)
            self._queue.refusals[error.reason] += 1
            job.give_up(error)
        return earliest

    def give_up(self, job: Job) -> None:
        """Shows the process that nobody wants a job any more; see :class:`mariner.jobs.Holder`."""
        id_ = next((id_ for id_, (held, _) in self._jobs.items() if held is job), 0)
        if id_ and self._process is not None:
            self._process.give_up(id_)

    # -- what the process says ----------------------------------------------------------------------------------------

    def received(self, data: Buffer) -> None:
        """Bytes from the process; see :class:`mariner.engines.Receiver`."""
        if self._ending.hung:
            return  # the signal that asks for its stack may have woken it
        try:
            for frame in self._decoder.feed(data):
                self._handle(frame)
        except (WireError, ValueError, TypeError, KeyError) as error:
            log.exception("%s sent what cannot be understood and is ended.", self.spec.name)
            self.kill(f"it sent what cannot be understood: {error}", Cause.PROTOCOL_ERROR)

    def _handle(self, frame: Frame) -> None:
        if frame.kind is FrameKind.REPLIES:
            now = self._clock.time()
            for reply in decode_replies(frame.payload):
                self._deliver(reply, now)
            self._head_since = now  # a sign of life of the batch that runs, whole or in parts
            self._owner.has_room(self)
        elif frame.kind is FrameKind.METRICS:
            for name, unit, type_, value, dimensions, request_ids in frame.json():
                self._owner.sampled(self, Sample(name, unit, type_, value, dimensions, request_ids))
        elif frame.kind is FrameKind.STARTED:
            self._begin_loading()
        elif frame.kind is FrameKind.LOADED:
            self._end_loading(Loaded(**frame.json()))

    def _begin_loading(self) -> None:
        if self.state is State.STARTING:
            self.move(Event.STARTED)
            log.info("%s: Torch worker started.", self.spec.name)
        self._cancel_timer()
        self._timer = self._clock.call_at(self._clock.time() + self._startup_timeout, self._too_slow_to_load)

    def _end_loading(self, loaded: Loaded) -> None:
        if self._loaded.done():
            return
        if loaded.ok:
            self._loaded.set_result(True)
        else:
            self._ending.failure = loaded
            self._loaded.set_exception(Death(loaded.message, loaded=False, out_of_memory=loaded.out_of_memory))

    def _deliver(self, reply: Reply, now: float) -> None:
        if reply.more:
            self._deliver_piece(reply)
            return
        job, batch = self._jobs.pop(reply.job_id, _NOBODY)
        if job is None:
            log.error("%s gave an answer, number %d, to no request that it has.", self.spec.name, reply.job_id)
            return
        self.answered = self.answered or not reply.failed
        self._unanswered = 0
        batch.unanswered -= 1
        job.begun = batch.since if self._overlap else self._head_since
        if not batch.unanswered:
            self._close(batch, reply.handler_seconds if reply.status else None)
        if reply.status:
            self._owner.finished(job, reply, batch.size)
            if job.deadline > now or job.streaming:
                job.end(reply)
                return
        if not job.wanted:
            job.end(reply)  # frees its body
        elif reply.status:  # the timer is about to say so; a handler that saw it may have stopped halfway
            self._queue.end(job, no_answer(self.load.model_name, job))
        else:  # the process left it out: its clock is a little ahead
            self._queue.end(job, waited_too_long(self._queue.model, job, now))

    def _deliver_piece(self, reply: Reply) -> None:
        job, batch = self._jobs.get(reply.job_id, _NOBODY)
        if job is not None:
            if not job.wanted and self.load.continuous_batching and self._process is not None:
                self._process.send(encode_json(FrameKind.DROP, [reply.job_id]))
            if not job.streaming:
                job.begun = batch.since if self._overlap else self._head_since
            batch.since = self._clock.time()
            job.piece(reply)

    def _close(self, batch: _Batch, seconds: float | None) -> None:
        """All jobs of the batch are answered; the handler took that long, None if the last job was not run."""
        del self._batches[batch.id]
        self._head_since += seconds or 0.0  # when the next one began, if its replies are in the same frame
        if self._frames and batch.id >= self._frames[0]:  # batches run in order
            self._frames.popleft()
        if seconds is not None:
            # A handler that returns a constant still takes time; the first batch is all that is known.
            self.cost = max(seconds if not self.cost else self.cost + SMOOTHING * (seconds - self.cost), 1e-6)
            self._queue.measured(batch.size, seconds)
        if self._batches and not self._overlap:
            self._queue.ahead -= next(iter(self._batches.values())).size

    def exited(self, exit_: Exit) -> None:
        """The process is gone: puts back what it had not begun and what runs again, answers the rest."""
        if self._ending.hung and self._batches:  # woken, it may have gone on to others
            exit_ = replace(exit_, running_batch=next(iter(self._batches)))
        jobs = list(self._jobs.values())
        self._certify(exit_, jobs)
        self._process = None
        self._cancel_timer()
        error = blame(WorkerDied("Worker died.", hint=f"{self.spec.name}: {self._cause()}."), self.certificate)
        if not self._overlap:
            self._queue.ahead -= sum(batch.size for batch in list(self._batches.values())[1:])
        self._batches, self._jobs = {}, {}
        found = triage(
            jobs,
            began=lambda batch: bool(self._overlap) or batch.id == exit_.running_batch,
            runs_again=self._runs_again,
        )
        self.suspected = found.suspected
        found.tell(self.spec.name)
        self._queue.put_back([*found.untouched, *found.again])
        for job in found.guilty:
            error.hint += " The request had killed another worker before and is not run again."
            self._owner.convicted(job, error)
        for job in [*found.guilty, *found.lost]:
            job.end(error)  # if nobody waits for it, this frees its body
        self._queue.forget(self)
        self._ended.set_result(exit_)
        self._owner.has_room(self)

    def _runs_again(self, batch: _Batch) -> bool:
        """Whether a batch that was running may run again: not if it has had all the time that a reply may take."""
        since = batch.since if self._overlap else self._head_since
        in_time = self._clock.time() < since + self._response_timeout
        return self.load.isolate_batch_errors and in_time and not self._overdue

    def _certify(self, exit_: Exit, lost: Sequence[tuple[Job, _Batch]]) -> None:
        """Writes down what the process died of, and reports it unless it ended as it was asked to."""
        running = exit_.running_batch
        held = [HeldRequest.of(job, running=bool(self._overlap) or batch.id == running) for job, batch in lost]
        uptime = self._clock.time() - self.started_at
        who = {"worker": self.spec.name, "worker_id": self.id, "pid": self.pid, "state": self.state.value}
        self.certificate = issue(exit_, self._ending, self.load, held, loaded=self._has_loaded, uptime=uptime, **who)
        if lost or not self.stopping or not (exit_.code == 0 or self._ending.cause):
            self._owner.died(self, self.certificate)

    @property
    def _has_loaded(self) -> bool:
        return self._loaded.done() and self._loaded.exception() is None

    def _cause(self) -> str:
        """What is told of the latest end."""
        return self.certificate.summary if self.certificate is not None else ""

    # -- timers -------------------------------------------------------------------------------------------------------

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow_to_start(self) -> None:
        self.kill(f"its process said nothing for {SPAWN_TIMEOUT:g} s", Cause.STARTUP_TIMEOUT)

    def _too_slow_to_load(self) -> None:
        why = f"it did not load the model within {self._startup_timeout:g} s (startupTimeout)"
        self.kill(why, Cause.STARTUP_TIMEOUT)

    def _check_response(self) -> None:
        """One timer per worker, not per batch: it looks when the head began and waits for the rest."""
        self._timer = None
        if not self._batches:
            return
        since = min(batch.since for batch in self._batches.values()) if self._overlap else self._head_since
        due = since + self._response_timeout
        if self._clock.time() >= due:
            self._unanswered += 1
            log.warning(
                "%s gave no answer within %g s (responseTimeout). Number or consecutive unsuccessful inference %d",
                *(self.spec.name, self._response_timeout, self._unanswered),
            )
            why = f"it gave no answer within {self._response_timeout:g} s (responseTimeout)"
            self.kill(why, Cause.RESPONSE_TIMEOUT)
        else:
            self._timer = self._clock.call_at(due, self._check_response)
