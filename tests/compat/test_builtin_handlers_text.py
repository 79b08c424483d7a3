"""Text and tensor handlers in a real server: items 10, 12, 13 and 14 of the reference for built-in handlers."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from served_models import PAIRS, ask, ask_together, put_archive

from mariner.auth import Listener
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]

WORDS = {"<unk>": 0, "good": 1, "bad": 2, "not": 3, "not bad": 4}
LABELS = {"0": "praise", "1": "blame"}
# Good words speak for the first class, bad ones for the second, twice as much.
VECTORS = torch.tensor([[0.0, 0], [1, 0], [0, 2], [0, 0], [3, -2]])

BAG = """
import torch


class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(5, 2, mode="sum")

    def forward(self, text, offsets):
        return self.embedding(text, offsets)
"""
EACH = """
import torch


class Each(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 2)

    def forward(self, text, offsets):
        vectors = self.embedding(text)
        return vectors.sum(dim=-2).reshape(-1, 2)
"""
SCALE = """
import torch


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, values):
        return values * self.factor
"""


class Intruder:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def put_text(store: Path, name: str, source: str, config: str = "minWorkers: 1\nmaxWorkers: 1\n", **files: Any) -> None:
    weights = saved({"embedding.weight": VECTORS})
    content = {"model.py": source, "model.pt": weights, "index_to_name.json": LABELS, **files}
    put_archive(store, name, "text_classifier", content, config, modelFile="model.py", serializedFile="model.pt")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    place = tmp_path_factory.mktemp("text")
    store = place / "store"
    words = {"source_vocab.pt": saved(WORDS)}
    put_text(store, "bag", BAG, **words)
    put_text(store, "each", EACH, **words)
    put_text(store, "alone", BAG, **words, **{"captum.py": "raise ImportError('there is no captum here')\n"})
    put_text(store, "pairs", BAG, PAIRS, **words)
    put_text(store, "whole", BAG, f"{PAIRS}isolateBatchErrors: false\n", **words)
    scale = {"model.py": SCALE, "model.pt": saved({"factor": torch.tensor([3.0])})}
    put_archive(store, "dense", "densenet_handler", scale, modelFile="model.py", serializedFile="model.pt")
    names = tuple(path.name for path in store.iterdir())
    put_text(store, "wordless", BAG)
    async with running_server(model_store=store, load_models=names, temp_dir=place) as server:
        await server.models.wait_until_ready()
        yield server


async def test_10_a_text_is_answered_with_all_classes(server: Server) -> None:
    for headers in ({"Content_Type": "text/plain"}, {}):
        answer = await ask(server, "POST", "/predictions/bag", b"<b>Not bad!</b>", **headers)
        assert list(answer.json) == ["praise", "blame"]
        assert sum(answer.json.values()) == pytest.approx(1)
        # "bad" and "not" are 2 for blame, and their pair takes it back and is 3 for praise.
        assert answer.json["praise"] == pytest.approx(torch.softmax(torch.tensor([3.0, 0]), 0)[0].item())


async def test_10_two_texts_in_a_batch_are_answered_one_by_one(server: Server) -> None:
    answers = await ask_together(server, "/predictions/pairs", [b"good", b"bad"], Content_Type="text/plain")
    assert [max(answer.json, key=answer.json.get) for answer in answers] == ["praise", "blame"]


async def test_10_without_isolation_two_texts_in_a_batch_are_an_error(server: Server) -> None:
    answers = await ask_together(server, "/predictions/whole", [b"good", b"bad"], Content_Type="text/plain")
    assert [(answer.status, answer.json["message"]) for answer in answers] == [
        (503, "number of batch response mismatched")
    ] * 2


async def test_10_a_missing_vocabulary_fails_the_load_with_the_reason(server: Server) -> None:
    path = "/models?url=wordless&initial_workers=1&synchronous=true"
    answer = await ask(server, "POST", path, kind=Listener.MANAGEMENT)
    assert answer.status == 500
    assert "Missing the source_vocab file" in answer.json["hint"]


async def test_12_an_explanation_weighs_each_word_and_pair(server: Server) -> None:
    answer = await ask(server, "POST", "/explanations/each", b"Not so bad", Content_Type="text/plain")
    assert answer.json["words"] == ["not", "so", "bad"]
    # For class 0 only the pair "not bad" would speak; "not so" and "so bad" are unknown to the vocabulary.
    assert answer.json["importances"] == pytest.approx([0] * 5)
    answer = await ask(server, "POST", "/explanations/each", b"good not bad good", Content_Type="text/plain")
    assert answer.json["words"] == ["good", "not", "bad", "good"]
    # good, not, bad, good, and the pairs: "good not" is unknown, "not bad" counts 3, "bad good" is unknown.
    length = (1 + 1 + 9) ** 0.5
    expected = [1 / length, 0, 0, 1 / length, 0, 3 / length, 0]
    assert answer.json["importances"] == pytest.approx(expected, abs=1e-6)


async def test_12_a_bag_of_words_is_explained_as_a_whole(server: Server) -> None:
    answer = await ask(server, "POST", "/explanations/bag", b"good", Content_Type="text/plain")
    assert answer.json == {"importances": [pytest.approx(1)], "words": ["good"]}


async def test_13_a_text_is_classified_without_captum_and_an_explanation_is_refused(server: Server) -> None:
    answer = await ask(server, "POST", "/predictions/alone", b"good", Content_Type="text/plain")
    assert list(answer.json) == ["praise", "blame"]
    assert (await ask(server, "POST", "/explanations/alone", b"good", Content_Type="text/plain")).status == 503


async def test_14_a_saved_tensor_is_answered_with_a_saved_tensor(server: Server) -> None:
    answer = await ask(server, "POST", "/predictions/dense", saved(torch.tensor([1.0, 2.0])))
    assert torch.load(io.BytesIO(answer.body), weights_only=True).tolist() == [[3.0, 6.0]]


async def test_14_a_tensor_that_would_run_code_is_refused(server: Server, tmp_path: Path) -> None:
    answer = await ask(server, "POST", "/predictions/dense", saved(Intruder(tmp_path / "broken in")))
    assert (answer.status, answer.json["message"]) == (400, "The body is no tensor that can be loaded safely.")
    assert not (tmp_path / "broken in").exists()
