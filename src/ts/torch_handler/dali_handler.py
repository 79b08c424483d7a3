"""DALIHandler: images that NVIDIA DALI decodes and prepares on the GPU."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.preprocess.dali import get_dali_pipeline
from ts.handler_utils.timer import timed
from ts.importing import require
from ts.torch_handler.vision_handler import VisionHandler

__all__ = ["DALIHandler"]


class DALIHandler(VisionHandler):
    """Base of handlers whose images go through a DALI pipeline.

    Attributes:
        pipeline: the pipeline, with one input ``source`` and one output.
    """

    pipeline: Any = None

    def initialize(self, context: Any) -> None:
        """Loads the model of an archive and builds its pipeline.

        Args:
            context: says where the archive is, how it is configured and which device to use.

        Raises:
            ImportError: DALI is not installed.
            KeyError: the section ``dali`` of the configuration lacks one of its keys.
            RuntimeError: the archive lacks the weights or the pipeline file.
            ValueError: the configuration has no section ``dali``, or the model file is not as it must be.
        """
        super().initialize(context)
        self.pipeline = get_dali_pipeline(context)

    @timed
    def preprocess(self, data: Any) -> Any:
        """One tensor of all images.

        Args:
            data: for each request its encoded image as ``data`` or ``body``.

        Returns:
            A tensor ``[request, …]`` of what the pipeline made of each, on the device.

        Raises:
            TypeError: a request brings no bytes.
        """
        outputs = self.pipeline.run(source=[_encoded(row) for row in data])
        images = outputs[0]
        # Stacking copies: the pipeline writes the next batch to the same memory.
        return torch.stack([_tensor(images[index]) for index in range(len(data))]).to(self.device)


def _encoded(row: Any) -> Any:
    image = row.get("data") or row.get("body")
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"DALI takes encoded images as bytes in the body or in the field data, not {type(image).__name__}."
        )
    numpy = require("numpy", "numpy", "DALI preprocessing needs")
    return numpy.frombuffer(image, dtype=numpy.uint8)


def _tensor(sample: Any) -> Any:
    if hasattr(sample, "__cuda_array_interface__"):
        return torch.as_tensor(sample, device="cuda")
    return torch.as_tensor(require("numpy", "numpy", "DALI preprocessing needs").asarray(sample))
