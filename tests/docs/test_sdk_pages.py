"""The pages on the SDK against the code; tutorial and example as written."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_first_model_tutorial import STEP

from mariner import sdk
from mariner.sdk.serving_config import KEYS
from terminal import Terminal

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference/sdk.md").read_text()
TUTORIAL = (ROOT / "docs/tutorials/from-python-to-a-service.md").read_text()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


@pytest.mark.parametrize("name", [*inspect.signature(sdk.Model).parameters, *KEYS])
def test_every_keyword_of_a_model_has_a_row(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("class_", [sdk.Model, sdk.Deployment])
def test_every_method_is_on_the_page(class_: type) -> None:
    names = [name for name, member in inspect.getmembers(class_, callable) if not name.startswith("_")]
    assert len(names) >= 8
    assert [name for name in names if f"{name}(" not in REFERENCE] == []


def test_every_name_of_the_package_is_on_the_page() -> None:
    assert [name for name in sdk.__all__ if name not in REFERENCE] == []


def test_the_example_has_twelve_lines_and_is_what_the_tutorial_shows() -> None:
    folder = ROOT / "examples" / "sdk"
    assert len([line for line in (folder / "serve.py").read_text().splitlines() if line]) == 12
    shown = {step["file"]: step["text"] for step in STEP.finditer(TUTORIAL) if step["file"]}
    for name in ("model.py", "train.py", "handler.py", "serve.py"):
        assert shown[name] == (folder / name).read_text()


@pytest.mark.slow
@pytest.mark.torch
def test_the_tutorial_on_the_sdk_works_as_written(terminal: Terminal) -> None:
    output, compared = "", 0
    for step in STEP.finditer(TUTORIAL):
        if step["file"]:
            (terminal.folder / step["file"]).write_text(step["text"])
        elif step["language"] == "bash":
            output = terminal.run(step["text"])
        elif step["language"] == "text":
            for line in step["text"].splitlines():
                assert line in output
                compared += 1
    assert compared > 20
    assert list((terminal.folder / "tmp").glob("mariner-*/*-*")) == []  # no server is left


@pytest.mark.slow
@pytest.mark.torch
def test_the_example_of_the_sdk_works_as_its_page_says(terminal: Terminal) -> None:
    page = (ROOT / "examples/sdk/README.md").read_text()
    shutil.copytree(
        ROOT / "examples/sdk", terminal.folder / "examples/sdk", ignore=shutil.ignore_patterns("__pycache__")
    )
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    (expected,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    output = terminal.run(commands)
    assert [line for line in expected.splitlines() if line not in output] == []
