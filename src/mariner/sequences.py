"""Stateful sequences: requests with one id, served by the one worker that keeps their state in its memory.

Pure, as :mod:`mariner.batching` is: the clock is passed in. Nothing runs by itself: a sequence that has idled or lasted
too long is taken away when its id or its place is wanted.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mariner.batching import JobQueue
from mariner.errors import MarinerError, QueueFull, SequenceEnded, TooManySequences
from mariner.jobs import Job, JobState, Outcome, Reply, pack_headers, unpack_headers
from mariner.overload import MARGIN

__all__ = ["Rules", "Sequence", "SequenceJob", "SequenceQueue"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the sequences of a model. Times in seconds.

    Attributes:
        max_open: most sequences at a time.
        max_waiting: most requests of one sequence that wait; one more may run.
        max_idle: time without a request after which a sequence ends.
        max_life: time after which it ends anyway; infinity for never.
        side_by_side: a request may join while others of its sequence run, as in continuous batches; else it waits.
        id_header: header of requests that names the sequence.
        start_header: header of requests that says that it begins.
        end_header: header of requests that says that it ends, and of answers that lists the ids of those that do.
    """

    max_open: int = 1
    max_waiting: int = 1
    max_idle: float = math.inf
    max_life: float = math.inf
    side_by_side: bool = False
    id_header: str = "ts_request_sequence_id"
    start_header: str = "ts_request_sequence_start"
    end_header: str = "ts_request_sequence_end"


class Sequence:
    """One open sequence.

    Attributes:
        id: what requests call it.
        queue: where its jobs wait.
        ends: when it ends at the latest.
        worker: who keeps its state; None while nobody is ready.
        waiting: its jobs that wait.
        running: its jobs that the worker has.
        quiet_since: when its last job came or left.
        ending: a client has ended it; it goes when it is quiet.
    """

    __slots__ = ("ending", "ends", "id", "queue", "quiet_since", "running", "waiting", "worker")

    def __init__(self, id_: str, queue: SequenceQueue, *, now: float, ends: float) -> None:
        self.id = id_
        self.queue = queue
        self.ends = ends
        self.worker: object | None = None
        self.waiting = self.running = 0
        self.quiet_since = now
        self.ending = False

    @property
    def quiet(self) -> bool:
        """None of its jobs waits or runs."""
        return not self.waiting and not self.running


class SequenceJob(Job):
    """A job that belongs to a sequence and tells it of its own progress.

    Attributes:
        sequence: set when the job is queued.
        last: its client said that it ends the sequence.
        named: the server chose the id, so that the answer tells it.
    """

    __slots__ = ("last", "named", "sequence")

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sequence: Sequence | None = None
        self.last = self.named = False

    def piece(self, reply: Reply) -> None:
        """Delivers one piece of a streamed answer."""
        if self.sequence is not None:
            reply = self.sequence.queue.answered(self, reply)
        super().piece(reply)

    def end(self, outcome: Outcome) -> None:
        """Delivers the end, and lets the next job of the sequence run."""
        if self.sequence is not None and self.state is not JobState.ENDED:
            queue = self.sequence.queue
            if isinstance(outcome, Reply) and not outcome.failed:
                outcome = queue.answered(self, outcome)
            queue.left(self, outcome)
        super().end(outcome)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if self.sequence is not None and self.state is JobState.WAITING:
            self.sequence.queue.left(self)
        super().cancel()


class SequenceQueue(JobQueue):
    """Jobs of sequences, first in first out: a worker is given those of its own sequences alone.

    A new sequence goes to the ready worker with the fewest. A batch holds one job of a sequence at most. Jobs without a
    sequence, which ask a handler to describe itself, go to any worker.

    Args:
        model: how messages call the model.
        rules: what holds for sequences; they bound what waits of each.
        batch_size: most jobs in a batch.
        max_delay: most seconds a job waits for its batch to fill; 0 to hold nothing back.
        capacity: most jobs without a sequence that may wait.
        clock: the time in seconds.
        new_id: makes an id for a request without one.
    """

    job_type = SequenceJob

    def __init__(
        self,
        model: str,
        rules: Rules,
        *,
        batch_size: int,
        max_delay: float,
        capacity: int,
        clock: Callable[[], float],
        new_id: Callable[[], str] = lambda: f"ts-seq-{uuid.uuid4()}",
    ) -> None:
        super().__init__(model, batch_size=batch_size, max_delay=max_delay, capacity=capacity, clock=clock)
        self.rules = rules
        self._new_id = new_id
        self._sequences: OrderedDict[str, Sequence] = OrderedDict()  # the open ones, the longest without news first
        self._pins: Counter[object] = Counter()  # how many of them each worker has
        self._lost: dict[str, float] = {}  # ids whose state went with a worker, and until when they are refused

    # -- as other queues ----------------------------------------------------------------------------------------------

    def put(self, job: Job) -> None:
        """Lets a job wait; its sequence is opened if there is none of that id.

        Raises:
            TooManySequences: the sequence is new, and as many are open as may be.
            SequenceEnded: the worker that kept its state is gone, or it has lasted too long.
            QueueFull: as many requests of it wait as may.
        """
        if not isinstance(job, SequenceJob):
            super().put(job)
            return
        self._enter(job)
        self._jobs.append(job)
        self._earliest_deadline = min(self._earliest_deadline, job.deadline)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Returns jobs to the head, but for those whose sequence has ended; of another queue, with their sequences."""
        kept = []
        for job in jobs:
            if isinstance(job, SequenceJob) and (sequence := job.sequence) is not None:
                if sequence.queue is not self:
                    sequence.queue, sequence.worker = self, None
                    self._sequences[sequence.id] = sequence
                if self._sequences.get(sequence.id) is not sequence:
                    self.end(job, self._lost_error(sequence.id))
                    continue
                if job.state is JobState.RUNNING:
                    sequence.running -= 1
                    sequence.waiting += 1
            kept.append(job)
        super().put_back(kept)

    def take(self, *, partial: bool = True, seconds: float = 0.0, worker: object = None) -> list[Job]:
        """The next batch for a worker, or an empty list if none is due."""
        if not self._jobs:
            return []
        now = self._clock()
        if self._earliest_deadline <= now + MARGIN * seconds:
            self.expire(MARGIN * seconds)
        batch, full = self._collect(worker)
        if not batch or not (full or (partial and self.due(batch[0], now))):
            return []
        for job in batch:
            if isinstance(job, SequenceJob) and job.sequence is not None:
                job.sequence.waiting -= 1
                job.sequence.running += 1
        taken = set(batch)
        self._jobs = deque(job for job in self._jobs if job.state is JobState.WAITING and job not in taken)
        return batch

    def due(self, oldest: Job, now: float) -> bool:
        """After ``max_delay``."""
        return now >= oldest.created + self.max_delay

    def wake_at(self) -> float:
        """Also when a job has waited for ``max_delay``; one that has waited longer waits for its sequence."""
        wake_at = super().wake_at()
        if not self.max_delay:
            return wake_at
        now = self._clock()
        due = (job.created + self.max_delay for job in self._jobs if job.created + self.max_delay > now)
        return min(wake_at, min(due, default=math.inf))

    def pinned(self, worker: object) -> int:
        """How many open sequences a worker keeps."""
        self._remove_over(self._clock())
        return self._pins[worker]

    def forget(self, worker: object) -> None:
        """A worker is gone, and with it the state of its sequences: what waits and what comes later is refused."""
        self._remove_over(self._clock())
        gone = [sequence for sequence in self._sequences.values() if sequence.worker is worker]
        if gone:
            log.info("%s: %d open sequences ended with the worker that kept their state.", self.model, len(gone))
        self._lose(sequence.id for sequence in gone)
        for sequence in gone:
            self._close(sequence, self._lost_error(sequence.id))
        del self._pins[worker]

    def inherit(self, other: JobQueue) -> None:
        """Another queue is left: who continues one of its sequences here is told that its state is gone."""
        if isinstance(other, SequenceQueue):
            self._lose(other.kept())

    def kept(self) -> list[str]:
        """The ids of the sequences whose state a worker keeps."""
        self._remove_over(self._clock())
        return [sequence.id for sequence in self._sequences.values() if sequence.worker is not None]

    # -- what jobs tell -----------------------------------------------------------------------------------------------

    def answered(self, job: SequenceJob, reply: Reply) -> Reply:
        """Reads an answer, or a piece of one; returns it with the id of the sequence if the client does not know it."""
        assert job.sequence is not None
        headers = unpack_headers(reply.headers)
        for name, value in headers:
            if name.lower() == self.rules.end_header.lower():
                self._close_all(value)
        if job.named and all(name.lower() != self.rules.id_header.lower() for name, _ in headers):
            return reply._replace(headers=pack_headers([*headers, (self.rules.id_header, job.sequence.id)]))
        return reply

    def left(self, job: SequenceJob, outcome: Outcome | None = None) -> None:
        """A job waits and runs no more.

        Args:
            job: of one of the sequences.
            outcome: what it came to; None if its client went while it waited.
        """
        sequence = job.sequence
        assert sequence is not None
        if job.state is JobState.WAITING:
            sequence.waiting -= 1
        else:
            sequence.running -= 1
        self._note_news(sequence, self._clock())
        answered = isinstance(outcome, Reply) and not outcome.failed
        unknown = job.named and not (job.wanted and (answered or job.streaming))  # nobody can continue it
        sequence.ending |= answered and job.last
        if (unknown or sequence.ending) and sequence.quiet:
            self._close(sequence, self._ended_error(sequence.id))

    # -- sequences ----------------------------------------------------------------------------------------------------

    def _enter(self, job: SequenceJob) -> None:
        """Finds or opens the sequence of a job that arrives."""
        rules, now = self.rules, self._clock()
        found = {name.lower(): value for name, value in unpack_headers(job.request.headers)}
        id_ = found.get(rules.id_header.lower(), "")
        starts = _is_true(found.get(rules.start_header.lower()))
        sequence = self._find(id_, now, starts=starts) if id_ else None
        if sequence is None:
            sequence = self._open(id_ or self._new_id(), now)
        elif sequence.waiting >= rules.max_waiting:
            raise QueueFull(
                f"{self.model}: {sequence.waiting} requests of sequence {id_} wait, maxSequenceJobQueueSize is "
                f"{rules.max_waiting}.",
                hint="Wait for the answers to earlier requests of the sequence, or raise maxSequenceJobQueueSize.",
                retry_after=1.0,
            )
        if not id_:
            given = pack_headers([(rules.id_header, sequence.id), (rules.start_header, "true")])
            headers = b"\0".join(filter(None, (job.request.headers, given)))
            job.request = job.request._replace(headers=headers)
            job.named = True
        job.last = _is_true(found.get(rules.end_header.lower()))
        job.sequence = sequence
        sequence.waiting += 1
        sequence.ending &= not starts
        self._note_news(sequence, now)

    def _find(self, id_: str, now: float, *, starts: bool) -> Sequence | None:
        until = self._lost.get(id_)
        if until is not None:
            if now < until and not starts:
                raise self._lost_error(id_)
            del self._lost[id_]
        sequence = self._sequences.get(id_)
        if sequence is None:
            return None
        if self._is_over(sequence, now):
            self._remove(sequence)
            return None
        if now >= sequence.ends:  # and something of it still waits or runs
            raise SequenceEnded(
                f"{self.model}: sequence {id_} has lasted for {self.rules.max_life:g} s, which is all it may.",
                hint="Wait for the answers to its earlier requests and begin it anew, or raise sequenceTimeoutMSec.",
            )
        return sequence

    def _open(self, id_: str, now: float) -> Sequence:
        while self._sequences and self._is_over(oldest := next(iter(self._sequences.values())), now):
            self._remove(oldest)
        if len(self._sequences) >= self.rules.max_open:
            self._remove_over(now)  # also those that have lasted too long
        if len(self._sequences) >= self.rules.max_open:
            raise TooManySequences(
                f"{self.model} takes no further sequence: as many are open as maxNumSequence allows "
                f"({self.rules.max_open}).",
                hint="Retry when one of them has ended or idled for sequenceMaxIdleMSec, or raise maxNumSequence.",
                retry_after=1.0,
            )
        sequence = self._sequences[id_] = Sequence(id_, self, now=now, ends=now + self.rules.max_life)
        self._pin(sequence)
        return sequence

    def _pin(self, sequence: Sequence) -> None:
        sequence.worker = min(self.crew(), key=self._pins.__getitem__, default=None)
        if sequence.worker is not None:
            self._pins[sequence.worker] += 1

    def _note_news(self, sequence: Sequence, now: float) -> None:
        sequence.quiet_since = now
        if self._sequences.get(sequence.id) is sequence:
            self._sequences.move_to_end(sequence.id)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        if sequence.worker is not None:
            self._pins[sequence.worker] -= 1

    def _remove_over(self, now: float) -> None:
        for sequence in [sequence for sequence in self._sequences.values() if self._is_over(sequence, now)]:
            self._remove(sequence)

    def _lose(self, ids: Iterable[str]) -> None:
        """Remembers ids that are refused from now on, as long as their sequences could have idled."""
        now = self._clock()
        self._lost = {id_: until for id_, until in self._lost.items() if until > now}
        self._lost.update(dict.fromkeys(ids, now + self.rules.max_idle))

    def _is_over(self, sequence: Sequence, now: float) -> bool:
        return sequence.quiet and now >= min(sequence.ends, sequence.quiet_since + self.rules.max_idle)

    def _collect(self, worker: object) -> tuple[list[Job], bool]:
        """What the next batch of a worker would be, and whether it cannot grow."""
        batch: list[Job] = []
        met: set[Sequence] = set()
        for job in self._jobs:
            if job.state is not JobState.WAITING or not self._is_next(job, worker, met):
                continue
            if job.alone:
                return batch or [job], True
            batch.append(job)
            if len(batch) == self.batch_size:
                return batch, True
        return batch, False

    def _is_next(self, job: Job, worker: object, met: set[Sequence]) -> bool:
        if not isinstance(job, SequenceJob) or job.sequence is None:
            return True
        sequence = job.sequence
        if sequence.worker is None:
            self._pin(sequence)
        if sequence in met or sequence.worker is not worker:
            return False
        met.add(sequence)
        return self.rules.side_by_side or not sequence.running

    def _close_all(self, ids: str) -> None:
        for id_ in ids.split(";"):
            sequence = self._sequences.get(id_.strip())
            if sequence is not None:
                self._close(sequence, self._ended_error(sequence.id))

    def _close(self, sequence: Sequence, error: MarinerError) -> None:
        """Takes a sequence away and answers what waits of it."""
        if self._sequences.get(sequence.id) is not sequence:
            return
        self._remove(sequence)
        if not sequence.waiting:
            return
        mine = [job for job in self._jobs if isinstance(job, SequenceJob) and job.sequence is sequence]
        self._jobs = deque(job for job in self._jobs if job not in mine)
        for job in mine:
            self.end(job, error)

    def _ended_error(self, id_: str) -> SequenceEnded:
        return SequenceEnded(
            f"{self.model}: sequence {id_} was closed before the turn of this request came.",
            hint="Begin a new sequence; the handler or an earlier request has ended this one.",
        )

    def _lost_error(self, id_: str) -> SequenceEnded:
        return SequenceEnded(
            f"{self.model}: sequence {id_} has ended: the worker that kept its state is gone.",
            hint=f"Begin it anew: send its first request with the header {self.rules.start_header}: true.",
        )


def _is_true(text: str | None) -> bool:
    return text is not None and text.strip().lower() == "true"
