"""Starting and stopping a server from a script, by its command."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

__all__ = ["register_model", "register_model_with_params", "start", "stop"]

MANAGEMENT = "http://localhost:8081"
STARTED = "Model server started"
KEPT_LINES = 1000
REGISTRATION_TIMEOUT = 600.0  # seconds; a model may take minutes to load


def start(
    model_store: str | Path | None = None,
    snapshot_file: str | Path | None = None,
    no_config_snapshots: bool = False,
    plugin_folder: str | Path | None = None,
    disable_token: bool = False,
    models: str | Sequence[str] | None = None,
    enable_model_api: bool = True,
) -> queue.Queue[str | None]:
    """Starts a server in the background, in place of one that runs, and returns when it answers.

    What the server writes is written to the standard output of this process, by a thread once it has started.

    Args:
        model_store: directory of the archives.
        snapshot_file: a configuration file.
        no_config_snapshots: neither write nor restore snapshots.
        plugin_folder: directory of plug-ins.
        disable_token: ask nobody for a token.
        models: models to load: ``name.mar``, ``name=name.mar`` or ``all``.
        enable_model_api: let models be registered while it runs.

    Returns:
        The lines that the server writes from now on, the last thousand of them; None when there will be no more.

    Raises:
        FileNotFoundError: the command ``torchserve`` is not installed.
        RuntimeError: the server did not start; the message has what it wrote.
    """
    stop()
    words = [_command(), "--start"]
    flags = {"--model-store": model_store, "--plugins-path": plugin_folder, "--ts-config": snapshot_file}
    for flag, value in flags.items():
        if value:
            words += [flag, str(value)]
    if models:
        words += ["--models", *([models] if isinstance(models, str) else models)]
    switches = {
        "--no-config-snapshots": no_config_snapshots,
        "--disable-token-auth": disable_token,
        "--enable-model-api": enable_model_api,
    }
    words += [switch for switch, wanted in switches.items() if wanted]
    # The server outlives the command and keeps writing to this pipe, so nobody waits for its end here.
    process = subprocess.Popen(  # noqa: S603  # our own command
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if process.stdout is None:
        raise AssertionError("a pipe was asked for")
    written = []
    for line in process.stdout:
        _echo(line)
        written.append(line)
        if STARTED in line:
            break
    else:
        process.stdout.close()
        raise RuntimeError(f"The server did not start (exit code {process.wait()}):\n{''.join(written)}".rstrip())
    lines: queue.Queue[str | None] = queue.Queue(KEPT_LINES)
    threading.Thread(target=_hand_on, args=(process, process.stdout, lines), daemon=True).start()
    return lines


def stop(wait: bool = True) -> None:
    """Stops the server that runs, if there is one.

    Args:
        wait: return only when it has ended.

    Raises:
        FileNotFoundError: the command ``torchserve`` is not installed.
        subprocess.CalledProcessError: it could not be stopped.
    """
    words = [_command(), "--stop", *(["--foreground"] if wait else [])]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)  # noqa: S603  # our own command


def register_model(model_name: str, url: str, *, management: str = MANAGEMENT) -> Any:
    """Registers a model with one worker, and waits for it.

    Args:
        model_name: its name.
        url: its archive: a file of the model store, or a URL.
        management: address of the management API.

    Returns:
        The answer of the server.

    Raises:
        RuntimeError: the server refused; the message has its reason.
        OSError: it does not answer.
    """
    params = {"model_name": model_name, "url": url, "initial_workers": "1", "synchronous": "true"}
    return register_model_with_params(params, management=management)


def register_model_with_params(params: Mapping[str, Any], *, management: str = MANAGEMENT) -> Any:
    """Registers a model.

    Args:
        params: the parameters of the call, such as ``url`` and ``initial_workers``.
        management: address of the management API.

    Returns:
        The answer of the server.

    Raises:
        RuntimeError: the server refused; the message has its reason.
        OSError: it does not answer.
    """
    address = f"{management}/models?{urllib.parse.urlencode(params)}"
    request = urllib.request.Request(address, method="POST")  # noqa: S310  # the caller's own server
    try:
        with urllib.request.urlopen(request, timeout=REGISTRATION_TIMEOUT) as response:  # noqa: S310  # as above
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read().decode(errors="replace")
        raise RuntimeError(f"The model was not registered (status {error.code}): {reason}") from error


def _command() -> str:
    """The command of this environment, or else the first one in PATH."""
    beside = Path(sys.executable).with_name("torchserve")
    found = str(beside) if beside.is_file() else shutil.which("torchserve")
    if found is None:
        raise FileNotFoundError(
            "The command torchserve is neither beside this interpreter nor in PATH. Install mariner-serve."
        )
    return found


def _hand_on(process: subprocess.Popen[str], output: IO[str], lines: queue.Queue[str | None]) -> None:
    with output:
        for line in output:
            _echo(line)
            _keep(lines, line)
    _keep(lines, None)
    process.wait()


def _keep(lines: queue.Queue[str | None], line: str | None) -> None:
    """Adds a line at the cost of the oldest: a server must not wait for a script that does not read."""
    while lines.full():  # only this thread adds, so that there is room once there was
        with suppress(queue.Empty):
            lines.get_nowait()
    lines.put_nowait(line)


def _echo(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()
