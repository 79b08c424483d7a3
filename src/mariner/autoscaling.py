"""When the workers of a version become more and when fewer: values and times in, numbers and reasons out.

Pure: starts nothing, measures nothing, reads no clock. :mod:`mariner.scaler` does what is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = ["MAX_WORKERS", "NOTHING", "Demand", "Growth", "Idle", "ScalingPolicy", "Start", "Stop"]

MAX_WORKERS = 1024  # of one version; a typing error must not start a process for each of its digits
LONGEST_DOUBT = 0.5
"""Seconds after which work that does not become less is no blip, however long a start takes: with the start itself, a
pool is at its maximum within a second and the time to load."""

NO_ROOM_PAUSE = 5.0  # seconds before memory is measured again after another worker did not fit
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds after failed starts in a row, doubled each time
LEAST_PATIENCE = 0.1  # seconds; a worker that stops between two requests of one client helps nobody
STOPS_PER_TIMEOUT = 10  # surplus workers go at this rate, so that a load that comes back still finds some


class Start(Enum):
    """Why a worker was started."""

    BOUNDS = "bounds"  # the registration, the start of the server or a call wants so many
    WAITING_WORK = "waiting_work"
    FIRST_REQUEST = "first_request"  # there was none
    RESTART = "restart"  # its process ended
    RECYCLED = "recycled"  # it takes the place of one that has served long, or grown large


class Stop(Enum):
    """Why a worker was stopped."""

    BOUNDS = "bounds"
    IDLE = "idle"
    FAILED = "failed"  # it could not start, and the others do without it
    DRAINED = "drained"  # its version was unregistered, replaced, or the server stops


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits, and who is there for it.

    Attributes:
        batches: that wait for a worker; a part of one counts as one.
        idle: workers without work.
        ready: workers that have loaded, the idle ones included.
        coming: workers that start or will start again.
        free: workers that may still be added.
        cost: seconds that a worker takes for a batch; 0 before one has been measured.
    """

    batches: int
    idle: int
    ready: int
    coming: int
    free: int
    cost: float

    @property
    def seconds(self) -> float:
        """How long the workers that are ready take for what waits, if nothing is added."""
        return self.batches * self.cost / max(1, self.ready)


class Growth(NamedTuple):
    """How many workers to start now and why, and when to ask again though nothing else happens."""

    workers: int
    reason: str = ""
    look_at: float = math.inf


NOTHING = Growth(0)


class Idle(NamedTuple):
    """A worker without work.

    Attributes:
        since: when it gave its last answer, or had loaded.
        neighbours: workers of the version on the same device.
    """

    since: float
    neighbours: int = 0


class ScalingPolicy:
    """Decides for one version. A worker is started if that helps, and stopped if it has been idle for long.

    Args:
        idle_timeout: seconds without work after which a surplus worker stops.

    Attributes:
        pressed: work waits and no worker has been idle since it came; cheap to ask.
        start_seconds: what the latest start took, loading included.
    """

    def __init__(self, idle_timeout: float) -> None:
        self.idle_timeout = idle_timeout
        self.start_seconds = 0.0
        self.pressed = False
        self._since = 0.0  # of the pressure
        self._at_first = 0.0  # seconds of work that waited then
        self._pause = 0.0  # after the latest of failed starts in a row
        self._not_before = -math.inf  # another start
        self._next_stop = -math.inf

    # -- more ---------------------------------------------------------------------------------------------------------

    def grow(self, now: float, demand: Demand) -> Growth:
        """What waiting work asks for.

        A worker per batch that waits, if a start takes no longer than the workers would for all that waits. Otherwise
        it may be a blip: then only once the work has waited for as long as a start takes, or for
        :data:`LONGEST_DOUBT`, and has shrunk less than half as fast as it would have if nothing more had come.
        """
        if demand.idle or not demand.ready:  # nobody has shown yet that the model loads at all
            self.relieve()
            return NOTHING
        if not self.pressed:
            self.pressed, self._since, self._at_first = True, now, demand.seconds
        wanted = min(demand.free, demand.batches - demand.coming)
        if wanted <= 0:
            return NOTHING
        if now < self._not_before:
            return Growth(0, look_at=self._not_before)
        if demand.seconds >= self.start_seconds:
            return Growth(
                wanted, f"about {demand.seconds:.2f} s of work wait and a start takes {self.start_seconds:.2f} s"
            )
        return self._doubt(now, demand, wanted)

    def _doubt(self, now: float, demand: Demand, wanted: int) -> Growth:
        """It may be a blip, and not worth a start."""
        doubt = min(self.start_seconds, LONGEST_DOUBT)
        if now < self._since + doubt:
            return Growth(0, look_at=self._since + doubt)
        waited = now - self._since
        if demand.seconds > self._at_first - waited / 2:
            return Growth(wanted, f"work has waited for {waited:.2f} s and does not become less")
        return Growth(0, look_at=now + doubt)

    def may_start(self, now: float) -> bool:
        """Whether no earlier failure speaks against another start."""
        return now >= self._not_before

    def relieve(self) -> None:
        """A worker is idle and nothing waits: what comes next is a new story."""
        self.pressed = False

    def loaded(self, seconds: float) -> None:
        """A worker is ready, that long after its start; what waits is looked at anew."""
        self.start_seconds = seconds
        self._pause = 0.0
        self.relieve()

    def failed(self, now: float) -> float:
        """A surplus worker could not start; returns for how many seconds there will be no other try."""
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if self._pause else FIRST_PAUSE
        self._not_before = now + self._pause
        return self._pause

    def no_room(self, now: float) -> float:
        """Another worker does not fit into the memory; returns for how many seconds there will be no other try."""
        self._not_before = now + NO_ROOM_PAUSE
        return NO_ROOM_PAUSE

    # -- fewer --------------------------------------------------------------------------------------------------------

    @property
    def patience(self) -> float:
        """Seconds without work after which a surplus worker stops: not before it was idle for as long as a start took.

        So a load that comes and goes costs at most twice the time that it must.
        """
        return max(self.idle_timeout, self.start_seconds, LEAST_PATIENCE)

    def shrink(self, now: float, idle: Sequence[Idle | None], surplus: int) -> tuple[int | None, float]:
        """Which worker to stop, if any, and when to ask again.

        Args:
            now: the time.
            idle: of each worker, the oldest first; None for one that works or is not ready.
            surplus: how many of them may go.
        """
        if surplus <= 0:
            return None, math.inf
        patience, pause = self.patience, self.patience / STOPS_PER_TIMEOUT
        resting = {index: worker for index, worker in enumerate(idle) if worker is not None}
        if not resting:
            return None, now + patience
        # When a load ends, its workers become idle one after the other: a moment's difference is not to choose.
        last = min(worker.since for worker in resting.values()) + pause
        choice = [index for index, worker in resting.items() if worker.since <= last]
        index = max(choice, key=lambda index: (resting[index].neighbours, index))
        due = max(resting[index].since + patience, self._next_stop)
        if now < due:
            return None, due
        self._next_stop = now + pause
        return index, self._next_stop
