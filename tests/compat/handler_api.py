"""A server with many small models, so that a test of what handlers were promised asks one and starts none."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from test_serving import Answer, Client

from mariner.auth import Listener
from mariner.logs import MODEL_LOG
from mariner.serve import Server
from mariner.testing import running_server

__all__ = ["PYTHON", "TRIO", "Model", "Scene", "put", "serving"]

SECONDS = 30  # until a line of the log counts as missing

PYTHON = '''
def handle(data, context):
    """Runs the body as Python; what it calls ``answer`` is returned."""
    if data is None:
        return None
    scope = {"data": data, "context": context}
    exec(data[0]["body"], scope)
    return scope["answer"]
'''

# Three requests are exactly one batch, however slowly they come; each body sees its own index.
TRIO = """
def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        scope = {"index": index, "context": context}
        exec(row["body"], scope)
        answers.append(scope["answer"])
    return answers
"""


@dataclass(frozen=True)
class Model:
    """What is in an archive.

    Attributes:
        source: of ``handler.py``.
        config: the model configuration; None for an archive without one.
        files: further files by name.
        manifest: keys of ``model`` in the manifest, besides the usual ones.
        runtime: of the manifest.
    """

    source: str = ""
    config: str | None = None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "python"


def put(store: Path, name: str, model: Model) -> dict[str, Any]:
    """Writes an unpacked archive into a model store; its manifest."""
    entry: dict[str, Any] = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py", **model.manifest}
    files = dict(model.files)
    if model.source:
        files["handler.py"] = model.source
    if model.config is not None:
        entry["configFile"] = "config.yaml"
        files["config.yaml"] = model.config
    manifest = {
        "createdOn": "01/03/2025 10:20:30",
        "runtime": model.runtime,
        "model": entry,
        "archiverVersion": "0.12.0",
    }
    files["MAR-INF/MANIFEST.json"] = json.dumps(manifest)
    for file, content in files.items():
        path = store / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return manifest


class Line(NamedTuple):
    """One line that a worker printed."""

    level: str
    text: str


class Log(logging.Handler):
    """What the workers print, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []
        self._changed = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(Line(record.levelname, record.getMessage()))
        self._changed.set()

    def count(self, text: str, since: int = 0) -> int:
        return sum(text in line.text for line in self.lines[since:])

    async def wait_for(self, text: str, *, times: int = 1, since: int = 0) -> Line:
        """Waits for a line with ``text``; returns the last."""
        async with asyncio.timeout(SECONDS):
            while self.count(text, since) < times:
                self._changed.clear()
                await self._changed.wait()
        return next(line for line in reversed(self.lines) if text in line.text)


class Scene:
    """The running server, its model store and its log."""

    def __init__(self, server: Server, store: Path, log: Log) -> None:
        self.server, self.store, self.log = server, store, log

    async def ask(
        self, method: str, path: str, body: bytes | str = b"", kind: Listener = Listener.INFERENCE, **headers: str
    ) -> Answer:
        """One request on a connection of its own; underscores in names of headers are hyphens, but in ``ts_…``."""
        client = await Client.connect(self.server, kind)
        try:
            return await client.ask(method, path, body.encode() if isinstance(body, str) else body, **headers)
        finally:
            await client.close()

    async def manage(self, method: str, path: str) -> Answer:
        return await self.ask(method, path, kind=Listener.MANAGEMENT)

    async def run(self, code: str, model: str = "python", **headers: str) -> Answer:
        """Lets a model of :data:`PYTHON` run ``code``."""
        return await self.ask("POST", f"/predictions/{model}", code, **{"Content_Type": "text/plain", **headers})

    async def run_three(self, *codes: str, model: str = "trio") -> list[Answer]:
        """Lets a model of :data:`TRIO` run three requests as one batch; the answers in their order."""
        assert len(codes) == 3
        return list(await asyncio.gather(*(self.run(code, model) for code in codes)))

    async def register(self, name: str, model: Model, query: str = "") -> Answer:
        """Puts a model into the store and registers it with one worker."""
        put(self.store, name, model)
        return await self.manage("POST", f"/models?url={name}&initial_workers=1{query}")


@asynccontextmanager
async def serving(directory: Path, models: Mapping[str, Model], **settings: Any) -> AsyncIterator[Scene]:
    """A server with one worker for each model.

    Args:
        directory: an empty one.
        models: by name.
        settings: fields of :class:`mariner.config.Config`.
    """
    store = directory / "store"
    store.mkdir()
    for name, model in models.items():
        put(store, name, model)
    logger, log = logging.getLogger(MODEL_LOG), Log()
    before = logger.level
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    try:
        async with running_server(
            model_store=store, load_models=tuple(models), temp_dir=directory, **settings
        ) as server:
            await server.models.wait_until_ready()
            yield Scene(server, store, log)
    finally:
        logger.setLevel(before)
        logger.removeHandler(log)
