from __future__ import annotations

import calendar
import json
import logging
import os
import re
import stat
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mariner.archive.read import open_archive
from mariner.archive.write import (
    ARCHIVE_FORMATS,
    ArchiveError,
    ArchiveSpec,
    WorkflowSpec,
    write_model_archive,
    write_workflow_archive,
)

file_names = st.from_regex(r"[a-z0-9é .#%-]{1,12}", fullmatch=True).filter(
    lambda name: name == name.strip() and set(name) != {"."}
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the files of a model."""
    path = tmp_path / "work"
    (path / "dir").mkdir(parents=True)
    (path / "dir/h.py").write_text("handler")
    (path / "dir/model.py").write_text("class")
    (path / "dir/weights.pt").write_bytes(b"weights" * 1000)
    (path / "requirements.txt").write_text("numpy")
    (path / "model-config.yaml").write_text("batchSize: 4")
    monkeypatch.chdir(path)
    return path


def package(**fields: Any) -> Path:
    return write_model_archive(ArchiveSpec(**{"model_name": "m", "version": "1.0", "handler": "dir/h.py"} | fields))


def entries(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return file.namelist()


def manifest(archive: Path) -> Any:
    with zipfile.ZipFile(archive) as file:
        return json.loads(file.read("MAR-INF/MANIFEST.json"))


# -- what is in it ---------------------------------------------------------------------------------------------------


def test_a_model_archive_has_its_files_flat_and_the_manifest_last(work: Path) -> None:
    archive = package(
        serialized_file="dir/weights.pt",
        model_file="dir/model.py",
        requirements_file="requirements.txt",
        config_file="model-config.yaml",
    )
    assert archive == Path("m.mar")
    assert entries(archive) == [
        "h.py",
        "model-config.yaml",
        "model.py",
        "requirements.txt",
        "weights.pt",
        "MAR-INF/MANIFEST.json",
    ]
    document = manifest(archive)
    assert re.fullmatch(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d", document["createdOn"])
    assert list(document) == ["createdOn", "runtime", "model", "archiverVersion"]
    assert (document["runtime"], document["archiverVersion"]) == ("python", "0.12.0")
    assert list(document["model"].items()) == [
        ("modelName", "m"),
        ("serializedFile", "weights.pt"),
        ("handler", "h.py"),
        ("modelFile", "model.py"),
        ("modelVersion", "1.0"),
        ("requirementsFile", "requirements.txt"),
        ("configFile", "model-config.yaml"),
    ]


def test_what_is_not_given_is_not_in_the_manifest(work: Path) -> None:
    assert list(manifest(package())["model"]) == ["modelName", "handler", "modelVersion"]


def test_a_weights_file_may_be_called_the_model_file(work: Path) -> None:
    archive = package(model_file="dir/weights.pt")
    assert manifest(archive)["model"]["modelFile"] == "weights.pt"
    assert "serializedFile" not in manifest(archive)["model"]
    assert "weights.pt" in entries(archive)


@pytest.mark.parametrize("archive_format", ARCHIVE_FORMATS)
def test_every_format_has_its_layout(work: Path, archive_format: str) -> None:
    archive = package(archive_format=archive_format, serialized_file="dir/weights.pt")
    names = ["h.py", "weights.pt", "MAR-INF/MANIFEST.json"]
    match archive_format:
        case "default" | "zip-store":
            assert archive.name == "m.mar"
            assert entries(archive) == names
        case "tgz":
            assert archive.name == "m.tar.gz"
            with tarfile.open(archive, "r:gz") as file:
                assert file.getnames() == [f"m/{name}" for name in names]
                assert {(entry.uid, entry.uname) for entry in file} == {(0, "")}
        case _:
            assert archive.name == "m"
            assert sorted(str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()) == sorted(
                names
            )


def test_an_archive_that_is_only_stored_is_larger(work: Path) -> None:
    sizes = [
        package(archive_format=archive_format, serialized_file="dir/weights.pt", model_name=archive_format)
        .stat()
        .st_size
        for archive_format in ("zip-store", "default")
    ]
    assert sizes[0] > 7000 > sizes[1]


def test_an_archive_is_readable_as_the_umask_has_it(work: Path) -> None:
    umask = os.umask(0o022)
    try:
        assert stat.S_IMODE(package().stat().st_mode) == 0o644
    finally:
        os.umask(umask)


def test_files_from_before_zip_was_invented_are_packaged(work: Path) -> None:
    os.utime("dir/h.py", (0, 0))
    assert entries(package())[0] == "h.py"


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(file_names, st.binary(max_size=200), max_size=4),
    st.sampled_from(ARCHIVE_FORMATS),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_\-.]{0,10}", fullmatch=True).filter(lambda name: ".." not in f"{name}."),
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="\x7f"), min_size=1, max_size=8),
)
def test_what_is_packaged_is_what_is_opened(
    files: dict[str, bytes], archive_format: str, name: str, version: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        (base / "extra").mkdir()
        for file_name, content in files.items():
            (base / "extra" / file_name).write_bytes(content)
        (base / "handler.py").write_text("handler")
        archive = write_model_archive(
            ArchiveSpec(
                name,
                str(base / "handler.py:entry"),
                version,
                extra_files=str(base / "extra"),
                export_path=str(base / "store"),
                archive_format=archive_format,
            )
        )
        opened = open_archive(archive.name, model_store=base / "store", allowed_urls=[], temp_dir=base / "temp")
        assert (opened.manifest.model_name, opened.manifest.model_version) == (name, version)
        assert opened.manifest.handler == "handler.py:entry"
        found = {path.name: path.read_bytes() for path in opened.model_dir.iterdir() if path.is_file()}
        assert found == {"handler.py": b"handler", **files}
        assert opened.warnings == ()


# -- handlers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "entry", "written"),
    [
        ("dir/h", "h.py", "h"),
        ("dir/h.py", "h.py", "h.py"),
        ("dir/h:fn", "h.py", "h:fn"),
        ("dir/h.py:fn", "h.py", "h.py:fn"),
        ("dir.py/h:fn", "h.py", "h:fn"),
        ("dir.py/h", "h.py", "h"),
        ("dir.py/h.pyc", "h.pyc", "h.pyc"),
    ],
)
def test_a_handler_is_found_however_it_is_spelled(work: Path, handler: str, entry: str, written: str) -> None:
    (work / "dir.py").mkdir()
    (work / "dir.py/h.py").touch()
    (work / "dir.py/h.pyc").touch()
    archive = package(handler=handler)
    assert entries(archive) == [entry, "MAR-INF/MANIFEST.json"]
    assert manifest(archive)["model"]["handler"] == written


def test_a_built_in_handler_copies_nothing(work: Path) -> None:
    archive = package(handler="image_classifier")
    assert entries(archive) == ["MAR-INF/MANIFEST.json"]
    assert manifest(archive)["model"]["handler"] == "image_classifier"


@pytest.mark.parametrize(
    ("handler", "copied"), [("BaseHandler", []), ("dir/lib", ["lib.so"]), ("dir/lib:Handler", ["lib.so"])]
)
def test_a_native_handler_is_a_library(work: Path, handler: str, copied: list[str]) -> None:
    (work / "dir/lib.so").touch()
    archive = package(handler=handler, runtime="LSP")
    assert entries(archive) == [*copied, "MAR-INF/MANIFEST.json"]
    assert manifest(archive)["runtime"] == "LSP"


@pytest.mark.parametrize("field", ["handler", "serialized_file", "model_file", "requirements_file", "config_file"])
def test_a_missing_file_is_named(work: Path, field: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.py"):
        package(**{field: "dir/missing.py"})
    assert not Path("m.mar").exists()


def test_a_directory_is_no_weights_file(work: Path) -> None:
    with pytest.raises(ArchiveError, match="dir is not a file"):
        package(serialized_file="dir")


# -- extra files -----------------------------------------------------------------------------------------------------


def test_the_content_of_an_extra_directory_goes_to_the_root(work: Path) -> None:
    for name in ("x/a", "x/.hidden", "x/nested/b", "x/nested/.git/c", "x/__pycache__/d", "x/__MACOSX/e", "x/.venv/f"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).touch()
    (work / "x/empty").mkdir()
    assert entries(package(extra_files="x")) == [".hidden", "a", "h.py", "nested/b", "MAR-INF/MANIFEST.json"]


@pytest.mark.parametrize("extra_files", ["a.txt,b.txt,", " a.txt , b.txt", "?.txt", "[ab].txt,", "a.txt,b*"])
def test_extra_files_are_a_forgiving_list_with_wildcards(work: Path, extra_files: str) -> None:
    (work / "a.txt").touch()
    (work / "b.txt").touch()
    assert entries(package(extra_files=extra_files)) == ["a.txt", "b.txt", "h.py", "MAR-INF/MANIFEST.json"]


def test_a_file_that_is_called_like_a_wildcard_is_that_file(work: Path) -> None:
    (work / "[ab].txt").touch()
    (work / "a.txt").touch()
    assert entries(package(extra_files="[ab].txt"))[0] == "[ab].txt"


def test_a_missing_extra_file_is_an_error(work: Path) -> None:
    with pytest.raises(ArchiveError, match=r"^File does not exist: missing$"):
        package(extra_files="requirements.txt, missing")


def test_a_wildcard_that_matches_nothing_is_a_warning(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    package(extra_files="*.nothing")
    assert caplog.messages == ["Given wildcard pattern did not match any file: *.nothing"]


def test_something_that_is_neither_file_nor_directory_is_no_extra_file(work: Path) -> None:
    os.mkfifo("fifo")
    with pytest.raises(ArchiveError, match="Invalid extra file given fifo"):
        package(extra_files="fifo")


def test_in_a_directory_it_is_left_out(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo("dir/fifo")
    assert "fifo" not in entries(package(extra_files="dir"))
    assert caplog.messages == ["Leaving out dir/fifo: it is neither a file nor a directory."]


def test_of_two_files_for_one_entry_the_later_stands_and_a_warning_says_so(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (work / "h.py").write_text("other")
    archive = package(extra_files="h.py,h.py")
    with zipfile.ZipFile(archive) as file:
        assert file.read("h.py") == b"other"
    assert caplog.messages == ["h.py replaces dir/h.py in the archive: both would be h.py."]


def test_an_entry_cannot_be_file_and_directory(work: Path) -> None:
    (work / "x/h.py").mkdir(parents=True)
    (work / "x/h.py/inner").touch()
    with pytest.raises(ArchiveError, match=r"h\.py would be a file and a directory in the archive"):
        package(extra_files="x")


def test_an_unpacked_archive_can_be_packaged_again(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    package(archive_format="no-archive", serialized_file="dir/weights.pt")
    archive = package(model_name="again", extra_files="m")
    assert entries(archive) == ["h.py", "weights.pt", "MAR-INF/MANIFEST.json"]
    assert manifest(archive)["model"]["modelName"] == "again"
    assert any("Leaving out m/MAR-INF" in message for message in caplog.messages)


def test_the_manifests_name_is_reserved(work: Path) -> None:
    (work / "MAR-INF").touch()
    with pytest.raises(ArchiveError, match="the name MAR-INF is reserved"):
        package(extra_files="MAR-INF")


def test_links_are_followed_but_not_in_circles(work: Path) -> None:
    (work / "dir/link").symlink_to(work / "requirements.txt")
    assert "link" in entries(package(extra_files="dir"))
    (work / "dir/circle").symlink_to(work / "dir")
    with pytest.raises(ArchiveError, match="links to a directory it is in"):
        package(extra_files="dir", force=True)


def test_the_archive_does_not_go_into_itself(work: Path) -> None:
    package(extra_files=".")
    assert "m.mar" not in entries(package(extra_files=".", force=True))


def test_paths_may_be_relative_to_a_model_path(work: Path) -> None:
    archive = package(
        model_path="dir", handler="h:fn", serialized_file="weights.pt", extra_files="mod*.py,requirements.txt"
    )
    assert entries(archive) == ["h.py", "model.py", "requirements.txt", "weights.pt", "MAR-INF/MANIFEST.json"]


def test_a_model_path_that_is_no_directory_is_ignored_with_a_notice(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert entries(package(model_path="nowhere"))[0] == "h.py"
    assert caplog.messages == ["Ignoring --model-path nowhere: there is no such directory."]


# -- where it goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a%b", "_a", "", "a b", "../a", "a\n", "é"])
def test_a_bad_name_is_refused(work: Path, name: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        package(model_name=name)
    assert str(caught.value) == (
        "Model name contains special characters.\n"
        r"The allowed regular expression filter for model name is: ^[A-Za-z0-9][A-Za-z0-9_\-.]*$"
    )


@pytest.mark.parametrize("name", ["123-abc", "a.b-c_d"])
def test_a_good_name_is_accepted(work: Path, name: str) -> None:
    assert package(model_name=name).name == f"{name}.mar"


@pytest.mark.parametrize("archive_format", ARCHIVE_FORMATS)
def test_an_archive_that_exists_is_replaced_only_on_demand(
    work: Path, archive_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    archive = package(archive_format=archive_format, extra_files="requirements.txt")
    with pytest.raises(ArchiveError) as caught:
        package(archive_format=archive_format)
    assert str(caught.value) == (
        f"{archive} already exists.\n"
        "Please specify --force/-f option to overwrite the model archive output file.\n"
        "See -h/--help for more details."
    )
    assert package(archive_format=archive_format, force=True) == archive
    assert caplog.messages == [f"Overwriting {archive} ..."]
    opened = open_archive(archive.name, model_store=work, allowed_urls=[], temp_dir=work / "temp")
    assert not (opened.model_dir / "requirements.txt").exists()


def test_force_does_not_replace_a_directory_that_is_no_archive(work: Path) -> None:
    with pytest.raises(ArchiveError, match="dir is no model archive, so --force does not replace it"):
        package(model_name="dir", archive_format="no-archive", force=True)
    assert Path("dir/h.py").exists()
    Path("m.mar").mkdir()
    with pytest.raises(ArchiveError, match=r"m\.mar is a directory"):
        package(force=True)


def test_force_replaces_an_empty_directory_and_a_link_to_an_archive(work: Path) -> None:
    Path("m").mkdir()
    archive = package(archive_format="no-archive", force=True)
    archive.rename("real")
    Path("m").symlink_to("real")
    assert not package(archive_format="no-archive", force=True).is_symlink()
    assert Path("real/h.py").exists()


def test_the_export_path_is_made_with_a_warning(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert package(export_path="new/nested") == Path("new/nested/m.mar")
    assert caplog.messages == ["Export directory (new/nested) does not exist. Creating..."]


def test_an_export_path_that_is_a_file_is_refused(work: Path) -> None:
    with pytest.raises(ArchiveError) as caught:
        package(export_path="requirements.txt")
    assert str(caught.value) == (
        "Given export-path requirements.txt is not a directory. Point to a valid export-path directory."
    )


def test_an_archive_that_cannot_be_saved_leaves_nothing(work: Path) -> None:
    name = "m" * 250  # .mar fits into a file name, the temporary name does not
    with pytest.raises(ArchiveError) as caught:
        package(model_name=name)
    assert str(caught.value).startswith(
        f'Failed to save the model-archive to model-path "{name}.mar". Check the file permissions and retry.\n'
    )
    assert not list(work.glob(".*"))


def test_nothing_is_left_beside_an_archive(work: Path) -> None:
    for archive_format in ARCHIVE_FORMATS:
        package(archive_format=archive_format, export_path="out", force=True)
        package(archive_format=archive_format, export_path="out", force=True)
    assert sorted(path.name for path in Path("out").iterdir()) == ["m", "m.mar", "m.tar.gz"]


def test_an_interrupted_archiver_leaves_nothing(work: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for archive_format in ARCHIVE_FORMATS:
        spec = ArchiveSpec("m", "dir/h.py", "1", archive_format=archive_format, export_path="out")
        with pytest.raises(KeyboardInterrupt):
            write_model_archive(spec, interrupt)
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("archive_format", ARCHIVE_FORMATS)
def test_progress_ends_with_all_of_it(work: Path, archive_format: str) -> None:
    calls: list[tuple[int, int]] = []
    spec = ArchiveSpec("m", "dir/h.py", "1", "dir/weights.pt", archive_format=archive_format)
    write_model_archive(spec, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (7007, 7007)


def test_a_formats_and_a_runtimes_name_are_checked(work: Path) -> None:
    with pytest.raises(
        ArchiveError, match="Unknown archive format foo: choose one of default, zip-store, tgz, no-arch"
    ):
        package(archive_format="foo")
    with pytest.raises(ArchiveError, match="Unknown runtime foo: choose one of python, python3, LSP"):
        package(runtime="foo")


def test_a_temporary_directory_called_like_the_model_is_left_alone(work: Path) -> None:
    bystander = Path(tempfile.gettempdir()) / f"mariner-bystander-{os.getpid()}"
    bystander.mkdir()
    try:
        package(model_name=bystander.name)
        assert bystander.is_dir()
    finally:
        bystander.rmdir()


def test_creation_is_in_local_time(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC+9")
    time.tzset()
    try:
        before = time.time() - 9 * 3600 - 1
        written = time.strptime(manifest(package())["createdOn"] + " UTC", "%d/%m/%Y %H:%M:%S %Z")
        assert before <= calendar.timegm(written) <= before + 60
    finally:
        monkeypatch.undo()
        time.tzset()


# -- workflows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def workflow(work: Path) -> WorkflowSpec:
    (work / "spec.yaml").write_text("dag: {}")
    return WorkflowSpec("w", "spec.yaml", "dir/h.py", extra_files="requirements.txt,", export_path=".")


def test_a_workflow_archive_has_its_files_flat_and_its_manifest_last(workflow: WorkflowSpec) -> None:
    archive = write_workflow_archive(workflow)
    assert archive == Path("w.war")
    assert entries(archive) == ["h.py", "requirements.txt", "spec.yaml", "WAR-INF/MANIFEST.json"]
    with zipfile.ZipFile(archive) as file:
        document = json.loads(file.read("WAR-INF/MANIFEST.json"))
    assert list(document) == ["createdOn", "workflow", "archiverVersion"]
    assert document["workflow"] == {"workflowName": "w", "specFile": "spec.yaml", "handler": "h.py"}
    assert document["archiverVersion"] == "0.2.15"


def test_a_workflow_needs_no_handler(workflow: WorkflowSpec) -> None:
    workflow.handler = None
    assert "h.py" not in entries(write_workflow_archive(workflow))


def test_a_workflows_handler_is_never_built_in(workflow: WorkflowSpec) -> None:
    workflow.handler = "image_classifier"
    with pytest.raises(FileNotFoundError):
        write_workflow_archive(workflow)


def test_a_workflow_archive_is_replaced_only_on_demand(workflow: WorkflowSpec) -> None:
    write_workflow_archive(workflow)
    with pytest.raises(ArchiveError, match="to overwrite the workflow archive output file"):
        write_workflow_archive(workflow)
    workflow.force = True
    write_workflow_archive(workflow)


def test_a_workflows_export_path_must_exist(workflow: WorkflowSpec) -> None:
    workflow.export_path = "new"
    with pytest.raises(ArchiveError, match="Given export-path new is not a directory"):
        write_workflow_archive(workflow)


def test_a_workflows_name_is_checked(workflow: WorkflowSpec) -> None:
    workflow.workflow_name = "a%b"
    with pytest.raises(ArchiveError, match=r"^Workflow name contains special characters\."):
        write_workflow_archive(workflow)


def test_success_is_told_to_those_who_ask(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        package(export_path="dir")
    assert caplog.messages == ["Successfully exported model m to file dir"]
