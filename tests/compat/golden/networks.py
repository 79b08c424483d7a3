"""torchvision's ResNet-18, and its FCN on top of that, in PyTorch alone: the same names, so that weights fit both."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(before, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, values: Any) -> Any:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(values)))))
        return torch.relu(inner + (values if self.downsample is None else self.downsample(values)))


class Features(nn.Module):
    """Everything of ResNet-18 but its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))

    def forward(self, images: Any) -> Any:
        values = functional.max_pool2d(torch.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(values))))


class ResNet18(Features):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(512, 1000)

    def forward(self, images: Any) -> Any:
        return self.fc(super().forward(images).mean(dim=(2, 3)))


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Features()
        self.classifier = nn.Sequential(
            nn.Conv2d(512, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(128, 21, 1),
        )

    def forward(self, images: Any) -> Any:
        small = self.classifier(self.backbone(images))
        return {"out": functional.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)}
