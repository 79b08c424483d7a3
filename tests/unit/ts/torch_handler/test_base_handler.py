from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.metrics.metrics_store import MetricsStore
from ts.torch_handler import base_handler
from ts.torch_handler.base_handler import BaseHandler
from ts.wire import Sample

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]


class Explainer(BaseHandler):
    def get_insights(self, tensor_data: Any, inputs: Any, target: Any) -> list[Any]:
        return [(tensor_data, inputs, target)]

    def preprocess(self, data: Any) -> Any:
        return data


@pytest.fixture
def handler(make_context: MakeContext) -> BaseHandler:
    handler = BaseHandler()
    handler.initialize(make_context(None, "model.py"))
    return handler


@pytest.mark.parametrize(
    "name",
    [
        "IPEX_AVAILABLE",
        "ONNX_AVAILABLE",
        "PROFILER_AVAILABLE",
        "PT2_AVAILABLE",
        "PT230_AVAILABLE",
        "XLA_AVAILABLE",
        "ipex",
        "logger",
        "setup_ort_session",
    ],
)
def test_names_that_handlers_import_are_there(name: str) -> None:
    assert hasattr(base_handler, name)


def test_initialize_sets_what_handlers_read(make_context: MakeContext) -> None:
    context = make_context(None, "model.py", config={"minWorkers": 1}, mapping={"0": "cat"})
    handler = BaseHandler()
    handler.initialize(context)
    assert handler.initialized
    assert handler.manifest is context.manifest
    assert handler.mapping == {"0": "cat"}
    assert handler.model_yaml_config == {"minWorkers": 1}
    assert handler.map_location == "cpu"
    assert handler.get_device() == torch.device("cpu")


def test_a_subclass_that_skips_the_constructor_is_served(make_context: MakeContext) -> None:
    class Careless(BaseHandler):
        def __init__(self) -> None:
            self.mine = 1

    handler = Careless()
    handler.initialize(make_context(None, "model.py"))
    assert handler.handle([1.0], make_context()) == [1.0]


def test_a_subclass_may_load_by_itself(make_context: MakeContext) -> None:
    class Own(BaseHandler):
        def initialize(self, context: Any) -> None:
            self.device = torch.device("cpu")
            self.model = self._load_pickled_model(context.system_properties["model_dir"], "model.py", None)

    handler = Own()
    handler.initialize(make_context(None, "model.py"))
    assert handler.handle([1.0], make_context()) == [1.0]


def test_a_loader_that_is_replaced_is_used_and_its_model_does_not_train(make_context: MakeContext) -> None:
    class Own(BaseHandler):
        def _load_torchscript_model(self, model_pt_path: str) -> Any:
            model = torch.nn.Dropout()
            model.path = model_pt_path
            return model

    handler = Own()
    handler.initialize(make_context("double.pt"))
    assert handler.model.path == handler.model_pt_path
    assert not handler.model.training


def test_a_session_maker_that_is_replaced_gets_path_and_location(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_handler, "setup_ort_session", lambda *arguments: arguments)
    handler = BaseHandler()
    handler.initialize(make_context("model.onnx"))
    assert handler.model == (handler.model_pt_path, "cpu")


def test_the_gpu_of_the_worker_is_the_current_one_for_a_session(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(base_handler, "setup_ort_session", lambda *arguments: [*current, arguments[1]])
    context = make_context("model.onnx")
    context.system_properties["gpu_id"] = 1
    handler = BaseHandler()
    handler.initialize(context)
    assert handler.model == [torch.device("cuda:1"), "cuda"]


@pytest.mark.parametrize("step", ["preprocess", "inference", "postprocess"])
def test_one_step_can_be_replaced(make_context: MakeContext, step: str) -> None:
    def replacement(_self: Any, data: Any) -> Any:
        return {"preprocess": torch.ones(1), "inference": torch.ones(1), "postprocess": [1.0]}[step]

    handler = type("Own", (BaseHandler,), {step: replacement})()
    handler.initialize(make_context(None, "model.py"))
    assert handler.handle([7.0], make_context()) == [1.0]


def test_the_model_gets_further_arguments(handler: BaseHandler) -> None:
    handler.model = lambda values, offset, factor: values * factor + offset
    assert handler.inference(torch.ones(1), 1, factor=5).tolist() == [6]


def test_the_time_of_a_batch_is_emitted(handler: BaseHandler, make_context: MakeContext, samples: list[Sample]) -> None:
    handler.handle([1.0], make_context())
    (sample,) = samples
    assert (sample.name, sample.unit, sample.type, sample.request_ids) == ("HandlerTime", "Milliseconds", "gauge", "a")


def test_a_batch_that_fails_has_no_time(handler: BaseHandler, make_context: MakeContext, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="too many dimensions"):
        handler.handle(["text"], make_context())
    assert samples == []


def test_steps_are_timed_if_the_model_is_profiled(
    handler: BaseHandler, make_context: MakeContext, samples: list[Sample]
) -> None:
    handler.handle([1.0], make_context(config={"handler": {"profile": True}}))
    assert [sample.name for sample in samples] == [
        "ts_handler_preprocess",
        "ts_handler_inference",
        "ts_handler_postprocess",
        "HandlerTime",
    ]


def test_a_context_made_by_hand_is_enough(handler: BaseHandler, make_context: MakeContext) -> None:
    context = make_context()
    context.metrics = MetricsStore("a", "tiny")
    context.request_processor = [RequestProcessor({})]
    assert handler.handle([1.0], context) == [1.0]


def test_describing_runs_nothing_else(handler: BaseHandler, make_context: MakeContext) -> None:
    handler.describe_handle = lambda: {"classes": 2}  # type: ignore[method-assign]
    assert handler.handle([{}], make_context(headers={"describe": "True"})) == [{"classes": 2}]


def test_a_handler_has_no_description_of_its_own(handler: BaseHandler, make_context: MakeContext) -> None:
    assert handler.handle([{}], make_context(headers={"describe": "True"})) == [None]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"data": [1], "target": 3}, ([1], 3)),
        ({"body": [1]}, ([1], 0)),
        ({"body": [1], "target": bytearray(b"3")}, ([1], 3)),
        ({"body": [1], "target": "cat"}, ([1], "cat")),
        ([1], (None, 0)),
    ],
)
def test_explaining_takes_input_and_target_of_the_first_request(
    make_context: MakeContext, row: Any, expected: tuple[Any, Any]
) -> None:
    handler = Explainer()
    data = [row, {"body": "ignored"}]
    assert handler.handle(data, make_context(headers={"explain": "True"})) == [(data, *expected)]
    assert handler.explain


def test_a_handler_that_cannot_explain_says_so(handler: BaseHandler, make_context: MakeContext) -> None:
    with pytest.raises(NotImplementedError, match="BaseHandler cannot explain: it has no method get_insights"):
        handler.handle([1.0], make_context(headers={"explain": "True"}))


@pytest.mark.slow
def test_the_profiler_leaves_a_trace_in_the_directory_of_the_model(
    handler: BaseHandler,
    make_context: MakeContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "1")
    monkeypatch.setattr(base_handler, "PROFILER_DIRECTORY", tmp_path / "traces")
    handler.manifest = None
    with caplog.at_level("INFO"):
        assert handler.handle([1.0], make_context()) == [1.0]
    (trace,) = (tmp_path / "traces" / "tiny").glob("*.pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]}
    assert {"preprocess", "inference", "postprocess"} <= names
    assert "CPU total" in caplog.text


def test_the_arguments_of_the_profiler_can_be_chosen(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
    traces: list[Any] = []
    handler = Explainer()
    handler.profiler_args = {"activities": [torch.profiler.ProfilerActivity.CPU], "on_trace_ready": traces.append}
    handler.handle([{"body": [1]}], make_context(headers={"explain": "True"}))
    assert len(traces) == 1


@pytest.mark.parametrize("value", ["", "0", "false", "False"])
def test_the_profiler_is_off_when_it_is_said_to_be(
    handler: BaseHandler, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", value)
    monkeypatch.setattr(handler, "_infer_with_profiler", None)
    assert handler.handle([1.0], make_context()) == [1.0]
