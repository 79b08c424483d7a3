"""The examples that need no PyTorch, packaged with the commands of their pages and served."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mariner.jobs import Part, Request, pack_headers
from mariner.model_settings import RegisterOptions
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def package(example: str, folder: Path, **changes: str) -> Path:
    """Runs what the page says before it starts the server; returns the model store."""
    place = folder / example
    shutil.copytree(ROOT / "examples" / example, place, ignore=shutil.ignore_patterns("__pycache__"))
    page = (place / "README.md").read_text()
    block = re.search(rf"```bash\ncd examples/{example}\n(.*?)torchserve --start", page, re.DOTALL)
    assert block
    script = block[1]
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "model-store"


async def ask(server: Server, model: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    part = Part("body", content_type, body)
    reply = await server.models.predict(model, None, Request("r", pack_headers([]), [part]))
    return reply.status, bytes(reply.body)


@pytest.mark.parametrize("handler", ["model_handler:handle", "model_handler.py"])
async def test_the_custom_service_counts_words(tmp_path: Path, handler: str) -> None:
    store = package("custom_service", tmp_path, **{"model_handler:handle": handler})
    async with running_server(model_store=store, temp_dir=tmp_path) as server:
        await server.models.register("words.mar", RegisterOptions(initial_workers=1))
        for body, content_type, words in ((b"one two three", "text/plain", 3), (b"one two", "", 2), (b"", "", 0)):
            status, answer = await ask(server, "words", body, content_type)
            assert (status, json.loads(answer)) == (200, {"words": words})


async def test_the_forest_names_wines_and_refuses_what_is_none(tmp_path: Path) -> None:
    store = package("sklearn", tmp_path)
    page = (ROOT / "examples" / "sklearn" / "README.md").read_text()
    documented = re.search(r"-d '(\[.*?\])'", page)
    assert documented
    async with running_server(model_store=store, temp_dir=tmp_path) as server:
        await server.models.register("wine.mar", RegisterOptions(initial_workers=1))
        status, answer = await ask(server, "wine", documented[1].encode(), "application/json")
        refused = await ask(server, "wine", b"[1, 2]", "application/json")
    assert (status, json.loads(answer)["wine"]) == (200, 0)
    assert refused == (400, b"Send a JSON list of 13 numbers.")
