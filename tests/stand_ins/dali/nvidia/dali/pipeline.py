"""A pipeline on the CPU, for images of one size: it decodes, scales, cuts and normalises as it is told."""

import io
from typing import Any

import numpy as np
from PIL import Image


class Pipeline:
    current: "Pipeline"

    def __init__(
        self, *, batch_size: int, num_threads: int, device_id: int, seed: int, prefetch_queue_depth: int
    ) -> None:
        self.options = {"batch_size": batch_size, "num_threads": num_threads, "device_id": device_id, "seed": seed}
        self.steps: list[tuple[str, dict[str, Any]]] = []
        self.file: str | None = None
        self.built = False

    @classmethod
    def deserialize(cls, *, filename: str, **options: Any) -> "Pipeline":
        pipeline = cls(**options)
        pipeline.file = filename
        return pipeline

    def __enter__(self) -> None:
        Pipeline.current = self

    def __exit__(self, *_: object) -> None:
        del Pipeline.current

    def set_outputs(self, output: str) -> None:
        self.output = output

    def build(self) -> None:
        self.built = True

    def run(self, *, source: list[Any]) -> tuple[list[Any]]:
        assert self.built
        assert len(source) <= self.options["batch_size"]
        return ([self._prepare(encoded) for encoded in source],)

    def _prepare(self, encoded: Any) -> Any:
        steps = dict(self.steps)
        image = Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")
        shorter = steps["resize"]["resize_shorter"]
        scale = shorter / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        last = steps["crop_mirror_normalize"]
        height, width = last["crop"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
        return ((pixels - np.array(last["mean"])) / np.array(last["std"])).transpose(2, 0, 1).astype(np.float32)
