"""The networks of the benchmark, in plain PyTorch: a small MLP and one with the shape of ResNet-18."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):  # type: ignore[misc]
    """784 → 256 → 128 → 10, 235,146 parameters."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


class Block(nn.Module):  # type: ignore[misc]
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


class ResNet18(nn.Sequential):  # type: ignore[misc]
    """Eighteen layers with weights for a thousand classes, 11.7 million parameters."""

    def __init__(self) -> None:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [
            block
            for channels_in, channels_out, stride in widths
            for block in (Block(channels_in, channels_out, stride), Block(channels_out, channels_out, 1))
        ]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


NETS: dict[str, type[nn.Module]] = {"mlp": MLP, "resnet": ResNet18}


def load(name: str, path: str) -> nn.Module:
    """The net with its stored weights, ready for inference on one thread."""
    torch.set_num_threads(1)
    net = NETS[name]()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()
