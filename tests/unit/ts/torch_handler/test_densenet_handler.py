from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context
from ts.errors import PredictionException
from ts.loader import find_handler
from ts.service import encode_output
from ts.torch_handler.densenet_handler import DenseNetHandler
from ts.wire import Sample

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]


class Intruder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def saved(value: Any, **options: Any) -> bytearray:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return bytearray(file.getvalue())


@pytest.fixture
def handler(make_context: MakeContext, tmp_path: Path) -> DenseNetHandler:
    torch.save({"factor": torch.tensor([3.0])}, tmp_path / "scale.pt")
    handler = DenseNetHandler()
    handler.initialize(make_context("scale.pt", "model.py"))
    return handler


def test_a_saved_tensor_is_answered_with_a_tensor(handler: DenseNetHandler, make_context: MakeContext) -> None:
    (answer,) = handler.handle([{"body": saved(torch.tensor([1.0, 2.0]))}], make_context())
    received = torch.load(io.BytesIO(encode_output(answer)), weights_only=True)
    assert received.tolist() == [[3.0, 6.0]]


def test_every_request_of_a_batch_gets_its_tensor_and_no_other(
    handler: DenseNetHandler, make_context: MakeContext
) -> None:
    data = [{"body": saved(torch.tensor([1.0]))}, {"data": saved(torch.tensor([2.0]))}]
    first, second = handler.handle(data, make_context())
    assert first.tolist() == [[3.0]]
    assert second.tolist() == [[6.0]]
    assert first.untyped_storage().nbytes() == 4


def test_what_is_no_tensor_is_answered_as_it_is(
    handler: DenseNetHandler, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "model", lambda tensor: {"sum": tensor.sum().item()})
    assert handler.handle([{"body": saved(torch.ones(2))}], make_context()) == [{"sum": 2.0}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "must be a tensor as torch.save writes it"),
        ("text", "must be a tensor as torch.save writes it"),
        (bytearray(b"PK\x03\x04 and no more"), "no tensor that can be loaded safely"),
        (saved({"weight": torch.ones(1)}), "must be a tensor, not a dict"),
    ],
)
def test_a_request_that_is_no_tensor_is_the_fault_of_the_client(
    handler: DenseNetHandler, make_context: MakeContext, body: Any, message: str
) -> None:
    with pytest.raises(PredictionException, match=message) as caught:
        handler.handle([{"body": body}], make_context())
    assert caught.value.error_code == 400


@pytest.mark.parametrize("zipped", [True, False])
def test_a_request_runs_no_code(
    handler: DenseNetHandler, make_context: MakeContext, tmp_path: Path, zipped: bool
) -> None:
    intruder = Intruder(tmp_path / "broken in")
    body = saved(intruder) if zipped else bytearray(pickle.dumps(intruder))
    with pytest.raises(PredictionException):
        handler.handle([{"body": body}], make_context())
    assert not (tmp_path / "broken in").exists()


def test_torchscript_needs_no_model_file(make_context: MakeContext, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "relu.pt")
    handler = DenseNetHandler()
    handler.initialize(make_context("relu.pt"))
    assert handler.initialized
    (answer,) = handler.handle([{"body": saved(torch.tensor([-1.0, 1.0]))}], make_context())
    assert answer.tolist() == [[0.0, 1.0]]


def test_the_weights_must_be_there(make_context: MakeContext) -> None:
    with pytest.raises(KeyError, match="serializedFile"):
        DenseNetHandler().initialize(make_context(None, "model.py"))
    with pytest.raises(RuntimeError, match=r"Missing the model\.pt file: scale\.pt"):
        DenseNetHandler().initialize(make_context("scale.pt", "model.py"))


def test_pickled_weights_need_permission(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save(Intruder(tmp_path / "broken in"), tmp_path / "scale.pt")
    with pytest.raises(RuntimeError, match="allow_pickle"):
        DenseNetHandler().initialize(make_context("scale.pt", "model.py"))
    assert not (tmp_path / "broken in").exists()


def test_the_time_is_told(handler: DenseNetHandler, make_context: MakeContext, samples: list[Sample]) -> None:
    handler.handle([{"body": saved(torch.ones(1))}], make_context())
    assert [sample.name for sample in samples] == ["HandlerTime"]


def test_the_densenet_handler_is_found_by_its_name(tmp_path: Path) -> None:
    entry = find_handler("densenet_handler", tmp_path)
    assert isinstance(entry.handle.__self__, DenseNetHandler)  # type: ignore[attr-defined]
