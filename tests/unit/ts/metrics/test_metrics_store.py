from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ts.metrics.caching_metric import CachingMetric
from ts.metrics.dimension import Dimension
from ts.metrics.metric_cache_errors import MetricsCacheKeyError, MetricsCacheTypeError, MetricsCacheValueError
from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.store import MetricsCacheYamlImpl
from ts.metrics.unit import Units
from ts.wire import Sample

MODEL = [("ModelName", "mnist"), ("Level", "Model")]


@pytest.fixture
def samples() -> list[Sample]:
    return []


@pytest.fixture
def metrics(samples: list[Sample]) -> MetricsCacheYamlImpl:
    cache = MetricsCacheYamlImpl(None)
    cache.sink = samples.append
    cache.model_name = "mnist"
    cache.set_request_ids({0: "a", 1: "b"})
    return cache


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m: m.add_counter("N", 2), Sample("N", "Count", "counter", 2, MODEL, "a,b")),
        (lambda m: m.add_time("T", 1.5, None, "ms"), Sample("T", "Milliseconds", "gauge", 1.5, MODEL, "a,b")),
        (lambda m: m.add_time("T", 3, unit="s"), Sample("T", "Seconds", "gauge", 3, MODEL, "a,b")),
        (lambda m: m.add_size("S", 4, None, "kB"), Sample("S", "Kilobytes", "gauge", 4, MODEL, "a,b")),
        (lambda m: m.add_percent("P", 50), Sample("P", "Percent", "gauge", 50, MODEL, "a,b")),
        (lambda m: m.add_error("E", 1), Sample("E", "unit", "counter", 1, [("Level", "Error")], "")),
        (lambda m: m.add_metric("M", 7, "apples"), Sample("M", "apples", "counter", 7, MODEL, "a,b")),
        (
            lambda m: m.add_metric("H", 7, "ms", metric_type=MetricTypes.HISTOGRAM),
            Sample("H", "Milliseconds", "histogram", 7, MODEL, "a,b"),
        ),
    ],
)
def test_each_call_emits_unit_type_and_default_dimensions(
    metrics: MetricsCacheYamlImpl,
    samples: list[Sample],
    call: Callable[[MetricsCacheYamlImpl], None],
    expected: Sample,
) -> None:
    call(metrics)
    assert samples == [expected]


def test_without_a_sink_an_update_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    cache = MetricsCacheYamlImpl(None)
    cache.model_name = "mnist"
    cache.set_request_ids({0: "a", 1: "b"})
    with caplog.at_level(logging.INFO):
        cache.add_time("HandlerTime", 1.5, None, "ms")
    (record,) = caplog.records
    line = record.getMessage()
    assert record.name == "ts.metrics.caching_metric"
    assert line.startswith("[METRICS]HandlerTime.Milliseconds:1.5|#ModelName:mnist,Level:Model|#type:GAUGE|#hostname:")
    assert line.endswith(",a,b")


def test_a_line_without_dimensions_or_request_keeps_its_separators(caplog: pytest.LogCaptureFixture) -> None:
    metric = CachingMetric("N", "count")
    with caplog.at_level(logging.INFO):
        metric.add_or_update(1)
    assert caplog.messages[0].startswith("[METRICS]N.Count:1|#|#type:COUNTER|#hostname:")
    assert caplog.messages[0].count(",") == 1


def test_given_dimensions_come_before_the_default_ones(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    metrics.add_counter("N", 1, dimensions=[Dimension("Colour", "red")])
    assert samples[0].dimensions == [("Colour", "red"), *MODEL]


def test_a_default_dimension_that_is_given_is_not_repeated(
    metrics: MetricsCacheYamlImpl, samples: list[Sample]
) -> None:
    metrics.add_counter("N", 1, dimensions=[Dimension("Level", "Mine")])
    assert samples[0].dimensions == [("Level", "Mine"), ("ModelName", "mnist")]


def test_without_a_request_only_the_error_level_is_added(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    metrics.set_request_ids(None)
    metrics.add_counter("Early", 1)
    metrics.set_request_ids({0: "a"})
    metrics.add_counter("Late", 1)
    assert [sample.dimensions for sample in samples] == [[("Level", "Error")], MODEL]


@pytest.mark.parametrize(
    ("request_ids", "idx", "expected"),
    [
        ({0: "a", 1: "b"}, 0, "a"),
        ({0: "a", 1: "b"}, None, "a,b"),
        ({0: "a", 1: "b"}, 9, "a,b"),
        ({0: "a", 1: "b"}, "percent", "a,b"),
        ("load", None, "load"),
        ("load", 0, "load"),
        (None, 0, ""),
    ],
)
def test_the_index_chooses_the_request_id(
    metrics: MetricsCacheYamlImpl, samples: list[Sample], request_ids: Any, idx: Any, expected: str
) -> None:
    metrics.set_request_ids(request_ids)
    metrics.add_counter("N", 1, idx)
    assert samples[0].request_ids == expected


def test_a_wrong_unit_of_time_is_refused(metrics: MetricsCacheYamlImpl) -> None:
    with pytest.raises(MetricsCacheValueError, match="the unit for a timed metric should be one of"):
        metrics.add_time("T", 1, unit="min")


def test_a_wrong_unit_of_size_is_a_plain_value_error(metrics: MetricsCacheYamlImpl) -> None:
    with pytest.raises(ValueError, match="The unit for size based metric is one of") as caught:
        metrics.add_size("S", 1, unit="TB")
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "text", None, 10**400])
def test_a_counter_that_cannot_grow_is_logged_and_not_emitted(
    metrics: MetricsCacheYamlImpl, samples: list[Sample], caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    metrics.add_counter("N", value)
    assert samples == []
    assert caplog.messages[0].startswith("[METRICS]Failed to update metric with name:N and dimensions: ")


def test_other_dimensions_than_registered_are_logged_and_not_emitted(
    metrics: MetricsCacheYamlImpl, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    metrics.add_metric_to_cache("N", "count", ["Colour"])
    metrics.add_counter("N", 1)
    assert samples == []
    assert "it has the dimensions ['Colour']" in caplog.messages[0]


@pytest.mark.parametrize(("value", "name"), [(math.nan, "nan"), (1e20, "big"), (math.inf, "in-finite.number")])
def test_unusual_gauges_are_emitted(
    metrics: MetricsCacheYamlImpl, samples: list[Sample], value: float, name: str
) -> None:
    metrics.add_percent(name, value, dimensions=[Dimension("Device", "cuda:0,1")])
    assert samples[0].name == name
    assert repr(samples[0].value) == repr(value)
    assert samples[0].dimensions[0] == ("Device", "cuda:0,1")


def test_a_value_of_a_dimension_becomes_text(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    metrics.add_counter("N", 1, dimensions=[Dimension("Device", 0)])
    assert samples[0].dimensions[0] == ("Device", "0")


def test_the_list_of_a_caller_is_not_changed(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    dimensions = [Dimension("Colour", "red")]
    metrics.add_counter("N", 1, dimensions=dimensions)
    metrics.add_counter("N", 1, dimensions=dimensions)
    assert dimensions == [Dimension("Colour", "red")]
    assert len(samples) == 2


def test_no_dimensions_may_be_written_as_none(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    metrics.add_metric("M", 1, "count", None, None)
    assert samples[0].dimensions == MODEL


def test_a_percentage_may_be_given_by_position(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    metrics.add_percent("G", 9, "percent", [Dimension("Colour", "red")])
    assert samples[0].dimensions[0] == ("Colour", "red")


def test_types_share_a_name(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    for kind in MetricTypes:
        metrics.add_metric("Same", 1, "count", metric_type=kind)
    assert [sample.type for sample in samples] == ["counter", "gauge", "histogram"]
    assert metrics.cache_keys() == ["counter:Same", "gauge:Same", "histogram:Same"]


def test_a_metric_can_be_had_and_updated(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    added = metrics.add_metric_to_cache("G", "MB", ["Colour"], MetricTypes.GAUGE)
    found = metrics.get_metric("G", MetricTypes.GAUGE)
    assert found is added
    assert isinstance(found, CachingMetric)
    assert samples == []
    found.add_or_update(3, ["red"], "a")
    assert samples == [Sample("G", "Megabytes", "gauge", 3, [("Colour", "red")], "a")]


def test_a_metric_that_is_not_there_is_a_key_error(metrics: MetricsCacheYamlImpl) -> None:
    with pytest.raises(MetricsCacheKeyError) as caught:
        metrics.get_metric("Missing", MetricTypes.GAUGE)
    assert isinstance(caught.value, KeyError)
    assert caught.value.args == ("Metric of type 'MetricTypes.GAUGE' and name 'Missing' doesn't exist",)


def test_a_metric_is_looked_for_by_name_and_type(metrics: MetricsCacheYamlImpl) -> None:
    wrong: Any = 1
    with pytest.raises(MetricsCacheTypeError, match="`metric_name` must be a str"):
        metrics.get_metric(wrong)
    with pytest.raises(MetricsCacheTypeError, match="`metric_type` must be a MetricTypes enum"):
        metrics.get_metric("N", wrong)


def test_registering_again_replaces_with_a_warning(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    first = metrics.add_metric_to_cache("N", "count")
    second = metrics.add_metric_to_cache("N", "ms", ["Colour"])
    assert metrics.get_metric("N") is second is not first
    assert caplog.messages[0].startswith("Overriding existing key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2, 3, 4), "`metric_name` must be a str"),
        (("N", 2, 3, 4), "`unit` must be a str"),
        (("N", "ms", 3, 4), "`metric_type` must be a MetricTypes enum"),
        (("N", "ms", "Level", MetricTypes.GAUGE), "`dimension_names` should be a list of dimension name strings"),
        (("N", "ms", [1], MetricTypes.GAUGE), "`dimension_names` should be a list of dimension name strings"),
    ],
)
def test_wrong_types_are_named_one_after_the_other(
    metrics: MetricsCacheYamlImpl, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(MetricsCacheTypeError) as caught:
        metrics.add_metric_to_cache(*arguments)
    assert str(caught.value) == message


def test_the_name_may_be_given_as_in_the_documentation(metrics: MetricsCacheYamlImpl) -> None:
    metrics.add_metric_to_cache(name="N", unit="count", dimension_names=["Colour"])
    assert metrics.get_metric("N").dimension_names == ["Colour"]


def test_the_first_meaning_of_add_metric_registers_only(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    metric = metrics.add_metric(metric_name="G", unit="ms", dimension_names=["Colour"], metric_type=MetricTypes.GAUGE)
    assert metric is metrics.get_metric("G", MetricTypes.GAUGE)
    assert samples == []


def test_update_replaces_the_dimensions(
    metrics: MetricsCacheYamlImpl, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    metric = metrics.add_metric_to_cache("N", "count", ["Colour"])
    metric.update(1, "a", [Dimension("Shape", "round"), Dimension("Size", "big")])
    metric.add_or_update(2, ["flat", "small"])
    assert [sample.dimensions for sample in samples] == [
        [("Shape", "round"), ("Size", "big")],
        [("Shape", "flat"), ("Size", "small")],
    ]
    assert "Overriding existing dimensions" in caplog.messages[0]


def test_a_sink_that_is_set_late_takes_the_updates_of_known_metrics(samples: list[Sample]) -> None:
    cache = MetricsCacheYamlImpl(None)
    metric = cache.add_metric_to_cache("N", "count")
    cache.sink = samples.append
    metric.add_or_update(1)
    assert len(samples) == 1


def test_updates_reach_the_sink_although_logging_is_off(metrics: MetricsCacheYamlImpl, samples: list[Sample]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        metrics.add_counter("N", 1)
    finally:
        logging.disable(logging.NOTSET)
    assert len(samples) == 1


@pytest.mark.parametrize(
    ("short", "published"),
    [
        ("ms", "Milliseconds"),
        ("s", "Seconds"),
        ("percent", "Percent"),
        ("count", "Count"),
        ("MB", "Megabytes"),
        ("GB", "Gigabytes"),
        ("kB", "Kilobytes"),
        ("B", "Bytes"),
        ("", "unit"),
        (None, "unit"),
    ],
)
def test_units_have_published_names(short: str | None, published: str) -> None:
    assert Units().units[short] == published
    assert CachingMetric("N", short).unit == published


def test_an_unknown_unit_stays_as_it_is() -> None:
    assert CachingMetric("N", "apples").unit == "apples"


def test_metrics_need_neither_torch_nor_psutil() -> None:
    code = "import sys, ts.metrics.store, ts.metrics.metrics_store; print({'torch', 'psutil'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
