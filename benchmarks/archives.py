"""What a workload needs on disk: the model folder, its archive, sample bodies and the answers they must get."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios import Body, Workload

__all__ = ["MODEL", "MODELS", "Prepared", "prepare"]

MODELS = Path(__file__).parent / "models"
MODEL = "bench"  # every archive registers under this name
SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workload with its files: all servers use the same folder or the archive made of it."""

    workload: Workload
    folder: Path
    samples: tuple[Path, ...]
    answers: tuple[dict[str, Any], ...]

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def bare_loop(self, mode: str, *arguments: str) -> list[str]:
        """Command line of the bare loop for this workload."""
        return [
            *(sys.executable, str(MODELS / "bare_loop.py"), mode),
            *("--model-dir", str(self.model_dir), "--handler", self.workload.handler),
            *("--body", self.workload.body.value, *arguments),
            *(str(sample) for sample in self.samples),
        ]


def prepare(workload: Workload, folder: Path) -> Prepared:
    """Write everything that ``workload`` needs into ``folder``."""
    for name in ("model", "store", "samples"):
        (folder / name).mkdir(parents=True)
    _write_model(workload, folder / "model")
    _write_archive(workload, folder / "model", folder / "store" / f"{MODEL}.mar")
    draw = random.Random(7)
    samples = []
    for index in range(SAMPLES):
        sample = folder / "samples" / f"{index}.body"
        sample.write_bytes(_body(workload, index, draw))
        samples.append(sample)
    prepared = Prepared(workload, folder, tuple(samples), ())
    answers = json.loads(subprocess.run(prepared.bare_loop("answers"), capture_output=True, check=True).stdout)
    return Prepared(workload, folder, tuple(samples), tuple(answers))


def _write_model(workload: Workload, model_dir: Path) -> None:
    module = workload.handler.partition(":")[0]
    (model_dir / f"{module}.py").write_text((MODELS / f"{module}.py").read_text())
    settings = (
        f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {workload.batch_size}\nmaxBatchDelay: {workload.batch_delay_ms}\n"
    )
    (model_dir / "model-config.yaml").write_text(settings)
    if workload.net:
        (model_dir / "nets.py").write_text((MODELS / "nets.py").read_text())
        make_weights = [sys.executable, str(MODELS / "make_weights.py"), workload.net, str(model_dir / "weights.pt")]
        subprocess.run(make_weights, check=True)


def _write_archive(workload: Workload, model_dir: Path, archive: Path) -> None:
    manifest = {
        "createdOn": "01/01/2026 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": MODEL,
            "handler": f"{workload.handler.partition(':')[0]}.py",
            "modelVersion": "1.0",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(model_dir.iterdir()):
            target.write(path, path.name)
        target.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest, indent=2))


def _body(workload: Workload, index: int, draw: random.Random) -> bytes:
    if workload.body is Body.RAW:
        count = 3 * 224 * 224
        return struct.pack(f"<{count}f", *(draw.gauss(0, 1) for _ in range(count)))
    if workload.net:
        return json.dumps({"values": [round(draw.uniform(0.1, 0.9), 4) for _ in range(784)]}).encode()
    return json.dumps({"id": index}).encode()
