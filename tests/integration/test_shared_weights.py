"""Workers on the CPU that have their weights together, measured in what the kernel says of their memory."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_serving import Client

from mariner.serve import Server
from mariner.testing import running_server

pytestmark = [pytest.mark.slow, pytest.mark.torch]

WORKERS = 4
MODEL_FILE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4)))

    def forward(self, numbers):
        return self.layers(numbers.expand(1, WIDTH))[:, :1]
"""
ANSWERS = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Handler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([[float(data[0]["body"])]])

    def postprocess(self, data):
        return data.tolist()
"""
OWN_LOADER = """
import torch

model = None

def handle(data, context):
    global model
    if data is None:
        model = torch.jit.load(context.system_properties["model_dir"] + "/weights.pt")
        return None
    with torch.inference_mode():
        return model(torch.tensor([[float(data[0]["body"])]])).tolist()
"""


def network(width: int) -> torch.nn.Module:
    space: dict[str, type[torch.nn.Module]] = {}
    exec(MODEL_FILE.replace("WIDTH", str(width)), space)
    torch.manual_seed(0)
    return space["Net"]().eval()


def scripted(place: Path, width: int) -> str:
    with warnings.catch_warnings(action="ignore"):  # newer releases advise against it
        torch.jit.trace(network(width), torch.ones(1, 1)).save(place / "weights.pt")
    return "weights.pt"


def state(place: Path, width: int) -> str:
    torch.save(network(width).state_dict(), place / "weights.pt")
    return "weights.pt"


def safetensors(place: Path, width: int) -> str:
    save_file(network(width).state_dict(), place / "weights.safetensors")
    return "weights.safetensors"


def put_net(store: Path, name: str, save: Callable[[Path, int], str], width: int, handler: str, config: str) -> int:
    """A directory model; returns the bytes of its weights."""
    place = store / name
    (place / "MAR-INF").mkdir(parents=True)
    file = save(place, width)
    model = {"modelName": name, "modelVersion": "1.0", "handler": "answers.py", "serializedFile": file}
    if save is not scripted:
        (place / "net.py").write_text(MODEL_FILE.replace("WIDTH", str(width)))
        model["modelFile"] = "net.py"
    (place / "answers.py").write_text(handler)
    (place / "config.yaml").write_text(f"minWorkers: {WORKERS}\nmaxWorkers: {WORKERS}\n{config}")
    model["configFile"] = "config.yaml"
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))
    return (place / file).stat().st_size


def memory(server: Server, model: str) -> int:
    """Bytes of the workers of a model; what several processes share counts for each its part."""
    workers = server.models.registry.get(model, None).pool.workers
    texts = [Path(f"/proc/{worker.pid}/smaps_rollup").read_text() for worker in workers]
    return sum(int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024 for text in texts)  # type: ignore[index]


async def answers(server: Server, model: str) -> set[bytes]:
    """What all workers say."""
    clients = [await Client.connect(server) for _ in range(2 * WORKERS)]
    found = await asyncio.gather(*(client.ask("POST", f"/predictions/{model}", b"0.5") for client in clients))
    for client in clients:
        await client.close()
    assert {answer.status for answer in found} == {200}
    return {answer.body for answer in found}


@pytest.mark.parametrize(
    ("save", "handler"),
    [(state, ANSWERS), (safetensors, ANSWERS), (scripted, ANSWERS), (scripted, OWN_LOADER)],
    ids=["eager", "safetensors", "torchscript", "loaded by a function"],
)
async def test_four_workers_have_little_more_than_one_copy(
    tmp_path: Path, save: Callable[[Path, int], str], handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = tmp_path / "store"
    put_net(store, "small", save, 8, handler, "")
    size = put_net(store, "large", save, 2500, handler, "sharedWeights: true\n")
    assert size > 100e6
    async with running_server(
        model_store=store, load_models=("small", "large"), temp_dir=tmp_path, default_startup_timeout=300.0
    ) as server:
        await server.models.wait_until_ready()
        assert len(await answers(server, "large")) == 1
        assert len(await answers(server, "small")) == 1
        used = memory(server, "large") - memory(server, "small")
    assert used < 1.3 * size
    assert (
        caplog.text.count("sharedWeights: 100.0 of 100.0 MB of weights are shared with the other workers.") == WORKERS
    )
