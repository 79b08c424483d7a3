"""One measurement each: load on a running server, the bare loop, the lifecycle of a server. Results are rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from archives import Prepared
from load import ask, check_answers, run_wrk
from peers import Peer, Running
from processes import processes_mapping
from scenarios import BARE

__all__ = ["Row", "Timing", "measure_bare_loop", "measure_lifecycle", "measure_load"]

SETTLE_LOAD_SECONDS = 1  # wrk knows whole seconds only
SETTLE_SECONDS = 3.0  # a server that has just started still frees memory
COLD_STARTS = 3  # per round: the first may find its files on the disk instead of in memory
RECOVER_SECONDS = 15.0  # TorchServe needs two; who needs longer has not recovered
RETRY_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Timing:
    """Whole seconds of load: measured, and before on a server that has just started."""

    seconds: int
    warm_up: int


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. Latencies, errors and CPU use belong to load only."""

    measure: str
    peer: str
    round: int
    value: float | None
    unit: str
    p50_ms: float | None = None
    p99_ms: float | None = None
    requests: int | None = None
    bad: int = 0
    broken: int = 0
    wrk_cores: float | None = None
    server_cores: float | None = None
    other_cores: float | None = None
    note: str = ""


def measure_load(peer: Peer, prepared: Prepared, directory: Path, round_: int, timing: Timing) -> Generator[Row]:
    """Start the peer once and warm it up, then for each number of connections: check, settle, measure."""
    workload = prepared.workload
    body, content_type = prepared.samples[-1], workload.body.content_type
    with peer.running(prepared, directory) as running:
        run_wrk(running.url, body, content_type, max(workload.connections), timing.warm_up)
        for connections in workload.connections:
            check_answers(running.url, prepared.samples, prepared.answers, workload.body)
            run_wrk(running.url, body, content_type, connections, SETTLE_LOAD_SECONDS)
            # Queues are first in, first out: this answer says that what the run before left behind is done.
            ask(running.url, body.read_bytes(), content_type, timeout=60)
            used = running.process.cpu_seconds()
            load = run_wrk(running.url, body, content_type, connections, timing.seconds)
            server_cores = (running.process.cpu_seconds() - used) / load.seconds
            yield Row(
                workload.measure(connections),
                peer.name,
                round_,
                (load.requests - load.bad) / load.seconds,
                "req/s",
                load.p50_ms,
                load.p99_ms,
                load.requests,
                load.bad,
                load.broken,
                load.wrk_cores,
                server_cores,
                max(0.0, load.busy_cores - load.wrk_cores - server_cores),
            )


def measure_bare_loop(prepared: Prepared, round_: int, seconds: int) -> Generator[Row]:
    """The handler in a plain loop, once per codec; the limit for every number of connections."""
    workload = prepared.workload
    for codec in workload.codecs:
        arguments = ("--batch", str(workload.batch_size), "--seconds", str(seconds), "--codec", codec)
        command = prepared.bare_loop("rate", *arguments)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found = json.loads(done.stdout)
        name = BARE if codec == "json" else f"{BARE} {codec}"
        rate = found["requests"] / found["seconds"]
        for connections in workload.connections:
            measure = workload.measure(connections)
            yield Row(measure, name, round_, rate, "req/s", found["p50_ms"], found["p99_ms"], found["requests"])


def measure_lifecycle(peer: Peer, prepared: Prepared, directory: Path, round_: int, wanted: set[str]) -> Generator[Row]:
    """Start a few times, then, with the last server: rest, and lose the worker."""
    starts = COLD_STARTS if "cold" in wanted else 1
    for attempt in range(1, starts):
        with peer.running(prepared, directory / str(attempt)) as running:
            yield Row("cold", peer.name, round_, running.start_seconds, "s")
    with peer.running(prepared, directory / str(starts)) as running:
        check_answers(running.url, prepared.samples, prepared.answers, prepared.workload.body)
        if "cold" in wanted:
            yield Row("cold", peer.name, round_, running.start_seconds, "s")
        if "memory" in wanted:
            time.sleep(SETTLE_SECONDS)
            others = processes_mapping("libtorch_cpu", running.process.tree())
            note = f"too low: {others} other processes map the same torch" if others else ""
            yield Row("memory", peer.name, round_, running.process.memory() / 1e6, "MB", note=note)
        if "kill" in wanted:
            yield _recovery(peer, prepared, running, round_)


def _recovery(peer: Peer, prepared: Prepared, running: Running, round_: int) -> Row:
    body, content_type = prepared.samples[0].read_bytes(), prepared.workload.body.content_type
    os.kill(running.worker_pid(), signal.SIGKILL)
    killed, failures = time.monotonic(), []
    while (elapsed := time.monotonic() - killed) < RECOVER_SECONDS:
        status, _ = ask(running.url, body, content_type, timeout=RECOVER_SECONDS - elapsed)
        if status == 200:
            elapsed = time.monotonic() - killed
            break
        failures.append(status)
        time.sleep(RETRY_SECONDS)
    statuses = ", ".join(f"{failures.count(status)} x {status or 'no answer'}" for status in sorted(set(failures)))
    note = f"before it: {statuses}" if failures else ""
    if elapsed >= RECOVER_SECONDS:
        return Row("kill", peer.name, round_, None, "s", note=f"none within {RECOVER_SECONDS:.0f} s; {note}")
    return Row("kill", peer.name, round_, elapsed, "s", note=note)
