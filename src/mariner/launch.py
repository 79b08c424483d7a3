"""Servers as processes: the pid file, starting one in the background, stopping one. Not what they serve."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

import psutil

from mariner.errors import ConfigurationError

__all__ = ["ALREADY_RUNNING", "PidFile", "StartReport", "start_apart", "start_background", "stop"]

Say = Callable[[str], None]

ALREADY_RUNNING = "TorchServe is already running, please use torchserve --stop to stop TorchServe."

_CLOCK_SLACK = 10.0  # seconds by which the start of a process and the time of a file may disagree
_PATIENCE = 10.0  # seconds after which waiting is explained
_GRACE = 10.0  # seconds for a server that has failed to end by itself
_POLL = 0.1  # seconds between two looks at a process


class PidFile:
    """Where the running server is recorded: one per temporary directory, hence one server per temporary directory."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(tempfile.gettempdir()) / ".model_server.pid"

    def server(self) -> psutil.Process | None:
        """The recorded server, if it runs."""
        process = self._process()
        return process if process is not None and self._is_server(process) else None

    def remove_orphan(self) -> bool:
        """Removes the file if the process it names is gone; true if it did."""
        if not self.path.is_file():
            return False
        with self._locked():  # else a server that starts now could lose the record it has just made
            if not self.path.is_file() or self._process() is not None:
                return False
            self.remove()
        return True

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Holds off every other start until the caller has recorded its server.

        Raises:
            ConfigurationError: a server runs already.
        """
        with self._locked():
            if self.server() is not None:
                raise ConfigurationError(ALREADY_RUNNING)
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds off every other command that looks at the record in order to change it."""
        with contextlib.ExitStack() as held:
            # A lock of the directory leaves no file behind, and none is left when its holder is killed. Where the
            # file system has no such locks, two starts at the same instant are not told apart.
            with contextlib.suppress(OSError):
                directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, directory)
                fcntl.flock(directory, fcntl.LOCK_EX)
            yield

    def write(self, pid: int) -> None:
        """Records a server.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        try:
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                os.fchmod(descriptor, 0o644)
                file.write(str(pid))
            # Replacing follows no link that somebody else put there: the directory may be open to everybody.
            Path(name).replace(self.path)
        except OSError as error:
            raise ConfigurationError(
                f"The pid file {self.path} cannot be written: {error.strerror}.",
                hint="Set TMPDIR to another directory.",
            ) from error

    def remove(self, pid: int | None = None) -> None:
        """Removes the record; with ``pid`` only if it is of that process."""
        if pid is None or self._pid() == pid:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _pid(self) -> int | None:
        try:
            return int(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _process(self) -> psutil.Process | None:
        pid = self._pid()
        if pid is None or pid == os.getpid():
            return None
        with contextlib.suppress(psutil.Error, ValueError, OverflowError):
            process = psutil.Process(pid)
            return None if _is_gone(process) else process
        return None

    def _is_server(self, process: psutil.Process) -> bool:
        """Whether this is the process that was recorded, and not another that got its number."""
        try:
            names = {Path(word).name for word in process.cmdline()[:4]}
            return bool(names & {"mariner", "torchserve"}) and (
                process.create_time() < self.path.stat().st_mtime + _CLOCK_SLACK
            )
        except (psutil.Error, OSError):
            return False


# -- starting --------------------------------------------------------------------------------------------------------


class _Event(Enum):
    READY = "ready"
    MODELS_READY = "models_ready"
    FAILED = "failed"


class StartReport:
    """What a server in the background tells the command that waits for it, through a pipe it has inherited."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # a worker that kept it would hide that the server has ended
        self._fd: int | None = fd

    def ready(self) -> None:
        """The listeners answer."""
        self._send(_Event.READY)

    def models_ready(self) -> None:
        """The models loaded at start answer too; the last thing there is to say."""
        self._send(_Event.MODELS_READY)
        self.close()

    def failed(self, reason: str) -> None:
        """The server cannot start."""
        self._send(_Event.FAILED, reason)
        self.close()

    def close(self) -> None:
        """Nothing more will be said."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _send(self, event: _Event, text: str = "") -> None:
        if self._fd is not None:
            with contextlib.suppress(BrokenPipeError):  # the command has gone: it need not wait for everything
                os.write(self._fd, json.dumps([event.value, text]).encode() + b"\n")


def start_background(arguments: Sequence[str], pid_file: PidFile, *, wait_for_models: bool, say: Say) -> int:
    """Starts a server that outlives the caller and shares its stdin, stdout and stderr.

    Args:
        arguments: flags of the server.
        pid_file: takes its process id.
        wait_for_models: waits for the models loaded at start too, not only for the listeners.
        say: prints a line.

    Returns:
        Exit status: 0 once the listeners answer, 1 if the server did not start.

    Raises:
        ConfigurationError: the pid file cannot be written, or a server runs already.
    """
    process, receiver = _start_recorded(arguments, pid_file)
    return _await_start(process, receiver, pid_file, wait_for_models=wait_for_models, say=say)


def start_apart(
    arguments: Sequence[str], pid_file: PidFile, *, output: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts a server that shares nothing with the caller, and returns when its listeners answer.

    Args:
        arguments: flags of the server.
        pid_file: takes its process id.
        output: a file for what it writes, which only its owner may read; it runs in the directory of that file.
        environment: its variables.

    Raises:
        ConfigurationError: it did not start, and why; or one runs already.
    """
    process, receiver = _start_recorded(arguments, pid_file, output, environment)
    said: list[str] = []
    if _await_start(process, receiver, pid_file, wait_for_models=False, say=said.append):
        raise ConfigurationError(" ".join(said), hint=f"What it wrote is in {output}.")
    return process


def _start_recorded(
    arguments: Sequence[str],
    pid_file: PidFile,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[bytes], int]:
    """A server's process that the file names, and the descriptor that its reports are read from."""
    with pid_file.claim():
        process, receiver = _spawn(arguments, output, environment)
        try:
            pid_file.write(process.pid)
        except ConfigurationError:
            os.close(receiver)
            process.terminate()
            _collect(process, pid_file)
            raise
    return process, receiver


def _spawn(
    arguments: Sequence[str], output: Path | None, environment: Mapping[str, str] | None
) -> tuple[subprocess.Popen[bytes], int]:
    """As :func:`_start_recorded`; without a file for its output it shares the caller's directory and streams."""
    receiver, sender = os.pipe()
    # -P: what lies in the working directory must not be imported in place of a module of the server.
    command = [sys.executable, "-P", "-m", "mariner", "_serve", "--ready-fd", str(sender), *arguments]
    directory = None if output is None else str(output.parent)
    try:
        with _streams(output) as (stdin, written):
            process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                pass_fds=(sender,),
                start_new_session=True,
                env=environment,
                cwd=directory,
                stdin=stdin,
                stdout=written,
                stderr=written,
            )
    except BaseException:
        os.close(receiver)
        raise
    finally:
        os.close(sender)
    return process, receiver


@contextlib.contextmanager
def _streams(output: Path | None) -> Iterator[tuple[int | None, int | None]]:
    """What a server reads and where it writes: nothing and the end of a file, or, without one, what its caller has."""
    if output is None:
        yield None, None
        return
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield subprocess.DEVNULL, descriptor
    finally:
        os.close(descriptor)


def _await_start(
    process: subprocess.Popen[bytes], receiver: int, pid_file: PidFile, *, wait_for_models: bool, say: Say
) -> int:
    last = _Event.MODELS_READY if wait_for_models else _Event.READY
    answers = False
    try:
        for event, text in _events(process, receiver, say):
            if event is last:
                return 0
            answers = True
            if event is _Event.FAILED:
                say(text)
                break
    except KeyboardInterrupt:
        if not answers:
            process.terminate()
            _collect(process, pid_file)
        raise
    finally:
        os.close(receiver)
    _collect(process, pid_file)
    return 1


def _collect(process: subprocess.Popen[bytes], pid_file: PidFile) -> None:
    """Waits for a server that is ending."""
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    pid_file.remove(process.pid)


def _events(process: subprocess.Popen[bytes], receiver: int, say: Say) -> Iterator[tuple[_Event, str]]:
    """What the server reports; ends with a failure if the server does."""
    started, patient = time.monotonic(), True
    buffer = b""
    while True:
        if select.select([receiver], [], [], _POLL)[0]:
            piece = os.read(receiver, 65536)
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                name, text = json.loads(line)
                yield _Event(name), text
            if piece:
                continue
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            yield _Event.FAILED, _obituary(process.poll())
            return
        if process.poll() is not None:
            yield _Event.FAILED, _obituary(process.returncode)
            return
        if patient and time.monotonic() - started > _PATIENCE:
            patient = False
            say("Waiting for the server to be ready. Its log says what it is doing.")


def _obituary(returncode: int | None) -> str:
    if returncode is None:
        how = "stopped short of its end"
    elif returncode < 0:
        how = f"was killed by {signal.Signals(-returncode).name}"
    else:
        how = f"ended with exit status {returncode}"
    return f"TorchServe did not start: the server process {how}. Its last lines above say why."


# -- stopping --------------------------------------------------------------------------------------------------------


def stop(pid_file: PidFile, *, timeout: float, quiet: bool, say: Say, complain: Say) -> int:
    """Asks the recorded server to stop and waits until it has.

    Args:
        pid_file: names the server.
        timeout: seconds to wait for it.
        quiet: says nothing if all goes well.
        say: prints a line.
        complain: prints a line that is no output of the command.

    Returns:
        Exit status; 0 too if nothing runs or the server takes longer.
    """
    process = pid_file.server()
    if process is None:
        say("TorchServe is not currently running.")
        return 0
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        say("TorchServe already stopped.")
        pid_file.remove()
        return 0
    except psutil.AccessDenied:
        say(f"TorchServe runs as process {process.pid} of another user: stop it as that user.")
        return 1
    with contextlib.suppress(OSError):  # the contract: that of the directory the command is run in, if there is one
        Path("key_file.json").unlink()
    begun, announced = time.monotonic(), quiet
    while not _is_gone(process):
        waited = time.monotonic() - begun
        if waited > timeout:
            say("Stopping TorchServe took too long.")
            complain(_what_runs(process))
            return 0
        if waited > 1 and not announced:
            announced = True
            say("Waiting for running requests to end...")
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(timeout=_POLL)
    pid_file.remove_orphan()  # and not the record of a server that has been started meanwhile
    if not quiet:
        say("TorchServe has stopped.")
    return 0


def _what_runs(server: psutil.Process) -> str:
    """About a server that takes long to stop: it and its processes, and what to do."""
    below = []
    with contextlib.suppress(psutil.Error):
        below = [str(process.pid) for process in server.children(recursive=True)]
    others = f", with its process{'es' * (len(below) > 1)} {', '.join(below)}" if below else ""
    return (
        f"Process {server.pid} still answers requests{others}. It ends by itself when they are answered or its "
        f"drain_timeout is over; kill -9 {server.pid} ends it now."
    )


def _is_gone(process: psutil.Process) -> bool:
    """True for a zombie too: where nobody collects it, as in many containers, it stays one."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
