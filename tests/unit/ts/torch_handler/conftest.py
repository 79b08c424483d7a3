from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ts.context import Context, RequestProcessor
from ts.metrics.store import MetricsCache
from ts.wire import Sample

STAND_INS = Path(__file__).parents[3] / "stand_ins"
MODEL_FILE = """
import torch
from torch.nn import Linear


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, values):
        return values * self.factor
"""


@pytest.fixture(autouse=True)
def own_model_module() -> Iterator[None]:
    """Every test has a model.py of its own, as every worker has."""
    yield
    sys.modules.pop("model", None)


@pytest.fixture
def samples() -> list[Sample]:
    return []


@pytest.fixture
def make_context(tmp_path: Path, samples: list[Sample]) -> Callable[..., Context]:
    """Builds the context of an archive in ``tmp_path``."""

    def make(
        serialized_file: str | None = None,
        model_file: str | None = None,
        *,
        config: dict[str, Any] | None = None,
        mapping: dict[str, Any] | None = None,
        headers: dict[str, Any] | None = None,
        limit_max_image_pixels: bool = True,
    ) -> Context:
        packed = {"modelName": "tiny", "serializedFile": serialized_file, "modelFile": model_file}
        manifest = {"model": {key: value for key, value in packed.items() if value is not None}}
        if model_file is not None and not (tmp_path / model_file).exists():
            (tmp_path / model_file).write_text(MODEL_FILE, encoding="utf-8")
        if mapping is not None:
            (tmp_path / "index_to_name.json").write_text(json.dumps(mapping), encoding="utf-8")
        metrics = MetricsCache()
        metrics.sink = samples.append
        metrics.set_request_ids({0: "a"})
        context = Context("tiny", str(tmp_path), manifest, 1, None, "0.12.0", limit_max_image_pixels, metrics, config)
        context.request_processor = [RequestProcessor(headers or {})]
        return context

    return make


@pytest.fixture
def put_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes packages of ``tests/stand_ins`` importable, and forgets them afterwards."""
    names = {path.stem for path in [*STAND_INS.glob("*.py"), *STAND_INS.glob("*/*")]}

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]

    def put(folder: str) -> None:
        forget()
        monkeypatch.syspath_prepend(STAND_INS)
        monkeypatch.syspath_prepend(STAND_INS / folder)

    yield put
    forget()
