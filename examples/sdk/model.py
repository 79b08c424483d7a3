import torch
from torch import nn


class Thermometer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)

    def forward(self, celsius: torch.Tensor) -> torch.Tensor:
        return self.scale(celsius)
