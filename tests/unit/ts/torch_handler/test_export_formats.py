from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ts.context import Context
from ts.torch_handler import weights
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.weights import Format, recognise

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]
AOT = {"pt2": {"export": {"aot_compile": True}}}


class Triple(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([3.0]))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.factor


def export_triple() -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    return torch.export.export(Triple().eval(), (torch.ones(2),), dynamic_shapes=(batch,))


def loaded(context: Context) -> BaseHandler:
    handler = BaseHandler()
    handler.initialize(context)
    return handler


def make_package(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/model.so", b"")


@pytest.mark.slow
def test_an_exported_program_answers_batches_of_any_size_it_was_exported_for(
    make_context: MakeContext, tmp_path: Path
) -> None:
    torch.export.save(export_triple(), tmp_path / "triple.pt2")
    handler = loaded(make_context("triple.pt2"))
    assert handler.handle([1.0, 2.0], make_context()) == [3.0, 6.0]
    assert handler.handle([1.0, 2.0, 3.0], make_context()) == [3.0, 6.0, 9.0]


@pytest.mark.slow
def test_an_exported_program_is_moved_with_the_device_that_is_written_into_it(tmp_path: Path) -> None:
    torch.export.save(export_triple(), tmp_path / "triple.pt2")
    module = weights.load_exported(tmp_path / "triple.pt2", torch.device("meta"))
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


class Trap:
    """Leaves a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def trapped_program(tmp_path: Path) -> Path:
    """A program whose constants are pickled and run code, as a crafted file may have them."""
    torch.export.save(export_triple(), tmp_path / "triple.pt2")
    torch.save({"trap": Trap(tmp_path / "sprung")}, tmp_path / "trap")
    target = tmp_path / "trapped.pt2"
    with zipfile.ZipFile(tmp_path / "triple.pt2") as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            trapped = "sample_inputs" in name
            new.writestr(name, (tmp_path / "trap").read_bytes() if trapped else old.read(name))
    return target


@pytest.mark.slow
def test_a_program_that_needs_pickle_is_refused_before_its_code_runs(make_context: MakeContext, tmp_path: Path) -> None:
    trapped_program(tmp_path)
    with pytest.raises(RuntimeError, match=r"trapped\.pt2 holds more than tensors.*`handler\.allow_pickle: true`"):
        loaded(make_context("trapped.pt2"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_a_program_that_needs_pickle_is_loaded_if_the_configuration_allows_it(
    make_context: MakeContext, tmp_path: Path
) -> None:
    trapped_program(tmp_path)
    handler = BaseHandler()
    with suppress(RuntimeError):  # what the trap left is no program; that it ran is the point
        handler.initialize(make_context("trapped.pt2", config={"handler": {"allow_pickle": True}}))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("before", [None, "0"])
def test_loading_a_program_leaves_the_environment_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None
) -> None:
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    if before is None:
        monkeypatch.delenv(key, raising=False)
    else:
        monkeypatch.setenv(key, before)
    with pytest.raises(RuntimeError):
        weights.load_exported(tmp_path / "missing.pt2", "cpu")
    assert os.environ.get(key) == before


def test_pickle_is_forced_off_only_while_it_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def load(path: Any) -> Any:
        seen.append(os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"))
        raise pickle.UnpicklingError

    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setattr(torch.export, "load", load)
    for allow_pickle in (False, True):
        with pytest.raises(RuntimeError, match="allow_pickle"):
            weights.load_exported("model.pt2", "cpu", allow_pickle=allow_pickle)
    assert seen == ["1", None]


def test_a_file_that_is_no_program_is_refused(make_context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"garbage")
    with pytest.raises(RuntimeError, match=r"No model weights could be loaded: PyTorch .* cannot read model\.pt2"):
        loaded(make_context("model.pt2"))


def test_formats_of_exported_and_compiled_models_are_told_by_name_and_content(tmp_path: Path) -> None:
    make_package(tmp_path / "compiled.pt2")
    assert recognise(tmp_path / "compiled.pt2") is Format.COMPILED
    assert recognise(tmp_path / "missing.pt2") is Format.EXPORTED
    assert recognise("model.so") is Format.COMPILED
    assert recognise("model.onnx") is Format.ONNX


@pytest.mark.parametrize("name", ["model.so", "model.pt2"])
@pytest.mark.parametrize(
    "config", [None, {"pt2": "inductor"}, {"pt2": {"export": True}}, {"pt2": {"export": {"aot_compile": False}}}]
)
def test_compiled_code_runs_only_if_the_configuration_says_so(
    make_context: MakeContext, tmp_path: Path, name: str, config: dict[str, Any] | None
) -> None:
    make_package(tmp_path / name)
    with pytest.raises(
        RuntimeError, match=r"runs machine code from the file.*`pt2: \{export: \{aot_compile: true\}\}`"
    ):
        loaded(make_context(name, config=config))


def test_a_compiled_library_goes_to_the_loader_of_its_form(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch._export.aot_load", lambda path, device: (path, device))
    assert loaded(make_context("model.so", config=AOT)).model == (str(tmp_path / "model.so"), "cpu")


def test_a_package_is_loaded_on_the_device_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda path, device_index=-1: (path, device_index))
    assert weights.load_compiled("model.pt2", torch.device("cuda:1")) == ("model.pt2", 1)
    assert weights.load_compiled("model.pt2", "cpu") == ("model.pt2", -1)


def test_a_release_without_the_choice_of_a_device_takes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda path: path)
    assert weights.load_compiled("model.pt2", torch.device("cuda:1")) == "model.pt2"


def test_a_form_that_this_release_no_longer_loads_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch._export.aot_load")
    with pytest.raises(RuntimeError, match=r"not supported by this release.*aoti_compile_and_package"):
        weights.load_compiled("model.so", "cpu")


def test_a_library_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"no library")
    with pytest.raises(RuntimeError, match=r"model\.so could not be loaded on cpu"):
        weights.load_compiled(tmp_path / "model.so", "cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_code_compiled_by_aotinductor_is_served_in_both_forms(make_context: MakeContext, tmp_path: Path) -> None:
    torch.export.save(export_triple(), tmp_path / "exported.pt2")
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    package = tmp_path / "triple.pt2"
    # In a process of its own, as a user does it: the compiler leaves threads and processes behind.
    code = (
        "import sys, torch, torch._inductor\n"
        "torch._inductor.aoti_compile_and_package(torch.export.load(sys.argv[1]), package_path=sys.argv[2])"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "exported.pt2"), str(package)]
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=240)
    assert recognise(package) is Format.COMPILED
    handler = loaded(make_context("triple.pt2", config=AOT))
    assert handler.handle([1.0, 2.0, 3.0], make_context()) == [3.0, 6.0, 9.0]
    # The library inside is the older form.
    with zipfile.ZipFile(package) as archive:
        library = next(name for name in archive.namelist() if name.endswith(".so"))
        (tmp_path / "triple.so").write_bytes(archive.read(library))
    handler = loaded(make_context("triple.so", config=AOT))
    assert handler.handle([1.0, 2.0, 3.0], make_context()) == [3.0, 6.0, 9.0]


def test_an_onnx_file_is_loaded_by_its_runtime(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime: Any = ModuleType("onnxruntime")
    runtime.SessionOptions = SimpleNamespace
    runtime.InferenceSession = lambda path, **options: (path, options["providers"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    assert loaded(make_context("model.onnx")).model == (str(tmp_path / "model.onnx"), ["CPUExecutionProvider"])


def test_an_onnx_file_without_the_runtime_names_the_package(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r"No model weights could be loaded: model\.onnx.*pip install onnxruntime"):
        loaded(make_context("model.onnx"))
