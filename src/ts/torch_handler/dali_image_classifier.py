"""DALIImageClassifier: images in, the most probable classes out, prepared by NVIDIA DALI."""

from __future__ import annotations

from ts.torch_handler.dali_handler import DALIHandler
from ts.torch_handler.image_classifier import ImageClassifier

__all__ = ["DALIImageClassifier"]


class DALIImageClassifier(DALIHandler, ImageClassifier):
    """Classifies as :class:`~ts.torch_handler.image_classifier.ImageClassifier` does; DALI prepares the images."""
