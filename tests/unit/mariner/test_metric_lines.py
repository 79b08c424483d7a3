"""Updates for logs: which of them the mode wants there, and the lines they become."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mariner.config import MetricsMode
from mariner.metrics import (
    METRICS,
    Definition,
    Kind,
    Metrics,
    Section,
    Update,
    format_line,
    load_definitions,
)
from mariner.metrics.lines import parse_system_line

TABLE = {row.name: row for row in METRICS}
MODEL = [("ModelName", "m"), ("Level", "Model")]


class Log:
    """Takes updates as lines without their times."""

    def __init__(self) -> None:
        self.updates: list[Update] = []

    @property
    def lines(self) -> list[str]:
        return [re.sub(r"timestamp:\d+$", "timestamp:T", format_line(update)) for update in self.updates]

    def in_mode(self, mode: MetricsMode, *, auto_detect: bool = False, file: Path | None = None) -> Metrics:
        definitions = load_definitions(file) if file else METRICS
        return Metrics(definitions, hostname="h", mode=mode, auto_detect=auto_detect, on_update=self.updates.append)


@pytest.fixture
def log() -> Log:
    return Log()


LATENCY_LINE = (
    "ts_inference_latency_microseconds.Microseconds:1990.348|#model_name:m,model_version:default"
    "|#hostname:h,timestamp:1717105307"
)

# -- the line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "value", "request_ids", "line"),
    [
        ("Requests2XX", ("Host", "h"), 1, "", "Requests2XX.Count:1.0|#Level:Host|#hostname:h,timestamp:1717105307"),
        (
            "ts_inference_latency_microseconds",
            ("m", "default", "h"),
            1990.348,
            "",
            LATENCY_LINE,
        ),
        (
            "WorkerLoadTime",
            ("W-9000-m_1.0", "Host", "h"),
            4802,
            "",
            "WorkerLoadTime.Milliseconds:4802.0|#WorkerName:W-9000-m_1.0,Level:Host|#hostname:h,timestamp:1717105307",
        ),
        (
            "GPUMemoryUsed",
            ("Host", "1", "h"),
            12345678.0,
            "",
            "GPUMemoryUsed.Megabytes:1.2345678E7|#Level:Host,DeviceId:1|#hostname:h,timestamp:1717105307",
        ),
        (
            "HandlerTime",
            ("m", "Model", "h"),
            1.5,
            "a,b",
            "HandlerTime.ms:1.5|#ModelName:m,Level:Model|#hostname:h,requestID:a,b,timestamp:1717105307",
        ),
        (
            "HandlerTime",
            ("m", "Model", "h"),
            1.5,
            "",
            "HandlerTime.ms:1.5|#ModelName:m,Level:Model|#hostname:h,requestID:null,timestamp:1717105307",
        ),
    ],
)
def test_an_update_is_written_as_torchserve_writes_it(
    name: str, labels: tuple[str, ...], value: float, request_ids: str, line: str
) -> None:
    assert format_line(Update(TABLE[name], labels, value, 1717105307.9, request_ids)) == line


def test_a_metric_without_other_labels_keeps_its_separators() -> None:
    row = Definition("Calls", Kind.COUNTER, "count", ("Hostname",), Section.MODEL)
    assert format_line(Update(row, ("h",), 2.0, 7.0)) == "Calls.count:2.0|#|#hostname:h,requestID:null,timestamp:7"


def test_a_metric_without_any_label_has_an_unknown_host() -> None:
    row = Definition("Calls", Kind.COUNTER, "count", (), Section.SERVER)
    assert format_line(Update(row, (), 2.0, 7.0)) == "Calls.count:2.0|#|#hostname:Unknown,timestamp:7"


def test_no_label_value_begins_a_line_of_its_own() -> None:
    row = Definition("Calls", Kind.COUNTER, "count", ("Word", "Hostname"), Section.SERVER)
    line = format_line(Update(row, ("a\nRequests5XX\x1b[2J", "h"), 1.0, 7.0))
    assert line == "Calls.count:1.0|#Word:a\\x0aRequests5XX\\x1b[2J|#hostname:h,timestamp:7"


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("CPUUtilization.Percent:5.0|#Level:Host|#hostname:h,1717105307", ("CPUUtilization", ("Host", "h"), 5.0)),
        (
            "GPUUtilization.Percent:7|#Level:Host,device_id:1|#hostname:h,1",
            ("GPUUtilization", ("Host", "1", "h"), 7.0),
        ),
        ("CPUUtilization.Percent:busy|#Level:Host|#hostname:h,1", None),
        ("CPUUtilization 5", None),
        ("", None),
    ],
)
def test_lines_about_the_machine_are_parsed(line: str, row: object) -> None:
    assert parse_system_line(line) == row


# -- which updates are told ------------------------------------------------------------------------------------------


def happen(metrics: Metrics) -> None:
    """One of everything."""
    metrics.worker_loaded("W-9000-m_1.0", 1.5)
    metrics.inference_requested("m", "default")
    metrics.worker_sample("PredictionTime", "Milliseconds", "gauge", 15.1, MODEL, "a,b")
    metrics.inference_finished("m", "default", 0.0309, 0.0107, 0.0151)
    metrics.requests_finished(200)
    metrics.sample_system([("CPUUtilization", (), 12.5)])


SERVER_LINES = [
    "WorkerLoadTime.Milliseconds:1500.0|#WorkerName:W-9000-m_1.0,Level:Host|#hostname:h,timestamp:T",
    "PredictionTime.ms:15.1|#ModelName:m,Level:Model|#hostname:h,requestID:a,b,timestamp:T",
    "QueueTime.Milliseconds:10.0|#Level:Host|#hostname:h,timestamp:T",
    "WorkerThreadTime.Milliseconds:5.0|#Level:Host|#hostname:h,timestamp:T",
    "Requests2XX.Count:1.0|#Level:Host|#hostname:h,timestamp:T",
    "CPUUtilization.Percent:12.5|#Level:Host|#hostname:h,timestamp:T",
]


def test_log_mode_tells_everything_in_order(log: Log) -> None:
    happen(log.in_mode(MetricsMode.LOG))
    assert [line.partition(".")[0] for line in log.lines] == [
        "WorkerLoadTime",
        "ts_inference_requests_total",
        "PredictionTime",
        "ts_inference_latency_microseconds",
        "ts_queue_latency_microseconds",
        "QueueTime",
        "WorkerThreadTime",
        "Requests2XX",
        "CPUUtilization",
    ]


def test_legacy_mode_tells_all_but_the_three_counters(log: Log) -> None:
    happen(log.in_mode(MetricsMode.LEGACY))
    assert log.lines == SERVER_LINES


def test_prometheus_mode_tells_nothing_of_each_request(log: Log) -> None:
    happen(log.in_mode(MetricsMode.PROMETHEUS))
    told = {update.definition.name for update in log.updates}
    happen(log.in_mode(MetricsMode.LOG))
    every = {update.definition.name for update in log.updates}
    assert told
    assert every - told >= {"Requests2XX", "ts_inference_requests_total", "ts_queue_latency_microseconds", "QueueTime"}


def test_each_update_of_a_counter_is_told_with_its_increment(log: Log) -> None:
    metrics = log.in_mode(MetricsMode.LOG)
    metrics.requests_finished(404)
    metrics.requests_finished(404)
    assert log.lines == 2 * ["Requests4XX.Count:1.0|#Level:Host|#hostname:h,timestamp:T"]


def test_an_undeclared_metric_is_told_only_where_it_is_detected(log: Log) -> None:
    for auto_detect in (False, True):
        log.in_mode(MetricsMode.LOG, auto_detect=auto_detect).worker_sample("Seen", "count", "counter", 2.0, MODEL, "a")
    assert log.lines == ["Seen.count:2.0|#ModelName:m,Level:Model|#hostname:h,requestID:a,timestamp:T"]


@pytest.mark.parametrize(
    ("name", "value", "dimensions"), [("HandlerTime", 1.0, []), ("HandlerTime", "fast", MODEL), ("Calls", -1.0, [])]
)
def test_an_update_that_is_dropped_is_not_told(
    log: Log, tmp_path: Path, name: str, value: float, dimensions: list[tuple[str, str]]
) -> None:
    path = tmp_path / "metrics.yaml"
    path.write_text(
        "model_metrics: {counter: [{name: Calls, unit: count, dimensions: }],"
        " gauge: [{name: HandlerTime, unit: ms, dimensions: [ModelName, Level]}]}"
    )
    log.in_mode(MetricsMode.LOG, file=path).worker_sample(name, "ms", "gauge", value, dimensions)
    assert log.updates == []


def test_a_metric_the_file_does_not_declare_is_not_told(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    path.write_text("ts_metrics: {counter: [{name: Requests2XX, unit: Count, dimensions: [Level, Hostname]}]}")
    happen(log.in_mode(MetricsMode.LOG, file=path))
    assert log.lines == ["Requests2XX.Count:1.0|#Level:Host|#hostname:h,timestamp:T"]


def test_a_retyped_prediction_time_is_told_once_and_by_the_worker(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "metrics.yaml"
    path.write_text("model_metrics: {histogram: [{name: PredictionTime, unit: ms, dimensions: [ModelName, Level]}]}")
    happen(log.in_mode(MetricsMode.LOG, file=path))
    assert log.lines == ["PredictionTime.ms:15.1|#ModelName:m,Level:Model|#hostname:h,requestID:a,b,timestamp:T"]


def test_a_printed_line_keeps_its_request_ids(log: Log) -> None:
    line = "[METRICS]HandlerTime.Milliseconds:1.5|#ModelName:m,Level:Model|#type:GAUGE|#hostname:x,1795169067,a,b"
    log.in_mode(MetricsMode.LOG).worker_line(line)
    assert log.lines == ["HandlerTime.ms:1.5|#ModelName:m,Level:Model|#hostname:h,requestID:a,b,timestamp:T"]


# -- queues ----------------------------------------------------------------------------------------------------------


def test_queues_are_asked_when_the_text_is_wanted_and_forgotten_when_they_are_gone() -> None:
    metrics = Metrics(hostname="h")
    queues = [("m", "1.0", 3, {"queue_full": 2, "deadline": 1}), ("n", "2.0", 0, {})]
    metrics.watch_queues(lambda: queues)
    assert metrics.expose(["mariner_refusals_total"]).splitlines()[2:] == [
        'mariner_refusals_total{model_name="m",model_version="1.0",reason="queue_full",} 2.0',
        'mariner_refusals_total{model_name="m",model_version="1.0",reason="deadline",} 1.0',
    ]
    assert metrics.expose(["mariner_queue_depth"]).splitlines()[2:] == [
        'mariner_queue_depth{model_name="m",model_version="1.0",} 3.0',
        'mariner_queue_depth{model_name="n",model_version="2.0",} 0.0',
    ]
    queues.clear()
    assert metrics.expose(["mariner_queue_depth", "mariner_refusals_total"]) == ""
