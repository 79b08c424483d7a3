"""Virtual environments of the peers under ``.peers``: made on first use, remade when a requirement changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console

__all__ = ["REQUIREMENTS", "environment_bin", "installed_version", "make_environment"]

PEERS = Path(__file__).parent / ".peers"

# The same torch everywhere, so that a ratio compares servers. setuptools: TorchServe imports pkg_resources.
REQUIREMENTS = {
    "torchserve": (
        "torchserve==0.12.0",
        "torch-model-archiver==0.12.0",
        "torch==2.13.0",
        "numpy",
        "packaging",
        "psutil",
        "pyyaml",
        "setuptools<81",
    ),
    "mosec": ("mosec==0.9.8", "torch==2.13.0", "numpy"),
    "litserve": ("litserve==0.2.19", "torch==2.13.0", "numpy"),
    "ray": ("ray[serve]==2.60.0", "torch==2.13.0", "numpy"),
}


def environment_bin(peer: str) -> Path:
    return PEERS / peer / "bin"


def make_environment(peer: str, console: Console) -> None:
    """Make a peer's environment if it is not there.

    Raises:
        subprocess.CalledProcessError: if pip cannot install the peer; pip's own words are on the console.
    """
    folder = PEERS / peer
    stamp = folder / "installed.txt"
    wanted = "\n".join(REQUIREMENTS[peer])
    if not stamp.exists() or stamp.read_text() != wanted:
        console.print(f"making {folder} (about 1 GB, once)")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for requirement in REQUIREMENTS[peer]:
            console.print(f"  installing {requirement}", markup=False)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, requirement], check=True)
        stamp.write_text(wanted)


def installed_version(python: Path, distribution: str) -> str:
    """Version of a distribution in the environment of ``python``, "not installed" if it is not there."""
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else "not installed"
