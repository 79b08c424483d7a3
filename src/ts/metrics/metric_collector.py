"""The machine's load and the memory of processes on the standard output: what ``system_metrics_cmd`` may name.

The server measures by itself without this script; it is here for commands that name it, and to build others from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ts.metrics import system_metrics
from ts.metrics.process_memory_metric import check_process_mem_usage

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures once. The numbers of the processes are read from the standard input."""
    parser = argparse.ArgumentParser(description="Measures this machine once, for system_metrics_cmd.")
    parser.add_argument("--gpu", type=int, default=0, help="number of GPUs")
    given = parser.parse_args(arguments)
    system_metrics.collect_all(system_metrics, given.gpu)
    check_process_mem_usage(sys.stdin)


if __name__ == "__main__":
    main()
