"""The counters: raised as things happen, turned into series when the text is wanted."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from mariner.config import MetricsMode
from mariner.metrics.definitions import (
    BUILT_IN,
    METRICS,
    OWN,
    PER_REQUEST,
    SIZE_BUCKETS,
    TIME_BUCKETS,
    Definition,
    Kind,
    Section,
    problem_of,
)
from mariner.metrics.exposition import Family, Histogram, LabelValues
from mariner.metrics.lines import Update, parse_line

__all__ = ["Metrics"]

logger = logging.getLogger(__name__)

Row = tuple[str, LabelValues, float]  # name, labels, value
_Inference = tuple[float, float, float, int]  # seconds from arrival to answer, in the queue, in the handler; batch size

_OBSERVED = 500  # inferences that go into the histograms together; what they have cost then is shared by many

_REQUESTS = ("Requests2XX", "Requests4XX", "Requests5XX")
_LEGACY = frozenset(
    ("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds")
)


class _ModelSeries:
    """What is counted for each inference of one model version."""

    __slots__ = ("batch_size", "handler", "latency", "observed", "queue", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.observed: list[_Inference] = []  # not in the histograms yet
        self.latency = Histogram(TIME_BUCKETS)
        self.queue = Histogram(TIME_BUCKETS)
        self.handler = Histogram(TIME_BUCKETS)
        self.batch_size = Histogram(SIZE_BUCKETS)

    def fold(self) -> None:
        """Puts what was observed into the histograms."""
        observed, self.observed = self.observed, []
        if observed:
            histograms = (self.latency, self.queue, self.handler, self.batch_size)
            for histogram, values in zip(histograms, zip(*observed, strict=True), strict=True):
                histogram.observe_all(values)


class Metrics:
    """Counts what the server does, takes samples from workers, and shows it all.

    Args:
        definitions: the metrics that exist; an update of any other is dropped.
        hostname: value of the ``Hostname`` label; this machine's name by default.
        mode: what :meth:`expose` shows, and what is left for ``on_update``.
        auto_detect: model metrics nobody declared are taken as they first come.
        on_update: takes single updates for logs, on the event loop: it must be quick and never raise. In the mode
            ``prometheus`` those of workers and of the machine alone, none for each request. Where it is None, nothing
            is spent on it.
    """

    def __init__(
        self,
        definitions: Iterable[Definition] = METRICS,
        *,
        hostname: str | None = None,
        mode: MetricsMode = MetricsMode.PROMETHEUS,
        auto_detect: bool = False,
        on_update: Callable[[Update], None] | None = None,
    ) -> None:
        self.mode = mode
        self._on_update = on_update
        self._on_each = None if mode is MetricsMode.PROMETHEUS else on_update
        self._unlogged = _LEGACY if mode is MetricsMode.LEGACY else frozenset[str]()
        self._hostname = hostname or socket.gethostname() or "Unknown"
        self._host: LabelValues = ("Host", self._hostname)
        self._auto_detect = auto_detect
        self._families = {row.name: Family(row) for row in definitions}
        for row in OWN:
            self._families.setdefault(row.name, Family(row))
        if auto_detect:
            self._families.setdefault("PredictionTime", Family(BUILT_IN["PredictionTime"]))
        # A metrics file may make a counter or gauge of the server something else, say a histogram. Those cannot be
        # derived from totals when the text is wanted; they are updated as things happen.
        self._retyped = {
            name
            for name, family in self._families.items()
            if name in BUILT_IN and family.definition.kind is not BUILT_IN[name].kind
        }
        self._each = bool(self._retyped) or self._on_each is not None  # totals do not suffice
        self._refused: set[str] = set()  # names of workers that were logged once
        self._responses = [0, 0, 0]
        self._models: dict[tuple[str, str], _ModelSeries] = {}
        self._handler_seconds: dict[str, float] = {}  # latest of each model
        self._latest: _Inference | None = None
        self._queues: Callable[[], Iterable[tuple[str, str, int, Mapping[str, int]]]] = lambda: ()
        self._workers: Callable[[], Iterable[tuple[str, str, int]]] = lambda: ()

    def watch_queues(self, queues: Callable[[], Iterable[tuple[str, str, int, Mapping[str, int]]]]) -> None:
        """Says whom to ask for queues when the text is wanted: model, version, requests that wait, refusals by reason.

        Refusals are counted from the registration of a version, and gone with it.
        """
        self._queues = queues

    def watch_workers(self, workers: Callable[[], Iterable[tuple[str, str, int]]]) -> None:
        """Says whom to ask for workers when the text is wanted: model, version, workers that are ready."""
        self._workers = workers

    def requests_finished(self, status: int) -> None:
        """An HTTP response went out, on any listener."""
        position = 0 if 200 <= status < 300 else 1 if 400 <= status < 500 else 2
        self._responses[position] += 1
        if self._each:
            self._update_each([(_REQUESTS[position], self._host, 1)])

    def inference_requested(self, model: str, version_label: str) -> None:
        """A known model was asked for an inference; whether it is refused later does not matter.

        Args:
            model: its name. Never call this with a name that was not found: clients could make series without end.
            version_label: the version the client named, or ``default``.
        """
        series = self._models.get((model, version_label)) or self._add_series(model, version_label)
        series.requests += 1
        if self._each:
            self._update_each([("ts_inference_requests_total", (model, version_label, self._hostname), 1)])

    def inference_finished(
        self,
        model: str,
        version_label: str,
        latency_seconds: float,
        queue_seconds: float,
        handler_seconds: float,
        batch_size: int = 1,
    ) -> None:
        """A worker's answer was delivered (the last piece, if streamed).

        Args:
            model: as in :meth:`inference_requested`.
            version_label: as in :meth:`inference_requested`.
            latency_seconds: from arrival to now.
            queue_seconds: from arrival to the hand-over to a worker.
            handler_seconds: what the handler took for the whole batch.
            batch_size: requests in that batch.
        """
        series = self._models.get((model, version_label)) or self._add_series(model, version_label)
        self._latest = observed = (latency_seconds, queue_seconds, handler_seconds, batch_size)
        series.observed.append(observed)
        if len(series.observed) >= _OBSERVED:
            series.fold()
        self._handler_seconds[model] = handler_seconds
        if self._each:
            labels = (model, version_label, self._hostname)
            self._update_each(
                [
                    ("ts_inference_latency_microseconds", labels, latency_seconds * 1e6),
                    ("ts_queue_latency_microseconds", labels, queue_seconds * 1e6),
                    *self._latest_gauges(),
                ]
            )
            if "PredictionTime" in self._retyped:  # where it goes into a log, workers send it with their request ids
                self._families["PredictionTime"].record(*self._prediction_time(model, handler_seconds))

    def worker_loaded(self, worker_name: str, seconds: float) -> None:
        """A worker (``W-9000-model_1.0``) has its model."""
        self.record("WorkerLoadTime", (worker_name, *self._host), int(seconds * 1e3))

    def worker_died(self, model: str, version: str, cause: str) -> None:
        """A worker of that version ended without having been asked to."""
        self.record("mariner_worker_deaths_total", (model, version, cause), 1)

    def worker_started(self, model: str, version: str, reason: str) -> None:
        """A worker was started."""
        self.record("mariner_worker_starts_total", (model, version, reason), 1)

    def worker_stopped(self, model: str, version: str, reason: str) -> None:
        """A worker was stopped on purpose."""
        self.record("mariner_worker_stops_total", (model, version, reason), 1)

    def worker_sample(
        self,
        name: str,
        unit: str,
        type_: str,
        value: float,
        dimensions: Sequence[tuple[str, str]],
        request_ids: str = "",
    ) -> None:
        """Takes a metric update from a worker, if it is declared or may be detected.

        Args:
            name: as the handler calls it.
            unit: used when the metric is detected.
            type_: ``counter``, ``gauge`` or ``histogram`` in any case; used when the metric is detected.
            value: increment of a counter, level of a gauge, one observation of a histogram.
            dimensions: names and values in order, without ``Hostname``.
            request_ids: the requests it belongs to, separated by commas; for logs.
        """
        family = self._families.get(name)
        if family is None or family.definition.section is not Section.MODEL:
            family = self._detect(name, unit, type_, dimensions)
        if family is None:
            return
        try:
            number = float(value)  # handlers emit what they like, and one text here would break the whole page
        except (TypeError, ValueError, OverflowError):
            self._refuse(name, f"{name} was given {value!r}, which is no number.")
        else:
            labels = (*(str(text) for _, text in dimensions), self._hostname)
            if family.record(labels, number) and self._on_update is not None:
                self._on_update(Update(family.definition, labels, number, time.time(), request_ids))

    def worker_line(self, line: str) -> bool:
        """Takes a line a worker printed; False if it is no metric and belongs into the log."""
        if not line.startswith(("[METRICS]", "INFO > [METRICS]")):
            return False
        sample = parse_line(line)
        if sample is None:
            logger.warning('Failed to parse metrics line: "%s".', line)
        else:
            self.worker_sample(*sample)
        return True

    def record(self, name: str, labels: LabelValues, value: float) -> None:
        """Updates a metric that is not on the way of a request; one that is not declared is dropped."""
        family = self._families.get(name)
        if family is not None and family.record(labels, value) and self._on_update is not None:
            self._on_update(Update(family.definition, labels, value, time.time()))

    def sample_system(self, samples: Iterable[tuple[str, LabelValues, float]]) -> None:
        """Records the state of the machine: name, labels between ``Level`` and ``Hostname``, value."""
        for name, labels, value in samples:
            self.record(name, ("Host", *labels, self._hostname), value)

    def expose(self, names: Collection[str] | None = None) -> str:
        """The metrics in Prometheus' text format 0.0.4.

        Args:
            names: samples to show (a histogram may be named whole); none given means all.
        """
        if self.mode is MetricsMode.LOG:
            return ""
        self._collect()
        lines: list[str] = []
        for name, family in self._families.items():
            if self.mode is MetricsMode.LEGACY and name not in _LEGACY:
                continue
            samples = [line for sample, line in family.samples() if not names or sample in names or name in names]
            if samples or not names:
                definition = family.definition
                help_text = definition.help.replace("\\", "\\\\").replace("\n", "\\n")
                lines += (f"# HELP {name} {help_text}", f"# TYPE {name} {definition.kind.value}", *samples)
        return "".join(f"{line}\n" for line in lines)

    def _add_series(self, model: str, version_label: str) -> _ModelSeries:
        series = self._models[model, version_label] = _ModelSeries()
        own = (series.latency, series.queue, series.handler, series.batch_size)
        for row, histogram in zip(PER_REQUEST, own, strict=True):
            self._families[row.name].histograms[model, version_label] = histogram
        return series

    def _update_each(self, rows: Iterable[Row]) -> None:
        """What cannot wait until somebody asks: metrics of another kind than ours, and updates for a log."""
        now, families, tell = time.time(), self._families, self._on_each
        for name, labels, value in rows:
            family = families.get(name)
            if family is None or not family.accepts(labels):
                continue
            if name in self._retyped:
                family.record(labels, value)
            if tell is not None and name not in self._unlogged:
                tell(Update(family.definition, labels, value, now))

    def _prediction_time(self, model: str, seconds: float) -> tuple[LabelValues, float]:
        return (model, "Model", self._hostname), round(seconds * 1e3, 2)

    def _latest_gauges(self) -> Iterator[Row]:
        if self._latest is not None:
            latency, queue, handler, _ = self._latest
            yield "QueueTime", self._host, int(queue * 1e3)
            yield "WorkerThreadTime", self._host, int(max(0.0, latency - queue - handler) * 1e3)

    def _totals(self) -> Iterator[Row]:
        """What was counted in plain numbers."""
        yield from ((name, self._host, count) for name, count in zip(_REQUESTS, self._responses, strict=True) if count)
        for (model, version_label), series in self._models.items():
            labels = (model, version_label, self._hostname)
            series.fold()
            if series.requests:
                yield "ts_inference_requests_total", labels, series.requests
            if any(series.latency.counts):
                yield "ts_inference_latency_microseconds", labels, series.latency.sum * 1e6
                yield "ts_queue_latency_microseconds", labels, series.queue.sum * 1e6
        yield from self._latest_gauges()
        for model, seconds in self._handler_seconds.items():
            yield "PredictionTime", *self._prediction_time(model, seconds)

    def _collect(self) -> None:
        waiting: dict[LabelValues, float] = {}
        refused: dict[LabelValues, float] = {}
        for model, version, depth, refusals in self._queues():
            waiting[model, version] = depth
            refused |= {(model, version, reason): count for reason, count in refusals.items()}
        self._families["mariner_queue_depth"].values = waiting
        self._families["mariner_refusals_total"].values = refused
        ready: dict[LabelValues, float] = {(model, name): count for model, name, count in self._workers()}
        self._families["mariner_workers"].values = ready
        for name, labels, value in self._totals():
            family = self._families.get(name)
            if family is not None and name not in self._retyped and family.accepts(labels):
                family.values[labels] = value

    def _detect(self, name: str, unit: str, type_: str, dimensions: Sequence[tuple[str, str]]) -> Family | None:
        """Declares a model metric that nobody declared, if that is allowed and possible."""
        if not self._auto_detect or name in self._refused:
            return None
        try:
            labels = (*(str(label) for label, _ in dimensions), "Hostname")
            definition = Definition(name, Kind(type_.lower()), unit, labels, Section.MODEL)
            problem = problem_of(definition, self._families)
        except ValueError:
            problem = f"{type_!r} is no type of metric."
        if problem:
            self._refuse(name, problem)
            return None
        logger.info("Registering auto detected backend metric: %s (%s, %s)", name, definition.kind.value, unit)
        family = self._families[name] = Family(definition)
        return family

    def _refuse(self, name: str, problem: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            logger.warning("A metric of a worker is dropped: %s", problem)
