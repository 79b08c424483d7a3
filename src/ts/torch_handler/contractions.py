"""English contractions and what they stand for.

Text models were trained on words expanded with exactly this table, so its faults stay.
"""

from __future__ import annotations

__all__ = ["CONTRACTION_MAP"]

_ENDINGS = {
    "'d": "would",
    "'d've": "would have",
    "'ll": "will",
    "'ll've": "will have",
    "'m": "am",
    "'re": "are",
    "'s": "is",
    "'ve": "have",
    "n't": "not",
    "n't've": "not have",
}

# Words, and the endings they take.
_REGULAR = (
    ("he she it", "'d 'd've 'll 'll've 's"),
    ("I i", "'d 'd've 'll 'll've 'm 've"),
    ("you we they", "'d 'd've 'll 'll've 're 've"),
    ("that there", "'d 'd've 's"),
    ("what", "'ll 'll've 're 's 've"),
    ("who", "'ll 'll've 's 've"),
    ("when where why", "'s 've"),
    ("how", "'ll 's"),
    ("could might must should would", "'ve n't n't've"),
    ("had need ought", "n't n't've"),
    ("are did do does has have is may was were", "n't"),
    ("so to will", "'ve"),
)

_IRREGULAR = {
    "'cause": "because",
    "ain't": "is not",
    "can't": "cannot",
    "can't've": "cannot have",
    "he'll've": "he he will have",
    "how'd": "how did",
    "how'd'y": "how do you",
    "let's": "let us",
    "ma'am": "madam",
    "o'clock": "of the clock",
    "sha'n't": "shall not",
    "shan't": "shall not",
    "shan't've": "shall not have",
    "so's": "so as",
    "where'd": "where did",
    "won't": "will not",
    "won't've": "will not have",
    "y'all": "you all",
    "y'all'd": "you all would",
    "y'all'd've": "you all would have",
    "y'all're": "you all are",
    "y'all've": "you all have",
}

# The first that fits is taken, and a shorter one always comes before those that begin with it.
CONTRACTION_MAP = {
    **{
        word + ending: f"{word} {_ENDINGS[ending]}"
        for words, endings in _REGULAR
        for word in words.split()
        for ending in endings.split()
    },
    **_IRREGULAR,
}
