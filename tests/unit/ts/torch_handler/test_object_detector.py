from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ts.context import Context
from ts.loader import find_handler
from ts.torch_handler.object_detector import ObjectDetector

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]

# Finds the whole image as object 1, surer the redder it is, and its upper left quarter as object 2, always half sure.
FINDER = """
import torch


class Finder(torch.nn.Module):
    def forward(self, images):
        return [self.find(image) for image in images]

    def find(self, image):
        _, height, width = image.shape
        boxes = torch.tensor([[0, 0, width, height], [0, 0, width / 2, height / 2]], dtype=torch.float32)
        scores = torch.stack([image[0].mean(), torch.tensor(0.5)])
        return {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": scores}
"""


def png(red: int, size: tuple[int, int] = (30, 20)) -> bytearray:
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(buffer, "PNG")
    return bytearray(buffer.getvalue())


@pytest.fixture
def make_handler(make_context: MakeContext, tmp_path: Path) -> Callable[..., ObjectDetector]:
    def make(handler: ObjectDetector | None = None, **options: Any) -> ObjectDetector:
        (tmp_path / "model.py").write_text(FINDER, encoding="utf-8")
        handler = handler or ObjectDetector()
        handler.initialize(make_context(None, "model.py", **options))
        return handler

    return make


def test_objects_are_answered_in_the_order_of_the_model(
    make_handler: Callable[..., ObjectDetector], make_context: MakeContext
) -> None:
    handler = make_handler(mapping={"object_type_names": ["nothing", "person", "bag"]})
    (found,) = handler.handle([{"body": png(255)}], make_context())
    assert found == [
        {"person": [0.0, 0.0, 30.0, 20.0], "score": 1.0},
        {"bag": [0.0, 0.0, 15.0, 10.0], "score": 0.5},
    ]


def test_objects_below_the_threshold_are_left_out(
    make_handler: Callable[..., ObjectDetector], make_context: MakeContext
) -> None:
    (found,) = make_handler().handle([{"data": png(51)}], make_context())
    assert found == [{"2": [0.0, 0.0, 15.0, 10.0], "score": 0.5}]


def test_a_subclass_sets_the_threshold(make_handler: Callable[..., ObjectDetector], make_context: MakeContext) -> None:
    class Unsure(ObjectDetector):
        threshold = 0.1

    (found,) = make_handler(Unsure()).handle([{"body": png(51)}], make_context())
    assert [set(row) for row in found] == [{"1", "score"}, {"2", "score"}]
    assert found[0]["score"] == pytest.approx(0.2)


def test_nothing_found_is_an_empty_list(make_handler: Callable[..., ObjectDetector], make_context: MakeContext) -> None:
    handler = make_handler()
    handler.threshold = 0.9
    assert handler.handle([{"body": png(0)}], make_context()) == [[]]


def test_every_request_of_a_batch_has_its_objects(
    make_handler: Callable[..., ObjectDetector], make_context: MakeContext
) -> None:
    handler = make_handler(mapping={"1": "person"})
    red, black = handler.handle([{"body": png(255)}, {"body": png(0)}], make_context())
    assert [next(iter(row)) for row in red] == ["person", "2"]
    assert [next(iter(row)) for row in black] == ["2"]


def test_images_keep_their_size_and_are_not_normalised(make_handler: Callable[..., ObjectDetector]) -> None:
    tensor = make_handler().preprocess([{"body": png(255, (5, 4))}])
    assert tensor.shape == (1, 3, 4, 5)
    assert torch.equal(tensor[0, 0], torch.ones(4, 5))


def test_the_detector_is_found_by_its_name(tmp_path: Path) -> None:
    entry = find_handler("object_detector", tmp_path)
    assert isinstance(entry.handle.__self__, ObjectDetector)  # type: ignore[attr-defined]
