"""Batching policies: which waiting jobs form the next batch, and which may wait at all.

Pure: no tasks, no sockets; the clock is passed in. A policy decides *when* a batch is due; the queue does the rest.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from typing import ClassVar

from mariner.errors import BadRequest, MarinerError, QueueFull
from mariner.jobs import Job, JobState
from mariner.overload import MARGIN
from mariner.refusals import waited_too_long

__all__ = ["POLICIES", "EagerQueue", "FillQueue", "JobQueue", "make_queue"]


class JobQueue(ABC):
    """Jobs that wait for a worker, first in first out.

    Args:
        model: how messages call the model.
        batch_size: most jobs in a batch.
        max_delay: most seconds a job waits for its batch to fill.
        capacity: most jobs that may wait; those that a worker has been handed but not begun count too.
        clock: the time in seconds.

    Attributes:
        ahead: jobs that workers have been handed but not begun; the workers keep it.
        crew: the workers that are ready, as the queue's owner knows them.
        job_type: what jobs of this queue are.
        may_risk: asked when the turn of suspects has come: whether a worker may be risked for them now. Until then they
            wait, and others overtake them.
        refusals: how many jobs were refused or gave up waiting, by reason; whoever refuses one counts it here.
    """

    job_type: ClassVar[type[Job]] = Job

    def __init__(
        self, model: str, *, batch_size: int, max_delay: float, capacity: int, clock: Callable[[], float]
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.max_delay = max_delay
        self.capacity = capacity
        self.ahead = 0
        self.crew: Callable[[], Collection[object]] = tuple
        self.may_risk: Callable[[], bool] = lambda: True
        self.refusals: Counter[str] = Counter()
        self._clock = clock
        self._jobs: deque[Job] = deque()
        self._earliest_deadline = math.inf  # of the jobs put since the last expire(); may be too early, never too late

    def __len__(self) -> int:
        """Jobs that wait, those whose client has gone excluded."""
        self._drop_ended()
        return len(self._jobs)

    def __bool__(self) -> bool:
        """Something may be waiting; cheap, and true also while only cancelled jobs are left."""
        return bool(self._jobs)

    @property
    def length(self) -> int:
        """Jobs in the queue, those whose client has gone included; cheap."""
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Lets a job wait.

        Raises:
            QueueFull: as many jobs wait as may.
        """
        if len(self._jobs) + self.ahead >= self.capacity:
            self._drop_ended()
            waiting = len(self._jobs) + self.ahead
            if waiting >= self.capacity:
                raise QueueFull(
                    f"{self.model} has its queue full: {waiting} requests wait, job_queue_size is {self.capacity}.",
                    hint="Retry later, add workers, or raise job_queue_size (jobQueueSize in the model config).",
                )
        self._jobs.append(job)
        self._earliest_deadline = min(self._earliest_deadline, job.deadline)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Returns jobs to the head, in their old order; never refused.

        Suspects come before the others, and after those that wait already: the smaller parts of a batch that killed
        its worker run after the larger ones, most of which are innocent.
        """
        returned = sorted(jobs, key=lambda job: job.suspicion is None)
        for job in returned:
            job.state = JobState.WAITING
            self._earliest_deadline = min(self._earliest_deadline, job.deadline)
        first = []
        while self._jobs and self._jobs[0].suspicion is not None:
            first.append(self._jobs.popleft())
        self._jobs.extendleft(reversed([*first, *returned]))

    def take(
        self,
        *,
        partial: bool = True,
        seconds: float = 0.0,
        worker: object = None,  # noqa: ARG002  (most queues are shared)
    ) -> list[Job]:
        """The next batch, or an empty list if none is due.

        Args:
            partial: whether a batch that is not full will do.
            seconds: what it will take, on average; jobs that have too little left are not begun, see :meth:`expire`.
            worker: who takes it.
        """
        if not self._jobs:
            return []
        if self._earliest_deadline < math.inf and self._earliest_deadline <= self._clock() + MARGIN * seconds:
            self.expire(MARGIN * seconds)
        batch: list[Job] = []
        while self._jobs and len(batch) < self.batch_size:
            job = self._jobs.popleft()
            if job.state is not JobState.WAITING:
                continue
            if job.alone:
                if not batch:
                    if job.suspicion is not None:
                        return self._take_suspects(job, partial=partial, seconds=seconds)
                    return [job]
                self._jobs.appendleft(job)  # what was collected goes now, this one next
                return batch
            batch.append(job)
        if len(batch) < self.batch_size and batch and not (partial and self.due(batch[0], self._clock())):
            self._jobs.extendleft(reversed(batch))
            return []
        return batch

    def _take_suspects(self, first: Job, *, partial: bool, seconds: float) -> list[Job]:
        """The job that was just taken and those under the same suspicion, or what waits behind all suspects."""
        risked = self.may_risk()
        group = [first]
        while self._jobs and (suspicion := self._jobs[0].suspicion) is not None:
            if risked and suspicion is not first.suspicion:
                break
            job = self._jobs.popleft()
            if job.state is JobState.WAITING:
                group.append(job)
        if risked:
            return group
        batch = self.take(partial=partial, seconds=seconds)
        self.put_back(group)
        return batch

    @abstractmethod
    def due(self, oldest: Job, now: float) -> bool:
        """Whether the jobs that wait, fewer than a batch, should go now."""

    def wake_at(self) -> float:
        """When to look again although nothing happens: a batch falls due or a deadline passes; infinity for never."""
        return self._earliest_deadline if self._jobs else math.inf

    def expire(self, seconds: float = 0.0) -> list[Job]:
        """Ends the jobs whose deadline has passed and returns them.

        Without this, an overloaded queue is full of jobs whose turn comes just in time to be answered too late, and
        all the work is in vain.

        Args:
            seconds: what running a job may take: jobs that have less left, and have waited for half of their time, end
                too, as long as others have more. If none has, they stay: an estimate alone must not keep a model from
                answering anything, and from being measured anew.
        """
        now = self._clock()
        waiting = [job for job in self._jobs if job.state is JobState.WAITING]
        kept = [job for job in waiting if job.deadline - now > min(seconds, (job.deadline - job.created) / 2)]
        if not kept and seconds:
            kept = [job for job in waiting if job.deadline > now]
        self._jobs = deque(kept)
        self._earliest_deadline = min((job.deadline for job in kept), default=math.inf)
        if len(kept) == len(waiting):
            return []
        staying = set(map(id, kept))
        expired = [job for job in waiting if id(job) not in staying]
        for job in expired:
            self.end(job, waited_too_long(self.model, job, now))
        return expired

    def end(self, job: Job, error: MarinerError) -> None:
        """Ends a job that was not begun, and counts it."""
        self.refusals[error.reason] += 1
        job.end(error)

    def remove_all(self) -> list[Job]:
        """Takes out every job that waits."""
        self._drop_ended()
        jobs = list(self._jobs)
        self._jobs.clear()
        self._earliest_deadline = math.inf
        return jobs

    def measured(self, size: int, seconds: float) -> None:  # noqa: B027  (most queues do not learn)
        """A worker has run a batch of ``size`` jobs, which took the handler so long."""

    def pinned(self, worker: object) -> int:  # noqa: ARG002
        """How many open sequences only this worker can serve."""
        return 0

    def forget(self, worker: object) -> None:  # noqa: B027  (most queues know no workers)
        """The process of a worker is gone, and what it kept in its memory."""

    def inherit(self, other: JobQueue) -> None:  # noqa: B027
        """This queue takes the place of another, whose workers go."""

    def oldest(self) -> Job | None:
        """The job that waits longest."""
        self._drop_ended()
        return self._jobs[0] if self._jobs else None

    def _drop_ended(self) -> None:
        if any(job.state is not JobState.WAITING for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if job.state is JobState.WAITING)


class EagerQueue(JobQueue):
    """An idle worker takes what is there: a lone request never waits (the default)."""

    def due(self, oldest: Job, now: float) -> bool:  # noqa: ARG002  (it never depends)
        """At once."""
        return True


class FillQueue(JobQueue):
    """A batch goes when it is full, or when its oldest job has waited ``max_delay``: TorchServe's rule."""

    def due(self, oldest: Job, now: float) -> bool:
        """After ``max_delay``."""
        return now >= oldest.created + self.max_delay

    def wake_at(self) -> float:
        """Also when the oldest job will have waited ``max_delay``; if it has, the next worker with room takes it."""
        self._drop_ended()
        oldest = next((job for job in self._jobs if job.suspicion is None), None)
        due = math.inf if oldest is None else oldest.created + self.max_delay
        return min(super().wake_at(), due) if due > self._clock() else super().wake_at()


POLICIES: dict[str, type[JobQueue]] = {"eager": EagerQueue, "fill": FillQueue}


def make_queue(
    policy: str, model: str, *, batch_size: int, max_delay: float, capacity: int, clock: Callable[[], float]
) -> JobQueue:
    """The queue of a model version.

    Raises:
        BadRequest: no policy has that name.
    """
    if policy not in POLICIES:
        raise BadRequest(f"{model}: batchingPolicy {policy!r} is unknown; choose one of {', '.join(POLICIES)}.")
    return POLICIES[policy](model, batch_size=batch_size, max_delay=max_delay, capacity=capacity, clock=clock)
