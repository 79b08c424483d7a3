"""Files of lines that are written from a thread of their own, and set aside when they are large or a day old.

Whoever has a line hands it over and goes on; what that line may say is not this module's business.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

__all__ = ["LineWriter", "RollingFile"]

logger = logging.getLogger(__name__)

FLUSH_INTERVAL = 0.5  # seconds; what a killed server may owe its files
MOST_WAITING = 500_000  # lines; a disk that hangs must not fill the memory
MAX_SIZE = 100 << 20  # bytes; this and the next are the limits that TorchServe's files have
KEPT = 5


class RollingFile:
    """An append-only file. It exists from the start; lines reach it with :meth:`flush`.

    Args:
        path: of the file; its directory exists.
        max_size: bytes after which the file is set aside as ``<name>.<day>.log.gz``.
        kept: files set aside that stay; older ones are deleted.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_size: int = MAX_SIZE, kept: int = KEPT) -> None:
        self.path = path
        self._max_size = max_size
        self._kept = kept
        self._lines: list[bytes] = []
        self._dropped = 0
        self._failing = False
        self._open()

    def append(self, line: bytes) -> None:
        """Takes a line with its end. May be called from every thread; never waits."""
        if len(self._lines) < MOST_WAITING:
            self._lines.append(line)
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Writes the lines that wait. A disk that takes none costs those lines and one warning, not the server."""
        count = len(self._lines)
        if not count:
            return
        data = b"".join(self._lines[:count])
        del self._lines[:count]
        try:
            self._prepare()
            self._write(data)
        except OSError as error:
            self._dropped += count
            if not self._failing:
                logger.warning("Lines for %s are lost: %s. Others will follow.", self.path, error.strerror or error)
            self._failing = True
            return
        if self._failing or self._dropped:
            logger.warning("%s is written again; %d lines were lost.", self.path, self._dropped)
            self._failing, self._dropped = False, 0

    def close(self) -> None:
        """Writes what waits and closes the file."""
        self.flush()
        os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        status = os.fstat(self._fd)
        self._size = status.st_size
        self._inode = status.st_ino
        self._day = _day_of(status.st_mtime if status.st_size else time.time())

    def _prepare(self) -> None:
        """Makes sure that the descriptor is that of the current file."""
        if self._size and (self._size >= self._max_size or _day_of(time.time()) != self._day):
            self._set_aside()
        elif self._moved():  # by a tool that rotates logs
            os.close(self._fd)
            self._open()

    def _moved(self) -> bool:
        try:
            return os.stat(self.path).st_ino != self._inode  # noqa: PTH116 - twice a second
        except FileNotFoundError:
            return True

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.write(self._fd, rest)
            self._size += written
            rest = rest[written:]

    def _set_aside(self) -> None:
        stem = f"{self.path.stem}.{self._day:%d-%b}"
        number = 1
        while (aside := self.path.with_name(f"{stem}{f'-{number}' if number > 1 else ''}.log")).exists() or (
            aside.with_suffix(".log.gz").exists()
        ):
            number += 1
        self.path.rename(aside)
        os.close(self._fd)
        self._open()
        packed = aside.with_suffix(".log.gz")
        partial = packed.with_suffix(".part")
        try:
            with aside.open("rb") as source, gzip.open(partial, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            partial.replace(packed)
            aside.unlink()
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            logger.warning("%s stays uncompressed: %s.", aside, error.strerror or error)
        self._delete_old()

    def _delete_old(self) -> None:
        old = sorted(self.path.parent.glob(f"{self.path.stem}.*.log*"), key=lambda path: path.stat().st_mtime)
        for path in old[: -self._kept]:
            path.unlink(missing_ok=True)


def _day_of(seconds: float) -> date:
    """The day on this machine's clock."""
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().date()


class LineWriter:
    """Flushes files from a thread.

    Args:
        files: to look after.
        interval: seconds between two looks.
    """

    def __init__(self, files: Iterable[RollingFile], *, interval: float = FLUSH_INTERVAL) -> None:
        self._files = tuple(files)
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log files", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what waits, ends the thread and closes the files."""
        self._stop.set()
        self._thread.join()
        for file in self._files:
            file.close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            for file in self._files:
                try:
                    file.flush()
                except Exception:  # noqa: PERF203 - one file that fails keeps no other from being written
                    logger.exception("%s could not be written.", file.path)
