"""What standard error tells of the end of a Python process: the last exception, the last stack. Pure; lines in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Raised", "last_exception", "last_stack", "shorten"]

_FRAME = re.compile(r'\s+File "(.+)", line (\d{1,9})(?:,? in (.+))?')
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_STACK = re.compile(r"(?:Current thread .*|Stack) \(most recent call first\):")  # what faulthandler writes above one
_INSTALLED = re.compile(r".*/(?:site-packages|dist-packages|python3\.\d+)/")
_MESSAGE_LINES = 10  # of an exception; CUDA's have five. What has more lines below it was not the end of the process


class Raised(NamedTuple):
    """An exception and the line it came from, or, without a type, a line that was running.

    Attributes:
        type: name of the class, "" if there was no exception.
        message: its text, in one line.
        file: relative to the model's directory, or where it was installed; never an absolute path.
        line: from 1 on; 0 if it is unknown.
        function: what the line is part of.
    """

    type: str = ""
    message: str = ""
    file: str = ""
    line: int = 0
    function: str = ""

    @property
    def place(self) -> str:
        """``handler.py:12``, "" if it is unknown."""
        return f"{self.file}:{self.line}" if self.file and self.line else self.file


def last_exception(lines: Sequence[str], roots: Sequence[str]) -> Raised | None:
    """The exception whose traceback ends the output; None if it does not end with one.

    Args:
        lines: the end of standard error.
        roots: names of the model's directory: one may be a link to the other.
    """
    last = next((index for index in reversed(range(len(lines))) if _FRAME.fullmatch(lines[index])), None)
    if last is None:
        return None
    text = last + 1
    while text < len(lines) and (not lines[text] or lines[text][0] == " "):
        text += 1  # the source and the marks below it
    found = _EXCEPTION.fullmatch(lines[text]) if text < len(lines) else None
    if found is None or len(lines) - text > _MESSAGE_LINES:
        return None
    first = last
    while first > 0 and lines[first - 1].startswith(" "):
        first -= 1
    frames = [_frame(line, roots) for line in lines[first : last + 1] if _FRAME.fullmatch(line)]
    message = " ".join([found[2] or "", *lines[text + 1 :]])
    place = next((frame for frame, own in reversed(frames) if own), frames[-1][0])
    return place._replace(type=found[1], message=" ".join(message.split()))


def last_stack(lines: Sequence[str], roots: Sequence[str]) -> Raised | None:
    """The innermost line of the model's own code in the last stack that faulthandler wrote, else the innermost one.

    Args:
        lines: the end of standard error.
        roots: names of the model's directory: one may be a link to the other.
    """
    head = next((index for index in reversed(range(len(lines))) if _STACK.fullmatch(lines[index])), None)
    if head is None:
        return None
    frames = []
    for line in lines[head + 1 :]:
        if not _FRAME.fullmatch(line):
            break
        frames.append(_frame(line, roots))
    return next((frame for frame, own in frames if own), frames[0][0] if frames else None)


def _frame(line: str, roots: Sequence[str]) -> tuple[Raised, bool]:
    """A frame, and whether its code is the model's own."""
    match = _FRAME.fullmatch(line)
    assert match is not None
    file, number, function = match.groups()
    short = shorten(file, roots)
    own = file[0] not in "/<" or any(file.startswith(f"{root}/") for root in roots)
    return Raised("", "", short, int(number), function or ""), own


def shorten(file: str, roots: Sequence[str]) -> str:
    """A path that tells nothing of this machine: relative to the model or to where packages are installed.

    Args:
        file: absolute, or relative to the model's directory.
        roots: names of the model's directory: one may be a link to the other.
    """
    for root in roots:
        file = file.removeprefix(f"{root}/")
    if not file.startswith("/"):
        return file
    return _INSTALLED.sub("", file) if _INSTALLED.match(file) else file.rpartition("/")[2]
