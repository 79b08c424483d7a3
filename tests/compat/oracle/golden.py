"""The golden files: what TorchServe answered, one file per scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from oracle.answer import Answer
from oracle.exchange import Scenario

__all__ = ["FOLDER", "Answers", "changes", "describe", "read", "write"]

FOLDER = Path(__file__).parent / "golden"

Answers = Mapping[str, Sequence[Answer]]
"""By the name of the exchange."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it
_HEADER = "# What TorchServe {version} answered. Written by `make oracle`; not for editing.\n"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as they look."""

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def describe(answers: Sequence[Answer]) -> str:
    """Answers as they stand in a golden file."""
    rows = [answer.dump() for answer in answers]
    return yaml.dump(
        rows[0] if len(rows) == 1 else rows, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200
    )


def read(scenario: str) -> dict[str, list[Answer]]:
    """The answers of a scenario; none if it was never recorded."""
    file = FOLDER / f"{scenario}.yaml"
    if not file.exists():
        return {}
    content: dict[str, Any] = yaml.load(file.read_text(), _LOADER)
    return {name: [Answer.load(row) for row in entry["answers"]] for name, entry in content.items()}


def write(scenario: Scenario, answers: Answers, version: str) -> None:
    """Replaces the answers of a scenario."""
    requests = {exchange.name: exchange.request_line for exchange in scenario.exchanges}
    content = {
        name: {"request": requests[name], "answers": [answer.dump() for answer in some]}
        for name, some in answers.items()
    }
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{scenario.name}.yaml").write_text(_HEADER.format(version=version) + text)


def changes(old: Answers, new: Answers) -> list[tuple[str, str, str]]:
    """Exchanges whose answers are not what they were: name, then, now."""
    rows = []
    for name in dict.fromkeys([*old, *new]):
        then, now = old.get(name), new.get(name)
        if then is None or now is None or [one.sorted() for one in then] != [one.sorted() for one in now]:
            rows.append((name, *_first_difference(then, now)))
    return rows


def _first_difference(then: Sequence[Answer] | None, now: Sequence[Answer] | None) -> tuple[str, str]:
    texts = [describe([one.sorted() for one in some]).splitlines() if some else [] for some in (then, now)]
    pairs = zip_longest(*texts, fillvalue="-")
    was, is_ = next(((one, other) for one, other in pairs if one != other), ("", ""))
    return was.strip(), is_.strip()
