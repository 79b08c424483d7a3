"""ObjectDetector: images in, labelled boxes out."""

from __future__ import annotations

from typing import Any

from ts.handler_utils.timer import timed
from ts.labels import label_of
from ts.torch_handler.vision_handler import VisionHandler, image_to_tensor

__all__ = ["ObjectDetector"]


class ObjectDetector(VisionHandler):
    """Finds objects with a model that answers as the detection models of torchvision do.

    Images keep their size, so those of one batch must have the same.

    Attributes:
        threshold: objects with a lower score are left out.
        image_processing: makes a tensor of an image.
    """

    threshold: float = 0.5
    image_processing = staticmethod(image_to_tensor)

    @timed
    def postprocess(self, data: Any) -> list[list[dict[str, Any]]]:
        """The objects that were found.

        Args:
            data: for each request a dict of tensors: ``boxes [object, 4]``, ``labels [object]``, ``scores [object]``.

        Returns:
            For each request its objects in the order of the model: the box under the label, and the score.
        """
        return [self._objects(found) for found in data]

    def _objects(self, found: Any) -> list[dict[str, Any]]:
        kept = found["scores"] >= self.threshold
        boxes, labels, scores = (found[key][kept].tolist() for key in ("boxes", "labels", "scores"))
        return [
            {label_of(self.mapping, label): box, "score": score}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
