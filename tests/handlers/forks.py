"""Forks a child that outlives the request, and ends it by SIGTERM when asked to."""

from __future__ import annotations

import os
import signal
from typing import Any

children: list[int] = []


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    answers = []
    for row in data or ():
        if row["body"] == "fork":
            child = os.fork()
            if child == 0:
                while True:
                    signal.pause()
            children.append(child)
            answers.append(str(child))
        else:
            child = children.pop()
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            answers.append(f"ended by {os.WTERMSIG(status)}")
    return answers
