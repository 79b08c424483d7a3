"""TextClassifier: a text in, the probabilities of all classes out."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ts.handler_utils.text_utils import ngrams_iterator
from ts.handler_utils.timer import timed
from ts.labels import name_classes
from ts.torch_handler.text_handler import TextHandler

__all__ = ["TextClassifier"]

logger = logging.getLogger(__name__)


class TextClassifier(TextHandler):
    """Classifies a text with a model that takes the numbers of its words and pairs of words, and offsets.

    It answers one request at a time: ``batchSize`` should be 1.

    Attributes:
        ngrams: how many neighbouring words belong together at most.
    """

    ngrams: int = 2

    def initialize(self, context: Any) -> None:
        """Loads the model and the vocabulary of an archive.

        Args:
            context: says where the archive is and which device to use.

        Raises:
            FileNotFoundError: there is no vocabulary.
            RuntimeError: there are no weights or no vocabulary that can be loaded safely.
            TypeError: the vocabulary is neither a dictionary from words to numbers nor a list of words.
            ValueError: the model file or the configuration is not as it must be.
        """
        super().initialize(context)
        if (context.system_properties.get("batch_size") or 1) > 1:
            logger.warning("text_classifier answers one request at a time. Set batchSize to 1.")

    @timed
    def preprocess(self, data: Any) -> tuple[Any, list[str]]:
        """The numbers of the words and pairs of words of the first request, and the words.

        Args:
            data: for each request its text as ``data`` or ``body``.

        Returns:
            A tensor ``[word or pair]`` on the device, and the words. What the vocabulary does not have is left out if
            it has no ``<unk>``.

        Raises:
            TypeError: the request is no text.
            UnicodeDecodeError: the text is not UTF-8.
        """
        text = data[0].get("data") or data[0].get("body")
        if isinstance(text, (bytes, bytearray, memoryview)):
            text = str(text, "utf-8")
        if not isinstance(text, str):
            raise TypeError(f"text_classifier takes text in the body or in the field data, not {type(text).__name__}.")
        text = self._remove_html_tags(text).lower()
        text = self._expand_contractions(text)
        text = self._remove_accented_characters(text)
        text = self._remove_punctuation(text)
        tokens = self._tokenize(text)
        numbers = map(self._number_of, ngrams_iterator(tokens, self.ngrams))
        known = [number for number in numbers if number is not None]
        return torch.tensor(known, dtype=torch.long, device=self.device), tokens

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """What the model gives for one text.

        Args:
            data: what :meth:`preprocess` returned.
            args: handed to the model after the numbers and the offsets.
            kwargs: handed to the model.
        """
        numbers, _ = data
        return super().inference(numbers, self._offsets(), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> list[dict[str, float]]:
        """The probabilities of all classes.

        Args:
            data: a tensor ``[1, class]`` of logits.

        Returns:
            A list with one dict of probabilities by label.
        """
        return name_classes(torch.softmax(data, dim=1).tolist(), self.mapping)

    def get_insights(self, text_preprocess: Any, _: Any, target: Any = 0) -> list[dict[str, Any]]:
        """How much each word speaks for a class.

        Args:
            text_preprocess: what :meth:`preprocess` returned.
            target: number of the class.

        Returns:
            A list with one dict: ``importances`` and ``words``.

        Raises:
            ImportError: captum is not installed.
        """
        numbers, tokens = text_preprocess
        attributions = self.lig.attribute(
            numbers, torch.zeros_like(numbers), additional_forward_args=self._offsets(), target=target
        )
        importances = self.summarize_attributions(attributions).tolist()
        return [{"importances": importances, "words": self.get_word_token(tokens)}]

    def _offsets(self) -> Any:
        """Where the texts begin in the tensor of numbers: there is one."""
        return torch.zeros(1, dtype=torch.long, device=self.device)
