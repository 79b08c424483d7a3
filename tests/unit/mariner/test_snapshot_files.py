from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mariner.snapshot_files import newest_snapshot, remove_unfinished, save_snapshot, snapshot_name

# Forks 200 processes that save snapshots without end, and kills each at some moment.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from mariner.snapshot_files import save_snapshot

place = Path(sys.argv[1])
for number in range(200):
    pid = os.fork()
    if not pid:
        for count in range(10_000):
            text = f"{number}.{count}\\n" * 2_000 + "end\\n"
            save_snapshot(place, f"{number:07d}{count:010d}-snapshot.cfg", text)
    time.sleep(random.uniform(0, 0.01))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


def test_the_name_tells_the_moment_and_the_occasion() -> None:
    assert snapshot_name("startup", datetime(2026, 1, 31, 12, 0, 5, 123_900, UTC)) == "20260131120005123-startup.cfg"


def test_the_newest_is_that_with_the_largest_time_whatever_its_occasion(tmp_path: Path) -> None:
    for name in ("20260131120005123-startup.cfg", "20260131120005124-shutdown.cfg", "20251231120005999-snapshot.cfg"):
        (tmp_path / name).touch()
    assert newest_snapshot(tmp_path) == tmp_path / "20260131120005124-shutdown.cfg"


def test_other_files_are_no_snapshots(tmp_path: Path) -> None:
    for name in ("notes.txt", "99999999999999999-startup.cfg.bak", ".20260131120005123-startup.cfg.x", "9-startup.cfg"):
        (tmp_path / name).touch()
    (tmp_path / "20260131120005123-folder.cfg").mkdir()
    assert newest_snapshot(tmp_path) is None
    assert newest_snapshot(tmp_path / "absent") is None


def test_a_snapshot_is_its_owners_alone(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path / "logs" / "config", "20260131120005123-startup.cfg", "a=b\n")
    assert path.read_text() == "a=b\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_left_of_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        save_snapshot(tmp_path, "20260131120005123-startup.cfg", "é")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_hundred_kills_leave_no_half_of_a_snapshot(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLER, str(tmp_path)], check=True, timeout=120)
    saved = sorted(tmp_path.glob("*.cfg"))
    assert saved
    for path in saved:
        *lines, end = path.read_text().splitlines()
        assert (end, len(lines), len(set(lines))) == ("end", 2_000, 1), path
    assert newest_snapshot(tmp_path) == saved[-1]
    remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == saved
