"""Which device a worker computes on, and what torch has to know before it does."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

__all__ = ["XLA_AVAILABLE", "Placement", "choose_device", "prefer_fast_matmul", "prepare_torch"]

logger = logging.getLogger(__name__)

XLA_AVAILABLE = find_spec("torch_xla") is not None

# They add backends to torch.compile and operators to TorchScript when they are imported.
COMPANIONS = ("openvino.torch", "torch_tensorrt")


class Placement(NamedTuple):
    """Where a model goes.

    Attributes:
        map_location: kind of device as handlers know it; None where torch has no name for it (XLA).
        device: the device.
    """

    map_location: str | None
    device: Any


def choose_device(gpu_id: int | str | None) -> Placement:
    """The device of a worker: the accelerator it was given if torch can use it, else the CPU.

    Args:
        gpu_id: index of the accelerator; None for a worker on the CPU.
    """
    if gpu_id is not None:
        if torch.cuda.is_available():
            return Placement("cuda", torch.device(f"cuda:{gpu_id}"))
        if os.environ.get("TS_IPEX_GPU_ENABLE") == "true" and torch.xpu.is_available():
            return Placement("xpu", torch.device(f"xpu:{gpu_id}"))
        if torch.backends.mps.is_available():
            return Placement("mps", torch.device("mps"))
    if XLA_AVAILABLE:
        return Placement(None, importlib.import_module("torch_xla.core.xla_model").xla_device())
    return Placement("cpu", torch.device("cpu"))


@cache
def prepare_torch(gpu_id: int | str | None) -> None:
    """What importing ``BaseHandler`` does in TorchServe: companions of torch are imported, products may use TF32.

    Here it happens once a process belongs to a worker, because it may touch the GPU.

    Args:
        gpu_id: index of the accelerator; None for a worker on the CPU.
    """
    for name in COMPANIONS:
        if find_spec(name.partition(".")[0]) is not None:
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001  # most models need none of them
                logger.warning("%s is installed, but cannot be used: %s", name, error)
    if gpu_id is not None and torch.cuda.is_available():
        # A rank of a parallel model sees only some of the devices, but has the index that its first one has for all.
        visible = int(gpu_id) < torch.cuda.device_count()
        prefer_fast_matmul(torch.device("cuda", int(gpu_id) if visible else 0))


def prefer_fast_matmul(device: Any) -> None:
    """Lets float32 products use TF32 where the device has it (compute capability 8.0 and later)."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        torch.set_float32_matmul_precision("high")
