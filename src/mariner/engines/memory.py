"""How much memory processes have, once a second, and whether the kernel killed one for lack of it."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import deque
from pathlib import Path

__all__ = ["MemoryWatch", "oom_kill_file"]

PERIOD = 1.0  # seconds between samples
KEPT = 60  # samples of each process
RECENT = 5  # samples of the number of kills: a large process takes a while to go after it was killed
_PAGE = os.sysconf("SC_PAGE_SIZE")
_KILLS = re.compile(r"^oom_kill (\d+)", re.MULTILINE)


def oom_kill_file(
    cgroups: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
    machine: Path = Path("/proc/vmstat"),
) -> Path | None:
    """The file in which the kernel counts kills for lack of memory, of this process's control group if it has one.

    Args:
        cgroups: where control groups are mounted.
        membership: the file that names this process's groups.
        machine: where the kills of the whole machine are counted.

    Returns:
        ``memory.events`` of version 2, ``memory.oom_control`` of version 1, that of the machine, or None.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in sorted(lines, key=lambda line: ":memory:" not in line):  # where both are mounted, version 1 has it
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        root, name = (cgroups / "memory", "memory.oom_control") if controllers else (cgroups, "memory.events")
        # Inside a container the path may be the host's while the mount is the container's.
        for group in (root / path.lstrip("/"), root):
            if _read_kills(group / name) is not None:
                return group / name
    return machine if _read_kills(machine) is not None else None


def _read_kills(file: Path | None) -> int | None:
    try:
        found = file and _KILLS.search(file.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


class MemoryWatch:
    """Samples of the processes that it is told of, by one timer for all of them.

    Args:
        kill_file: where the kernel counts its kills; None if that cannot be told.
    """

    def __init__(self, kill_file: Path | None) -> None:
        self._kill_file = kill_file
        self._curves: dict[int, deque[tuple[float, int]]] = {}
        self._kills: deque[int] = deque(maxlen=RECENT)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, pid: int) -> None:
        """Watches a process."""
        self._curves[pid] = curve = deque[tuple[float, int]](maxlen=KEPT)
        if self._timer is not None:
            curve.append((time.monotonic(), _resident_bytes(pid)))
        else:
            self._kills.clear()
            self._sample()

    def remove(self, pid: int) -> tuple[tuple[float, int], ...]:
        """Forgets a process that has ended; its curve: seconds before now and resident bytes, oldest first."""
        now = time.monotonic()
        curve = self._curves.pop(pid, ())
        if not self._curves and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return tuple((now - at, size) for at, size in curve)

    def recent_kills(self) -> int | None:
        """Kills for lack of memory in the last seconds that nobody has asked about; None if they cannot be told."""
        now = _read_kills(self._kill_file)
        if now is None or not self._kills:
            return None
        kills = now - self._kills[0]
        if kills:  # each kill explains one death
            self._kills = deque((count + 1 for count in self._kills), maxlen=RECENT)
        return kills

    def _sample(self) -> None:
        now = time.monotonic()
        for pid, curve in self._curves.items():
            if size := _resident_bytes(pid):
                curve.append((now, size))
        if (kills := _read_kills(self._kill_file)) is not None:
            self._kills.append(kills)
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._sample)


def _resident_bytes(pid: int) -> int:
    """0 if there is no such process any more. Read directly: psutil asks for more, and this is once a second."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123  (the shortest way)
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0
