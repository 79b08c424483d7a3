from types import SimpleNamespace
from typing import Any

from nvidia.dali.pipeline import Pipeline


def _step(name: str) -> Any:
    def add(*inputs: Any, **options: Any) -> str:
        Pipeline.current.steps.append((name, options))
        return name

    return add


external_source = _step("external_source")
decoders = SimpleNamespace(image=_step("decode"))
resize = _step("resize")
crop_mirror_normalize = _step("crop_mirror_normalize")
