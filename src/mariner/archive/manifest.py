"""The manifest of a model archive, ``MAR-INF/MANIFEST.json``. Only what server and archivers need of it.

Keys that are not fields here are kept for nobody: the worker gives handlers the file as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mariner.errors import InvalidArchive

__all__ = ["MANIFEST_PATH", "Manifest", "Runtime", "read_manifest"]

MANIFEST_PATH = PurePosixPath("MAR-INF/MANIFEST.json")
MAX_MANIFEST_SIZE = 1 << 20  # bytes; written ones have a few hundred

_DEFAULT_VERSION = "1.0"
_REFERENCES = ("handler", "serialized_file", "model_file", "requirements_file", "config_file")


class Runtime(Enum):
    """What runs the handler."""

    PYTHON = "python"
    PYTHON3 = "python3"
    LSP = "LSP"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says about itself; the default is what an archive without a manifest says.

    Attributes:
        model_name: the name it is registered under unless the caller names another.
        model_version: its version.
        handler: handler spec, ``file[:function]`` or a built-in name.
        runtime: what runs the handler.
        serialized_file: weights, relative to the archive's root like all files here.
        model_file: Python file with the model's class.
        requirements_file: packages to install.
        config_file: the model config.
        created_on: when it was packaged, in the packager's local time.
        archiver_version: version of the archiver's format.
    """

    model_name: str | None = None
    model_version: str = _DEFAULT_VERSION
    handler: str | None = None
    runtime: Runtime = Runtime.PYTHON
    serialized_file: str | None = None
    model_file: str | None = None
    requirements_file: str | None = None
    config_file: str | None = None
    created_on: str | None = None
    archiver_version: str | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> Manifest:
        """Reads the JSON text; single quotes, bare keys and trailing commas are accepted as TorchServe does.

        Raises:
            InvalidArchive: the text is no manifest.
        """
        document = _parse_lenient_json(text)
        model = document.get("model", {})
        if not isinstance(model, Mapping):
            raise InvalidArchive("Missing Model entry in manifest file.")
        version = _text(model, "modelVersion") if "modelVersion" in model else _DEFAULT_VERSION
        if not version:
            raise InvalidArchive("Model version is not defined.")
        try:
            runtime = Runtime(document.get("runtime", Runtime.PYTHON.value))
        except ValueError:
            raise InvalidArchive("Runtime is not defined or invalid.") from None
        return cls(
            model_name=_text(model, "modelName"),
            model_version=version,
            handler=_text(model, "handler"),
            runtime=runtime,
            serialized_file=_text(model, "serializedFile"),
            model_file=_text(model, "modelFile"),
            requirements_file=_text(model, "requirementsFile"),
            config_file=_text(model, "configFile"),
            created_on=_text(document, "createdOn"),
            archiver_version=_text(document, "archiverVersion"),
        )

    def to_json(self) -> str:
        """The text the archiver writes: keys in its order, those without a value left out."""
        model = {
            "modelName": self.model_name,
            "serializedFile": self.serialized_file,
            "handler": self.handler,
            "modelFile": self.model_file,
            "modelVersion": self.model_version,
            "requirementsFile": self.requirements_file,
            "configFile": self.config_file,
        }
        document = {
            "createdOn": self.created_on,
            "runtime": self.runtime.value,
            "model": _without_none(model),
            "archiverVersion": self.archiver_version,
        }
        return json.dumps(_without_none(document), indent=2)

    def check_references(self) -> None:
        """Files that the manifest names must lie inside the archive.

        The check is about names alone: an unpacked archive holds no links, and the links of a directory model are
        its owner's.

        Raises:
            InvalidArchive: one does not.
        """
        for name in _REFERENCES:
            value = getattr(self, name)
            if value is None:
                continue
            path = PurePosixPath(value.partition(":")[0] if name == "handler" else value)
            if path.is_absolute() or ".." in path.parts:
                raise InvalidArchive(
                    f"The manifest's {_wire_key(name)} is {value!r}, which is outside the archive.",
                    hint="Package the file into the archive and name it by its path in there.",
                )


def read_manifest(model_dir: Path) -> Manifest | None:
    """The manifest of an unpacked archive, None if it has none.

    Raises:
        InvalidArchive: there is one, and it cannot be used.
    """
    path = model_dir / MANIFEST_PATH
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidArchive("Failed to parse signature.json.", hint=f"{MANIFEST_PATH}: {error.strerror}.") from error
    if len(text) > MAX_MANIFEST_SIZE:
        raise _unparsable(f"{MANIFEST_PATH} is larger than {MAX_MANIFEST_SIZE} bytes.")
    return Manifest.parse(text)


def _parse_lenient_json(text: str | bytes) -> Mapping[str, Any]:
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        try:
            # Numbers stay as they are written: version 1.10 is not version 1.1.
            document = json.loads(decoded, parse_int=str, parse_float=str, parse_constant=str)
        except json.JSONDecodeError:
            if not decoded.lstrip().startswith("{"):
                raise
            document = yaml.load(decoded, yaml.BaseLoader)  # noqa: S506  (BaseLoader builds nothing but texts)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unparsable(f"{MANIFEST_PATH} is not JSON.") from error
    if not isinstance(document, Mapping):
        raise _unparsable(f"{MANIFEST_PATH} is not a JSON object.")
    return document


def _text(section: Mapping[str, Any], key: str) -> str | None:
    value = section.get(key)
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str) or any(character < " " or character == "\x7f" for character in value):
        raise _unparsable(f"{key} is not a line of text.")  # it ends up in paths, log lines and metric labels
    return value or None


def _unparsable(hint: str) -> InvalidArchive:
    return InvalidArchive("Failed to parse signature.json.", hint=hint)


def _without_none(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def _wire_key(field_name: str) -> str:
    head, *tail = field_name.split("_")
    return head + "".join(part.title() for part in tail)


assert {*_REFERENCES} <= {field.name for field in fields(Manifest)}
