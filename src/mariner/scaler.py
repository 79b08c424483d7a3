"""Scaler: makes a pool larger and smaller as :mod:`mariner.autoscaling` decides, and says why."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from mariner.autoscaling import MAX_WORKERS, Demand, Idle, ScalingPolicy, Start, Stop
from mariner.batching import JobQueue
from mariner.clock import Clock
from mariner.lifecycle import State
from mariner.memory import Footprint, Room
from mariner.recipe import Recipe
from mariner.refusals import no_worker
from mariner.worker import Worker

__all__ = ["Decision", "Pool", "Scaler"]

log = logging.getLogger(__name__)

COMING = frozenset({State.STARTING, State.LOADING, State.WAITING})


class Pool(Protocol):
    """What it sees of the pool."""

    recipe: Recipe
    queue: JobQueue
    workers: list[Worker]
    min_workers: int
    max_workers: int
    draining: bool


class Decision(NamedTuple):
    """The latest decision, for people.

    Attributes:
        at: when, on the clock.
        text: what was done, or could not be.
        reason: why.
    """

    at: float
    text: str
    reason: str


class Scaler:
    """The automatic part of a pool's size.

    Args:
        pool: whose.
        clock: time.
        start: adds a worker to the pool.
        stop: lets one finish and go.
        wake: makes the pool call :meth:`tick` at that time, or earlier.

    Attributes:
        enabled: the version scales by itself.
        may_grow: it does, and is below its maximum; kept as a value because busy pools ask all the time.
        latest: the latest decision, None before the first.
        policy: decides.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        clock: Clock,
        start: Callable[[Start], object],
        stop: Callable[[Worker, Stop], object],
        wake: Callable[[float], object],
    ) -> None:
        timeout = pool.recipe.idle_timeout
        self.enabled = timeout is not None
        self.may_grow = False
        self.latest: Decision | None = None
        self.policy = ScalingPolicy(math.inf if timeout is None else timeout)
        self._pool = pool
        self._clock = clock
        self._start = start
        self._stop = stop
        self._wake = wake
        self._growing: asyncio.Task[None] | None = None
        self._cramped = False  # the log knows that no more workers fit

    @property
    def on_demand(self) -> bool:
        """The version needs no worker until a request comes, and gets one then."""
        return self.enabled and self._pool.min_workers == 0 < self._pool.max_workers

    def resized(self) -> None:
        """The bounds or the number of the workers have changed."""
        pool = self._pool
        limit = min(pool.max_workers, MAX_WORKERS)
        self.may_grow = self.enabled and not pool.draining and len(pool.workers) < limit
        if self.enabled and len(pool.workers) > pool.min_workers:
            self._wake(self._clock.time() + self.policy.patience)

    # -- more ---------------------------------------------------------------------------------------------------------

    def wake_up(self) -> None:
        """Starts the first worker, for a request that has come.

        Raises:
            NoWorker: the version does not do that.
        """
        if not self.may_grow:
            raise no_worker(self._pool.recipe.model)
        self._note("1 worker", "a request came and there was none")
        self._start(Start.FIRST_REQUEST)

    def start_with(self, count: int) -> None:
        """Has so many workers now, as far as the bounds allow, as the pool had whose place this one takes."""
        while len(self._pool.workers) < min(count, self._pool.max_workers):
            self._start(Start.BOUNDS)

    def look(self) -> None:
        """Asks whether what waits needs more workers. For a pool that may grow, while its workers have no room."""
        if self._growing is not None:
            return
        pool = self._pool
        states = [worker.state for worker in pool.workers]
        costs = [worker.cost for worker in pool.workers if worker.cost]
        lanes = max(1, pool.recipe.overlap)
        demand = Demand(
            batches=-(-pool.queue.length // pool.queue.batch_size),
            idle=sum(worker.idle for worker in pool.workers),
            ready=states.count(State.READY),
            coming=sum(state in COMING for state in states),
            free=min(pool.max_workers, MAX_WORKERS) - len(states),
            cost=sum(costs) / len(costs) / lanes if costs else 0.0,
        )
        growth = self.policy.grow(self._clock.time(), demand)
        if growth.workers:
            self._grow(growth.workers, growth.reason)
        elif growth.look_at < math.inf:
            self._wake(growth.look_at)

    def turned_away(self) -> None:
        """A request was refused because each worker is busy and none may wait."""
        coming = any(worker.state in COMING for worker in self._pool.workers)
        if self.may_grow and self._growing is None and not coming and self.policy.may_start(self._clock.time()):
            self._grow(1, "each worker is busy, and with useJobTicket no request waits")

    def _grow(self, wanted: int, reason: str) -> None:
        if self._pool.recipe.room is None:
            self._add(wanted, reason)
        else:
            self._growing = asyncio.create_task(self._add_what_fits(wanted, reason))
            self._growing.add_done_callback(self._grown)

    async def _add_what_fits(self, wanted: int, reason: str) -> None:
        pool = self._pool
        assert pool.recipe.room is not None
        ready = [Footprint(worker.pid, worker.load.gpu_id) for worker in pool.workers if worker.state is State.READY]
        coming = [worker.load.gpu_id for worker in pool.workers if worker.state in COMING]
        room = await pool.recipe.room(wanted, ready, coming)
        if room.workers < wanted:
            self._say_cramped(wanted - room.workers, room)
        else:
            self._cramped = False
        if room.workers and self.may_grow:
            self._add(min(room.workers, pool.max_workers - len(pool.workers)), reason)

    def _grown(self, task: asyncio.Task[None]) -> None:
        self._growing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.policy.failed(self._clock.time())
            log.error("%s could not be made larger: a defect of the server.", self._title, exc_info=error)

    def _add(self, count: int, reason: str) -> None:
        self._note(f"{count} more worker{'s' * (count > 1)}", reason, count)
        for _ in range(count):
            self._start(Start.WAITING_WORK)

    def _say_cramped(self, missing: int, room: Room) -> None:
        now = self._clock.time()
        self._wake(now + self.policy.no_room(now))
        text = f"{missing} wanted worker{'s' * (missing > 1)} not started"
        self.latest = Decision(now, text, room.reason)
        if not self._cramped:
            self._cramped = True
            log.warning("%s: %s: %s.", self._title, text, room.reason)

    def loaded(self, seconds: float) -> None:
        """A worker is ready, so many seconds after its start."""
        self.policy.loaded(seconds)
        self.resized()

    def lets_go(self, worker: Worker, why: Exception) -> bool:
        """Whether a worker that failed is given up because the others suffice."""
        pool = self._pool
        if not self.enabled or len(pool.workers) <= max(1, pool.min_workers):
            return False
        now = self._clock.time()
        pause = self.policy.failed(now)
        self._wake(now + pause)
        text = f"{worker.spec.name} was given up"
        self.latest = Decision(now, text, str(why))
        log.warning("%s: %s: %s. The next try is not before %g s.", self._title, text, why, pause)
        return True

    # -- fewer --------------------------------------------------------------------------------------------------------

    def tick(self) -> float:
        """Stops a worker that was idle for too long; returns when to call this again."""
        pool = self._pool
        if not self.enabled or pool.draining or len(pool.workers) <= pool.min_workers:
            return math.inf
        now = self._clock.time()
        if pool.queue:
            return now + self.policy.patience  # who is idle now will have work in a moment
        devices = Counter(worker.load.gpu_id for worker in pool.workers)
        idle = [
            Idle(worker.idle_since, devices[worker.load.gpu_id]) if worker.idle else None for worker in pool.workers
        ]
        ready = sum(worker.state is State.READY for worker in pool.workers)
        index, look_at = self.policy.shrink(now, idle, ready - pool.min_workers)
        if index is not None:
            worker = pool.workers[index]
            self._note(f"{worker.spec.name} stops", f"it had no work for {now - worker.idle_since:.1f} s", -1)
            self._stop(worker, Stop.IDLE)
        return look_at

    # -- both ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Starts nothing more."""
        self.may_grow = False
        if self._growing is not None:
            self._growing.cancel()

    @property
    def _title(self) -> str:
        return f"Model {self._pool.recipe.model} version {self._pool.recipe.version}"

    def _note(self, text: str, reason: str, change: int = 1) -> None:
        pool = self._pool
        self.latest = Decision(self._clock.time(), text, reason)
        log.info(
            "%s: %s, %d in all (%d to %d): %s.",
            *(self._title, text, len(pool.workers) + change, pool.min_workers, pool.max_workers, reason),
        )
