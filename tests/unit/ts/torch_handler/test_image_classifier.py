from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image, UnidentifiedImageError

from ts.context import Context
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.vision_handler import ImageTransform, VisionHandler, image_to_tensor

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]

COLOURS = """
import torch


class Colours(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))
"""


def png(colour: Any, *, mode: str = "RGB", size: tuple[int, int] = (300, 200)) -> bytearray:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return bytearray(buffer.getvalue())


RED, GREEN = png((255, 0, 0)), png((0, 255, 0))


@pytest.fixture
def make_handler(make_context: MakeContext) -> Callable[..., Any]:
    """Builds a handler whose model tells the strongest of red, green and blue."""

    def make(handler: VisionHandler, **options: Any) -> Any:
        context = make_context(None, "model.py", **options)
        with open(f"{context.system_properties['model_dir']}/model.py", "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(COLOURS)
        handler.initialize(context)
        return handler

    return make


def test_an_image_is_answered_with_its_classes_the_best_first(
    make_handler: Callable[..., Any], make_context: MakeContext
) -> None:
    handler = make_handler(ImageClassifier(), mapping={"0": ["n0", "red"], "1": "green", "2": "blue"})
    red, green = handler.handle([{"body": RED}, {"data": GREEN}], make_context())
    assert next(iter(red)) == "red"
    assert next(iter(green)) == "green"
    assert set(red) == {"red", "green", "blue"}
    assert sum(red.values()) == pytest.approx(1)
    assert list(red.values()) == sorted(red.values(), reverse=True)


def test_without_labels_classes_are_numbers(make_handler: Callable[..., Any], make_context: MakeContext) -> None:
    (answer,) = make_handler(ImageClassifier()).handle([{"body": RED}], make_context())
    assert next(iter(answer)) == "0"
    assert set(answer) == {"0", "1", "2"}


def test_a_class_without_a_label_goes_by_its_number(
    make_handler: Callable[..., Any], make_context: MakeContext
) -> None:
    (answer,) = make_handler(ImageClassifier(), mapping={"1": "green"}).handle([{"body": RED}], make_context())
    assert set(answer) == {"0", "green", "2"}


def test_the_number_of_classes_can_be_set(make_handler: Callable[..., Any], make_context: MakeContext) -> None:
    handler = make_handler(ImageClassifier())
    assert handler.get_max_result_classes() == 5
    handler.set_max_result_classes(2)
    (answer,) = handler.handle([{"body": RED}], make_context())
    assert len(answer) == handler.topk == 2


def test_base64_is_the_same_image(make_handler: Callable[..., Any]) -> None:
    handler = make_handler(ImageClassifier())
    raw, text = handler.preprocess([{"body": RED}, {"body": base64.b64encode(RED).decode()}])
    assert torch.equal(raw, text)


def test_nested_lists_are_taken_as_they_are(make_handler: Callable[..., Any]) -> None:
    numbers = [[[0.5, 2.0]], [[1.0, 1.0]]]
    assert make_handler(ImageClassifier()).preprocess([{"data": numbers}]).tolist() == [numbers]


def test_the_transform_scales_cuts_and_normalises() -> None:
    tensor = ImageClassifier.image_processing(Image.open(io.BytesIO(RED)))
    assert tensor.shape == (3, 224, 224)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert tensor[:, 0, 0].tolist() == pytest.approx(expected)
    assert torch.allclose(tensor, tensor[:, :1, :1])


def test_the_centre_is_what_is_cut_out() -> None:
    image = Image.new("L", (8, 4), 0)
    image.paste(255, (3, 1, 5, 3))
    transform = ImageTransform(resize=4, crop=2, mean=(0.0,), std=(1.0,))
    assert transform(image).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


@pytest.mark.parametrize(
    ("size", "expected"), [((300, 200), (384, 256)), ((200, 300), (256, 384)), ((9, 9), (256, 256))]
)
def test_the_shorter_side_is_scaled(size: tuple[int, int], expected: tuple[int, int]) -> None:
    transform = ImageTransform(resize=256, crop=224, mean=(0.0,), std=(1.0,))
    assert transform._scale(Image.new("L", size)).size == expected


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 255, [1.0]), ("1", 1, [1.0]), ("RGBA", (255, 0, 0, 51), [1.0, 0.0, 0.0, 0.2]), ("I", 70000, [70000])],
)
def test_the_mode_of_an_image_is_kept(mode: str, colour: Any, expected: list[float]) -> None:
    tensor = image_to_tensor(Image.new(mode, (10, 3), colour))
    assert tensor.shape == (len(expected), 3, 10)
    assert tensor[:, 2, 9].tolist() == pytest.approx(expected)


def test_a_subclass_gets_gray_images_with_one_channel(make_handler: Callable[..., Any]) -> None:
    class Digits(VisionHandler):
        image_processing = ImageTransform(resize=28, crop=28, mean=(0.1307,), std=(0.3081,))

    tensor = make_handler(Digits()).preprocess([{"body": png(255, mode="L", size=(28, 28))}])
    assert tensor.shape == (1, 1, 28, 28)


@pytest.mark.parametrize(("mode", "colour"), [("L", 9), ("RGBA", (1, 2, 3, 4))])
def test_an_image_with_other_channels_is_refused(make_handler: Callable[..., Any], mode: str, colour: Any) -> None:
    with pytest.raises(ValueError, match=rf"The image has mode {mode}, that is . channels, and the model takes 3"):
        make_handler(ImageClassifier()).preprocess([{"body": png(colour, mode=mode)}])


def test_what_is_no_image_fails_the_batch(make_handler: Callable[..., Any], make_context: MakeContext) -> None:
    with pytest.raises(UnidentifiedImageError):
        make_handler(ImageClassifier()).handle([{"body": RED}, {"body": bytearray(b"text")}], make_context())


@pytest.mark.parametrize(("limited", "expected"), [(True, 1000), (False, None)])
def test_the_limit_of_pixels_can_be_lifted(
    make_handler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, limited: bool, expected: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    make_handler(ImageClassifier(), limit_max_image_pixels=limited)
    assert expected == Image.MAX_IMAGE_PIXELS


def test_explaining_without_captum_names_it(
    make_handler: Callable[..., Any], make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    handler = make_handler(ImageClassifier())
    with pytest.raises(ImportError, match="pip install captum"):
        handler.handle([{"body": RED}], make_context(headers={"explain": "True"}))


def test_an_explanation_has_the_shape_of_the_input(
    make_handler: Callable[..., Any], make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gradients:
        def __init__(self, model: Any) -> None:
            self.model = model

        def attribute(self, tensor: Any, *, target: int, n_steps: int) -> Any:
            return tensor * target * n_steps

    captum = ModuleType("captum.attr")
    captum.IntegratedGradients = Gradients  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "captum", ModuleType("captum"))
    monkeypatch.setitem(sys.modules, "captum.attr", captum)
    handler = make_handler(ImageClassifier())
    handler.image_processing = ImageTransform(resize=2, crop=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    data = [{"body": RED, "target": bytearray(b"2")}]
    (insight,) = handler.handle(data, make_context(headers={"explain": "True"}))
    assert insight == [[[30.0, 30.0]] * 2, [[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2]
