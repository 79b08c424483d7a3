"""The warm template: a process that has imported PyTorch already, and that workers are forked from.

A worker that starts anew spends a second on ``import torch``; one that is forked has it at once, and shares its memory.
The template runs nothing of a model and touches no device. Its parent asks for workers over a socket that keeps the
bounds of messages: a request carries the descriptors and the environment of one worker, an answer its process id.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import re
import select
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ts.worker import detach, run

__all__ = ["main"]

PRELOADED = ("torch", "orjson", "yaml", "ts.loader", "ts.metrics.store", "ts.torch_handler.base_handler")
MESSAGE_SIZE = 1 << 20  # bytes; an environment is smaller
MADV_DONTNEED = 4  # of madvise(2)
_CODE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[-x]p \S+ \S+ \S+ +/")  # a file, mapped and never to be written
DESCRIPTORS = 5  # of a request: socket, status page, standard output, standard error, and bodies where there are any


class Job(NamedTuple):
    """What a forked process is to be.

    Attributes:
        environment: all of it.
        fds: socket, status page, standard output, standard error, and the bodies if there are any.
    """

    environment: Mapping[str, str]
    fds: Sequence[int]


class Template:
    """Forks on request and reports how its children end.

    Args:
        control: one end of a ``SOCK_SEQPACKET`` pair.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, int] = {}  # process ids by pidfd

    def serve(self) -> Job | None:
        """Returns in each forked process with what it is to be, and with None here when the parent has gone."""
        self._send({"ready": True})
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._control.fileno():
                    self._reap(fd)
                    continue
                message, fds, _, _ = socket.recv_fds(self._control, MESSAGE_SIZE, DESCRIPTORS)
                if not message:
                    return None
                job = Job(json.loads(message), fds)
                if self._fork(job):
                    return job

    def _fork(self, job: Job) -> bool:
        """Whether this is the new process."""
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"failed": str(error)})
            pid = -1
        if pid == 0:
            self._control.close()
            for fd in self._children:
                os.close(fd)
            return True
        for fd in job.fds:
            os.close(fd)
        if pid > 0:
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)
            self._send({"pid": pid}, pidfd)
        return False

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._send({"exited": pid, "code": os.waitstatus_to_exitcode(status)})

    def _send(self, message: Mapping[str, Any], *fds: int) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the parent has gone; the next read will tell
            socket.send_fds(self._control, [json.dumps(message).encode()], fds)


def _preload() -> None:
    importlib.import_module(PRELOADED[0])
    for name in PRELOADED[1:]:
        with suppress(ImportError):
            importlib.import_module(name)
    # Collections in a child must not touch, and so copy, what it shares with the others.
    gc.collect()
    gc.freeze()
    _unmap_code()


def _unmap_code() -> None:
    """Lets go of code that only the import has run, some 50 MB; what a worker runs comes back from the page cache."""
    libc = ctypes.CDLL(None)
    code: re.Match[str] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0].islower() or line[0].isdecimal():  # the head of a mapping, "7f00-7f10 r-xp ..."
            code = _CODE.match(line)
        elif code and line.startswith("Anonymous:") and line.split()[1] == "0":  # not changed by relocation, say
            start, end = int(code[1], 16), int(code[2], 16)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _become(job: Job) -> None:
    """Gives this process the environment and the output of its worker."""
    for target, fd in ((1, job.fds[2]), (2, job.fds[3])):
        os.dup2(fd, target)
        os.close(fd)
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.clear()
    os.environ.update(job.environment)
    wanted = job.environment.get("OMP_NUM_THREADS", "")
    if wanted != threads and wanted.isdecimal():
        _limit_threads(int(wanted))


def _limit_threads(count: int) -> None:
    """Does what the environment would have done, had it been there when the libraries were loaded."""
    sys.modules["torch"].set_num_threads(count)
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "openblas" in line}
    for path in paths:  # numpy's, which has no way to ask for this
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads"):
            if hasattr(library, name):
                getattr(library, name)(ctypes.c_int(count))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a template on an inherited socket; returns the exit status, of the template or of a worker."""
    parser = argparse.ArgumentParser(prog="ts.template", description="Process that workers are forked from.")
    parser.add_argument("--control-fd", type=int, required=True, help="one end of a SOCK_SEQPACKET socket pair")
    control = socket.socket(fileno=parser.parse_args(arguments).control_fd)
    control.set_inheritable(False)
    detach()
    _preload()
    job = Template(control).serve()
    if job is None:
        return 0
    _become(job)
    return run(job.fds[0], job.fds[1], job.fds[4] if len(job.fds) == DESCRIPTORS else None)


if __name__ == "__main__":
    sys.exit(main())
