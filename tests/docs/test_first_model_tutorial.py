"""The tutorial as written: its files are written, its commands are run, its output is compared."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"(?:^`(?P<file>[\w.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def ports() -> list[str]:
    """Three free ports in the place of 8080, 8081 and 8082."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Commands come from beside this Python; the pid file and what archives unpack to lie in a place of our own."""
    (tmp_path / "tmp").mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path / "tmp")}
    yield environment
    subprocess.run(["torchserve", "--stop"], cwd=tmp_path, env=environment, timeout=60, check=False)


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """Runs commands as a shell would; the output goes through a file, because a server they start keeps it open."""
    output = folder / "output.txt"
    with output.open("wb") as file:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=file,
            timeout=120,
            check=False,
        )
    text = output.read_text(errors="replace")
    assert done.returncode == 0, f"{script}\nended with {done.returncode}:\n{text}"
    return text


@pytest.mark.slow
@pytest.mark.torch
def test_the_tutorial_works_as_written(tmp_path: Path, ports: list[str], environment: dict[str, str]) -> None:
    text = (ROOT / "docs/tutorials/first-model.md").read_text()
    for documented, free in zip(("8080", "8081", "8082"), ports, strict=True):
        text = text.replace(documented, free)
    output, compared = "", 0
    for step in STEP.finditer(text):
        if step["file"]:
            (tmp_path / step["file"]).write_text(step["text"])
        elif step["language"] == "bash":
            output = run(step["text"], tmp_path, environment)
        elif step["language"] == "text":
            for line in step["text"].splitlines():
                assert line in output
                compared += 1
    assert compared > 5
