"""Fills a directory with the files of a model, for tests of handlers."""

from __future__ import annotations

import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path

__all__ = ["copy_files", "download_model"]

TIMEOUT = 60.0  # seconds without a byte


def copy_files(src: str | Path, dst: str | Path, files: Iterable[str]) -> None:
    """Copies files from one directory to another.

    Args:
        src: the directory they are in.
        dst: the directory they go to; it must exist.
        files: their names, relative to ``src``.

    Raises:
        OSError: one of them cannot be copied.
    """
    for name in files:
        shutil.copy(Path(src, name), dst)


def download_model(url: str, dst: str | Path) -> None:
    """Downloads a file; one that is there already is kept.

    Args:
        url: ``http`` or ``https``.
        dst: the directory it goes to, under the last part of the URL.

    Raises:
        ValueError: the URL is of another kind, or has no file name.
        OSError: the download failed.
    """
    parts = urllib.parse.urlsplit(url)
    name = Path(parts.path).name
    if parts.scheme not in ("http", "https") or not name:
        raise ValueError(f"{url} is no address of a file. Give an http or https URL that ends in a file name.")
    target = Path(dst, name)
    if target.exists():
        return
    partial = target.with_name(f"{name}.part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, partial.open("wb") as file:  # noqa: S310  # above
            shutil.copyfileobj(response, file)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
