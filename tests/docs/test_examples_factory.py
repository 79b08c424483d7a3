"""The handler factory as its page says: train, bundle, build, serve."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mariner.jobs import Part, Request, pack_headers
from mariner.serve import Server
from mariner.testing import running_server

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "factory"
FLAGS = {
    "model_name": "iris",
    "model_file": "iris_model.py",
    "config_file": "model-config.yaml",
    "requirements_file": "requirements.txt",
    "checkpoint_file": "checkpoint.pth",
    "version": "1.0",
}


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}


def build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(EXAMPLE / "base" / "build.sh")
    return subprocess.run(
        [script, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def arguments(flags: dict[str, str]) -> list[str]:
    return [word for flag, value in flags.items() for word in (f"--{flag}", value)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example with a file in the place of its checkpoint."""
    place = tmp_path / "iris"
    shutil.copytree(EXAMPLE / "iris", place, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "checkpoint.pth").touch()
    return place


def follow_the_page(folder: Path) -> str:
    """Runs what the page says before it starts the server; returns what was printed."""
    page = (EXAMPLE / "README.md").read_text()
    block = re.search(r"```bash\ncd examples/factory/iris\n(.*?)torchserve --start", page, re.DOTALL)
    assert block
    script = block[1].replace("../base", str(EXAMPLE / "base"))
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def request(value: Any) -> Request:
    return Request("r", pack_headers([]), [Part("body", "application/json", json.dumps(value).encode())])


async def ask(server: Server, value: Any) -> tuple[int, Any]:
    reply = await server.models.predict("iris", None, request(value))
    return reply.status, json.loads(bytes(reply.body))


@pytest.mark.slow
@pytest.mark.torch
async def test_the_example_recognises_flowers_and_a_bad_request_fails_alone(folder: Path) -> None:
    assert re.search(r"9\d% of the flowers", follow_the_page(folder))
    manifest = json.loads(zipfile.ZipFile(folder / "model-store/iris.mar").read("MAR-INF/MANIFEST.json"))
    assert manifest["runtime"] == "python3"
    assert manifest["model"] == {
        "modelName": "iris",
        "serializedFile": "checkpoint.pth",
        "handler": "iris_model.py",
        "modelFile": "base_handler.py",
        "modelVersion": "1.0",
        "requirementsFile": "requirements.txt",
        "configFile": "model-config.yaml",
    }
    async with running_server(
        model_store=folder / "model-store", temp_dir=folder, install_py_dep_per_model=True
    ) as server:
        await server.models.register("iris.mar")
        answers = await asyncio.gather(
            ask(server, [5.1, 3.5, 1.4, 0.2]),
            ask(server, "no numbers"),
            ask(server, [6.3, 3.3, 6.0, 2.5]),
            ask(server, [5.5, 2.5, 4.0, 1.3]),
        )
    assert [status for status, _ in answers] == [200, 400, 200, 200]
    assert [answer[1:] for status, answer in answers if status == 200] == [
        [0, "setosa"],
        [2, "virginica"],
        [1, "versicolor"],
    ]


@pytest.mark.slow
def test_an_archive_is_built_without_extra_files_and_replaces_the_last_one(folder: Path) -> None:
    for _ in range(2):
        done = build(folder, *arguments(FLAGS))
        assert done.returncode == 0, done.stderr
    assert "network.tar.gz" not in zipfile.ZipFile(folder / "iris.mar").namelist()


@pytest.mark.slow
def test_extra_files_are_packed_as_they_are(folder: Path) -> None:
    with tarfile.open(folder / "extra.tar.gz", "w") as plain:
        plain.add(folder / "network", "network")
    assert build(folder, *arguments({**FLAGS, "extra_files": "extra.tar.gz"})).returncode == 0
    assert "extra.tar.gz" in zipfile.ZipFile(folder / "iris.mar").namelist()


@pytest.mark.parametrize("flag", FLAGS)
def test_a_missing_flag_is_named_with_the_usage(folder: Path, flag: str) -> None:
    done = build(folder, *arguments({name: value for name, value in FLAGS.items() if name != flag}))
    assert done.returncode == 1
    assert f"--{flag} is missing." in done.stderr
    usage = done.stderr.splitlines()[-1]
    assert usage.startswith("Usage: ./build.sh --model_name <model_name>")
    assert usage.endswith("[--extra_files <extra_files>]")
    assert not list(folder.glob("*.mar"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modelname", "x"], "--modelname is no flag"),
        (["--version"], "--version needs a value."),
        (arguments({**FLAGS, "model_file": "absent.py"}), "--model_file: there is no file absent.py."),
    ],
)
def test_other_mistakes_are_named_with_the_usage(folder: Path, words: list[str], said: str) -> None:
    done = build(folder, *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Usage: ./build.sh" in done.stderr
