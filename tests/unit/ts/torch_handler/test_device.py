from __future__ import annotations

import pytest
import torch

from ts.torch_handler.device import choose_device, prefer_fast_matmul

pytestmark = pytest.mark.torch


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
