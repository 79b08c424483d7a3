"""What is left, what a worker takes, and how many more fit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mariner.memory import Footprint, GpuMemory, Room, available_memory, measure_room, read_gpu_memory, room_for

MIB = 1 << 20
GIB = 1 << 30


def left(folder: Path, membership: str, files: dict[str, str], machine: int = 64 * GIB) -> int:
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    (folder / "membership").write_text(membership)
    return available_memory(cgroups=root, membership=folder / "membership", machine=machine)


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    files = {"memory.max": str(4 * GIB), "memory.current": str(3 * GIB), "memory.stat": "anon 5\ninactive_file 1000"}
    assert left(tmp_path, "0::/\n", files) == GIB + 1000


def test_a_container_of_version_1_has_what_its_limit_leaves(tmp_path: Path) -> None:
    place = "memory/docker/1"
    files = {
        f"{place}/memory.limit_in_bytes": str(4 * GIB),
        f"{place}/memory.usage_in_bytes": str(3 * GIB),
        f"{place}/memory.stat": "inactive_file 7\ntotal_inactive_file 1000",
        "memory/memory.limit_in_bytes": "9223372036854771712",  # none
        "memory/memory.usage_in_bytes": str(60 * GIB),
    }
    assert left(tmp_path, "5:cpu:/\n4:memory:/docker/1\n", files) == GIB + 1000


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "max",
        "a/b/memory.current": "5",
        "a/memory.max": str(2 * GIB),
        "a/memory.current": str(GIB),
        "memory.max": str(8 * GIB),
        "memory.current": str(GIB),
    }
    assert left(tmp_path, "0::/a/b\n", files) == GIB


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    assert left(tmp_path, "0::/\n", {"memory.max": "max", "memory.current": "5"}, machine=9) == 9


def room(
    wanted: list[int | None],
    *,
    available: int,
    coming: list[int | None] | None = None,
    gpus: dict[int, GpuMemory] | None = None,
    gpu: int | None = None,
) -> Room:
    return room_for(
        wanted,
        ready=[Footprint(1, gpu), Footprint(2, gpu)],
        coming=coming or [],
        available=available,
        sizes={1: 80 * MIB, 2: 100 * MIB},
        gpus=gpus or {},
    )


def test_a_worker_needs_what_the_largest_sibling_has_and_a_fifth() -> None:
    assert room([None, None, None], available=360 * MIB) == Room(3)
    assert room([None, None, None], available=350 * MIB) == Room(
        2, "another worker needs about 120 MiB of memory and 110 MiB are left"
    )


def test_workers_that_load_will_need_theirs() -> None:
    assert room([None], available=350 * MIB, coming=[None, None]).workers == 0
    assert room([None], available=360 * MIB, coming=[None, None]).workers == 1


def test_what_siblings_need_is_unknown_where_none_is_ready() -> None:
    assert room_for([None], ready=[], coming=[], available=0, sizes={}, gpus={}) == Room(1)


def test_each_gpu_has_its_own_room() -> None:
    gpus = {0: GpuMemory(5 * GIB, 3 * GIB, {1: 2 * GIB, 2: 3 * GIB}), 1: GpuMemory(3 * GIB, 0)}
    assert room([0, 1, 0], available=GIB, gpus=gpus, gpu=0) == Room(
        1, "another worker needs about 3686 MiB on GPU 1 and 3072 MiB are left there"
    )
    assert room([0], available=GIB, coming=[0], gpus=gpus, gpu=0).workers == 0


def test_where_the_driver_does_not_name_processes_a_worker_has_its_share_of_what_is_used() -> None:
    gpus = {0: GpuMemory(free=4 * GIB, used=8 * GIB, by_pid={77777: 8 * GIB})}
    assert room([0], available=GIB, gpus=gpus, gpu=0).workers == 0  # 4.8 GiB each
    gpus = {0: GpuMemory(free=5 * GIB, used=8 * GIB)}
    assert room([0], available=GIB, gpus=gpus, gpu=0).workers == 1


def test_gpus_are_asked_by_index_and_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    class NvmlError(Exception):
        pass

    def processes(handle: str) -> list[SimpleNamespace]:
        if handle == "MIG-1":
            raise NvmlError
        return [SimpleNamespace(pid=5, usedGpuMemory=7), SimpleNamespace(pid=6, usedGpuMemory=None)]

    def unknown(uuid: str) -> str:
        if uuid == "GPU-away":
            raise NvmlError
        return uuid

    nvml = ModuleType("pynvml")
    nvml.__dict__.update(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"GPU-{index}",
        nvmlDeviceGetHandleByUUID=unknown,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(free=30, used=10),
        nvmlDeviceGetComputeRunningProcesses=processes,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert read_gpu_memory(["2", "GPU-away", "MIG-1"]) == {0: GpuMemory(30, 10, {5: 7, 6: 0}), 2: GpuMemory(30, 10)}


def test_this_machine_can_be_measured() -> None:
    ready = [Footprint(os.getpid()), Footprint(2**22 + 1)]  # the second is gone
    answer = measure_room([None] * 10**6, ready=ready, coming=[], gpus=[])
    assert 0 <= answer.workers < 10**6
    assert "of memory and" in answer.reason
