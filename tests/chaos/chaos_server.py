"""The server that is broken: a real one, with its temporary files and logs on a disk that can be filled."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from processes import ServerProcess
from test_serving import Client, put_model

__all__ = ["MODELS", "ChaosServer", "StartFailed"]

HERE = Path(__file__).parent
START_SECONDS = 60.0
STOP_SECONDS = 30.0
DISK = 24 << 20  # bytes of the small disk: the models unpacked and their logs fit, with room for a few more
ARCHIVE = 2 << 20  # bytes that unpacking the archive takes of it
OWN_ERROR = re.compile(r"\S+ (ERROR|CRITICAL) ++(?!W-|deaths - )")  # death certificates are about workers
SAMPLE = re.compile(r'(\w+)(?:\{(?:.*?model_name="([^"]*)")?.*\})? (\S+)')

ONE = "minWorkers: 1\nmaxWorkers: 1\njobQueueSize: 1000\n"
MODELS = {
    "single": ONE,
    "batched": "minWorkers: 2\nmaxWorkers: 2\nbatchSize: 8\njobQueueSize: 1000\n",
    "warm": f"{ONE}batchSize: 4\n",
    "slow": "minWorkers: 1\nmaxWorkers: 1\njobQueueSize: 24\n",
    "versions": ONE,
}
"""The models that are there all the time, and their configuration. ``passing.mar`` comes and goes.

Only the queue of ``slow`` can become full, and only by a burst or while its worker is away.
"""


class StartFailed(Exception):
    """The server did not come up; the message carries its last lines."""


class ChaosServer:
    """A started server.

    Args:
        place: an empty directory.
        torch: one model's workers are forked from the warm template, which imports PyTorch.
    """

    def __init__(self, place: Path, *, torch: bool = True) -> None:
        self.place = place
        self.disk = place / "disk"
        self.disk.mkdir()
        self.small = _mount(self.disk)
        self.temporary, self.logs = self.disk / "tmp", self.disk / "logs"
        self.temporary.mkdir()
        self.models = [name for name in MODELS if torch or name != "warm"]
        self._clock = place / "clock"
        self._tree: list[psutil.Process] = []
        self.jump(0.0)
        self._store()
        self.process = self._start()
        self.ports = self._wait_for_ports()

    def _store(self) -> None:
        store = self.place / "store"
        for name in self.models:
            put_model(store, name, "obeys", MODELS[name])
        if "warm" in self.models:  # mentioned, it is imported in the template; workers then share it
            handler = store / "warm" / "handler.py"
            handler.write_text(handler.read_text().replace("import time\n", "import time\nimport torch\n", 1))
        put_model(store, "versions-2", "obeys", MODELS["versions"])
        manifest = store / "versions-2" / "MAR-INF" / "MANIFEST.json"
        manifest.write_text(manifest.read_text().replace("versions-2", "versions").replace('"1.0"', '"2.0"'))
        put_model(self.place, "passing", "obeys", ONE)
        with zipfile.ZipFile(store / "passing.mar", "w") as archive:
            for path in sorted((self.place / "passing").rglob("*")):
                archive.write(path, path.relative_to(self.place / "passing"))
            archive.writestr("weights.bin", bytes(ARCHIVE))

    def _start(self) -> ServerProcess:
        config = self.place / "config.properties"
        settings = {
            **{f"{kind}_address": "http://127.0.0.1:0" for kind in ("inference", "management", "metrics")},
            "load_models": ",".join([*self.models, "versions-2"]),
            "default_response_timeout": 20,
            "unregister_model_timeout": 20,
        }
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TS_", "MARINER_"))}
        environment = kept | {
            "PYTHONPATH": str(HERE / "clock"),
            "CHAOS_CLOCK": str(self._clock),
            "TMPDIR": str(self.temporary),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(self.logs)),
        }
        flags = ["--foreground", "--ncs", "--model-store", str(self.place / "store"), "--ts-config", str(config)]
        return ServerProcess([str(Path(sys.executable).parent / "torchserve"), *flags], self.place, environment)

    def _wait_for_ports(self) -> dict[str, int]:
        deadline = time.monotonic() + START_SECONDS
        while self.process.running and time.monotonic() < deadline:
            found = re.findall(r"(\w+) API bind to: http://127\.0\.0\.1:(\d+)", self.process.log.read_text())
            if len(found) == 3:
                return {kind.lower(): int(port) for kind, port in found}
            time.sleep(0.02)
        last = self.process.last_lines(40)
        self.process.stop()
        raise StartFailed(f"The server did not come up:\n{last}")

    # -- looking at it ------------------------------------------------------------------------------------------------

    async def client(self, kind: str = "inference") -> Client:
        """A new connection."""
        return Client(*await asyncio.open_connection("127.0.0.1", self.ports[kind]))

    def template(self) -> psutil.Process | None:
        """The process that workers are forked from."""
        for process in self.process.tree():
            with suppress(psutil.Error):
                if "ts.template" in process.cmdline() and process.ppid() == self.process.pid:
                    return process
        return None

    def starved(self) -> float:
        """Seconds that the server's and this process's main threads have waited for a processor so far."""
        return sum(_starved(pid) for pid in (self.process.pid, os.getpid()))

    def memory(self) -> int:
        """Bytes that the server's own process has resident."""
        return psutil.Process(self.process.pid).memory_info().rss

    @staticmethod
    def samples(text: str) -> dict[str, float]:
        """Prometheus' text as sums: by name, and by name and model."""
        found: dict[str, float] = {}
        for line in text.splitlines():
            match = None if line.startswith("#") else SAMPLE.fullmatch(line)
            if match:
                name, model, value = match.groups()
                for key in {name, f"{name}{{{model}}}"} if model else {name}:
                    found[key] = found.get(key, 0.0) + float(value)
        return found

    # -- doing something to it ----------------------------------------------------------------------------------------

    def jump(self, seconds: float) -> None:
        """The wall clock of all its processes is that far off from now on."""
        if not self._clock.exists():
            self._clock.write_bytes(bytes(8))
        with self._clock.open("r+b") as file:
            file.write(struct.pack("<d", seconds))

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Nothing can be written to its disk; without a small disk, its process cannot write to any file."""
        if self.small:
            filler = self.disk / "filler"
            try:
                with filler.open("wb", 0) as file, suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                yield
            finally:
                filler.unlink()
        else:
            server = psutil.Process(self.process.pid)
            before = server.rlimit(resource.RLIMIT_FSIZE)
            server.rlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            try:
                yield
            finally:
                server.rlimit(resource.RLIMIT_FSIZE, before)

    def terminate(self) -> None:
        """Asks it to end."""
        self._tree = self.process.tree()
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.process.pid).terminate()

    def stop(self) -> list[str]:
        """Waits for its end after :meth:`terminate`; returns what is wrong with how it went."""
        problems = []
        code = self.process.wait(STOP_SECONDS)
        if code != 0:
            problems.append(f"the server ended with {code}: {self.process.last_lines()}")
        _, left = psutil.wait_procs(self._tree, 5.0)
        problems += [f"process {process.pid} is left: {_command(process)}" for process in left]
        problems += [f"in the server's log: {line}" for line in self._errors()]
        if names := sorted(path.name for path in self.temporary.iterdir()):
            problems.append(f"left in its temporary directory: {', '.join(names)}")
        self.kill()
        return problems

    def _errors(self) -> list[str]:
        """Lines of the log, other than those of workers, in which the server owns up to an error."""
        lines = self.process.log.read_text(errors="replace").splitlines()
        return [line for line in lines if OWN_ERROR.match(line)]

    def kill(self) -> None:
        """Ends what is left, and gives the disk back."""
        self.process.stop()
        if self.small:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)
            self.small = False


def _starved(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _command(process: psutil.Process) -> Any:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "?"


def _mount(directory: Path) -> bool:
    """Puts a small file system there, if this process may."""
    if shutil.which("mount") is None or "CHAOS_NAMESPACE" not in os.environ:
        return False
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0777", "chaos", str(directory)]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def own_namespace(argv: list[str]) -> None:
    """Starts this program again where it may mount; returns where that is not possible, or has been done."""
    if "CHAOS_NAMESPACE" in os.environ or shutil.which("unshare") is None:
        return
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0:
        os.environ["CHAOS_NAMESPACE"] = "1"
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *argv])


def workers_of(description: bytes) -> list[tuple[int, str]]:
    """Process ids of workers, 0 where there is no process, and their states, from an answer of the describe call."""
    workers = [worker for version in json.loads(description) for worker in version["workers"]]
    return [(int(worker["pid"]), str(worker["status"])) for worker in workers]
