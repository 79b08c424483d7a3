"""The page about stateful sequences, as written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from terminal import Terminal

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs/how-to/stateful-sequences.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)


def block(kind: str, text: str) -> str:
    """The only block of a kind that holds a text."""
    (found,) = [body for language, body in BLOCKS if language == kind and text in body]
    return found


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "average.py").write_text(block("python", "RunningAverage"))
    (tmp_path / "model-config.yaml").write_text(block("yaml", "sequenceBatching"))
    with Terminal(tmp_path) as terminal:
        (tmp_path / "config.properties").write_text(terminal.addresses)
        yield terminal


def test_the_page_about_sequences_does_what_it_says(terminal: Terminal) -> None:
    terminal.run(block("bash", "torchserve --start"))
    asked, stop, _ = block("bash", "curl").partition("torchserve --stop")
    printed = terminal.run(asked)
    assert "".join(block("json", "average").split()) in "".join(printed.split())
    terminal.run(stop)


def test_the_handler_of_continuous_batches_counts_down(terminal: Terminal) -> None:
    (terminal.folder / "average.py").write_text(block("python", "CountDown"))
    (terminal.folder / "model-config.yaml").write_text(
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\ncontinuousBatching: true\n"
    )
    terminal.run(block("bash", "torchserve --start"))
    answer = terminal.ask("POST", "/predictions/average", b"3", Content_Type="text/plain")
    assert (answer.status, answer.body) == (200, b"3 2 1 ")
