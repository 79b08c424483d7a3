"""The load of this machine, for scripts with a collector of their own; the server measures by itself.

Each function appends to the list ``system_metrics``. Needs psutil only when it measures.
"""

from __future__ import annotations

import inspect
import shutil
import subprocess
from types import ModuleType
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.legacy import Metric

__all__ = [
    "collect_all",
    "cpu_utilization",
    "dimension",
    "disk_available",
    "disk_used",
    "disk_utilization",
    "gpu_utilization",
    "memory_available",
    "memory_used",
    "memory_utilization",
    "system_metrics",
]

MIB = 1 << 20
GIB = 1 << 30
GPU_QUERY = "index,utilization.gpu,memory.used,memory.total"
GPU_TIMEOUT = 10.0  # seconds

# The names are what collectors import.
system_metrics: list[Metric] = []
dimension = [Dimension("Level", "Host")]


class _Add:
    """Takes one value. Collectors call every plain function of this module without arguments; this must be none."""

    def __call__(self, name: str, value: Any, unit: str, *more: Dimension) -> None:
        system_metrics.append(Metric(name, value, unit, [*dimension, *more]))


_add = _Add()


def cpu_utilization() -> None:
    """How busy the processors were since the last call, in percent."""
    _add("CPUUtilization", _psutil().cpu_percent(), "percent")


def memory_used() -> None:
    """Memory in use."""
    _add("MemoryUsed", _psutil().virtual_memory().used / MIB, "MB")


def memory_available() -> None:
    """Memory that programs can have."""
    _add("MemoryAvailable", _psutil().virtual_memory().available / MIB, "MB")


def memory_utilization() -> None:
    """Memory in use, in percent."""
    _add("MemoryUtilization", _psutil().virtual_memory().percent, "percent")


def disk_used() -> None:
    """Space in use on the file system of the root."""
    _add("DiskUsage", shutil.disk_usage("/").used / GIB, "GB")


def disk_utilization() -> None:
    """Space in use on the file system of the root, in percent."""
    usage = shutil.disk_usage("/")
    _add("DiskUtilization", round(100 * usage.used / (usage.used + usage.free), 1), "percent")


def disk_available() -> None:
    """Space that is free on the file system of the root."""
    _add("DiskAvailable", shutil.disk_usage("/").free / GIB, "GB")


def gpu_utilization(num_of_gpu: int) -> None:
    """Load and memory of each GPU; nothing where ``nvidia-smi`` cannot tell.

    Args:
        num_of_gpu: how many there are; 0 does not ask.
    """
    command = shutil.which("nvidia-smi") if num_of_gpu > 0 else None
    if command is None:
        return
    try:
        words = [command, f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=GPU_TIMEOUT)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return
    for row in done.stdout.splitlines()[:num_of_gpu]:
        index, load, used, total = (field.strip() for field in row.split(","))
        of_device = Dimension("device_id", index)
        if load.isdigit():  # some devices say [N/A]
            _add("GPUUtilization", int(load), "percent", of_device)
        if used.isdigit() and total.isdigit():
            _add("GPUMemoryUtilization", 100 * int(used) / int(total), "percent", of_device)
            _add("GPUMemoryUsed", int(used), "MB", of_device)


def collect_all(mod: ModuleType, num_of_gpu: int) -> None:
    """Calls every public function that a module defines, and writes all metrics to the standard output.

    An empty line ends them.

    Args:
        mod: this module, or one with functions of the same kind.
        num_of_gpu: for :func:`gpu_utilization`.
    """
    for name, function in inspect.getmembers(mod, inspect.isfunction):
        if name.startswith("_") or name == "collect_all" or function.__module__ != mod.__name__:
            continue
        if name == "gpu_utilization":
            function(num_of_gpu)
        else:
            function()
    for metric in system_metrics:
        print(metric)  # noqa: T201  # what collectors are for
    print()  # noqa: T201  # what follows is something else: the memory of processes


def _psutil() -> Any:
    import psutil  # noqa: PLC0415  # importing the metrics must not need it

    return psutil
