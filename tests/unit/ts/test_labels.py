from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ts.labels import label_of, load_label_mapping, map_class_to_label, name_classes


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "index_to_name.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"0": "tench"}, {"0": "tench"}),
        ({"0": ["n01440764", "tench"]}, {"0": "tench"}),
        ({"object_type_names": ["tench", "shark"]}, {"0": "tench", "1": "shark"}),
        ({}, {}),
    ],
)
def test_a_mapping_has_three_forms(tmp_path: Path, content: Any, expected: dict[str, str]) -> None:
    assert load_label_mapping(write(tmp_path, content)) == expected


def test_a_missing_file_is_no_mapping(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_label_mapping(str(tmp_path / "index_to_name.json")) is None
    assert "index_to_name.json is missing" in caplog.text


@pytest.mark.parametrize("content", [["tench"], {"0": 1}, {"0": []}, {"0": ["a", 1]}, {"0": {"name": "tench"}}])
def test_what_is_no_mapping_of_texts_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(TypeError, match=r"index_to_name\.json"):
        load_label_mapping(write(tmp_path, content))


def test_probabilities_get_labels() -> None:
    answers = map_class_to_label([[0.7, 0.3]], {"0": "cat", "1": "dog"}, [[1, 0]])
    assert answers == [{"dog": 0.7, "cat": 0.3}]


def test_classes_are_counted_if_they_are_not_given() -> None:
    assert map_class_to_label([[0.7, 0.3], [1.0]], {"0": "cat", "1": "dog"}) == [{"cat": 0.7, "dog": 0.3}, {"cat": 1.0}]


def test_classes_may_be_any_iterables() -> None:
    assert map_class_to_label([[0.7], [1.0]], {"1": "dog"}, (iter([1]) for _ in range(2))) == [
        {"dog": 0.7},
        {"dog": 1.0},
    ]


def test_without_a_mapping_numbers_are_labels() -> None:
    assert map_class_to_label([[0.7, 0.3]], None, [[5, 2]]) == [{"5": 0.7, "2": 0.3}]


def test_classes_of_one_label_become_one() -> None:
    assert map_class_to_label([[0.7, 0.3]], {"0": "cat", "1": "cat"}) == [{"cat": 0.3}]


def test_a_class_that_the_mapping_lacks_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        map_class_to_label([[1.0]], {})


def test_other_containers_are_refused() -> None:
    wrong: Any = ((0.5,),)
    with pytest.raises(TypeError, match="must be a list"):
        map_class_to_label(wrong)
    with pytest.raises(TypeError, match="must be a dict"):
        map_class_to_label([[0.5]], wrong)


def test_a_class_without_a_label_is_named_by_its_number() -> None:
    assert [label_of({"1": "cat"}, number) for number in (0, 1)] == ["0", "cat"]
    assert label_of(None, 1) == "1"


def test_classes_are_named_in_the_order_given() -> None:
    assert name_classes([[0.9, 0.1]], {"7": "cat"}, [[7, 3]]) == [{"cat": 0.9, "3": 0.1}]
    assert name_classes([[0.2], [0.8]], None) == [{"0": 0.2}, {"0": 0.8}]


def test_of_classes_with_one_label_the_last_counts() -> None:
    assert name_classes([[0.6, 0.4]], {"0": "cat", "1": "cat"}) == [{"cat": 0.4}]
