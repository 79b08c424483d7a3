"""A user's command that measures the machine in our place (``system_metrics_cmd``): runs it and reads its lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from mariner.metrics.exposition import LabelValues
from mariner.metrics.lines import parse_system_line

__all__ = ["collect"]

logger = logging.getLogger(__name__)

# Commands name scripts below the directory that holds the package `ts`, and run there: `ts/metrics/...`.
_HOME = Path(__file__).parents[2]


async def collect(
    command: str, *, python: str, pids: Iterable[int], timeout: float
) -> list[tuple[str, LabelValues, float]]:
    """Runs the command once: name, label values and value of each metric it prints.

    What goes wrong is logged, and costs no more than the metrics.

    Args:
        command: a script and its arguments, separated by blanks; the interpreter runs them.
        python: the interpreter.
        pids: processes of the workers; the command reads them from its standard input, in one line.
        timeout: seconds after which the command is ended.
    """
    process = await asyncio.create_subprocess_exec(
        python,
        *command.split(),
        cwd=_HOME,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        asked = ",".join(map(str, pids))
        async with asyncio.timeout(timeout):
            output, errors = await process.communicate(f"{asked}\n".encode())
    except TimeoutError:
        logger.error("system_metrics_cmd took more than %g s and was ended: %s", timeout, command)  # noqa: TRY400 - the text says it all
        return []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    for line in errors.decode(errors="replace").splitlines():
        logger.error("system_metrics_cmd: %s", line)
    if process.returncode:
        logger.error("system_metrics_cmd ended with exit code %d: %s", process.returncode, command)
    return _parse(output.decode(errors="replace"))


def _parse(output: str) -> list[tuple[str, LabelValues, float]]:
    """Metrics up to the first empty line; behind it is the memory of processes, which we read ourselves when asked."""
    rows = []
    for line in output.splitlines():
        if not line.strip():
            break
        if row := parse_system_line(line):
            rows.append(row)
        else:
            logger.error("Parse metrics failed: %s", line)
    return rows
