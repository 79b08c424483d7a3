"""Requests: a few checked ones from here, the load itself from wrk."""

from __future__ import annotations

import http.client
import json
import math
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from scenarios import Body

__all__ = ["Load", "WrongAnswer", "ask", "check_answers", "require_wrk", "run_wrk"]

CHECK_THREADS = 8  # at once, so that answers that go to the wrong client show

SCRIPT = """\
local body = assert(io.open({body}, "rb"))
wrk.method = "POST"
wrk.body = body:read("*a")
wrk.headers["Content-Type"] = {content_type}
body:close()

function done(summary, latency)
  local errors = summary.errors
  local format = '\\nRESULT {{"requests":%.0f,"seconds":%.6f,"p50_ms":%.4f,"p99_ms":%.4f,"bad":%.0f,"broken":%.0f}}\\n'
  io.write(string.format(format, summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


class WrongAnswer(Exception):
    """A server answered, but not what the handler says; its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw; ``cores`` is CPU time per second of the generator and of everybody together."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bad: int
    broken: int
    wrk_cores: float
    busy_cores: float


def require_wrk() -> str:
    """Path of wrk.

    Raises:
        SystemExit: if it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("wrk is not installed, and all load comes from it. On Debian or Ubuntu: apt-get install wrk")
    return found


def run_wrk(url: str, body: Path, content_type: str, connections: int, seconds: int) -> Load:
    """Send ``body`` over and over on ``connections`` connections from one wrk thread.

    Raises:
        RuntimeError: if wrk ends without a result.
    """
    script = body.with_suffix(".lua")
    script.write_text(SCRIPT.format(body=json.dumps(str(body)), content_type=json.dumps(content_type)))
    command = [require_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url]
    used, busy = _cpu_of_children(), _cpu_of_machine()
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    elapsed = time.monotonic() - begun
    wrk_cores = (_cpu_of_children() - used) / elapsed
    busy_cores = (_cpu_of_machine() - busy) / elapsed
    _, found, rest = done.stdout.partition("RESULT ")
    if not found:
        raise RuntimeError(f"wrk ended with status {done.returncode} and no result: {done.stdout}{done.stderr}")
    return Load(**json.loads(rest.splitlines()[0]), wrk_cores=wrk_cores, busy_cores=busy_cores)


def ask(url: str, body: bytes, content_type: str, timeout: float = 10.0) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body, status 0 if there was no answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.request("POST", parts.path, body, {"Content-Type": content_type})
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException) as problem:
        return 0, str(problem).encode()
    finally:
        connection.close()


def check_answers(url: str, samples: Sequence[Path], answers: Sequence[dict[str, Any]], body: Body) -> None:
    """Send every sample, several at once, and compare.

    Raises:
        WrongAnswer: with the first answer that is not the expected one.
    """
    with ThreadPoolExecutor(CHECK_THREADS) as threads:
        sent: Callable[[Path], tuple[int, bytes]] = lambda path: ask(url, path.read_bytes(), body.content_type)  # noqa: E731
        for path, expected, (status, got) in zip(samples, answers, threads.map(sent, samples), strict=True):
            if status != 200 or not _same(expected, got):
                raise WrongAnswer(f"{url} answered {path.name} with {status} {got[:200]!r}, expected {expected}")


def _same(expected: dict[str, Any], got: bytes) -> bool:
    try:
        answer = json.loads(got)
    except ValueError:
        return False
    return (
        isinstance(answer, dict)
        and answer.keys() == expected.keys()
        and all(math.isclose(answer[key], value, rel_tol=1e-3, abs_tol=1e-4) for key, value in expected.items())
    )


def _cpu_of_children() -> float:
    """CPU seconds of ended children: servers run on meanwhile, so a difference belongs to wrk."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_of_machine() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
