"""One run on disk: its rows as ``results.json``, and the pages made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from html_page import html_page, summary_picture
from measure import Row
from report import Verdict, markdown_page, medians, verdicts

__all__ = ["Run", "load", "render", "write"]


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked for and what came of it; ``facts`` are the machine and the versions."""

    when: str
    command: str
    facts: Mapping[str, str]
    rows: Sequence[Row]
    failures: Sequence[str]
    measures: Sequence[str]
    peers: Sequence[str]

    @property
    def judged(self) -> list[Verdict]:
        return verdicts(medians(self.rows), set(self.measures), self.peers)


def load(path: Path) -> Run:
    """The run in a ``results.json``. One that does not say what was asked for was asked for what it has."""
    document = json.loads(path.read_text())
    rows = [Row(**row) for row in document["rows"]]
    asked = {
        "measures": list(dict.fromkeys(row.measure for row in rows)),
        "peers": list(dict.fromkeys(row.peer for row in rows)),
    }
    return Run(**(asked | document | {"rows": rows}))


def write(folder: Path, run: Run) -> Path:
    """Write ``results.json`` and what is made of it; the path of ``RESULTS.md`` is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(asdict(run), indent=1) + "\n")
    return render(folder, run)


def render(folder: Path, run: Run) -> Path:
    """Write the pages and the picture, and leave the rows as they are."""
    facts = {"command": f"`{run.command}`", "when": run.when} | dict(run.facts)
    (folder / "results.svg").write_text(summary_picture(run.rows))
    (folder / "results.html").write_text(html_page(run.rows, run.judged, run.failures, facts))
    page = folder / "RESULTS.md"
    page.write_text(markdown_page(run.rows, run.judged, run.failures, facts))
    return page
