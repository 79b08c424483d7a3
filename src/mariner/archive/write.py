"""Packaging: model archives (``.mar``, ``.tar.gz``, directory) and workflow archives (``.war``).

Nothing is staged: files go straight from where they are into a temporary file beside the archive, which then takes its
name. An archive is there completely or not at all.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import tarfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mariner.archive.collect import ArchiveError, Collection
from mariner.archive.manifest import MANIFEST_PATH, Manifest, Runtime

__all__ = [
    "ARCHIVE_FORMATS",
    "MODEL_ARCHIVER_VERSION",
    "ArchiveError",
    "ArchiveSpec",
    "Progress",
    "WorkflowSpec",
    "write_model_archive",
    "write_workflow_archive",
]

# The releases whose format is written; readers compare nothing, people and tools do.
MODEL_ARCHIVER_VERSION = "0.12.0"
WORKFLOW_ARCHIVER_VERSION = "0.2.15"

WORKFLOW_MANIFEST_PATH = PurePosixPath("WAR-INF/MANIFEST.json")
ARCHIVE_FORMATS = ("default", "zip-store", "tgz", "no-archive")
CHUNK = 1 << 20

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_\-.]*$")

Progress = Callable[[int, int], None]
"""Called with the bytes that are written and those there are, before compression."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ArchiveSpec:
    """What to package. Paths are relative to ``model_path`` where they exist there, else to the current directory.

    The fields and their order are those of TorchServe's ``ModelArchiverConfig``; scripts assign to them.

    Attributes:
        model_name: name of the archive and the model.
        handler: ``path/file[.py][:function]`` or a built-in name.
        version: version of the model.
        serialized_file: weights.
        model_file: Python file with the model's class, or whatever the handler wants it to be.
        extra_files: comma-separated files, wildcards, and directories whose content is taken.
        runtime: ``python``, ``python3`` or ``LSP``.
        export_path: directory of the archive; the current one by default.
        archive_format: one of ``ARCHIVE_FORMATS``.
        force: replace an archive that exists.
        requirements_file: packages the model needs.
        config_file: the model config.
        model_path: where the files are.
    """

    model_name: str
    handler: str
    version: str
    serialized_file: str | None = None
    model_file: str | None = None
    extra_files: str | None = None
    runtime: str = "python"
    export_path: str | None = None
    archive_format: str = "default"
    force: bool = False
    requirements_file: str | None = None
    config_file: str | None = None
    model_path: str | None = None


@dataclass(slots=True)
class WorkflowSpec:
    """What to package into a workflow archive.

    Attributes:
        workflow_name: name of the archive and the workflow.
        spec_file: the YAML file with models and graph.
        handler: Python file with the functions of the graph.
        export_path: directory of the archive, which must exist; the current one by default.
        extra_files: comma-separated files.
        force: replace an archive that exists.
    """

    workflow_name: str
    spec_file: str
    handler: str | None = None
    export_path: str | None = None
    extra_files: str | None = None
    force: bool = False


def write_model_archive(spec: ArchiveSpec, progress: Progress | None = None) -> Path:
    """Packages a model.

    Returns:
        The archive, a file or (``no-archive``) a directory.

    Raises:
        ArchiveError: the archive cannot be written as asked.
        FileNotFoundError: a file to package does not exist.
    """
    _check_name(spec.model_name, "Model")
    if spec.archive_format not in ARCHIVE_FORMATS:
        raise ArchiveError(f"Unknown archive format {spec.archive_format}: choose one of {', '.join(ARCHIVE_FORMATS)}.")
    runtime = _runtime(spec.runtime)
    directory = Path(spec.export_path or ".")
    if not directory.exists():
        _logger.warning("Export directory (%s) does not exist. Creating...", directory)
        with _save_errors("model", directory):
            directory.mkdir(parents=True)
    target = _check_target(directory, spec.model_name, _SUFFIXES[spec.archive_format], "model", force=spec.force)
    files = Collection(_base_directory(spec.model_path), MANIFEST_PATH.parts[0])
    if spec.model_file:
        files.add_file(spec.model_file)
    if spec.serialized_file:
        files.add_file(spec.serialized_file)
    files.add_handler(spec.handler, runtime)
    files.add_extra_files(spec.extra_files or "")
    if spec.requirements_file:
        files.add_file(spec.requirements_file)
    if spec.config_file:
        files.add_file(spec.config_file)
    manifest = Manifest(
        model_name=spec.model_name,
        model_version=spec.version,
        handler=PurePosixPath(spec.handler).name,
        runtime=runtime,
        serialized_file=_base_name(spec.serialized_file),
        model_file=_base_name(spec.model_file),
        requirements_file=_base_name(spec.requirements_file),
        config_file=_base_name(spec.config_file),
        created_on=_now(),
        archiver_version=MODEL_ARCHIVER_VERSION,
    )
    content = _Content(files.without(target), MANIFEST_PATH, manifest.to_json(), progress)
    with _save_errors("model", target):
        _write(target, content, spec.archive_format, spec.model_name)
    _logger.info("Successfully exported model %s to file %s", spec.model_name, directory)
    return target


def write_workflow_archive(spec: WorkflowSpec, progress: Progress | None = None) -> Path:
    """Packages a workflow.

    Returns:
        The archive.

    Raises:
        ArchiveError: the archive cannot be written as asked.
        FileNotFoundError: a file to package does not exist.
    """
    _check_name(spec.workflow_name, "Workflow")
    target = _check_target(Path(spec.export_path or "."), spec.workflow_name, ".war", "workflow", force=spec.force)
    files = Collection(None, WORKFLOW_MANIFEST_PATH.parts[0])
    files.add_file(spec.spec_file)
    if spec.handler:
        files.add_handler(spec.handler, None)
    files.add_files(spec.extra_files or "")
    workflow = {
        "workflowName": spec.workflow_name,
        "specFile": _base_name(spec.spec_file),
        "handler": _base_name(spec.handler),
    }
    manifest = {
        "createdOn": _now(),
        "workflow": {key: value for key, value in workflow.items() if value},
        "archiverVersion": WORKFLOW_ARCHIVER_VERSION,
    }
    content = _Content(files.without(target), WORKFLOW_MANIFEST_PATH, json.dumps(manifest, indent=2), progress)
    with _save_errors("workflow", target):
        _write(target, content, "default", spec.workflow_name)
    _logger.info("Successfully exported workflow %s to file %s", spec.workflow_name, target)
    return target


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_name(name: str, kind: str) -> None:
    if not _NAME.fullmatch(name):
        raise ArchiveError(
            f"{kind} name contains special characters.\n"
            f"The allowed regular expression filter for {kind.lower()} name is: {_NAME.pattern}"
        )


def _runtime(name: str) -> Runtime:
    try:
        return Runtime(name)
    except ValueError:
        known = ", ".join(runtime.value for runtime in Runtime)
        raise ArchiveError(f"Unknown runtime {name}: choose one of {known}.") from None


def _check_target(directory: Path, name: str, suffix: str, kind: str, *, force: bool) -> Path:
    if not directory.is_dir():
        raise ArchiveError(f"Given export-path {directory} is not a directory. Point to a valid export-path directory.")
    target = directory / f"{name}{suffix}"
    if not os.path.lexists(target):
        return target
    if not force:
        raise ArchiveError(
            f"{target} already exists.\n"
            f"Please specify --force/-f option to overwrite the {kind} archive output file.\n"
            "See -h/--help for more details."
        )
    if not suffix and not (target / MANIFEST_PATH).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ArchiveError(
            f"{target} is no {kind} archive, so --force does not replace it.\n"
            "Remove it, or choose another --export-path."
        )
    if suffix and target.is_dir():
        raise ArchiveError(f"{target} is a directory. Remove it, or choose another --export-path.")
    _logger.warning("Overwriting %s ...", target)
    return target


def _base_directory(model_path: str | None) -> Path | None:
    if model_path is None or Path(model_path).is_dir():
        return Path(model_path) if model_path else None
    _logger.warning("Ignoring --model-path %s: there is no such directory.", model_path)
    return None


@contextmanager
def _save_errors(kind: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f'Failed to save the {kind}-archive to {kind}-path "{path}". Check the file permissions and retry.\n'
            f"The reason is: {error}."
        ) from error


def _base_name(path: str | None) -> str | None:
    return PurePosixPath(path).name if path else None


def _now() -> str:
    return time.strftime("%d/%m/%Y %H:%M:%S")


# -- how it is written -----------------------------------------------------------------------------------------------


class _Content:
    """The entries of an archive, manifest last, and how much of them has been read."""

    def __init__(
        self,
        files: Mapping[PurePosixPath, Path],
        manifest_path: PurePosixPath,
        manifest: str,
        progress: Progress | None,
    ) -> None:
        self.files = files
        self.manifest_path = manifest_path
        self.manifest = manifest.encode()
        self._progress = progress
        self._done = 0
        self._total = sum(path.stat().st_size for path in files.values())
        directories = {parent for name in files for parent in name.parents}
        for name in files:
            if name in directories:
                raise ArchiveError(f"{name} would be a file and a directory in the archive. Rename one of them.")

    def open(self, path: Path) -> _CountedFile:
        return _CountedFile(path, self._count)

    def _count(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


class _CountedFile(io.FileIO):
    """A file that reports what is read from it."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        super().__init__(path)
        self._count = count

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(-1 if size is None else size) or b""
        self._count(len(chunk))
        return chunk


def _write(target: Path, content: _Content, archive_format: str, name: str) -> None:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        if archive_format == "no-archive":
            _write_directory(part, content)
            _replace_directory(part, target)
            return
        with part.open("xb") as file:
            if archive_format == "tgz":
                _write_tar(file, content, name)
            else:
                _write_zip(file, content, zipfile.ZIP_STORED if archive_format == "zip-store" else zipfile.ZIP_DEFLATED)
        part.replace(target)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _write_zip(file: BinaryIO, content: _Content, compression: int) -> None:
    with zipfile.ZipFile(file, "w", compression, strict_timestamps=False) as archive:
        for name, path in content.files.items():
            entry = zipfile.ZipInfo.from_file(path, str(name), strict_timestamps=False)
            entry.compress_type = compression
            with content.open(path) as source, archive.open(entry, "w") as output:
                shutil.copyfileobj(source, output, CHUNK)
        archive.writestr(str(content.manifest_path), content.manifest)


def _write_tar(file: BinaryIO, content: _Content, top: str) -> None:
    # Level 6 instead of 9: weights come out as small, in a third of the time.
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
        archive.dereference = True
        for name, path in content.files.items():
            with content.open(path) as source:
                entry = archive.gettarinfo(str(path), f"{top}/{name}")
                archive.addfile(_anonymous(entry), source)
        entry = tarfile.TarInfo(f"{top}/{content.manifest_path}")
        entry.size, entry.mtime = len(content.manifest), int(time.time())
        archive.addfile(entry, io.BytesIO(content.manifest))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who packaged a model is nobody's business."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _write_directory(directory: Path, content: _Content) -> None:
    directory.mkdir()
    for name, path in content.files.items():
        copy = directory / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        with content.open(path) as source, copy.open("xb") as output:
            shutil.copyfileobj(source, output, CHUNK)
        shutil.copymode(path, copy)
    manifest = directory / content.manifest_path
    manifest.parent.mkdir()
    manifest.write_bytes(content.manifest)


def _replace_directory(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    target.rename(old)
    part.rename(target)
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old)


_SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}
