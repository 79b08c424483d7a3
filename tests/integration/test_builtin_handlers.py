"""Built-in handlers in a real server: no handler file in the archive, only models and what belongs to them."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_serving import Client

from mariner.serve import Server
from mariner.testing import running_server

pytestmark = [pytest.mark.slow, pytest.mark.torch]

DETECTOR = """
import torch


class Detector(torch.nn.Module):
    def forward(self, images):
        box = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        return [{"boxes": box, "labels": torch.tensor([1]), "scores": image[0].mean()[None]} for image in images]
"""

CLASSIFIER = """
import torch


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag.from_pretrained(10 * torch.eye(2), mode="sum")

    def forward(self, text, offsets):
        return self.embedding(text, offsets)
"""


def put_builtin(store: Path, name: str, handler: str, source: str, labels: list[str]) -> Path:
    place = store / name
    (place / "MAR-INF").mkdir(parents=True)
    (place / "model.py").write_text(source)
    (place / "index_to_name.json").write_text(json.dumps({"object_type_names": labels}))
    model = {"modelName": name, "modelVersion": "1.0", "handler": handler, "modelFile": "model.py"}
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))
    return place


def red_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    store = tmp_path / "store"
    put_builtin(store, "people", "object_detector", DETECTOR, ["nothing", "person"])
    place = put_builtin(store, "news", "text_classifier", CLASSIFIER, ["sport", "trade"])
    torch.save(["goal", "the market"], place / "source_vocab.pt")
    async with running_server(model_store=store, load_models=("people", "news"), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        yield server


async def test_detector_and_text_classifier_answer(server: Server) -> None:
    client = await Client.connect(server)
    seen = await client.ask("POST", "/predictions/people", red_png())
    assert (seen.status, seen.json) == (200, [{"person": [1.0, 2.0, 3.0, 4.0], "score": 1.0}])
    for options in ({"Content_Type": "text/plain"}, {}):
        read = await client.ask("POST", "/predictions/news", "The Märket!".encode(), **options)
        shares: dict[str, Any] = read.json
        assert read.status == 200
        assert list(shares) == ["sport", "trade"]
        assert shares["trade"] > 0.99
    await client.close()
