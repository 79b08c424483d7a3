"""The files of a small project, as a data scientist has them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HANDLER", "SERVING", "write_project"]

HANDLER = '''
import json
from pathlib import Path

def handle(data, context):
    """Answers with the content of its weights, its version and its input."""
    if data is None:
        return None
    directory = Path(context.system_properties["model_dir"])
    weights = (directory / context.manifest["model"]["serializedFile"]).read_text()
    version = context.manifest["model"]["modelVersion"]
    return [{"weights": weights, "version": version, "body": row.get("body")} for row in data]
'''
SERVING = {"model_file": "model.py", "handler": "handler.py", "serialized_file": "state_dict.pt"}


def write_project(directory: Path) -> None:
    """Writes the files that the example of the page names."""
    files = {
        "model.py": "class Net:\n    pass\n",
        "handler.py": HANDLER,
        "trainer.py": "from model import Net\n",
        "state_dict.pt": "weights",
        "file_a.py": "A = 1\n",
        "file_b.py": "B = 2\n",
        "requirements.txt": "pillow\n",
        "serving_requirements.txt": "numpy\n",
        "my.properties": "default_workers_per_model=2\njob_queue_size=7\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text)
