"""From what is known of the end of a worker to its cause, in a word and in a sentence. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from signal import Signals
from typing import NamedTuple

from mariner.engines import Exit
from mariner.tracebacks import Raised, last_exception, last_stack, shorten
from ts.wire import Loaded

__all__ = ["Cause", "Ending", "Verdict", "name_cause", "signal_name"]


class Cause(Enum):
    """What a worker died of; the ``reason`` of answers and the label of the metric."""

    NOT_STARTED = "not_started"
    IMPORT_ERROR = "import_error"
    LOAD_FAILED = "load_failed"
    EXCEPTION = "exception"
    EXIT = "exit"
    CRASH = "crash"
    KILLED = "killed"
    OOM_KILL = "oom_kill"
    OUT_OF_MEMORY = "out_of_memory"
    CUDA_ERROR = "cuda_error"
    CUDA_OUT_OF_MEMORY = "cuda_out_of_memory"
    DISK_FULL = "disk_full"
    RESPONSE_TIMEOUT = "response_timeout"
    STARTUP_TIMEOUT = "startup_timeout"
    PROTOCOL_ERROR = "protocol_error"
    ENDED = "ended"  # by the server, which had its reasons
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Ending:
    """What is known of the end of a process before it comes; nothing of one that dies by itself.

    Attributes:
        cause: why the server ends it, None if it does not.
        why: the same in words.
        failure: what the worker said of a model it could not load.
        hung: it did not answer in time; what it says from then on is void.
    """

    cause: Cause | None = None
    why: str = ""
    failure: Loaded | None = None
    hung: bool = False

    def decide(self, cause: Cause, why: str) -> None:
        """The server ends it; the first reason counts."""
        if self.cause is None:
            self.cause, self.why = cause, why
            self.hung = cause in (Cause.RESPONSE_TIMEOUT, Cause.STARTUP_TIMEOUT)


class Verdict(NamedTuple):
    """What a worker died of.

    Attributes:
        cause: in a word.
        summary: in a sentence that begins with "it"; for everybody, so no path of this machine is in it.
        raised: the exception, or the line that was running; its message may name paths.
    """

    cause: Cause
    summary: str
    raised: Raised = Raised()


_NO_PLACE = Raised()
_CRASHES = frozenset(("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP"))
_IMPORTS = frozenset(("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "TabError"))
_WORDS = {
    Cause.CUDA_OUT_OF_MEMORY: "the memory of the GPU ran out",
    Cause.CUDA_ERROR: "the GPU failed",
    Cause.OUT_OF_MEMORY: "memory ran out",
    Cause.DISK_FULL: "the disk is full",
}
_TEXTS = (  # of exceptions, and of what native code writes before it aborts; the first that fits counts
    (
        re.compile(r"CUDA (?:error: )?out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"),
        Cause.CUDA_OUT_OF_MEMORY,
    ),
    (
        re.compile(r"CUDA error|CUDA_ERROR_|device-side assert|CUBLAS_STATUS_|CUDNN_STATUS_|cuDNN error|NCCL error"),
        Cause.CUDA_ERROR,
    ),
    (
        re.compile(
            r"^(?:\w+\.)*MemoryError\b|DefaultCPUAllocator|[Cc]annot allocate memory|\[Errno 12\]|std::bad_alloc"
        ),
        Cause.OUT_OF_MEMORY,
    ),
    (re.compile(r"\[Errno (?:28|122)\]|No space left on device|Disk quota exceeded"), Cause.DISK_FULL),
)
_PATH = re.compile(r"(?<![\w./:])/(?:[^\s/'\":]+/)*([^\s/'\":]+)")


def name_cause(exit_: Exit, ending: Ending, *, roots: Sequence[str], loaded: bool) -> Verdict:
    """What a worker died of.

    Args:
        exit_: how the process ended.
        ending: what was known before.
        roots: names of the model's directory: one may be a link to the other.
        loaded: the model had been loaded.
    """
    if ending.failure is not None:
        return _by_exception(_reported(ending.failure, roots), roots, loaded=False)
    if ending.cause is not None:
        stack = (last_stack(exit_.last_lines, roots) if ending.hung else None) or _NO_PLACE
        at = f"; it was at {stack.place}" if stack.place else ""
        return Verdict(ending.cause, _without_paths(ending.why, roots) + at, stack)
    signal = signal_name(exit_.code)
    if signal or exit_.code is None:
        return _by_signal(exit_, signal, roots)
    raised = last_exception(exit_.last_lines, roots) if exit_.code == 1 else None
    if raised is None:
        called = "code that it ran called exit" if exit_.code else "SIGTERM asked it to go, or its code called exit"
        return Verdict(Cause.EXIT, f"{exit_}: {called}")
    return _by_exception(raised, roots, loaded=loaded)


def signal_name(code: int | None) -> str:
    """The signal that an exit code stands for, "" if it stands for none."""
    if code is None or code >= 0:
        return ""
    try:
        return Signals(-code).name
    except ValueError:  # a real-time signal
        return f"SIG{-code}"


def _reported(failure: Loaded, roots: Sequence[str]) -> Raised:
    type_, _, message = (failure.exception or failure.message).partition(": ")
    return Raised(type_, message, shorten(failure.file, roots), failure.line, failure.function)


def _by_exception(raised: Raised, roots: Sequence[str], *, loaded: bool) -> Verdict:
    text = f"{raised.type}: {raised.message}".removesuffix(": ")
    cause = _named(text) or _kind(raised.type.rpartition(".")[2], loaded=loaded)
    if cause is Cause.DISK_FULL:
        text = raised.type  # the message names a file
    text = _without_paths(text, roots)
    text = f"{_WORDS[cause]}: {text}" if cause in _WORDS else f"it raised {text}"
    return Verdict(cause, f"{text} ({raised.place})" if raised.place else text, raised)


def _without_paths(text: str, roots: Sequence[str]) -> str:
    for root in roots:
        text = text.replace(root, ".")
    return _PATH.sub(r"\1", text)


def _named(text: str) -> Cause | None:
    return next((cause for pattern, cause in _TEXTS if pattern.search(text)), None)


def _kind(name: str, *, loaded: bool) -> Cause:
    if name == "SystemExit":
        return Cause.EXIT
    if loaded:
        return Cause.EXCEPTION
    return Cause.IMPORT_ERROR if name in _IMPORTS else Cause.LOAD_FAILED


def _by_signal(exit_: Exit, signal: str, roots: Sequence[str]) -> Verdict:
    if signal in _CRASHES:
        return _crash(exit_, signal, last_stack(exit_.last_lines, roots) or _NO_PLACE)
    if signal == "SIGKILL" or exit_.oom_kills:
        return _kill(exit_, roots)
    if signal:
        return Verdict(Cause.KILLED, f"{exit_} ({signal}), which somebody sent")
    return Verdict(Cause.UNKNOWN, str(exit_))


def _kill(exit_: Exit, roots: Sequence[str]) -> Verdict:
    """The kernel and people kill alike; only the kernel counts."""
    text = "it was killed by signal 9 (SIGKILL)"
    if exit_.killed:  # it was on its way out, and a thread or an exit handler kept it
        if (raised := last_exception(exit_.last_lines, roots)) is not None:
            return _by_exception(raised, roots, loaded=True)
        return Verdict(Cause.EXIT, "it closed its connection, as code that calls exit does, but did not end")
    if exit_.oom_kills:
        return Verdict(Cause.OOM_KILL, f"{text} by the kernel, for lack of memory")
    if exit_.oom_kills is None:
        return Verdict(Cause.OOM_KILL, f"{text}, probably by the kernel for lack of memory: the count cannot be read")
    return Verdict(Cause.KILLED, f"{text}, which somebody sent: the kernel counts no kill for lack of memory")


def _crash(exit_: Exit, signal: str, stack: Raised) -> Verdict:
    text = f"{exit_} ({signal})" + (f" at {stack.place}" if stack.place else "")
    if signal == "SIGBUS":
        text += ": a mapped file was cut short, or its disk or shared memory is full"
    cause = _named("\n".join(exit_.last_lines)) if signal == "SIGABRT" else None
    if cause is None:
        return Verdict(Cause.CRASH, text, stack)
    return Verdict(cause, f"{_WORDS[cause]}: {text}", stack)
