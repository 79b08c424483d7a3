"""``Model.serving_config``: six texts that say what goes into an archive and how it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mariner.archive.collect import BUILTIN_HANDLERS
from mariner.config import did_you_mean
from mariner.errors import InvalidModel

__all__ = ["KEYS", "Serving", "check_serving_config", "require_file"]

_EXAMPLES = {
    "model_file": "model.py",
    "handler": "image_classifier",
    "serialized_file": "model_state_dict.pt",
    "extra_files": "file_a.py,file_b.py",
    "requirements_file": "serving_requirements.txt",
    "config_properties": "config.properties",
}
KEYS = tuple(_EXAMPLES)
_MANDATORY = ("model_file", "handler")


@dataclass(frozen=True, slots=True)
class Serving:
    """What an archive is made of, all fallbacks applied and all files there.

    Attributes:
        model_file: Python file with the model's class.
        handler: built-in name, or path of a file with an optional ``:function``.
        serialized_file: the state_dict.
        extra_files: comma-separated list for the archiver, None for none.
        requirements_file: packages of the model.
        config_properties: a configuration of the user's own.
    """

    model_file: str
    handler: str
    serialized_file: str
    extra_files: str | None
    requirements_file: str | None
    config_properties: Path | None


def check_serving_config(config: object) -> dict[str, str]:
    """The keys that were given, if each is known, has a text, and the mandatory ones are there.

    Raises:
        InvalidModel: one is not; the message names it.
    """
    if not isinstance(config, Mapping):
        raise InvalidModel(
            f"serving_config must be a dict of texts, not {type(config).__name__}.",
            hint="Write serving_config={'model_file': 'model.py', 'handler': 'image_classifier'}.",
        )
    for key, value in config.items():
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            raise InvalidModel(f"serving_config has no key {key!r}.", hint=hint or f"Its keys are {', '.join(KEYS)}.")
        if not isinstance(value, str):
            raise InvalidModel(
                f"serving_config[{key!r}] must be a text, not {type(value).__name__}.",
                hint=f"Write {key!r}: {_EXAMPLES[key]!r}"
                + (", a comma between files." if key == "extra_files" else "."),
            )
    for key in _MANDATORY:
        if not str(config.get(key, "")).strip():
            what = "the file with the model's class" if key == "model_file" else "a built-in handler or a file"
            raise InvalidModel(
                f"serving_config[{key!r}] is missing.", hint=f"Name {what}, as in {key!r}: {_EXAMPLES[key]!r}."
            )
    return {str(key): value for key, value in config.items()}


def require_file(key: str, name: str, hint: str = "") -> str:
    """The name of a file that is there.

    Raises:
        InvalidModel: it is not.
    """
    if not Path(name).is_file():
        raise InvalidModel(
            f"{key}: there is no file {name!r}.", hint=hint or "Paths are relative to the working directory."
        )
    return name


def require_handler(handler: str) -> str:
    """A handler that the worker has, or whose file is there.

    Raises:
        InvalidModel: neither.
    """
    if handler in BUILTIN_HANDLERS:
        return handler
    path = handler if Path(handler).is_file() else handler.rpartition(":")[0] or handler
    if not Path(path).is_file() and not Path(f"{path}.py").is_file():
        hint = did_you_mean(handler, BUILTIN_HANDLERS) or (
            f"Name a Python file, or one of {', '.join(sorted(BUILTIN_HANDLERS))}."
        )
        raise InvalidModel(
            f"serving_config['handler']: there is no file and no built-in handler {handler!r}.", hint=hint
        )
    return handler
