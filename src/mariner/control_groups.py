"""The control groups that this process is in: what limits the processors and the memory of a container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["CGROUPS", "MEMBERSHIP", "control_groups", "read_text"]

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def control_groups(controller: str, cgroups: Path, membership: Path) -> Iterator[tuple[Path, Path]]:
    """This process's group and the root of its hierarchy, for version 2 and, where mounted, version 1.

    Args:
        controller: what the groups of version 1 are about, such as ``cpu``.
        cgroups: where control groups are mounted.
        membership: the file that names this process's groups.
    """
    for line in read_text(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for root in (cgroups / controllers, cgroups / controller) if controllers else (cgroups, cgroups / "unified"):
            if root.is_dir():
                # Inside a container the path may be the host's while the mount is the container's: then the root
                # itself is the group, and the missing directories below it say nothing.
                yield root / path.lstrip("/"), root
                break


def read_text(path: Path) -> str:
    """What a small file of the system says; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
