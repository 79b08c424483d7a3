from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ts.context import Context
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.weights import Format, recognise, setup_ort_session

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]


def save_torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.ReLU()).save(str(path))


def loaded(context: Context) -> BaseHandler:
    handler = BaseHandler()
    handler.initialize(context)
    return handler


def test_an_eager_model_gets_its_state_dict(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save({"factor": torch.tensor([3.0])}, tmp_path / "scale.pt")
    handler = loaded(make_context("scale.pt", "model.py"))
    assert handler.handle([1.0, 2.0], make_context()) == [3.0, 6.0]
    assert not handler.model.training
    assert handler.model_pt_path == str(tmp_path / "scale.pt")


def test_an_eager_model_gets_safetensors(make_context: MakeContext, tmp_path: Path) -> None:
    save_file({"factor": torch.tensor([4.0])}, tmp_path / "scale.safetensors")
    assert loaded(make_context("scale.safetensors", "model.py")).model.factor.item() == 4


def test_an_eager_model_works_without_weights(make_context: MakeContext) -> None:
    assert loaded(make_context(None, "model.py")).model.factor.item() == 1


def test_a_state_that_does_not_fit_is_an_error(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "scale.pt")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        loaded(make_context("scale.pt", "model.py"))


def test_a_missing_model_file_is_named(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context(None, "model.py")
    (tmp_path / "model.py").unlink()
    with pytest.raises(RuntimeError, match=r"Missing the model\.py file"):
        loaded(context)


def test_two_classes_in_a_model_file_are_refused(make_context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class A: pass\nclass B: pass\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected only one class as model definition\. model\.py defines A, B"):
        loaded(make_context(None, "model.py"))


def test_a_model_file_that_fails_is_not_taken_for_imported(make_context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import missing_package_of_a_model\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="missing_package_of_a_model"):
            loaded(make_context(None, "model.py"))


def test_the_class_is_the_one_a_handler_imports(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    context = make_context(None, "model.py")
    imported = __import__("model")
    assert type(loaded(context).model) is imported.Scale


def save_pickled_model(make_context: MakeContext, tmp_path: Path, name: str) -> None:
    model = loaded(make_context(None, "model.py")).model
    model.factor.data.fill_(5)
    torch.save(model, tmp_path / name)


def test_a_pickled_model_is_refused_with_the_key_that_allows_it(make_context: MakeContext, tmp_path: Path) -> None:
    save_pickled_model(make_context, tmp_path, "scale.pt")
    with pytest.raises(RuntimeError, match=r"scale\.pt holds more than tensors.*`handler\.allow_pickle: true`"):
        loaded(make_context("scale.pt", "model.py"))


def test_a_pickled_model_is_loaded_if_the_configuration_allows_it(make_context: MakeContext, tmp_path: Path) -> None:
    save_pickled_model(make_context, tmp_path, "scale.pt")
    context = make_context("scale.pt", "model.py", config={"handler": {"allow_pickle": True}})
    assert loaded(context).model.factor.item() == 5


@pytest.mark.parametrize("section", [None, {}, {"allow_pickle": "true"}, {"allow_pickle": 1}, ["allow_pickle"]])
def test_pickle_is_allowed_by_true_alone(make_context: MakeContext, tmp_path: Path, section: Any) -> None:
    save_pickled_model(make_context, tmp_path, "scale.pt")
    with pytest.raises(RuntimeError, match="allow_pickle"):
        loaded(make_context("scale.pt", "model.py", config={"handler": section}))


def test_a_pickled_model_needs_no_model_file_if_the_configuration_allows_it(
    make_context: MakeContext, tmp_path: Path
) -> None:
    save_pickled_model(make_context, tmp_path, "scale.pth")
    context = make_context("scale.pth", config={"handler": {"allow_pickle": True}})
    assert loaded(context).model.factor.item() == 5
    with pytest.raises(RuntimeError, match="No model weights could be loaded"):
        loaded(make_context("scale.pth"))


def test_a_damaged_checkpoint_is_no_question_of_pickle(make_context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "scale.pt").write_bytes(b"garbage")
    with pytest.raises(RuntimeError, match=r"scale\.pt is damaged"):
        loaded(make_context("scale.pt", "model.py"))


@pytest.mark.parametrize("name", ["relu.pt", "relu.pth", "relu.bin"])
def test_torchscript_is_loaded(make_context: MakeContext, tmp_path: Path, name: str) -> None:
    save_torchscript(tmp_path / name)
    handler = loaded(make_context(name))
    assert handler.handle([-1.0, 2.0], make_context()) == [0.0, 2.0]
    assert not handler.model.training


def test_a_state_dict_without_a_model_file_says_what_is_missing(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save({"factor": torch.ones(1)}, tmp_path / "scale.pt")
    with pytest.raises(RuntimeError, match=r"No model weights could be loaded: scale\.pt is not TorchScript.*model-fi"):
        loaded(make_context("scale.pt"))


@pytest.mark.parametrize("name", ["scale.pth", "scale.xyz"])
def test_a_file_of_no_known_format_is_refused(make_context: MakeContext, tmp_path: Path, name: str) -> None:
    torch.save({"factor": torch.ones(1)}, tmp_path / name)
    with pytest.raises(RuntimeError, match="No model weights could be loaded"):
        loaded(make_context(name))


def test_an_archive_without_model_or_weights_is_refused(make_context: MakeContext) -> None:
    with pytest.raises(RuntimeError, match="neither a model file nor a serialized file"):
        loaded(make_context())


def test_formats_are_told_by_name_and_content(tmp_path: Path) -> None:
    save_torchscript(tmp_path / "relu.pth")
    torch.save({}, tmp_path / "state.bin")
    assert recognise(tmp_path / "relu.pth") is Format.TORCHSCRIPT
    assert recognise(tmp_path / "state.bin") is Format.PICKLED
    assert recognise("model.pt") is Format.TORCHSCRIPT
    assert recognise("model.gguf") is None


@pytest.mark.parametrize(
    ("map_location", "device", "providers"),
    [
        ("cpu", None, ["CPUExecutionProvider"]),
        ("cuda", None, [("CUDAExecutionProvider", {"device_id": 2}), "CPUExecutionProvider"]),
        ("cuda", "cuda:1", [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]),
    ],
)
def test_onnx_runs_on_the_device_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, map_location: str, device: str | None, providers: list[Any]
) -> None:
    runtime: Any = ModuleType("onnxruntime")
    runtime.SessionOptions = SimpleNamespace
    runtime.InferenceSession = lambda path, **options: (path, options["providers"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert setup_ort_session("model.onnx", map_location, device) == ("model.onnx", providers)
