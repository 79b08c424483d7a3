"""The ``config.properties`` of a model that is mounted at ``/mnt/models``, where KServe puts models."""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["TorchServingArtifactBuilder", "server_config"]

MODEL_STORE = "/mnt/models/model-store"
VERSION = "1.0"  # what an archive without a version has


def server_config(model_name: str, mar_name: str, version: str = VERSION) -> str:
    """The file of a server that serves one archive.

    Args:
        model_name: the name it is served under.
        mar_name: file name of the archive in the model store.
        version: its version; that of the manifest counts where they differ.
    """
    limits = {"minWorkers": 1, "maxWorkers": 5, "batchSize": 1, "maxBatchDelay": 5000, "responseTimeout": 120}
    entry = {"defaultVersion": True, "marName": mar_name, **limits}
    snapshot = {"name": "startup.cfg", "modelCount": 1, "models": {model_name: {version: entry}}}
    lines = [
        "inference_address=http://0.0.0.0:8085",
        "management_address=http://0.0.0.0:8081",
        "number_of_netty_threads=4",
        "service_envelope=kfserving",
        "install_py_dep_per_model=true",
        "job_queue_size=10",
        f"model_store={MODEL_STORE}",
        f"model_snapshot={json.dumps(snapshot)}",
    ]
    return "\n".join([*lines, ""])


class TorchServingArtifactBuilder:
    """Writes what a server needs beside the archive."""

    @staticmethod
    def write_config_properties(
        model_name: str, mar_name: str, directory: str | os.PathLike[str], *, version: str = VERSION
    ) -> str:
        """Writes ``config.properties`` for one archive, in place of one that is there.

        Args:
            model_name: the name it is served under.
            mar_name: file name of the archive in the model store.
            directory: where the file goes.
            version: version of the archive.

        Returns:
            The path of the file.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(directory) / "config.properties"
        path.write_text(server_config(model_name, mar_name, version), encoding="utf-8")
        return str(path)
