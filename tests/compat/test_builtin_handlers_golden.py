"""Our image handlers against torchvision's transforms and networks; see ``golden/make_vision.py`` for the numbers.

Items 1, 4, 6, 8 and 9 of the reference for built-in handlers, with TorchServe's own steps instead of ours.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.networks import ResNet18, Segmenter
from golden.pictures import PICTURES, encoded, picture, samples
from golden.weights import seeded
from PIL import Image

from ts.testing import MockContext
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.image_segmenter import ImageSegmenter
from ts.torch_handler.object_detector import ObjectDetector
from ts.torch_handler.vision_handler import ImageTransform

pytestmark = [pytest.mark.torch, pytest.mark.slow]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def golden() -> Iterator[Any]:
    with np.load(Path(__file__).parent / "golden" / "vision.npz") as stored:
        yield stored


@pytest.fixture(scope="module")
def names(golden: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(golden["names"].tobytes())
    return found


def ready(handler: Any, model: Any) -> Any:
    """A handler with a model in memory."""
    handler.device, handler.model = torch.device("cpu"), model.eval()
    return handler


def requests(names: list[str]) -> list[dict[str, Any]]:
    return [{"body": bytearray(encoded(name))} for name in names]


@pytest.mark.parametrize("name", PICTURES)
def test_the_transform_of_classifiers_is_that_of_torchvision(golden: Any, name: str) -> None:
    image = Image.open(io.BytesIO(encoded(name)))
    bands = len(image.getbands())
    transform = ImageTransform(resize=256, crop=224, mean=(MEAN * 2)[:bands], std=(STD * 2)[:bands])
    if bands == 3:
        assert transform == ImageClassifier.image_processing
    np.testing.assert_allclose(samples(transform(image).numpy()), golden[f"classifier/{name}"], atol=1e-6)


@pytest.mark.parametrize("name", PICTURES)
def test_the_tensor_of_detectors_is_that_of_torchvision(golden: Any, name: str) -> None:
    image = Image.open(io.BytesIO(encoded(name)))
    np.testing.assert_allclose(
        samples(ObjectDetector.image_processing(image).numpy()), golden[f"detector/{name}"], atol=1e-7
    )


def test_a_jpeg_is_prepared_as_by_torchvision(golden: Any) -> None:
    prepared = ready(ImageClassifier(), torch.nn.Identity()).preprocess([{"data": golden["jpeg"].tobytes()}])
    np.testing.assert_allclose(samples(prepared[0].numpy()), golden["classifier/jpeg"], atol=1e-5)


def test_a_resnet_gives_the_classes_and_probabilities_of_torchvision(golden: Any, names: dict[str, list[str]]) -> None:
    model = ResNet18()
    model.load_state_dict(seeded(model.state_dict(), last="fc.weight", gain=0.3))
    answers = ready(ImageClassifier(), model).handle(requests(names["coloured"]), MockContext())
    for answer, classes, probabilities in zip(answers, golden["classes"], golden["probabilities"], strict=True):
        assert list(answer) == [str(number) for number in classes]
        assert list(answer.values()) == pytest.approx(probabilities.tolist(), abs=1e-3)


def test_a_segmenter_gives_the_pixels_of_torchvision(golden: Any, names: dict[str, list[str]]) -> None:
    model = Segmenter()
    model.load_state_dict(seeded(model.state_dict(), last="classifier.4.weight", gain=0.4))
    answers = np.array(ready(ImageSegmenter(), model).handle(requests(names["coloured"]), MockContext()))
    assert answers.shape == (len(names["coloured"]), 224, 224, 2)
    pixels, expected = answers[:, ::16, ::16], golden["pixels"]
    np.testing.assert_allclose(pixels[..., 1], expected[..., 1], atol=1e-3)
    # Where two classes are as probable as each other, either may be named.
    assert (pixels[..., 0] == expected[..., 0]).mean() > 0.99


class Recorded(torch.nn.Module):
    """What torchvision's detector found in a picture of each size: its operators are not part of PyTorch."""

    def __init__(self, found: dict[tuple[int, int], dict[str, Any]]) -> None:
        super().__init__()
        self.found = found

    def forward(self, images: Any) -> Any:
        return [self.found[tuple(image.shape[1:])] for image in images]


def test_a_detector_answers_with_the_objects_above_its_threshold(golden: Any, names: dict[str, list[str]]) -> None:
    objects: dict[str, dict[str, Any]] = {
        name: {key: torch.from_numpy(golden[f"objects/{name}/{key}"]) for key in ("boxes", "labels", "scores")}
        for name in names["detected"]
    }
    model = Recorded({picture(name).size[::-1]: found for name, found in objects.items()})
    handler = ready(ObjectDetector(), model)
    for name, found in objects.items():
        (answer,) = handler.handle(requests([name]), MockContext())
        rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
        expected = [{str(label): box, "score": score} for box, label, score in rows if score >= 0.5]
        assert answer == expected
        assert 0 < len(expected) < len(found["scores"])
