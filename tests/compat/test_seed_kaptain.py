"""The page on serving with the Kaptain SDK, requirement by requirement (E1 to E21); those that need the model's own
behaviour are in test_kserve_layout.py and test_seed_kaptain_serving.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kaptain.utilities as util
import mariner.sdk
from kaptain.model.frameworks import ModelFramework
from kaptain.model.models import Model
from kaptain.platform.serving.packaging.artifact_builder import TorchServingArtifactBuilder
from mariner.properties import parse_properties

PACKAGE = Path(mariner.sdk.__file__).parents[2] / "kaptain"
GENERATED = """\
inference_address=http://0.0.0.0:8085
management_address=http://0.0.0.0:8081
number_of_netty_threads=4
service_envelope=kfserving
install_py_dep_per_model=true
job_queue_size=10
model_store=/mnt/models/model-store
model_snapshot={"name": "startup.cfg", "modelCount": 1, "models": {"dev-mnist": {"1.0": {"defaultVersion": true, \
"marName": "dev-mnist.mar", "minWorkers": 1, "maxWorkers": 5, "batchSize": 1, "maxBatchDelay": 5000, \
"responseTimeout": 120}}}}
"""


def test_the_old_import_paths_lead_to_the_same_things() -> None:
    assert Model is mariner.sdk.Model
    assert ModelFramework is mariner.sdk.ModelFramework
    assert TorchServingArtifactBuilder is mariner.sdk.TorchServingArtifactBuilder
    assert util.sanitize_string is mariner.sdk.sanitize_string


def test_the_old_package_does_nothing_but_import() -> None:
    for path in PACKAGE.rglob("*.py"):
        rest = re.sub(r'^""".*?"""', "", path.read_text(), flags=re.DOTALL)
        lines = [line for line in rest.splitlines() if line]
        assert all(line.startswith(("from mariner.sdk import ", "__all__ = [")) for line in lines), path


def test_names_made_of_ids_are_legal_for_archives_and_for_kubernetes() -> None:
    for text in ("dev/mnist", "A/b_C", "--x--", "x" * 200, "a/b/c.d"):
        name = util.sanitize_string(text)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_\-.]*", name)
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
        assert util.sanitize_string(text) == name


def test_the_commands_of_the_page_write_the_file_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Model(id="dev/mnist")
    model_name = util.sanitize_string(model.id)
    TorchServingArtifactBuilder.write_config_properties(model_name, f"{model_name}.mar", os.getcwd())  # noqa: PTH109
    assert (tmp_path / "config.properties").read_text() == GENERATED


def test_two_models_have_two_names_in_their_files(tmp_path: Path) -> None:
    names = []
    for id_ in ("dev/mnist", "dev/iris"):
        name = util.sanitize_string(id_)
        path = TorchServingArtifactBuilder.write_config_properties(name, f"{name}.mar", tmp_path)
        snapshot = json.loads(parse_properties(Path(path).read_text())["model_snapshot"].value)
        names.append([(model, entry["1.0"]["marName"]) for model, entry in snapshot["models"].items()])
    assert names == [[("dev-mnist", "dev-mnist.mar")], [("dev-iris", "dev-iris.mar")]]


def test_the_file_is_one_that_a_server_can_be_started_with(tmp_path: Path) -> None:
    path = TorchServingArtifactBuilder.write_config_properties("m", "m.mar", tmp_path)
    command = [sys.executable, "-m", "mariner", "config", "explain", f"--ts-config={path}", "job_queue_size"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "job_queue_size = 10" in done.stdout
    assert done.stderr == "Settings of the Java server are accepted and ignored: number_of_netty_threads.\n"
