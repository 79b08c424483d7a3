from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ts.context import Context, RequestProcessor
from ts.errors import PredictionException
from ts.factory import decode_sample, handler_factory, unpack_bundle

pytestmark = pytest.mark.torch


class Scale(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.batches: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(batch))
        return batch * self.weight


def context(place: Path, *, checkpoint: str | None = None, system: dict[str, Any] | None = None) -> Context:
    model = {"serializedFile": checkpoint} if checkpoint else {}
    config = {} if system is None else {"system": system}
    return Context("m", str(place), {"model": model}, 4, None, "0.12.0", True, None, config)


def load(place: Path, factory: type, **options: Any) -> tuple[Any, Context]:
    handler, found = factory(), context(place, **options)
    handler.initialize(found)
    return handler, found


def ask(handler: Any, found: Context, *bodies: Any) -> list[Any]:
    found.request_processor = [RequestProcessor({}) for _ in bodies]
    answers: list[Any] = handler.handle([{"body": body} for body in bodies], found)
    return answers


def npy(array: Any, *, allow_pickle: bool = False) -> bytearray:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return bytearray(file.getvalue())


def tar(path: Path, names: list[str], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"A = 1"))
    return path


def test_the_class_belongs_to_the_module_that_called() -> None:
    assert handler_factory(Scale).__module__ == __name__


def test_without_other_functions_numbers_go_through_the_model(tmp_path: Path) -> None:
    handler, found = load(tmp_path, handler_factory(Scale))
    assert ask(handler, found, [1.0, 2.0], npy(np.array([3.0, 4.0], dtype="float32"))) == [[1.0, 2.0], [3.0, 4.0]]


def test_a_batch_is_prepared_sample_by_sample_and_computed_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def before(data: Any) -> Any:
        calls.append("before")
        return torch.tensor(data)

    def after(data: Any) -> tuple[float, str]:
        calls.append("after")
        return data.sum().item(), "x"

    handler, found = load(tmp_path, handler_factory(Scale, before, after))
    answers = ask(handler, found, *[[float(number), 0.0] for number in range(4)])
    assert answers == [[0.0, "x"], [1.0, "x"], [2.0, "x"], [3.0, "x"]]
    assert calls == ["before"] * 4 + ["after"] * 4
    assert handler.model.batches == [4]


def test_a_sample_that_cannot_be_prepared_fails_alone(tmp_path: Path) -> None:
    def before(data: Any) -> Any:
        if data == "refuse":
            raise PredictionException("no", 422)
        return torch.tensor([1.0 / data])

    handler, found = load(tmp_path, handler_factory(lambda: Scale(1), before))
    answers = ask(handler, found, 2, "refuse", 0, bytearray(b"\x93NUMPY?"), 4)
    assert answers[0] == [0.5]
    assert answers[4] == [0.25]
    assert [found.get_response_status(index)[0] for index in range(5)] == [200, 422, 503, 400, 200]
    assert answers[1]["message"] == "no"
    assert answers[2]["message"] == "Prediction failed"
    assert handler.model.batches == [2]


def test_a_sample_of_another_shape_does_not_spoil_the_others(tmp_path: Path) -> None:
    handler, found = load(tmp_path, handler_factory(Scale))
    answers = ask(handler, found, [1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0])
    assert (answers[0], answers[2]) == ([1.0, 1.0], [2.0, 2.0])
    assert found.get_response_status(1)[0] == 503


def test_a_model_may_return_several_tensors(tmp_path: Path) -> None:
    class Both(torch.nn.Module):  # type: ignore[misc]
        def forward(self, batch: torch.Tensor) -> Any:
            return {"sum": batch.sum(1), "pair": (batch, -batch)}

    handler, found = load(tmp_path, handler_factory(Both))
    assert ask(handler, found, [1.0, 2.0]) == [{"sum": 3.0, "pair": [[1.0, 2.0], [-1.0, -2.0]]}]


def test_a_model_that_runs_out_of_memory_fails_as_a_whole(tmp_path: Path) -> None:
    class Greedy(torch.nn.Module):  # type: ignore[misc]
        def forward(self, batch: Any) -> Any:
            raise RuntimeError("CUDA out of memory")

    handler, found = load(tmp_path, handler_factory(Greedy))
    with pytest.raises(RuntimeError, match="CUDA"):
        ask(handler, found, [1.0])


def test_the_checkpoint_is_loaded_and_the_model_evaluates(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor([2.0, 3.0])}, tmp_path / "c.pth")
    handler, found = load(tmp_path, handler_factory(Scale, size=2), checkpoint="c.pth")
    assert ask(handler, found, [1.0, 1.0]) == [[2.0, 3.0]]
    assert not handler.model.training


def test_an_empty_checkpoint_leaves_the_weights_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "c.pth").touch()
    handler, found = load(tmp_path, handler_factory(Scale), checkpoint="c.pth")
    assert ask(handler, found, [1.0, 1.0]) == [[1.0, 1.0]]


def test_a_checkpoint_of_another_model_fails_the_load(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(2)}, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match="other"):
        load(tmp_path, handler_factory(Scale), checkpoint="c.pth")


def test_what_happens_at_load_happens_in_order(tmp_path: Path) -> None:
    tar(tmp_path / "b.tar.gz", ["pkg/sub/mod.py"])
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda: order.append(f"{name} {(tmp_path / 'pkg/sub/mod.py').exists()}")

    def build() -> Scale:
        order.append("init")
        return Scale()

    factory = handler_factory(build, install_packages=note("install"), unpack_dependencies=note("unpack"))
    load(tmp_path, factory, system={"extraFiles": "b.tar.gz"})
    assert order == ["install False", "unpack True", "init"]


def test_something_else_than_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="init_function must return"):
        load(tmp_path, handler_factory(dict))


def test_a_bound_on_gpu_memory_is_only_a_warning_without_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, handler_factory(Scale), system={"maxGPUMemory": 500})
    assert "maxGPUMemory has no effect" in caplog.text


@pytest.mark.parametrize("limit", [0, -1, "many", True])
def test_a_bound_on_gpu_memory_must_be_a_number(tmp_path: Path, limit: object) -> None:
    with pytest.raises(ValueError, match=r"system\.maxGPUMemory"):
        load(tmp_path, handler_factory(Scale), system={"maxGPUMemory": limit})


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_bundle_is_unpacked_by_what_it_is_and_not_by_its_name(tmp_path: Path, mode: str) -> None:
    unpack_bundle(tar(tmp_path / "b.tar.gz", ["./pkg/mod.py", "top.py"], mode), tmp_path)
    assert (tmp_path / "pkg/mod.py").read_text() == (tmp_path / "top.py").read_text() == "A = 1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar.gz", "pkg", "top.py"]


def test_a_zip_bundle_is_unpacked_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.tar.gz", "w") as archive:
        archive.writestr("pkg/mod.py", "A = 1")
    unpack_bundle(tmp_path / "b.tar.gz", tmp_path)
    assert (tmp_path / "pkg/mod.py").read_text() == "A = 1"


@pytest.mark.parametrize("name", ["../out.py", "/out.py", "a/../../out.py"])
def test_a_bundle_cannot_write_outside(tmp_path: Path, name: str) -> None:
    place = tmp_path / "model"
    place.mkdir()
    with pytest.raises(ValueError, match="leads out of it"):
        unpack_bundle(tar(place / "b.tar.gz", [name]), place)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_bundle_has_no_links(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="no file: link"):
        unpack_bundle(tmp_path / "b.tar", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\x1f\x8b\x08broken"])
def test_a_damaged_bundle_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.tar\.gz"):
        unpack_bundle(tmp_path / "b.tar.gz", tmp_path)


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.tar\.gz"):
        unpack_bundle(tmp_path / "b.tar.gz", tmp_path)


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], "text", 5])
def test_decoded_values_stay_what_they_are(value: object) -> None:
    assert decode_sample(value) == value


def test_bytes_of_no_known_format_stay_bytes() -> None:
    assert decode_sample(bytearray(b"anything")) == b"anything"


def test_a_picture_becomes_an_image() -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG")
    assert decode_sample(bytearray(file.getvalue())).size == (3, 2)


def test_safetensors_become_a_tensor() -> None:
    from safetensors.torch import save  # noqa: PLC0415  (only this test needs it)

    assert decode_sample(save({"x": torch.tensor([1.0, 2.0])})).tolist() == [1.0, 2.0]


def test_an_array_of_objects_is_never_unpickled() -> None:
    body = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PredictionException) as raised:
        decode_sample(body)
    assert raised.value.error_code == 400
    assert "jsonpickle" not in sys.modules
