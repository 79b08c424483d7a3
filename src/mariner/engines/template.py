"""The warm template as the server sees it: started once, asked for workers, told how they end.

See :mod:`ts.template` for what it is and what is said on the socket between the two.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mariner.engines.output import Child, Output

__all__ = ["ForkedChild", "WarmTemplate"]

log = logging.getLogger(__name__)

_MESSAGE_SIZE = 65_536  # bytes; answers are much shorter
_SOCKET_BUFFER = 1 << 20  # bytes; a request carries an environment
_EXIT_GRACE = 1.0  # seconds for the template's output to end when it has
_START_TIMEOUT = 120.0  # seconds to import PyTorch, on a slow disk the first time


class ForkedChild:
    """A process that the template forked.

    Args:
        pid: its id.
        pidfd: names it as long as it is open, whoever gets its number later.
        on_exit: called once.
    """

    def __init__(self, pid: int, pidfd: int, on_exit: Callable[[], None]) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._on_exit = on_exit
        self._code: int | None = None

    def get_pid(self) -> int:
        """Process id."""
        return self._pid

    def get_returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs, or if it is unknown."""
        return self._code

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, signal_: int) -> None:
        """Sends it a signal."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal_)

    def close(self) -> None:
        """Frees what names it."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def exited(self, code: int | None) -> None:
        """The template says how it ended, or that nobody will know."""
        self._code = code
        self.close()
        self._on_exit()


class WarmTemplate:
    """A running template.

    Args:
        control: our end of the socket pair.
        on_output: takes the name of a stream and a line that the process printed.

    Attributes:
        alive: it can be asked.
    """

    def __init__(self, control: socket.socket, on_output: Callable[[str, str], None]) -> None:
        self.alive = True
        self.line = on_output
        self._control = control
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests: deque[tuple[asyncio.Future[ForkedChild], Callable[[], None]]] = deque()  # not answered yet
        self._children: dict[int, ForkedChild] = {}
        self._process: Child | None = None
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(control.fileno(), self._readable)

    @classmethod
    async def start(
        cls, python: str, environment: Mapping[str, str], on_output: Callable[[str, str], None]
    ) -> WarmTemplate:
        """Starts the process and waits until it has imported PyTorch.

        Args:
            python: interpreter.
            environment: of the process.
            on_output: takes the name of a stream and a line that the process printed.

        Raises:
            OSError: it cannot be started, or ended before it was ready.
            TimeoutError: it is not ready in time.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        ours.setblocking(False)
        template = cls(ours, on_output)
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: Output(template),
                *(python, "-m", "ts.template", "--control-fd", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                cwd="/",  # never the server's directory: its files would be importable
                env=dict(environment),
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
            await asyncio.wait_for(asyncio.shield(template._ready), _START_TIMEOUT)
        except BaseException:
            theirs.close()
            await template.close()
            raise
        return template

    async def fork(
        self, environment: Mapping[str, str], fds: Sequence[int], on_exit: Callable[[], None]
    ) -> ForkedChild:
        """Asks for a process.

        Args:
            environment: of the process.
            fds: what it inherits, see :class:`ts.template.Job`.
            on_exit: called when it has ended.

        Raises:
            OSError: there is none.
        """
        answer: asyncio.Future[ForkedChild] = asyncio.get_running_loop().create_future()
        socket.send_fds(self._control, [json.dumps(dict(environment)).encode()], fds)
        self._requests.append((answer, on_exit))
        return await asyncio.shield(answer)  # it will come, and takes its place in the order, whoever still waits

    async def close(self) -> None:
        """Ends the template, and with it the children that are left; waits for its end."""
        self._end()
        if self._process is not None:
            with suppress(TimeoutError):  # a process that a model left behind may hold its output open
                await asyncio.wait_for(self._gone.wait(), _EXIT_GRACE)

    # -- what its output tells ----------------------------------------------------------------------------------------

    def attach(self, child: Child) -> None:
        """The process runs."""
        self._process = child

    def stream_ended(self, stream: str) -> None:
        """Its output is told line by line; the end of it means nothing."""

    def child_exited(self) -> None:
        """It has ended, which the socket tells, too."""

    def release(self) -> None:
        """It has ended and its output is read."""
        if self._process is not None:
            self._process.close()
        self._gone.set()

    # -- what it says on the socket -----------------------------------------------------------------------------------

    def _end(self) -> None:
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
        lost = OSError("The warm template has ended.")
        waiting: list[asyncio.Future[Any]] = [self._ready, *(answer for answer, _ in self._requests)]
        for future in waiting:
            if not future.done():
                future.set_exception(lost)
                future.exception()  # nobody may be waiting
        self._requests.clear()
        children, self._children = self._children, {}
        for child in children.values():
            child.kill()
            child.exited(None)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_SIZE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            if self._children:
                log.warning("The warm template has ended, and its %d workers with it.", len(self._children))
            self._end()
            return
        self._handle(json.loads(data), fds)

    def _handle(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        if "ready" in message:
            self._ready.set_result(None)
        elif "exited" in message:
            child = self._children.pop(message["exited"], None)
            if child is not None:
                child.exited(message["code"])
        elif "pid" in message:
            answer, on_exit = self._requests.popleft()
            pid = message["pid"]
            self._children[pid] = child = ForkedChild(pid, fds[0], on_exit)
            answer.set_result(child)
        else:
            self._requests.popleft()[0].set_exception(OSError(message["failed"]))
