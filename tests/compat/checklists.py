"""For the lists of items that were promised: which of them a file proves, and whether named tests exist."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["proved_in", "require_tests"]

TESTS = Path(__file__).parents[1]


def proved_in(file: str) -> set[int]:
    """The items of the tests of a file: ``test_07_…`` proves one, ``test_07_08_…`` two."""
    return {int(item) for name in _names_in(Path(file)) for item in re.findall(r"(?<=_)\d\d(?=_)", name)}


def require_tests(references: Iterable[str]) -> None:
    """Fails unless each ``file::test`` exists; files are those below ``tests``."""
    for reference in references:
        path, _, name = reference.partition("::")
        assert name in _names_in(TESTS / path), reference


def _names_in(path: Path) -> list[str]:
    return re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
