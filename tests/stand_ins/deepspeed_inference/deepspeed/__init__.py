import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def init_inference(model: Any, config: str | None = None, **options: Any) -> Any:
    settings = {} if config is None else json.loads(Path(config).read_text())
    return SimpleNamespace(module=model, settings={**settings, **options})
