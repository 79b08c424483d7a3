"""Starts a server for a scenario: TorchServe and Mariner take the same command and the same configuration."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from processes import ServerProcess, free_port

from oracle.exchange import Listener, Scenario
from oracle.models import ARCHIVES

__all__ = ["StartFailed", "Target", "started"]

START_SECONDS = 120.0
POLL_SECONDS = 0.05

_KEYS = ("inference", "management", "API")
_NO_KEY = "none"


class StartFailed(Exception):
    """A server ended, or its models did not load in time; the message carries its last lines."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running server.

    Attributes:
        hosts: host and port of each listener.
        archives: the folder of archives that is not the model store.
        key_file: where the server keeps its keys.
        places: further texts that differ from run to run, and what they are called.
    """

    hosts: Mapping[Listener, str]
    archives: Path
    key_file: Path | None = None
    places: Mapping[str, str] = field(default_factory=dict)

    def key(self, kind: str) -> str:
        """A key of the server as it is now; "none" where there are no keys."""
        if self.key_file is None or not self.key_file.exists():
            return _NO_KEY
        return str(json.loads(self.key_file.read_text())[kind]["key"])

    def names(self) -> dict[str, str]:
        """What is different in each run, by what it is called."""
        keys = {f"{kind} key": self.key(kind) for kind in _KEYS}
        return {**self.places, **{name: key for name, key in keys.items() if key != _NO_KEY}}

    def resolve(self, text: str) -> str:
        """Replaces the placeholders of a path or a header."""
        text = text.replace("{archives}", str(self.archives))
        for kind in _KEYS:
            text = text.replace(f"{{{kind} key}}", self.key(kind))
        return text


@contextmanager
def started(command: Path, scenario: Scenario, archives: Path, folder: Path) -> Iterator[Target]:
    """Starts ``torchserve`` in an empty folder, waits until the models are there, stops it at the end.

    Raises:
        StartFailed: it does not get that far.
    """
    store, temporary = folder / "store", folder / "tmp"
    shutil.copytree(archives, store, ignore=shutil.ignore_patterns("remote"))
    temporary.mkdir()
    ports = {listener: free_port() for listener in Listener}
    if scenario.shared:
        ports[Listener.MANAGEMENT] = ports[Listener.INFERENCE]
    hosts = {listener: f"127.0.0.1:{port}" for listener, port in ports.items()}
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in _config(scenario, hosts).items()))
    words = [str(command), "--foreground", "--ncs", "--model-store", str(store), "--ts-config", str(config)]
    process = ServerProcess(words, folder, _environment(command, temporary, folder) | scenario.environment)
    places = {f"{listener.value} address": host for listener, host in hosts.items()}
    places |= {"store": str(store), "archives": str(archives), "folder": str(folder)}
    target = Target(hosts, archives, folder / "key_file.json", places)
    try:
        _wait(process, target, scenario)
        yield target
    finally:
        process.stop()


def _config(scenario: Scenario, hosts: Mapping[Listener, str]) -> dict[str, object]:
    config: dict[str, object] = {f"{listener.value}_address": f"http://{host}" for listener, host in hosts.items()}
    config |= {"grpc_inference_port": free_port(), "grpc_management_port": free_port()}
    if scenario.models:
        # Without its own number of workers TorchServe starts one per core.
        config |= {"load_models": ",".join(f"{name}.mar" for name in scenario.models), "default_workers_per_model": 1}
    if scenario.tokens is not None:
        config["disable_token_authorization"] = str(not scenario.tokens).lower()
    if scenario.model_api is not None:
        config["enable_model_api"] = str(scenario.model_api).lower()
    return config | dict(scenario.config)


def _environment(command: Path, temporary: Path, folder: Path) -> dict[str, str]:
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "JAVA_TOOL_OPTIONS")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept = {name: value for name, value in kept.items() if not name.startswith(("TS_", "MARINER_"))}
    return kept | {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
        **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(folder / "logs")),
    }


def _wait(process: ServerProcess, target: Target, scenario: Scenario) -> None:
    deadline = time.monotonic() + START_SECONDS
    versions = "" if scenario.shared else "/all"  # on a shared listener TorchServe describes default versions alone
    waiting = {f"/{ARCHIVES[name].model or name}{versions}" for name in scenario.models} or {""}
    while waiting:
        if not process.running or time.monotonic() > deadline:
            why = "did not start in time" if process.running else "ended"
            raise StartFailed(f"{scenario.name}: the server {why}\n{process.last_lines(40)}")
        waiting = {path for path in waiting if not _is_ready(target, path)}
        time.sleep(POLL_SECONDS)


def _is_ready(target: Target, path: str) -> bool:
    request = Request(f"http://{target.hosts[Listener.MANAGEMENT]}/models{path}")
    with suppress(URLError, OSError, ValueError, KeyError):
        request.add_header("Authorization", f"Bearer {target.key('management')}")
        with urlopen(request, timeout=10) as reply:
            found = json.load(reply)
        if not path:
            return True
        workers = [version["workers"] for version in found]
        return all(len(some) and all(worker["status"] == "READY" for worker in some) for some in workers)
    return False
