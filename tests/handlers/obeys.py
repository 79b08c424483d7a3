"""Adds up the numbers of each request and tells what else it saw of it; fails as a request says."""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
    if data is None:
        return None
    version = context.manifest["model"]["modelVersion"]
    return [answer(row["body"], version) for row in data]


def answer(request: dict[str, Any], version: str) -> dict[str, Any]:
    fail = FAILURES.get(request.get("fail", ""))
    if fail is not None:
        fail()
    time.sleep(request.get("seconds", 0.0))
    digest = hashlib.sha256(request["text"].encode()).hexdigest()
    return {"number": request["number"], "sum": sum(request["addends"]), "digest": digest, "version": version}


def raise_error() -> None:
    raise ValueError("as the request said")


def exit_at_once() -> None:
    os._exit(3)


def crash() -> None:
    ctypes.string_at(0)


def cut_sockets() -> None:
    """Ends the connection with the server, whichever descriptor it is."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if str(link.readlink()).startswith("socket:"):
                ours = socket.socket(fileno=os.dup(int(link.name)))
                ours.shutdown(socket.SHUT_RDWR)
                ours.close()


FAILURES = {"raise": raise_error, "exit": exit_at_once, "crash": crash, "cut": cut_sockets}
