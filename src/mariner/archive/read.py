"""From the ``url`` of a registration to an unpacked model: find it, fetch it, unpack it, read what it says.

Blocking; the server calls it in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from mariner.archive.download import Downloader, download_failed, fetch, url_allowed
from mariner.archive.extract import Limits, extract
from mariner.archive.manifest import MANIFEST_PATH, Manifest, read_manifest
from mariner.archive.model_config import ModelConfig, read_model_config
from mariner.errors import BadRequest, Conflict, InternalError, InvalidArchive, ModelNotFound

__all__ = ["Archive", "derive_model_name", "list_archives", "open_archive", "remove_partial_downloads"]

CHUNK = 1 << 20

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MARKERS = frozenset({MANIFEST_PATH.parts[0]})
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.download", re.DOTALL)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive on disk, ready for workers, until :meth:`remove`.

    Attributes:
        url: what it was opened by.
        model_dir: the directory handlers see; for a directory model a link to it.
        manifest: what the archive says about itself.
        config: its model config; says nothing if there is none.
        has_config_file: there is a model config and it could be read.
        warnings: what is odd about it, a text each.
        holder: the temporary directory that goes with it.
        downloaded: the file that was fetched into the model store for it.
        source: the file or directory it was opened from.
        fingerprint: what that looked like just before.
        held: what its workers need and what is given up with it.
    """

    url: str
    model_dir: Path
    manifest: Manifest
    config: ModelConfig
    has_config_file: bool
    warnings: tuple[str, ...]
    holder: Path
    downloaded: Path | None = None
    source: Path | None = None
    fingerprint: str = ""
    held: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def changed(self) -> bool:
        """Whether what it was opened from has been replaced, edited or removed since."""
        return self.source is not None and _fingerprint(self.source) != self.fingerprint

    @property
    def stored_name(self) -> str:
        """What opens the same archive later: its name in the model store, or its path elsewhere."""
        return self.downloaded.name if self.downloaded is not None else _file_url_name(self.url)

    def remove(self, *, keep_download: bool = False) -> None:
        """Deletes the temporary directory, and the file if it was fetched. May be called twice.

        Args:
            keep_download: for the end of the server; the file stays for the next start.
        """
        shutil.rmtree(self.holder, ignore_errors=True)  # does not follow the link of a directory model
        self.held.close()
        if self.downloaded is not None and not keep_download:
            self.downloaded.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file or directory on this machine that holds the model."""

    path: Path
    downloaded: bool = False


def open_archive(
    url: str,
    *,
    model_store: Path | None,
    allowed_urls: Sequence[re.Pattern[str]],
    temp_dir: Path,
    download: Downloader = fetch,
    sha256: str | None = None,
    reuse_download: bool = False,
    limits: Limits | None = None,
) -> Archive:
    """Makes a model available under a fresh directory.

    Args:
        url: name of a file or directory in the model store, absolute path, or ``http(s)://`` or ``file://`` URL.
        model_store: where local archives are and remote ones go.
        allowed_urls: patterns that URLs must match as a whole; none means that they were not set: then HTTP URLs may
            lead to any public address, and ``file://`` only into the model store.
        temp_dir: directory for unpacked models; they go below its ``models``.
        download: fetches HTTP URLs.
        sha256: what the archive file must hash to.
        reuse_download: a file of that name in the model store is taken for the remote one, instead of refused.
        limits: how much an archive may unpack to.

    Raises:
        ModelNotFound: there is nothing at that place, or the place is not allowed.
        DownloadFailed: it could not be fetched.
        Conflict: the model store has a file of that name already.
        InvalidArchive: the archive cannot be used.
        InternalError: the machine could not store it.
    """
    if model_store is None:
        raise ModelNotFound("Model store has not been configured.")
    if not url:
        raise ModelNotFound("empty url")
    if ".." in url:
        raise ModelNotFound(f"Relative path is not allowed in url: {url}")
    if _CONTROL.search(url):
        raise _not_found(url)
    try:
        # As the caller spells it: resolve() would follow a link and call what is in the store outside.
        store = Path(os.path.abspath(model_store))  # noqa: PTH100
        source = _locate(url, store, allowed_urls, _Fetching(download=download, sha256=sha256, reuse=reuse_download))
        try:
            if not source.downloaded:
                _check_hash(url, source.path, sha256)
            return _open(url, source, temp_dir, limits)
        except BaseException:
            if source.downloaded:  # else the next attempt would be refused: the file exists
                source.path.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = f"{error.strerror or type(error).__name__}."
        if error.errno in _NO_ROOM:
            reason += " Make room in the model store and in the temporary directory of the server."
        raise InternalError(f"Failed to save model: {url}", hint=reason) from error


def derive_model_name(url: str) -> str:
    """The name of a model that is loaded at start-up and does not name itself."""
    name = _file_name(url)
    if ".mar" in name or ".model" in name:
        name = name.rpartition(".")[0]
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def list_archives(model_store: Path) -> list[str]:
    """What ``load_models=all`` loads: archives and directories, by name; hidden and empty ones are none.

    Raises:
        OSError: the store cannot be read.
    """
    names = []
    for entry in model_store.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            # The root of a volume has a lost+found, which only root can look into.
            with suppress(PermissionError):
                if entry.name != "lost+found" and any(entry.iterdir()):
                    names.append(entry.name)
        elif entry.name.endswith((".mar", ".model", ".tar.gz")):
            names.append(entry.name)
    return sorted(names)


def remove_partial_downloads(model_store: Path) -> list[str]:
    """Deletes what servers that were killed had of archives, and returns its names.

    A download that runs, perhaps another server's, has its file locked before there is a byte in it.

    Raises:
        OSError: the store cannot be read.
    """
    removed = []
    for path in model_store.iterdir():
        if not _PARTIAL.fullmatch(path.name) or not stat.S_ISREG(path.lstat().st_mode):
            continue
        with suppress(OSError), path.open("rb") as file:  # it is being written, or is not ours
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_size:
                path.unlink()
                removed.append(path.name)
    return sorted(removed)


# -- where it is -----------------------------------------------------------------------------------------------------


def _locate(url: str, store: Path, allowed_urls: Sequence[re.Pattern[str]], fetching: _Fetching) -> _Source:
    scheme = _SCHEME.match(url)
    if scheme is None:
        return _Source(_find_local(url, store, allowed_urls))
    allowed = url_allowed(url, allowed_urls)
    match scheme[1].lower():
        case "http" | "https" if allowed or not allowed_urls:
            return _fetch_into(store, url, allowed_urls, fetching)
        case "file":
            path = _file_url_path(url)
            inside = path is not None and _is_inside(path, store)
            if path is not None and (allowed or (inside and not allowed_urls)):
                return _take_file(store, url, path, fetching, inside=inside)
    raise ModelNotFound(
        f"Given URL {url} does not match any allowed URL(s)",
        hint="allowed_urls lists patterns for http, https and file URLs; other schemes are not supported.",
    )


def _find_local(url: str, store: Path, allowed_urls: Sequence[re.Pattern[str]]) -> Path:
    path = Path(url)
    if path.is_absolute():
        allowed = (
            _is_inside(path, store)
            or url_allowed(path.as_uri(), allowed_urls)
            or url_allowed(f"file://{url}", allowed_urls)
        )
        if allowed and _exists(path):
            return path
        if path.is_dir():
            raise _not_found(
                url, hint="It is outside the model store: put it there, or allow it with a file:// pattern."
            )
    elif _exists(store / path) and _is_inside(store / path, store):
        return store / path
    # Scripts name archives by a path that means something elsewhere (in the image, on the build machine).
    name = _file_name(url)
    if name and name != "." and _exists(store / name):
        return store / name
    raise _not_found(url)


def _file_url_path(url: str) -> Path | None:
    """The path in a file URL, None if it is on another machine or leads upwards once it is decoded."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc.lower() not in ("", "localhost") or ".." in path or _CONTROL.search(path):
        return None
    return Path(path)


def _is_inside(path: Path, store: Path) -> bool:
    """Something of the store's. What it links to is the store owner's choice."""
    if store in path.parents:
        return True
    return store.resolve() in (path.parent.resolve() / path.name).parents


def _exists(path: Path) -> bool:
    try:
        return stat.S_IFMT(path.stat().st_mode) in (stat.S_IFREG, stat.S_IFDIR)  # a FIFO would hang the reader
    except OSError:
        return False


def _file_name(url: str) -> str:
    path = urlsplit(url).path if _SCHEME.match(url) else url
    return path.rstrip("/").rpartition("/")[2]


def _file_url_name(url: str) -> str:
    return _file_name(url) if _SCHEME.match(url) else url


def _not_found(url: str, hint: str = "") -> ModelNotFound:
    return ModelNotFound(f"Model not found at: {url}", hint=hint)


# -- bringing it here ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetching:
    """How something comes into the model store; see :func:`open_archive`."""

    download: Downloader
    sha256: str | None
    reuse: bool


def _fetch_into(store: Path, url: str, allowed_urls: Sequence[re.Pattern[str]], fetching: _Fetching) -> _Source:
    """The file takes its name once it is complete, on disk and the one that was asked for."""
    target = _store_target(store, url)
    if fetching.reuse and target.is_file():
        return _Source(target)
    partial = _partial_of(target)
    try:
        with partial.open("xb") as file:
            with suppress(OSError):  # a file system without locks: remove_partial_downloads() gets none either
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fetching.download(url, file, allowed_urls=allowed_urls)
            file.flush()
            os.fsync(file.fileno())
            _check_hash(url, partial, fetching.sha256)
            _publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return _Source(target, downloaded=True)


def _take_file(store: Path, url: str, path: Path, fetching: _Fetching, *, inside: bool) -> _Source:
    if not _exists(path):
        raise download_failed(url, "There is no such file.")
    if inside or path.is_dir():
        return _Source(path)

    def copy(url: str, file: BinaryIO, *, allowed_urls: Sequence[re.Pattern[str]]) -> None:
        del url, allowed_urls  # looked at above
        with path.open("rb") as source:
            shutil.copyfileobj(source, file, CHUNK)

    return _fetch_into(store, url, (), replace(fetching, download=copy))


def _store_target(store: Path, url: str) -> Path:
    name = _file_name(url)
    if not name or "\\" in name or name.startswith("."):
        raise download_failed(url, "The URL does not end with a file name.")
    return store / name


def _partial_of(target: Path) -> Path:
    if target.exists():
        raise _name_taken(target)
    # Hidden: load_models=all passes it over. Not what the archiver calls its own: that one locks nothing.
    return target.with_name(f".{target.name[:60]}.{uuid.uuid4().hex}.download")


def _publish(partial: Path, target: Path) -> None:
    """Renames without replacing: of two downloads of one name the first stands."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise _name_taken(target) from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise _name_taken(target) from None
        partial.rename(target)


def _name_taken(target: Path) -> Conflict:
    return Conflict(
        f"Model file already exists {target.name}",
        hint="Register it by its file name, or remove it from the model store to fetch it again.",
    )


def _check_hash(url: str, path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    if path.is_dir():
        raise BadRequest(f"{url} is a directory: sha256 can be checked for archive files only.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if not hmac.compare_digest(digest.hexdigest().encode(), sha256.strip().lower().encode()):
        raise InvalidArchive(
            f"The archive at {url} is not the one that was asked for: its sha256 is {digest.hexdigest()}.",
            hint="Somebody replaced the file, or the sha256 belongs to another one.",
        )


# -- opening it ------------------------------------------------------------------------------------------------------


def _open(url: str, source: _Source, temp_dir: Path, limits: Limits | None) -> Archive:
    holder = _private_directory(temp_dir) / uuid.uuid4().hex
    fingerprint = _fingerprint(source.path)  # first: what changes while it is read has changed since
    try:
        if source.path.is_dir():
            model_dir = _link(source.path, holder)
        else:
            model_dir = holder
            _extract(url, source.path, holder, limits)
        manifest = read_manifest(model_dir)
        warnings: list[str] = []
        if manifest is not None:
            manifest.check_references()
            if manifest.created_on is None or manifest.archiver_version is None:
                warnings.append(
                    f"{url}: the manifest does not say when and by which archiver it was written; "
                    "package the model again with torch-model-archiver."
                )
        config = None
        if manifest is not None and manifest.config_file is not None:
            config, config_warnings = read_model_config(model_dir / manifest.config_file)
            warnings += config_warnings
    except BaseException:
        shutil.rmtree(holder, ignore_errors=True)
        raise
    return Archive(
        url=url,
        model_dir=model_dir,
        manifest=manifest or Manifest(),
        config=config or ModelConfig(),
        has_config_file=config is not None,
        warnings=tuple(warnings),
        holder=holder,
        downloaded=source.path if source.downloaded else None,
        source=source.path,
        fingerprint=fingerprint,
    )


def _fingerprint(path: Path) -> str:
    """Changes with what is at a path: inode, size and time of each file, as reading them all would take too long."""
    digest = hashlib.sha256()
    for name, status in _statuses(path):
        digest.update(f"{name}\0{status.st_ino}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _statuses(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Each file of a directory, or the file itself; nothing if there is none."""
    if not path.is_dir():
        with suppress(OSError):
            yield path.name, path.stat()
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "__pycache__")  # Python's own, written by workers
        links = [name for name in folders if Path(folder, name).is_symlink()]  # not followed: they may lead in circles
        for name in sorted(names + links):
            file = Path(folder, name)
            with suppress(OSError):  # a link to nothing, say
                yield str(file.relative_to(path)), file.stat()


def _extract(url: str, path: Path, holder: Path, limits: Limits | None) -> None:
    try:
        extract(path, holder, markers=_MARKERS, limits=limits)
    except InvalidArchive as error:
        raise InvalidArchive(f"Failed to save model: {url}: {error.message}", hint=error.hint) from error


def _link(directory: Path, holder: Path) -> Path:
    """A directory of our own that links to the model: packages can be installed beside it without touching it."""
    target = Path(os.path.abspath(directory))  # noqa: PTH100  (resolve() would follow the store's links)
    entries = list(target.iterdir())
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name not in _MARKERS:
        target = entries[0]  # as SageMaker mounts models
    holder.mkdir(mode=0o700)
    link = holder / directory.name
    link.symlink_to(target, target_is_directory=True)
    return link


def _private_directory(temp_dir: Path) -> Path:
    """``temp_dir/models``, where nobody else may exchange what workers are about to run."""
    path = temp_dir / "models"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or open_to_all:
        raise InternalError(
            "The directory for unpacked models belongs to, or can be changed by, somebody else.",
            hint="Set TEMP to a directory of the server's own, or remove the 'models' directory below it.",
        )
    return path
