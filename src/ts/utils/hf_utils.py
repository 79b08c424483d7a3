"""Models from the Hugging Face Hub. Needs ``huggingface_hub`` when it is called."""

from __future__ import annotations

from typing import Any

from ts.importing import require

__all__ = ["download_model"]

# Weights, tokenizer and configuration; not the same weights once more for other frameworks.
FILES = ("*.json", "*.jinja", "*.pt", "*.bin", "*.txt", "*.model", "*.pth", "*.safetensors")


def download_model(
    model_id: str = "meta-llama/Meta-Llama-3.1-8B-Instruct",
    revision: str = "main",
    model_path: str = ".cache",
    use_auth_token: Any = True,
) -> str:
    """Downloads a model, unless it is there already.

    Args:
        model_id: its name on the Hub.
        revision: branch, tag or commit.
        model_path: directory to keep it in.
        use_auth_token: a token; True for the one in ``HF_TOKEN`` or that ``hf auth login`` stored, if there is one.

    Returns:
        Path of the directory with its files.

    Raises:
        ImportError: ``huggingface_hub`` is not installed.
    """
    hub = require("huggingface_hub", "huggingface_hub", "Downloading a model needs")
    path: str = hub.snapshot_download(
        repo_id=model_id,
        revision=revision,
        allow_patterns=list(FILES),
        cache_dir=model_path,
        token=None if use_auth_token is True else use_auth_token,  # True would insist on one, for public models too
    )
    return path
