"""The model as the factory wants it: functions for one sample, and the handler that is made of them."""

from __future__ import annotations

from typing import Any

import torch
from base_handler import handler_factory

from ts.utils.util import PredictionException

SPECIES = ("setosa", "versicolor", "virginica")


def init_function(hidden: int) -> torch.nn.Module:
    """The network without weights; imported here, because the bundle is unpacked by now and was not before."""
    from network.layers import IrisNet  # noqa: PLC0415

    return IrisNet(hidden)


def preprocess(data: Any) -> torch.Tensor:
    """``[5.1, 3.5, 1.4, 0.2]``, in centimetres → a tensor."""
    try:
        return torch.as_tensor(data, dtype=torch.float32).reshape(4)
    except (TypeError, ValueError, RuntimeError):
        raise PredictionException("Send four numbers as a JSON list.", 400) from None


def postprocess(data: torch.Tensor) -> tuple[float, int, str]:
    """Three numbers → probability, number and name of the species."""
    probability, index = data.softmax(0).max(0)
    return round(probability.item(), 4), int(index), SPECIES[int(index)]


handler = handler_factory(
    init_function=init_function, preprocess_function=preprocess, postprocess_function=postprocess, hidden=16
)
