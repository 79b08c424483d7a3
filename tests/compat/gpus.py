"""GPUs that exist as far as the server can tell, and no further."""

from __future__ import annotations

from pathlib import Path


def install_nvidia_smi(folder: Path) -> str:
    """Writes a tool that lists two GPUs; returns its directory, for the PATH."""
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: Made up (UUID: GPU-0a)'\necho 'GPU 1: Made up (UUID: GPU-1b)'\n")
    tool.chmod(0o755)
    return str(folder)
