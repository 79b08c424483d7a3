"""WorkerPool: the workers of one model version. Makes them more and fewer, feeds them from the queue, drains them.

A :mod:`mariner.keeper` keeps each of them alive; :mod:`mariner.refusals` has what requests are told that come in vain.
Idle workers pull batches; nothing dispatches. Draining is a request that workers see between batches, never the
cancellation of a task that may hold jobs.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial

from mariner import refusals
from mariner.autoscaling import Start, Stop
from mariner.batching import JobQueue
from mariner.clock import Clock, sleep
from mariner.deaths import Death, DeathCertificate, blame, log_death
from mariner.engines import Engine
from mariner.errors import Broken, MarinerError, QueueFull, ServiceUnavailable, WorkerDied
from mariner.jobs import Job, Reply, Sample
from mariner.keeper import Keeper, log_defect
from mariner.lifecycle import Event, Readiness, State
from mariner.overload import expected_wait, retry_after
from mariner.quarantine import Quarantine
from mariner.recipe import Recipe
from mariner.recycling import Places, Recycler
from mariner.scaler import Scaler
from mariner.worker import Worker

__all__ = ["PoolObserver", "WorkerPool"]

FRAME_JOBS = 8  # requests worth a frame of their own to a fast model
FINISH_GRACE = 5.0  # seconds between asking an idle worker to go and making it go


class PoolObserver:
    """What happens in a pool, for metrics. Does nothing; subclasses choose."""

    def finished(self, pool: WorkerPool, job: Job, reply: Reply, batch_size: int) -> None:
        """A job got its last reply."""

    def started(self, pool: WorkerPool, why: Start) -> None:
        """A worker was added, or is started again."""

    def stopped(self, pool: WorkerPool, why: Stop) -> None:
        """A worker was taken out."""

    def loaded(self, pool: WorkerPool, worker: Worker, seconds: float) -> None:
        """A worker became ready, that many seconds after its process was started."""

    def sampled(self, pool: WorkerPool, worker: Worker, sample: Sample) -> None:
        """A handler updated a metric."""

    def gone(self, pool: WorkerPool, worker: Worker) -> None:
        """A worker was removed; it never comes back."""

    def died(self, pool: WorkerPool, worker: Worker, certificate: DeathCertificate) -> None:
        """The process of a worker ended, and not because it was asked to."""


class WorkerPool:
    """The workers of one model version.

    Args:
        recipe: how to make them.
        engine: starts their processes.
        queue: where jobs wait.
        clock: time and timers.
        observer: hears what happens.
    """

    def __init__(
        self, recipe: Recipe, *, engine: Engine, queue: JobQueue, clock: Clock, observer: PoolObserver | None = None
    ) -> None:
        self.recipe = recipe
        self.queue = queue
        queue.crew = lambda: [worker for worker in self.workers if worker.state is State.READY]
        self.workers: list[Worker] = []  # oldest first
        self.min_workers = 0
        self.max_workers = 0
        self.quarantine = Quarantine(f'Model "{recipe.model}"', recipe.quarantine_time, clock.time)
        self.draining = False
        self.last_death: DeathCertificate | None = None
        queue.may_risk = self._may_risk
        self._engine = engine
        self._clock = clock
        self._observer = observer or PoolObserver()
        self._sleep = partial(sleep, clock)
        self._keepers: dict[Worker, Keeper] = {}  # also of workers that are going
        self._recycler: asyncio.Task[None] | None = None
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._without_worker_since: float | None = None
        self._overdue = False  # draining took too long
        self._progressed = asyncio.Event()  # something was answered, or a worker has gone; drain() waits for it
        self.scaler = Scaler(self, clock=clock, start=self._add, stop=self._remove, wake=self._arm)

    # -- what is asked of it ------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """At least one worker is ready."""
        return any(worker.state is State.READY for worker in self.workers)

    @property
    def broken(self) -> bool:
        """No worker is ready, and none will be without help."""
        return bool(self.workers) and all(worker.state is State.BROKEN for worker in self.workers)

    @property
    def serves(self) -> bool:
        """A request that comes now is answered, perhaps when a worker has been started for it."""
        return self.ready or (self.scaler.on_demand and not self.draining and not self.broken)

    @property
    def readiness(self) -> Readiness:
        """What a request would meet."""
        if self.draining:
            return Readiness.DRAINING
        if self.ready:
            return Readiness.READY
        if self.broken:
            return Readiness.BROKEN
        return Readiness.LOADING if self.workers else Readiness.UNLOADED

    @property
    def healthy_workers(self) -> int:
        """Workers that are ready or still have a try."""
        return sum(worker.state is not State.BROKEN for worker in self.workers)

    @property
    def in_flight(self) -> int:
        """Jobs that workers have."""
        return sum(worker.in_flight for worker in self.workers)

    @property
    def waiting(self) -> int:
        """Jobs whose turn has not come, those that a busy worker has already been handed included."""
        return len(self.queue) + self.queue.ahead

    def put(self, job: Job) -> None:
        """Queues a job.

        Raises:
            Draining, NoWorker, QueueFull, DeadlineTooShort: it cannot be served now.
            Quarantined: it is known to kill workers.
        """
        try:
            self._check(job)
            self.queue.put(job)
        except ServiceUnavailable as refusal:
            self.queue.refusals[refusal.reason] += 1
            if isinstance(refusal, QueueFull):
                refusal.retry_after = retry_after(self._expected_wait(self.queue.length)[0])
            raise
        if job.deadline < self._timer_at:
            self._arm(job.deadline)
        if not self.queue.length % FRAME_JOBS and self.workers[0].fast:
            # The worker runs these while the loop still receives others: measured, up to half as much again.
            self._feed()
        elif not self._pump_due:
            self._pump_due = True
            # In the next turn of the loop: what other connections sent meanwhile travels in the same frame.
            self._clock.call_soon(self._pump)

    def _check(self, job: Job) -> None:
        """Refuses a job that need not wait to be refused."""
        if self.draining:
            raise refusals.draining(self.recipe.model)
        if not self.workers:
            self.scaler.wake_up()
        elif self._without_worker_since is not None and self.broken:
            raise self._broken_refusal()
        elif self.recipe.job_ticket and sum(worker.idle for worker in self.workers) <= len(self.queue):
            self.scaler.turned_away()
            raise refusals.busy(self.recipe.model)
        if self.quarantine.inmates and (refusal := self.quarantine.refusal(job)) is not None:
            raise refusal
        if job.deadline < math.inf:
            left = job.deadline - self._clock.time()
            wait, batch = self._expected_wait(self.queue.length)
            if wait and wait + batch > left:
                wait, batch = self._expected_wait(len(self.queue))  # without those whose clients have gone
                if wait and wait + batch > left:
                    raise refusals.deadline_too_short(self.recipe.model, left, wait, batch)

    def _expected_wait(self, queued: int) -> tuple[float, float]:
        ready = [worker for worker in self.workers if worker.state is State.READY]
        return expected_wait(queued + self.queue.ahead, self.queue.batch_size, ready, self._clock.time())

    def _broken_refusal(self) -> Broken:
        return blame(refusals.broken(self.recipe.model), self.last_death)

    # -- scaling ------------------------------------------------------------------------------------------------------

    def scale(self, min_workers: int, max_workers: int) -> None:
        """Starts or stops workers so that their number lies between the bounds. Broken ones are replaced."""
        self.min_workers, self.max_workers = min_workers, max_workers
        for worker in [worker for worker in self.workers if worker.state is State.BROKEN]:
            self._remove(worker)
        self._fill()
        while len(self.workers) > max_workers:
            self._remove(min(reversed(self.workers), key=self.queue.pinned))  # else the youngest
        self.scaler.resized()
        self._note_readiness()
        if self.recipe.limits and self._recycler is None:
            places = Places(self.workers, self._add_after, self._remove, self._fill, self._settled)
            recycler = Recycler(places, self.recipe.limits, sleep=self._sleep)
            self._recycler = asyncio.create_task(recycler.run(), name=f"recycler of {self.recipe.model}")
            self._recycler.add_done_callback(log_defect)

    async def settle(self) -> None:
        """Waits until each worker has loaded.

        Raises:
            WorkerStartFailed: one of them failed.
        """
        futures = [self._settled(worker) for worker in self.workers]
        if futures:
            done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
            for future in done:
                future.result()

    def _settled(self, worker: Worker) -> asyncio.Future[None]:
        return self._keepers[worker].settled

    def _fill(self) -> None:
        while len(self.workers) < self.min_workers:
            self._add()

    def _add_after(self, after: Worker | None) -> Worker:
        return self._add(Start.RECYCLED, after=after)

    def _add(self, why: Start = Start.BOUNDS, *, after: Worker | None = None) -> Worker:
        """Starts a worker, at once or when another one has gone."""
        if not self.workers:
            self._without_worker_since = self._clock.time()  # who waits now waits for this one
        id_ = self.recipe.next_id()
        worker = Worker(
            id_,
            self.recipe.spec(id_),
            self.recipe.load(id_),
            engine=self._engine,
            queue=self.queue,
            owner=self,
            clock=self._clock,
            response_timeout=self.recipe.response_timeout,
            startup_timeout=self.recipe.startup_timeout,
            overlap=self.recipe.overlap,
        )
        self.workers.append(worker)
        self._keepers[worker] = Keeper(
            worker,
            self,
            clock=self._clock,
            retry_window=self.recipe.retry_window,
            predecessor=None if after is None else self._keepers[after],
        )
        self.scaler.resized()
        self._observer.started(self, why)
        return worker

    def _remove(self, worker: Worker, why: Stop = Stop.BOUNDS) -> None:
        """Lets a worker finish what it has and go."""
        self.workers.remove(worker)
        self.scaler.resized()
        self._observer.stopped(self, why)
        worker.stopping = True
        sleeping = worker.state in (State.WAITING, State.BROKEN)  # it has no process and no jobs
        worker.move(Event.DRAIN)
        if not sleeping:
            worker.finish()
            self._clock.call_at(self._clock.time() + FINISH_GRACE, self._insist, worker)
            return
        worker.move(Event.GONE)
        self._keepers[worker].cancel()
        self.forget(worker)

    def _insist(self, worker: Worker) -> None:
        if worker.state is State.DRAINING:
            if worker.in_flight:  # it is working, not hanging; response_timeout bounds that
                self._clock.call_at(self._clock.time() + FINISH_GRACE, self._insist, worker)
            else:
                worker.kill("it did not go when asked to")

    # -- feeding ------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Feeds the workers, as was scheduled."""
        self._pump_due = False
        self._feed()

    def _feed(self) -> None:
        """Gives what waits to the workers: one batch to each idle one first, then the windows are filled."""
        if not self.queue:
            return
        workers = self.workers
        if len(workers) == 1:
            workers[0].feed()
        elif workers:
            for worker in workers:
                if worker.idle and not worker.feed(1):
                    break
            if self.queue:
                share = -(-len(self.queue) // (len(workers) * self.queue.batch_size))
                for worker in sorted(workers, key=lambda worker: worker.in_flight):
                    worker.feed(share)
        if self.queue:
            self._arm()
            if self.scaler.may_grow:
                self.scaler.look()

    def _arm(self, deadline: float = math.inf) -> None:
        """Sets the timer for the next batch that falls due or the next deadline that passes.

        Args:
            deadline: of a job that need not be in the queue any more.
        """
        wake_at = min(self.queue.wake_at(), deadline)
        if self.queue and self._without_worker_since is not None:
            wake_at = min(wake_at, self._without_worker_since + self.recipe.response_timeout)
        if wake_at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._clock.call_at(wake_at, self._wake), wake_at

    def _wake(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.queue.expire()
        deadline = min((worker.expire() for worker in self._keepers), default=math.inf)
        deadline = min(deadline, self.scaler.tick())
        if deadline < math.inf:
            self._arm(deadline)
        since = self._without_worker_since
        if since is not None and (waited := self._clock.time() - since) >= self.recipe.response_timeout:
            failing = any(keeper.failing for keeper in self._keepers.values())
            model = self.recipe.model
            error = refusals.loading(model, waited) if self.workers else refusals.no_worker(model)
            self._refuse_waiting(blame(error, self.last_death if failing else None))
        self._pump()

    def _note_readiness(self) -> None:
        """Remembers since when nobody could serve, so that what waits is not kept for ever."""
        if self.ready:
            self._without_worker_since = None
            if self.queue and not self._pump_due:  # suspects may have waited for this
                self._pump_due = True
                self._clock.call_soon(self._pump)
            return
        if self._without_worker_since is None:
            self._without_worker_since = self._clock.time()
        if self.broken:
            self._refuse_waiting(self._broken_refusal())
        elif self.queue:
            self._arm()

    def _may_risk(self) -> bool:
        """Whether a worker may run what has killed another: not the last one, while another is on its way."""
        ready = [worker.pid > 0 for worker in self.workers if worker.state is State.READY]  # False: it has just died
        coming = any(worker.state in (State.STARTING, State.LOADING) for worker in self.workers)
        return sum(ready) > 1 or (all(ready) and not coming)

    def take_over(self, other: WorkerPool) -> None:
        """Serves what waits in another pool that has no worker to serve it."""
        self.queue.inherit(other.queue)
        if other.ready:
            return
        jobs = other.queue.remove_all()
        if jobs:
            self.queue.put_back(jobs)
            self._arm(min(job.deadline for job in jobs))
            if not self.workers and self.scaler.on_demand:
                self.scaler.wake_up()
            self._feed()

    def _refuse_waiting(self, error: MarinerError) -> None:
        for job in self.queue.remove_all():
            self.queue.end(job, error)

    # -- what workers tell --------------------------------------------------------------------------------------------

    def has_room(self, worker: Worker) -> None:
        """A worker can take more; see :class:`mariner.worker.Owner`."""
        if self.queue:
            if not self._pump_due:
                self._pump_due = True
                self._clock.call_soon(self._pump)
        elif self.scaler.policy.pressed and worker.idle:
            self.scaler.policy.relieve()
        if worker.state is not State.READY:
            self._note_readiness()
        if self.draining:
            self._progressed.set()

    def finished(self, job: Job, reply: Reply, batch_size: int) -> None:
        """A job got its last reply."""
        self._observer.finished(self, job, reply, batch_size)

    def sampled(self, worker: Worker, sample: Sample) -> None:
        """A metric was updated."""
        self._observer.sampled(self, worker, sample)

    def died(self, worker: Worker, certificate: DeathCertificate) -> None:
        """A process ended, and not because it was asked to."""
        self.last_death = certificate
        log_death(certificate)
        self._observer.died(self, worker, certificate)

    def convicted(self, job: Job, error: WorkerDied) -> None:
        """A job has killed a second worker: what is identical to it is kept out, also what waits already."""
        self.quarantine.add(job, error.death_id)
        waiting = [(other, self.quarantine.refusal(other)) for other in self.queue.remove_all()]
        self.queue.put_back(other for other, refusal in waiting if refusal is None)
        for other, refusal in waiting:
            if refusal is not None:
                other.end(refusal)

    # -- what keepers tell --------------------------------------------------------------------------------------------

    def loaded(self, worker: Worker, seconds: float) -> None:
        """A worker is ready; see :class:`mariner.keeper.Owner`."""
        self._observer.loaded(self, worker, seconds)
        self.scaler.loaded(seconds)
        self._note_readiness()

    def lets_go(self, worker: Worker, death: Death) -> bool:
        """Takes out a worker that failed, if the others suffice."""
        if not self.scaler.lets_go(worker, death):
            return False
        self._remove(worker, Stop.FAILED)
        return True

    def failed(self, worker: Worker) -> None:  # noqa: ARG002
        """A worker waits for its next start, or is broken."""
        self._note_readiness()

    def restarted(self, worker: Worker) -> None:  # noqa: ARG002
        """A worker starts again."""
        self._observer.started(self, Start.RESTART)

    def forget(self, worker: Worker) -> None:
        """A worker has stopped for good."""
        self._keepers.pop(worker).settle()
        self._observer.gone(self, worker)
        self._progressed.set()

    # -- going --------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> bool:
        """Takes nothing new, answers what waits, stops the workers.

        Returns:
            Whether everything was answered within ``timeout`` seconds; the rest is refused.
        """
        self.draining = True
        if self._recycler is not None:
            self._recycler.cancel()
        self.scaler.close()
        overdue = self._clock.call_at(self._clock.time() + timeout, self._give_up_draining)
        while self.queue or self.in_flight:
            self._progressed.clear()
            if not self.ready and not self.in_flight:
                self._refuse_waiting(refusals.stopped(self.recipe.model))  # nobody will come to serve it
            else:
                await self._progressed.wait()
        in_time = not self._overdue
        for worker in list(self.workers):
            self._remove(worker, Stop.DRAINED)
        while self._keepers:
            self._progressed.clear()
            await self._progressed.wait()
        overdue.cancel()
        if self._timer is not None:
            self._timer.cancel()
        return in_time

    def _give_up_draining(self) -> None:
        self._overdue = True
        self._refuse_waiting(refusals.stopped(self.recipe.model))
        for worker in self._keepers:
            worker.kill("it did not finish in time", overdue=True)
        self._progressed.set()
