from __future__ import annotations

import stat
from pathlib import Path

from mariner.temporary import LOCK, TemporaryDirectory, remove_abandoned


def left_by_a_killed_server(parent: Path) -> Path:
    directory = TemporaryDirectory(parent)
    directory._lock.close()  # as the kernel does
    half = directory.path / "models" / ".0123.part"
    half.mkdir(parents=True)
    (half / "weights.bin").write_bytes(b"x" * 100)
    return directory.path


def test_it_is_private_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    directory = TemporaryDirectory(tmp_path)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    (directory.path / "models").mkdir()
    directory.remove()
    directory.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_removed_and_what_another_uses_is_not(tmp_path: Path) -> None:
    left, used = left_by_a_killed_server(tmp_path), TemporaryDirectory(tmp_path)
    remove_abandoned(tmp_path)
    assert not left.exists()
    assert used.path.exists()
    used.remove()


def test_what_no_server_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mariner-notes").mkdir()
    (tmp_path / "mariner-file").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    (tmp_path / "mariner-link").symlink_to(elsewhere)
    outside = tmp_path / "mariner-linked-lock"
    outside.mkdir()
    (outside / LOCK).symlink_to(elsewhere / LOCK)
    before = sorted(tmp_path.rglob("*"))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
