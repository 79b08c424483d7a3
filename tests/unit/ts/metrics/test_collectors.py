from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from ts.metrics import system_metrics
from ts.metrics.process_memory_metric import check_process_mem_usage, get_cpu_usage


@pytest.fixture(autouse=True)
def own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "system_metrics", [])


def put_nvidia_smi(path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    command = path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")


def test_all_metrics_are_measured_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    system_metrics.collect_all(system_metrics, 0)
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == ""  # what other programs take for the end
    assert {line.partition(".")[0] for line in lines} == {
        *("CPUUtilization", "MemoryUsed", "MemoryAvailable", "MemoryUtilization"),
        *("DiskUsage", "DiskAvailable", "DiskUtilization"),
    }
    assert all("|#Level:Host|#hostname:" in line for line in lines)


def test_a_collector_of_ones_own_is_asked_too(capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("own_collector")
    code = "from ts.metrics.system_metrics import *\ndef answer(): print('forty-two')\ndef _private(): print('no')"
    exec(code, module.__dict__)
    system_metrics.collect_all(module, 0)
    assert capsys.readouterr().out.splitlines()[0] == "forty-two"


def test_every_plain_function_does_without_arguments_for_collectors_that_call_them_all() -> None:
    for name in dir(system_metrics):
        function = getattr(system_metrics, name)
        if isinstance(function, FunctionType) and function.__name__ not in {"collect_all", "gpu_utilization"}:
            function()
    assert len(system_metrics.system_metrics) == 7


def test_the_script_measures_and_then_tells_the_memory_of_processes(tmp_path: Path) -> None:
    place = Path(system_metrics.__file__).parents[2]
    words = [sys.executable, "ts/metrics/metric_collector.py", "--gpu", "0"]
    done = subprocess.run(words, cwd=place, input=f"{os.getpid()}\n", capture_output=True, text=True, check=True)
    metrics, _, memory = done.stdout.partition("\n\n")
    assert "CPUUtilization.Percent:" in metrics
    assert memory.startswith(f"{os.getpid()}:")


def test_each_gpu_has_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, monkeypatch, "0, 50, 1000, 4000\n1, [N/A], 1, 100\n2, 1, 1, 1")
    system_metrics.gpu_utilization(2)
    assert [(m.name, m.value, str(m.dimensions[-1])) for m in system_metrics.system_metrics] == [
        ("GPUUtilization", 50, "device_id:0"),
        ("GPUMemoryUtilization", 25, "device_id:0"),
        ("GPUMemoryUsed", 1000, "device_id:0"),
        ("GPUMemoryUtilization", 1, "device_id:1"),
        ("GPUMemoryUsed", 1, "device_id:1"),
    ]


def test_a_machine_without_gpus_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    system_metrics.gpu_utilization(0)
    system_metrics.gpu_utilization(1)
    assert system_metrics.system_metrics == []


def test_the_memory_of_processes_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    check_process_mem_usage(io.StringIO(f"{os.getpid()}, 999999999\n"))
    own, gone = capsys.readouterr().out.splitlines()
    assert int(own.partition(":")[2]) > 1 << 20
    assert gone == "999999999:0"


def test_a_process_that_is_gone_uses_nothing() -> None:
    assert get_cpu_usage("999999999") == 0
