"""Engines start worker processes and carry bytes to and from them. They know no models, no jobs and no frames.

An engine is a seam with more than one side: local processes here, a fake one in ``mariner.testing``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["THREAD_VARIABLES", "Buffer", "Engine", "Exit", "Process", "Receiver", "WorkerSpec"]

Buffer = bytes | bytearray | memoryview

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that say how many threads the numeric libraries of a process may use."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What an engine must know to start one process.

    Attributes:
        name: how logs call the worker, for example ``W-9000-digits_1.0``.
        python: interpreter.
        environment: the whole environment of the process.
        warm: it will import PyTorch, so it may come from a process that has done so.
    """

    name: str
    python: str
    environment: Mapping[str, str] = field(repr=False)
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    Attributes:
        code: exit code, negative for a signal as ``subprocess`` has it, None if it is unknown.
        running_batch: id of the batch that was running, 0 for none.
        last_lines: the end of its standard error.
        memory: seconds before the end and resident bytes, oldest first, about one sample each second.
        oom_kills: kills for lack of memory that the kernel counted in the last seconds; None if that is unknown, or if
            something else ended the process.
        killed: the server killed it.
    """

    code: int | None
    running_batch: int = 0
    last_lines: tuple[str, ...] = ()
    memory: tuple[tuple[float, int], ...] = ()
    oom_kills: int | None = None
    killed: bool = False

    def __str__(self) -> str:
        """The exit in words."""
        if self.code is None:
            return "it lost its connection"
        if self.code < 0:
            return f"it was killed by signal {-self.code}"
        return f"it exited with code {self.code}"


class Receiver(Protocol):
    """Whom a process reports to."""

    def received(self, data: Buffer) -> None:
        """Bytes arrived; they are only valid during the call."""

    def exited(self, exit_: Exit) -> None:
        """The process is gone. Called once; nothing is received afterwards."""


class Process(Protocol):
    """A started worker process."""

    @property
    def pid(self) -> int:
        """Process id."""

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Sends the buffers in order. Ignored when the process has gone: ``exited`` tells."""

    def give_up(self, job_id: int) -> None:
        """Shows the process a job, by its id, that nobody wants any more: at once, whatever it is doing."""

    def finish(self) -> None:
        """Says that nothing more will come: the process answers what it has and exits."""

    def kill(self, *, ask: int = 0) -> None:
        """Ends the process.

        Args:
            ask: a signal on which it writes down where it is; it gets a moment for that. 0 ends it at once.
        """


class Engine(Protocol):
    """Starts processes."""

    async def start(self, spec: WorkerSpec, receiver: Receiver) -> Process:
        """Starts a process that reports to ``receiver``.

        Raises:
            OSError: the process cannot be created.
        """

    async def close(self) -> None:
        """Ends what the engine keeps beside the processes it has started; those have ended by now."""
