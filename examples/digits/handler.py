"""The handler: PNG files in, ``{"digit": 7, "probability": 0.99}`` out.

The server calls ``handle`` with a batch of requests. ``BaseHandler.handle`` runs the three steps of which two are
written here; loading ``model.py`` and its weights is inherited too.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException

SIDE = 8  # pixels, what the network was trained on


class DigitHandler(BaseHandler):
    """Recognises one handwritten digit, light on dark, per request."""

    def preprocess(self, data: list[dict[str, Any]]) -> torch.Tensor:
        """Requests → one tensor of shape (n, 1, 8, 8).

        A raw body arrives as ``body``, a file of a form under the name of its field.
        """
        return torch.stack([to_tensor(row.get("data") or row.get("body")) for row in data]).to(self.device)

    def postprocess(self, data: torch.Tensor) -> list[dict[str, Any]]:
        """Logits of shape (n, 10) → one answer per request, in the same order."""
        assert self.mapping, "index_to_name.json is missing from the archive"
        probabilities, classes = torch.softmax(data, dim=1).max(dim=1)
        return [
            {"digit": int(self.mapping[str(index)]), "probability": round(probability, 4)}
            for index, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]


def to_tensor(body: Any) -> torch.Tensor:
    """Bytes of an image → grey values from 0 to 1, shape (1, 8, 8).

    Raises:
        PredictionException: the bytes are no image; the client gets status 400 and this text.
    """
    if not isinstance(body, (bytes, bytearray)):
        raise PredictionException("Send an image file as the request's body.", 400)
    try:
        image = Image.open(io.BytesIO(body)).convert("L").resize((SIDE, SIDE))
    except (OSError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for damaged or huge files
        raise PredictionException("The request's body is not an image that can be read.", 400) from None
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, SIDE, SIDE).float() / 255
