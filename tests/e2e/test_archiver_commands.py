"""The installed archiver commands, as scripts call them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMANDS = Path(sys.executable).parent
HEAVY = {"torch", "uvloop", "httptools", "psutil", "rich", "mariner.config", "mariner.jobs", "ts"}


def run(work: Path, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMANDS / command, *words], cwd=work, capture_output=True, text=True, check=False)


def test_the_documented_command_packages_a_model(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name in ("model_handler.py", "index_to_name.json", "src/model.bin", "src/vocab.txt"):
        (tmp_path / name).touch()
    words = "--model-name m --version 1.0 --handler model_handler:handle --model-file src/model.bin --runtime python3"
    words += " --extra-files index_to_name.json,src/vocab.txt, --export-path store --model-path src"
    result = run(tmp_path, "torch-model-archiver", *words.split())
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "WARNING - Export directory (store) does not exist. Creating...\n"
    with zipfile.ZipFile(tmp_path / "store/m.mar") as archive:
        assert archive.namelist() == [
            "index_to_name.json",
            "model.bin",
            "model_handler.py",
            "vocab.txt",
            "MAR-INF/MANIFEST.json",
        ]
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
    assert manifest["runtime"] == "python3"
    assert manifest["model"] == {
        "modelName": "m",
        "handler": "model_handler:handle",
        "modelFile": "model.bin",
        "modelVersion": "1.0",
    }


def test_an_existing_archive_is_a_text_and_no_traceback(tmp_path: Path) -> None:
    words = ["--model-name", "m", "--version", "1.0", "--handler", "image_classifier"]
    assert run(tmp_path, "torch-model-archiver", *words).returncode == 0
    result = run(tmp_path, "torch-model-archiver", *words)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "ERROR - m.mar already exists.\n"
        "Please specify --force/-f option to overwrite the model archive output file.\n"
        "See -h/--help for more details.\n"
    )


def test_the_workflow_command_packages_a_workflow(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").touch()
    words = ["--workflow-name", "w", "--spec-file", "spec.yaml"]
    assert run(tmp_path, "torch-workflow-archiver", *words).returncode == 0
    result = run(tmp_path, "torch-workflow-archiver", *words)
    assert result.returncode == 1
    assert result.stderr.startswith("ERROR - w.war already exists.\n")


@pytest.mark.parametrize("module", ["model_archiver", "workflow_archiver"])
def test_the_modules_run_too(tmp_path: Path, module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "usage: torch-" in result.stdout


def test_the_archivers_import_neither_torch_nor_the_server() -> None:
    code = "import sys, model_archiver, model_archiver.model_packaging, workflow_archiver; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY.isdisjoint(loaded)
