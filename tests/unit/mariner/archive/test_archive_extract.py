from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mariner.archive.extract import Limits, extract
from mariner.errors import InvalidArchive

MARKERS = frozenset({"MAR-INF"})
SMALL = Limits(entries=5, total_size=10_000, ratio=10, always=1_000)

names = st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "..a", "target-evil", "C:", "~", "\\", "..\\evil", "\0", "é", "x" * 300]),
    min_size=1,
    max_size=4,
).map("/".join) | st.text(max_size=10)


def zip_bytes(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are equal once the writer has cut them at a NUL
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def tgz_bytes(files: Mapping[str, bytes]) -> bytes:
    return gzip.compress(tar_bytes(files))


def unpack(directory: Path, content: bytes, limits: Limits | None = None) -> dict[str, bytes]:
    """The files that an archive unpacks to. Whatever happens, nothing else may be left behind."""
    source, target = directory / "archive.mar", directory / "target"
    source.write_bytes(content)
    try:
        extract(source, target, markers=MARKERS, limits=limits)
    finally:
        assert {path.name for path in directory.iterdir()} <= {"archive.mar", "target"}
    return {str(path.relative_to(target)): path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("pack", [zip_bytes, tgz_bytes])
def test_files_and_directories_come_out_as_they_went_in(
    tmp_path: Path, pack: Callable[[Mapping[str, bytes]], bytes]
) -> None:
    files = {"MAR-INF/MANIFEST.json": b"{}", "a.py": b"a", "pkg/sub/mod.py": b"", "big.bin": os.urandom(3 << 20)}
    assert unpack(tmp_path, pack(files)) == files


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_the_first_bytes_say_how_a_tar_file_is_compressed(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    assert unpack(tmp_path, compress(tar_bytes({"m/MAR-INF/MANIFEST.json": b"{}"}))) == {"MAR-INF/MANIFEST.json": b"{}"}


def test_a_zip_with_something_before_it_is_a_zip(tmp_path: Path) -> None:
    assert unpack(tmp_path, b"#!/bin/sh\n" + zip_bytes({"a": b"1"})) == {"a": b"1"}


def test_an_empty_zip_is_an_empty_model(tmp_path: Path) -> None:
    assert unpack(tmp_path, zip_bytes({})) == {}


def test_only_the_owner_may_look_into_an_unpacked_archive(tmp_path: Path) -> None:
    unpack(tmp_path, zip_bytes({"a/b": b""}))
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("files", "unpacked"),
    [
        ({"m/MAR-INF/M": b"1", "m/pkg/x.py": b"2"}, {"MAR-INF/M": b"1", "pkg/x.py": b"2"}),
        ({"./m/MAR-INF/M": b"1"}, {"MAR-INF/M": b"1"}),
        ({"./MAR-INF/M": b"1", "./x.py": b"2"}, {"MAR-INF/M": b"1", "x.py": b"2"}),
        ({"MAR-INF/M": b"1", "pkg/x.py": b"2"}, {"MAR-INF/M": b"1", "pkg/x.py": b"2"}),
        ({"m/MAR-INF/M": b"1", "README": b"2"}, {"MAR-INF/M": b"1", "README": b"2"}),
        ({"m/m/x.py": b"1", "m/MAR-INF/M": b"2"}, {"MAR-INF/M": b"2", "m/x.py": b"1"}),
        ({"m/x.py": b"1"}, {"x.py": b"1"}),
        ({"pkg/x.py": b"1", "h.py": b"2"}, {"pkg/x.py": b"1", "h.py": b"2"}),
    ],
)
def test_the_top_directory_of_a_tar_file_is_dropped_and_no_other(
    tmp_path: Path, files: dict[str, bytes], unpacked: dict[str, bytes]
) -> None:
    assert unpack(tmp_path, tgz_bytes(files)) == unpacked


def test_a_file_beside_and_in_the_top_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="Entry 'x' is there twice"):
        unpack(tmp_path, tgz_bytes({"m/MAR-INF/M": b"", "m/x": b"1", "x": b"2"}))


@pytest.mark.parametrize("pack", [zip_bytes, tgz_bytes])
@pytest.mark.parametrize(
    "name", ["../evil", "/abs", "..\\evil", "a/../../evil", "../target-evil/x", "C:/x", "C:x", "a/..", "a\\b"]
)
def test_an_entry_that_leads_outside_is_refused(
    tmp_path: Path, pack: Callable[[Mapping[str, bytes]], bytes], name: str
) -> None:
    with pytest.raises(InvalidArchive, match="would be written outside the model's directory"):
        unpack(tmp_path, pack({"fine": b"", name: b"evil"}))


def test_a_name_that_ends_early_for_some_readers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="would be written outside"):
        unpack(tmp_path, zip_bytes({"h.py_.txt": b""}).replace(b"h.py_", b"h.py\0"))


@settings(max_examples=60, deadline=None)
@given(st.lists(names, min_size=1, max_size=3, unique=True), st.booleans())
def test_no_entry_name_whatsoever_writes_outside(entries: list[str], zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            content = (zip_bytes if zipped else tgz_bytes)(dict.fromkeys(entries, b"evil"))
        except (ValueError, UnicodeError):
            return  # the format cannot hold the name
        try:
            unpack(Path(directory), content)
        except InvalidArchive:
            assert not (Path(directory) / "target").exists()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600), st.integers(0, 400), st.sampled_from([zip_bytes, tgz_bytes]))
def test_damage_anywhere_is_an_error_or_harmless(
    junk: bytes, position: int, pack: Callable[[Mapping[str, bytes]], bytes]
) -> None:
    whole = pack({"m/a": b"content" * 20, "m/b": b""})
    with tempfile.TemporaryDirectory() as directory:
        try:
            unpack(Path(directory), whole[:position] + junk + whole[position + len(junk) :])
        except InvalidArchive:
            assert not (Path(directory) / "target").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk" * 1000,
        b"PK\x03\x04" + b"junk" * 1000,
        b"\x1f\x8b" + b"junk" * 1000,
        b"BZh9" + b"junk" * 1000,
        b"\xfd7zXZ\0" + b"junk" * 1000,
        gzip.compress(b"no tar file" * 1000),
        gzip.compress(b""),
        zip_bytes({"a": os.urandom(5000)})[:-30],
        tgz_bytes({"a": os.urandom(5000)})[:-3000],
        tgz_bytes({"a": os.urandom(5000)})[:-4],
    ],
)
def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidArchive):
        unpack(tmp_path, content)
    assert not (tmp_path / "target").exists()


def test_junk_is_called_no_archive(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="The file is neither a zip nor"):
        unpack(tmp_path, b"<html>404</html>")


def test_a_wrong_checksum_is_damage(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a": b"x" * 100}, zipfile.ZIP_STORED))
    content[content.index(b"xxxx")] = ord("y")
    with pytest.raises(InvalidArchive, match="The archive is damaged: Bad CRC-32"):
        unpack(tmp_path, bytes(content))


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a": b"x"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InvalidArchive, match="encrypted"):
        unpack(tmp_path, bytes(content))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("evil")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(InvalidArchive, match="Entry 'evil' is a link or a device"):
        unpack(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_file_are_refused(tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("evil")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(InvalidArchive, match="Entry 'evil' is a link or a device"):
        unpack(tmp_path, buffer.getvalue())


def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a/b"))
        archive.addfile(tarfile.TarInfo("./a//b"))
    with pytest.raises(InvalidArchive, match="is there twice"):
        unpack(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("files", [{"a": b"1", "a/b": b"2"}, {"a/b": b"2", "a": b"1"}, {"./": b"", "/": b""}])
def test_an_entry_that_is_file_and_directory_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidArchive):
        unpack(tmp_path, tgz_bytes(files))


@pytest.mark.parametrize("pack", [zip_bytes, tgz_bytes])
def test_too_many_entries_are_refused(tmp_path: Path, pack: Callable[[Mapping[str, bytes]], bytes]) -> None:
    with pytest.raises(InvalidArchive, match="more than 5 entries"):
        unpack(tmp_path, pack({str(number): b"" for number in range(6)}), Limits(entries=5))


@pytest.mark.parametrize("pack", [zip_bytes, tgz_bytes])
def test_a_compression_bomb_is_refused(tmp_path: Path, pack: Callable[[Mapping[str, bytes]], bytes]) -> None:
    with pytest.raises(InvalidArchive, match=r"unpacks to more than \d+ bytes, which is too much for one of \d+ bytes"):
        unpack(tmp_path, pack({"zeros": bytes(1_000_000)}), SMALL)


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"zeros": bytes(1_000_000)}))
    size = (1_000_000).to_bytes(4, "little")
    for _ in range(2):
        content[content.index(size) : content.index(size) + 4] = (10).to_bytes(4, "little")
    with pytest.raises(InvalidArchive):
        unpack(tmp_path, bytes(content), SMALL)


def test_a_total_size_is_refused_at_any_ratio(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="unpacks to more than 10000 bytes"):
        unpack(tmp_path, zip_bytes({"a": os.urandom(10_001)}), SMALL)


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("header")
    entry.type, entry.size = tarfile.XHDTYPE, 100 << 20
    with pytest.raises(InvalidArchive, match=f"The archive has a header of {100 << 20} bytes"):
        unpack(tmp_path, gzip.compress(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(10_000)))


def raw_header(name: str, kind: bytes, size: int) -> bytes:
    """A tar header with a size that no writer would write."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    header = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = (size & (1 << 96) - 1).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [-1, -512, -1024, -(1 << 60), 0xFF << 88 | 1 << 62])
def test_a_size_that_leads_backwards_or_nowhere_is_refused(tmp_path: Path, kind: bytes, size: int) -> None:
    content = raw_header("first", tarfile.DIRTYPE, 0x80 << 88) + raw_header("second", kind, size) + bytes(2048)
    with pytest.raises(InvalidArchive):
        unpack(tmp_path, gzip.compress(content))


def test_a_sparse_file_that_leads_backwards_is_refused(tmp_path: Path) -> None:
    content = b"".join(raw_header(name, tarfile.DIRTYPE, 0x80 << 88) for name in ("a", "b", "c"))
    with pytest.raises(InvalidArchive, match="leads backwards"):
        unpack(tmp_path, gzip.compress(content + raw_header("d", tarfile.GNUTYPE_SPARSE, -1024) + bytes(2048)))


def test_a_sparse_file_whose_map_is_cut_off_is_damaged(tmp_path: Path) -> None:
    header = bytearray(raw_header("sparse", tarfile.GNUTYPE_SPARSE, 0x80 << 88))
    header[257:265] = b"ustar  \0"
    header[482] = 1  # the map goes on in a block that is not there
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(InvalidArchive, match="The archive is damaged"):
        unpack(tmp_path, gzip.compress(bytes(header)))


def test_holes_in_a_sparse_file_count_as_much_as_what_is_written(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("sparse")
        entry.size = 512
        entry.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "zeros",
            "GNU.sparse.realsize": str(10**12),
        }
        archive.addfile(entry, io.BytesIO(b"0\n".ljust(512, b"\0")))
    limits = Limits(always=100_000, ratio=10)
    with pytest.raises(InvalidArchive, match="unpacks to more than 100000 bytes"):
        unpack(tmp_path, buffer.getvalue(), limits)


def test_directories_are_made_even_if_empty(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("m", "m/MAR-INF", "m/empty"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
    unpack(tmp_path, buffer.getvalue())
    assert (tmp_path / "target/empty").is_dir()
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as zipped:
        zipped.writestr("empty/", "")
    extract(tmp_path / "m.zip", tmp_path / "second", markers=MARKERS)
    assert (tmp_path / "second/empty").is_dir()


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a": b"x"}))
    position = content.index(b"PK\x01\x02") + 24  # the size that the directory announces
    content[position : position + 4] = b"\xff\xff\xff\x7f"
    limits = Limits(always=1 << 50, total_size=1 << 50)
    free = os.statvfs(tmp_path)
    if free.f_bavail * free.f_frsize > 0x7FFFFFFF * 20:
        # 2 GiB fit: announce as many entries of that size as do not.
        count = free.f_bavail * free.f_frsize // 0x7FFFFFFF + 1
        content = bytearray(zip_bytes({str(number): b"x" for number in range(count)}))
        for position in range(len(content)):
            if content.startswith(b"PK\x01\x02", position):
                content[position + 24 : position + 28] = b"\xff\xff\xff\x7f"
    with pytest.raises(OSError, match="No space") as caught:
        unpack(tmp_path, bytes(content), limits)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "target").exists()
