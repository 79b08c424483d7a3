from __future__ import annotations

from pathlib import Path

import pytest

from ts.metrics.errors import (
    MetricsCacheIOError,
    MetricsCacheKeyError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.metrics.metric_type_enum import MetricTypes
from ts.wire import Sample

DEFINITIONS = """
dimensions: [&model "ModelName", &level "Level"]
mode: prometheus
ts_metrics:
  counter: [{name: Ignored, unit: Count, dimensions: []}]
model_metrics:
  counter:
    - {name: Calls, unit: count, dimensions: [*model, *level]}
    - {name: Bare, unit: count, dimensions: }
  gauge:
    - {name: HandlerTime, unit: ms, dimensions: [*model, *level]}
  histogram:
"""


def load(tmp_path: Path, text: str) -> MetricsCacheYamlImpl:
    path = tmp_path / "metrics.yaml"
    path.write_text(text, encoding="utf-8")
    cache = MetricsCacheYamlImpl(str(path))
    cache.initialize_cache()
    return cache


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_file_the_default_metrics_are_known(path: str | None) -> None:
    cache = MetricsCacheYamlImpl(path)
    cache.initialize_cache()
    assert cache.cache_keys() == ["gauge:HandlerTime", "gauge:PredictionTime"]
    assert cache.get_metric("HandlerTime", MetricTypes.GAUGE).dimension_names == ["ModelName", "Level"]


def test_the_model_metrics_of_a_file_are_registered(tmp_path: Path) -> None:
    cache = load(tmp_path, DEFINITIONS)
    assert cache.cache_keys() == ["counter:Calls", "counter:Bare", "gauge:HandlerTime"]
    assert cache.get_metric("Calls").dimension_names == ["ModelName", "Level"]
    assert cache.get_metric("Bare").dimension_names == []


def test_of_equal_entries_the_last_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "model_metrics: {counter: [{name: N, unit: ms, dimensions: []}, {name: N, unit: s, dimensions: []}]}"
    assert load(tmp_path, text).get_metric("N").unit == "Seconds"
    assert "Overriding existing key" in caplog.text


def test_the_latest_of_file_and_handler_wins(tmp_path: Path) -> None:
    cache = load(tmp_path, DEFINITIONS)
    cache.add_metric_to_cache("Calls", "apples")
    assert cache.get_metric("Calls").unit == "apples"
    cache.initialize_cache()
    assert cache.get_metric("Calls").unit == "Count"


def test_the_server_hears_of_a_declared_metric_under_its_declared_type(tmp_path: Path) -> None:
    cache = load(tmp_path, "model_metrics: {histogram: [{name: Took, unit: ms, dimensions: [ModelName, Level]}]}")
    samples: list[Sample] = []
    cache.sink = samples.append
    cache.model_name = "net"
    cache.set_request_ids("a")
    cache.add_time("Took", 1.5)
    cache.add_time("Other", 1.5)
    assert [(sample.name, sample.type) for sample in samples] == [("Took", "histogram"), ("Other", "gauge")]
    assert cache.cache_keys() == ["gauge:Took", "gauge:Other", "histogram:Took"]


def test_a_missing_file_is_an_io_error(tmp_path: Path) -> None:
    with pytest.raises(MetricsCacheIOError, match=r"Error reading file: .*No such file or directory"):
        MetricsCacheYamlImpl(str(tmp_path / "none.yaml")).initialize_cache()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a: b: c", MetricsCachePyYamlError, "Error parsing file"),
        ("just text", MetricsCacheKeyError, "'model_metrics' key not found in yaml file"),
        ("ts_metrics: {}", MetricsCacheKeyError, "'model_metrics' key not found in yaml file"),
        ("model_metrics:", MetricsCacheValueError, "Missing `model_metrics` specification"),
        ("model_metrics: [1]", MetricsCacheTypeError, "must map metric types"),
        ("model_metrics: {speed: []}", MetricsCacheKeyError, "Invalid metric type: speed"),
        ("model_metrics: {gauge: [1]}", MetricsCacheTypeError, "must be a list of metrics"),
        ("model_metrics: {gauge: [{name: N, dimensions: []}]}", MetricsCacheKeyError, "cache spec: 'unit'"),
        ("model_metrics: {gauge: [{name: N, unit: ms}]}", MetricsCacheKeyError, "cache spec: 'dimensions'"),
        ("model_metrics: {gauge: [{unit: ms, dimensions: []}]}", MetricsCacheKeyError, "cache spec: 'name'"),
        ("model_metrics: {gauge: [{name: 1, unit: ms, dimensions: []}]}", MetricsCacheTypeError, "`metric_name`"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(tmp_path, text)
