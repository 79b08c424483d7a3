from __future__ import annotations

import faulthandler
import tempfile
import traceback
from typing import NoReturn

import pytest

from mariner.tracebacks import Raised, last_exception, last_stack, shorten

ROOTS = ("/srv/models/real", "/tmp/models/link")


def fails(message: str) -> NoReturn:
    raise ValueError(message)


def printed(message: str) -> list[str]:
    try:
        fails(message)
    except ValueError:
        return traceback.format_exc().splitlines()


def test_a_real_traceback_is_read_back() -> None:
    here = __file__.rpartition("/")[0]
    found = last_exception(["before", *printed("no luck")], (here,))
    assert found is not None
    line = fails.__code__.co_firstlineno + 1
    assert found == Raised("ValueError", "no luck", "test_tracebacks.py", line, "fails")
    assert found.place == f"test_tracebacks.py:{line}"


def test_a_message_of_several_lines_becomes_one() -> None:
    found = last_exception(printed("one\ntwo\n three"), ())
    assert found is not None
    assert found.message == "one two three"


def test_output_that_goes_on_after_a_traceback_does_not_end_with_it() -> None:
    assert last_exception([*printed("no luck"), *["going on"] * 10], ()) is None


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("nothing",),
        (f'  File "a", line {"9" * 5000}, in f', "E: x"),
        ('  File "/a.py", line 1, in f', "    source"),
    ],
)
def test_what_is_no_traceback_names_no_exception(lines: tuple[str, ...]) -> None:
    assert last_exception(lines, ROOTS) is None


def test_of_two_exceptions_the_last_one_counts() -> None:
    lines = [*printed("first"), "", "During handling of the above exception, another exception occurred:", ""]
    found = last_exception([*lines, *printed("second")], ())
    assert found is not None
    assert found.message == "second"


def test_a_syntax_error_names_the_file_that_could_not_be_read() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "<frozen importlib._bootstrap>", line 241, in _call_with_frames_removed',
        '  File "/tmp/models/link/handler.py", line 3',
        "    def broken(:",
        "               ^",
        "SyntaxError: invalid syntax",
    ]
    assert last_exception(lines, ROOTS) == Raised("SyntaxError", "invalid syntax", "handler.py", 3, "")


def test_a_stack_of_faulthandler_is_read_back() -> None:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=False)
        file.seek(0)
        lines = ["before", *file.read().splitlines(), "", "after"]
    here = __file__.rpartition("/")[0]
    found = last_stack(lines, (here,))
    assert found is not None
    assert (found.file, found.function) == ("test_tracebacks.py", "test_a_stack_of_faulthandler_is_read_back")


def test_the_innermost_line_of_the_model_is_named_else_the_innermost_one() -> None:
    head = "Current thread 0x00007f2b (most recent call first):"
    inner = '  File "/usr/lib/python3.11/threading.py", line 327 in wait'
    assert last_stack([head, inner, '  File "/srv/models/real/net/layers.py", line 9 in forward'], ROOTS) == (
        *("", "", "net/layers.py", 9, "forward"),
    )
    assert last_stack([head, inner], ROOTS) == ("", "", "threading.py", 327, "wait")
    assert last_stack([head], ROOTS) is None
    assert last_stack([inner], ROOTS) is None


@pytest.mark.parametrize(
    ("file", "short"),
    [
        ("/tmp/models/link/net/layers.py", "net/layers.py"),
        ("/srv/models/real/handler.py", "handler.py"),
        ("/opt/venv/lib/python3.11/site-packages/torch/nn/functional.py", "torch/nn/functional.py"),
        ("/usr/lib/python3.11/ctypes/__init__.py", "ctypes/__init__.py"),
        ("/home/somebody/secret.py", "secret.py"),
        ("handler.py", "handler.py"),
        ("<frozen runpy>", "<frozen runpy>"),
    ],
)
def test_paths_tell_nothing_of_this_machine(file: str, short: str) -> None:
    assert shorten(file, ROOTS) == short
