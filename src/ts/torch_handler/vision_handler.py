"""VisionHandler: requests with images, and the transform that most image models were trained with."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from ts.handler_utils.timer import timed
from ts.importing import require
from ts.torch_handler.base_handler import BaseHandler

__all__ = ["ImageTransform", "VisionHandler", "image_to_tensor"]


@dataclass(frozen=True)
class ImageTransform:
    """Scales the shorter side, cuts out the centre, and normalises the channels.

    Attributes:
        resize: pixels of the shorter side.
        crop: pixels of the square that is cut out.
        mean: of each channel, between 0 and 1.
        std: of each channel.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Any:
        """The tensor ``[channel, row, column]`` of an image.

        Args:
            image: of any size, with as many channels as ``mean``.

        Raises:
            ValueError: the image has another number of channels.
        """
        tensor = image_to_tensor(self._cut(self._scale(image)))
        if tensor.shape[0] != len(self.mean):
            raise ValueError(
                f"The image has mode {image.mode}, that is {tensor.shape[0]} channels, and the model takes "
                f"{len(self.mean)}. Convert it, or replace image_processing in the handler."
            )
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (tensor - mean) / std

    def _scale(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        shorter, longer = min(width, height), max(width, height)
        if shorter == self.resize:
            return image
        longer = int(self.resize * longer / shorter)
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        return image.resize(size, Image.Resampling.BILINEAR)

    def _cut(self, image: Image.Image) -> Image.Image:
        # A box that reaches beyond the image is filled with black.
        left, top = round((image.width - self.crop) / 2), round((image.height - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))


# Pixel formats with more than eight bits, or fewer, and the tensors that hold them.
_WIDE = {"I": torch.int32, "F": torch.float32, "I;16": torch.int16}


def image_to_tensor(image: Image.Image) -> Any:
    """The tensor ``[channel, row, column]`` of an image; channels of eight bits become numbers from 0 to 1.

    Args:
        image: of any mode.
    """
    wide = _WIDE.get(image.mode)
    if image.mode == "1":
        image = image.convert("L")
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=wide or torch.uint8)
    tensor = flat.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1).contiguous()
    return tensor if wide else tensor.to(torch.get_default_dtype()).div(255)


class VisionHandler(BaseHandler):
    """Base of handlers that take images: encoded, in base64, or as nested lists of numbers.

    Attributes:
        image_processing: makes a tensor of an image; subclasses provide it.
    """

    image_processing: Callable[[Any], Any]

    def initialize(self, context: Any) -> None:
        """Loads the model of an archive.

        Args:
            context: says where the archive is and which device to use.

        Raises:
            RuntimeError: the archive has no weights, or none that can be loaded.
            ValueError: the model file or the configuration is not as it must be.
        """
        super().initialize(context)
        if not context.system_properties.get("limit_max_image_pixels"):
            Image.MAX_IMAGE_PIXELS = None

    @cached_property
    def ig(self) -> Any:
        """Integrated gradients of the model."""
        return require("captum.attr", "captum", "Explanations need").IntegratedGradients(self.model)

    @timed
    def preprocess(self, data: Any) -> Any:
        """One tensor of all images.

        Args:
            data: for each request its image as ``data`` or ``body``.

        Returns:
            A tensor ``[request, channel, row, column]`` on the device.

        Raises:
            OSError: an image cannot be decoded.
            ValueError: an image cannot be made into what the model takes.
        """
        images = []
        for row in data:
            image = row.get("data") or row.get("body")
            if isinstance(image, str):
                image = base64.b64decode(image)
            if isinstance(image, (bytes, bytearray, memoryview)):
                images.append(self.image_processing(Image.open(io.BytesIO(image))))
            else:
                images.append(torch.as_tensor(image, dtype=torch.float32))
        return torch.stack(images).to(self.device)

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> list[Any]:
        """How much each input value speaks for a class.

        Args:
            tensor_data: what :meth:`preprocess` made of the batch.
            target: number of the class.

        Returns:
            For each request a nested list of the shape of its tensor.

        Raises:
            ImportError: captum is not installed.
        """
        insights: list[Any] = self.ig.attribute(tensor_data, target=target, n_steps=15).tolist()
        return insights
