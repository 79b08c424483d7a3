"""The line that says what is being waited for."""

from __future__ import annotations

import io
import re

from mariner.sdk.progress import Progress


def test_where_nobody_watches_each_step_has_a_line() -> None:
    stream = io.StringIO()
    progress = Progress("mnist 1.0", stream)
    with progress.step("packaging"):
        assert stream.getvalue() == "mnist 1.0: packaging\n"
    progress.end("ready")
    assert re.fullmatch(r"mnist 1.0: packaging\nmnist 1.0: ready after 0\.\d s\n", stream.getvalue())


def test_in_a_terminal_one_line_is_written_over_itself() -> None:
    stream = io.StringIO()
    progress = Progress("mnist 1.0", stream, live=True)
    with progress.step("a long step"):
        pass
    progress.end("done")
    first, *others = stream.getvalue().split("\r")
    assert (first, stream.getvalue().count("\n"), stream.getvalue()[-1]) == ("", 1, "\n")
    assert others[0].startswith("mnist 1.0: a long step (0.")
    assert re.match(r"mnist 1.0: done after 0\.\d s", others[-1])
    assert len(others[-1].rstrip("\n")) >= len(others[0])  # nothing of the longer text is left
