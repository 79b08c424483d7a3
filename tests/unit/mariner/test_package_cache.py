"""Which packages stay in the cache: limits in bytes, other processes as other servers, kills at bad moments."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mariner.package_cache import PackageCache, PackageSet

ANOTHER_SERVER = """
import sys
from pathlib import Path
from mariner.package_cache import PackageCache
held = PackageCache(Path(sys.argv[1]), 10**9).acquire(sys.argv[2], lambda place: (place / "x").write_bytes(bytes(100)))
print("up", flush=True)
sys.stdin.read()
"""


def fill(place: Path) -> None:
    (place / "module.py").write_bytes(bytes(100))


def use(place: Path, name: str, limit: int = 1000, *, last_used: float = 0.0) -> None:
    """What a server does that starts and stops."""
    PackageCache(place, limit).acquire(name, fill).close()
    if last_used:
        os.utime(place / f"{name}.lock", (last_used, last_used))


def sets(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir())


def files(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@contextmanager
def another_server(place: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", ANOTHER_SERVER, str(place), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_set_is_made_once(tmp_path: Path) -> None:
    use(tmp_path, "a")

    def again(place: Path) -> None:
        pytest.fail(f"{place} is made again")

    with closing(PackageCache(tmp_path, 1000).acquire("a", again)) as found:
        assert found.path == tmp_path / "a"


def test_beyond_the_limit_the_sets_that_were_not_used_for_longest_go(tmp_path: Path) -> None:
    for name, last_used in (("old", 3.0), ("older", 2.0), ("oldest", 1.0)):
        use(tmp_path, name, last_used=last_used)
    use(tmp_path, "new", 250)
    assert files(tmp_path) == ["new", "new.lock", "old", "old.lock"]


def test_using_a_set_makes_it_young(tmp_path: Path) -> None:
    use(tmp_path, "a", last_used=1.0)
    use(tmp_path, "b", last_used=2.0)
    use(tmp_path, "a")
    use(tmp_path, "c", 250)
    assert sets(tmp_path) == ["a", "c"]


def test_what_is_used_stays_whatever_the_limit(tmp_path: Path) -> None:
    held = PackageCache(tmp_path, 0).acquire("a", fill)
    os.utime(tmp_path / "a.lock", (1.0, 1.0))
    use(tmp_path, "b", 0)
    assert sets(tmp_path) == ["a", "b"]  # what this call returned was still used when it pruned
    held.close()
    use(tmp_path, "c", 0)
    assert sets(tmp_path) == ["c"]


@pytest.mark.slow
def test_what_another_server_uses_stays_until_it_ends_even_by_a_kill(tmp_path: Path) -> None:
    with another_server(tmp_path, "a") as process:
        os.utime(tmp_path / "a.lock", (1.0, 1.0))
        use(tmp_path, "b", 0)
        assert sets(tmp_path) == ["a", "b"]
        process.kill()
        process.wait()
        use(tmp_path, "c", 0)
        assert sets(tmp_path) == ["c"]


def test_what_a_killed_server_was_making_or_removing_goes(tmp_path: Path) -> None:
    (tmp_path / ".half.part" / "packages").mkdir(parents=True)
    (tmp_path / "half.lock").touch()
    (tmp_path / "removed.lock").write_text("100")  # killed between the last two steps
    use(tmp_path, "a", 150)
    assert files(tmp_path) == ["a", "a.lock"]


def test_a_set_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".a.part" / "packages").mkdir(parents=True)
    (tmp_path / ".a.part" / "packages" / "half").touch()
    use(tmp_path, "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["module.py"]


def test_what_another_server_is_making_stays(tmp_path: Path) -> None:
    (tmp_path / ".b.part" / "packages").mkdir(parents=True)
    with (tmp_path / "b.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        use(tmp_path, "a", 0)
    assert files(tmp_path) == [".b.part", "a", "a.lock", "b.lock"]


def test_whoever_waited_while_a_set_was_removed_and_made_again_holds_the_new_one(tmp_path: Path) -> None:
    use(tmp_path, "a")
    found: list[PackageSet] = []
    with (tmp_path / "a.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as one who removes it
        thread = threading.Thread(target=lambda: found.append(PackageCache(tmp_path, 1000).acquire("a", fill)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        (tmp_path / "a.lock").unlink()
        (tmp_path / "a.lock").write_text("100")  # as one who makes it again
    thread.join(20)
    with closing(found[0]):
        use(tmp_path, "b", 0)
        assert sets(tmp_path) == ["a", "b"]


def test_a_set_that_cannot_be_made_leaves_only_its_lock(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        fill(place)
        raise ValueError("no such package")

    with pytest.raises(ValueError, match="no such package"):
        PackageCache(tmp_path, 1000).acquire("a", fail)
    assert files(tmp_path) == ["a.lock"]
    use(tmp_path, "a")
    assert sets(tmp_path) == ["a"]
