"""What a model says of itself, and the archive that is made of it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sdk_project import SERVING, write_project

import mariner
from mariner.archive import cli, write
from mariner.errors import InvalidModel
from mariner.sdk import Model, ModelFramework, sanitize_string

PAGE: dict[str, Any] = {
    "id": "dev/mnist",
    "name": "MNIST",
    "description": "MNIST Model",
    "version": "0.0.1",
    "framework": "pytorch",
    "framework_version": "1.7.1",
    "main_file": "trainer.py",
    "extra_files": ["model.py"],
    "base_image": "base_repository/image:tag",
    "image_name": "target_repository/image:tag",
    "serving_config": {
        "model_file": "model.py",
        "handler": "image_classifier",
        "serialized_file": "state_dict.pt",
        "extra_files": "file_a.py,file_b.py,",
        "requirements_file": "serving_requirements.txt",
        "config_properties": "my.properties",
    },
    "requirements": "requirements.txt",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def serving(**changes: str | None) -> dict[str, str]:
    merged: dict[str, str | None] = {**SERVING, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def content(archive: Path) -> dict[str, Any]:
    """The entries; the manifest parsed, without the moment it was made."""
    with zipfile.ZipFile(archive) as file:
        entries: dict[str, Any] = {name: file.read(name) for name in file.namelist() if not name.endswith("/")}
    manifest = json.loads(entries["MAR-INF/MANIFEST.json"])
    del manifest["createdOn"]
    return {**entries, "MAR-INF/MANIFEST.json": manifest}


def manifest(archive: Path) -> dict[str, str]:
    found: dict[str, str] = content(archive)["MAR-INF/MANIFEST.json"]["model"]
    return found


# -- the class -------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_is_a_model() -> None:
    model = Model(**PAGE)
    assert {key: getattr(model, key) for key in PAGE} == PAGE


def test_a_model_takes_exactly_the_keywords_of_the_page() -> None:
    parameters = inspect.signature(Model).parameters
    assert list(parameters) == list(PAGE)
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(TypeError, match="colour"):
        Model(id="a", colour="blue")  # type: ignore[call-arg]


def test_only_the_id_is_needed_to_begin_with() -> None:
    model = Model(id="dev/mnist")
    assert (model.name, model.version, model.framework, model.extra_files) == ("dev/mnist", "1.0", "pytorch", [])


def test_the_package_mariner_has_the_model_without_importing_the_sdk() -> None:
    script = (
        "import sys, mariner; assert not {'mariner.sdk', 'urllib3', 'psutil'} & sys.modules.keys(); "
        "mariner.Model(id='a'); assert 'mariner.sdk' in sys.modules; assert 'urllib3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert mariner.Model is Model
    with pytest.raises(AttributeError, match="no attribute 'Madel'"):
        mariner.Madel  # noqa: B018


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "id: '' is no text"),
        ({"id": "///"}, "id: '///' makes no name. Use at least one ASCII letter or digit"),
        ({"id": 7}, "id: 7 is no text. Write id='...'"),
        ({"version": 1.0}, "version: 1.0 is no text"),
        ({"version": "1/2"}, "version: '1/2' is no version. Use letters, digits, dots and hyphens"),
        ({"framework": "tensorflow"}, "framework: 'tensorflow' is not served. Write framework='pytorch'"),
        ({"extra_files": "model.py"}, "extra_files must be a list of paths. Write extra_files=['model.py']"),
        ({"requirements": ["numpy"]}, "requirements: ['numpy'] is no text"),
        ({"serving_config": "model.py"}, "serving_config must be a dict of texts, not str"),
        ({"serving_config": {"handler": "handler.py"}}, "serving_config['model_file'] is missing. Name the file"),
        ({"serving_config": {"model_file": "model.py"}}, "serving_config['handler'] is missing. Name a built-in"),
        ({"serving_config": serving(handler=" ")}, "serving_config['handler'] is missing"),
        ({"serving_config": {**SERVING, "serialised_file": "a"}}, "Did you mean serialized_file?"),
        ({"serving_config": {**SERVING, "colour": "a"}}, "serving_config has no key 'colour'. Its keys are model_file"),
        (
            {"serving_config": {**SERVING, "extra_files": ["a.py"]}},
            "serving_config['extra_files'] must be a text, not list. Write 'extra_files': 'file_a.py,file_b.py'",
        ),
    ],
)
def test_what_is_wrong_is_said_at_once_with_the_key_and_the_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidModel) as error:
        Model(**{**PAGE, **change})
    assert message in str(error.value)


def test_frameworks_have_names() -> None:
    assert Model(id="a", framework=ModelFramework.PYTORCH).framework == "pytorch"


# -- its name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id_", "name"),
    [
        ("dev/mnist", "dev-mnist"),
        ("mnist", "mnist"),
        ("Dev/MNIST v2", "dev-mnist-v2"),
        ("_a__b_", "a-b"),
        ("a.b", "a-b"),
        ("größe", "gr-e"),
        ("7/up", "7-up"),
    ],
)
def test_ids_become_legal_names(id_: str, name: str) -> None:
    assert sanitize_string(id_) == name


def test_long_ids_stay_apart() -> None:
    first, second = sanitize_string("a" * 63 + "b"), sanitize_string("a" * 63 + "c")
    assert (len(first), len(second)) == (63, 63)
    assert first != second
    assert first == sanitize_string("a" * 63 + "b")


# -- the archive -----------------------------------------------------------------------------------------------------


def test_the_archive_is_the_one_that_the_command_writes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_now", lambda: "24/11/2026 10:00:00")
    made = Model(**PAGE).package("by_sdk")
    command = (
        "--model-name dev-mnist --version 0.0.1 --model-file model.py --handler image_classifier "
        "--serialized-file state_dict.pt --extra-files file_a.py,file_b.py, "
        "--requirements-file serving_requirements.txt --export-path by_command"
    )
    assert cli.model_archiver(command.split()) == 0
    assert made == Path("by_sdk/dev-mnist.mar")
    assert content(made) == content(Path("by_command/dev-mnist.mar"))
    assert manifest(made) == {
        "modelName": "dev-mnist", "serializedFile": "state_dict.pt", "handler": "image_classifier",
        "modelFile": "model.py", "modelVersion": "0.0.1", "requirementsFile": "serving_requirements.txt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("handler", "entry", "packed"),
    [
        ("image_classifier", "image_classifier", False),
        ("handler.py", "handler.py", True),
        ("handler.py:handle", "handler.py:handle", True),
        ("handler", "handler", True),
    ],
)
def test_a_handler_is_built_in_or_a_file(handler: str, entry: str, packed: bool) -> None:
    archive = Model(id="a", serving_config=serving(handler=handler)).package()
    assert manifest(archive)["handler"] == entry
    assert ("handler.py" in content(archive)) == packed


def test_packaging_again_replaces_the_archive(project: Path) -> None:
    model = Model(id="a", serving_config=SERVING)
    model.package()
    (project / "state_dict.pt").write_text("better")
    assert content(model.package())["state_dict.pt"] == b"better"


def test_the_weights_are_those_that_training_exported_if_no_others_are_named(project: Path) -> None:
    model = Model(id="dev/mnist", version="0.0.2", serving_config=serving(serialized_file=None))
    with pytest.raises(InvalidModel, match=r"serving_config\['serialized_file'\] is not given.*model.export"):
        model.package()
    model.export().write_text("exported")
    assert model.export() == Path("exports/dev-mnist/0.0.2/model.pt")
    archive = model.package()
    assert (content(archive)["model.pt"], manifest(archive)["serializedFile"]) == (b"exported", "model.pt")


@pytest.mark.parametrize(
    ("given", "of_model", "packed"),
    [
        ("file_a.py,file_b.py,", ["trainer.py"], {"file_a.py", "file_b.py"}),
        (" file_a.py , ,", [], {"file_a.py"}),
        ("", ["file_a.py"], set()),
        (None, ["file_a.py", "trainer.py"], {"file_a.py", "trainer.py"}),
        (None, ["model.py"], set()),
        (None, [], set()),
    ],
)
def test_extra_files_fall_back_to_those_of_the_model(given: str | None, of_model: list[str], packed: set[str]) -> None:
    model = Model(id="a", extra_files=of_model, serving_config=serving(extra_files=given))
    own = {"model.py", "handler.py", "state_dict.pt", "MAR-INF/MANIFEST.json"}
    assert set(content(model.package())) - own == packed


@pytest.mark.parametrize(
    ("given", "of_model", "packed"),
    [
        ("serving_requirements.txt", "requirements.txt", "serving_requirements.txt"),
        (None, "requirements.txt", "requirements.txt"),
        (None, None, None),
    ],
)
def test_requirements_fall_back_to_those_of_the_model(
    given: str | None, of_model: str | None, packed: str | None
) -> None:
    model = Model(id="a", requirements=of_model, serving_config=serving(requirements_file=given))
    assert manifest(model.package()).get("requirementsFile") == packed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serving_config": {}}, "serving_config['model_file'] is missing"),
        ({"serving_config": serving(model_file="net.py")}, "serving_config['model_file']: there is no file 'net.py'."),
        ({"serving_config": serving(handler="image_clasifier")}, "Did you mean image_classifier?"),
        ({"serving_config": serving(handler="serve.py")}, "Name a Python file, or one of base_handler"),
        ({"serving_config": serving(serialized_file="b.pt")}, "serving_config['serialized_file']: there is no file"),
        (
            {"serving_config": serving(extra_files="file_a.py,c.py")},
            "serving_config['extra_files']: there is no file 'c.py'",
        ),
        ({"extra_files": ["c.py"], "serving_config": SERVING}, "extra_files: there is no file 'c.py'"),
        (
            {"serving_config": serving(requirements_file="r.txt")},
            "serving_config['requirements_file']: there is no file",
        ),
        ({"requirements": "r.txt", "serving_config": SERVING}, "requirements: there is no file 'r.txt'"),
        ({"serving_config": serving(config_properties="c")}, "serving_config['config_properties']: there is no file"),
    ],
)
def test_what_is_not_there_is_said_with_its_key(change: dict[str, Any], message: str, project: Path) -> None:
    with pytest.raises(InvalidModel) as error:
        Model(id="a", **change).package("out")
    assert message in str(error.value)
    assert not (project / "out").exists()


def test_a_path_with_a_comma_is_refused(project: Path) -> None:
    (project / "a,b.py").touch()
    with pytest.raises(InvalidModel, match=r"extra_files: the path 'a,b.py' has a comma. Rename the file"):
        Model(id="a", extra_files=["a,b.py"], serving_config=SERVING).package()


def test_the_next_version_is_a_changed_copy() -> None:
    first = Model(**PAGE)
    second = dataclasses.replace(
        first, version="0.0.2", serving_config={**first.serving_config, "handler": "handler.py"}
    )
    assert (second.id, second.version, second.serving_config["handler"]) == ("dev/mnist", "0.0.2", "handler.py")
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.version = "0.0.2"  # type: ignore[misc]


def test_a_target_that_is_unknown_is_refused() -> None:
    with pytest.raises(InvalidModel, match=r"target: 'moon' is unknown\. Write target='local' or target='kserve'"):
        Model(**PAGE).deploy(target="moon")
