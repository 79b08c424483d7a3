"""Handlers without a server, in the hands of a script or a test: items 53, 54 and 57 of the handler contract."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ts.context import Context, RequestProcessor
from ts.handler_utils.utils import import_class
from ts.metrics.dimension import Dimension
from ts.metrics.metrics_store import MetricsStore
from ts.torch_handler.unit_tests.test_utils.mock_context import MockContext
from ts.utils.util import PredictionException, list_classes_from_module, load_label_mapping, map_class_to_label

MODEL = """
import torch

class Double(torch.nn.Module):
    def forward(self, values):
        return values * 2
"""


class Greets:
    def initialize(self, context: Context) -> None:
        self.word = context.model_yaml_config.get("word", "hello")
        context.metrics.add_counter("Loads", 1)

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[str]:
        context.metrics.add_time("Greeting", 1.5, 0, "ms")
        context.metrics.add_metric("Width", 3, unit="count", dimensions=[Dimension("Level", "Model")])
        processors = context.request_processor
        assert processors is not None
        if processors[0].get_request_property("X-Fail"):
            processors[0].report_status(400, "As Wished")
        context.set_response_header(0, "X-Batch", str(context.system_properties["batch_size"]))
        return [f"{self.word} {row['body'].decode()}" for row in data]


@pytest.fixture
def model_dir(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "double_of_mock.py").write_text(MODEL)
    (tmp_path / "index_to_name.json").write_text('{"0": ["n1", "cat"], "1": "dog"}')
    (tmp_path / "config.yaml").write_text("handler: {profile: true}\n")
    yield tmp_path
    sys.modules.pop("double_of_mock", None)


def context_of_ones_own(config: dict[str, Any] | None = None) -> Context:
    """As scripts make it, by position."""
    manifest = {"model": {"modelName": "greets", "handler": "handler.py"}}
    context = Context("greets", "/models/greets", manifest, 4, None, "0.12.0", True, None, config)
    context.metrics = MetricsStore("a-request", "greets")
    context.request_processor = [RequestProcessor({})]
    context.request_ids = {0: "a-request"}
    return context


@pytest.mark.torch
def test_53_a_mock_context_drives_a_base_handler(model_dir: Path) -> None:
    from ts.torch_handler.base_handler import BaseHandler  # noqa: PLC0415  # needs torch

    context = MockContext(None, model_dir.as_posix(), "double_of_mock.py", model_yaml_config_file="config.yaml")
    handler = BaseHandler()
    handler.initialize(context)
    assert handler.initialized
    assert handler.mapping == {"0": "cat", "1": "dog"}
    assert handler.handle([1.5, 2.0], context) == [3.0, 4.0]
    assert [metric.name for metric in context.metrics.store] == [
        "ts_handler_preprocess",
        "ts_handler_inference",
        "ts_handler_postprocess",
        "HandlerTime",
    ]


def test_54_what_handlers_import_for_labels_and_classes_works_together(model_dir: Path) -> None:
    mapping = load_label_mapping(str(model_dir / "index_to_name.json"))
    assert map_class_to_label([[0.75, 0.25]], mapping, [[1, 0]]) == [{"dog": 0.75, "cat": 0.25}]
    module = sys.modules[__name__]
    assert [cls.__name__ for cls in list_classes_from_module(module)] == ["Greets"]
    assert list_classes_from_module(module, PredictionException) == []
    assert import_class("PredictionException", "ts.utils.util") is PredictionException
    with pytest.raises(ImportError):
        import_class("NoSuchClass", "ts.utils.util")


@pytest.mark.parametrize(("config", "answer"), [(None, "hello Ada"), ({"word": "ahoy"}, "ahoy Ada")])
def test_57_a_context_made_by_hand_drives_a_handler(config: dict[str, Any] | None, answer: str) -> None:
    context, handler = context_of_ones_own(config), Greets()
    handler.initialize(context)
    assert handler.handle([{"body": bytearray(b"Ada")}], context) == [answer]
    assert [metric.name for metric in context.metrics.store] == ["Loads", "Greeting", "Width"]
    assert context.get_response_status(0) == (200, None)
    assert context.get_response_headers(0) == {"X-Batch": "4"}


def test_57_a_request_processor_made_by_hand_has_headers_and_status() -> None:
    context, handler = context_of_ones_own(), Greets()
    context._request_processor = [RequestProcessor({"X-Fail": "1"})]  # as scripts set it
    handler.initialize(context)
    handler.handle([{"body": bytearray(b"Ada")}], context)
    assert context.get_response_status(0) == (400, "As Wished")
    assert context.request_processor is context._request_processor
