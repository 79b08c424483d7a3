"""Texts in, labels out; the model is loaded by Hugging Face's own functions from the directory of the archive."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException

logger = logging.getLogger(__name__)


class SentimentHandler(BaseHandler):
    """Answers ``{"input": ["a text", "another"]}`` with a list of as many labels."""

    def initialize(self, context: Any) -> None:
        """Loads model, tokenizer and labels, which all lie side by side in the archive."""
        properties = context.system_properties
        self.manifest = context.manifest
        model_dir = Path(properties["model_dir"])
        gpu = properties.get("gpu_id")
        self.device = torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")
        weights = model_dir / self.manifest["model"]["modelFile"]
        if not weights.is_file():
            raise RuntimeError(f"The archive lacks {weights.name}.")
        self.model = AutoModelForSequenceClassification.from_pretrained(model_dir).to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.labels = json.loads((model_dir / "index_to_name.json").read_text())
        self.initialized = True
        logger.info("Loaded %s for %s on %s", weights.name, sorted(self.labels.values()), self.device)

    def preprocess(self, requests: list[dict[str, Any]]) -> Any:
        """The texts of all requests, tokenized together; how many each request has is kept for the answer."""
        texts = [texts_of(request.get("body", request.get("data"))) for request in requests]
        self.counts = [len(of_request) for of_request in texts]
        return self.tokenizer(
            [text for of_request in texts for text in of_request], padding=True, truncation=True, return_tensors="pt"
        )

    def inference(self, inputs: Any) -> list[int]:
        """The number of the likeliest label for each text."""
        with torch.inference_mode():
            numbers: list[int] = self.model(**inputs.to(self.device)).logits.argmax(dim=1).tolist()
        return numbers

    def postprocess(self, outputs: list[int]) -> list[list[str]]:
        """One list of labels for each request."""
        labels = (self.labels[str(number)] for number in outputs)
        return [list(islice(labels, count)) for count in self.counts]


def texts_of(body: Any) -> list[str]:
    """The texts of one request.

    Raises:
        PredictionException: it has none; the client gets status 400 and this text.
    """
    texts = body.get("input") if isinstance(body, dict) else None
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        raise PredictionException('Send {"input": ["a text", "another"]} as application/json.', 400)
    return texts
