"""WorkerPool: the workers of one model version. Keeps them alive, feeds them from the queue, drains them.

Idle workers pull batches; nothing dispatches. Draining is a request that workers see between batches, never the
cancellation of a task that may hold jobs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from mariner.batching import JobQueue
from mariner.engines import Engine
from mariner.errors import Draining, MarinerError, NoWorker, WorkerStartFailed
from mariner.jobs import Job, Reply, Sample
from mariner.lifecycle import Event, Readiness, Recovery, State
from mariner.recipe import Recipe
from mariner.worker import Clock, Death, Worker

__all__ = ["PoolObserver", "WorkerPool"]

log = logging.getLogger(__name__)

FRAME_JOBS = 8  # requests worth a frame of their own to a fast model
FINISH_GRACE = 5.0  # seconds between asking an idle worker to go and making it go
RECOVERING = "Auto recovery start timestamp: "  # these two are what TorchServe writes and scripts look for
RECOVERED = " Auto recovery succeeded, reset recoveryStartTS"


class PoolObserver:
    """What happens in a pool, for metrics. Does nothing; subclasses choose."""

    def finished(self, pool: WorkerPool, job: Job, reply: Reply, batch_size: int) -> None:
        """A job got its last reply."""

    def loaded(self, pool: WorkerPool, worker: Worker, seconds: float) -> None:
        """A worker became ready, that many seconds after its process was started."""

    def sampled(self, pool: WorkerPool, worker: Worker, sample: Sample) -> None:
        """A handler updated a metric."""

    def gone(self, pool: WorkerPool, worker: Worker) -> None:
        """A worker was removed; it never comes back."""


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
        self.workers: list[Worker] = []  # oldest first
        self.min_workers = 0
        self.max_workers = 0
        self.draining = False
        self._engine = engine
        self._clock = clock
        self._observer = observer or PoolObserver()
        self._keepers: dict[Worker, asyncio.Task[None]] = {}
        self._recoveries: dict[Worker, Recovery] = {}
        self._settled: dict[Worker, asyncio.Future[None]] = {}  # done at the first success or failure
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._without_worker_since: float | None = None
        self._overdue = False  # draining took too long
        self._progressed = asyncio.Event()  # something was answered, or a worker has gone; drain() waits for it

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
            Draining, NoWorker, QueueFull: it cannot be served now.
        """
        if self.draining:
            raise Draining(f'Model "{self.recipe.model}" is being unregistered or stopped.', retry_after=1.0)
        if not self.workers:
            raise self.no_worker()
        if self._without_worker_since is not None and self.broken:
            raise self._broken_error()
        if self.recipe.job_ticket and sum(worker.idle for worker in self.workers) <= len(self.queue):
            raise self.no_worker("Each of them is busy, and with useJobTicket no request waits.")
        self.queue.put(job)
        if job.deadline < self._timer_at:
            self._arm(job.deadline)
        if not self.queue.length % FRAME_JOBS and self.workers[0].fast:
            # The worker runs these while the loop still receives others: measured, up to half as much again.
            self._feed()
        elif not self._pump_due:
            self._pump_due = True
            # In the next turn of the loop: what other connections sent meanwhile travels in the same frame.
            self._clock.call_soon(self._pump)

    def no_worker(self, hint: str = "") -> NoWorker:
        """The error for a request that meets no worker."""
        return NoWorker(
            f'Model "{self.recipe.model}" has no worker to serve inference request. '
            "Please use scale workers API to add workers. If this is a sequence inference, please check if it is "
            "closed, or expired; or exceeds maxSequenceJobQueueSize",
            hint=hint,
        )

    def _broken_error(self) -> NoWorker:
        return NoWorker(
            f'Model "{self.recipe.model}" has no worker to serve inference request: its workers failed too often and '
            "are not started again.",
            hint="The server's log has the reason. Scale the model or register it again to retry.",
        )

    # -- scaling ------------------------------------------------------------------------------------------------------

    def scale(self, min_workers: int, max_workers: int) -> None:
        """Starts or stops workers so that their number lies between the bounds. Broken ones are replaced."""
        self.min_workers, self.max_workers = min_workers, max_workers
        for worker in [worker for worker in self.workers if worker.state is State.BROKEN]:
            self._remove(worker)
        while len(self.workers) < min_workers:
            self._add()
        while len(self.workers) > max_workers:
            self._remove(self.workers[-1])
        self._note_readiness()

    async def settle(self) -> None:
        """Waits until each worker has loaded.

        Raises:
            WorkerStartFailed: one of them failed.
        """
        futures = [self._settled[worker] for worker in self.workers if worker in self._settled]
        if futures:
            done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
            for future in done:
                future.result()

    def _add(self) -> None:
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
        self._recoveries[worker] = Recovery(self.recipe.retry_window)
        self._settled[worker] = asyncio.get_running_loop().create_future()
        self._settled[worker].add_done_callback(lambda future: future.exception())  # nobody needs to ask
        self._keepers[worker] = asyncio.create_task(self._keep(worker), name=worker.spec.name)
        self._keepers[worker].add_done_callback(self._keeper_ended)

    def _remove(self, worker: Worker) -> None:
        """Lets a worker finish what it has and go."""
        self.workers.remove(worker)
        worker.stopping = True
        sleeping = worker.state in (State.WAITING, State.BROKEN)  # it has no process and no jobs
        worker.move(Event.DRAIN)
        if not sleeping:
            worker.finish()
            self._clock.call_at(self._clock.time() + FINISH_GRACE, self._insist, worker)
            return
        worker.move(Event.GONE)
        self._keepers[worker].cancel()
        self._forget(worker)

    def _insist(self, worker: Worker) -> None:
        if worker.state is State.DRAINING:
            if worker.in_flight:  # it is working, not hanging; response_timeout bounds that
                self._clock.call_at(self._clock.time() + FINISH_GRACE, self._insist, worker)
            else:
                worker.kill("it did not go when asked to")

    # -- keeping alive ------------------------------------------------------------------------------------------------

    async def _keep(self, worker: Worker) -> None:
        """The life of one worker: start, serve until it dies, start again while recovery allows."""
        recovery = self._recoveries[worker]
        while True:
            try:
                await worker.start()
            except Death as death:
                worker.kill("it could not load")
                reason = death
                if worker.pid:
                    await worker.ended()
            else:
                again = RECOVERED if recovery.failing else ""
                recovery.loaded()
                seconds = self._clock.time() - worker.started_at
                log.info("%s is ready after %.2f s.%s", worker.spec.name, seconds, again)
                self._observer.loaded(self, worker, seconds)
                self._settle(worker, None)
                self._note_readiness()
                reason = await worker.ended()
            if worker.stopping:
                worker.move(Event.GONE)
                self._forget(worker)
                return
            if worker.answered:
                recovery.answered()
            again = "Auto recovery failed again" if recovery.failing else f"{RECOVERING}{time.time() * 1000:.0f}"
            delay = recovery.died() if reason.loaded else recovery.load_failed(self._clock.time())
            worker.move(Event.GAVE_UP if delay is None else Event.FAILED)
            self._settle(worker, self._start_failed(worker, reason))
            self._note_readiness()
            if delay is None:
                log.error("%s ended: %s. It failed too often and is not started again.", worker.spec.name, reason)
                return
            log.warning(
                "%s ended: %s. Worker disconnected. %s. Retry worker: %d in %g seconds.",
                *(worker.spec.name, reason, again, worker.id, delay),
            )
            await self._sleep(delay)
            worker.move(Event.RETRY)

    def _keeper_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s is lost: a defect of the server.", task.get_name(), exc_info=error)

    def _forget(self, worker: Worker) -> None:
        """The worker has stopped for good."""
        del self._keepers[worker], self._recoveries[worker]
        self._settle(worker, None)
        del self._settled[worker]
        self._observer.gone(self, worker)
        self._progressed.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleeps on the clock that was passed in."""
        if seconds <= 0:
            return
        woken = asyncio.get_running_loop().create_future()
        handle = self._clock.call_at(self._clock.time() + seconds, woken.set_result, None)
        try:
            await woken
        finally:
            handle.cancel()

    def _settle(self, worker: Worker, error: MarinerError | None) -> None:
        future = self._settled[worker]
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _start_failed(self, worker: Worker, death: Death) -> WorkerStartFailed:
        cause = death.message.replace(worker.load.model_dir, ".")  # clients learn no paths of this machine
        return WorkerStartFailed(
            f"Failed to start workers for model {self.recipe.model} version: {self.recipe.version}",
            out_of_memory=death.out_of_memory,
            hint=cause,
        )

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

    def _arm(self, deadline: float = math.inf) -> None:
        """Sets the timer for the next batch that falls due or the next deadline that passes.

        Args:
            deadline: of a job that need not be in the queue any more.
        """
        wake_at = min(self.queue.wake_at(), deadline)
        if self._without_worker_since is not None:
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
        if deadline < math.inf:
            self._arm(deadline)
        since = self._without_worker_since
        if since is not None and self._clock.time() >= since + self.recipe.response_timeout:
            self._refuse_waiting(self.no_worker())
        self._pump()

    def _note_readiness(self) -> None:
        """Remembers since when nobody could serve, so that what waits is not kept for ever."""
        if self.ready:
            self._without_worker_since = None
            return
        if self._without_worker_since is None:
            self._without_worker_since = self._clock.time()
        if self.broken:
            self._refuse_waiting(self._broken_error())
        elif self.queue:
            self._arm()

    def take_over(self, other: WorkerPool) -> None:
        """Serves what waits in another pool that has no worker to serve it."""
        if other.ready:
            return
        jobs = other.queue.remove_all()
        if jobs:
            self.queue.put_back(jobs)
            self._arm(min(job.deadline for job in jobs))
            self._feed()

    def _refuse_waiting(self, error: MarinerError) -> None:
        for job in self.queue.remove_all():
            job.end(error)

    # -- what workers tell --------------------------------------------------------------------------------------------

    def has_room(self, worker: Worker) -> None:
        """A worker can take more; see :class:`mariner.worker.Owner`."""
        if self.queue and not self._pump_due:
            self._pump_due = True
            self._clock.call_soon(self._pump)
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

    # -- going --------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> bool:
        """Takes nothing new, answers what waits, stops the workers.

        Returns:
            Whether everything was answered within ``timeout`` seconds; the rest is refused.
        """
        self.draining = True
        overdue = self._clock.call_at(self._clock.time() + timeout, self._give_up_draining)
        while self.queue or self.in_flight:
            self._progressed.clear()
            if not self.ready and not self.in_flight:
                self._refuse_waiting(self._stopped_error())  # nobody will come to serve it
            else:
                await self._progressed.wait()
        in_time = not self._overdue
        for worker in list(self.workers):
            self._remove(worker)
        while self._keepers:
            self._progressed.clear()
            await self._progressed.wait()
        overdue.cancel()
        if self._timer is not None:
            self._timer.cancel()
        return in_time

    def _give_up_draining(self) -> None:
        self._overdue = True
        self._refuse_waiting(self._stopped_error())
        for worker in self._keepers:
            worker.kill("it did not finish in time")
        self._progressed.set()

    def _stopped_error(self) -> Draining:
        return Draining(f'Model "{self.recipe.model}" was stopped before the turn of this request came.')
