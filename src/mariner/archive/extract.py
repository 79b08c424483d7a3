"""Unpacking of archives that nobody vouches for: complete and inside the target, or not at all.

What kind of archive it is, its first bytes say, not its name.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mariner.errors import InvalidArchive

__all__ = ["Limits", "extract"]

CHUNK = 1 << 20
MAX_HEADER = 16 << 20  # a tar header is read in one piece: its size is bounded before there is memory for it
MAX_NAME = 255  # bytes in one path component, on every file system we know

# What a damaged or foreign file makes the libraries raise; RuntimeError is an encrypted entry, NotImplementedError an
# unknown compression, ValueError a name in no encoding.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,
    ValueError,
    ArithmeticError,
    LookupError,
    struct.error,
)
# From bz2 (a plain OSError without number), a file where a directory is to be, and names the file system refuses.
_DAMAGED_ERRNOS = {None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}

_DRIVE = re.compile(r"[A-Za-z]:")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Seekable(_Readable, Protocol):
    def seek(self, offset: int, whence: int, /) -> int: ...

    def tell(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may unpack to.

    Attributes:
        entries: files and directories; a large Python environment has some 50,000.
        total_size: bytes; the largest open weights need less than 2 TiB.
        ratio: of unpacked to packed size. Weights hardly compress, sparse ones perhaps 50 times; deflate ends at 1032.
        always: bytes that any archive may unpack to, whatever its ratio: small models may be all zeros.
    """

    entries: int = 200_000
    total_size: int = 2 << 40
    ratio: int = 200
    always: int = 1 << 30


def extract(source: Path, target: Path, *, markers: frozenset[str], limits: Limits | None = None) -> None:
    """Unpacks a zip or a (compressed) tar file into a directory that does not exist yet.

    A tar file usually has everything under one directory; that directory is dropped.

    Args:
        source: the archive.
        target: appears once everything is there, with mode 0700.
        markers: names of the directory that tells where an archive's root is (``MAR-INF``).
        limits: how much is too much.

    Raises:
        InvalidArchive: the file is no archive, is damaged, unsafe or too large.
        OSError: the disk is full, or not ours.
    """
    staging = target.with_name(f".{target.name}.part")
    staging.mkdir(mode=0o700)
    try:
        with source.open("rb") as file:
            extraction = _Extraction(staging, source.stat().st_size, limits or Limits())
            try:
                _extract_any(file, extraction)
            except _DAMAGED as error:
                raise InvalidArchive(f"The archive is damaged: {error}.", hint="Package or copy it again.") from error
            except OSError as error:
                if error.errno not in _DAMAGED_ERRNOS:
                    raise
                raise InvalidArchive(f"The archive is damaged: {error.strerror or error}.") from error
        if extraction.strip_top:
            _drop_top(staging, markers)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _extract_any(file: BinaryIO, extraction: _Extraction) -> None:
    head = file.read(512)
    file.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        _extract_zip(file, extraction)
    elif head.startswith(b"\x1f\x8b"):
        with gzip.open(file) as stream:
            _extract_tar(stream, extraction)
    elif head.startswith(b"BZh"):
        with bz2.open(file) as stream:
            _extract_tar(stream, extraction)
    elif head.startswith(b"\xfd7zXZ\0"):
        with lzma.open(file) as stream:
            _extract_tar(stream, extraction)
    elif head[257:262] == b"ustar":
        _extract_tar(file, extraction)
    elif zipfile.is_zipfile(file):  # something stands before the first entry, as in self-extracting ones
        _extract_zip(file, extraction)
    else:
        raise InvalidArchive(
            "The file is neither a zip nor a tar.gz archive.",
            hint="Package the model with torch-model-archiver, or check that the file was copied completely.",
        )


def _extract_zip(file: BinaryIO, extraction: _Extraction) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        extraction.expect(len(entries), sum(entry.file_size for entry in entries))
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InvalidArchive(f"Entry {entry.filename!r} is a link or a device; an archive holds files only.")
            if entry.orig_filename.endswith("/"):
                extraction.add_directory(entry.orig_filename)
            else:
                with archive.open(entry) as content:
                    extraction.add_file(entry.orig_filename, content)


def _extract_tar(stream: _Seekable, extraction: _Extraction) -> None:
    bounded = _BoundedStream(stream, extraction)
    extraction.strip_top = True
    with tarfile.open(fileobj=bounded, mode="r:") as archive:
        for entry in archive:
            if entry.size < 0:
                raise InvalidArchive(f"The archive is damaged: entry {entry.name!r} has a size of {entry.size} bytes.")
            if entry.isdir():
                extraction.add_directory(entry.name)
            elif entry.isreg():
                content = archive.extractfile(entry)
                assert content is not None
                extraction.add_file(entry.name, content)
            else:
                raise InvalidArchive(f"Entry {entry.name!r} is a link or a device; an archive holds files only.")
    while bounded.read(CHUNK):  # to the end, where a checksum tells whether all of it arrived
        pass


class _Extraction:
    """One unpacking: where to, and how much is left of the limits."""

    def __init__(self, root: Path, packed_size: int, limits: Limits) -> None:
        self.strip_top = False
        self.budget = min(limits.total_size, max(limits.always, limits.ratio * packed_size))
        self._root = root
        self._packed_size = packed_size
        self._limits = limits
        self._entries = 0
        self._size = 0
        self._files: set[tuple[str, ...]] = set()

    def expect(self, entries: int, size: int) -> None:
        """What the archive announces, before a byte is written."""
        if entries > self._limits.entries:
            raise self._too_many()
        if size > self.budget:
            raise self.too_large()
        if size > shutil.disk_usage(self._root).free:
            raise OSError(errno.ENOSPC, f"No space for {size} bytes")

    def add_directory(self, name: str) -> None:
        self._count()
        parts = _safe_parts(name)
        self._root.joinpath(*parts).mkdir(mode=0o700, parents=True, exist_ok=True)

    def add_file(self, name: str, content: _Readable) -> None:
        self._count()
        parts = _safe_parts(name)
        if not parts:
            raise InvalidArchive(f"Entry {name!r} has no name.")
        if parts in self._files:
            raise InvalidArchive(f"Entry {name!r} is there twice.", hint="Which one is meant? Package the model again.")
        self._files.add(parts)
        path = self._root.joinpath(*parts)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as file:
            while chunk := content.read(CHUNK):
                self._size += len(chunk)
                if self._size > self.budget:
                    raise self.too_large()
                file.write(chunk)

    def too_large(self) -> InvalidArchive:
        return InvalidArchive(
            f"The archive unpacks to more than {self.budget} bytes, which is too much for one of "
            f"{self._packed_size} bytes.",
            hint="If it is meant to be that large, register it as an unpacked directory.",
        )

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise self._too_many()

    def _too_many(self) -> InvalidArchive:
        return InvalidArchive(f"The archive has more than {self._limits.entries} entries.")


class _BoundedStream(io.RawIOBase):
    """What tarfile reads from: it asks for headers of any size that the archive claims, and counts nothing."""

    def __init__(self, stream: _Seekable, extraction: _Extraction) -> None:
        super().__init__()
        self._stream = stream
        self._extraction = extraction

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise InvalidArchive(f"The archive has a header of {size} bytes.")
        chunk = self._stream.read(size)
        if self._stream.tell() > self._extraction.budget:
            raise self._extraction.too_large()
        return chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # A negative size leads back to entries that were read already: again, and again from the compressed start.
        if whence != io.SEEK_SET or offset < self._stream.tell():
            raise InvalidArchive("The archive is damaged: an entry leads backwards.")
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _safe_parts(name: str) -> tuple[str, ...]:
    """The components of an entry's name, none of which leads anywhere but down.

    Raises:
        InvalidArchive: one does, or could on some system.
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or _DRIVE.match(name):
        raise InvalidArchive(
            f"Entry {name!r} would be written outside the model's directory.",
            hint="Names in an archive are relative, with / between directories. Package the model again.",
        )
    if any(len(part.encode("utf-8", "surrogateescape")) > MAX_NAME for part in parts):
        raise InvalidArchive(f"Entry {name[:40]!r}... has a name of more than {MAX_NAME} bytes.")
    return parts


def _drop_top(root: Path, markers: frozenset[str]) -> None:
    """Lifts the content of the top directory, if there is one: the one with the marker, else the only entry."""
    tops = list(root.iterdir())
    if any(top.name in markers for top in tops):
        return
    marked = [top for top in tops if any((top / marker).is_dir() for marker in markers)]
    candidates = marked or [top for top in tops if top.is_dir() and len(tops) == 1]
    if len(candidates) != 1:
        return
    top = candidates[0].rename(root / f".{candidates[0].name[:100]}.top")  # it may hold an entry of its own name
    for child in list(top.iterdir()):
        if (root / child.name).exists():
            raise InvalidArchive(f"Entry {child.name!r} is there twice, beside and in the top directory.")
        child.rename(root / child.name)
    top.rmdir()
