"""The servers under test: how each is started for a workload, asked, and which of its processes is the worker."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from archives import MODEL, MODELS, Prepared
from environments import environment_bin, installed_version, make_environment
from load import ask
from processes import ServerProcess, free_port
from rich.console import Console
from scenarios import LITSERVE, MARINER, MOSEC, RAY, TORCHSERVE

__all__ = ["OPTIONAL", "PEERS", "Peer", "Running", "StartFailed"]

START_SECONDS = 60.0
JSON_WORKLOADS = frozenset({"W1", "W1b", "W2"})
POLL_SECONDS = 0.01  # the error of a cold start; asking more often would slow down what starts


class StartFailed(Exception):
    """A server ended, or gave no good answer in time; the message carries its last lines."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started server that has given its first good answer."""

    process: ServerProcess
    url: str
    management_url: str | None
    start_seconds: float

    def worker_pid(self) -> int:
        """The process that runs the handler: as the management API says, or else the one multiprocessing spawned."""
        if self.management_url:
            with urllib.request.urlopen(f"{self.management_url}/models/{MODEL}", timeout=10) as reply:
                return int(json.load(reply)[0]["workers"][0]["pid"])
        workers = [
            process for process in self.process.tree() if any("spawn_main" in word for word in process.cmdline())
        ]
        return workers[-1].pid


@dataclass(frozen=True, slots=True)
class Start:
    """How a peer is started for one workload."""

    command: list[str]
    environment: dict[str, str]
    management_url: str | None


class Peer(ABC):
    """A server that can be started for a workload."""

    name: str
    path: str
    distribution: str
    bin: Path
    workloads: frozenset[str] | None = None
    """What it is measured on, if not on everything."""

    @abstractmethod
    def prepare(self, console: Console) -> None:
        """Install what is missing."""

    @abstractmethod
    def start(self, prepared: Prepared, directory: Path, port: int) -> Start:
        """How to serve ``prepared`` on ``port``, with ``directory`` for files of its own."""

    def version(self) -> str:
        return installed_version(self.bin / "python", self.distribution)

    @contextmanager
    def running(self, prepared: Prepared, directory: Path) -> Iterator[Running]:
        """Start the server in an empty ``directory``, wait for a good answer, stop it at the end.

        Raises:
            StartFailed: if there is no good answer within a minute.
        """
        directory.mkdir(parents=True)
        port = free_port()
        start = self.start(prepared, directory, port)
        url = f"http://127.0.0.1:{port}{self.path}"
        body, content_type = prepared.samples[0].read_bytes(), prepared.workload.body.content_type
        begun = time.monotonic()
        process = ServerProcess(start.command, directory, self._environment(directory) | start.environment)
        try:
            status, answer = 0, b""
            while status != 200:
                if not process.running or time.monotonic() - begun > START_SECONDS:
                    why = "gave no good answer in time" if process.running else "ended"
                    raise StartFailed(f"{self.name} {why}; last {status} {answer[:200]!r}\n{process.last_lines()}")
                time.sleep(POLL_SECONDS)
                status, answer = ask(url, body, content_type, timeout=START_SECONDS)
            yield Running(process, url, start.management_url, time.monotonic() - begun)
        finally:
            process.stop()

    def _environment(self, directory: Path) -> dict[str, str]:
        ours = ("PYTHONPATH", "VIRTUAL_ENV", "JAVA_TOOL_OPTIONS")
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        kept = {name: value for name, value in kept.items() if not name.startswith(("TS_", "MARINER_", "MOSEC_"))}
        temporary = directory / "tmp"
        temporary.mkdir()
        return kept | {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(directory / "logs")),
        }


class TorchServe(Peer):
    """TorchServe 0.12.0 with its default logging."""

    name = TORCHSERVE
    path = f"/predictions/{MODEL}"
    distribution = "torchserve"
    bin = environment_bin(TORCHSERVE)

    def prepare(self, console: Console) -> None:
        make_environment(TORCHSERVE, console)

    def start(self, prepared: Prepared, directory: Path, port: int) -> Start:
        management_url = f"http://127.0.0.1:{free_port()}"
        settings = {
            "inference_address": f"http://127.0.0.1:{port}",
            "management_address": management_url,
            "metrics_address": f"http://127.0.0.1:{free_port()}",
            "grpc_inference_port": free_port(),
            "grpc_management_port": free_port(),
            "default_workers_per_model": 1,
        }
        config = directory / "config.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        flags = ["--ncs", "--disable-token-auth", "--enable-model-api", "--ts-config", str(config)]
        store = ["--model-store", str(prepared.store), "--models", "all"]
        return Start([str(self.bin / "torchserve"), "--foreground", *store, *flags], {}, management_url)


class Mariner(TorchServe):
    """Mariner from the environment that runs the benchmark; it takes TorchServe's command line as it is."""

    name = MARINER
    distribution = "mariner-serve"
    bin = Path(sys.executable).parent

    def prepare(self, console: Console) -> None:
        del console
        if not (self.bin / "torchserve").exists():
            raise SystemExit(f"{self.bin}/torchserve is missing. Install the project there: pip install -e '.[torch]'")


class Program(Peer):
    """A server that is a program of ours in an environment of its own and is told by the environment what to serve."""

    path = "/inference"
    program: str

    def prepare(self, console: Console) -> None:
        make_environment(self.name, console)

    def start(self, prepared: Prepared, directory: Path, port: int) -> Start:
        workload = prepared.workload
        settings = {
            "BENCH_MODEL_DIR": str(prepared.model_dir),
            "BENCH_HANDLER": workload.handler,
            "BENCH_BODY": workload.body.value,
            "BENCH_BATCH_SIZE": str(workload.batch_size),
            "BENCH_BATCH_DELAY_MS": str(workload.batch_delay_ms),
            "BENCH_PORT": str(port),
            "BENCH_TEMPORARY": str(directory),
        }
        return Start([str(self.bin / "python"), str(MODELS / self.program), *self.flags(port)], settings, None)

    def flags(self, port: int) -> list[str]:
        del port
        return []


class Mosec(Program):
    name = MOSEC
    distribution = "mosec"
    program = "mosec_app.py"
    bin = environment_bin(MOSEC)

    def flags(self, port: int) -> list[str]:
        # By default it gives up on a request after 3 s; the others wait for minutes.
        return ["--address", "127.0.0.1", "--port", str(port), "--timeout", "30000"]


class LitServe(Program):
    name = LITSERVE
    path = "/predict"
    distribution = "litserve"
    program = "litserve_app.py"
    bin = environment_bin(LITSERVE)
    workloads = JSON_WORKLOADS


class RayServe(Program):
    name = RAY
    path = "/"
    distribution = "ray"
    program = "ray_app.py"
    bin = environment_bin(RAY)
    workloads = JSON_WORKLOADS

    def start(self, prepared: Prepared, directory: Path, port: int) -> Start:
        start = super().start(prepared, directory, port)
        # What its pages advise for throughput, but for HAProxy, with which it listens on all interfaces.
        ours = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(MODELS)}
        return Start(start.command, start.environment | ours, None)


PEERS: dict[str, Peer] = {peer.name: peer for peer in (Mariner(), TorchServe(), Mosec(), LitServe(), RayServe())}
OPTIONAL = frozenset({LITSERVE, RAY})  # measured only when they are named: a run takes long enough
