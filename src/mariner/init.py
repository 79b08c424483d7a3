"""The first process of a container: collects the processes that nobody else does, and passes signals on.

A process whose parent has ended becomes a child of process 1, and stays in the table of processes until that collects
it. The event loop of a server waits for the processes it has started and for no others. Where the server is the first
process, it runs below this one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

__all__ = ["run_below"]

_KEPT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_SIGNALS = signal.valid_signals() - _KEPT  # those left out cannot be waited for, or are about this process itself


def run_below(main: Callable[[], int]) -> int:
    """Runs ``main`` in a child and waits for it as process 1 must. Returns in both processes.

    Returns:
        Exit status: that of ``main``, or 128 and the number of the signal that ended it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # none may be lost between fork and wait
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return main()
    while True:
        received = signal.sigwaitinfo(_SIGNALS)
        if received.si_signo == signal.SIGCHLD:
            status = _collect(child)
            if status is not None:
                return status if status >= 0 else 128 - status
        elif received.si_code <= 0:  # from a process; what a terminal sends, such as Ctrl-C, the child gets as well
            os.kill(child, received.si_signo)


def _collect(child: int) -> int | None:
    """Collects all processes that have ended; the exit code of the child if it is one of them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not pid:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
