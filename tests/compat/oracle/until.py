"""What an exchange may wait for: it is asked again until its answer is like that."""

from __future__ import annotations

import json
from collections.abc import Callable

__all__ = ["Until", "all_ready", "shows", "status"]

Until = Callable[[int, bytes], bool]
"""Looks at the status and the body of an answer."""


def status(code: int) -> Until:
    """The status is this one."""
    return lambda given, _: given == code


def shows(text: bytes) -> Until:
    """The body has this text."""
    return lambda _, body: text in body


def all_ready(_: int, body: bytes) -> bool:
    """No worker of a description is starting."""
    return all(worker["status"] == "READY" for version in json.loads(body) for worker in version["workers"])
