"""ImageClassifier: images in, the most probable classes out."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.labels import name_classes
from ts.torch_handler.vision_handler import ImageTransform, VisionHandler

__all__ = ["ImageClassifier"]


class ImageClassifier(VisionHandler):
    """Classifies images with a model trained as those on ImageNet are.

    Attributes:
        topk: how many classes an answer has at most.
        image_processing: makes a tensor of an image.
    """

    topk: int = 5
    image_processing = ImageTransform(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    def set_max_result_classes(self, topk: int) -> None:
        """Sets how many classes an answer has at most.

        Args:
            topk: the number.
        """
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """How many classes an answer has at most."""
        return self.topk

    @timed
    def postprocess(self, data: Any) -> list[dict[str, float]]:
        """The most probable classes.

        Args:
            data: a tensor ``[request, class]`` of logits.

        Returns:
            For each request its classes, the most probable first, with their probabilities.
        """
        shares = torch.softmax(data, dim=1)
        probabilities, classes = torch.topk(shares, min(self.topk, shares.shape[1]), dim=1)
        return name_classes(probabilities.tolist(), self.mapping, classes.tolist())
