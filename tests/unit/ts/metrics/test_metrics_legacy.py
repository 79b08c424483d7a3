from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric
from ts.metrics.metric_encoder import MetricEncoder
from ts.metrics.metrics_store import MetricsStore


def test_the_first_value_is_kept_and_later_ones_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    store = MetricsStore({0: "a", 1: "b"}, "mnist")
    with caplog.at_level(logging.INFO):
        store.add_counter("N", 1)
        assert caplog.messages == []
        store.add_counter("N", 5)
    assert [metric.value for metric in store.store] == [1]
    assert caplog.messages[0].startswith("[METRICS]N.Count:5|#ModelName:mnist,Level:Model|#hostname:")
    assert caplog.messages[0].endswith(",a,b")


def test_keys_are_name_unit_request_and_dimensions() -> None:
    store = MetricsStore({0: "a", 1: "b"}, "mnist")
    store.add_time("T", 1, 1, "s", [Dimension("Colour", "red")])
    store.add_error("E", "it broke")
    assert list(store.cache) == [
        "T-s-b-Colour:red-ModelName:mnist-Level:Model",
        "E--None-Level:Error",
    ]
    assert store.store[1].value == "it broke"


def test_a_list_of_dimensions_can_be_used_again() -> None:
    store = MetricsStore("a", "mnist")
    dimensions = [Dimension("Colour", "red")]
    store.add_percent("P", 1, None, dimensions)
    store.add_percent("P", 1, None, dimensions)
    assert dimensions == [Dimension("Colour", "red")]
    assert len(store.store) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("add_time", {"unit": "min"}, "the unit for a timed metric should be one of ['ms', 's']"),
        ("add_size", {"unit": "TB"}, "The unit for size based metric is one of ['MB','kB', 'GB', 'B']"),
        ("add_counter", {"dimensions": "Colour"}, "Please provide a list of dimensions"),
    ],
)
def test_wrong_arguments_are_value_errors(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        getattr(MetricsStore("a", "mnist"), name)("N", 1, **arguments)
    assert str(caught.value) == message


def test_sizes_and_free_units_are_published_by_name() -> None:
    store = MetricsStore(None, "mnist")
    store.add_size("S", 1)
    store.add_metric("M", 1, "apples")
    assert [metric.unit for metric in store.store] == ["Megabytes", "apples"]


def test_a_metric_has_a_text_form() -> None:
    metric = Metric("T", 5, "ms", [Dimension("Level", "Host")], "a")
    assert str(metric) == f"T.Milliseconds:5|#Level:Host|#hostname:{metric.hostname},{metric.timestamp},a"


def test_a_metric_and_its_dimensions_become_json() -> None:
    metric = Metric("T", 5, "ms", [Dimension("Level", "Host")])
    decoded = json.loads(json.dumps([metric], cls=MetricEncoder))
    assert list(decoded[0]) == ["MetricName", "Value", "Unit", "Dimensions", "Timestamp", "HostName", "RequestId"]
    assert decoded[0]["Dimensions"] == [{"Name": "Level", "Value": "Host"}]
    with pytest.raises(TypeError):
        json.dumps(object(), cls=MetricEncoder)


def test_resetting_emits_zero(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Metric("T", 5, "ms", []).reset()
    assert caplog.messages[0].startswith("[METRICS]T.Milliseconds:0|#|")
