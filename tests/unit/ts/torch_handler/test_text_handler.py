from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context
from ts.loader import find_handler
from ts.torch_handler import text_handler
from ts.torch_handler.contractions import CONTRACTION_MAP
from ts.torch_handler.text_handler import TextHandler

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]


class Words:
    """A vocabulary that only its own class can read."""

    def __getitem__(self, word: str) -> int:
        return len(word)


def loaded(make_context: MakeContext, **options: Any) -> TextHandler:
    handler = TextHandler()
    handler.initialize(make_context(None, "model.py", **options))
    return handler


# -- the vocabulary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vocabulary", [{"cat": 0, "dog": 1}, OrderedDict(cat=0, dog=1), ["cat", "dog"], ("cat", "dog")]
)
def test_a_vocabulary_is_a_dictionary_or_a_list(make_context: MakeContext, tmp_path: Path, vocabulary: Any) -> None:
    torch.save(vocabulary, tmp_path / "source_vocab.pt")
    handler = loaded(make_context)
    assert handler.source_vocab == {"cat": 0, "dog": 1}
    assert handler.initialized


def test_the_manifest_may_name_the_vocabulary(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save({"cat": 7}, tmp_path / "old.pt")
    context = make_context(None, "model.py")
    assert context.manifest is not None
    context.manifest["model"]["sourceVocab"] = "old.pt"
    handler = TextHandler()
    handler.initialize(context)
    assert handler.source_vocab == {"cat": 7}


def test_a_subclass_may_have_its_vocabulary_elsewhere(make_context: MakeContext, tmp_path: Path) -> None:
    class Elsewhere(TextHandler):
        def get_source_vocab_path(self, ctx: Any) -> str:
            return f"{ctx.system_properties['model_dir']}/words.pt"

    torch.save(["cat"], tmp_path / "words.pt")
    handler = Elsewhere()
    handler.initialize(make_context(None, "model.py"))
    assert handler.source_vocab == {"cat": 0}


def test_a_missing_vocabulary_is_a_failure_that_says_what_to_do(make_context: MakeContext) -> None:
    with pytest.raises(FileNotFoundError, match=r"Missing the source_vocab file.*--extra-files source_vocab\.pt"):
        loaded(make_context)


def test_a_vocabulary_that_runs_code_is_refused(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save(Words(), tmp_path / "source_vocab.pt")
    with pytest.raises(RuntimeError, match=r"vocabulary cannot be loaded.*allow_pickle.*vocab\.get_stoi\(\)"):
        loaded(make_context)


def test_such_a_vocabulary_is_loaded_if_the_configuration_allows_it(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save(Words(), tmp_path / "source_vocab.pt")
    handler = loaded(make_context, config={"handler": {"allow_pickle": True}})
    assert handler.source_vocab["horse"] == 5
    assert handler._number_of("cat") == 3


def test_a_vocabulary_does_not_grow_with_unknown_words(make_context: MakeContext, tmp_path: Path) -> None:
    torch.save(defaultdict(int, {"<unk>": 0, "cat": 1}), tmp_path / "source_vocab.pt")
    handler = loaded(make_context, config={"handler": {"allow_pickle": True}})
    assert handler._number_of("unicorn") == 0
    assert handler.source_vocab == {"<unk>": 0, "cat": 1}
    assert type(handler.source_vocab) is dict


NO_VOCABULARIES: list[Any] = [{"cat": "0"}, {0: 1}, {"cat": True}, [1, 2]]


@pytest.mark.parametrize(
    ("content", "allowed"),
    [*((content, True) for content in NO_VOCABULARIES), *((content, False) for content in [*NO_VOCABULARIES, 3])],
)
def test_what_is_no_vocabulary_is_refused(
    make_context: MakeContext, tmp_path: Path, content: Any, allowed: bool
) -> None:
    torch.save(content, tmp_path / "source_vocab.pt")
    with pytest.raises(TypeError, match=r"in source_vocab\.pt is no vocabulary\. A vocabulary is"):
        loaded(make_context, config={"handler": {"allow_pickle": allowed}})


@pytest.mark.parametrize(("vocabulary", "number"), [({"<unk>": 3, "cat": 0}, 3), ({"cat": 0}, None)])
def test_an_unknown_word_has_the_number_of_the_unknown(vocabulary: dict[str, int], number: int | None) -> None:
    handler = TextHandler()
    handler.source_vocab = vocabulary
    assert handler._number_of("cat") == 0
    assert handler._number_of("dog") == number


# -- cleaning up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't", "do not"),
        ("it's what they'd say", "it is what they would say"),
        ("I'm sure YOU'RE not", "I am sure You are not"),
        ("can't've", "cannotve"),  # the shorter one fits first
        ("ain't", "as not"),  # the first character stays
        ("'cause", "ecause"),
        ("the dogs' bones", "the dogs bones"),
        ("that'\u017f", "that\u017f"),  # a long s is an s for the pattern, but not in the table
    ],
)
def test_contractions_are_expanded(text: str, expected: str) -> None:
    assert TextHandler()._expand_contractions(text) == expected


def test_the_table_of_contractions_is_the_one_that_models_were_trained_with() -> None:
    assert len(CONTRACTION_MAP) == 123
    assert CONTRACTION_MAP["he'll've"] == "he he will have"
    assert CONTRACTION_MAP["where'd"] == "where did"
    assert CONTRACTION_MAP["I'd've"] == "I would have"
    assert CONTRACTION_MAP["mayn't"] == "may not"
    assert CONTRACTION_MAP["y'all're"] == "you all are"


def test_no_contraction_comes_before_a_shorter_one_that_it_begins_with() -> None:
    seen: list[str] = []
    for contraction in CONTRACTION_MAP:
        assert not any(earlier.startswith(contraction) for earlier in seen)
        seen.append(contraction)


def test_tags_accents_and_punctuation_go() -> None:
    handler = TextHandler()
    assert handler._remove_html_tags("<b>fish</b> &amp; chips") == "fish  chips"
    assert handler._remove_accented_characters("café naïve — Ångström ﬁne") == "cafe naive  Angstrom fine"
    assert handler._remove_punctuation("well, (so) #1!") == "well so 1"
    assert handler._remove_puncutation("well, (so) #1!") == "well so 1"


def test_a_replaced_tokenizer_is_used() -> None:
    handler = TextHandler()
    assert handler._tokenize("One, two") == ["one", ",", "two"]
    handler.tokenizer = str.split
    assert handler._tokenize("One, two") == ["One,", "two"]


# -- explaining ------------------------------------------------------------------------------------------------------


def test_attributions_are_summed_to_length_one() -> None:
    summary = TextHandler().summarize_attributions(torch.tensor([[[1.0, 2.0], [4.0, 0.0]]]))
    assert summary.tolist() == pytest.approx([0.6, 0.8])
    assert TextHandler().summarize_attributions(torch.zeros(1, 2, 3)).tolist() == [0, 0]


def test_a_model_with_one_vector_for_the_text_has_one_attribution() -> None:
    assert TextHandler().summarize_attributions(torch.tensor([[1.0, 2.0]])).tolist() == [1]


def test_marks_of_spaces_are_dropped_from_words() -> None:
    assert TextHandler().get_word_token(["Ġhello", "wor", "ld"]) == ["hello", "wor", "ld"]


# -- names -----------------------------------------------------------------------------------------------------------


def test_the_base_handler_is_also_found_here() -> None:
    assert text_handler.BaseHandler.__name__ == "BaseHandler"


def test_the_text_handler_is_found_by_its_name(tmp_path: Path) -> None:
    entry = find_handler("text_handler", tmp_path)
    assert type(entry.handle.__self__) is TextHandler  # type: ignore[attr-defined]
