from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mariner.archive.manifest import MAX_MANIFEST_SIZE, Manifest, Runtime, read_manifest
from mariner.errors import InvalidArchive

WRITTEN = """{
  "createdOn": "30/05/2024 21:46:03",
  "runtime": "python",
  "model": {
    "modelName": "mnist",
    "serializedFile": "mnist.pt",
    "handler": "h:handle",
    "modelFile": "model.py",
    "modelVersion": "1.0",
    "requirementsFile": "requirements.txt",
    "configFile": "model-config.yaml"
  },
  "archiverVersion": "0.12.0"
}"""

lines = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1)


def test_the_archivers_text_is_read_and_written_back_unchanged() -> None:
    assert Manifest.parse(WRITTEN).to_json() == WRITTEN


@given(
    st.builds(
        Manifest,
        model_name=st.none() | lines,
        model_version=lines,
        handler=st.none() | lines,
        runtime=st.sampled_from(Runtime),
        serialized_file=st.none() | lines,
        model_file=st.none() | lines,
        requirements_file=st.none() | lines,
        config_file=st.none() | lines,
        created_on=st.none() | lines,
        archiver_version=st.none() | lines,
    )
)
def test_every_manifest_survives_a_round_trip(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.to_json()) == manifest


@given(st.text() | st.binary())
def test_any_text_is_a_manifest_or_an_error_with_a_message(text: str | bytes) -> None:
    try:
        Manifest.parse(text)
    except InvalidArchive as error:
        assert error.message  # noqa: PT017  (no error is fine, too)


@pytest.mark.parametrize("text", ["{}", '{"model": {}}'])
def test_what_is_missing_has_a_default(text: str) -> None:
    assert Manifest.parse(text) == Manifest(model_version="1.0", runtime=Runtime.PYTHON)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "Failed to parse signature.json."),
        ("[]", "Failed to parse signature.json."),
        ("{" * 1000, "Failed to parse signature.json."),
        (b"\xff\xfe\xff", "Failed to parse signature.json."),
        ('{"model": {"handler": ["a"]}}', "Failed to parse signature.json."),
        ('{"model": {"modelName": "a\\nb"}}', "Failed to parse signature.json."),
        ('{"model": null}', "Missing Model entry in manifest file."),
        ('{"model": "mnist"}', "Missing Model entry in manifest file."),
        ('{"model": {"modelVersion": null}}', "Model version is not defined."),
        ('{"runtime": "foo"}', "Runtime is not defined or invalid."),
        ('{"runtime": null}', "Runtime is not defined or invalid."),
        ('{"runtime": []}', "Runtime is not defined or invalid."),
    ],
)
def test_what_is_wrong_has_torchserves_message(text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidArchive) as caught:
        Manifest.parse(text)
    assert caught.value.message == message
    assert caught.value.wire_name == "InvalidModelException"
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("version", "text"), [("1.10", "1.10"), ("2", "2"), ("true", "true"), ('"v1-beta"', "v1-beta")]
)
def test_a_version_stays_as_it_is_written(version: str, text: str) -> None:
    assert Manifest.parse(f'{{"model": {{"modelVersion": {version}}}}}').model_version == text


def test_hand_written_json_is_forgiven() -> None:
    manifest = Manifest.parse("\ufeff{'runtime': 'python3', model: {modelName: m, handler: 'h.py',},}".encode())
    assert (manifest.model_name, manifest.handler, manifest.runtime) == ("m", "h.py", Runtime.PYTHON3)


@pytest.mark.parametrize("key", ["handler", "serializedFile", "modelFile", "requirementsFile", "configFile"])
@pytest.mark.parametrize("value", ["../../x", "/etc/passwd", "a/../../b"])
def test_files_outside_the_archive_are_refused(key: str, value: str) -> None:
    manifest = Manifest.parse(f'{{"model": {{"{key}": "{value}"}}}}')
    with pytest.raises(InvalidArchive, match=f"manifest's {key} is '{value}', which is outside the archive"):
        manifest.check_references()


def test_files_inside_the_archive_are_fine() -> None:
    Manifest(handler="pkg/h.py:handle", model_file="a/b.py", config_file="c..yaml").check_references()


def test_a_directory_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / "MAR-INF").write_text("a file")
    assert read_manifest(tmp_path) is None


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF/MANIFEST.json").write_bytes(b" " * (MAX_MANIFEST_SIZE + 1))
    with pytest.raises(InvalidArchive, match=r"Failed to parse signature\.json\."):
        read_manifest(tmp_path)


def test_a_manifest_that_cannot_be_read_is_an_invalid_archive(tmp_path: Path) -> None:
    (tmp_path / "MAR-INF/MANIFEST.json").mkdir(parents=True)
    with pytest.raises(InvalidArchive) as caught:
        read_manifest(tmp_path)
    assert caught.value.hint == "MAR-INF/MANIFEST.json: Is a directory."
