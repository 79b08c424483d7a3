"""Memory: what a process has, and what this server may still have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from mariner.devices import control_groups

__all__ = ["available_memory", "resident_memory"]

_UNLIMITED = 1 << 62  # bytes; control groups of version 1 say a number of this size


def resident_memory(pid: int) -> int:
    """Bytes of memory that a process has, those it shares with others included; 0 if there is no such process."""
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid else 0
    except psutil.Error:
        return 0


def available_memory(*, cgroups: Path | None = None, membership: Path | None = None) -> int:
    """Bytes that new processes can have without swapping, or ending others: of the machine, less its control groups.

    Args:
        cgroups: where control groups are mounted, if not where they always are.
        membership: the file that names this process's groups, likewise.
    """
    places = {name: path for name, path in (("cgroups", cgroups), ("membership", membership)) if path is not None}
    rooms = [room for group, root in control_groups("memory", **places) for room in _rooms(group, root)]
    return max(0, min([int(psutil.virtual_memory().available), *rooms]))


def _rooms(group: Path, root: Path) -> Iterator[int]:
    """What a control group, and each around it, leaves. Its page cache gives way, so that does not count as used."""
    for place in (group, *group.parents):
        for limit_file, used_file, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(place / limit_file), _number(place / used_file)
            if limit is not None and used is not None and limit < _UNLIMITED:
                yield limit - used + _line(place / "memory.stat", cached)
        if place == root:
            break


def _number(path: Path) -> int | None:
    """The number in a file; None if there is none, as in "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _line(path: Path, name: str) -> int:
    """The number behind a name in a file of lines, else 0."""
    try:
        numbers = dict(line.split(" ", 1) for line in path.read_text(encoding="ascii").splitlines())
        return int(numbers.get(name, 0))
    except (OSError, ValueError):
        return 0
