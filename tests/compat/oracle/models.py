"""The tiny models of the suite, packed once and used for both servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mariner.archive.write import ArchiveSpec, write_model_archive

__all__ = ["ARCHIVES", "Packed", "pack"]

HANDLERS = Path(__file__).parent / "handlers"


@dataclass(frozen=True, slots=True)
class Packed:
    """What goes into an archive.

    Attributes:
        handler: a module of ``handlers``.
        model: name of the model, if it is not the archive's.
        version: of the model.
        config: its ``model-config.yaml``; empty for none.
    """

    handler: str
    model: str = ""
    version: str = "1.0"
    config: str = ""


_ONE = "minWorkers: 1\nmaxWorkers: 1\n"
_TOGETHER = f"{_ONE}batchSize: 2\nmaxBatchDelay: 2000\nbatchingPolicy: fill\n"
_BATCHES = f"{_ONE}batchSize: 4\nmaxBatchDelay: 2000\n"
_SEQUENCES = """
minWorkers: {workers}
maxWorkers: {workers}
batchSize: 2
maxBatchDelay: 50
sequenceBatching: true
sequenceMaxIdleMSec: {idle}
maxNumSequence: {most}
maxSequenceJobQueueSize: 4
"""

ARCHIVES = {
    "looks": Packed("looks"),
    "looks-2": Packed("looks", model="looks", version="2.0"),
    "preset": Packed("looks", config=f"{_ONE}batchSize: 3\nmaxBatchDelay: 50\nresponseTimeout: 7\n"),
    "answers": Packed("answers"),
    "tensor": Packed("tensor"),
    "fails": Packed("fails", config=f"{_ONE}responseTimeout: 2\n"),
    "counts": Packed("counts", config=_BATCHES + "batchingPolicy: fill\n"),  # a key that TorchServe does not know
    "counts-eagerly": Packed("counts", config=_BATCHES),
    "takes-time": Packed("takes_time"),
    "impatient": Packed("takes_time", config=f"{_ONE}clientTimeoutInMills: 100\n"),
    "streams": Packed("streams"),
    "ends-at-once": Packed("ends_at_once", config=f"{_ONE}batchSize: 2\ncontinuousBatching: true\n"),
    "remembers": Packed("remembers", config=_SEQUENCES.format(workers=2, most=8, idle=60_000)),
    "remembers-one": Packed("remembers", config=_SEQUENCES.format(workers=1, most=1, idle=60_000)),
    "remembers-shortly": Packed("remembers", config=_SEQUENCES.format(workers=1, most=1, idle=2000)),
    "remembers-briefly": Packed(
        "remembers", config=_SEQUENCES.format(workers=1, most=1, idle=60_000) + "sequenceTimeoutMSec: 2000\n"
    ),
    "remembers-by-steps": Packed(
        "remembers", config=_SEQUENCES.format(workers=1, most=1, idle=60_000) + "continuousBatching: true\n"
    ),
    "counts-down": Packed("counts_down", config=f"{_ONE}batchSize: 2\ncontinuousBatching: true\n"),
    "describes": Packed("describes"),
    "does-not-load": Packed("does_not_load"),
    "gives-up": Packed("does_not_load", config=f"{_ONE}maxRetryTimeoutInSec: 1\n"),
    "loads-too-much": Packed("loads_too_much"),
    "instances": Packed("instances"),
    "instances-together": Packed("instances", config=_TOGETHER),
    "tensors": Packed("tensors"),
    "tensors-together": Packed("tensors", config=_TOGETHER),
    "remote/distant": Packed("looks", model="distant"),
}
"""Archives by name, without the suffix; the model has the name of its archive unless it says otherwise. What is below
``remote`` is not put into the model store."""


def pack(folder: Path) -> None:
    """Writes all archives into an empty folder."""
    for name in ("remote", "new"):
        (folder / name).mkdir()
    for name, packed in ARCHIVES.items():
        config = folder / "model-config.yaml"
        config.write_text(packed.config)
        archive = write_model_archive(
            ArchiveSpec(
                model_name=packed.model or name,
                handler=str(HANDLERS / f"{packed.handler}.py"),
                version=packed.version,
                config_file=str(config) if packed.config else None,
                export_path=str(folder / "new"),
                force=True,
            )
        )
        archive.rename(folder / f"{name}.mar")
        config.unlink()
    (folder / "new").rmdir()
