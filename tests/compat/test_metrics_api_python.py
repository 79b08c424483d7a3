"""The checklist of the metrics that handlers emit: each test has the number of its item."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_serving import Client, put_model

from mariner.auth import Listener
from mariner.testing import running_server
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric
from ts.metrics.metric_cache_errors import (
    MetricsCacheIOError,
    MetricsCacheKeyError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.metrics.metric_encoder import MetricEncoder
from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.metrics_store import MetricsStore
from ts.metrics.unit import Units
from ts.service import emit_metrics
from ts.wire import Sample

RED = Dimension("Colour", "red")
MODEL = "ModelName:net,Level:Model"


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def metrics() -> MetricsCacheYamlImpl:
    """What ``context.metrics`` is, outside of a server."""
    cache = MetricsCacheYamlImpl(None)
    cache.model_name = "net"
    cache.set_request_ids({0: "a", 1: "b"})
    return cache


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The metrics that were emitted, without host and time."""
    emitted = [message for message in caplog.messages if "|#hostname:" in message]
    return [re.sub(r"\|#hostname:[^,]+,\d+", "", line).removeprefix("[METRICS]") for line in emitted]


def read_file(folder: Path, text: str) -> MetricsCacheYamlImpl:
    (folder / "metrics.yaml").write_text(text)
    cache = MetricsCacheYamlImpl(str(folder / "metrics.yaml"))
    cache.initialize_cache()
    return cache


# -- emitting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: m.add_metric("M", 7, "apples"), f"M.apples:7|#{MODEL}|#type:COUNTER,a,b"),
        (lambda m: m.add_counter("C", 1), f"C.Count:1|#{MODEL}|#type:COUNTER,a,b"),
        (lambda m: m.add_time("T", 1.5, None, "ms"), f"T.Milliseconds:1.5|#{MODEL}|#type:GAUGE,a,b"),
        (lambda m: m.add_time("T", 2), f"T.Milliseconds:2|#{MODEL}|#type:GAUGE,a,b"),
        (lambda m: m.add_size("S", 3, None, "kB"), f"S.Kilobytes:3|#{MODEL}|#type:GAUGE,a,b"),
        (lambda m: m.add_size("S", 3), f"S.Megabytes:3|#{MODEL}|#type:GAUGE,a,b"),
        (lambda m: m.add_percent("P", 50), f"P.Percent:50|#{MODEL}|#type:GAUGE,a,b"),
        (lambda m: m.add_error("E", 1), "E.unit:1|#Level:Error|#type:COUNTER"),
    ],
    ids=lambda value: value.partition(".")[0] if isinstance(value, str) else "",
)
def test_02_each_call_emits_its_line(
    metrics: MetricsCacheYamlImpl,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[MetricsCacheYamlImpl], None],
    line: str,
) -> None:
    call(metrics)
    assert lines(caplog) == [line]
    assert caplog.records[0].name == "ts.metrics.caching_metric"
    assert re.search(r"\|#hostname:[^,|]+,\d{10}(,a,b)?$", caplog.messages[0])


def test_03_dimensions_of_the_call_come_first_and_none_is_repeated(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.add_counter("A", 1, dimensions=[RED])
    metrics.add_counter("B", 1, dimensions=[Dimension("Level", "Mine"), RED])
    assert lines(caplog) == [
        f"A.Count:1|#Colour:red,{MODEL}|#type:COUNTER,a,b",
        "B.Count:1|#Level:Mine,Colour:red,ModelName:net|#type:COUNTER,a,b",
    ]


def test_04_an_update_without_a_request_is_an_error_and_leaves_no_trace(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.set_request_ids(None)
    metrics.add_counter("Early", 1)
    metrics.set_request_ids({0: "a"})
    metrics.add_counter("Late", 1)
    assert lines(caplog) == ["Early.Count:1|#Level:Error|#type:COUNTER", f"Late.Count:1|#{MODEL}|#type:COUNTER,a"]


@pytest.mark.parametrize(("idx", "ids"), [(0, "a"), (1, "b"), (None, "a,b"), (9, "a,b")])
def test_05_the_index_chooses_the_request(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture, idx: int | None, ids: str
) -> None:
    metrics.add_counter("A", 1, idx)
    assert lines(caplog) == [f"A.Count:1|#{MODEL}|#type:COUNTER,{ids}"]


def test_06_a_unit_that_does_not_exist_raises(metrics: MetricsCacheYamlImpl) -> None:
    with pytest.raises(MetricsCacheValueError, match=re.escape("should be one of ['ms', 's']")):
        metrics.add_time("T", 1, unit="min")
    with pytest.raises(ValueError, match=re.escape("is one of ['MB','kB', 'GB', 'B']")) as caught:
        metrics.add_size("S", 1, unit="TB")
    assert type(caught.value) is ValueError


def test_07_what_does_not_fit_is_logged_and_nothing_is_emitted(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.add_counter("N", -1)
    metrics.add_metric_to_cache("D", "count", ["Colour"])
    metrics.add_counter("D", 1)
    assert lines(caplog) == []
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [error.partition(" and dimensions: ")[0] for error in errors] == [
        "[METRICS]Failed to update metric with name:N",
        "[METRICS]Failed to update metric with name:D",
    ]
    assert " with value: -1: " in errors[0]


# -- metrics as objects ----------------------------------------------------------------------------------------------


def test_08_a_metric_can_be_had_by_name_and_type(metrics: MetricsCacheYamlImpl) -> None:
    added = metrics.add_metric_to_cache("G", "ms", metric_type=MetricTypes.GAUGE)
    assert metrics.get_metric("G", MetricTypes.GAUGE) is added
    with pytest.raises(MetricsCacheKeyError, match=r"Metric of type 'MetricTypes\.COUNTER' and name 'G'"):
        metrics.get_metric("G")
    with pytest.raises(MetricsCacheTypeError, match="`metric_name` must be a str"):
        metrics.get_metric(1)  # type: ignore[arg-type]
    with pytest.raises(MetricsCacheTypeError, match="`metric_type` must be a MetricTypes enum"):
        metrics.get_metric("G", "gauge")  # type: ignore[arg-type]


def test_09_registering_emits_nothing_and_replaces_with_a_warning(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    first = metrics.add_metric_to_cache(metric_name="A", unit="count", dimension_names=["Colour"])
    second = metrics.add_metric_to_cache(name="A", unit="ms")  # as the documentation has it
    assert metrics.get_metric("A") is second is not first
    assert lines(caplog) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith("Overriding existing key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2, 3, "x"), "`metric_name` must be a str"),
        (("A", 2, 3, "x"), "`unit` must be a str"),
        (("A", "ms", 3, "x"), "`metric_type` must be a MetricTypes enum"),
        (("A", "ms", 3, MetricTypes.GAUGE), "`dimension_names` should be a list of dimension name strings"),
    ],
)
def test_09_arguments_of_a_wrong_type_are_named_in_order(
    metrics: MetricsCacheYamlImpl, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(MetricsCacheTypeError) as caught:
        metrics.add_metric_to_cache(*arguments)
    assert str(caught.value) == message


def test_10_an_update_by_dimensions_replaces_their_names(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    metric = metrics.add_metric_to_cache("A", "count", ["Shape"])
    metric.update(1, "r", [RED])
    metric.add_or_update(2, ["blue"])
    assert lines(caplog) == ["A.Count:1|#Colour:red|#type:COUNTER,r", "A.Count:2|#Colour:blue|#type:COUNTER"]
    assert "Overriding existing dimensions" in caplog.text


# -- the metrics file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a: b: c", MetricsCachePyYamlError, "Error parsing file: "),
        ("ts_metrics: {}", MetricsCacheKeyError, "'model_metrics' key not found in yaml file: "),
        ("model_metrics:", MetricsCacheValueError, "Missing `model_metrics` specification"),
        ("model_metrics: {speed: []}", MetricsCacheKeyError, "Invalid metric type: speed"),
        ("model_metrics: {gauge: [{name: A, dimensions: []}]}", MetricsCacheKeyError, "cache spec: 'unit'"),
        ("model_metrics: {gauge: [{unit: ms, dimensions: []}]}", MetricsCacheKeyError, "cache spec: 'name'"),
        ("model_metrics: {gauge: [{name: A, unit: ms}]}", MetricsCacheKeyError, "cache spec: 'dimensions'"),
    ],
)
def test_11_a_file_that_is_wrong_raises(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_file(tmp_path, text)


def test_11_a_file_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(MetricsCacheIOError, match=r"Error reading file: .*No such file or directory"):
        MetricsCacheYamlImpl(str(tmp_path / "none.yaml")).initialize_cache()


def test_11_without_a_file_there_are_the_default_metrics() -> None:
    """In TorchServe, whose workers always get a file, None raises; ours may have none."""
    cache = MetricsCacheYamlImpl(None)
    cache.initialize_cache()
    assert cache.cache_keys() == ["gauge:HandlerTime", "gauge:PredictionTime"]


@pytest.mark.parametrize("dimensions", ["", "[]"])
def test_11_dimensions_may_be_empty(tmp_path: Path, dimensions: str) -> None:
    cache = read_file(tmp_path, f"model_metrics: {{counter: [{{name: A, unit: ms, dimensions: {dimensions}}}]}}")
    assert cache.get_metric("A").dimension_names == []


def test_11_of_equal_entries_the_last_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "{name: A, unit: ms, dimensions: []}, {name: A, unit: s, dimensions: []}"
    assert read_file(tmp_path, f"model_metrics: {{counter: [{rows}]}}").get_metric("A").unit == "Seconds"
    assert "Overriding existing key" in caplog.text


def test_12_the_latest_of_file_and_handler_wins(tmp_path: Path) -> None:
    cache = read_file(tmp_path, "model_metrics: {counter: [{name: A, unit: ms, dimensions: []}]}")
    cache.add_metric_to_cache("A", "apples")
    assert cache.get_metric("A").unit == "apples"
    cache.initialize_cache()
    assert cache.get_metric("A").unit == "Milliseconds"


# -- details ---------------------------------------------------------------------------------------------------------


def test_13_keys_are_listed_by_type_and_then_in_order(metrics: MetricsCacheYamlImpl) -> None:
    metrics.add_percent("P", 1)
    metrics.add_counter("B", 1)
    metrics.add_counter("A", 1)
    assert metrics.cache_keys() == ["counter:B", "counter:A", "gauge:P"]


def test_14_units_have_published_names() -> None:
    assert Units().units == {
        "ms": "Milliseconds",
        "s": "Seconds",
        "percent": "Percent",
        "count": "Count",
        "MB": "Megabytes",
        "GB": "Gigabytes",
        "kB": "Kilobytes",
        "B": "Bytes",
        "": "unit",
        None: "unit",
    }
    assert [CachingMetric("A", unit).unit for unit in ("apples", "")] == ["apples", "unit"]


def test_15_types_share_a_name(metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture) -> None:
    for kind in MetricTypes:
        metrics.add_metric("A", 1, "count", metric_type=kind)
    assert [line.partition("|#type:")[2] for line in lines(caplog)] == ["COUNTER,a,b", "GAUGE,a,b", "HISTOGRAM,a,b"]


def test_16_the_list_of_the_caller_stays_as_it_is(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    dimensions = [RED]
    for _ in range(2):
        metrics.add_counter("A", 1, None, dimensions)
    assert dimensions == [RED]
    assert lines(caplog) == 2 * [f"A.Count:1|#Colour:red,{MODEL}|#type:COUNTER,a,b"]


def test_17_odd_arguments_do_not_fail_the_request(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.add_counter("A", 1, None, None)
    metrics.add_error("E", "it broke")
    metrics.set_request_ids("loading")
    metrics.add_counter("L", 1, 0)
    assert lines(caplog) == [f"A.Count:1|#{MODEL}|#type:COUNTER,a,b", f"L.Count:1|#{MODEL}|#type:COUNTER,loading"]
    assert "Failed to update metric with name:E" in caplog.text


def test_18_unusual_values_and_names_are_sent_as_they_are(metrics: MetricsCacheYamlImpl) -> None:
    """What the page makes of them: ``test_a_sample_that_cannot_be_declared_is_logged_once`` of the server."""
    samples: list[Sample] = []
    metrics.sink = samples.append
    metrics.add_percent("with-dash", float("nan"), dimensions=[Dimension("Device", "cuda:0,1")])
    metrics.add_percent("large", 1e20)
    assert [(sample.name, repr(sample.value)) for sample in samples] == [("with-dash", "nan"), ("large", "1e+20")]
    assert samples[0].dimensions[0] == ("Device", "cuda:0,1")


# -- the first interface ---------------------------------------------------------------------------------------------


def test_19_the_store_keeps_first_values_and_emits_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    store = MetricsStore({0: "a", 1: "b"}, "net")
    store.add_time("T", 1, 1, "s", [RED])
    assert lines(caplog) == []
    store.add_time("T", 2, 1, "s", [RED])
    assert lines(caplog) == [f"T.Seconds:2|#Colour:red,{MODEL},b"]
    assert list(store.cache) == ["T-s-b-Colour:red-ModelName:net-Level:Model"]
    assert [metric.value for metric in store.store] == [1]
    with pytest.raises(ValueError, match=re.escape("the unit for a timed metric should be one of ['ms', 's']")):
        store.add_time("T", 1, unit="min")
    with pytest.raises(ValueError, match=re.escape("The unit for size based metric is one of ['MB','kB', 'GB', 'B']")):
        store.add_size("S", 1, unit="TB")


def test_20_metrics_have_a_text_a_dictionary_and_json() -> None:
    metric = Metric("T", 5, "ms", [RED], "a")
    assert str(metric) == f"T.Milliseconds:5|#Colour:red|#hostname:{metric.hostname},{metric.timestamp},a"
    fields = ["MetricName", "Value", "Unit", "Dimensions", "Timestamp", "HostName", "RequestId"]
    assert list(metric.to_dict()) == fields
    assert json.loads(json.dumps(metric, cls=MetricEncoder))["Dimensions"] == [{"Name": "Colour", "Value": "red"}]


@pytest.mark.parametrize(("given", "message"), [({"a": 1}, "[METRICS]a"), (["a", 1], "[METRICS]a"), ([], None)])
def test_21_old_metrics_may_be_a_dictionary_or_a_list(
    caplog: pytest.LogCaptureFixture, given: Any, message: str | None
) -> None:
    emit_metrics(given)
    assert (caplog.messages or [None])[0] == message


def test_23_a_percentage_may_have_its_unit_in_the_place_of_the_index(
    metrics: MetricsCacheYamlImpl, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.add_percent("G", 9, "percent", [RED])
    assert lines(caplog) == [f"G.Percent:9|#Colour:red,{MODEL}|#type:GAUGE,a,b"]


@pytest.mark.slow  # the first test that imports PyTorch waits for it
@pytest.mark.torch
def test_26_a_profiled_handler_emits_the_times_of_its_methods(tmp_path: Path) -> None:
    from ts.context import Context  # noqa: PLC0415 - beside what needs PyTorch
    from ts.torch_handler.base_handler import BaseHandler  # noqa: PLC0415 - as above

    samples: list[Sample] = []
    cache = MetricsCacheYamlImpl(None)
    cache.sink = samples.append
    cache.set_request_ids({0: "a"})
    handler = BaseHandler()
    handler.model = lambda values: values
    handler.initialized = True
    config = {"handler": {"profile": True}}
    context = Context("net", str(tmp_path), {}, 1, None, "0", metrics=cache, model_yaml_config=config)
    handler.context = context
    handler.device = "cpu"
    assert handler.postprocess(handler.inference(handler.preprocess([[1.0]]))) == [[1.0]]
    assert [(sample.name, sample.unit, sample.type) for sample in samples] == [
        ("ts_handler_preprocess", "Milliseconds", "gauge"),
        ("ts_handler_inference", "Milliseconds", "gauge"),
        ("ts_handler_postprocess", "Milliseconds", "gauge"),
    ]


# -- in a server -----------------------------------------------------------------------------------------------------

# What TorchServe's example of custom metrics calls, and a handler's way of losing its log.
CUSTOM = """
import logging
import os
import time

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

class Custom:
    def initialize(self, context):
        logging.disable(logging.CRITICAL)
        logging.getLogger().handlers.clear()
        metrics = context.metrics
        self.model_name = metrics.model_name
        self.requests = metrics.add_metric_to_cache(
            metric_name="InferenceRequestCount", unit="count", dimension_names=[], metric_type=MetricTypes.COUNTER
        )
        metrics.add_metric_to_cache(
            metric_name="PreprocessCallCount", unit="count", dimension_names=["ModelName"]
        )
        metrics.add_metric(
            name="InitializeCallCount", value=1, unit="count",
            dimensions=[Dimension(name="ModelName", value=context.model_name), Dimension(name="Level", value="Model")],
            metric_type=MetricTypes.COUNTER,
        )

    def handle(self, data, context):
        metrics = context.metrics
        self.requests.add_or_update(value=1, dimension_values=[])
        calls = metrics.get_metric(metric_name="PreprocessCallCount", metric_type=MetricTypes.COUNTER)
        calls.add_or_update(value=1, dimension_values=[context.model_name])
        size = metrics.get_metric(metric_name="RequestBatchSize", metric_type=MetricTypes.GAUGE)
        size.add_or_update(value=len(data), dimension_values=[context.model_name])
        metrics.add_size(name="SizeOfImage", value=1.5, idx=None, unit="kB")
        metrics.add_time(
            name="HandlerMethodTime", value=2.5, idx=None, unit="ms",
            dimensions=[Dimension(name="MethodName", value="preprocess")], metric_type=MetricTypes.GAUGE,
        )
        metrics.add_counter(name="PostprocessCallCount", value=1, idx=None, dimensions=[])
        metrics.add_percent(
            name="ExamplePercentMetric", value=50, idx=None, dimensions=[], metric_type=MetricTypes.HISTOGRAM
        )
        metrics.add_time("HandlerTime", 3.5, None, "ms")
        metrics.add_counter("Undeclared", 1)
        metrics.add_metric("Last", 1, "count", metric_type=MetricTypes.HISTOGRAM)
        return [f"{self.model_name} {os.getpid()}" for _ in data]
"""

PLAIN = """
import os

from ts.metrics.metric_type_enum import MetricTypes

def handle(data, context):
    if data is not None:
        context.metrics.add_time("HandlerTime", 3.5, None, "ms")
        context.metrics.add_counter("Undeclared", 1)
        context.metrics.add_metric("Last", 1, "count", metric_type=MetricTypes.HISTOGRAM)
        return [str(os.getpid()) for _ in data]
"""

DECLARED = """
dimensions: [&model "ModelName", &level "Level"]
ts_metrics:
model_metrics:
  counter:
    - {name: InferenceRequestCount, unit: count, dimensions: []}
    - {name: InitializeCallCount, unit: count, dimensions: [*model, *level]}
    - {name: PreprocessCallCount, unit: count, dimensions: [*model]}
    - {name: PostprocessCallCount, unit: count, dimensions: [*model, *level]}
  gauge:
    - {name: HandlerTime, unit: ms, dimensions: [*model, *level]}
    - {name: PredictionTime, unit: ms, dimensions: [*model, *level]}
    - {name: RequestBatchSize, unit: count, dimensions: [ModelName]}
    - {name: SizeOfImage, unit: kB, dimensions: [*model, *level]}
    - {name: HandlerMethodTime, unit: ms, dimensions: ["MethodName", *model, *level]}
  histogram:
    - {name: ExamplePercentMetric, unit: percent, dimensions: [*model, *level]}
    - {name: Last, unit: count, dimensions: [*model, *level]}
"""


@dataclass
class Served:
    """What three workers left behind: how many requests they answered, in which processes and words; the page."""

    requests: int
    answers: set[str]
    page: str

    def samples(self, name: str) -> dict[str, float]:
        found = re.findall(rf"^{name}\{{(.*)Hostname=\"[^\"]+\",\}} (\S+)$", self.page, re.MULTILINE)
        return {labels: float(value) for labels, value in found}


async def serve(folder: Path, handler: str, **settings: Any) -> Served:
    put_model(folder / "store", "custom", handler, "minWorkers: 3\nmaxWorkers: 3\n")
    answers: set[str] = set()
    requests = 0
    settings |= {"model_store": folder / "store", "load_models": ("custom",), "temp_dir": folder}
    async with running_server(**settings) as server, asyncio.timeout(60):
        await server.models.wait_until_ready()
        clients = [await Client.connect(server) for _ in range(3)]
        metrics = await Client.connect(server, Listener.METRICS)
        while len(answers) < 3:  # until each worker has had its share
            for answer in await asyncio.gather(*(client.ask("POST", "/predictions/custom") for client in clients)):
                answers.add(answer.body.decode())
                requests += 1
        served = Served(requests, answers, "")
        while sum(served.samples("Last_count").values()) < requests:
            served.page = (await metrics.ask("GET", "/metrics")).body.decode()
        for client in (*clients, metrics):
            await client.close()
    return served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("declared")
    (folder / "metrics.yaml").write_text(DECLARED)
    return asyncio.run(serve(folder, CUSTOM, metrics_config=folder / "metrics.yaml"))


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return asyncio.run(serve(tmp_path_factory.mktemp("detected"), PLAIN, model_metrics_auto_detect=True))


OF_MODEL = 'ModelName="custom",Level="Model",'


@pytest.mark.slow
def test_01_metrics_work_while_loading_and_predicting(served: Served) -> None:
    assert served.samples("InitializeCallCount") == {OF_MODEL: 3.0}
    assert served.samples("HandlerTime") == {OF_MODEL: 3.5}
    assert {answer.partition(" ")[0] for answer in served.answers} == {"custom"}


@pytest.mark.slow
def test_22_metrics_are_there_if_they_are_declared_or_detected(served: Served, detected: Served) -> None:
    assert served.samples("Undeclared") == {}
    assert detected.samples("Undeclared") == {OF_MODEL: detected.requests}
    for seen in (served, detected):
        assert list(seen.samples("HandlerTime")) == list(seen.samples("PredictionTime")) == [OF_MODEL]


@pytest.mark.slow
def test_24_metrics_survive_a_handler_that_turns_logging_off(served: Served) -> None:
    """The handler disables logging and removes the handlers of the root logger before its first metric."""
    assert served.samples("PostprocessCallCount") == {OF_MODEL: served.requests}


@pytest.mark.slow
def test_25_counters_of_three_workers_add_up(served: Served) -> None:
    assert len(served.answers) == 3
    assert served.samples("InferenceRequestCount") == {"": served.requests}


@pytest.mark.slow
def test_27_the_calls_of_the_example_give_its_metrics(served: Served) -> None:
    names = [
        *("InitializeCallCount", "PreprocessCallCount", "PostprocessCallCount", "RequestBatchSize", "SizeOfImage"),
        *("InferenceRequestCount", "HandlerMethodTime", "ExamplePercentMetric_sum"),
    ]
    assert {name: served.samples(name) for name in names} == {
        "InitializeCallCount": {OF_MODEL: 3.0},
        "PreprocessCallCount": {'ModelName="custom",': served.requests},
        "PostprocessCallCount": {OF_MODEL: served.requests},
        "RequestBatchSize": {'ModelName="custom",': 1.0},
        "SizeOfImage": {OF_MODEL: 1.5},
        "InferenceRequestCount": {"": served.requests},
        "HandlerMethodTime": {f'MethodName="preprocess",{OF_MODEL}': 2.5},
        "ExamplePercentMetric_sum": {OF_MODEL: 50.0 * served.requests},
    }
