"""Life of a worker: its states, what moves it from one to the next, and when it is started again.

Pure: no process, no timer; the time is passed in. Nothing here knows what a worker does while it is ready.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["RESTART_DELAYS", "TRANSITIONS", "Event", "Phase", "Readiness", "Recovery", "State", "next_state"]


class State(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"  # the process is being created
    LOADING = "loading"  # the process runs and loads the model
    READY = "ready"
    WAITING = "waiting"  # it failed and will be started again
    DRAINING = "draining"  # it finishes what it has and takes nothing new
    STOPPED = "stopped"  # gone on purpose
    BROKEN = "broken"  # it failed too often; only a person or an API call starts it again


class Event(Enum):
    """What happens to a worker."""

    STARTED = "started"
    LOADED = "loaded"
    FAILED = "failed"  # it could not start or load, or died; another try will follow
    GAVE_UP = "gave up"  # it failed, and no other try will follow
    RETRY = "retry"
    DRAIN = "drain"
    GONE = "gone"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.STARTING: {
        Event.STARTED: State.LOADING,
        Event.FAILED: State.WAITING,
        Event.GAVE_UP: State.BROKEN,
        Event.DRAIN: State.DRAINING,
    },
    State.LOADING: {
        Event.LOADED: State.READY,
        Event.FAILED: State.WAITING,
        Event.GAVE_UP: State.BROKEN,
        Event.DRAIN: State.DRAINING,
    },
    State.READY: {
        Event.FAILED: State.WAITING,
        Event.GAVE_UP: State.BROKEN,
        Event.DRAIN: State.DRAINING,
    },
    State.WAITING: {Event.RETRY: State.STARTING, Event.DRAIN: State.DRAINING},
    State.DRAINING: {Event.GONE: State.STOPPED},
    State.BROKEN: {Event.RETRY: State.STARTING, Event.DRAIN: State.DRAINING},
    State.STOPPED: {},
}


def next_state(state: State, event: Event) -> State:
    """The state after ``event``.

    Raises:
        ValueError: the event cannot happen in that state; a defect of the caller.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise ValueError(f"A worker that is {state.value} cannot be {event.value}.") from None


class Readiness(Enum):
    """Whether the workers of a version, together, can answer."""

    UNLOADED = "unloaded"  # there are none
    LOADING = "loading"  # one is on its way, perhaps once more
    READY = "ready"
    DRAINING = "draining"  # what waits is answered, nothing new is taken
    BROKEN = "broken"  # none will come without help


class Phase(Enum):
    """Where the server is in its life."""

    STARTING = "starting"  # it answers for itself; which models there are, it does not know yet
    SERVING = "serving"
    STOPPING = "draining"


RESTART_DELAYS = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0, 144.0, 233.0, 377.0, 610.0, 987.0, 1597.0)
"""Seconds before each further start; TorchServe's schedule, which grows so that a crash loop cannot fill the logs."""

DEATHS_BEFORE_PARKING = 10  # in a row, without one good answer between them


class Recovery:
    """Decides whether and when a failed worker is started again.

    Args:
        window: seconds during which loading may fail without one success; 0 never starts a failed worker again.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._first_failure: float | None = None
        self._failures = 0
        self._deaths = 0
        self._accidents = 0  # deaths that nobody was suspected of
        self.failing = False  # it failed and has not loaded since

    def load_failed(self, now: float) -> float | None:
        """Seconds until the next start, or None to give up."""
        if self._first_failure is None:
            self._first_failure = now
        self._failures += 1
        self.failing = True
        if now - self._first_failure >= self._window:
            return None
        return RESTART_DELAYS[min(self._failures, len(RESTART_DELAYS)) - 1]

    def died(self, *, suspected: bool = False) -> float | None:
        """Seconds until the next start of a worker that had loaded, or None to give up.

        Args:
            suspected: it ran requests that had killed a worker before. They run once or twice more and then never
                again, and others wait: there is nothing to gain by waiting with them.
        """
        self._deaths += 1
        self._accidents += not suspected
        self.failing = True
        if self._deaths >= DEATHS_BEFORE_PARKING or not self._window:
            return None
        if suspected or self._accidents == 1:
            return 0.0  # one death is an accident: its model should not wait for it
        return RESTART_DELAYS[min(self._accidents - 1, len(RESTART_DELAYS)) - 1]

    def loaded(self) -> None:
        """The model loaded: earlier failures to load are history."""
        self._first_failure = None
        self._failures = 0
        self.failing = False

    def answered(self) -> None:
        """The worker gave a good answer: earlier deaths are history."""
        self._deaths = self._accidents = 0
