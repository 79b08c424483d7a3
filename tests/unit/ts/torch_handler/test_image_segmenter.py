from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ts.context import Context
from ts.loader import find_handler
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.image_segmenter import ImageSegmenter

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]

# The class of a pixel is its strongest colour.
COLOURS = """
import torch


class Colours(torch.nn.Module):
    def forward(self, images):
        return {"out": images, "aux": None}
"""


def halves() -> bytearray:
    """An image that is red on the left and blue on the right."""
    image = Image.new("RGB", (256, 256), (255, 0, 0))
    image.paste((0, 0, 255), (128, 0, 256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return bytearray(buffer.getvalue())


@pytest.fixture
def handler(make_context: MakeContext, tmp_path: Path) -> ImageSegmenter:
    (tmp_path / "model.py").write_text(COLOURS, encoding="utf-8")
    handler = ImageSegmenter()
    handler.initialize(make_context(None, "model.py"))
    return handler


def test_every_pixel_gets_its_class_and_probability(handler: ImageSegmenter) -> None:
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]], [[0.0, 3.0]]]])
    (((left, right),),) = handler.postprocess({"out": logits})
    assert left == [0.0, pytest.approx(math.exp(2) / (math.exp(2) + 2))]
    assert right == [2.0, pytest.approx(math.exp(3) / (math.exp(3) + 2))]


def test_an_image_is_answered_with_rows_of_pixels(handler: ImageSegmenter, make_context: MakeContext) -> None:
    (rows,) = handler.handle([{"body": halves()}], make_context())
    pixels = torch.tensor(rows)
    assert pixels.shape == (224, 224, 2)
    assert pixels[:, :112, 0].unique().tolist() == [0]
    assert pixels[:, 112:, 0].unique().tolist() == [2]
    assert pixels[..., 1].min() > 0.5
    assert pixels[..., 1].max() <= 1


def test_every_request_of_a_batch_has_its_pixels(handler: ImageSegmenter, make_context: MakeContext) -> None:
    first, second = handler.handle([{"body": halves()}, {"data": halves()}], make_context())
    assert first == second


def test_class_numbers_survive_short_floats(handler: ImageSegmenter) -> None:
    logits = torch.zeros(1, 300, 1, 1, dtype=torch.bfloat16)
    logits[0, 299] = 9
    ((((number, _),),),) = handler.postprocess({"out": logits})
    assert number == 299


def test_images_are_made_ready_as_for_the_classifier() -> None:
    assert ImageSegmenter.image_processing == ImageClassifier.image_processing


def test_the_segmenter_is_found_by_its_name(tmp_path: Path) -> None:
    entry = find_handler("image_segmenter", tmp_path)
    assert isinstance(entry.handle.__self__, ImageSegmenter)  # type: ignore[attr-defined]
