"""The digits example: its handler alone, its client's refusals, and the whole demo."""

from __future__ import annotations

import importlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits"


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's handler with a network that has learnt nothing."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(EXAMPLE)
    import torch  # noqa: PLC0415  (only these tests need it)

    from ts.context import Context  # noqa: PLC0415

    torch.manual_seed(0)
    torch.save(importlib.import_module("model").DigitNet().state_dict(), tmp_path / "digits.pth")
    for name in ("model.py", "index_to_name.json"):
        (tmp_path / name).write_bytes((EXAMPLE / name).read_bytes())
    model = {"modelName": "digits", "modelFile": "model.py", "serializedFile": "digits.pth", "handler": "handler.py"}
    loaded = importlib.import_module("handler").DigitHandler()
    loaded.initialize(Context("digits", str(tmp_path), {"model": model}, 1, None, "0.12.0"))
    yield loaded
    for name in set(sys.modules) - before:
        if name in {"handler", "model"}:
            del sys.modules[name]


def png(size: tuple[int, int] = (8, 8)) -> bytearray:
    file = io.BytesIO()
    Image.new("L", size, 200).save(file, "PNG")
    return bytearray(file.getvalue())


@pytest.mark.torch
@pytest.mark.slow
def test_the_handler_answers_each_image_of_a_batch(handler: Any) -> None:
    data = [{"body": png()}, {"data": png((20, 20))}, {"body": png()}]
    answers = handler.postprocess(handler.inference(handler.preprocess(data)))
    assert len(answers) == 3
    assert answers[0] == answers[2]
    assert all(answer["digit"] in range(10) and 0.1 <= answer["probability"] <= 1 for answer in answers)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("body", [bytearray(b"no image"), bytearray(), "text", {"json": 1}, png()[:50]])
def test_the_handler_blames_the_client_for_a_body_that_is_no_image(handler: Any, body: Any) -> None:
    with pytest.raises(Exception, match="image") as raised:
        handler.preprocess([{"body": body}])
    assert raised.value.error_code == 400  # type: ignore[attr-defined]


def free_ports() -> int:
    """The first of three free ports in a row."""
    for first in range(20_000, 30_000, 7):
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            try:
                for offset, probe in enumerate((one, two, three)):
                    probe.bind(("127.0.0.1", first + offset))
            except OSError:
                continue
            return first
    raise AssertionError("no three free ports in a row")


def run_demo(folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    (folder / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder / "tmp"), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py"), "--port", str(port)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.torch
@pytest.mark.slow
def test_the_demo_trains_serves_and_stops(tmp_path: Path) -> None:
    port = free_ports()
    done = run_demo(tmp_path, port)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Held-out accuracy through the server: 9" in done.stdout
    assert 'ts_inference_requests_total{model_name="digits",model_version="default",hostname="' in done.stdout
    assert "Server stopped" in done.stdout


@pytest.mark.torch
@pytest.mark.slow
def test_the_demo_says_which_port_is_taken(tmp_path: Path) -> None:
    port = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        done = run_demo(tmp_path, port)
    assert done.returncode == 1
    assert f"port {port + 1} cannot be used" in done.stdout
