"""ImageSegmenter: images in, the class of every pixel out."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.vision_handler import VisionHandler

__all__ = ["ImageSegmenter"]


class ImageSegmenter(VisionHandler):
    """Classifies the pixels of images with a model that answers as the segmentation models of torchvision do.

    Attributes:
        image_processing: makes a tensor of an image.
    """

    image_processing = ImageClassifier.image_processing

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """The most probable class of every pixel.

        Args:
            data: a dict with a tensor ``[request, class, row, column]`` of logits under ``out``.

        Returns:
            For each request rows of pixels, and for each pixel the number of its class and its probability.
        """
        # 32 bits, because in shorter floats the larger class numbers would be rounded.
        probabilities, classes = torch.softmax(data["out"].float(), dim=1).max(dim=1)
        pixels: list[Any] = torch.stack((classes.to(probabilities.dtype), probabilities), dim=-1).tolist()
        return pixels
