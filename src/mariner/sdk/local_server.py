"""A server on this machine that the SDK starts, finds again, and stops.

One directory per server, below a directory that only its user may read, holds its configuration, archives, keys and
output, and says which process it is. A server belongs to the program that started it, and ends with it; one that is
kept belongs to the user, and ends with its last model. Programs share only servers that are kept.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from mariner.errors import ConfigurationError, DeploymentError
from mariner.launch import PidFile, start_apart
from mariner.properties import decode_properties, format_properties, parse_properties
from mariner.sdk.client import Client, KeyFile

__all__ = ["LocalServer", "read_properties"]

STOP_TIMEOUT = 130.0  # seconds; longer than the server takes to answer what it has
_ADDRESS = re.compile(rb"(Inference|Management|Metrics) API bind to: (\S+)")
_OWNED = re.compile(r"process-(\d+)-")
_HERE = {"model_snapshot", "load_models", "models"}  # of a user's file: models are registered by calls here
_VARIABLES = {"TS_CONFIG_FILE", "LOG_LOCATION", "METRICS_LOCATION"}  # they would outrank our flags


def read_properties(file: Path | None) -> dict[str, str]:
    """The settings of a user's own ``config.properties`` that count on this machine.

    Raises:
        DeploymentError: it is no such file.
    """
    if file is None:
        return {"install_py_dep_per_model": "true"}
    try:
        found = parse_properties(decode_properties(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise DeploymentError(f"{file} cannot be read: {error}.", hint="Write lines of the form key=value.") from error
    return {key: entry.value for key, entry in found.items() if key not in _HERE}


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A running server.

    Attributes:
        directory: what it keeps.
        pid: its process.
        addresses: of its listeners: ``inference``, ``management``, ``metrics``.
        is_new: it was started for this call.
    """

    directory: Path
    pid: int
    addresses: dict[str, str]
    is_new: bool = False

    @classmethod
    def obtain(cls, properties: dict[str, str], *, port: int = 0, keep: bool = False) -> LocalServer:
        """The server with these settings: the one that runs, or a new one.

        Args:
            properties: its settings.
            port: of the inference listener; 0 for a free one.
            keep: it outlives this program.

        Raises:
            DeploymentError: it does not start.
        """
        base = _private_directory()
        _sweep(base)
        key = hashlib.sha256(json.dumps([properties, port, sys.executable], sort_keys=True).encode()).hexdigest()[:12]
        directory = base / f"{'kept' if keep else f'process-{os.getpid()}'}-{key}"
        running = cls._find(directory)
        if running is not None:
            return running
        shutil.rmtree(directory, ignore_errors=True)  # of a server that has ended
        server, process = cls._start(directory, properties, port)
        if keep:
            process.returncode = 0  # nobody here waits for it, and that is no oversight
        else:
            atexit.register(_stop_owned, server, process, os.getpid())
        return server

    @classmethod
    def running(cls) -> Iterator[LocalServer]:
        """The servers of this program, then those that are kept."""
        base = _private_directory()
        for pattern in (f"process-{os.getpid()}-*", "kept-*"):
            for directory in sorted(base.glob(pattern)):
                if (server := cls._find(directory)) is not None:
                    yield server

    @property
    def model_store(self) -> Path:
        """Where its archives are."""
        return self.directory / "model-store"

    @property
    def log(self) -> Path:
        """What it writes."""
        return self.directory / "server.log"

    def client(self, kind: str) -> Client:
        """Calls one of its listeners: ``inference``, ``management`` or ``metrics``."""
        key = "management" if kind == "management" else "inference"
        return Client(self.addresses[kind], KeyFile(self.directory / "key_file.json", key))

    def stop(self) -> None:
        """Lets it answer what it has, and end; its directory goes too."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if _pid_file(self.directory).server() == process:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @classmethod
    def _find(cls, directory: Path) -> LocalServer | None:
        process = _pid_file(directory).server()
        if process is None:
            return None
        with suppress(OSError, ValueError):
            written = json.loads((directory / "addresses.json").read_text())
            return cls(directory, process.pid, written)
        return None

    @classmethod
    def _start(
        cls, directory: Path, properties: dict[str, str], port: int
    ) -> tuple[LocalServer, subprocess.Popen[bytes]]:
        (directory / "model-store").mkdir(parents=True)
        config = directory / "config.properties"
        config.write_text(format_properties(properties), encoding="ascii")
        arguments = [
            *("--model-store", str(directory / "model-store"), "--ts-config", str(config), "--ncs"),
            f"--inference-address=http://127.0.0.1:{port}",
            "--management-address=http://127.0.0.1:0",
            "--metrics-address=http://127.0.0.1:0",
            f"--log-location={directory / 'logs'}",
            f"--metrics-location={directory / 'logs'}",
        ]
        environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
        log = directory / "server.log"
        try:
            process = start_apart(arguments, _pid_file(directory), output=log, environment=environment)
        except ConfigurationError as error:
            written = log.read_text(errors="replace") if log.is_file() else ""
            raise DeploymentError(f"The server did not start. {error.message}", hint=_last_lines(written)) from error
        addresses = {kind.decode().lower(): url.decode() for kind, url in _ADDRESS.findall(log.read_bytes())}
        part = directory / "addresses.json.part"
        part.write_text(json.dumps(addresses))
        part.rename(directory / "addresses.json")
        return cls(directory, process.pid, addresses, is_new=True), process


def _stop_owned(server: LocalServer, process: subprocess.Popen[bytes], owner: int) -> None:
    """At the end of the program that started the server, though not of one that was forked from it."""
    if os.getpid() == owner:
        server.stop()
        process.poll()


def _pid_file(directory: Path) -> PidFile:
    return PidFile(directory / "server.pid")


def _private_directory() -> Path:
    """Where the servers of this user are.

    Raises:
        DeploymentError: somebody else may write there.
    """
    base = Path(tempfile.gettempdir()) / f"mariner-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise DeploymentError(
            f"{base} is open to others, so servers cannot be kept there.",
            hint="Remove it, or set TMPDIR to a directory of your own.",
        )
    return base


def _sweep(base: Path) -> None:
    """Stops the servers of programs that were killed before they could do it themselves."""
    for directory in base.glob("process-*"):
        owner = _OWNED.match(directory.name)
        if owner is None or psutil.pid_exists(int(owner[1])):
            continue
        process = _pid_file(directory).server()
        if process is not None:
            with suppress(psutil.Error):
                process.terminate()
        shutil.rmtree(directory, ignore_errors=True)


def _last_lines(text: str) -> str:
    return " ".join(text.split("\n")[-6:]).strip()
