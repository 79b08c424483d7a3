from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ts.context import Context
from ts.loader import find_handler
from ts.torch_handler.text_classifier import TextClassifier
from ts.wire import Sample

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]

# The logits of a text are the sums of the vectors of its words.
SUMS = """
import torch


class Sums(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(4, 3, mode="sum")

    def forward(self, text, offsets):
        return self.embedding(text, offsets)
"""

VECTORS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 4]])
VOCABULARY = {"<unk>": 0, "good": 1, "not": 2, "not good": 3}
LABELS = {"0": "praise", "1": "doubt", "2": "blame"}


def shares(*logits: float) -> list[float]:
    whole = sum(map(math.exp, logits))
    return [math.exp(logit) / whole for logit in logits]


@pytest.fixture
def make_handler(make_context: MakeContext, tmp_path: Path) -> Callable[..., TextClassifier]:
    def make(vocabulary: Any = VOCABULARY, **options: Any) -> TextClassifier:
        (tmp_path / "model.py").write_text(SUMS, encoding="utf-8")
        torch.save({"embedding.weight": VECTORS}, tmp_path / "sums.pt")
        torch.save(vocabulary, tmp_path / "source_vocab.pt")
        handler = TextClassifier()
        handler.initialize(make_context("sums.pt", "model.py", **{"mapping": LABELS, **options}))
        return handler

    return make


@pytest.mark.parametrize("body", ["<p>It ISN'T good!</p>", bytearray("It isn\u2019t n\u00f3t good".encode())])
def test_a_text_is_answered_with_the_probabilities_of_all_classes(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext, body: Any
) -> None:
    (answer,) = make_handler().handle([{"body": body}], make_context())
    assert list(answer) == ["praise", "doubt", "blame"]
    assert list(answer.values()) == pytest.approx(shares(1, 2, 4))


def test_words_come_before_pairs(make_handler: Callable[..., TextClassifier]) -> None:
    numbers, words = make_handler().preprocess([{"data": "Not so good, not good"}])
    assert words == ["not", "so", "good", "not", "good"]
    assert numbers.tolist() == [2, 0, 1, 2, 1, 0, 0, 0, 3]


def test_unknown_words_are_left_out_if_the_vocabulary_has_no_number_for_them(
    make_handler: Callable[..., TextClassifier],
) -> None:
    handler = make_handler({"good": 1, "not": 2, "not good": 3})
    numbers, words = handler.preprocess([{"body": "not so good"}])
    assert numbers.tolist() == [2, 1]
    assert words == ["not", "so", "good"]


def test_a_text_without_words_is_answered(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext
) -> None:
    (answer,) = make_handler().handle([{"body": "..."}], make_context())
    assert list(answer.values()) == pytest.approx([1 / 3] * 3)


def test_a_text_class_without_a_label_goes_by_its_number(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext
) -> None:
    (answer,) = make_handler(mapping={"1": "doubt"}).handle([{"body": "good"}], make_context())
    assert list(answer) == ["0", "doubt", "2"]


def test_without_labels_text_classes_are_numbers(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext
) -> None:
    (answer,) = make_handler(mapping=None).handle([{"body": "good"}], make_context())
    assert list(answer) == ["0", "1", "2"]


@pytest.mark.parametrize("body", [{"text": "good"}, ["good"], None])
def test_what_is_no_text_is_refused(make_handler: Callable[..., TextClassifier], body: Any) -> None:
    with pytest.raises(TypeError, match="takes text in the body or in the field data"):
        make_handler().preprocess([{"body": body}])


def test_only_the_first_request_of_a_batch_is_answered(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext
) -> None:
    assert len(make_handler().handle([{"body": "good"}, {"body": "not"}], make_context())) == 1


def test_a_batch_size_that_cannot_work_is_logged(
    make_context: MakeContext, make_handler: Callable[..., TextClassifier], caplog: pytest.LogCaptureFixture
) -> None:
    handler = make_handler()
    assert "batchSize" not in caplog.text
    context = make_context("sums.pt", "model.py")
    context.system_properties["batch_size"] = 4
    with caplog.at_level(logging.WARNING):
        handler.initialize(context)
    assert "Set batchSize to 1" in caplog.text


def test_each_step_is_timed_once(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext, samples: list[Sample]
) -> None:
    context = make_context(config={"handler": {"profile": True}})
    make_handler().handle([{"body": "good"}], context)
    assert [sample.name for sample in samples] == [
        "ts_handler_preprocess",
        "ts_handler_inference",
        "ts_handler_postprocess",
        "HandlerTime",
    ]


def test_explaining_a_text_without_captum_names_it(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match="pip install captum"):
        make_handler().handle([{"body": "good"}], make_context(headers={"explain": "True"}))


def test_an_explanation_names_words_and_their_importance(
    make_handler: Callable[..., TextClassifier], make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gradients:
        def __init__(self, model: Any, layer: Any) -> None:
            self.model, self.layer = model, layer

        def attribute(self, numbers: Any, baselines: Any, *, additional_forward_args: Any, target: int) -> Any:
            assert not baselines.any()
            assert additional_forward_args.tolist() == [0]
            change = self.model(numbers, additional_forward_args) - self.model(baselines, additional_forward_args)
            return self.layer.weight[numbers] * change[0, target]

    captum: Any = ModuleType("captum.attr")
    captum.LayerIntegratedGradients = Gradients
    monkeypatch.setitem(sys.modules, "captum", ModuleType("captum"))
    monkeypatch.setitem(sys.modules, "captum.attr", captum)
    data = [{"body": "good not", "target": bytearray(b"1")}]
    (insight,) = make_handler().handle(data, make_context(headers={"explain": "True"}))
    assert insight["words"] == ["good", "not"]
    assert insight["importances"] == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5), 0])


def test_the_text_classifier_is_found_by_its_name(tmp_path: Path) -> None:
    entry = find_handler("text_classifier", tmp_path)
    assert type(entry.handle.__self__) is TextClassifier  # type: ignore[attr-defined]
