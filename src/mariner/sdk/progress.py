"""One line that says what is being waited for, in terminals and notebooks; elsewhere a line for each step."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Progress", "in_notebook"]

_INTERVAL = 0.5  # seconds between two looks of the line


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this program; it goes on when a cell has ended."""
    return "ipykernel" in sys.modules and "IPython" in sys.modules


class Progress:
    """Tells of the steps of one undertaking.

    Args:
        title: what is undertaken.
        stream: where the line goes; standard error by default.
        live: the line is written over itself; where it is shown to somebody, by default.
    """

    def __init__(self, title: str, stream: TextIO | None = None, *, live: bool | None = None) -> None:
        self._title = title
        self._stream = stream or sys.stderr
        self._live = (self._stream.isatty() or in_notebook()) if live is None else live
        self._begun = time.monotonic()
        self._width = 0

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Shows a step, and how long the undertaking has taken, while the block runs."""
        if not self._live:
            self._write(f"{self._title}: {what}\n")
            yield
            return
        ended = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(what, ended), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            ended.set()
            ticker.join()

    def end(self, what: str) -> None:
        """Shows how it ended, with the time it took."""
        self._show(f"{what} after {self._seconds:.1f} s")
        if self._live:
            self._write("\n")

    def _tick(self, what: str, ended: threading.Event) -> None:
        while True:
            self._show(f"{what} ({self._seconds:.1f} s)")
            if ended.wait(_INTERVAL):
                return

    def _show(self, what: str) -> None:
        line = f"{self._title}: {what}"
        if not self._live:
            self._write(f"{line}\n")
            return
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
