"""What ships for tests: a clock that moves when told, an engine without processes, a server in the event loop.

For our tests and for those of people who build on the server. The fakes speak the real interfaces
(``mariner.clock.Clock``, ``mariner.engines.Engine``), so nothing has to be patched.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mariner.config import Address, Config, Scheme
from mariner.engines import Buffer, Exit, Receiver, WorkerSpec
from mariner.metrics import Update
from mariner.serve import Server
from ts.wire import (
    Batch,
    FrameDecoder,
    FrameKind,
    Load,
    Loaded,
    Reply,
    Request,
    decode_predict,
    encode_frame,
    encode_json,
    encode_reply,
)

__all__ = ["FakeClock", "FakeEngine", "FakeProcess", "running_server", "settle"]


@asynccontextmanager
async def running_server(
    *, on_metric: Callable[[Update], None] | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """A real server in this event loop, on free ports of the loopback interface; workers are real processes.

    Args:
        on_metric: see :meth:`mariner.serve.Server.start`.
        settings: fields of :class:`mariner.config.Config`.
    """
    free = Address(Scheme.HTTP, "127.0.0.1", 0)
    addresses = {"inference_address": free, "management_address": free, "metrics_address": free}
    quiet = {"disable_system_metrics": True, "config_snapshots": False}
    server = await Server.start(Config(**{**addresses, **quiet, **settings}), on_metric=on_metric)
    try:
        yield server
    finally:
        await server.stop()


class FakeTimer:
    """What :meth:`FakeClock.call_at` returns."""

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self._when = when
        self._callback: Callable[[], object] | None = callback

    def when(self) -> float:
        """The time it is due."""
        return self._when

    def cancel(self) -> None:
        """Forgets the callback."""
        self._callback = None

    def cancelled(self) -> bool:
        """Whether the callback was forgotten or called."""
        return self._callback is None

    def fire(self) -> None:
        """Calls the callback, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class FakeClock:
    """Time that stands still between calls of :meth:`advance`."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        """Seconds."""
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> object:
        """In the next turn of the running event loop, whatever the time."""
        return asyncio.get_running_loop().call_soon(callback, *args)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> Any:
        """When :meth:`advance` passes that time."""
        timer = FakeTimer(when, lambda: callback(*args))
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def set(self, now: float) -> None:
        """Moves the time without firing timers."""
        self._now = now

    async def advance(self, seconds: float) -> None:
        """Moves the time, fires the timers that fall due in order and lets the event loop settle after each."""
        end = self._now + seconds
        await settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            timer.fire()
            await settle()
        self._now = end


async def settle() -> None:
    """Lets every callback and task that is ready run, and those they make ready."""
    for _ in range(20):
        await asyncio.sleep(0)


class FakeProcess:
    """A worker process that exists only here; a test answers for it, or its engine's handler does.

    Attributes:
        spec: what it was started with.
        load: the LOAD it got, None before.
        batches: every batch it was sent, oldest first.
        given_up: ids of the jobs that it was told nobody wants any more.
        dropped: jobs of a continuous batch that it was told nobody waits for.
        finishing: it was asked to finish.
        killed: it was killed.
        asked: the signal that asked it for its stack before, 0 for none.
    """

    def __init__(self, engine: FakeEngine, spec: WorkerSpec, receiver: Receiver, pid: int) -> None:
        self.spec = spec
        self.load: Load | None = None
        self.batches: list[Batch] = []
        self.given_up: list[int] = []
        self.dropped: list[int] = []
        self.frames = 0
        self.finishing = False
        self.killed = False
        self.asked = 0
        self.alive = True
        self._engine = engine
        self._receiver = receiver
        self._pid = pid
        self._decoder = FrameDecoder()
        self._open: list[Batch] = []

    @property
    def pid(self) -> int:
        """A made-up process id."""
        return self._pid

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Takes frames as a process would."""
        for frame in self._decoder.feed(b"".join(buffers)):
            if frame.kind is FrameKind.LOAD:
                self.load = Load(**frame.json())
                self._say(encode_json(FrameKind.STARTED, {"pid": self._pid}))
                if self._engine.loads:
                    self.loaded()
            elif frame.kind is FrameKind.PREDICT:
                self.frames += 1
                # The frame's bytes are gone after this call; the values are kept.
                batches = [_kept(batch) for batch in decode_predict(frame.payload)]
                self.batches += batches
                self._open += batches
                if self._engine.handler is not None:
                    asyncio.get_running_loop().call_soon(self._run)
            elif frame.kind is FrameKind.DROP:
                self.dropped += frame.json()

    def give_up(self, job_id: int) -> None:
        """Nobody wants the answer to a job any more."""
        self.given_up.append(job_id)

    def finish(self) -> None:
        """The server will send nothing more."""
        self.finishing = True
        if not self._open:
            self.die(0)

    def kill(self, *, ask: int = 0) -> None:
        """The server ends it."""
        self.killed = True
        self.asked = ask
        self.die(-9)

    def loaded(self, message: str = "", *, ok: bool = True, out_of_memory: bool = False, **more: Any) -> None:
        """Says how loading went; ``more`` are further fields of :class:`ts.wire.Loaded`."""
        self._say(encode_json(FrameKind.LOADED, Loaded(ok, message, out_of_memory, **more)))

    def reply(self, batch: Batch, *bodies: bytes, more: bool = False, seconds: float = 0.001) -> None:
        """Answers each job of ``batch`` with a body; the last one for all that are left."""
        replies = [
            Reply(job_id, bodies[min(index, len(bodies) - 1)], more=more, handler_seconds=seconds)
            for index, (job_id, _) in enumerate(batch.jobs)
        ]
        self.say_replies(replies)
        if not more:
            self._open.remove(batch)
            if self.finishing and not self._open:
                self.die(0)

    def say_replies(self, replies: Sequence[Reply]) -> None:
        """Sends any replies."""
        self._say(encode_frame(FrameKind.REPLIES, [part for reply in replies for part in encode_reply(reply)]))

    def die(self, code: int | None = 1, *, last_lines: tuple[str, ...] = (), **more: Any) -> None:
        """Ends; the oldest unanswered batch counts as the one that was running.

        Args:
            code: see :class:`mariner.engines.Exit`.
            last_lines: of its standard error.
            more: further attributes of the exit.
        """
        if self.alive:
            self.alive = False
            running = self._open[0].id if self._open else 0
            asyncio.get_running_loop().call_soon(self._receiver.exited, Exit(code, running, last_lines, **more))

    def _run(self) -> None:
        assert self._engine.handler is not None
        for batch in list(self._open):
            if not self.alive:
                return
            try:
                bodies = self._engine.handler([request for _, request in batch.jobs])
            except SystemExit as exit_:
                self.die(exit_.code if isinstance(exit_.code, int) else 1)
            else:
                self.reply(batch, *bodies)

    def _say(self, buffers: Sequence[Buffer]) -> None:
        self._receiver.received(b"".join(buffers))


class FakeEngine:
    """Starts :class:`FakeProcess` objects.

    Args:
        handler: answers batches by itself: requests in, one body each out. ``SystemExit`` ends the process. None leaves
            it to the test.
        loads: processes load their model at once; else the test calls ``process.loaded()``.

    Attributes:
        processes: all that were started, oldest first.
        fails: raised by the next start.
    """

    def __init__(
        self, handler: Callable[[list[Request]], Sequence[bytes]] | None = None, *, loads: bool = True
    ) -> None:
        self.handler = handler
        self.loads = loads
        self.processes: list[FakeProcess] = []
        self.fails: OSError | None = None
        self._loading = asyncio.Condition()

    async def loading(self, index: int = 0) -> FakeProcess:
        """Waits until a process was told to load its model.

        Args:
            index: which one, in the order of their start.
        """
        async with self._loading:
            await self._loading.wait_for(lambda: len(self.processes) > index and self.processes[index].load is not None)
        return self.processes[index]

    async def _tell(self) -> None:
        async with self._loading:
            self._loading.notify_all()

    async def close(self) -> None:
        """Nothing is kept."""

    async def start(self, spec: WorkerSpec, receiver: Receiver) -> FakeProcess:
        """See :class:`mariner.engines.Engine`."""
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        process = FakeProcess(self, spec, receiver, 50_000 + len(self.processes))
        self.processes.append(process)
        self._telling = asyncio.create_task(self._tell())
        return process


def _kept(batch: Batch) -> Batch:
    jobs = [
        (job_id, request._replace(parts=[part._replace(value=_bytes(part.value)) for part in request.parts]))
        for job_id, request in batch.jobs
    ]
    return Batch(batch.id, jobs)


def _bytes(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value
