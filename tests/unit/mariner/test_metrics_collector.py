"""Commands that measure the machine: what they are given, and what is made of what they print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mariner.metrics import collect

pytestmark = pytest.mark.slow  # each starts an interpreter

LINE = "CPUUtilization.Percent:5.0|#Level:Host|#hostname:box,1717105307"

Write = Callable[[str], str]


@pytest.fixture
def script(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        (tmp_path / "script.py").write_text(text)
        return str(tmp_path / "script.py")

    return write


async def run(command: str, timeout: float = 60.0) -> list[tuple[str, tuple[str, ...], float]]:
    return await collect(command, python=sys.executable, pids=[11, 12], timeout=timeout)


async def test_metrics_are_read_up_to_the_empty_line(script: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert await run(script(f"print('{LINE}\\n\\n123:456')")) == [("CPUUtilization", ("Host", "box"), 5.0)]
    assert caplog.messages == []


async def test_the_command_gets_its_arguments_and_the_processes_of_the_workers(script: Write) -> None:
    text = "import sys\nprint(f'A.b:{sys.argv[2]}|#Pids:{input().replace(chr(44), chr(43))}|#hostname:box,1')"
    assert await run(f"{script(text)} --gpu 2") == [("A", ("11+12", "box"), 2.0)]


async def test_it_runs_where_the_package_of_the_workers_lies() -> None:
    rows = await run("ts/metrics/metric_collector.py")
    assert "MemoryUsed" in [name for name, _, _ in rows]


async def test_a_line_that_is_no_metric_is_reported_and_the_others_count(
    script: Write, caplog: pytest.LogCaptureFixture
) -> None:
    assert await run(script(f"print('hello'); print('{LINE}')")) == [("CPUUtilization", ("Host", "box"), 5.0)]
    assert caplog.messages == ["Parse metrics failed: hello"]


async def test_a_command_that_fails_says_why(script: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert await run(script("import sys; sys.exit('no sensor')")) == []
    assert caplog.messages[0] == "system_metrics_cmd: no sensor"
    assert caplog.messages[1].startswith("system_metrics_cmd ended with exit code 1: ")


async def test_a_command_that_hangs_is_ended(script: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert await run(script("import signal; signal.pause()"), timeout=0.3) == []
    assert "took more than 0.3 s and was ended" in caplog.messages[0]
