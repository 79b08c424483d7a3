"""The examples of the sentiment and the EfficientNet pages, run as these are written."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from terminal import Answer, Terminal

pytestmark = [pytest.mark.slow, pytest.mark.torch]

ROOT = Path(__file__).parents[2]
STOP = "torchserve --stop\n"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


class Page(NamedTuple):
    """An example's page: its only block of commands, and what that prints."""

    commands: str
    output: str


def copy(example: str, terminal: Terminal) -> Page:
    """Puts an example where its page says it is, with our ports."""
    place = terminal.folder / "examples" / example
    shutil.copytree(ROOT / "examples" / example, place, ignore=shutil.ignore_patterns("__pycache__"))
    for path in place.iterdir():
        path.write_text(terminal.translate(path.read_text()))
    with (place / "config.properties").open("a") as file:
        file.write(terminal.addresses)
    page = (ROOT / "examples" / example / "README.md").read_text()
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    (output,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    return Page(commands, output)


def check(printed: str, documented: str) -> None:
    """Each documented line was printed, in that order; shares may differ from one processor to the next."""
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%", printed)]
    assert shares
    assert min(shares) > 95
    printed, documented = (re.sub(r"\d+\.\d%", "_%", text) for text in (printed, documented))
    position = 0
    for line in documented.splitlines():
        found = printed.find(line, position)
        assert found >= 0, f"{line!r} was not printed:\n{printed[position:]}"
        position = found + len(line)


def ask_for_sentiment(terminal: Terminal, value: object) -> Answer:
    return terminal.ask(
        "POST", "/predictions/my_model", json.dumps(value).encode(), Content_Type="application/json; charset=utf-8"
    )


def test_the_sentiment_page_works_as_written(terminal: Terminal) -> None:
    """Archive with the weights as its model file, flat, loaded by ``from_pretrained``; asked without a key."""
    page = copy("sentiment", terminal)
    assert page.commands.endswith(STOP)
    printed = terminal.run(page.commands.removesuffix(STOP))
    check(printed, page.output)
    seen = ask_for_sentiment(terminal, {"input": ["i love this lamp", "i hate this lamp"]})
    assert (seen.status, seen.json) == (200, ["Positive", "Negative"])
    refused = ask_for_sentiment(terminal, {"texts": ["i love this lamp"]})
    assert (refused.status, refused.json["message"]) == (
        400,
        'Send {"input": ["a text", "another"]} as application/json.',
    )
    part = (
        b'--x\r\nContent-Disposition: form-data; name="data"; filename="sample_input.json"\r\n'
        b'Content-Type: application/json\r\n\r\n{"input": ["what a terrible film"]}\r\n--x--\r\n'
    )
    answer = terminal.ask("POST", "/predictions/my_model", part, Content_Type="multipart/form-data; boundary=x")
    assert answer.json == ["Negative"]
    terminal.run(STOP)
    assert "Loaded pytorch_model.bin for ['Negative', 'Neutral', 'Positive'] on cpu" in terminal.output


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_the_efficientnet_page_works_as_written(terminal: Terminal) -> None:
    """A TorchScript program alone; the script run twice; four concurrent requests of which one is malformed."""
    page = copy("efficientnet", terminal)
    assert page.commands.endswith(STOP)
    printed = terminal.run(page.commands.removesuffix(STOP))
    check(printed, page.output)
    images = sorted((terminal.folder / "examples/efficientnet/images").glob("*.npy"))[:3]
    bodies = [images[0].read_bytes(), b"no array", images[1].read_bytes(), images[2].read_bytes()]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda body: terminal.ask("POST", "/predictions/b4", body), bodies))
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    for image, answer in zip(images, [answers[0], *answers[2:]], strict=True):
        alone = terminal.ask("POST", "/predictions/b4", image.read_bytes())
        assert answer.json == pytest.approx(alone.json, abs=1e-5)
        assert sum(answer.json) == pytest.approx(1)
    mirrored = terminal.ask("POST", "/predictions/b4", npy(np.load(images[0])[:, ::-1]))
    assert mirrored.json == pytest.approx(answers[0].json, abs=1e-5)
    terminal.run(STOP)
    log = (terminal.folder / "examples/efficientnet/server.log").read_text()
    assert "already running" in log
    assert "async_logging" in log
