from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ts.metrics.legacy import MetricsStore
from ts.model_loader import ModelLoader, ModelLoaderFactory
from ts.model_service.model_service import SingleNodeService
from ts.testing import MockContext, run_handler
from ts.wire import Batch, Part, Request

HANDLER = """
def handle(data, context):
    return None if data is None else [row["body"][::-1] for row in data]
"""


@pytest.fixture
def model_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "handler_of_loader.py").write_text(HANDLER)
    yield tmp_path
    sys.modules.pop("handler_of_loader", None)


class Upper(SingleNodeService):
    def _preprocess(self, data: Any) -> Any:
        return [row["body"] for row in data]

    def _inference(self, data: Any) -> Any:
        return [text.upper() for text in data]

    def _postprocess(self, data: Any) -> Any:
        return [f"{self.model_name}: {text}" for text in data]


def test_a_loaded_model_predicts(model_dir: Path) -> None:
    loader = ModelLoaderFactory.get_model_loader()
    assert isinstance(loader, ModelLoader)
    service = loader.load("backwards", str(model_dir), "handler_of_loader.py:handle", None, 1)
    request = Request("a", b"", (Part("body", "text/plain", b"abc"),))
    assert [bytes(reply.body) for reply in service.predict(Batch(1, ((1, request),)))] == [b"cba"]


def test_metrics_go_to_the_cache_that_was_given(model_dir: Path) -> None:
    cache = MetricsStore(None, "backwards")
    loader = ModelLoaderFactory.get_model_loader()
    service = loader.load("backwards", str(model_dir), "handler_of_loader.py:handle", None, 1, metrics_cache=cache)
    assert service.context.metrics is cache


def test_a_handler_in_three_steps_answers(tmp_path: Path) -> None:
    context = MockContext(None, tmp_path, None, model_name="loud")
    assert run_handler(Upper, ["abc"], model_dir=tmp_path, context=context) == ["loud: ABC"]


def test_a_handler_in_three_steps_knows_its_model(tmp_path: Path) -> None:
    handler = Upper()
    handler.initialize(MockContext(None, tmp_path, None))
    assert (handler.model_dir, handler.gpu, handler.manifest) == (
        str(tmp_path),
        None,
        {"model": {"modelName": "mnist"}},
    )
