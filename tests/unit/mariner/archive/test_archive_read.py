from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from mariner.archive.extract import Limits
from mariner.archive.manifest import Manifest, Runtime
from mariner.archive.model_config import ModelConfig
from mariner.archive.read import Archive, derive_model_name, list_archives, open_archive, remove_partial_downloads
from mariner.errors import BadRequest, Conflict, DownloadFailed, InternalError, InvalidArchive, ModelNotFound

MANIFEST = {
    "createdOn": "30/05/2024 21:46:03",
    "runtime": "python",
    "model": {"modelName": "m", "handler": "h.py", "modelVersion": "2.0"},
    "archiverVersion": "0.12.0",
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "model-store"
    path.mkdir()
    return path


def manifest(**model: Any) -> str:
    return json.dumps(MANIFEST | {"model": {**MANIFEST["model"], **model}})  # type: ignore[dict-item]


def mar(path: Path, files: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ({"MAR-INF/MANIFEST.json": manifest(), "h.py": "handler"} | (files or {})).items():
            archive.writestr(name, content)
    return path


def directory_model(path: Path) -> Path:
    (path / "MAR-INF").mkdir(parents=True)
    (path / "MAR-INF/MANIFEST.json").write_text(manifest())
    (path / "h.py").write_text("handler")
    return path


def patterns(*texts: str) -> list[re.Pattern[str]]:
    return [re.compile(text) for text in texts]


def open_in(store: Path | None, url: str, *allowed: str, **options: Any) -> Archive:
    assert store is None or store.is_dir()
    temp = (store or Path(os.devnull)).parent / "temp"
    return open_archive(url, model_store=store, allowed_urls=patterns(*allowed), temp_dir=temp, **options)


def left_in_temp(store: Path) -> list[Path]:
    return list((store.parent / "temp").glob("models/*")) + list((store.parent / "temp").glob("models/.*"))


class FakeRemote:
    """A downloader that has the bytes already, or fails after some of them."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.content = content
        self.error = error
        self.asked: list[str] = []

    def __call__(self, url: str, file: BinaryIO, *, allowed_urls: Sequence[re.Pattern[str]]) -> None:
        self.asked.append(url)
        file.write(self.content)
        if self.error:
            raise self.error


def test_an_archive_in_the_store_opens_by_its_name(store: Path) -> None:
    mar(store / "m.mar")
    archive = open_in(store, "m.mar")
    assert archive.manifest == Manifest(
        "m", "2.0", "h.py", Runtime.PYTHON, created_on="30/05/2024 21:46:03", archiver_version="0.12.0"
    )
    assert (archive.model_dir / "h.py").read_text() == "handler"
    assert archive.model_dir.parent == store.parent / "temp/models"
    assert re.fullmatch(r"[0-9a-f]{32}", archive.model_dir.name)
    assert (archive.config, archive.has_config_file, archive.warnings) == (ModelConfig(), False, ())


def test_two_openings_have_two_directories_and_removing_one_keeps_the_other(store: Path) -> None:
    mar(store / "m.mar")
    first, second = open_in(store, "m.mar"), open_in(store, "m.mar")
    first.remove()
    first.remove()
    assert not first.model_dir.exists()
    assert (second.model_dir / "h.py").exists()
    assert (store / "m.mar").exists()


def test_unpacked_models_are_private(store: Path) -> None:
    mar(store / "m.mar")
    archive = open_in(store, "m.mar")
    for path in (archive.model_dir, archive.model_dir.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_directory_that_others_can_change_is_not_used_for_models(store: Path) -> None:
    mar(store / "m.mar")
    models = store.parent / "temp/models"
    models.mkdir(parents=True)
    models.chmod(0o777)
    with pytest.raises(InternalError, match="can be changed by, somebody else"):
        open_in(store, "m.mar")


def test_a_tar_gz_opens(store: Path) -> None:
    with tarfile.open(store / "m.tar.gz", "w:gz") as archive:
        for name, content in {"m/MAR-INF/MANIFEST.json": manifest(), "m/pkg/x.py": "x"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    opened = open_in(store, "m.tar.gz")
    assert opened.manifest.model_name == "m"
    assert (opened.model_dir / "pkg/x.py").read_text() == "x"


def test_content_decides_when_the_name_lies(store: Path) -> None:
    mar(store / "m.tar.gz")
    assert open_in(store, "m.tar.gz").manifest.model_name == "m"


@pytest.mark.parametrize("url", ["sub/m.mar", "/elsewhere/m.mar"])
def test_a_path_that_is_not_there_means_the_archive_of_that_name_in_the_store(store: Path, url: str) -> None:
    mar(store / "m.mar")
    assert open_in(store, url).manifest.model_name == "m"


def test_archives_below_the_store_and_by_absolute_path_open(store: Path) -> None:
    mar(store / "sub/m.mar", {"which": "below"})
    mar(store / "m.mar", {"which": "top"})
    assert (open_in(store, "sub/m.mar").model_dir / "which").read_text() == "below"
    assert (open_in(store, f"{store}/sub/m.mar").model_dir / "which").read_text() == "below"


def test_an_archive_that_the_store_links_to_opens(store: Path, tmp_path: Path) -> None:
    (store / "m.mar").symlink_to(mar(tmp_path / "elsewhere/v1.mar"))
    assert open_in(store, "m.mar").manifest.model_name == "m"


def test_a_store_may_be_reached_through_a_link(store: Path) -> None:
    mar(store / "m.mar")
    link = store.parent / "link"
    link.symlink_to(store)
    assert open_in(link, f"{store}/m.mar").manifest.model_name == "m"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "empty url"),
        ("../m.mar", "Relative path is not allowed in url: ../m.mar"),
        ("x..y.mar", "Relative path is not allowed in url: x..y.mar"),
        ("a/../../x", "Relative path is not allowed in url: a/../../x"),
        ("https://allowed/../x.mar", "Relative path is not allowed in url: https://allowed/../x.mar"),
        ("missing.mar", "Model not found at: missing.mar"),
        ("sub/", "Model not found at: sub/"),
        (".", "Model not found at: ."),
        ("/", "Model not found at: /"),
        ("m.mar\0", "Model not found at: m.mar\0"),
        ("fifo", "Model not found at: fifo"),
        ("x" * 5000, "Model not found at: " + "x" * 5000),
        ("s3://bucket/m.mar", "Given URL s3://bucket/m.mar does not match any allowed URL(s)"),
        ("fil://m.mar", "Given URL fil://m.mar does not match any allowed URL(s)"),
    ],
)
def test_what_is_not_there_has_torchserves_message(store: Path, url: str, message: str) -> None:
    mar(store / "m.mar")
    os.mkfifo(store / "fifo")
    with pytest.raises(ModelNotFound) as caught:
        open_in(store, url)
    assert caught.value.message == message
    assert (caught.value.status, caught.value.wire_name) == (404, "ModelNotFoundException")
    assert not (store.parent / "temp").exists()


def test_without_a_store_nothing_opens() -> None:
    with pytest.raises(ModelNotFound, match=r"Model store has not been configured\."):
        open_in(None, "m.mar")


# -- directories -----------------------------------------------------------------------------------------------------


def test_a_directory_in_the_store_is_linked_and_survives_removal(store: Path) -> None:
    source = directory_model(store / "m")
    archive = open_in(store, "m")
    assert archive.model_dir.name == "m"
    assert archive.model_dir.readlink() == source
    assert archive.model_dir.parent.parent == store.parent / "temp/models"
    assert archive.manifest.handler == "h.py"
    archive.remove()
    assert (source / "h.py").exists()
    assert left_in_temp(store) == []


def test_a_lone_directory_in_a_directory_is_the_model(store: Path) -> None:
    source = directory_model(store / "m/inner")
    archive = open_in(store, "m/")
    assert archive.model_dir.name == "m"
    assert archive.model_dir.readlink() == source


def test_an_absolute_directory_outside_the_store_must_be_allowed(store: Path, tmp_path: Path) -> None:
    source = directory_model(tmp_path / "outside/m")
    with pytest.raises(ModelNotFound, match=f"^Model not found at: {source}$") as caught:
        open_in(store, str(source))
    assert "file://" in caught.value.hint
    archive = open_in(store, str(source), f"file://{tmp_path}/outside/.*")
    assert archive.model_dir.readlink() == source
    archive.remove()
    assert source.is_dir()


def test_a_relative_directory_is_looked_for_in_the_store_only(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory_model(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound):
        open_in(store, "m")


def test_the_hash_of_a_directory_cannot_be_checked(store: Path) -> None:
    directory_model(store / "m")
    with pytest.raises(BadRequest, match="m is a directory: sha256 can be checked for archive files only"):
        open_in(store, "m", sha256="0" * 64)


# -- what archives say -----------------------------------------------------------------------------------------------


def test_an_archive_without_a_manifest_has_the_defaults(store: Path) -> None:
    with zipfile.ZipFile(store / "m.mar", "w") as file:
        file.writestr("h.py", "handler")
    archive = open_in(store, "m.mar")
    assert archive.manifest == Manifest()
    assert archive.warnings == ()


def test_a_manifest_without_archiver_is_worth_a_warning(store: Path) -> None:
    mar(store / "m.mar", {"MAR-INF/MANIFEST.json": '{"model": {"modelName": "m"}}'})
    archive = open_in(store, "m.mar")
    assert archive.manifest.model_version == "1.0"
    assert [text for text in archive.warnings if "package the model again" in text] == list(archive.warnings)
    assert len(archive.warnings) == 1


def test_the_model_config_is_read(store: Path) -> None:
    config = "batchSize: 4\nmaxWorkers: x\nhandler: {profile: true}\n"
    mar(store / "m.mar", {"MAR-INF/MANIFEST.json": manifest(configFile="c.yaml"), "c.yaml": config})
    archive = open_in(store, "m.mar")
    assert archive.config == ModelConfig(batch_size=4)
    assert archive.has_config_file
    assert archive.warnings == ("Invalid maxWorkers: x, should be a whole number",)


@pytest.mark.parametrize("files", [{}, {"c.yaml": "a: ["}])
def test_a_model_config_that_cannot_be_read_counts_as_none(store: Path, files: dict[str, str]) -> None:
    mar(store / "m.mar", {"MAR-INF/MANIFEST.json": manifest(configFile="c.yaml"), **files})
    archive = open_in(store, "m.mar")
    assert archive.config == ModelConfig()
    assert not archive.has_config_file
    assert len(archive.warnings) == 1
    assert archive.warnings[0].startswith("Failed to parse model config file c.yaml: ")


def test_a_model_config_that_the_manifest_does_not_name_is_not_read(store: Path) -> None:
    mar(store / "m.mar", {"model-config.yaml": "batchSize: 4"})
    assert not open_in(store, "m.mar").has_config_file


@pytest.mark.parametrize("key", ["configFile", "requirementsFile", "serializedFile", "modelFile", "handler"])
def test_an_archive_that_names_files_outside_itself_is_refused(store: Path, key: str) -> None:
    mar(store / "m.mar", {"MAR-INF/MANIFEST.json": manifest(**{key: "../../x"})})
    with pytest.raises(InvalidArchive, match="outside the archive"):
        open_in(store, "m.mar")
    assert left_in_temp(store) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "Failed to parse signature.json."), ('{"runtime": "foo"}', "Runtime is not defined or invalid.")],
)
def test_a_bad_manifest_leaves_nothing_behind(store: Path, text: str, message: str) -> None:
    mar(store / "m.mar", {"MAR-INF/MANIFEST.json": text})
    with pytest.raises(InvalidArchive) as caught:
        open_in(store, "m.mar")
    assert caught.value.message == message
    assert left_in_temp(store) == []


# -- archives nobody should trust ------------------------------------------------------------------------------------


def test_junk_with_an_archives_name_is_refused(store: Path) -> None:
    (store / "m.mar").write_bytes(b"junk" * 100)
    with pytest.raises(InvalidArchive) as caught:
        open_in(store, "m.mar")
    assert caught.value.message == ("Failed to save model: m.mar: The file is neither a zip nor a tar.gz archive.")
    assert "torch-model-archiver" in caught.value.hint
    assert left_in_temp(store) == []


def test_an_entry_that_leads_outside_is_refused(store: Path) -> None:
    mar(store / "m.mar", {"../evil": "evil"})
    with pytest.raises(InvalidArchive, match=r"^Failed to save model: m\.mar: Entry '\.\./evil'"):
        open_in(store, "m.mar")
    assert left_in_temp(store) == []
    assert not list(store.parent.rglob("evil"))


def test_limits_apply(store: Path) -> None:
    mar(store / "m.mar")
    with pytest.raises(InvalidArchive, match="more than 1 entries"):
        open_in(store, "m.mar", limits=Limits(entries=1))


def test_a_machine_that_cannot_store_it_is_to_blame_itself(store: Path) -> None:
    mar(store / "m.mar")
    (store.parent / "temp").write_text("a file where a directory is needed")
    with pytest.raises(InternalError) as caught:
        open_in(store, "m.mar")
    assert caught.value.message == "Failed to save model: m.mar"
    assert caught.value.hint in ("Not a directory.", "File exists.")


# -- remote ----------------------------------------------------------------------------------------------------------


def test_a_remote_archive_is_fetched_into_the_store_and_goes_with_the_model(store: Path, tmp_path: Path) -> None:
    remote = FakeRemote(mar(tmp_path / "remote.mar").read_bytes())
    archive = open_in(store, "https://host/dir/m.mar?X-Signature=a%2Fb#part", download=remote)
    assert archive.manifest.model_name == "m"
    assert [path.name for path in store.iterdir()] == ["m.mar"]
    archive.remove(keep_download=True)
    assert (store / "m.mar").exists()
    archive.remove()
    assert list(store.iterdir()) == []


def test_a_remote_archive_whose_name_is_taken_is_a_conflict_and_not_fetched(store: Path) -> None:
    mar(store / "m.mar")
    remote = FakeRemote(b"")
    with pytest.raises(Conflict, match=r"^Model file already exists m\.mar$"):
        open_in(store, "https://host/m.mar", download=remote)
    assert remote.asked == []


def test_a_start_may_reuse_what_an_earlier_one_fetched(store: Path) -> None:
    mar(store / "m.mar")
    remote = FakeRemote(b"")
    archive = open_in(store, "https://host/m.mar", download=remote, reuse_download=True)
    archive.remove()
    assert remote.asked == []
    assert (store / "m.mar").exists()


def test_a_failed_download_leaves_nothing(store: Path) -> None:
    remote = FakeRemote(b"part of it", DownloadFailed("Failed to download archive from: https://host/m.mar"))
    with pytest.raises(DownloadFailed):
        open_in(store, "https://host/m.mar", download=remote)
    assert list(store.iterdir()) == []


def test_a_full_disk_during_a_download_leaves_nothing(store: Path) -> None:
    remote = FakeRemote(b"part of it", OSError(28, "No space left on device"))
    with pytest.raises(InternalError) as caught:
        open_in(store, "https://host/m.mar", download=remote)
    assert caught.value.hint.startswith("No space left on device. Make room")
    assert list(store.iterdir()) == []


def partial_downloads(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir() if path.name.endswith(".download"))


def test_a_download_that_a_killed_server_left_is_removed(store: Path) -> None:
    left = []

    def die(url: str, file: BinaryIO, *, allowed_urls: Sequence[re.Pattern[str]]) -> None:
        file.write(b"half")
        file.flush()
        left.extend(partial_downloads(store))
        assert remove_partial_downloads(store) == []  # it is being written
        (store / f"{left[0].replace('m.mar', 'n.mar')}").write_bytes(b"half")

    with pytest.raises(InvalidArchive):
        open_in(store, "https://host/m.mar", download=die)
    (dead,) = partial_downloads(store)
    assert remove_partial_downloads(store) == [dead]
    assert list(store.iterdir()) == []


def test_only_downloads_are_removed_from_the_store(store: Path) -> None:
    digits = "0" * 32
    mar(store / "m.mar")
    (store / f".m.mar.{digits}.part").write_bytes(b"an archiver's")
    (store / ".m.mar.download").write_bytes(b"somebody's")
    (store / f".n.mar.{digits}.download").touch()  # just begun: not locked yet
    (store / f".d.mar.{digits}.download").mkdir()
    (store / f".l.mar.{digits}.download").symlink_to(store / "m.mar")
    with (store / f".o.mar.{digits}.download").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"another server's")
        other.flush()
        assert remove_partial_downloads(store) == []
    assert len(list(store.iterdir())) == 7


def test_a_remote_file_that_is_no_archive_does_not_stay(store: Path) -> None:
    with pytest.raises(InvalidArchive):
        open_in(store, "https://host/m.mar", download=FakeRemote(b"<html>"))
    assert list(store.iterdir()) == []


def test_a_file_that_appears_during_the_download_is_not_replaced(store: Path, tmp_path: Path) -> None:
    content = mar(tmp_path / "remote.mar").read_bytes()

    def download(url: str, file: BinaryIO, *, allowed_urls: Sequence[re.Pattern[str]]) -> None:
        (store / "m.mar").write_text("first")
        file.write(content)

    with pytest.raises(Conflict):
        open_in(store, "https://host/m.mar", download=download)
    assert (store / "m.mar").read_text() == "first"
    assert len(list(store.iterdir())) == 1


def test_a_store_without_hard_links_works_too(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    content = mar(tmp_path / "remote.mar").read_bytes()
    assert open_in(store, "https://host/m.mar", download=FakeRemote(content)).downloaded == store / "m.mar"

    def download(url: str, file: BinaryIO, *, allowed_urls: Sequence[re.Pattern[str]]) -> None:
        file.write(content)
        (store / "other.mar").write_text("first")

    with pytest.raises(Conflict):
        open_in(store, "https://host/other.mar", download=download)
    assert sorted(path.name for path in store.iterdir()) == ["m.mar", "other.mar"]


@pytest.mark.parametrize("url", ["https://host/", "https://host", "https://host/.hidden", "https://host/a\\b.mar"])
def test_a_url_without_a_file_name_is_refused(store: Path, url: str) -> None:
    with pytest.raises(DownloadFailed, match=r"^Failed to download archive from: "):
        open_in(store, url, download=FakeRemote(b""))


@pytest.mark.parametrize("url", ["https://example.org.evil/x.mar", "http://example.org/x.mar", "file:///x.mar"])
def test_a_url_that_no_pattern_matches_is_refused_untried(store: Path, url: str) -> None:
    remote = FakeRemote(b"")
    with pytest.raises(ModelNotFound) as caught:
        open_in(store, url, r"https://example\.org/.*", r"https://other\.org/.*", download=remote)
    assert caught.value.message == f"Given URL {url} does not match any allowed URL(s)"
    assert remote.asked == []


@pytest.mark.parametrize("url", ["HTTPS://EXAMPLE.ORG/x.mar", "https://other.org/x.mar"])
def test_any_pattern_matches_in_any_case(store: Path, tmp_path: Path, url: str) -> None:
    remote = FakeRemote(mar(tmp_path / "remote.mar").read_bytes())
    open_in(store, url, r"https://example\.org/.*", r"https://other\.org/.*", download=remote)
    assert remote.asked == [url]


def test_a_pattern_for_everything_leaves_local_names_local(store: Path) -> None:
    mar(store / "m.mar")
    remote = FakeRemote(b"")
    assert open_in(store, "m.mar", ".*", download=remote).downloaded is None
    assert remote.asked == []


def test_a_hash_that_fits_is_accepted(store: Path) -> None:
    digest = hashlib.sha256(mar(store / "m.mar").read_bytes()).hexdigest()
    assert open_in(store, "m.mar", sha256=digest.upper()).manifest.model_name == "m"


def test_a_remote_archive_has_its_name_only_after_its_hash_was_checked(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[object] = []
    monkeypatch.setattr(os, "link", lambda source, target: published.append(target))
    with pytest.raises(InvalidArchive, match="is not the one that was asked for"):
        open_in(store, "https://host/m.mar", download=FakeRemote(b"other"), sha256="0" * 64)
    assert published == []


def test_a_remote_archive_with_another_hash_is_refused_and_does_not_stay(store: Path, tmp_path: Path) -> None:
    remote = FakeRemote(mar(tmp_path / "remote.mar").read_bytes())
    with pytest.raises(InvalidArchive, match=r"is not the one that was asked for: its sha256 is [0-9a-f]{64}"):
        open_in(store, "https://host/m.mar", download=remote, sha256="0" * 64)
    assert list(store.iterdir()) == []


# -- file URLs -------------------------------------------------------------------------------------------------------


def test_an_allowed_file_url_is_copied_into_the_store_and_the_copy_goes_with_the_model(
    store: Path, tmp_path: Path
) -> None:
    source = mar(tmp_path / "out side/m.mar")
    archive = open_in(store, source.as_uri(), "file://.*")
    assert (store / "m.mar").read_bytes() == source.read_bytes()
    archive.remove()
    assert not (store / "m.mar").exists()
    assert source.exists()


def test_a_file_url_outside_the_store_needs_a_pattern(store: Path, tmp_path: Path) -> None:
    source = mar(tmp_path / "outside/m.mar")
    with pytest.raises(ModelNotFound, match="does not match any allowed URL"):
        open_in(store, source.as_uri())


@pytest.mark.parametrize("url", ["file:///x/%2e%2e/etc/m.mar", "file://host/m.mar", "file:///x%00.mar"])
def test_a_file_url_that_pretends_is_refused(store: Path, url: str) -> None:
    with pytest.raises(ModelNotFound):
        open_in(store, url, "file://.*")


def test_a_file_url_into_the_store_opens_in_place(store: Path) -> None:
    archive = open_in(store, mar(store / "m.mar").as_uri())
    archive.remove()
    assert (store / "m.mar").exists()


def test_a_missing_file_url_is_a_failed_download(store: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"^Failed to download archive from: file:///missing\.mar$"):
        open_in(store, "file:///missing.mar", "file://.*")


def test_an_allowed_directory_url_is_linked(store: Path, tmp_path: Path) -> None:
    source = directory_model(tmp_path / "outside/m")
    assert open_in(store, source.as_uri(), "file://.*").model_dir.readlink() == source


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("m.mar", "m"),
        ("resnet-18.mar", "resnet_18"),
        ("a.b.model", "a_b"),
        ("m.tar.gz", "m_tar_gz"),
        ("/store/dir/_m-1", "_m_1"),
        ("https://host/path/bert.mar?sig=a/b.mar#x", "bert"),
        ("naïve.mar", "na_ve"),
    ],
)
def test_a_model_is_named_after_its_archive(url: str, name: str) -> None:
    assert derive_model_name(url) == name


def test_the_store_lists_archives_and_directories(store: Path) -> None:
    for name in ("b.mar", "a.model", "c.tar.gz", ".hidden.mar", "notes.txt", "x.zip"):
        (store / name).write_text("")
    directory_model(store / "dir")
    directory_model(store / ".hidden")
    directory_model(store / "lost+found")
    (store / "empty").mkdir()
    assert list_archives(store) == ["a.model", "b.mar", "c.tar.gz", "dir"]
