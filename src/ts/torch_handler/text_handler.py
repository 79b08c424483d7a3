"""TextHandler: requests with text, and the vocabulary and the clean-up that text models were trained with."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ts.handler_utils.text_utils import get_tokenizer
from ts.importing import require
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.contractions import CONTRACTION_MAP
from ts.torch_handler.weights import load_pickled
from ts.utils.util import CLEANUP_REGEX

__all__ = ["UNKNOWN", "BaseHandler", "TextHandler"]

UNKNOWN = "<unk>"  # the word that stands for all that a vocabulary does not have

_CONTRACTIONS = re.compile("|".join(CONTRACTION_MAP), re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ADVICE = (
    "A vocabulary is a dictionary from words to numbers or a list of words, saved with torch.save; that of a torchtext "
    "Vocab is vocab.get_stoi()."
)


class TextHandler(BaseHandler):
    """Base of handlers that take text.

    Attributes:
        source_vocab: word to number.
        tokenizer: cuts a text into words.
        input_text: for handlers that want to keep the text.
    """

    # On the class, because many handlers do not call super().__init__().
    source_vocab: Any = None
    tokenizer: Callable[[str], list[str]] = staticmethod(get_tokenizer("basic_english"))
    input_text: Any = None

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
        named = (self.manifest or {}).get("model", {}).get("sourceVocab")  # in archives of the first versions
        directory = context.system_properties["model_dir"]
        self.source_vocab = self._load_vocabulary(
            Path(directory, named) if named else Path(self.get_source_vocab_path(context))
        )

    def get_source_vocab_path(self, ctx: Any) -> str:
        """Path of the vocabulary.

        Args:
            ctx: says where the archive is.

        Raises:
            FileNotFoundError: there is none.
        """
        path = Path(ctx.system_properties["model_dir"], "source_vocab.pt")
        if not path.is_file():
            raise FileNotFoundError(
                f"Missing the source_vocab file: {path} does not exist. Package it with --extra-files source_vocab.pt. "
                f"{_ADVICE}"
            )
        return str(path)

    def _load_vocabulary(self, path: Path) -> Any:
        allow_pickle = self._allow_pickle()
        try:
            vocabulary = load_pickled(path, "cpu", allow_pickle=allow_pickle)
        except RuntimeError as error:
            raise RuntimeError(f"The vocabulary cannot be loaded: {error} {_ADVICE}") from error
        if isinstance(vocabulary, (list, tuple)):
            vocabulary = {word: number for number, word in enumerate(vocabulary)}
        elif allow_pickle and not isinstance(vocabulary, Mapping):
            return vocabulary
        if not isinstance(vocabulary, Mapping) or not all(
            isinstance(word, str) and type(number) is int for word, number in vocabulary.items()
        ):
            raise TypeError(f"The {type(vocabulary).__name__} in {path.name} is no vocabulary. {_ADVICE}")
        return dict(vocabulary)  # a defaultdict would grow with every word that clients make up

    def _number_of(self, token: str) -> int | None:
        """The number of a word, that of ``<unk>`` for an unknown one; None if the vocabulary has neither."""
        vocabulary = self.source_vocab
        number: int | None = (
            vocabulary.get(token, vocabulary.get(UNKNOWN)) if isinstance(vocabulary, Mapping) else vocabulary[token]
        )
        return number

    @cached_property
    def lig(self) -> Any:
        """Integrated gradients of the model at its layer ``embedding``."""
        attribution = require("captum.attr", "captum", "Explanations need")
        return attribution.LayerIntegratedGradients(self.model, self.model.embedding)

    # -- cleaning up -------------------------------------------------------------------------------------------------

    def _remove_html_tags(self, text: str) -> str:
        return CLEANUP_REGEX.sub("", text)

    def _expand_contractions(self, text: str) -> str:
        return _CONTRACTIONS.sub(_expand, text).replace("'", "")

    def _remove_accented_characters(self, text: str) -> str:
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")

    def _remove_punctuation(self, text: str) -> str:
        return text.translate(_PUNCTUATION)

    def _remove_puncutation(self, text: str) -> str:
        """The old, misspelt name of :meth:`_remove_punctuation`; handlers still call it."""
        return self._remove_punctuation(text)

    def _tokenize(self, text: str) -> list[str]:
        return self.tokenizer(text)

    # -- explaining --------------------------------------------------------------------------------------------------

    def get_word_token(self, input_tokens: Sequence[str]) -> list[str]:
        """Words without the mark that some tokenizers put in the place of the space before a word.

        Args:
            input_tokens: the words.
        """
        return [token.replace("Ġ", "") for token in input_tokens]

    def summarize_attributions(self, attributions: Any) -> Any:
        """One number for each word, all together of length 1.

        Args:
            attributions: a tensor whose last dimension is that of the embedding.
        """
        summed = attributions.sum(dim=-1)
        if summed.dim() > 1:
            summed = summed.squeeze(0)
        length = torch.linalg.vector_norm(summed)
        return summed / length if length > 0 else summed


def _expand(contraction: re.Match[str]) -> str:
    # The first character stays, as it did for the texts that models were trained on: "ain't" becomes "as not".
    found = contraction[0]
    expanded = CONTRACTION_MAP.get(found) or CONTRACTION_MAP.get(found.lower(), found)
    return found[0] + expanded[1:]
