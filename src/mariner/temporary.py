"""The server's temporary directory, and those that servers which were killed could not remove.

A server holds a lock on a file in its directory, which the kernel gives up with the process, however that ends. The
next start removes directories whose lock is free.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["TemporaryDirectory", "remove_abandoned"]

log = logging.getLogger(__name__)

PREFIX = "mariner-"
LOCK = ".in-use"  # nothing without this file is ours to remove


class TemporaryDirectory:
    """A directory of this server alone, until :meth:`remove` or the death of the process.

    Attributes:
        path: the directory, with mode 0700.
    """

    def __init__(self, parent: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        new = self.path / f"{LOCK}.new"
        self._lock = new.open("xb")
        # On a file system without locks the file never gets its name, and the directory counts as nobody's.
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.path / LOCK)  # after the lock: a file of that name that is free belongs to nobody alive

    def remove(self) -> None:
        """Deletes the directory and what is in it. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_abandoned(parent: Path) -> None:
    """Deletes the directories of servers of this user that ended without doing so.

    Args:
        parent: where servers make their directories; other files there are left alone.
    """
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, in use, or gone meanwhile
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                log.info("Removed %s, left by a server that was killed.", path)
            finally:
                os.close(descriptor)
