"""The MLP behind a JSON body of 784 numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import torch


class MLPClassifier:
    def initialize(self, context: Any) -> None:
        self.net = nets.load("mlp", str(Path(context.system_properties["model_dir"], "weights.pt")))

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        del context
        with torch.inference_mode():
            scores = self.net(torch.tensor([row["body"]["values"] for row in rows], dtype=torch.float32))
            best, classes = scores.max(dim=1)
        pairs = zip(classes.tolist(), best.tolist(), strict=True)
        return [{"class": label, "score": score} for label, score in pairs]
