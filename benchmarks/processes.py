"""Server processes: start in a group of their own, look at their tree, stop all of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

__all__ = ["ServerProcess", "free_port", "processes_mapping"]

STOP_SECONDS = 10.0  # TorchServe needs about one


class ServerProcess:
    """A started command with everything that it started."""

    def __init__(self, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.log = directory / "console.log"
        with self.log.open("wb") as console:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal, None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Waits for the end of the command itself; its exit code, None if it goes on."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.exit_code

    def tree(self) -> list[psutil.Process]:
        """The command, what descends from it, and what is left of its session once the command is gone."""
        found: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            found = {process.pid: process for process in (root, *root.children(recursive=True))}
        for process in psutil.process_iter():
            with suppress(OSError):
                if os.getsid(process.pid) == self._process.pid:
                    found.setdefault(process.pid, process)
        return list(found.values())

    def memory(self) -> float:
        """Bytes of the tree; pages that several processes map are divided among them (PSS)."""
        return sum(_pss(process.pid) for process in self.tree())

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def last_lines(self, count: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def stop(self) -> None:
        """Ask everything to end, then end what is left: psutil refuses a pid that now belongs to somebody else."""
        with _undisturbed():
            tree = self.tree()
            if self.running:
                os.killpg(self._process.pid, signal.SIGTERM)
            _, left = psutil.wait_procs(tree, STOP_SECONDS)
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, STOP_SECONDS)
            self._process.poll()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off signals that would end this program: they would leave servers behind that are half stopped.

    Handlers are exchanged, because a mask does not help: another thread takes the signal, and this one raises.
    """
    came: list[int] = []
    ending: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ending}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _pss(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0.0


def processes_mapping(library: str, outside: Sequence[psutil.Process]) -> int:
    """How many processes outside a tree map a library: they make the tree's PSS look smaller than it is."""
    inside = {process.pid for process in outside}
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in inside:
            with suppress(OSError):
                count += library in (entry / "maps").read_text()
    return count


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
