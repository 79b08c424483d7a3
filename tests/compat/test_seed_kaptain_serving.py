"""The page on serving with the Kaptain SDK, with its own sample: transfer learning, the v1 protocol, KServe's mounts.

torchvision cannot be installed beside every build of PyTorch, so the network that the sample extends is a stand-in with
the same names; the first test compares it with what torchvision was recorded to answer.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.pictures import encoded
from golden.weights import seeded
from PIL import Image
from served_models import ask

from mariner.auth import Listener
from mariner.config import load_config
from mariner.sdk import Model
from mariner.sdk.local_server import LocalServer
from mariner.serve import Server
from ts.torch_handler.image_classifier import ImageClassifier as Handler

pytestmark = [pytest.mark.slow, pytest.mark.torch]

STAND_IN = Path(__file__).parents[1] / "stand_ins" / "torchvision_resnet"
NAME = "dev-images"
SAMPLE = """\
import torch.nn as nn
from torchvision.models.resnet import ResNet, BasicBlock


class ImageClassifier(ResNet):
    def __init__(self):
        super(ImageClassifier, self).__init__(BasicBlock, [2,2,2,2], num_classes=10)

        self.fc = nn.Sequential(
            nn.Linear(512 * BasicBlock.expansion, 128),
            nn.ReLU(),
            nn.Dropout(.2),
            nn.Linear(128, 10),
            nn.LogSoftmax(dim=1)
        )
"""
MODEL = Model(
    id="dev/images",
    version="0.0.1",
    main_file="trainer.py",
    extra_files=["model.py"],
    serving_config={"model_file": "model.py", "handler": "image_classifier", "serialized_file": "state_dict.pt"},
)


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The sample as a project, trained as far as its state_dict goes; the network with those weights."""
    project = tmp_path_factory.mktemp("project")
    (project / "model.py").write_text(SAMPLE)
    (project / "trainer.py").write_text("from model import ImageClassifier\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STAND_IN))
        patch.setenv("PYTHONPATH", str(STAND_IN))  # of workers
        network = load(project / "model.py").ImageClassifier()
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # others must not take it for the real one
        state = seeded(network.state_dict(), last="fc.3.weight", gain=3.0)
        network.load_state_dict(state)
        torch.save(state, project / "state_dict.pt")
        patch.chdir(project)
        yield network.eval()


@pytest.fixture(scope="module")
def expected(network: Any) -> dict[str, float]:
    """What the network says of a picture: the five most probable classes."""
    with torch.inference_mode():
        output = network(Handler.image_processing(Image.open(io.BytesIO(encoded("landscape"))))[None])
    probabilities, classes = torch.topk(torch.softmax(output, dim=1)[0], 5)
    return {str(number): value for number, value in zip(classes.tolist(), probabilities.tolist(), strict=True)}


def test_the_stand_in_answers_what_torchvision_answers() -> None:
    resnet = load(STAND_IN / "torchvision" / "models" / "resnet.py")
    model = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2]).eval()
    model.load_state_dict(seeded(model.state_dict(), last="fc.weight", gain=0.3))
    with np.load(Path(__file__).parent / "golden" / "vision.npz") as golden, torch.inference_mode():
        names = json.loads(golden["names"].tobytes())["coloured"]
        images = torch.stack([Handler.image_processing(Image.open(io.BytesIO(encoded(name)))) for name in names])
        probabilities, classes = torch.topk(torch.softmax(model(images), dim=1), 5, dim=1)
        assert classes.tolist() == golden["classes"].tolist()
        np.testing.assert_allclose(probabilities.numpy(), golden["probabilities"], atol=1e-3)


def test_a_network_that_extends_another_is_served_on_this_machine(
    expected: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "picture.png").write_bytes(encoded("landscape"))
    try:
        deployment = MODEL.deploy(target="local")
        answer = deployment.predict(tmp_path / "picture.png")
        deployment.undeploy()
    finally:
        for server in LocalServer.running():
            server.stop()
    assert list(answer) == list(expected)
    assert answer == pytest.approx(expected, abs=1e-4)


@pytest.fixture
async def server(network: Any, tmp_path: Path) -> AsyncIterator[Server]:
    """What the image has at /mnt/models, served as KServe's runtime does; addresses and place are of this machine."""
    mount = MODEL.image_context(tmp_path / "mnt")
    config = mount / "config" / "config.properties"
    text = config.read_text().replace("/mnt/models", str(mount))
    config.write_text(text.replace("0.0.0.0:8085", "127.0.0.1:0").replace("0.0.0.0:8081", "127.0.0.1:0"))
    before = contents(mount)
    for name in ("work", "temp"):
        (tmp_path / name).mkdir()
    flags = {"model_store": str(mount / "model-store"), "tsConfigFile": str(config), "config_snapshots": "false"}
    environment = {"TEMP": str(tmp_path / "temp"), "MARINER_METRICS_ADDRESS": "http://127.0.0.1:0"}
    server = await Server.start(load_config(flags, environment, tmp_path / "work"))
    try:
        await server.models.wait_until_ready()
        yield server
    finally:
        await server.stop()
    assert contents(mount) == before


def contents(place: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in place.rglob("*"))


async def test_the_model_is_served_with_the_limits_of_the_generated_file(server: Server) -> None:
    (described,) = (await ask(server, "GET", f"/models/{NAME}", kind=Listener.MANAGEMENT)).json
    wanted = {
        "modelVersion": "0.0.1", "minWorkers": 1, "maxWorkers": 5, "batchSize": 1, "maxBatchDelay": 5000,
        "responseTimeout": 120,
    }  # fmt: skip
    assert {key: described[key] for key in wanted} == wanted
    assert described["jobQueueStatus"]["remainingCapacity"] == 10
    ready = await ask(server, "GET", f"/v1/models/{NAME}")
    assert (ready.status, ready.json) == (200, {"name": NAME, "ready": True})
    assert (await ask(server, "GET", f"/v2/models/{NAME}/ready")).status == 200  # the probe of the runtime


async def test_the_v1_protocol_answers_for_each_instance(server: Server, expected: dict[str, float]) -> None:
    picture = base64.b64encode(encoded("landscape")).decode()
    body = json.dumps({"instances": [{"data": picture}, {"data": picture}]}).encode()
    answer = await ask(server, "POST", f"/v1/models/{NAME}:predict", body, Content_Type="application/json")
    assert answer.status == 200
    first, second = answer.json["predictions"]
    assert first == second == pytest.approx(expected, abs=1e-4)


def test_what_training_imports_is_in_the_image_and_can_be_imported(network: Any, tmp_path: Path) -> None:
    context = MODEL.image_context(tmp_path / "image")
    program = {**os.environ, "PYTHONPATH": os.pathsep.join([str(context / "program"), str(STAND_IN)])}
    command = [sys.executable, "-c", "import trainer; print(trainer.ImageClassifier.__module__)"]
    done = subprocess.run(command, cwd="/", env=program, capture_output=True, text=True, check=True)
    assert done.stdout == "model\n"
    assert "ENV PYTHONPATH=/mnt/models/program" in (context / "Dockerfile").read_text()
