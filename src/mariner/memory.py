"""Memory: what is left on this machine or in this container, what a worker takes, and how many more would fit.

All but :func:`resident_memory` blocks for milliseconds: meant for threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from mariner.control_groups import CGROUPS, MEMBERSHIP, control_groups, read_text
from mariner.devices import each_gpu

__all__ = [
    "Footprint",
    "GpuMemory",
    "Room",
    "available_memory",
    "measure_room",
    "read_gpu_memory",
    "resident_memory",
    "room_for",
]

MARGIN = 1.2  # a worker takes this much of what its largest sibling does: it may grow as that one did, and further
UNLIMITED = 1 << 60  # bytes; version 1 writes a number of this size where there is no limit


class Footprint(NamedTuple):
    """A worker: its process, and the number of its GPU; None on the CPU."""

    pid: int
    gpu: int | None = None


class Room(NamedTuple):
    """How many more workers fit, of those that were asked for, and why no more."""

    workers: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Of one GPU, in bytes.

    Attributes:
        free: nobody has it.
        used: somebody has it.
        by_pid: what processes have; a container may see none, or numbers that are not its own.
    """

    free: int
    used: int
    by_pid: Mapping[int, int] = field(default_factory=dict)


# -- of the machine --------------------------------------------------------------------------------------------------


def available_memory(*, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP, machine: int | None = None) -> int:
    """Bytes that processes of this container can still have without others being pushed out.

    Args:
        cgroups: where control groups are mounted.
        membership: the file that names this process's groups.
        machine: what the machine has left; asked from the system by default.
    """
    if machine is None:
        machine = psutil.virtual_memory().available
    return min([machine, *_left_in_groups(cgroups, membership)])


def _left_in_groups(cgroups: Path, membership: Path) -> Iterator[int]:
    """What each group around this process has left below its limit; files that could be dropped count as left."""
    for group, root in control_groups("memory", cgroups, membership):
        for place in (group, *group.parents):
            limit = _number(place / "memory.max") or _number(place / "memory.limit_in_bytes")
            used = _number(place / "memory.current") or _number(place / "memory.usage_in_bytes")
            if limit is not None and limit < UNLIMITED and used is not None:
                yield max(0, limit - used + _droppable(place / "memory.stat"))
            if place == root:
                break


def _droppable(stat: Path) -> int:
    """Bytes of files that nobody has used for long, as Kubernetes counts; version 1 has a row for the groups below."""
    rows = dict(line.partition(" ")[::2] for line in read_text(stat).splitlines())
    return int(rows.get("total_inactive_file") or rows.get("inactive_file") or 0)


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text.isdigit() else None


def resident_memory(pid: int) -> int:
    """Bytes of memory that a process has, those it shares with others included; 0 if there is no such process."""
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid else 0
    except psutil.Error:
        return 0


def _process_memory(pid: int) -> int:
    """Bytes of a process and its children, its share of what it shares with others; 0 if it is gone."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            memory = each.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    except psutil.Error:
        pass  # what was counted until then is all that is known
    return total


# -- of GPUs ---------------------------------------------------------------------------------------------------------


def read_gpu_memory(gpus: Sequence[str]) -> dict[int, GpuMemory]:
    """The memory of each NVIDIA GPU by its position; those that cannot be asked are left out.

    Args:
        gpus: index or UUID of each.
    """
    found: dict[int, GpuMemory] = {}
    for position, nvml, handle in each_gpu(gpus):
        by_pid: dict[int, int] = {}
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found[position] = GpuMemory(memory.free, memory.used, by_pid)
            for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                by_pid[each.pid] = each.usedGpuMemory or 0  # None where the driver does not tell
    return found


# -- for another worker ----------------------------------------------------------------------------------------------


def measure_room(
    wanted: Sequence[int | None], *, ready: Sequence[Footprint], coming: Sequence[int | None], gpus: Sequence[str]
) -> Room:
    """What :func:`room_for` says of this machine as it is now.

    Args:
        wanted: as for :func:`room_for`, and the next two.
        ready: as above.
        coming: as above.
        gpus: index or UUID of each GPU.
    """
    return room_for(
        wanted,
        ready=ready,
        coming=coming,
        available=available_memory(),
        sizes={worker.pid: _process_memory(worker.pid) for worker in ready},
        gpus=read_gpu_memory(gpus),
    )


def room_for(
    wanted: Sequence[int | None],
    *,
    ready: Sequence[Footprint],
    coming: Sequence[int | None],
    available: int,
    sizes: Mapping[int, int],
    gpus: Mapping[int, GpuMemory],
) -> Room:
    """How many of the wanted workers fit. What is not known never speaks against one.

    Args:
        wanted: the GPU that each would get; None for the CPU.
        ready: workers of the same version, to judge by.
        coming: the GPUs of workers that load: what they will take is not to be had.
        available: bytes that are left.
        sizes: bytes of each ready worker, by process.
        gpus: the memory of each GPU.
    """
    need = MARGIN * max((sizes.get(worker.pid, 0) for worker in ready), default=0)
    left = available - need * len(coming)
    need_on_gpu = MARGIN * _largest_on_gpu(ready, gpus)
    free = {gpu: memory.free - need_on_gpu * coming.count(gpu) for gpu, memory in gpus.items()}
    for index, gpu in enumerate(wanted):
        left -= need
        if left < 0:
            return Room(index, f"another worker needs about {_mib(need)} of memory and {_mib(left + need)} are left")
        if gpu in free:
            free[gpu] -= need_on_gpu
            if free[gpu] < 0:
                left_there = _mib(free[gpu] + need_on_gpu)
                return Room(
                    index,
                    f"another worker needs about {_mib(need_on_gpu)} on GPU {gpu} and {left_there} are left there",
                )
    return Room(len(wanted))


def _largest_on_gpu(ready: Sequence[Footprint], gpus: Mapping[int, GpuMemory]) -> float:
    """What the largest worker has on its GPU; where NVML does not name our processes, its share of what is in use."""
    sizes = [gpus[gpu].by_pid.get(pid, 0) for pid, gpu in ready if gpu is not None and gpu in gpus]
    if any(sizes):
        return max(sizes)
    workers = Counter(worker.gpu for worker in ready)
    return max((memory.used / workers[gpu] for gpu, memory in gpus.items() if workers[gpu]), default=0.0)


def _mib(number: float) -> str:
    return f"{max(0.0, number) / 2**20:.0f} MiB"
