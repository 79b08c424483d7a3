from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ts.faults import Place, end_if_device_is_lost, locate, tell_device_state


def raised_by(source: str, file: Path) -> BaseException:
    file.write_text(source)
    try:
        exec(compile(source, str(file), "exec"), {})
    except BaseException as error:  # noqa: BLE001 - any
        return error
    raise AssertionError("it did not raise")


def test_the_innermost_line_of_the_model_is_the_place(tmp_path: Path) -> None:
    error = raised_by("import json\ndef f():\n    json.loads('{')\nf()\n", tmp_path / "handler.py")
    assert locate(error, str(tmp_path)) == Place("handler.py", 3, "f")


def test_an_error_outside_of_the_model_has_its_own_place(tmp_path: Path) -> None:
    error = raised_by("raise ValueError\n", tmp_path / "other.py")
    assert locate(error, str(tmp_path / "model")) == Place(str(tmp_path / "other.py"), 1, "<module>")


def test_a_directory_that_is_a_link_is_the_one_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    error = raised_by("raise ValueError\n", tmp_path / "real" / "handler.py")
    assert locate(error, str(tmp_path / "link")) == Place("handler.py", 1, "<module>")


def test_a_syntax_error_is_where_it_was_found(tmp_path: Path) -> None:
    error = raised_by("x = 1\ndef f(:\n", tmp_path / "handler.py")
    assert locate(error, str(tmp_path)) == Place("handler.py", 2)


def test_an_error_that_was_never_raised_has_no_place(tmp_path: Path) -> None:
    assert locate(ValueError(), str(tmp_path)) == Place()


def torch_with(*, initialized: bool, lost: bool) -> Any:
    def synchronize() -> None:
        if lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

    numbers = {"current_device": lambda: 1, "memory_allocated": lambda: 500, "memory_reserved": lambda: 700}
    return SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: initialized, synchronize=synchronize, **numbers))


def test_a_lost_device_ends_the_process_and_leaves_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(initialized=True, lost=True))
    with pytest.raises(SystemExit, match="1"):
        end_if_device_is_lost(RuntimeError("CUDA error: device-side assert triggered"))
    assert capsys.readouterr().err == (
        "CUDA device 1: 500 bytes allocated, 700 bytes reserved by PyTorch\n"
        "RuntimeError: CUDA error: device-side assert triggered\n"
    )


@pytest.mark.parametrize(
    "torch", [None, SimpleNamespace(cuda=SimpleNamespace()), torch_with(initialized=False, lost=False)]
)
def test_without_a_gpu_in_use_there_is_no_state_to_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], torch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    tell_device_state()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("torch", "message"),
    [
        (torch_with(initialized=True, lost=False), "CUDA out of memory"),
        (torch_with(initialized=False, lost=True), "CUDA error"),
        (torch_with(initialized=True, lost=True), "no such label"),
        (None, "CUDA error"),
        (SimpleNamespace(cuda=SimpleNamespace()), "CUDA error"),  # something else of that name
    ],
)
def test_any_other_error_does_not(monkeypatch: pytest.MonkeyPatch, torch: Any, message: str) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    end_if_device_is_lost(RuntimeError(message))
