"""``BaseHandler`` behind a real server: items 4, 43, 46, 48, 50 and 51 of the handler contract."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from handler_api import Model, Scene, serving
from test_serving import names_in

from mariner.auth import Listener

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]

SCALE = """
import torch

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, values):
        return values * self.factor
"""

# The constructor does not call that of the base class, as in many handlers.
NET = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Net(BaseHandler):
    def __init__(self):
        self.mine = 1

    def preprocess(self, data):
        return torch.tensor([float(row.get("data") or row.get("body")) for row in data])

    def describe_handle(self):
        return {"classes": 2, "device": str(self.get_device())}

    def get_insights(self, tensor_data, inputs, target):
        return [{"tensor": tensor_data.tolist(), "inputs": inputs.decode(), "target": target}]
"""
MUTE = NET.partition("    def describe_handle")[0]

ONNX = """
import numpy
from ts.torch_handler.base_handler import BaseHandler

class Runtime(BaseHandler):
    def preprocess(self, data):
        return numpy.array([float(row["body"]) for row in data], dtype=numpy.float32)

    def inference(self, data):
        return self.model.run(None, {"x": data})[0]
"""


def state_dict() -> bytes:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save({"factor": torch.tensor([3.0])}, file)
    return file.getvalue()


def doubling() -> bytes:
    """An ONNX model that adds a vector to itself."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    model: bytes = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    eager = {"modelFile": "scale.py", "serializedFile": "scale.pt"}
    models = {
        "net": Model(NET, files={"scale.py": SCALE, "scale.pt": state_dict()}, manifest=eager),
        "mute": Model(MUTE, files={"scale.py": SCALE}, manifest={"modelFile": "scale.py"}),
        "onnx": Model(ONNX, files={"double.onnx": doubling()}, manifest={"serializedFile": "double.onnx"}),
    }
    async with serving(tmp_path_factory.mktemp("base_handler"), models) as scene:
        yield scene


async def metrics(scene: Scene, model: str) -> set[str]:
    """Names of the handler's metrics that have a sample for the model."""
    text = (await scene.ask("GET", "/metrics", kind=Listener.METRICS)).body.decode()
    names = ("HandlerTime", "PredictionTime")
    return {name for name in names if f'{name}{{ModelName="{model}"' in text}


async def test_48_a_batch_that_fails_leaves_no_times_and_one_that_succeeds_does(scene: Scene) -> None:
    answer = await scene.ask("POST", "/predictions/mute", "no number", Content_Type="text/plain")
    assert (answer.status, answer.json["message"]) == (503, "Prediction failed")
    assert await metrics(scene, "mute") == set()
    assert (await scene.ask("POST", "/predictions/mute", "2", Content_Type="text/plain")).json == 2.0
    async with asyncio.timeout(20):
        while await metrics(scene, "mute") != {"HandlerTime", "PredictionTime"}:
            pass


async def test_4_a_handler_that_skips_the_constructor_of_its_base_serves(scene: Scene) -> None:
    assert (await scene.ask("POST", "/predictions/net", "2", Content_Type="text/plain")).json == 6.0


async def test_43_the_description_of_the_handler_is_shown(scene: Scene) -> None:
    (description,) = (await scene.manage("GET", "/models/net?customized=true")).json
    assert description["customizedMetadata"] == {"classes": 2, "device": "cpu"}


async def test_46_an_onnx_model_is_served_by_its_runtime(scene: Scene) -> None:
    assert (await scene.ask("POST", "/predictions/onnx", "21", Content_Type="text/plain")).json == 42.0


async def test_50_the_profiler_leaves_a_trace_of_each_batch_under_the_name_of_the_model(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "1")
    name = f"profiled_{os.getpid()}"
    traces = Path("/tmp/pytorch_profiler", name)
    model = Model(MUTE, files={"scale.py": SCALE}, manifest={"modelFile": "scale.py"})
    try:
        assert (await scene.register(name, model)).status == 200
        for batches in (1, 2):
            assert (await scene.ask("POST", f"/predictions/{name}", "2", Content_Type="text/plain")).json == 2.0
            assert [file.endswith(".pt.trace.json") for file in names_in(traces)] == [True] * batches
    finally:
        await scene.manage("DELETE", f"/models/{name}")
        shutil.rmtree(traces, ignore_errors=True)


@pytest.mark.parametrize(("form", "target"), [("data=2", 0), ("data=2&target=3", 3), ("data=2&target=cat", "cat")])
async def test_51_an_explanation_comes_from_get_insights(scene: Scene, form: str, target: object) -> None:
    answer = await scene.ask("POST", "/explanations/net", form, Content_Type="application/x-www-form-urlencoded")
    assert answer.json == {"tensor": [2.0], "inputs": "2", "target": target}


async def test_51_a_prediction_after_an_explanation_is_a_prediction(scene: Scene) -> None:
    await scene.ask("POST", "/explanations/net", "2")
    assert (await scene.ask("POST", "/predictions/net", "2")).json == 6.0


async def test_51_a_handler_without_get_insights_cannot_explain(scene: Scene) -> None:
    answer = await scene.ask("POST", "/explanations/mute", "2", Content_Type="text/plain")
    assert (answer.status, answer.json["message"]) == (503, "Prediction failed")
    await scene.log.wait_for("NotImplementedError: Net cannot explain: it has no method get_insights")
