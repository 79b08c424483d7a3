from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ts.torch_handler.device import choose_device, prefer_fast_matmul, prepare_torch

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    prepare_torch.cache_clear()
    yield
    prepare_torch.cache_clear()


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TS_IPEX_GPU_ENABLE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("gpu_id", [None, 0])
def test_without_an_accelerator_it_is_the_cpu(gpu_id: int | None) -> None:
    assert choose_device(gpu_id) == ("cpu", torch.device("cpu"))


def test_with_cuda_it_is_the_gpu_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(1) == ("cuda", torch.device("cuda:1"))
    assert choose_device("0") == ("cuda", torch.device("cuda:0"))
    assert choose_device(None) == ("cpu", torch.device("cpu"))


def test_an_intel_gpu_is_used_if_it_is_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert choose_device(1).map_location == "cpu"
    monkeypatch.setenv("TS_IPEX_GPU_ENABLE", "true")
    assert choose_device(1) == ("xpu", torch.device("xpu:1"))


def test_an_apple_gpu_has_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(1) == ("mps", torch.device("mps"))


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), ["high"]), ((7, 5), [])])
def test_recent_gpus_multiply_faster(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: list[str]
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    prefer_fast_matmul(torch.device("cuda:0"))
    prefer_fast_matmul(torch.device("cpu"))
    assert chosen == expected


@pytest.mark.parametrize(("gpu_id", "asked"), [(1, ["cuda:1"]), ("1", ["cuda:1"]), (5, ["cuda:0"]), (None, [])])
def test_torch_is_prepared_once_for_a_gpu_that_the_process_sees(
    monkeypatch: pytest.MonkeyPatch, gpu_id: int | str | None, asked: list[str]
) -> None:
    devices: list[str] = []

    def capability(device: torch.device) -> tuple[int, int]:
        devices.append(str(device))
        return 7, 5

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    for _ in range(2):
        prepare_torch(gpu_id)
    assert devices == asked


def test_companions_of_torch_are_imported_if_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_tensorrt.py").write_text("import torch\ntorch.of_tensorrt = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "of_tensorrt", False, raising=False)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    prepare_torch(None)
    assert torch.of_tensorrt
    del sys.modules["torch_tensorrt"]


def test_a_companion_that_cannot_be_imported_is_logged_and_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "torch_tensorrt.py").write_text("raise OSError('libnvinfer.so is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    prepare_torch(None)
    assert "torch_tensorrt is installed, but cannot be used: libnvinfer.so is missing" in caplog.text
