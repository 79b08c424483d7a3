"""Image handlers in a real server: items 1-9, 12, 13, 28 and 29 of the reference for built-in handlers."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from served_models import PAIRS, ask, ask_together, picture_file, put_archive

from mariner.auth import Listener
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]

# The logits of an image follow from how red, green and blue it is.
COLOURS = """
import torch


class Colours(torch.nn.Module):
    def forward(self, images):
        means = images.mean(dim=(2, 3))
        return torch.cat([2 * means, 0 * means], dim=1)
"""
THREE = """
import torch


class Three(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))
"""
DIGITS = """
import torch


class Digits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(28 * 28, 10)
        torch.nn.init.constant_(self.last.weight, 0.25)

    def forward(self, images):
        return self.last(images.flatten(1))
"""
DETECTOR = """
import torch


class Detector(torch.nn.Module):
    def forward(self, images):
        box = torch.tensor([[0.0, 0.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
        labels = torch.tensor([1, 2])
        return [{"boxes": box, "labels": labels, "scores": image[:2].mean(dim=(1, 2))} for image in images]
"""
SEGMENTER = """
import torch


class Segmenter(torch.nn.Module):
    def forward(self, images):
        return {"out": images}
"""
SUBCLASS = """
from ts.torch_handler.image_classifier import ImageClassifier


class Best(ImageClassifier):
    def initialize(self, context):
        super().initialize(context)
        self.set_max_result_classes(3)

    def describe_handle(self):
        return {"classes": self.get_max_result_classes()}
"""
DIGIT_HANDLER = """
from ts.torch_handler.vision_handler import ImageTransform, VisionHandler


class DigitHandler(VisionHandler):
    image_processing = ImageTransform(resize=28, crop=28, mean=(0.1307,), std=(0.3081,))

    def postprocess(self, data):
        return data.argmax(1).tolist()
"""
LOW = """
from ts.torch_handler.object_detector import ObjectDetector


class Low(ObjectDetector):
    threshold = 0.1
"""
OVERRIDES = {
    "preprocess": "def preprocess(self, data):\n        import torch\n        return torch.ones(len(data), 3, 2, 2)",
    "inference": "def inference(self, data):\n        return 0 * super().inference(data)",
    "postprocess": "def postprocess(self, data):\n        return [list(data.shape)[1:] for _ in data]",
    "_load_torchscript_model": (
        "def _load_torchscript_model(self, path):\n"
        "        import torch\n"
        "        return lambda images: torch.tensor([[0.0, 9.0]] * len(images))"
    ),
}
LABELS = {"0": ["n0", "red"], "1": ["n1", "green"], "2": ["n2", "blue"]}
NO_CAPTUM = {"captum.py": "raise ImportError('there is no captum here')\n"}
RED, GREEN = picture_file((255, 0, 0)), picture_file((0, 255, 0))
JPEG = picture_file((250, 10, 10), kind="JPEG")


def put_all(store: Path) -> list[str]:
    classifier = {"model.py": COLOURS}
    put_archive(store, "plain", "image_classifier", classifier, modelFile="model.py")
    put_archive(store, "named", "image_classifier", {**classifier, "index_to_name.json": LABELS}, modelFile="model.py")
    types = {"object_type_names": [f"type-{number}" for number in range(6)]}
    put_archive(store, "typed", "image_classifier", {**classifier, "index_to_name.json": types}, modelFile="model.py")
    put_archive(store, "three", "image_classifier", {"model.py": THREE, **NO_CAPTUM}, modelFile="model.py")
    put_archive(store, "pairs", "image_classifier", {"model.py": THREE}, PAIRS, modelFile="model.py")
    whole = f"{PAIRS}isolateBatchErrors: false\n"
    put_archive(store, "whole", "image_classifier", {"model.py": THREE}, whole, modelFile="model.py")
    put_archive(store, "best", "handler.py", {**classifier, "handler.py": SUBCLASS}, modelFile="model.py")
    put_archive(
        store, "digits", "handler.py", {"model.py": DIGITS, "handler.py": DIGIT_HANDLER}, PAIRS, modelFile="model.py"
    )
    put_archive(store, "detector", "object_detector", {"model.py": DETECTOR}, modelFile="model.py")
    put_archive(store, "low", "handler.py", {"model.py": DETECTOR, "handler.py": LOW}, modelFile="model.py")
    put_archive(store, "segmenter", "image_segmenter", {"model.py": SEGMENTER}, modelFile="model.py")
    for method, source in OVERRIDES.items():
        classes = "from ts.torch_handler.image_classifier import ImageClassifier\n\n\nclass Mine(ImageClassifier):"
        handler = f"{classes}\n    {source}\n"
        model = {"serializedFile": "model.pt"} if method.startswith("_load") else {"modelFile": "model.py"}
        files = {"handler.py": handler, "model.py": THREE, "model.pt": b"mine to read"}
        put_archive(store, method.strip("_"), "handler.py", files, **model)
    return [place.name for place in store.iterdir()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    place = tmp_path_factory.mktemp("vision")
    names = put_all(place / "store")
    async with running_server(model_store=place / "store", load_models=tuple(names), temp_dir=place) as server:
        await server.models.wait_until_ready()
        yield server


async def predict(server: Server, model: str, body: bytes, **headers: str) -> Any:
    answer = await ask(server, "POST", f"/predictions/{model}", body, **headers)
    assert answer.status == 200, answer.body
    return answer.json


async def test_01_a_jpeg_is_answered_with_five_classes_the_best_first(server: Server) -> None:
    answer = await predict(server, "named", JPEG)
    assert len(answer) == 5
    assert next(iter(answer)) == "red"
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert 0.8 < sum(answer.values()) <= 1


@pytest.mark.parametrize(("model", "label"), [("plain", "0"), ("named", "red"), ("typed", "type-0")])
async def test_02_a_class_goes_by_its_label_in_any_form_or_by_its_number(
    server: Server, model: str, label: str
) -> None:
    assert next(iter(await predict(server, model, RED))) == label


async def test_03_a_subclass_asks_for_fewer_classes_and_a_model_may_have_fewer(server: Server) -> None:
    assert len(await predict(server, "best", RED)) == 3
    assert set(await predict(server, "three", RED)) == {"0", "1", "2"}


async def test_04_base64_is_the_same_picture_and_lists_of_numbers_pass_the_transform_by(server: Server) -> None:
    text = await predict(server, "plain", base64.b64encode(RED), Content_Type="text/plain")
    assert text == await predict(server, "plain", RED)
    numbers = json.dumps([[[9.0]], [[0.0]], [[0.0]]]).encode()
    listed = await predict(server, "three", numbers, Content_Type="application/json")
    assert listed["0"] == pytest.approx(1, abs=1e-3)


async def test_05_in_a_batch_each_picture_has_its_answer_and_a_corrupt_one_fails_alone(server: Server) -> None:
    red, green = await ask_together(server, "/predictions/pairs", [RED, GREEN])
    assert [next(iter(answer.json)) for answer in (red, green)] == ["0", "1"]
    answers = await ask_together(server, "/predictions/pairs", [RED, b"no picture"])
    assert [answer.status for answer in answers] == [200, 503]


async def test_05_without_isolation_a_corrupt_picture_fails_its_batch(server: Server) -> None:
    answers = await ask_together(server, "/predictions/whole", [RED, b"no picture"])
    assert [answer.status for answer in answers] == [503, 503]


async def test_06_a_gray_picture_reaches_a_subclass_with_one_channel(server: Server) -> None:
    gray = picture_file(200, "L", (28, 28))
    answers = await ask_together(server, "/predictions/digits", [gray, gray])
    assert [(answer.status, type(answer.json)) for answer in answers] == [(200, int)] * 2


async def test_08_a_detector_answers_with_labelled_boxes_above_its_threshold(server: Server) -> None:
    orange, dark = picture_file((255, 102, 0)), picture_file((0, 0, 0))
    sure = {"1": [0.0, 0.0, 4.0, 5.0], "score": 1.0}
    assert await predict(server, "detector", orange) == [sure]
    less = {"2": [1.0, 2.0, 3.0, 4.0], "score": pytest.approx(0.4)}
    assert await predict(server, "low", orange) == [sure, less]
    assert await predict(server, "detector", dark) == []


async def test_09_a_segmenter_answers_with_class_and_probability_of_each_pixel(server: Server) -> None:
    rows = await predict(server, "segmenter", GREEN)
    pixels = [pixel for row in rows for pixel in row]
    assert (len(rows), len(rows[0]), {len(pixel) for pixel in pixels}) == (224, 224, {2})
    assert {pixel[0] for pixel in pixels} == {1.0}
    assert all(isinstance(pixel[0], float) and 0 <= pixel[1] <= 1 for pixel in pixels)


async def test_12_an_explanation_has_the_shape_of_the_picture_for_each_request(server: Server) -> None:
    white, gray = picture_file(255, "L", (28, 28)), picture_file(100, "L", (28, 28))
    answers = await ask_together(server, "/explanations/digits", [white, gray])
    assert [answer.status for answer in answers] == [200, 200]
    explained = [answer.json for answer in answers]
    assert [(len(one), len(one[0]), len(one[0][0])) for one in explained] == [(1, 28, 28)] * 2
    # Integrated gradients of a linear model: each pixel's value times its weight.
    for value, one in zip((255, 100), explained, strict=True):
        assert one[0][3][4] == pytest.approx(0.25 * (value / 255 - 0.1307) / 0.3081, rel=1e-3)


async def test_13_a_picture_is_classified_without_captum_and_an_explanation_is_refused(server: Server) -> None:
    assert set(await predict(server, "three", GREEN)) == {"0", "1", "2"}
    assert (await ask(server, "POST", "/explanations/three", GREEN)).status == 503


async def test_28_a_subclass_describes_itself(server: Server) -> None:
    answer = await ask(server, "GET", "/models/best?customized=true", kind=Listener.MANAGEMENT)
    assert answer.json[0]["customizedMetadata"] == {"classes": 3}


@pytest.mark.parametrize(
    ("model", "check"),
    [
        ("preprocess", lambda answer: list(answer.values()) == pytest.approx([1 / 3] * 3)),
        ("inference", lambda answer: list(answer.values()) == pytest.approx([1 / 3] * 3)),
        ("postprocess", lambda answer: answer == [3]),
        ("load_torchscript_model", lambda answer: list(answer) == ["1", "0"]),
    ],
)
async def test_29_a_subclass_that_replaces_one_method_keeps_the_others(server: Server, model: str, check: Any) -> None:
    assert check(await predict(server, model, RED))
