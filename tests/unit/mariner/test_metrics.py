from __future__ import annotations

import logging
import math
import timeit
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mariner.config import MetricsMode
from mariner.errors import ConfigurationError
from mariner.metrics import METRICS, Definition, Kind, Metrics, Section, load_definitions, parse_line
from mariner.metrics.exposition import format_value


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(hostname="h")


def samples(text: str) -> dict[str, str]:
    """Value of each sample line."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {sample: value for sample, _, value in lines}


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "metrics.yaml"
    path.write_text(text)
    return path


# -- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (200, "Requests2XX"),
        (299, "Requests2XX"),
        (400, "Requests4XX"),
        (404, "Requests4XX"),
        (100, "Requests5XX"),
        (302, "Requests5XX"),
        (503, "Requests5XX"),
        (600, "Requests5XX"),
    ],
)
def test_a_response_counts_in_the_class_of_its_status(metrics: Metrics, status: int, name: str) -> None:
    metrics.requests_finished(status)
    assert samples(metrics.expose()) == {f'{name}{{Level="Host",Hostname="h",}}': "1.0"}


def test_a_requested_inference_counts_before_it_is_answered(metrics: Metrics) -> None:
    metrics.inference_requested("m", "default")
    metrics.inference_requested("m", "default")
    metrics.inference_requested("m", "2.0")
    shown = samples(metrics.expose(["ts_inference_requests_total"]))
    assert shown == {
        'ts_inference_requests_total{model_name="m",model_version="default",hostname="h",}': "2.0",
        'ts_inference_requests_total{model_name="m",model_version="2.0",hostname="h",}': "1.0",
    }


def test_latencies_add_up_in_microseconds(metrics: Metrics) -> None:
    metrics.inference_finished("m", "1.0", 0.25, 0.125, 0.0625)
    metrics.inference_finished("m", "1.0", 0.25, 0.125, 0.0625)
    shown = samples(metrics.expose())
    labels = '{model_name="m",model_version="1.0",hostname="h",}'
    assert shown[f"ts_inference_latency_microseconds{labels}"] == "500000.0"
    assert shown[f"ts_queue_latency_microseconds{labels}"] == "250000.0"


def test_a_model_that_was_only_requested_shows_no_latency(metrics: Metrics) -> None:
    metrics.inference_requested("m", "default")
    assert metrics.expose(["ts_inference_latency_microseconds"]) == ""


def test_gauges_show_the_latest_inference_in_whole_milliseconds(metrics: Metrics) -> None:
    metrics.inference_finished("m", "default", 9.0, 9.0, 0.0)
    metrics.inference_finished("m", "default", 0.0309, 0.0107, 0.0151)
    shown = samples(metrics.expose())
    assert shown['QueueTime{Level="Host",Hostname="h",}'] == "10.0"
    assert shown['WorkerThreadTime{Level="Host",Hostname="h",}'] == "5.0"


def test_prediction_time_is_kept_per_model_with_two_decimals(metrics: Metrics) -> None:
    metrics.inference_finished("a", "default", 1.0, 0.0, 0.0123456)
    metrics.inference_finished("b", "default", 1.0, 0.0, 0.5)
    shown = samples(metrics.expose(["PredictionTime"]))
    assert shown == {
        'PredictionTime{ModelName="a",Level="Model",Hostname="h",}': "12.35",
        'PredictionTime{ModelName="b",Level="Model",Hostname="h",}': "500.0",
    }


def test_own_histograms_are_in_seconds_and_cumulative(metrics: Metrics) -> None:
    for seconds in (0.0004, 0.02, 500.0):
        metrics.inference_finished("m", "default", seconds, 0.0, 0.0, batch_size=3)
    shown = samples(metrics.expose(["mariner_request_latency_seconds", "mariner_batch_size_count"]))
    start = 'mariner_request_latency_seconds_bucket{model_name="m",model_version="default",le='
    assert shown[f'{start}"0.0005",}}'] == "1.0"
    assert shown[f'{start}"0.01",}}'] == "1.0"
    assert shown[f'{start}"0.025",}}'] == "2.0"
    assert shown[f'{start}"120.0",}}'] == "2.0"
    assert shown[f'{start}"+Inf",}}'] == "3.0"
    assert shown['mariner_request_latency_seconds_sum{model_name="m",model_version="default",}'] == "500.0204"
    assert shown['mariner_request_latency_seconds_count{model_name="m",model_version="default",}'] == "3.0"
    assert shown['mariner_batch_size_count{model_name="m",model_version="default",}'] == "3.0"


def test_an_observation_on_a_bound_belongs_to_that_bucket(metrics: Metrics) -> None:
    metrics.inference_finished("m", "default", 0.001, 0.0, 0.0)
    shown = samples(metrics.expose())
    start = 'mariner_request_latency_seconds_bucket{model_name="m",model_version="default",le='
    assert (shown[f'{start}"0.0005",}}'], shown[f'{start}"0.001",}}']) == ("0.0", "1.0")


def test_a_loaded_worker_has_its_own_series(metrics: Metrics) -> None:
    metrics.worker_loaded("W-9000-m_1.0", 1.2345)
    shown = samples(metrics.expose())
    assert shown == {'WorkerLoadTime{WorkerName="W-9000-m_1.0",Level="Host",Hostname="h",}': "1234.0"}


def test_the_state_of_the_machine_lies_between_level_and_hostname(metrics: Metrics) -> None:
    metrics.sample_system([("CPUUtilization", (), 12.5), ("GPUUtilization", ("1",), 99), ("Unheard", (), 1.0)])
    assert samples(metrics.expose()) == {
        'CPUUtilization{Level="Host",Hostname="h",}': "12.5",
        'GPUUtilization{Level="Host",DeviceId="1",Hostname="h",}': "99.0",
    }


def test_finishing_an_inference_costs_little(metrics: Metrics) -> None:
    calls = 2000
    runs = timeit.repeat(
        lambda: metrics.inference_finished("m", "default", 0.01, 0.001, 0.009, 4), number=calls, repeat=5
    )
    assert min(runs) / calls < 10e-6  # 0.7 µs on a quiet machine; the margin is for busy ones


# -- exposition ------------------------------------------------------------------------------------------------------


def test_the_table_has_torchserves_default_metrics() -> None:
    names = " ".join(row.name for row in METRICS if row.section is not Section.OWN)
    assert names == (
        "Requests2XX Requests4XX Requests5XX ts_inference_requests_total ts_inference_latency_microseconds "
        "ts_queue_latency_microseconds QueueTime WorkerThreadTime WorkerLoadTime CPUUtilization MemoryUsed "
        "MemoryAvailable MemoryUtilization DiskUsage DiskAvailable DiskUtilization GPUMemoryUtilization GPUMemoryUsed "
        "GPUUtilization HandlerTime PredictionTime"
    )


def test_every_row_of_the_table_says_what_it_is() -> None:
    assert [row.name for row in METRICS if not row.doc.endswith(".")] == []


def test_a_family_without_samples_prints_its_head_only_when_unfiltered(metrics: Metrics) -> None:
    head = (
        "# HELP Requests2XX Torchserve prometheus counter metric with unit: Count\n# TYPE Requests2XX counter\n"
        "# HELP Requests4XX "
    )
    assert metrics.expose().startswith(head)
    assert metrics.expose(["Requests2XX"]) == ""


def test_a_filtered_family_prints_head_and_samples(metrics: Metrics) -> None:
    metrics.requests_finished(200)
    metrics.requests_finished(404)
    assert metrics.expose({"Requests2XX"}) == (
        "# HELP Requests2XX Torchserve prometheus counter metric with unit: Count\n"
        "# TYPE Requests2XX counter\n"
        'Requests2XX{Level="Host",Hostname="h",} 1.0\n'
    )


def test_an_unknown_name_gives_an_empty_text(metrics: Metrics) -> None:
    metrics.requests_finished(200)
    assert metrics.expose(["Requests3XX"]) == ""


def test_no_names_mean_all(metrics: Metrics) -> None:
    assert metrics.expose([]) == metrics.expose()


def test_a_histogram_can_be_filtered_by_sample(metrics: Metrics) -> None:
    metrics.inference_finished("m", "default", 0.5, 0.0, 0.0)
    shown = samples(metrics.expose(["mariner_queue_seconds_sum"]))
    assert list(shown) == ['mariner_queue_seconds_sum{model_name="m",model_version="default",}']


def test_label_values_are_escaped(metrics: Metrics) -> None:
    metrics.worker_loaded('a"b\\c\nd', 0.0)
    assert 'WorkerName="a\\"b\\\\c\\nd",' in metrics.expose(["WorkerLoadTime"])


def test_log_mode_shows_nothing() -> None:
    metrics = Metrics(mode=MetricsMode.LOG)
    metrics.requests_finished(200)
    assert metrics.expose() == ""


def test_legacy_mode_shows_the_three_inference_counters() -> None:
    metrics = Metrics(hostname="h", mode=MetricsMode.LEGACY)
    metrics.requests_finished(200)
    metrics.inference_requested("m", "default")
    metrics.inference_finished("m", "default", 0.1, 0.1, 0.1)
    names = [sample.partition("{")[0] for sample in samples(metrics.expose())]
    assert names == [
        "ts_inference_requests_total",
        "ts_inference_latency_microseconds",
        "ts_queue_latency_microseconds",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0"),
        (3, "3.0"),
        (-2.5, "-2.5"),
        (0.001, "0.001"),
        (0.0005, "5.0E-4"),
        (9_999_999.0, "9999999.0"),
        (10_000_000.0, "1.0E7"),
        (12_345_678.9, "1.23456789E7"),
        (-1.5e300, "-1.5E300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_look_like_java_doubles(value: float, text: str) -> None:
    assert format_value(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_being_written(value: float) -> None:
    text = format_value(value)
    assert "." in text
    assert float(text) == value


# -- samples of workers ----------------------------------------------------------------------------------------------

MODEL = [("ModelName", "m"), ("Level", "Model")]


def test_a_declared_gauge_of_a_worker_gets_the_hostname(metrics: Metrics) -> None:
    metrics.worker_sample("HandlerTime", "Milliseconds", "GAUGE", 1.5, MODEL)
    metrics.worker_sample("HandlerTime", "Milliseconds", "GAUGE", 2.5, MODEL)
    assert samples(metrics.expose()) == {'HandlerTime{ModelName="m",Level="Model",Hostname="h",}': "2.5"}


def test_an_undeclared_sample_is_dropped_silently(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    metrics.worker_sample("Tokens", "count", "COUNTER", 1.0, MODEL)
    assert samples(metrics.expose()) == {}
    assert caplog.records == []


def test_an_undeclared_sample_is_detected_if_allowed() -> None:
    metrics = Metrics(hostname="h", auto_detect=True)
    for _ in range(2):
        metrics.worker_sample("Tokens", "count", "counter", 2.0, [("Kind", "in"), *MODEL])
    text = metrics.expose(["Tokens"])
    assert text == (
        "# HELP Tokens Torchserve prometheus counter metric with unit: count\n# TYPE Tokens counter\n"
        'Tokens{Kind="in",ModelName="m",Level="Model",Hostname="h",} 4.0\n'
    )


def test_the_first_sample_fixes_a_detected_metric(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(hostname="h", auto_detect=True)
    metrics.worker_sample("Tokens", "count", "COUNTER", 2.0, MODEL)
    metrics.worker_sample("Tokens", "count", "GAUGE", 3.0, MODEL)
    metrics.worker_sample("Tokens", "count", "COUNTER", 2.0, [])
    assert samples(metrics.expose(["Tokens"])) == {'Tokens{ModelName="m",Level="Model",Hostname="h",}': "5.0"}
    assert "Failed to update backend metric Tokens" in caplog.text


@pytest.mark.parametrize(
    ("name", "type_", "dimensions"),
    [
        ("to-kens", "COUNTER", MODEL),
        ("Tokens", "TIMER", MODEL),
        ("Tokens", "", MODEL),
        ("Tokens", "COUNTER", [("a b", "c")]),
        ("Tokens", "COUNTER", [("Hostname", "c")]),
        ("Requests2XX", "COUNTER", MODEL),
        ("mariner_batch_size", "HISTOGRAM", MODEL),
    ],
)
def test_a_sample_that_cannot_be_declared_is_logged_once(
    caplog: pytest.LogCaptureFixture, name: str, type_: str, dimensions: list[tuple[str, str]]
) -> None:
    metrics = Metrics(hostname="h", auto_detect=True)
    metrics.worker_sample(name, "count", type_, 1.0, dimensions)
    metrics.worker_sample(name, "count", type_, 1.0, dimensions)
    assert samples(metrics.expose()) == {}
    assert len(caplog.records) == 1


def test_a_sample_with_other_dimensions_is_dropped_and_logged_once(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        metrics.worker_sample("HandlerTime", "ms", "GAUGE", 1.0, [("ModelName", "m")])
    assert samples(metrics.expose()) == {}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_a_counter_never_goes_down(value: float) -> None:
    metrics = Metrics([Definition("Tokens", Kind.COUNTER, "count", ("Hostname",), Section.MODEL)], hostname="h")
    metrics.worker_sample("Tokens", "count", "COUNTER", 1.0, [])
    metrics.worker_sample("Tokens", "count", "COUNTER", value, [])
    assert samples(metrics.expose(["Tokens"])) == {'Tokens{Hostname="h",}': "1.0"}


def test_a_value_that_is_no_number_does_not_break_the_page(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    metrics.worker_sample("HandlerTime", "ms", "GAUGE", "fast", MODEL)  # type: ignore[arg-type]
    assert samples(metrics.expose()) == {}
    assert "'fast', which is no number" in caplog.text


def test_a_histogram_of_a_worker_has_the_default_buckets() -> None:
    metrics = Metrics([Definition("Size", Kind.HISTOGRAM, "kB", ("Hostname",), Section.MODEL)], hostname="h")
    for value in (0.005, 3.0, math.nan):
        metrics.worker_sample("Size", "kB", "HISTOGRAM", value, [])
    shown = samples(metrics.expose(["Size"]))
    bounds = [sample.partition('le="')[2].partition('"')[0] for sample in shown if "_bucket" in sample]
    assert " ".join(bounds) == "0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 +Inf"
    assert shown['Size_bucket{Hostname="h",le="0.005",}'] == "1.0"
    assert shown['Size_count{Hostname="h",}'] == "2.0"
    assert shown['Size_sum{Hostname="h",}'] == "3.005"


def test_a_printed_metric_is_taken(metrics: Metrics) -> None:
    line = "[METRICS]HandlerTime.Milliseconds:1.5|#ModelName:m,Level:Model|#type:GAUGE|#hostname:x,1795169067,a,b"
    assert metrics.worker_line(line)
    assert samples(metrics.expose()) == {'HandlerTime{ModelName="m",Level="Model",Hostname="h",}': "1.5"}


def test_other_lines_are_left_to_the_log(metrics: Metrics) -> None:
    assert not metrics.worker_line("Loading [METRICS] model")


def test_a_damaged_metric_line_is_reported(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    assert metrics.worker_line("[METRICS]HandlerTime")
    assert 'Failed to parse metrics line: "[METRICS]HandlerTime".' in caplog.text


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("[METRICS]A.b:1|#|#type:COUNTER|#hostname:h,1", ("A", "b", "COUNTER", 1.0, [], "")),
        ("INFO > [METRICS]A.b:1|#x:y|#hostname:h,1,r1,r2", ("A", "b", "", 1.0, [("x", "y")], "r1,r2")),
        ("[METRICS]A.b:1e-3|#d:cuda:0,x|#type:GAUGE|#hostname:h,1", ("A", "b", "GAUGE", 0.001, [("d", "cuda:0")], "")),
        ("[METRICS]A.b:fast|#|#type:GAUGE|#hostname:h,1", None),
        ("[METRICS]A.b:1|#x:y", None),
    ],
)
def test_metric_lines_are_parsed(line: str, sample: object) -> None:
    assert parse_line(line) == sample


# -- metrics file ----------------------------------------------------------------------------------------------------

GOOD = """
dimensions: [&host Level, &name ModelName]
ts_metrics:
  counter: [{name: Requests2XX, unit: Count, dimensions: [*host, Hostname]}]
  histogram: [{name: QueueTime, unit: Milliseconds, dimensions: [*host, Hostname]}]
model_metrics:
  gauge: [{name: PredictionTime, unit: ms, dimensions: [*name, *host]}]
  counter: [{name: Tokens, unit: count, dimensions: }]
"""


def test_a_metrics_file_declares_metrics_and_ours_stay(tmp_path: Path) -> None:
    rows = {row.name: row for row in load_definitions(write_yaml(tmp_path, GOOD))}
    assert rows["Requests2XX"].labels == ("Level", "Hostname")
    assert rows["PredictionTime"].labels == ("ModelName", "Level", "Hostname")
    assert rows["Tokens"] == Definition("Tokens", Kind.COUNTER, "count", ("Hostname",), Section.MODEL)
    assert "mariner_batch_size" in rows
    assert "Requests4XX" not in rows


def test_what_a_metrics_file_does_not_declare_is_not_recorded(tmp_path: Path) -> None:
    metrics = Metrics(load_definitions(write_yaml(tmp_path, GOOD)), hostname="h")
    metrics.requests_finished(404)
    metrics.inference_finished("m", "default", 0.1, 0.1, 0.1)
    assert "Requests4XX" not in metrics.expose()
    assert "ts_inference_latency_microseconds" not in metrics.expose()


def test_a_metrics_file_may_turn_a_gauge_into_a_histogram(tmp_path: Path) -> None:
    metrics = Metrics(load_definitions(write_yaml(tmp_path, GOOD)), hostname="h")
    metrics.inference_finished("m", "default", 1.0, 0.003, 0.5)
    metrics.inference_finished("m", "default", 1.0, 0.004, 0.5)
    shown = samples(metrics.expose(["QueueTime"]))
    assert shown['QueueTime_sum{Level="Host",Hostname="h",}'] == "7.0"
    assert shown['QueueTime_count{Level="Host",Hostname="h",}'] == "2.0"


def test_a_metrics_file_may_turn_counters_into_gauges(tmp_path: Path) -> None:
    text = "{ts_metrics: {gauge: [{name: Requests2XX, unit: Count, dimensions: [Level, Hostname]},"
    text += "{name: ts_inference_requests_total, unit: Count, dimensions: [a, b, Hostname]}]}}"
    metrics = Metrics(load_definitions(write_yaml(tmp_path, text)), hostname="h")
    for _ in range(2):
        metrics.requests_finished(200)
        metrics.inference_requested("m", "default")
    assert samples(metrics.expose(["Requests2XX", "ts_inference_requests_total"])) == {
        'Requests2XX{Level="Host",Hostname="h",}': "1.0",
        'ts_inference_requests_total{a="m",b="default",Hostname="h",}': "1.0",
    }


def test_a_server_metric_with_too_few_dimensions_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "ts_metrics: {counter: [{name: Requests2XX, unit: Count, dimensions: [Level]}]}"
    metrics = Metrics(load_definitions(write_yaml(tmp_path, text)), hostname="h")
    metrics.requests_finished(200)
    assert samples(metrics.expose() + metrics.expose()) == {}
    assert [record.message[:44] for record in caplog.records] == ["Failed to update frontend metric Requests2XX"]


def test_prediction_time_is_detected_where_the_file_does_not_declare_it(tmp_path: Path) -> None:
    rows = load_definitions(write_yaml(tmp_path, "model_metrics: {}"))
    metrics = Metrics(rows, hostname="h", auto_detect=True)
    metrics.inference_finished("m", "default", 1.0, 0.0, 0.5)
    assert list(samples(metrics.expose(["PredictionTime"]))) == [
        'PredictionTime{ModelName="m",Level="Model",Hostname="h",}'
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the file must be a mapping"),
        ("a: [", "while parsing"),
        ("mode: prometheus", "unknown key 'mode'"),
        ("ts_metrics: {timer: []}", "unknown key 'timer'"),
        ("ts_metrics: {counter: {name: a}}", "ts_metrics.counter must be a list"),
        ("ts_metrics: {counter: [{unit: a}]}", "Metric name cannot be empty."),
        ("ts_metrics: {counter: [{name: '', unit: a}]}", "Metric name cannot be empty."),
        ("model_metrics: {counter: [{name: a}]}", "Metric unit cannot be empty."),
        ("ts_metrics: {counter: [{name: a, unit: b, dimensions: c}]}", "the dimensions of a must be a list"),
        ("ts_metrics: {counter: [{name: a, unit: b, labels: []}]}", "unknown key 'labels'"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_file_of_another_shape_costs_its_metrics_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    rows = load_definitions(write_yaml(tmp_path, text))
    assert {row.section for row in rows} == {Section.OWN}
    assert caplog.messages[0].startswith("Failed to load metrics configuration: ")
    assert why in caplog.text


def test_a_missing_file_costs_its_metrics_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = load_definitions(tmp_path / "none.yaml")
    assert {row.section for row in rows} == {Section.OWN}
    assert "No such file" in caplog.text


BAD_ROWS = [
    ("[{name: a, unit: b}, {name: a, unit: b}]", "the metric a is declared twice"),
    ("[{name: mariner_batch_size, unit: b}]", "the metric mariner_batch_size is declared twice"),
    ("[{name: my-metric, unit: b}]", "'my-metric' is no metric name"),
    ("[{name: c, unit: b, dimensions: [a.b]}]", "'a.b' is no dimension name"),
    ("[{name: c, unit: b, dimensions: [le]}]", "'le' is no dimension name"),
    ("[{name: c, unit: b, dimensions: [x, x]}]", "c names a dimension twice"),
]


@pytest.mark.parametrize(("rows", "why"), BAD_ROWS)
def test_a_row_prometheus_cannot_take_stops_the_server(tmp_path: Path, rows: str, why: str) -> None:
    path = write_yaml(tmp_path, f"ts_metrics: {{counter: {rows}}}")
    with pytest.raises(ConfigurationError, match=f"Invalid configuration: .*{why}"):
        load_definitions(path)


@pytest.mark.parametrize(("rows", "why"), BAD_ROWS)
def test_a_lenient_server_leaves_such_a_row_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str, why: str
) -> None:
    text = f"{{ts_metrics: {{counter: {rows}}}, model_metrics: {{gauge: [{{name: Good, unit: b}}]}}}}"
    loaded = load_definitions(write_yaml(tmp_path, text), strict=False)
    assert loaded[-1].name == "Good"
    assert why in caplog.text
