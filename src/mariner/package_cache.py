"""The cache of installed packages: a directory for each set of packages, shared by all servers of this user.

A set is used under a shared lock of the file beside it, and made or removed under an exclusive one. A lock ends with
its holder, so that a server that was killed keeps nothing. What is half made or half removed is called ``.NAME.part``;
whoever holds the exclusive lock may delete it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["PackageCache", "PackageSet", "cache_directory"]

log = logging.getLogger(__name__)


def cache_directory(environment: Mapping[str, str], temp_dir: Path) -> Path:
    """Where installed packages are kept from one start to the next; made if missing, and nobody else's.

    Args:
        environment: ``XDG_CACHE_HOME`` names the place for caches.
        temp_dir: taken if it does not.

    Raises:
        OSError: it cannot be made, or somebody else could exchange what models are about to run.
    """
    base = environment.get("XDG_CACHE_HOME", "")
    cache = Path(base, "mariner") if Path(base).is_absolute() else temp_dir / f"mariner-cache-{os.geteuid()}"
    path = cache / "packages"
    for directory in (cache, path):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or shared:
            raise PermissionError(f"{directory} belongs to, or can be changed by, somebody else. Remove it.")
    return path


class PackageSet:
    """Packages that stay in the cache until :meth:`close`."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """They are not used any more, by this caller. May be called twice."""
        if not self._lock.closed:
            with suppress(OSError):
                os.utime(self._lock.fileno())  # when they were last used
            self._lock.close()


class _Entry(NamedTuple):
    last_used: float  # seconds since the epoch
    size: int  # bytes
    name: str


class PackageCache:
    """Sets of packages by name.

    Args:
        place: its directory.
        limit: bytes beyond which those sets go that were not used for longest.
    """

    def __init__(self, place: Path, limit: int) -> None:
        self._place = place
        self._limit = limit

    def acquire(self, name: str, make: Callable[[Path], None]) -> PackageSet:
        """The set of that name, made if it is not there; then the cache is brought below its limit again.

        Args:
            name: says all that decides about its content.
            make: fills an empty directory, and may use the one above for itself; what it raises is raised.
        """
        while (found := self._use(name)) is None:
            self._make(name, make)
        self._prune()
        return found

    def _use(self, name: str) -> PackageSet | None:
        lock = self._open(name)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if self._is_current(lock, name) and self._path(name).is_dir():
            os.utime(lock.fileno())
            return PackageSet(self._path(name), lock)
        lock.close()
        return None

    def _make(self, name: str, make: Callable[[Path], None]) -> None:
        """One process at a time makes a set; the others find it there."""
        with self._open(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._is_current(lock, name) or self._path(name).is_dir():
                return
            part = self._part(name)
            shutil.rmtree(part, ignore_errors=True)  # somebody was killed
            part.mkdir(mode=0o700)
            packages = part / "packages"
            try:
                packages.mkdir()
                make(packages)
                lock.truncate(0)
                lock.write(str(_size(packages)))
                lock.flush()
                packages.rename(self._path(name))
            finally:
                shutil.rmtree(part, ignore_errors=True)

    # -- pruning ------------------------------------------------------------------------------------------------------

    def _prune(self) -> None:
        """Removes what is left over, and sets that nobody uses, as far as the limit wants."""
        try:
            locked = [path.stem for path in self._place.glob("*.lock")]
            for name in locked + [part.stem[1:] for part in self._place.glob(".*.part")]:
                if not self._path(name).is_dir() or self._part(name).exists():
                    self._remove(name, only_leftovers=True)
            entries = sorted(self._entries())
            excess = sum(entry.size for entry in entries) - self._limit
            for entry in entries:
                if excess <= 0:
                    break
                if self._remove(entry.name):
                    log.info("Removed packages of %d bytes from the cache, which had grown too large.", entry.size)
                    excess -= entry.size
        except OSError:
            log.warning("The cache of packages could not be pruned.", exc_info=True)

    def _entries(self) -> Iterator[_Entry]:
        for path in self._place.glob("*.lock"):
            with suppress(FileNotFoundError):  # another server prunes, too
                text = path.read_text()
                size = int(text) if text.isdecimal() else _size(self._path(path.stem))
                yield _Entry(path.stat().st_mtime, size, path.stem)

    def _remove(self, name: str, *, only_leftovers: bool = False) -> bool:
        """Removes a set unless somebody uses or makes it; a kill at any moment leaves what the next one removes."""
        with self._open(name) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not self._is_current(lock, name):
                return False
            path, part = self._path(name), self._part(name)
            shutil.rmtree(part, ignore_errors=True)
            if path.is_dir():
                if only_leftovers:
                    return False
                path.rename(part)  # nobody finds half a set
                shutil.rmtree(part, ignore_errors=True)
            self._lock_path(name).unlink()
            return True

    # -- names --------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self._place / name

    def _part(self, name: str) -> Path:
        return self._place / f".{name}.part"

    def _lock_path(self, name: str) -> Path:
        return self._place / f"{name}.lock"

    def _open(self, name: str) -> IO[str]:
        return self._lock_path(name).open("a+")  # "w" would empty it

    def _is_current(self, lock: IO[str], name: str) -> bool:
        """Whether the file that was locked is still the one that others lock: it goes with its set."""
        try:
            return os.path.samestat(os.fstat(lock.fileno()), self._lock_path(name).stat())
        except FileNotFoundError:
            return False


def _size(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())
