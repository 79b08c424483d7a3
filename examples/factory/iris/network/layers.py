"""The network."""

from __future__ import annotations

import torch


class IrisNet(torch.nn.Sequential):
    """Four measurements → one number for each of three species."""

    def __init__(self, hidden: int) -> None:
        super().__init__(torch.nn.Linear(4, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3))
