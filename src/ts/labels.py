"""Names of classes: reading ``index_to_name.json`` and applying it to probabilities."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["label_of", "load_label_mapping", "map_class_to_label", "name_classes"]

logger = logging.getLogger(__name__)


def load_label_mapping(mapping_file_path: str | Path) -> dict[str, str] | None:
    """The label of each class number.

    A label may be text or a list, whose last element is the label (``["n01440764", "tench"]``); instead of numbers
    the file may hold one list under ``object_type_names``.

    Args:
        mapping_file_path: a JSON file, usually ``index_to_name.json`` of the archive.

    Returns:
        Class number as text to label; None if there is no such file.

    Raises:
        TypeError: the file is no JSON object, or a label is no text.
        json.JSONDecodeError: the file is no JSON.
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        logger.warning("%s is missing: answers name classes by their number.", path)
        return None
    mapping = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(mapping, dict):
        raise TypeError(f"{path} must hold a JSON object that maps class numbers to labels.")
    if isinstance(mapping.get("object_type_names"), list):
        mapping = {str(number): label for number, label in enumerate(mapping["object_type_names"])}
    labels = {}
    for number, entry in mapping.items():
        label = entry[-1] if isinstance(entry, list) and entry else entry
        if not isinstance(label, str):
            raise TypeError(f"{path}: the label of class {number} must be text, not {label!r}.")
        labels[number] = label
    return labels


def label_of(mapping: Mapping[str, str] | None, number: int) -> str:
    """The label of a class; its number if it has none.

    Args:
        mapping: class number as text to label; None if no class has a label.
        number: of the class.
    """
    text = str(number)
    return text if mapping is None else mapping.get(text, text)


def name_classes(
    probabilities: Sequence[Sequence[float]],
    mapping: Mapping[str, str] | None,
    numbers: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, float]]:
    """Probabilities by label, like :func:`map_class_to_label`; a class without a label goes by its number.

    Args:
        probabilities: for each item those of its classes.
        mapping: class number as text to label; None if no class has a label.
        numbers: for each item the numbers of its classes; by default they are counted from 0.

    Returns:
        For each item its probabilities by label, in the order given. Classes of the same label become one, the last.
    """
    return [
        {
            label_of(mapping, number): probability
            for number, probability in zip(range(len(row)) if numbers is None else numbers[index], row, strict=True)
        }
        for index, row in enumerate(probabilities)
    ]


def map_class_to_label(
    probs: list[Sequence[Any]],
    mapping: Mapping[str, str] | None = None,
    lbl_classes: Iterable[Iterable[int]] | None = None,
) -> list[dict[str, Any]]:
    """Probabilities by label.

    Args:
        probs: for each item the probabilities of its classes.
        mapping: class number as text to label; None keeps the numbers.
        lbl_classes: for each item the numbers of its classes; by default they are counted from 0.

    Returns:
        For each item its probabilities by label, in the order given. Classes of the same label become one, the last.

    Raises:
        TypeError: ``probs`` is no list, or ``mapping`` no dict.
        KeyError: ``mapping`` lacks a class.
    """
    if not isinstance(probs, list):
        raise TypeError(f"Probabilities must be a list with one list for each item, not {type(probs).__name__}.")
    if mapping is not None and not isinstance(mapping, dict):
        raise TypeError(f"The mapping of classes to labels must be a dict, not {type(mapping).__name__}.")
    labelled = []
    classes = (range(len(row_probs)) for row_probs in probs) if lbl_classes is None else lbl_classes
    for row_classes, row_probs in zip(classes, probs, strict=False):
        numbers = map(str, row_classes)
        names = numbers if mapping is None else (mapping[number] for number in numbers)
        labelled.append(dict(zip(names, row_probs, strict=False)))
    return labelled
