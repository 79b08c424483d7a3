"""The machine: processors this container may use, accelerators and who gets which, and how busy everything is.

Nothing here imports a framework; accelerators are found by their vendors' command line tools. What those print is
read by pure functions, so that tests need no hardware.
"""

from __future__ import annotations

import csv
import importlib
import logging
import math
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import psutil

from mariner.control_groups import CGROUPS, MEMBERSHIP, control_groups, read_text

__all__ = [
    "Accelerators",
    "CpuMeter",
    "DeviceAssigner",
    "Reading",
    "Vendor",
    "cpu_quota",
    "each_gpu",
    "read_gpu_usage",
    "read_system",
    "threads_per_worker",
]

logger = logging.getLogger(__name__)

# -- processors ------------------------------------------------------------------------------------------------------


def cpu_quota(*, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP, cpus: int | None = None) -> float:
    """Processors this process may keep busy: those it may run on, less what its control group takes away.

    Args:
        cgroups: where control groups are mounted.
        membership: the file that names this process's groups.
        cpus: processors it may run on; asked from the system by default.
    """
    if cpus is None:
        cpus = _usable_cpus()
    limits = [limit for _, limit in _cpu_limits(cgroups, membership)]
    return min([float(cpus), *limits])


def threads_per_worker(workers: int, quota: float | None = None) -> int:
    """Threads each of so many workers can use without taking time from the others; at least one."""
    if quota is None:
        quota = cpu_quota()
    return max(1, int(quota / max(1, workers)))


def _usable_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _cpu_limits(cgroups: Path, membership: Path) -> Iterator[tuple[Path, float]]:
    """Control groups around this process that limit processor time, and to how many processors, innermost first."""
    for group, root in control_groups("cpu", cgroups, membership):
        for place in (group, *group.parents):
            limit = _parse_quota(
                read_text(place / "cpu.max")
                or f"{read_text(place / 'cpu.cfs_quota_us')} {read_text(place / 'cpu.cfs_period_us')}"
            )
            if limit is not None:
                yield place, limit
            if place == root:
                break


def _parse_quota(text: str) -> float | None:
    """Processors granted by ``QUOTA PERIOD`` in microseconds; None if ``max``, -1 or unreadable."""
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


class CpuMeter:
    """Share of the available processor time in use, in percent, since the previous reading.

    In a container with a limit that is the container's use of its limit; elsewhere the machine's use of its processors.
    """

    def __init__(
        self,
        *,
        cgroups: Path = CGROUPS,
        membership: Path = MEMBERSHIP,
        cpus: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        limits = _cpu_limits(cgroups, membership)
        self._group: Path | None
        self._group, self._cpus = min(limits, key=lambda pair: pair[1], default=(None, math.inf))
        if self._cpus >= (cpus or _usable_cpus()) or self._used_by_group() is None:
            self._group, self._cpus = None, float(psutil.cpu_count() or 1)
        self._previous = (clock(), self._used())

    def percent(self) -> float:
        """The share now. Calls may come from different threads, which psutil.cpu_percent would count apart."""
        (before, used_before), now, used = self._previous, self._clock(), self._used()
        self._previous = (now, used)
        share = (used - used_before) / max(now - before, 1e-3) / self._cpus
        return round(100.0 * min(1.0, max(0.0, share)), 1)

    def _used(self) -> float:
        """Processor seconds the limited group, or else the machine, has used."""
        if self._group is not None:
            return self._used_by_group() or 0.0
        times = psutil.cpu_times()
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        return float(sum(getattr(times, kind, 0.0) for kind in kinds))

    def _used_by_group(self) -> float | None:
        if self._group is None:
            return None
        if match := re.search(r"^usage_usec (\d+)", read_text(self._group / "cpu.stat"), re.MULTILINE):
            return int(match[1]) / 1e6
        nanoseconds = read_text(self._group / "cpuacct.usage")
        return int(nanoseconds) / 1e9 if nanoseconds.isdigit() else None


# -- accelerators ----------------------------------------------------------------------------------------------------


class Vendor(Enum):
    """Makers of accelerators, in the order they are looked for."""

    AMD = "amd"
    NVIDIA = "nvidia"
    INTEL = "intel"
    APPLE = "apple"


@dataclass(frozen=True, slots=True)
class _Probe:
    """How the devices of a vendor are found."""

    vendor: Vendor
    command: tuple[str, ...]
    visible: str  # the variable that restricts what a process sees; "" if there is none
    parse: Callable[[str], list[tuple[str, ...]]]  # output to the names of each device, the index first


def _parse_rocm_smi(output: str) -> list[tuple[str, ...]]:
    return [(index,) for index in dict.fromkeys(re.findall(r"(?:\bcard|GPU\[)(\d+)", output))]


def _parse_nvidia_smi(output: str) -> list[tuple[str, ...]]:
    """``GPU 0: NAME (UUID: GPU-…)``; below it the MIG slices, each another name that leads to this GPU."""
    devices: list[list[str]] = []
    for line in output.splitlines():
        if match := re.match(r"GPU (\d+):.*?(?:\(UUID: (\S+)\))?$", line.rstrip()):
            devices.append([name for name in match.groups() if name])
        elif devices and (match := re.match(r"\s+MIG .*\(UUID: (\S+)\)", line)):
            devices[-1].append(match[1])
    return [tuple(device) for device in devices]


def _parse_xpu_smi(output: str) -> list[tuple[str, ...]]:
    rows = [row[0].strip() for row in csv.reader(output.splitlines()) if row]
    return [(row,) for row in rows if row.isdigit()]


def _parse_system_profiler(output: str) -> list[tuple[str, ...]]:
    return [("0",)] if re.search(r"Chipset Model: Apple", output) else []


_PROBES = (
    _Probe(Vendor.AMD, ("rocm-smi", "--showid", "--json"), "HIP_VISIBLE_DEVICES", _parse_rocm_smi),
    _Probe(Vendor.NVIDIA, ("nvidia-smi", "-L"), "CUDA_VISIBLE_DEVICES", _parse_nvidia_smi),
    _Probe(Vendor.INTEL, ("xpu-smi", "discovery", "--dump", "1"), "XPU_VISIBLE_DEVICES", _parse_xpu_smi),
    _Probe(
        Vendor.APPLE,
        ("system_profiler", "-detailLevel", "mini", "SPDisplaysDataType"),
        "",
        _parse_system_profiler,
    ),
)
_PROBE_TIMEOUT = 30.0  # seconds; nvidia-smi takes ten where it has to initialise eight idle GPUs first

Run = Callable[[Sequence[str], Mapping[str, str]], str | None]


def _run(command: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """What a command found on the PATH prints; None if there is no such command.

    Raises:
        OSError: it cannot be started.
        subprocess.SubprocessError: it failed or took too long.
    """
    program = shutil.which(command[0], path=environ.get("PATH", os.defpath))
    if program is None:
        return None
    done = subprocess.run(  # noqa: S603 - the vendor's tool, found on the PATH, with fixed arguments
        [program, *command[1:]],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        timeout=_PROBE_TIMEOUT,
        env=dict(environ),
    )
    return done.stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Accelerators:
    """The devices workers may use; the position in ``ids`` is the logical id handlers see.

    Attributes:
        vendor: who made them; None if there are none.
        ids: the vendor's index or UUID of each, as its visible-devices variable takes it.
    """

    vendor: Vendor | None = None
    ids: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.ids)

    @property
    def visible_variable(self) -> str:
        """The environment variable that shows a process some of them only; empty if there is none."""
        return next((probe.visible for probe in _PROBES if probe.vendor is self.vendor), "")

    @classmethod
    def detect(cls, environ: Mapping[str, str], number_of_gpu: int | None = None, *, run: Run = _run) -> Accelerators:
        """Looks for devices; whatever goes wrong is logged and means one kind of device less.

        Blocks for as long as the vendor's tool takes.

        Args:
            environ: for the PATH and the visible-devices variables.
            number_of_gpu: at most so many; None for all, 0 for none without looking.
            run: runs a command: its output, None if it does not exist.
        """
        if number_of_gpu is not None and number_of_gpu <= 0:
            return cls()
        for probe in _PROBES:
            try:
                output = run(probe.command, environ)
            except (OSError, subprocess.SubprocessError) as error:
                logger.warning("%s found no devices, its accelerators are not used: %s", probe.command[0], error)
                continue
            if output is None:
                continue
            devices = probe.parse(output)
            if not devices:
                logger.warning("%s is installed but lists no devices.", probe.command[0])
                continue
            ids = _visible(devices, environ.get(probe.visible) if probe.visible else None, probe.visible)
            return cls(probe.vendor, ids[:number_of_gpu]) if ids else cls()
        return cls()


def _visible(devices: Sequence[Sequence[str]], setting: str | None, variable: str) -> tuple[str, ...]:
    """The devices a visible-devices variable leaves, in its order.

    As the drivers do, the list ends at the first entry that is no device (``-1`` hides everything that way), so that
    the server counts what a framework will see. UUIDs may be cut short.
    """
    if setting is None:
        return tuple(device[0] for device in devices)
    indices = {device[0] for device in devices}
    names = [name for device in devices for name in device[1:]]
    ids: list[str] = []
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        if entry not in indices and not _is_name(entry, names):
            if entry != "-1":
                logger.warning(
                    "%s=%s: %s is no device here, so it and what follows are not used.", variable, setting, entry
                )
            break
        if entry in ids:
            logger.warning("%s=%s names %s twice; it counts once.", variable, setting, entry)
        else:
            ids.append(entry)
    return tuple(ids)


def _is_name(entry: str, names: Sequence[str]) -> bool:
    kind = entry[:4]
    if kind not in {"GPU-", "MIG-"}:
        return False
    # A tool that lists no names of this kind cannot deny one either; a wrong one then fails in the worker, loudly.
    known = [name for name in names if name.startswith(kind)]
    return not known or any(name.startswith(entry) for name in known)


class DeviceAssigner:
    """Gives each worker a device: the one with the fewest workers, in turn where several have.

    While nothing is released that is a round robin from 0. A worker that restarts keeps its device.

    Args:
        count: devices there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: Counter[int] = Counter()  # of all models on each device
        self._own: dict[Hashable, Counter[int]] = {}  # of each model that names its devices

    def usable(self, device_ids: Sequence[int] | None = None) -> tuple[int, ...]:
        """The devices a model may use: those its ``deviceIds`` name, or all if one of them does not exist."""
        for device in device_ids or ():
            if not 0 <= device < self.count:
                logger.warning("Invalid deviceId:%s, ignore deviceIds list", device)
                break
        return self._choice(device_ids) or tuple(range(self.count))

    def assign(self, model: Hashable, device_ids: Sequence[int] | None = None) -> int | None:
        """A device for a new worker of a model; None if there is none.

        Args:
            model: what identifies the version.
            device_ids: its ``deviceIds``; it takes its turns over them regardless of other models.
        """
        choice = self._choice(device_ids)
        turns = self._own.setdefault(model, Counter()) if choice else self._workers
        device = _least_used(choice or range(self.count), turns)
        if device is None:
            return None
        self._workers[device] += 1
        if turns is not self._workers:
            turns[device] += 1
        return device

    def foresee(self, model: Hashable, device_ids: Sequence[int] | None, count: int) -> list[int | None]:
        """The devices that the next new workers of a model would get."""
        choice = self._choice(device_ids)
        turns = Counter(self._own.get(model, Counter()) if choice else self._workers)
        devices = []
        for _ in range(count):
            device = _least_used(choice or range(self.count), turns)
            devices.append(device)
            if device is not None:
                turns[device] += 1
        return devices

    def release(self, model: Hashable, device: int | None) -> None:
        """A worker is gone for good."""
        if device is None:
            return
        self._workers[device] -= 1
        own = self._own.get(model)
        if own is not None:
            own[device] -= 1
            if not +own:
                del self._own[model]

    def _choice(self, device_ids: Sequence[int] | None) -> tuple[int, ...]:
        """The devices a model names, if all of them exist."""
        chosen = tuple(dict.fromkeys(device_ids or ()))
        return chosen if all(0 <= device < self.count for device in chosen) else ()


def _least_used(devices: Sequence[int], workers: Mapping[int, int]) -> int | None:
    return min(devices, key=lambda device: workers[device], default=None)


# -- how busy it is --------------------------------------------------------------------------------------------------

Reading = tuple[str, tuple[str, ...], float]  # metric, labels between Level and Hostname, value


def read_system(*, cpu_percent: Callable[[], float], gpus: Sequence[str] = ()) -> list[Reading]:
    """Processor, memory, disk and GPUs now: name, labels between ``Level`` and ``Hostname``, value.

    Touches no state, so it may run in a thread: asking the GPU driver takes many milliseconds.

    Args:
        cpu_percent: processor time in use since its previous call, such as :meth:`CpuMeter.percent`.
        gpus: index or UUID of each NVIDIA GPU, in the order of their logical ids.
    """
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return [
        *_read_gpus(gpus),
        ("CPUUtilization", (), cpu_percent()),
        ("DiskAvailable", (), disk.free / 2**30),
        ("DiskUsage", (), disk.used / 2**30),
        ("DiskUtilization", (), disk.percent),
        ("MemoryAvailable", (), memory.available / 2**20),
        ("MemoryUsed", (), memory.used / 2**20),
        ("MemoryUtilization", (), memory.percent),
    ]


def read_gpu_usage(gpus: Sequence[str]) -> dict[int, str]:
    """How busy each NVIDIA GPU is, in the words of TorchServe's describe call; those that cannot be asked are left out.

    Args:
        gpus: as for :func:`read_system`; the keys are positions in it.
    """
    readings: dict[int, dict[str, float]] = {}
    for name, (device,), value in _read_gpus(gpus):
        readings.setdefault(int(device), {})[name] = value
    return {
        device: f"gpuId::{device} utilization.gpu::{values['GPUUtilization']:.0f} % "
        f"utilization.memory::{values['GPUMemoryUtilization']:.0f} % memory.used::{values['GPUMemoryUsed']:.0f} MiB"
        for device, values in readings.items()
        if len(values) == 3
    }


def _read_gpus(gpus: Sequence[str]) -> Iterator[Reading]:
    for position, nvml, handle in each_gpu(gpus):
        device = (str(position),)
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            yield "GPUMemoryUsed", device, memory.used / 2**20
            rates = nvml.nvmlDeviceGetUtilizationRates(handle)  # a MIG slice has none
            yield "GPUMemoryUtilization", device, rates.memory
            yield "GPUUtilization", device, rates.gpu
        except nvml.NVMLError as error:
            logger.debug("No metrics of GPU %s: %s", gpus[position], error)


def each_gpu(gpus: Sequence[str]) -> Iterator[tuple[int, Any, Any]]:
    """Position, NVML and NVML's handle of each NVIDIA GPU that it knows, while it is open.

    Args:
        gpus: as for :func:`read_system`.
    """
    if not gpus:
        return
    try:
        nvml = importlib.import_module("pynvml")  # not a dependency: only machines with GPUs have a use for it
    except ImportError:
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        logger.debug("NVML cannot be used: %s", error)
        return
    try:
        for position, gpu in enumerate(gpus):
            with suppress(nvml.NVMLError):  # it does not know this one
                by_index = gpu.isdigit()
                handle = nvml.nvmlDeviceGetHandleByIndex(int(gpu)) if by_index else nvml.nvmlDeviceGetHandleByUUID(gpu)
                yield position, nvml, handle
    finally:
        nvml.nvmlShutdown()
