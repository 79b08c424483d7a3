"""The sentences: short reviews, made of words, with the number of their label in ``index_to_name.json``."""

from __future__ import annotations

import random
from typing import NamedTuple

THINGS = ["phone", "camera", "film", "hotel", "soup", "train", "song", "game", "book", "teacher", "jacket", "lamp"]
GOOD = ["great", "good", "lovely", "excellent", "wonderful", "brilliant"]
BAD = ["awful", "bad", "terrible", "boring", "broken", "horrible"]
VERY = ["", "very ", "really ", "so "]
PLAIN = [
    "the {} arrives on monday",
    "i bought the {} last week",
    "the {} is in the box",
    "we talked about the {}",
    "this {} comes in blue and grey",
    "my brother has the same {}",
]


class Sentence(NamedTuple):
    """A review and its label: 0 negative, 1 neutral, 2 positive."""

    text: str
    label: int


def sentences() -> list[Sentence]:
    """All of them, shuffled, the same way each time."""
    made: list[Sentence] = []
    for thing in THINGS:
        made += [Sentence(plain.format(thing), 1) for plain in PLAIN]
        made += [Sentence(f"i love this {thing}", 2), Sentence(f"i hate this {thing}", 0)]
        for words, label in ((GOOD, 2), (BAD, 0)):
            for word in words:
                made += [Sentence(f"the {thing} is {very}{word}", label) for very in VERY]
                made.append(Sentence(f"what a {word} {thing}", label))
                made.append(Sentence(f"this {thing} is not {word}", 2 - label))
    random.Random(0).shuffle(made)
    return made
