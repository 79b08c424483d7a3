"""What goes into an archive: which file becomes which entry."""

from __future__ import annotations

import errno
import glob
import logging
import os
from pathlib import Path, PurePosixPath

from mariner.archive.manifest import Runtime

__all__ = ["ArchiveError", "Collection"]

# Handlers that come with the worker: their name goes into the manifest and no file into the archive.
BUILTIN_HANDLERS = frozenset(
    {
        "base_handler",
        "dali_image_classifier",
        "image_classifier",
        "image_segmenter",
        "object_detector",
        "text_classifier",
        "trt_llm_handler",
        "vllm_handler",
    }
)
BUILTIN_LSP_HANDLERS = frozenset({"BaseHandler", "TorchScriptHandler"})

_logger = logging.getLogger(__name__)


class ArchiveError(Exception):
    """An archive cannot be written as asked; the text tells the packager what to change."""


class Collection:
    """Which file becomes which entry. Of two for one entry the later stands."""

    def __init__(self, base: Path | None, reserved: str) -> None:
        self._base = base
        self._reserved = reserved
        self._entries: dict[PurePosixPath, Path] = {}

    def without(self, target: Path) -> dict[PurePosixPath, Path]:
        """The entries in order, without the archive itself: it may lie in a directory that is packaged."""
        return {
            name: path
            for name, path in sorted(self._entries.items())
            if not (target.is_file() and path.samefile(target))
        }

    def add_file(self, name: str) -> None:
        """A file, by its base name."""
        path = self._find(name)
        if path is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        self._add(PurePosixPath(path.name), path)

    def add_handler(self, handler: str, runtime: Runtime | None) -> None:
        """The handler's file, unless it is one of the worker's own; None is the runtime of a workflow."""
        if runtime is Runtime.LSP:
            if handler not in BUILTIN_LSP_HANDLERS:
                self.add_file((handler.rpartition(":")[0] or handler) + _library_suffix())
            return
        if runtime is not None and handler in BUILTIN_HANDLERS:
            return
        head, _, function = handler.rpartition(":")
        path = head if head and "/" not in function else handler
        if ".py" in handler and self._find(handler) is not None:
            path = handler  # a name that holds a colon, or an ending other than .py
        elif not path.endswith(".py"):
            path += ".py"
        self.add_file(path)

    def add_files(self, names: str) -> None:
        """The files of a comma-separated list."""
        for name in _split(names):
            self.add_file(name)

    def add_extra_files(self, names: str) -> None:
        """Files and directories of the ``--extra-files`` list."""
        for name in _split(names):
            exact = self._find(name)
            if exact is not None:
                self._add_extra(exact)
            elif "*" in name or "?" in name or ("[" in name and "]" in name):
                found = self._match(name)
                if not found:
                    _logger.warning("Given wildcard pattern did not match any file: %s", name)
                for path in found:
                    self._add_extra(path)
            else:
                raise ArchiveError(f"File does not exist: {name}")

    def _add_extra(self, path: Path) -> None:
        if path.is_dir():
            self._add_content(path, PurePosixPath(), frozenset())
        elif path.is_file():
            self._add(PurePosixPath(path.name), path)
        else:
            raise ArchiveError(f"Invalid extra file given {path}")

    def _add_content(self, directory: Path, prefix: PurePosixPath, above: frozenset[Path]) -> None:
        """Everything in a directory but hidden directories and caches; links are followed."""
        real = directory.resolve()
        if real in above:
            raise ArchiveError(f"{directory} links to a directory it is in. Remove the link, or leave it out.")
        for child in sorted(directory.iterdir()):
            if child.is_dir():
                if child.name == self._reserved and not prefix.parts:
                    _logger.warning("Leaving out %s: the archive gets one of its own.", child)
                elif not child.name.startswith(".") and child.name not in ("__MACOSX", "__pycache__"):
                    self._add_content(child, prefix / child.name, above | {real})
            elif child.is_file():
                self._add(prefix / child.name, child)
            else:
                _logger.warning("Leaving out %s: it is neither a file nor a directory.", child)

    def _add(self, name: PurePosixPath, path: Path) -> None:
        if not path.is_file():
            raise ArchiveError(f"{path} is not a file.")
        if name.parts[0] == self._reserved:
            raise ArchiveError(f"{path} cannot be packaged: the name {self._reserved} is reserved.")
        other = self._entries.get(name)
        if other is not None and not other.samefile(path):
            _logger.warning("%s replaces %s in the archive: both would be %s.", path, other, name)
        self._entries[name] = path

    def _find(self, name: str) -> Path | None:
        candidates = [Path(name)] if self._base is None else [self._base / name, Path(name)]
        return next((path for path in candidates if path.exists()), None)

    def _match(self, pattern: str) -> list[Path]:
        found = [] if self._base is None else glob.glob(str(Path(glob.escape(str(self._base))) / pattern))  # noqa: PTH207
        return [Path(name) for name in sorted(found or glob.glob(pattern))]  # noqa: PTH207  (takes absolute patterns)


def _library_suffix() -> str:
    return ".dylib" if os.uname().sysname == "Darwin" else ".so"


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
