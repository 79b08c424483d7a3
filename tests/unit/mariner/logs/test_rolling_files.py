from __future__ import annotations

import errno
import gzip
import logging
import os
from pathlib import Path

import pytest

from mariner.logs import rolling
from mariner.logs.rolling import LineWriter, RollingFile


def test_lines_wait_for_the_flush_and_keep_their_order(tmp_path: Path) -> None:
    file = RollingFile(tmp_path / "a.log")
    file.append(b"one\n")
    file.append(b"two\n")
    assert file.path.read_bytes() == b""
    file.flush()
    assert file.path.read_bytes() == b"one\ntwo\n"
    file.close()


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"before\n")
    file = RollingFile(tmp_path / "a.log")
    file.append(b"after\n")
    file.close()
    assert file.path.read_bytes() == b"before\nafter\n"


def test_a_large_file_is_set_aside_and_compressed(tmp_path: Path) -> None:
    file = RollingFile(tmp_path / "a.log", max_size=10)
    for line in (b"0123456789\n", b"x" * 10 + b"\n", b"last\n"):
        file.append(line)
        file.flush()
    file.close()
    assert file.path.read_bytes() == b"last\n"
    first, second = sorted(tmp_path.glob("a.*.log.gz"), key=lambda path: len(path.name))
    assert gzip.decompress(first.read_bytes()) == b"0123456789\n"
    assert gzip.decompress(second.read_bytes()) == b"x" * 10 + b"\n"
    assert not list(tmp_path.glob("*.part"))


def test_a_file_of_yesterday_is_set_aside_under_its_day(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"old\n")
    os.utime(path, (0, 86_400 * 200 + 43_200))  # noon, so that no time zone moves the day
    file = RollingFile(path)
    file.append(b"new\n")
    file.close()
    assert path.read_bytes() == b"new\n"
    (aside,) = tmp_path.glob("a.*.log.gz")
    assert aside.name == "a.20-Jul.log.gz"
    assert gzip.decompress(aside.read_bytes()) == b"old\n"


def test_only_the_newest_files_set_aside_stay(tmp_path: Path) -> None:
    file = RollingFile(tmp_path / "a.log", max_size=1, kept=2)
    for number in range(6):
        file.append(b"%d\n" % number)
        file.flush()
        for age, path in enumerate(sorted(tmp_path.glob("a.*.log.gz"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (age + 1, age + 1))
    file.close()
    kept = [gzip.decompress(path.read_bytes()) for path in tmp_path.glob("a.*.log.gz")]
    assert sorted(kept) == [b"3\n", b"4\n"]


def test_a_file_that_another_tool_moved_is_made_again(tmp_path: Path) -> None:
    file = RollingFile(tmp_path / "a.log")
    file.append(b"one\n")
    file.flush()
    file.path.rename(tmp_path / "a.log.1")
    file.append(b"two\n")
    file.close()
    assert (tmp_path / "a.log.1").read_bytes() == b"one\n"
    assert file.path.read_bytes() == b"two\n"


def test_a_full_disk_costs_lines_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = RollingFile(tmp_path / "a.log")
    with monkeypatch.context() as patch:
        patch.setattr("mariner.logs.rolling.os.write", full)
        for _ in range(3):
            file.append(b"lost\n")
            file.flush()
    file.append(b"there\n")
    file.close()
    assert file.path.read_bytes() == b"there\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"Lines for {file.path} are lost: No space left on device. Others will follow.",
        f"{file.path} is written again; 3 lines were lost.",
    ]


def test_lines_beyond_what_may_wait_are_counted_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "MOST_WAITING", 2)
    file = RollingFile(tmp_path / "a.log")
    for number in range(5):
        file.append(b"%d\n" % number)
    file.close()
    assert file.path.read_bytes() == b"0\n1\n"
    assert "3 lines were lost" in caplog.text


def test_the_writer_flushes_by_itself_and_at_the_end(tmp_path: Path) -> None:
    file = RollingFile(tmp_path / "a.log")
    writer = LineWriter([file], interval=3600)
    file.append(b"last words\n")
    writer.close()
    assert file.path.read_bytes() == b"last words\n"


def test_the_writer_survives_whatever_a_file_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RollingFile):
        def flush(self) -> None:
            if not self.path.with_name("seen").exists():
                self.path.with_name("seen").touch()
                raise RuntimeError("boom")
            super().flush()

    caplog.set_level(logging.ERROR)
    file = Broken(tmp_path / "a.log")
    writer = LineWriter([file], interval=0.001)
    while not (tmp_path / "seen").exists():
        pass
    file.append(b"after\n")
    writer.close()
    assert file.path.read_bytes() == b"after\n"
    assert "could not be written" in caplog.text
