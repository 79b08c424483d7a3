"""NumPy arrays in, probabilities out: each image and its mirror image go through a TorchScript program together."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 32  # pixels that images are scaled to


class FlipHandler:
    """Classifies images; what cannot be read is answered with status 400, and the rest of its batch as always."""

    def initialize(self, context: Any) -> None:
        """Loads the program. The library that made the network is not needed."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        self.device = torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")
        program = Path(properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        self.model = torch.jit.load(program, map_location=self.device).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """One answer for each request: six probabilities, or what is wrong with it."""
        answers: list[Any] = [None] * len(data)
        images: dict[int, torch.Tensor] = {}
        for index, row in enumerate(data):
            try:
                images[index] = to_tensor(np.load(io.BytesIO(row.get("data") or row.get("body"))))
            except Exception as error:  # noqa: BLE001, PERF203  (NumPy and Pillow have many)
                context.set_response_status(400, "Bad Request", index)
                answers[index] = f"Send an image as NumPy writes it, uint8 of height x width x 3: {error}"
        if images:
            for index, shares in zip(images, self.classify(torch.stack(list(images.values()))), strict=True):
                answers[index] = shares
        return answers

    def classify(self, images: torch.Tensor) -> list[list[float]]:
        """The mean of what the program says to the images and to their mirror images: twice the rows, one call."""
        images = images.to(self.device)
        with torch.inference_mode():
            shares = self.model(torch.cat([images, images.flip(3)])).softmax(dim=1)
        rows: list[list[float]] = shares.unflatten(0, (2, -1)).mean(dim=0).tolist()
        return rows


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """uint8 of height x width x 3 → float32 of 3 x SIDE x SIDE, from -1 to 1."""
    image = Image.fromarray(array).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
