"""A terminal: documented commands, run as they are written, in a directory and on ports of their own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple, Self

SOURCES = Path(__file__).parents[1] / "src"
DOCUMENTED_PORTS = ("8080", "8081", "8082")


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Terminal:
    """Runs commands with free ports in the place of the documented ones.

    Commands come from beside this Python; the pid file and what archives unpack to lie in a directory of our own.

    Attributes:
        folder: where the commands run.
        environment: theirs.
        log: everything that was printed, by the commands and by the servers that they started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "tmp" / "terminal.log"
        self.log.parent.mkdir()
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TS_", "MARINER_"))},
            "PATH": path,
            "PYTHONPATH": str(SOURCES),
            "TMPDIR": str(self.log.parent),
        }
        self.ports = dict(zip(DOCUMENTED_PORTS, _free_ports(len(DOCUMENTED_PORTS)), strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the server that is still running, if there is one."""
        subprocess.run(["torchserve", "--stop"], cwd=self.folder, env=self.environment, timeout=60, check=False)

    @property
    def addresses(self) -> str:
        """The lines of a ``config.properties`` that put the listeners on our ports."""
        kinds = zip(("inference", "management", "metrics"), self.ports.values(), strict=True)
        return "".join(f"{kind}_address=http://127.0.0.1:{port}\n" for kind, port in kinds)

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return self.log.read_text(errors="replace")

    def translate(self, text: str) -> str:
        """A documented text with our ports."""
        return re.sub("|".join(DOCUMENTED_PORTS), lambda port: self.ports[port[0]], text)

    def run(self, script: str) -> str:
        """Runs commands, each of which must succeed; returns what was printed meanwhile."""
        # Through a file: a server that is started keeps a pipe open for longer than the command runs.
        with self.log.open("ab") as file:
            start = file.tell()
            done = subprocess.run(
                ["bash", "-e", "-c", self.translate(script)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=180,
                check=False,
            )
        text = self.log.read_bytes()[start:].decode(errors="replace")
        assert done.returncode == 0, f"{script}\nended with {done.returncode}:\n{text}"
        return text

    def ask(self, method: str, path: str, body: bytes = b"", *, port: str = "8080", **headers: str) -> Answer:
        """One request; without a Content-Type unless it is given."""
        connection = HTTPConnection("127.0.0.1", int(self.ports[port]), timeout=60)
        try:
            connection.request(
                method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()}
            )
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()


def _free_ports(count: int) -> list[str]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]
