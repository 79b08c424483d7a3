"""The worker process: loads one model, then frame by frame: batches in, replies out.

Started by the server with one end of a socket pair, a page of shared memory (:mod:`ts.page`), and the shared memory
that holds large bodies. Ends with the socket.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import logging
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ts.faults import dump_stacks, locate, tell_device_state
from ts.loader import enter_model_dir, load_service
from ts.page import PAGE_BYTES, Page
from ts.service import Service, out_of_memory
from ts.steps import Steps
from ts.wire import (
    Buffer,
    FrameDecoder,
    FrameKind,
    Load,
    Loaded,
    Reply,
    Sample,
    WireError,
    decode_predict,
    encode_frame,
    encode_json,
    encode_reply,
)

__all__ = ["Outbox", "Samples", "Worker", "detach", "main", "run"]

RECEIVE_SIZE = 1 << 18  # bytes; a frame of 64 small requests fits several times
HELD_SECONDS = 0.0005  # replies wait for those of the next batch this long: one write for many
HELD_BYTES = 1 << 20  # and until they are this many
COPY_BYTES = 1 << 16  # up to here copying a body into one write is cheaper than a write of its own
POLLED_BYTES = 2048  # after a longer frame there is load enough to keep the processor awake
METRICS_SECONDS = 0.05  # metrics are a matter of seconds; a frame of their own per batch would cost more than they tell
METRICS_ROWS = 4096  # rows that may wait, for a handler that emits in a loop
EXIT_SECONDS = 10.0  # for threads and exit handlers of the model, which must not keep an orphan alive
PR_SET_PDEATHSIG = 1  # of prctl(2)


class Samples:
    """Metrics on their way to the server: what can be added up is added up, unless every update is wanted.

    May be used from all threads.
    """

    def __init__(self) -> None:
        self.keep_all = False
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, str, tuple[tuple[str, str], ...]], Sample] = {}
        self._observations: list[Sample] = []

    def add(self, sample: Sample) -> int:
        """Takes a sample; returns how many rows wait."""
        with self._lock:
            if self.keep_all or sample.type == "histogram":
                self._observations.append(sample)
            else:
                key = (sample.name, sample.type, tuple(sample.dimensions))
                before = self._latest.get(key)
                if before is not None and sample.type == "counter":
                    sample = sample._replace(value=before.value + sample.value)
                self._latest[key] = sample
            return len(self._latest) + len(self._observations)

    def take(self) -> list[Sample]:
        """The rows that wait; afterwards none do."""
        with self._lock:
            rows = [*self._latest.values(), *self._observations]
            self._latest.clear()
            self._observations.clear()
            return rows

    @property
    def waiting(self) -> bool:
        """There are rows to send."""
        return bool(self._latest or self._observations)


class Outbox:
    """Frames to the server. May be used from all threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._held: list[Buffer] = []
        self._held_bytes = 0
        self._samples = Samples()
        self._samples_sent = 0.0

    def hold(self, replies: Sequence[Reply]) -> None:
        """Takes replies; they leave with the next flush, or earlier if they become many."""
        with self._lock:
            for reply in replies:
                self._held += encode_reply(reply)
                self._held_bytes += len(reply.body)
            if self._held_bytes >= HELD_BYTES:
                self._flush()

    def send_piece(self, reply: Reply) -> None:
        """Sends one reply at once, and those that are held with it."""
        with self._lock:
            self._held += encode_reply(reply)
            self._flush()

    def flush(self) -> None:
        """Sends the replies that are held, and metrics if some are due."""
        with self._lock:
            self._flush()
        if self._samples.waiting and self.metrics_due_in() <= 0:
            self.send_metrics()

    def send_json(self, kind: FrameKind, value: Loaded | dict[str, Any] | list[Any]) -> None:
        """Sends a control frame."""
        with self._lock:
            self._write(encode_json(kind, value))

    def keep_all_metrics(self) -> None:
        """From now on every update of a metric is sent, in the order in which they came."""
        self._samples.keep_all = True

    def add_sample(self, sample: Sample) -> None:
        """Takes a metric; it is sent with the next replies."""
        if self._samples.add(sample) >= METRICS_ROWS:
            self.send_metrics()

    @property
    def metrics_waiting(self) -> bool:
        """There are metrics to send."""
        return self._samples.waiting

    def metrics_due_in(self) -> float:
        """Seconds until metrics may be sent again."""
        return self._samples_sent + METRICS_SECONDS - time.monotonic()

    def send_metrics(self) -> None:
        """Sends the metrics that wait."""
        self._samples_sent = time.monotonic()
        self.send_json(FrameKind.METRICS, [list(sample) for sample in self._samples.take()])

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._held_bytes = 0
            self._write(encode_frame(FrameKind.REPLIES, held))

    def _write(self, buffers: Sequence[Buffer]) -> None:
        small: list[Buffer] = []
        for buffer in buffers:
            if len(buffer) <= COPY_BYTES:
                small.append(buffer)
                continue
            self._connection.sendall(b"".join(small))
            small.clear()
            self._connection.sendall(buffer)
        if small:
            self._connection.sendall(b"".join(small))


class Worker:
    """The life of one worker process.

    Args:
        connection: end of the socket pair with the server; blocking.
        page: tells the server which batch runs, and the worker which jobs nobody wants.
        bodies: shared memory that holds large bodies, None if there is none.
    """

    def __init__(self, connection: socket.socket, page: Page, bodies: memoryview | None) -> None:
        self._connection = connection
        self._page = page
        self._bodies = bodies
        self._outbox = Outbox(connection)
        self._decoder = FrameDecoder()
        self._buffer = bytearray(RECEIVE_SIZE)
        self._service: Service | None = None
        self._waiting = False
        self._stopping = False
        self._overlaps = self._steps = False
        self._polling = False
        self._poll_seconds = 0.0

    def run(self) -> int:
        """Serves until the server closes the connection or SIGTERM asks to stop; returns the exit status.

        Raises:
            WireError: what arrives are no frames.
            SystemExit: the handler wants the process to end.
        """
        self._outbox.send_json(FrameKind.STARTED, {"pid": os.getpid()})
        try:
            while received := self._receive():
                for frame in self._decoder.feed(received):
                    if frame.kind is FrameKind.PREDICT:
                        self._predict(frame.payload)
                    elif frame.kind is FrameKind.LOAD:
                        if not self._load(Load(**frame.json())):
                            return 1
                    else:
                        raise WireError(f"A worker cannot take frames of kind {frame.kind.name}.")
                if (self._overlaps or self._steps) and self._service is not None:
                    self._run_side_by_side(self._service)
                    break
        finally:
            if self._service is not None:
                self._service.close()
        return 0

    def _receive(self) -> memoryview | None:
        outbox = self._outbox
        if outbox.metrics_waiting:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            if not poll.poll(max(outbox.metrics_due_in(), 0.0) * 1000):
                outbox.send_metrics()
        # SIGTERM ends the waiting, and only the waiting: a frame that has arrived is answered in full.
        self._waiting = True
        size = 0 if self._stopping else self._receive_next()
        self._waiting = False
        return memoryview(self._buffer)[:size] if size else None

    def _receive_next(self) -> int:
        """Sleeps until bytes arrive. If the last ones came within the polling time, looks for them that long first.

        A processor that has gone idle takes longer to wake than a small request takes to answer; one that yields
        between two looks is there at once and in nobody's way.
        """
        started = time.monotonic()
        if self._polling:
            until = started + self._poll_seconds
            while time.monotonic() < until:
                with contextlib.suppress(BlockingIOError):
                    size = self._connection.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
                    self._polling = size <= POLLED_BYTES
                    return size
                os.sched_yield()
        size = self._connection.recv_into(self._buffer)
        self._polling = size <= POLLED_BYTES and time.monotonic() - started < self._poll_seconds
        return size

    def _load(self, load: Load) -> bool:
        self._poll_seconds = load.poll_seconds
        self._overlaps = load.async_communication
        self._steps = load.continuous_batching
        outbox = self._outbox
        if load.every_metric:
            outbox.keep_all_metrics()
        try:
            enter_model_dir(load)
            self._service = load_service(
                load, outbox.send_piece, bodies=self._bodies, page=self._page, sink=outbox.add_sample
            )
        except BaseException as error:  # noqa: BLE001  # also sys.exit(): the server must hear why there is no model
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            tell_device_state()
            sys.stderr.write(f"{text}Backend worker process died.\n")
            exhausted = out_of_memory(error) if isinstance(error, (MemoryError, RuntimeError)) else False
            message = "System out of memory" if exhausted else _one_line(error)
            for directory in (os.path.realpath(load.model_dir), load.model_dir):
                message = message.replace(directory, ".")  # clients see it, and learn no paths of this machine
            place = locate(error, load.model_dir)
            outbox.send_json(FrameKind.LOADED, Loaded(False, message, exhausted, text, _one_line(error), *place))
            return False
        # What exists now stays: collections need not look at it again.
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGTERM, self._stop)
        outbox.send_json(FrameKind.LOADED, Loaded(True, f"loaded model {load.model_name}"))
        return True

    def _run_side_by_side(self, service: Service) -> None:
        if self._steps:
            Steps(self._connection, self._receive, self._decoder, service, self._outbox).run()
            return
        from ts.overlap import Overlap  # noqa: PLC0415  # most workers need no asyncio

        Overlap(self._connection, self._decoder, service, self._outbox).run()

    def _predict(self, payload: memoryview) -> None:
        service, outbox, page = self._service, self._outbox, self._page
        if service is None:
            raise WireError("PREDICT came before LOAD.")
        flushed = time.monotonic()
        try:
            for batch in decode_predict(payload, flushed):
                page.running = batch.id
                outbox.hold(service.predict(batch))
                now = time.monotonic()
                if now - flushed >= HELD_SECONDS:
                    outbox.flush()
                    flushed = now
            page.running = 0
        finally:
            outbox.flush()

    def _stop(self, *_: Any) -> None:
        self._stopping = True
        if self._waiting:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RD)


def _one_line(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001  # an exception of a user may do anything when it is printed
        text = ""
    return f"{name}: {text}" if text else name


def _inherited_socket(fd: int) -> socket.socket:
    connection = socket.socket(fileno=fd)
    connection.setblocking(True)
    connection.set_inheritable(False)

    # A child that a handler forks is no worker: it must not hold the connection open after the worker's death, nor take
    # SIGTERM for a request to stop, which would shut the connection of its parent. A SIGTERM that comes in between
    # waits: the interpreter forgets signals that arrive while it forks.
    def before() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def in_child() -> None:
        connection.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
    return connection


def _map(fd: int, size: int, protection: int) -> mmap.mmap:
    with os.fdopen(fd, "rb"):  # a mapping keeps the memory, the descriptor can go
        return mmap.mmap(fd, size, mmap.MAP_SHARED, protection)


def _configure_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")


def _die_with_parent() -> None:
    """Ends this process when the server does, even in the midst of a call of the handler."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _exit_within(seconds: float, status: int) -> None:
    timer = threading.Timer(seconds, os._exit, [status])
    timer.daemon = True
    timer.start()


def detach() -> None:
    """Makes this process live and die with its server, and import nothing from where that was started."""
    if sys.path[0] == str(Path.cwd()) and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # "python -m" put it there; nothing where the server was started may hide a module
    # Ctrl-C reaches the whole process group; the server decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()


def run(socket_fd: int, status_fd: int, bodies_fd: int | None) -> int:
    """Runs a worker on inherited file descriptors; returns the exit status.

    Args:
        socket_fd: one end of a Unix stream socket pair.
        status_fd: the page of shared memory that :mod:`ts.page` is about.
        bodies_fd: shared memory with request bodies.
    """
    detach()
    _configure_output()
    dump_stacks()
    connection = _inherited_socket(socket_fd)
    page = Page(_map(status_fd, PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE))
    bodies = None if bodies_fd is None else memoryview(_map(bodies_fd, 0, mmap.PROT_READ))
    code = 1
    try:
        code = Worker(connection, page, bodies).run()
    except (BrokenPipeError, ConnectionResetError):
        code = 0  # the server is gone
    finally:
        connection.close()
        _exit_within(EXIT_SECONDS, code)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a worker on the file descriptors that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ts.worker", description="Worker process; started by the server.")
    parser.add_argument("--socket-fd", type=int, required=True, help="one end of a Unix stream socket pair")
    parser.add_argument("--status-fd", type=int, required=True, help="shared memory of one page")
    parser.add_argument("--bodies-fd", type=int, help="shared memory with request bodies")
    given = parser.parse_args(arguments)
    return run(given.socket_fd, given.status_fd, given.bodies_fd)


if __name__ == "__main__":
    sys.exit(main())
