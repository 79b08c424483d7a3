"""The ResNet-18-shaped net behind a body of 3x224x224 float32 numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import torch


class ResNetClassifier:
    def initialize(self, context: Any) -> None:
        self.net = nets.load("resnet", str(Path(context.system_properties["model_dir"], "weights.pt")))

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        del context
        # bytearray copies, because torch warns about a tensor over memory that it may not write to.
        images = [torch.frombuffer(bytearray(row["body"]), dtype=torch.float32).view(3, 224, 224) for row in rows]
        with torch.inference_mode():
            best, classes = self.net(torch.stack(images)).max(dim=1)
        pairs = zip(classes.tolist(), best.tolist(), strict=True)
        return [{"class": label, "score": score} for label, score in pairs]
