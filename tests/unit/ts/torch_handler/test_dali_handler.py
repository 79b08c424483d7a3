"""The DALI handlers around a stand-in for DALI that computes on the CPU."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ts.context import Context
from ts.handler_utils.preprocess.dali import get_dali_pipeline
from ts.torch_handler.dali_handler import DALIHandler
from ts.torch_handler.dali_image_classifier import DALIImageClassifier
from ts.torch_handler.image_classifier import ImageClassifier

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]
SECTION = {"batch_size": 2, "num_threads": 1, "device_id": 0, "seed": 12}
COLOURS = """
import torch


class Colours(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))
"""


def png(colour: tuple[int, int, int]) -> bytearray:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(buffer, "PNG")
    return bytearray(buffer.getvalue())


RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


@pytest.fixture
def context(make_context: MakeContext, tmp_path: Path) -> Context:
    (tmp_path / "model.py").write_text(COLOURS, encoding="utf-8")
    return make_context(None, "model.py", config={"dali": dict(SECTION)}, mapping={"0": "red", "2": "blue"})


@pytest.fixture
def handler(context: Context, put_stand_in: Callable[[str], None]) -> DALIImageClassifier:
    put_stand_in("dali")
    handler = DALIImageClassifier()
    handler.initialize(context)
    return handler


def test_dali_prepares_what_pillow_does(handler: DALIImageClassifier, context: Context) -> None:
    data = [{"body": RED}, {"data": bytes(BLUE)}]
    pillow = ImageClassifier()
    pillow.initialize(context)
    assert torch.allclose(handler.preprocess(data), pillow.preprocess(data), atol=1e-5)
    red, blue = handler.handle(data, context)
    assert (next(iter(red)), next(iter(blue))) == ("red", "blue")


def test_the_number_of_classes_can_be_set_with_dali_too(handler: DALIImageClassifier, context: Context) -> None:
    handler.set_max_result_classes(1)
    assert handler.get_max_result_classes() == 1
    assert [list(answer) for answer in handler.handle([{"body": RED}], context)] == [["red"]]


def test_what_is_not_bytes_is_refused(handler: DALIImageClassifier) -> None:
    with pytest.raises(TypeError, match="takes encoded images as bytes in the body"):
        handler.preprocess([{"body": "aGVsbG8="}])


def test_the_pipeline_has_the_numbers_of_the_configuration(handler: DALIImageClassifier) -> None:
    assert handler.pipeline.options == SECTION
    assert dict(handler.pipeline.steps)["external_source"]["name"] == "source"


def test_a_pipeline_of_the_archive_is_loaded(
    context: Context, tmp_path: Path, put_stand_in: Callable[[str], None]
) -> None:
    put_stand_in("dali")
    context.model_yaml_config["dali"]["pipeline_file"] = "own.dali"
    (tmp_path / "own.dali").write_bytes(b"pipeline")
    pipeline = get_dali_pipeline(context)
    assert (pipeline.file, pipeline.options, pipeline.built) == (str(tmp_path / "own.dali"), SECTION, True)


def test_a_missing_pipeline_file_is_a_failure(context: Context) -> None:
    context.model_yaml_config["dali"]["pipeline_file"] = "absent.dali"
    with pytest.raises(RuntimeError, match=r"Missing dali pipeline file\. absent\.dali is not in the archive"):
        get_dali_pipeline(context)


@pytest.mark.parametrize("key", SECTION)
def test_each_number_is_needed(context: Context, key: str) -> None:
    del context.model_yaml_config["dali"][key]
    with pytest.raises(KeyError, match=key):
        get_dali_pipeline(context)


@pytest.mark.parametrize("config", [{}, {"dali": None}])
def test_the_section_is_needed(context: Context, config: dict[str, Any]) -> None:
    context.model_yaml_config = config
    with pytest.raises(ValueError, match="tiny has no section dali in its model configuration"):
        get_dali_pipeline(context)


def test_without_dali_the_package_is_named(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(
        ImportError, match="DALI preprocessing needs a package that is missing: pip install nvidia-dali"
    ):
        DALIHandler().initialize(context)
