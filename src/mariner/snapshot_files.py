"""The directory of snapshots: their names, the newest one, and saving so that a kill leaves no half of one."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path

__all__ = ["newest_snapshot", "remove_unfinished", "save_snapshot", "snapshot_directory", "snapshot_name"]

_NAME = re.compile(r"\d{17}-[a-z]+\.cfg")
_UNFINISHED = re.compile(r"\.\d{17}-[a-z]+\.cfg\.")


def snapshot_directory(log_location: Path) -> Path:
    """Where the snapshots of a server are that logs there."""
    return log_location / "config"


def newest_snapshot(directory: Path) -> Path | None:
    """The latest snapshot; None if there is none. Other files do not count."""
    try:
        names = [entry.name for entry in os.scandir(directory) if _NAME.fullmatch(entry.name) and entry.is_file()]
    except OSError:
        return None
    return directory / max(names) if names else None


def remove_unfinished(directory: Path) -> None:
    """Deletes what servers that were killed while they saved have left."""
    with suppress(OSError):
        for entry in os.scandir(directory):
            if _UNFINISHED.match(entry.name):
                os.unlink(entry.path)  # noqa: PTH108


def save_snapshot(directory: Path, name: str, text: str) -> Path:
    """Writes a snapshot: either all of it is there afterwards, or nothing.

    Args:
        directory: is made if it is missing.
        name: of the file, see :func:`snapshot_name`.
        text: its content, ASCII.

    Raises:
        OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # readable by its owner: it may name secrets
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - beside mkstemp, which gives text
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    return path


def snapshot_name(kind: str, now: datetime) -> str:
    """``20260131120000123-startup.cfg``, in local time.

    Args:
        kind: ``startup``, ``snapshot`` or ``shutdown``.
        now: the moment.
    """
    return f"{now:%Y%m%d%H%M%S}{now.microsecond // 1000:03d}-{kind}.cfg"
