"""What must hold while a server is being broken: a pure model, told what clients sent and saw.

``ALLOWED`` is the one table of what a request may come to and when; everything that is not in it is a violation.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["ALLOWED", "GRACE", "Fault", "Kind", "Model", "Seen", "Sent", "Violation"]

HISTORY = 50  # steps that a violation shows


class Kind(Enum):
    """What a request is, and so what may come of it."""

    PREDICT = "predict"
    HURRIED = "predict with a deadline, in a burst"
    PASSING = "predict on a model that comes and goes"
    RAISES = "poison: the handler raises"
    DEADLY = "poison: the process dies"
    REGISTER = "register"
    UNREGISTER = "unregister"
    SCALE = "scale"
    SET_DEFAULT = "set the default version"
    LOOK = "describe, metrics, ping"


class Fault(Enum):
    """What is done to the server."""

    WORKER_KILLED = "worker killed (-9)"
    TEMPLATE_KILLED = "warm template killed (-9)"
    WORKER_STOPPED = "worker stopped and continued"
    POISONED = "process ended by a request"
    DISK_FULL = "disk full"
    CLOCK_JUMPED = "wall clock jumped"
    CLIENTS_LEFT = "slow, half-closed, reset and vanished clients"
    HURRY = "burst of requests with deadlines"
    COMING_AND_GOING = "model registered and unregistered at once"
    SCALED = "scaled"
    WITHOUT_WORKERS = "scaled to no workers and back"
    DEFAULT_MOVED = "default version moved"


GRACE = 1.0  # seconds for which a fault may still show in answers after it is over


class Allowed(NamedTuple):
    """An answer that may come.

    Attributes:
        status: of the answer.
        reason: its ``reason`` member, "" where the body has none.
        kinds: of requests that may get it.
        during: one of these must be in progress, on the model that was asked; empty if it may come at any time.
    """

    status: int
    reason: str
    kinds: frozenset[Kind]
    during: frozenset[Fault] = frozenset()


def _of(*members: Any) -> frozenset[Any]:
    return frozenset(members)


_PREDICTIONS = _of(Kind.PREDICT, Kind.HURRIED, Kind.PASSING)
_DEATHS = _of(Fault.WORKER_KILLED, Fault.TEMPLATE_KILLED, Fault.POISONED)

ALLOWED = (
    Allowed(200, "", frozenset(Kind) - {Kind.RAISES, Kind.DEADLY}),
    # A death costs no request but the one that causes it: what ran beside it runs again.
    *(Allowed(500, reason, _of(Kind.DEADLY)) for reason in ("exit", "crash", "quarantined")),
    Allowed(503, "prediction_failed", _of(Kind.RAISES)),
    Allowed(408, "deadline_exceeded", _of(Kind.HURRIED)),
    Allowed(504, "deadline_exceeded", _of(Kind.HURRIED)),
    Allowed(503, "queue_full", _of(Kind.HURRIED)),
    Allowed(503, "deadline", _of(Kind.HURRIED)),  # refused at once: it could not be answered in time
    Allowed(
        503, "queue_full", _of(Kind.PREDICT, Kind.RAISES, Kind.DEADLY), _DEATHS | {Fault.HURRY, Fault.WORKER_STOPPED}
    ),
    Allowed(503, "no_worker", _of(Kind.PREDICT, Kind.RAISES, Kind.DEADLY), _of(Fault.WITHOUT_WORKERS)),
    # A model that comes and goes may be there or not.
    Allowed(404, "", _of(Kind.PASSING, Kind.UNREGISTER)),
    Allowed(503, "draining", _of(Kind.PASSING)),
    Allowed(409, "", _of(Kind.REGISTER)),
    Allowed(500, "", _of(Kind.REGISTER), _of(Fault.DISK_FULL)),
    Allowed(500, "worker_start_failed", _of(Kind.REGISTER, Kind.SCALE), _DEATHS | {Fault.DISK_FULL}),
)
_BY_KIND = {kind: [row for row in ALLOWED if kind in row.kinds] for kind in Kind}


class Sent(NamedTuple):
    """A request that a client sent whole.

    Attributes:
        number: unique.
        kind: what may come of it.
        model: that it asks; "" for none.
        at: seconds on the clock of the run.
        expected: the JSON values that a good answer may have; none if any will do.
    """

    number: int
    kind: Kind
    model: str
    at: float
    expected: tuple[Any, ...] = ()


class Seen(NamedTuple):
    """What a client saw of an answer.

    Attributes:
        at: seconds on the clock of the run.
        status: 0 if none came.
        body: of the answer.
        request_id: header ``x-request-id``.
        extra: bytes that followed the answer, to which nobody had asked.
        note: how the connection ended, if there is no answer.
    """

    at: float
    status: int
    body: bytes = b""
    request_id: str = ""
    extra: bytes = b""
    note: str = ""

    @property
    def value(self) -> Any:
        """The body as JSON; the text if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return self.body.decode("utf-8", "replace")

    @property
    def reason(self) -> str:
        """Machine-readable cause of an error; ``defect`` where the server owns up to one."""
        value = self.value
        if self.status < 400 or not isinstance(value, dict):
            return ""
        return "defect" if value.get("message") == "Internal server error." else str(value.get("reason", ""))


@dataclass(frozen=True)
class Violation:
    """Something that did not hold.

    Attributes:
        text: what.
        steps: the last ones before it.
    """

    text: str
    steps: tuple[str, ...]


@dataclass
class _Window:
    fault: Fault
    model: str  # "" for all
    begins: float
    ends: float


@dataclass
class Tally:
    """Answers that clients saw and those they may not have seen, as far as the server's counters tell them apart."""

    seen: Counter[str] = field(default_factory=Counter)  # by class: 2, 4, 5
    unseen: int = 0  # requests whose clients left: answered or not
    asked: Counter[str] = field(default_factory=Counter)  # inferences, by model
    perhaps: Counter[str] = field(default_factory=Counter)  # the same of clients that left


class Model:
    """What clients did and saw; says what did not hold."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.answers: Counter[tuple[Kind, int, str]] = Counter()
        self.faults: Counter[Fault] = Counter()
        self.tally = Tally()
        self.open: dict[int, Sent] = {}
        self._history: deque[str] = deque(maxlen=HISTORY)
        self._windows: list[_Window] = []
        self._ids: set[str] = set()
        self._number = 0

    # -- what happens -------------------------------------------------------------------------------------------------

    def step(self, text: str) -> None:
        """Remembers a step for the violations that may follow it."""
        self._history.append(text)

    def begin(self, fault: Fault, now: float, model: str = "") -> _Window:
        """A fault begins on a model, or on all of them; give the result to :meth:`end`."""
        self.faults[fault] += 1
        window = _Window(fault, model, now, float("inf"))
        self._windows.append(window)
        return window

    def end(self, window: _Window, now: float) -> None:
        """The fault is over; what it did may still show for a moment."""
        window.ends = now + GRACE

    def send(self, kind: Kind, model: str, now: float, expected: tuple[Any, ...] = ()) -> Sent:
        """A client begins to send a request."""
        self._number += 1
        sent = self.open[self._number] = Sent(self._number, kind, model, now, expected)
        return sent

    def leave(self, sent: Sent) -> None:
        """The client went without waiting: the server may have answered or not, but not to anybody else."""
        if self.open.pop(sent.number, None) is not None:
            self.tally.unseen += 1
            self.tally.perhaps[sent.model] += 1

    def see(self, sent: Sent, seen: Seen) -> None:
        """The client got its answer, or knows that none will come."""
        if self.open.pop(sent.number, None) is None:
            self.violate(f"{_title(sent)} was answered twice: {_shown(seen)}")
            return
        if not seen.status:
            self.tally.unseen += 1
            self.tally.perhaps[sent.model] += 1
            self.violate(f"{_title(sent)} got no answer: {seen.note}")
            return
        self.answers[sent.kind, seen.status, seen.reason] += 1
        self.tally.seen[str(seen.status)[0]] += 1
        if sent.kind in _PREDICTIONS | {Kind.RAISES, Kind.DEADLY} and seen.status != 404:
            self.tally.asked[sent.model] += 1
        for problem in self._problems(sent, seen):
            self.violate(f"{_title(sent)} {problem}: {_shown(seen)}")

    def violate(self, text: str) -> None:
        """Something else did not hold."""
        self.violations.append(Violation(text, tuple(self._history)))

    # -- what must hold -----------------------------------------------------------------------------------------------

    def _problems(self, sent: Sent, seen: Seen) -> Iterable[str]:
        if seen.extra:
            yield f"got more than one answer, then {seen.extra[:80]!r}"
        if seen.request_id in self._ids:
            yield f"got the id of another request, {seen.request_id!r}"
        self._ids.add(seen.request_id)
        if seen.status == 200 and sent.expected and seen.value not in sent.expected:
            yield f"got the wrong answer, expected {str(sent.expected)[:200]}"
        if not self._is_allowed(sent, seen):
            yield f"got what it must not get with {self._in_progress(sent, seen)}"

    def _is_allowed(self, sent: Sent, seen: Seen) -> bool:
        given, there = (seen.status, seen.reason), self._faults_of(sent, seen)
        return any(given == row[:2] and (not row.during or row.during & there) for row in _BY_KIND[sent.kind])

    def _faults_of(self, sent: Sent, seen: Seen) -> set[Fault]:
        """What was in progress between the request and its answer, on its model or on all."""
        return {
            window.fault
            for window in self._windows
            if window.model in {"", sent.model} and window.begins <= seen.at and sent.at <= window.ends
        }

    def _in_progress(self, sent: Sent, seen: Seen) -> str:
        return ", ".join(sorted(fault.value for fault in self._faults_of(sent, seen))) or "nothing wrong"

    def check_end(self, metrics: Mapping[str, float], models: Iterable[str]) -> None:
        """All clients are done: nothing is open, and the server counted what they saw.

        Args:
            metrics: samples by name with labels reduced to the model's name, ``name{model}``.
            models: those that were there all the time.
        """
        for sent in list(self.open.values()):
            self.violate(f"{_title(sent)} was never ended")
        classes = {"2": "Requests2XX", "4": "Requests4XX", "5": "Requests5XX"}
        total = 0.0
        for first, name in classes.items():
            counted, seen = metrics.get(name, 0.0), self.tally.seen[first]
            total += counted
            self._check_count(name, counted, seen, self.tally.unseen)
        self._check_count("responses in all", total, self.tally.seen.total(), self.tally.unseen)
        for model in models:
            counted = metrics.get(f"ts_inference_requests_total{{{model}}}", 0.0)
            name = f"ts_inference_requests_total of {model}"
            self._check_count(name, counted, self.tally.asked[model], self.tally.perhaps[model])
            if waiting := metrics.get(f"mariner_queue_depth{{{model}}}", 0.0):
                self.violate(f"{waiting:g} requests wait for {model}, and nobody waits for them")

    def _check_count(self, name: str, counted: float, seen: int, unseen: int) -> None:
        if not seen <= counted <= seen + unseen:
            more = f", and {unseen} clients did not wait" if unseen else ""
            self.violate(f"{name}: the server counted {counted:g}, clients saw {seen}{more}")


def _title(sent: Sent) -> str:
    return f"request {sent.number} ({sent.kind.value}{f', {sent.model}' if sent.model else ''})"


def _shown(seen: Seen) -> str:
    return f"{seen.status} {seen.reason} {seen.body[:200]!r}" if seen.status else seen.note
