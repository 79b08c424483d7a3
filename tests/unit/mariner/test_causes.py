"""From evidence to cause, with values; what CUDA and the kernel say is recorded text."""

from __future__ import annotations

import pytest

from mariner.causes import Cause, Ending, Verdict, name_cause, signal_name
from mariner.engines import Exit
from mariner.tracebacks import Raised
from ts.wire import Loaded

ROOT = "/tmp/models/abc"
TRACEBACK = (
    "Traceback (most recent call last):",
    '  File "/opt/venv/lib/python3.11/site-packages/ts/worker.py", line 300, in _predict',
    "    outbox.hold(service.predict(batch))",
    f'  File "{ROOT}/handler.py", line 12, in handle',
    "    return self.model(data)",
    '  File "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1775, in _call_impl',
    "    return forward_call(*args, **kwargs)",
)
STACK = (
    "Fatal Python error: Segmentation fault",
    "",
    "Stack (most recent call first):",
    '  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at',
    f'  File "{ROOT}/handler.py", line 7 in handle',
    '  File "/opt/venv/lib/python3.11/site-packages/ts/service.py", line 250 in _answer',
    "",
    "Extension modules: numpy._core._multiarray_umath (total: 1)",
)
CUDA_ASSERT = (
    "torch.AcceleratorError: CUDA error: device-side assert triggered",
    "Search for `cudaErrorAssert' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more.",
    "CUDA kernel errors might be asynchronously reported at some other API call.",
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
    "",
)
C10_ABORT = (
    "terminate called after throwing an instance of 'c10::AcceleratorError'",
    "  what():  CUDA error: device-side assert triggered",
    "Exception raised from c10_cuda_check_implementation at /pytorch/c10/cuda/CUDAException.cpp:44 (most recent call",
)
OUT_OF_GPU = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB",
)


def cause_of(exit_: Exit, ending: Ending | None = None, *, loaded: bool = True) -> Verdict:
    return name_cause(exit_, ending or Ending(), roots=(ROOT,), loaded=loaded)


@pytest.mark.parametrize(
    ("exit_", "cause", "summary"),
    [
        (Exit(0), Cause.EXIT, "it exited with code 0: SIGTERM asked it to go, or its code called exit"),
        (Exit(3), Cause.EXIT, "it exited with code 3: code that it ran called exit"),
        (Exit(1), Cause.EXIT, "it exited with code 1: code that it ran called exit"),
        (Exit(None), Cause.UNKNOWN, "it lost its connection"),
        (Exit(-15), Cause.KILLED, "it was killed by signal 15 (SIGTERM), which somebody sent"),
        (Exit(-61), Cause.KILLED, "it was killed by signal 61 (SIG61), which somebody sent"),
        (Exit(-11), Cause.CRASH, "it was killed by signal 11 (SIGSEGV)"),
        (Exit(-11, 0, STACK), Cause.CRASH, "it was killed by signal 11 (SIGSEGV) at handler.py:7"),
        (Exit(-6), Cause.CRASH, "it was killed by signal 6 (SIGABRT)"),
        (Exit(-6, 0, C10_ABORT), Cause.CUDA_ERROR, "the GPU failed: it was killed by signal 6 (SIGABRT)"),
        (
            Exit(-6, 0, (*C10_ABORT, *STACK)),
            Cause.CUDA_ERROR,
            "the GPU failed: it was killed by signal 6 (SIGABRT) at handler.py:7",
        ),
        (
            Exit(-6, 0, ("terminate called after throwing an instance of 'std::bad_alloc'",)),
            Cause.OUT_OF_MEMORY,
            "memory ran out: it was killed by signal 6 (SIGABRT)",
        ),
        (
            Exit(-7),
            Cause.CRASH,
            "it was killed by signal 7 (SIGBUS): a mapped file was cut short, or its disk or shared memory is full",
        ),
        (
            Exit(-9, oom_kills=1),
            Cause.OOM_KILL,
            "it was killed by signal 9 (SIGKILL) by the kernel, for lack of memory",
        ),
        (
            Exit(-9, oom_kills=0),
            Cause.KILLED,
            "it was killed by signal 9 (SIGKILL), which somebody sent: the kernel counts no kill for lack of memory",
        ),
        (
            Exit(-9, oom_kills=None),
            Cause.OOM_KILL,
            "it was killed by signal 9 (SIGKILL), probably by the kernel for lack of memory: the count cannot be read",
        ),
        (
            Exit(None, oom_kills=1),  # of a fork, whose template was killed as well
            Cause.OOM_KILL,
            "it was killed by signal 9 (SIGKILL) by the kernel, for lack of memory",
        ),
        (
            Exit(-9, killed=True),
            Cause.EXIT,
            "it closed its connection, as code that calls exit does, but did not end",
        ),
        (
            Exit(-9, 0, (*TRACEBACK, "KeyError: 'x'"), killed=True),
            Cause.EXCEPTION,
            "it raised KeyError: 'x' (handler.py:12)",
        ),
    ],
)
def test_how_a_process_ended_names_the_cause(exit_: Exit, cause: Cause, summary: str) -> None:
    verdict = cause_of(exit_)
    assert (verdict.cause, verdict.summary) == (cause, summary)


@pytest.mark.parametrize(
    ("lines", "cause", "summary"),
    [
        (
            CUDA_ASSERT,
            Cause.CUDA_ERROR,
            "the GPU failed: torch.AcceleratorError: CUDA error: device-side assert triggered Search for",
        ),
        (OUT_OF_GPU, Cause.CUDA_OUT_OF_MEMORY, "the memory of the GPU ran out: torch.OutOfMemoryError: CUDA out of"),
        (("MemoryError",), Cause.OUT_OF_MEMORY, "memory ran out: MemoryError (handler.py:12)"),
        (
            ("RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",),
            Cause.OUT_OF_MEMORY,
            "memory ran out: RuntimeError: [enforce",
        ),
        (
            ("OSError: [Errno 28] No space left on device: '/srv/secret/cache'",),
            Cause.DISK_FULL,
            "the disk is full: OSError (handler.py:12)",
        ),
        (("KeyError: 'x'",), Cause.EXCEPTION, "it raised KeyError: 'x' (handler.py:12)"),
        (
            ("FileNotFoundError: [Errno 2] No such file: '/srv/secret/labels.txt'",),
            Cause.EXCEPTION,
            "it raised FileNotFoundError: [Errno 2] No such file: 'labels.txt' (handler.py:12)",
        ),
    ],
)
def test_the_exception_that_ended_a_running_worker_names_the_cause(
    lines: tuple[str, ...], cause: Cause, summary: str
) -> None:
    verdict = cause_of(Exit(1, 1, (*TRACEBACK, *lines)))
    assert verdict.cause is cause
    assert verdict.summary.startswith(summary)
    assert "secret" not in verdict.summary
    assert verdict.raised[2:] == ("handler.py", 12, "handle")


def test_an_exit_with_another_code_is_not_blamed_on_an_exception_that_was_printed_before() -> None:
    assert cause_of(Exit(3, 1, (*TRACEBACK, "KeyError: 'x'"))).cause is Cause.EXIT


@pytest.mark.parametrize(
    ("exception", "cause"),
    [
        ("ModuleNotFoundError: No module named 'x'", Cause.IMPORT_ERROR),
        ("SyntaxError: invalid syntax", Cause.IMPORT_ERROR),
        ("ValueError: no", Cause.LOAD_FAILED),
        ("MemoryError", Cause.OUT_OF_MEMORY),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", Cause.CUDA_OUT_OF_MEMORY),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", Cause.CUDA_ERROR),
        ("OSError: [Errno 28] No space left on device", Cause.DISK_FULL),
        ("OSError: [Errno 122] Disk quota exceeded", Cause.DISK_FULL),
        ("SystemExit: 3", Cause.EXIT),
    ],
)
def test_what_a_worker_said_of_a_failed_load_names_the_cause(exception: str, cause: Cause) -> None:
    failure = Loaded(False, "for clients", exception=exception, file="handler.py", line=5, function="initialize")
    for killed in (Ending(failure=failure), Ending(Cause.ENDED, "it could not load", failure)):
        verdict = cause_of(Exit(-9, killed=True), killed, loaded=False)
        assert verdict.cause is cause
        assert verdict.raised == Raised(*exception.partition(": ")[::2], "handler.py", 5, "initialize")


def test_an_import_that_fails_in_a_running_worker_is_an_exception() -> None:
    assert cause_of(Exit(1, 1, (*TRACEBACK, "ImportError: no"))).cause is Cause.EXCEPTION


def test_why_the_server_ended_it_counts_more_than_how_it_ended() -> None:
    late = Ending()
    late.decide(Cause.RESPONSE_TIMEOUT, "it gave no answer within 2 s (responseTimeout)")
    verdict = cause_of(Exit(-9, 1, STACK, killed=True), late)
    assert verdict.summary == "it gave no answer within 2 s (responseTimeout); it was at handler.py:7"
    assert verdict.raised == Raised("", "", "handler.py", 7, "handle")
    assert cause_of(Exit(-9, 1, killed=True), late).summary == "it gave no answer within 2 s (responseTimeout)"


def test_only_the_first_reason_for_which_the_server_ends_a_worker_counts() -> None:
    ending = Ending()
    ending.decide(Cause.RESPONSE_TIMEOUT, "first")
    ending.decide(Cause.ENDED, "second")
    assert (ending.cause, ending.why) == (Cause.RESPONSE_TIMEOUT, "first")


def test_the_reason_of_the_server_names_no_path() -> None:
    ending = Ending(Cause.NOT_STARTED, "its process could not be created: No such file: '/opt/secret/bin/python'")
    assert cause_of(Exit(None), ending).summary == "its process could not be created: No such file: 'python'"


@pytest.mark.parametrize(("code", "name"), [(None, ""), (0, ""), (3, ""), (-9, "SIGKILL"), (-61, "SIG61")])
def test_signals_have_names(code: int | None, name: str) -> None:
    assert signal_name(code) == name
