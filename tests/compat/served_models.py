"""Archives for a server, pictures for its models, and several requests at a time."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from test_serving import Answer, Client

from mariner.auth import Listener
from mariner.serve import Server

__all__ = ["ONE_WORKER", "PAIRS", "ask", "ask_together", "picture_file", "put_archive"]

ONE_WORKER = "minWorkers: 1\nmaxWorkers: 1\n"
# Two requests are exactly one batch, however slowly they come.
PAIRS = f"{ONE_WORKER}batchSize: 2\nbatchingPolicy: fill\nmaxBatchDelay: 20000\n"


def put_archive(
    store: Path, name: str, handler: str, files: Mapping[str, Any], config: str = ONE_WORKER, **manifest: str
) -> Path:
    """An unpacked archive: ``handler`` is a built-in name, or ``handler.py`` among the files; a dict becomes JSON."""
    place = store / name
    (place / "MAR-INF").mkdir(parents=True)
    for file, content in {**files, "config.yaml": config}.items():
        raw = json.dumps(content).encode() if isinstance(content, dict) else content
        (place / file).write_bytes(raw.encode() if isinstance(raw, str) else raw)
    model = {"modelName": name, "modelVersion": "1.0", "handler": handler, "configFile": "config.yaml", **manifest}
    written = {"createdOn": "24/11/2026 10:00:00", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(written))
    return place


def picture_file(colour: Any, mode: str = "RGB", size: tuple[int, int] = (30, 20), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()


async def ask(
    server: Server, method: str, path: str, body: bytes = b"", kind: Listener = Listener.INFERENCE, **headers: str
) -> Answer:
    client = await Client.connect(server, kind)
    try:
        return await asyncio.wait_for(client.ask(method, path, body, **headers), 60)
    finally:
        await client.close()


async def ask_together(server: Server, path: str, bodies: Sequence[bytes], **headers: str) -> list[Answer]:
    return await asyncio.gather(*(ask(server, "POST", path, body, **headers) for body in bodies))
