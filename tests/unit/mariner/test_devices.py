from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mariner.devices import (
    Accelerators,
    CpuMeter,
    DeviceAssigner,
    Vendor,
    cpu_quota,
    read_gpu_usage,
    read_system,
    threads_per_worker,
)

NVIDIA = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-11111111-0000-0000-0000-000000000000)
  MIG 2g.10gb     Device  1: (UUID: MIG-22222222-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb2222-0000-0000-0000-000000000000)
GPU 2: Tesla T4 (UUID: GPU-cccc3333-0000-0000-0000-000000000000)
"""


class Tools:
    """Vendors' tools and what they print; an error is raised."""

    def __init__(self, **outputs: str | Exception) -> None:
        self.outputs = {name.replace("_", "-"): output for name, output in outputs.items()}
        self.ran: list[str] = []

    def __call__(self, command: Sequence[str], environ: Mapping[str, str]) -> str | None:
        output = self.outputs.get(command[0])
        if output is None or command[0] == "system_profiler":
            return None
        self.ran.append(command[0])
        if isinstance(output, Exception):
            raise output
        return output


def nvidia(visible: str | None = None, number_of_gpu: int | None = None) -> Accelerators:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return Accelerators.detect(environ, number_of_gpu, run=Tools(nvidia_smi=NVIDIA))


# -- processors ------------------------------------------------------------------------------------------------------


def groups(folder: Path, membership: str, files: Mapping[str, str]) -> dict[str, Path]:
    """A tree of control groups; the keyword arguments that point there."""
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    return {"cgroups": root, "membership": folder / "membership"}


def test_a_version_2_limit_is_the_quota(tmp_path: Path) -> None:
    places = groups(tmp_path, "0::/\n", {"cpu.max": "150000 100000\n"})
    assert cpu_quota(**places, cpus=8) == 1.5


def test_the_tightest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "400000 100000"}
    assert cpu_quota(**groups(tmp_path, "0::/a/b\n", files), cpus=8) == 2.0


def test_a_version_1_limit_is_the_quota(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"}
    membership = "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n"
    assert cpu_quota(**groups(tmp_path, membership, files), cpus=8) == 0.5


def test_a_path_of_the_host_leads_to_the_container_mount(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}
    assert cpu_quota(**groups(tmp_path, "1:cpu,cpuacct:/docker/abc\n", files), cpus=8) == 3.0


@pytest.mark.parametrize("text", ["max 100000", "", "odd", "-1 100000", "100000 0"])
def test_without_a_limit_the_usable_processors_are_the_quota(tmp_path: Path, text: str) -> None:
    assert cpu_quota(**groups(tmp_path, "0::/\n", {"cpu.max": text}), cpus=8) == 8.0


def test_a_limit_above_the_usable_processors_does_not_count(tmp_path: Path) -> None:
    assert cpu_quota(**groups(tmp_path, "0::/\n", {"cpu.max": "1600000 100000"}), cpus=4) == 4.0


def test_without_control_groups_the_affinity_is_the_quota(tmp_path: Path) -> None:
    quota = cpu_quota(cgroups=tmp_path / "none", membership=tmp_path / "none")
    assert quota == len(os.sched_getaffinity(0))


def test_this_machine_has_a_quota() -> None:
    assert 0 < cpu_quota() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("workers", "quota", "threads"), [(1, 8.0, 8), (3, 8.0, 2), (16, 8.0, 1), (1, 0.5, 1), (0, 4.0, 4), (1, 2.9, 2)]
)
def test_workers_share_the_quota(workers: int, quota: float, threads: int) -> None:
    assert threads_per_worker(workers, quota) == threads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_limited_container_measures_against_its_limit(tmp_path: Path) -> None:
    clock = Clock()
    places = groups(tmp_path, "0::/\n", {"cpu.max": "200000 100000", "cpu.stat": "usage_usec 1000000\nuser_usec 1"})
    meter = CpuMeter(**places, cpus=8, clock=clock)
    (places["cgroups"] / "cpu.stat").write_text("usage_usec 6000000\n")
    clock.now = 10.0
    assert meter.percent() == 25.0
    clock.now = 20.0
    assert meter.percent() == 0.0


def test_a_limited_container_of_version_1_measures_against_its_limit(tmp_path: Path) -> None:
    clock = Clock()
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000", "cpu/cpuacct.usage": "0"}
    places = groups(tmp_path, "1:cpu:/\n", files)
    meter = CpuMeter(**places, cpus=8, clock=clock)
    (places["cgroups"] / "cpu" / "cpuacct.usage").write_text("99000000000")
    clock.now = 10.0
    assert meter.percent() == 100.0


def test_a_machine_without_limits_measures_itself(tmp_path: Path) -> None:
    clock = Clock()
    meter = CpuMeter(**groups(tmp_path, "0::/\n", {"cpu.max": "max 100000"}), cpus=8, clock=clock)
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    clock.now = 0.1  # half of it was spent busy, by one processor at least
    assert 0.0 < meter.percent() <= 100.0


def test_a_group_that_does_not_say_what_it_used_leaves_the_machine(tmp_path: Path) -> None:
    clock = Clock()
    meter = CpuMeter(**groups(tmp_path, "0::/\n", {"cpu.max": "50000 100000"}), cpus=8, clock=clock)
    clock.now = 1e9
    assert meter.percent() == 0.0
    assert meter._group is None


# -- accelerators ----------------------------------------------------------------------------------------------------


def test_a_machine_without_tools_has_no_accelerators() -> None:
    assert Accelerators.detect({}, run=Tools()) == Accelerators()
    assert Accelerators().count == 0


def test_all_devices_are_used_by_default() -> None:
    assert nvidia() == Accelerators(Vendor.NVIDIA, ("0", "1", "2"))


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        ("2,0", ("2", "0")),
        (" 1 , 2 ", ("1", "2")),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1,-1,0", ("1",)),
        ("0,7,1", ("0",)),
        ("0,a", ("0",)),
        ("1,1,2", ("1", "2")),
        ("GPU-bbbb2222-0000-0000-0000-000000000000", ("GPU-bbbb2222-0000-0000-0000-000000000000",)),
        ("GPU-cccc,GPU-aaaa", ("GPU-cccc", "GPU-aaaa")),
        ("GPU-dddd", ()),
        ("MIG-22222222-0000-0000-0000-000000000000,1", ("MIG-22222222-0000-0000-0000-000000000000", "1")),
        ("MIG-33333333", ()),
        ("G", ()),
    ],
)
def test_the_visible_devices_are_those_the_driver_would_show(visible: str, ids: tuple[str, ...]) -> None:
    assert nvidia(visible).ids == ids


def test_a_slice_that_the_tool_does_not_list_is_believed() -> None:
    tools = Tools(nvidia_smi="GPU 0: NVIDIA H100 (UUID: GPU-aaaa)\n")
    environ = {"CUDA_VISIBLE_DEVICES": "MIG-1234"}
    assert Accelerators.detect(environ, run=tools).ids == ("MIG-1234",)


def test_an_unknown_device_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    nvidia("0,7")
    assert "CUDA_VISIBLE_DEVICES=0,7: 7 is no device here" in caplog.text


def test_hiding_all_devices_on_purpose_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    nvidia("-1")
    nvidia("")
    assert caplog.records == []


@pytest.mark.parametrize(("number_of_gpu", "count"), [(None, 3), (2, 2), (9, 3), (0, 0), (-1, 0)])
def test_the_number_of_gpus_can_be_lowered(number_of_gpu: int | None, count: int) -> None:
    assert nvidia(number_of_gpu=number_of_gpu).count == count


def test_no_tool_runs_when_gpus_are_turned_off() -> None:
    tools = Tools(nvidia_smi=NVIDIA)
    Accelerators.detect({}, 0, run=tools)
    assert tools.ran == []


@pytest.mark.parametrize(
    "error",
    [
        subprocess.CalledProcessError(9, "nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 30),
        PermissionError("not yours"),
    ],
)
def test_a_failing_tool_means_cpu_and_a_warning(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert Accelerators.detect({}, run=Tools(nvidia_smi=error)) == Accelerators()
    assert "nvidia-smi found no devices" in caplog.text


def test_a_tool_that_lists_nothing_means_cpu_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert Accelerators.detect({}, run=Tools(nvidia_smi="No devices found.\n")) == Accelerators()
    assert "nvidia-smi is installed but lists no devices" in caplog.text


def test_after_a_failing_tool_the_next_vendor_is_asked() -> None:
    tools = Tools(rocm_smi=subprocess.CalledProcessError(1, "rocm-smi"), nvidia_smi=NVIDIA)
    assert Accelerators.detect({}, run=tools).vendor is Vendor.NVIDIA
    assert tools.ran == ["rocm-smi", "nvidia-smi"]


@pytest.mark.parametrize(
    "output",
    [
        '{"card0": {"Device ID": "0x740f"}, "card1": {"Device ID": "0x740f"}}',
        "GPU[0]\t\t: Device ID: 0x740f\nGPU[0]\t\t: Device Rev: 0x02\nGPU[1]\t\t: Device ID: 0x740f\n",
    ],
)
def test_amd_devices_are_counted(output: str) -> None:
    found = Accelerators.detect({"HIP_VISIBLE_DEVICES": "1"}, run=Tools(rocm_smi=output))
    assert found == Accelerators(Vendor.AMD, ("1",))
    assert found.visible_variable == "HIP_VISIBLE_DEVICES"


def test_intel_devices_are_counted() -> None:
    found = Accelerators.detect({}, run=Tools(xpu_smi="Device ID\n0\n1\n"))
    assert found == Accelerators(Vendor.INTEL, ("0", "1"))


@pytest.mark.parametrize(
    ("output", "expected"),
    [("      Chipset Model: Apple M2\n", Accelerators(Vendor.APPLE, ("0",))), ("Chipset Model: Intel", Accelerators())],
)
def test_apple_has_one_device_or_none(output: str, expected: Accelerators) -> None:
    found = Accelerators.detect({}, run=lambda command, _: output if command[0] == "system_profiler" else None)
    assert found == expected
    assert found.visible_variable == ""


def write_tool(folder: Path, script: str) -> dict[str, str]:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return {"PATH": str(folder)}


def test_the_tool_is_found_on_the_given_path(tmp_path: Path) -> None:
    environ = write_tool(tmp_path, 'test "$1" = -L && echo "GPU 0: Fake (UUID: GPU-1)" && echo noise >&2')
    assert Accelerators.detect(environ) == Accelerators(Vendor.NVIDIA, ("0",))


def test_a_tool_that_exits_with_an_error_means_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environ = write_tool(tmp_path, 'echo "GPU 0: Fake (UUID: GPU-1)"; exit 9')
    assert Accelerators.detect(environ) == Accelerators()
    assert "exit status 9" in caplog.text


# -- assignment ------------------------------------------------------------------------------------------------------


def test_workers_go_round_all_devices_from_0() -> None:
    devices = DeviceAssigner(3)
    assert [devices.assign(model) for model in "aabbc"] == [0, 1, 2, 0, 1]


def test_without_devices_workers_get_none() -> None:
    devices = DeviceAssigner(0)
    assert devices.assign("m") is None
    assert devices.assign("m", [0]) is None
    devices.release("m", None)


def test_a_model_goes_round_its_own_devices_from_the_first() -> None:
    devices = DeviceAssigner(4)
    assert [devices.assign("m", [3, 1]) for _ in range(4)] == [3, 1, 3, 1]
    assert devices.assign("other", [1, 3]) == 1


def test_workers_avoid_devices_that_others_chose() -> None:
    devices = DeviceAssigner(2)
    devices.assign("m", [0])
    assert devices.assign("other") == 1


def test_a_list_with_an_unknown_device_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    devices = DeviceAssigner(2)
    assert devices.usable([0, 9]) == (0, 1)
    assert caplog.messages == ["Invalid deviceId:9, ignore deviceIds list"]
    assert [devices.assign("m", [1, 9]) for _ in range(3)] == [0, 1, 0]


def test_the_usable_devices_are_those_named() -> None:
    assert DeviceAssigner(4).usable([3, 1, 3]) == (3, 1)
    assert DeviceAssigner(2).usable() == (0, 1)
    assert DeviceAssigner(2).usable([]) == (0, 1)


def test_a_freed_device_is_next() -> None:
    devices = DeviceAssigner(3)
    for _ in range(3):
        devices.assign("m")
    devices.release("m", 1)
    assert [devices.assign("m") for _ in range(2)] == [1, 0]


def test_what_the_next_workers_would_get_is_foreseen_and_not_given() -> None:
    devices = DeviceAssigner(3)
    devices.assign("a")
    for _ in range(2):
        assert devices.foresee("a", None, 4) == [1, 2, 0, 1]
        assert devices.foresee("b", [2, 1], 3) == [2, 1, 2]
    assert DeviceAssigner(0).foresee("a", None, 2) == [None, None]


def test_a_freed_device_of_a_list_is_next() -> None:
    devices = DeviceAssigner(3)
    for _ in range(2):
        devices.assign("m", [2, 1])
    devices.release("m", 1)
    assert devices.assign("m", [2, 1]) == 1


def test_a_model_that_is_gone_leaves_nothing_behind() -> None:
    devices = DeviceAssigner(2)
    devices.release("m", devices.assign("m", [1]))
    assert devices._own == {}
    assert devices.assign("m", [1, 0]) == 1


# -- how busy it is --------------------------------------------------------------------------------------------------


def test_the_machine_is_read_without_gpus() -> None:
    readings = {name: value for name, _, value in read_system(cpu_percent=lambda: 12.5)}
    assert list(readings) == [
        "CPUUtilization",
        "DiskAvailable",
        "DiskUsage",
        "DiskUtilization",
        "MemoryAvailable",
        "MemoryUsed",
        "MemoryUtilization",
    ]
    assert readings["CPUUtilization"] == 12.5
    assert all(readings[name] > 0 for name in ("DiskAvailable", "MemoryAvailable", "MemoryUsed"))


class NvmlError(Exception):
    pass


def fake_nvml(*, driver: bool = True) -> ModuleType:
    """The calls of NVML that are used, with a whole GPU and a slice, which has no rates."""

    def start() -> None:
        if not driver:
            raise NvmlError

    def rates(handle: str) -> SimpleNamespace:
        if handle.startswith("MIG-"):
            raise NvmlError
        return SimpleNamespace(gpu=80, memory=30)

    module = ModuleType("pynvml")
    module.__dict__.update(
        NVMLError=NvmlError,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"GPU-{index}",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=3 * 2**20),
        nvmlDeviceGetUtilizationRates=rates,
    )
    return module


def test_gpus_are_read_by_index_and_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    readings = [
        reading for reading in read_system(cpu_percent=float, gpus=["2", "MIG-1"]) if reading[0].startswith("GPU")
    ]
    assert readings == [
        ("GPUMemoryUsed", ("0",), 3.0),
        ("GPUMemoryUtilization", ("0",), 30),
        ("GPUUtilization", ("0",), 80),
        ("GPUMemoryUsed", ("1",), 3.0),
    ]


def test_usage_is_told_of_gpus_that_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    text = "utilization.gpu::80 % utilization.memory::30 % memory.used::3 MiB"
    assert read_gpu_usage(["2", "MIG-1", "3"]) == {0: f"gpuId::0 {text}", 2: f"gpuId::2 {text}"}


@pytest.mark.parametrize("module", [None, fake_nvml(driver=False)])
def test_a_machine_that_cannot_ask_its_gpus_reads_the_rest(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert len(read_system(cpu_percent=float, gpus=["0"])) == 7
    assert read_gpu_usage(["0"]) == {}
