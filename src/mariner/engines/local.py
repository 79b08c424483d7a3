"""Workers as child processes of the server, spoken to over a Unix socket pair.

The child inherits one end of the socket, the page of :mod:`ts.page`, and the arena of large bodies. Its output is
handed on line by line.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import cast

from mariner.engines import THREAD_VARIABLES, Buffer, Exit, Process, Receiver, WorkerSpec
from mariner.engines.memory import MemoryWatch, oom_kill_file
from mariner.engines.output import Child, Output, Pipe
from mariner.engines.template import WarmTemplate
from ts.page import PAGE_BYTES, Page

__all__ = ["LocalEngine"]

log = logging.getLogger(__name__)

_LAST_LINES = 50  # kept of each worker's standard error, to tell why it died
_SOCKET_BUFFER = 1 << 20  # bytes; a frame of ordinary requests fits, so that neither side waits for the other
_EXIT_GRACE = 1.0  # seconds that a process may live after it closed its socket
_OUTPUT_GRACE = 0.3  # seconds for what it wrote last; a child of its own may hold the stream open for ever
_ASK_SECONDS = 0.2  # for a process to write its stack, which takes a few milliseconds

OutputSink = Callable[[str, str, str], None]
"""Takes worker name, stream name (``stdout`` or ``stderr``) and one line."""


class LocalEngine:
    """Starts workers with ``python -m ts.worker``, or forks them from the warm template where that will do.

    Args:
        on_output: takes each line the workers print.
        bodies_fd: file descriptor of the shared-memory arena, None without one.
    """

    def __init__(self, on_output: OutputSink, bodies_fd: int | None = None) -> None:
        self._on_output = on_output
        self._bodies_fd = bodies_fd
        self._template: asyncio.Task[WarmTemplate] | None = None
        self._template_environment: dict[str, str] = {}
        self._template_works = True
        self._memory = MemoryWatch(oom_kill_file())

    async def start(self, spec: WorkerSpec, receiver: Receiver) -> Process:
        """Starts a child process; see :class:`mariner.engines.Engine`."""
        template = await self._template_for(spec)
        ours, theirs = socket.socketpair()
        status_fd = os.memfd_create(f"mariner-{spec.name}", os.MFD_CLOEXEC)
        os.ftruncate(status_fd, PAGE_BYTES)
        page = Page(mmap.mmap(status_fd, PAGE_BYTES))
        process = _LocalProcess(spec.name, receiver, page, self._on_output, self._memory)
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            fds = [theirs.fileno(), status_fd]
            if template is None:
                await self._spawn(spec, process, fds)
            else:
                await self._fork(template, spec, process, fds)
            ours.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: _Channel(process), sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            raise
        finally:
            theirs.close()
            os.close(status_fd)
        return process

    async def close(self) -> None:
        """Ends the template."""
        template, self._template = self._template, None
        if template is None:
            return
        template.cancel()
        with suppress(asyncio.CancelledError, OSError, TimeoutError):
            await (await template).close()

    async def _spawn(self, spec: WorkerSpec, process: _LocalProcess, fds: list[int]) -> None:
        command = [spec.python, "-m", "ts.worker", "--socket-fd", str(fds[0]), "--status-fd", str(fds[1])]
        if self._bodies_fd is not None:
            fds = [*fds, self._bodies_fd]
            command += ["--bodies-fd", str(self._bodies_fd)]
        await asyncio.get_running_loop().subprocess_exec(
            lambda: Output(process),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            cwd="/",  # never the server's directory: its files would be importable
            env=dict(spec.environment),
            pass_fds=fds,
        )

    async def _fork(self, template: WarmTemplate, spec: WorkerSpec, process: _LocalProcess, fds: list[int]) -> None:
        output = Output(process)
        loop = asyncio.get_running_loop()
        with ExitStack() as ends:
            for number in (1, 2):
                read_end, write_end = os.pipe()
                ends.callback(os.close, write_end)
                fds = [*fds, write_end]
                await loop.connect_read_pipe(partial(Pipe, output, number), os.fdopen(read_end, "rb", 0))
            if self._bodies_fd is not None:
                fds.append(self._bodies_fd)
            process.attach(await template.fork(spec.environment, fds, process.child_exited))

    async def _template_for(self, spec: WorkerSpec) -> WarmTemplate | None:
        """The template that this process can be forked from; None if it has to start by itself."""
        if not (spec.warm and self._template_works and spec.python == sys.executable):
            return None
        environment = {name: value for name, value in spec.environment.items() if name not in THREAD_VARIABLES}
        if self._template is None or (self._template.done() and not self._template.result().alive):
            self._template_environment = environment
            starting = WarmTemplate.start(spec.python, spec.environment, partial(self._on_output, "template"))
            self._template = asyncio.create_task(starting, name="warm template")
        if environment != self._template_environment:
            return None
        try:
            return await asyncio.shield(self._template)
        except (OSError, TimeoutError) as error:
            if self._template_works:
                log.warning("Workers start without a warm template: %s", error)
            self._template_works = False
            return None


class _LocalProcess:
    """One child: its pipe, its socket and the order in which they end."""

    def __init__(self, name: str, receiver: Receiver, page: Page, on_output: OutputSink, memory: MemoryWatch) -> None:
        self._name = name
        self._receiver = receiver
        self._page = page
        self._on_output = on_output
        self._memory = memory
        self._errors: deque[str] = deque(maxlen=_LAST_LINES)
        self._child: Child | None = None
        self._channel: asyncio.WriteTransport | None = None
        self._fd = -1
        self._channel_lost = False
        self._child_exited = False
        self._errors_ended = False
        self._killed = False
        self._code: int | None = None
        self._reported = False

    # -- what the pool calls --------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        pid = None if self._child is None else self._child.get_pid()
        return pid or 0

    def send(self, buffers: Sequence[Buffer]) -> None:
        channel = self._channel
        if channel is None or self._channel_lost or channel.is_closing():
            return
        # Frames are many small buffers, and large bodies lie in shared memory: one copy is cheaper than a vector.
        data = b"".join(buffers)
        if not channel.get_write_buffer_size():  # as for answers to clients: the transport would do the same, dearer
            try:  # noqa: SIM105 - suppress() costs as much as encoding a small request
                data = data[os.write(self._fd, data) :]
            except OSError:
                pass
        if data:
            channel.write(data)

    def give_up(self, job_id: int) -> None:
        if not self._reported:
            self._page.give_up(job_id)

    def finish(self) -> None:
        if self._channel is not None and not self._channel_lost and self._channel.can_write_eof():
            self._channel.write_eof()

    def kill(self, *, ask: int = 0) -> None:
        if self._child is None or self._child_exited:
            return
        if ask:
            with suppress(ProcessLookupError):
                self._child.send_signal(ask)
            asyncio.get_running_loop().call_later(_ASK_SECONDS, self.kill)
        else:
            self._killed = True
            self._child.kill()

    # -- what the transports call ---------------------------------------------------------------------------------

    def attach(self, child: Child) -> None:
        self._child = child
        self._memory.add(self.pid)

    def channel_made(self, channel: asyncio.WriteTransport) -> None:
        self._channel = channel
        self._fd = channel.get_extra_info("socket").fileno()

    def received(self, data: Buffer) -> None:
        self._receiver.received(data)

    def channel_lost(self) -> None:
        self._channel_lost = True
        if self._child_exited:
            self._report_soon()
        else:  # a process without a connection is of no use, however it may have happened
            asyncio.get_running_loop().call_later(_EXIT_GRACE, self.kill)

    def child_exited(self) -> None:
        self._child_exited = True
        self._code = None if self._child is None else self._child.get_returncode()
        if self._channel_lost or self._channel is None:
            self._report_soon()
        else:  # what it had sent is still in the socket; a grandchild may hold the other end open
            asyncio.get_running_loop().call_later(_EXIT_GRACE, self._channel.abort)

    def release(self) -> None:
        """The process is gone and its pipes are read to their ends."""
        if self._child is not None:
            self._child.close()

    def line(self, stream: str, text: str) -> None:
        if stream == "stderr":
            self._errors.append(text)
        self._on_output(self._name, stream, text)

    def stream_ended(self, stream: str) -> None:
        self._errors_ended = self._errors_ended or stream == "stderr"
        if self._errors_ended and self._child_exited and (self._channel_lost or self._channel is None):
            self._report()

    def _report_soon(self) -> None:
        """When the last lines are there, which say why."""
        if self._errors_ended:
            self._report()
        else:
            asyncio.get_running_loop().call_later(_OUTPUT_GRACE, self._report)

    def _report(self) -> None:
        if self._reported:
            return
        self._reported = True
        running = self._page.running
        self._page.close()
        unexplained = self._code in {None, -signal.SIGKILL} and not self._killed
        kills = self._memory.recent_kills() if unexplained else None
        curve = self._memory.remove(self.pid)
        self._receiver.exited(Exit(self._code, running, tuple(self._errors), curve, kills, self._killed))


class _Channel(asyncio.Protocol):
    """The server's end of the socket pair."""

    def __init__(self, process: _LocalProcess) -> None:
        self._process = process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        channel = cast("asyncio.WriteTransport", transport)  # uvloop's is none by class
        channel.set_write_buffer_limits(high=1 << 30)  # the window of jobs per worker bounds it, not the transport
        self._process.channel_made(channel)

    def data_received(self, data: bytes) -> None:
        self._process.received(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the exit says more)
        self._process.channel_lost()
