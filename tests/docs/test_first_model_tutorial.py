"""The tutorial as written: its files are written, its commands are run, its output is compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from terminal import Terminal

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"(?:^`(?P<file>[\w.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.torch
def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    text = (ROOT / "docs/tutorials/first-model.md").read_text()
    output, compared = "", 0
    with Terminal(tmp_path) as terminal:
        for step in STEP.finditer(text):
            if step["file"]:
                (tmp_path / step["file"]).write_text(terminal.translate(step["text"]))
            elif step["language"] == "bash":
                output = terminal.run(step["text"])
            elif step["language"] == "text":
                for line in step["text"].splitlines():
                    assert line in output
                    compared += 1
    assert compared > 5
