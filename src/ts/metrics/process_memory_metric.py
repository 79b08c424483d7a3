"""Memory and processor time of processes, for scripts with a collector of their own."""

from __future__ import annotations

import importlib
from typing import IO, Any

__all__ = ["check_process_mem_usage", "get_cpu_usage"]


def get_cpu_usage(pid: str | int) -> Any:
    """The resident memory of a process, in bytes; 0 if there is no such process, or if it is somebody else's.

    The name is older than what it does.

    Args:
        pid: its number.
    """
    psutil = importlib.import_module("psutil")  # importing the metrics must not need it
    try:
        return psutil.Process(int(pid)).memory_info().rss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def check_process_mem_usage(stdin: IO[str]) -> None:
    """Writes ``pid:bytes`` for each process to the standard output.

    Args:
        stdin: has the numbers of the processes in one line, separated by commas.
    """
    for pid in stdin.readline().strip().split(","):
        if pid.strip():
            print(f"{pid.strip()}:{get_cpu_usage(pid)}")  # noqa: T201  # what collectors are for
