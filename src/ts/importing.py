"""Finding code by name: the import path of a worker, modules and classes named in text."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["defined_classes", "import_class", "import_path", "list_classes_from_module", "require"]

_PACKAGE = Path(__file__).resolve().parent


def defined_classes(module: ModuleType) -> list[type]:
    """The classes that are defined in ``module``, in the order of their definition.

    A class belongs to the module that its ``__module__`` names. Imported classes therefore do not count, and a class
    whose ``__module__`` was assigned does.
    """
    unique = {
        id(value): value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    return list(unique.values())


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes that are defined in a module.

    Args:
        module: an imported module.
        parent_class: only subclasses of this class, if given.

    Returns:
        The classes in alphabetical order of the names they are bound to.
    """
    classes = [value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == module.__name__]
    if parent_class is None:
        return classes
    return [value for value in classes if issubclass(value, parent_class)]


def import_class(class_name: str, module_prefix: str | None = None) -> type:
    """Imports a class by its name.

    Args:
        class_name: dotted name, or a bare name together with ``module_prefix``.
        module_prefix: module to look in when ``class_name`` does not name one itself.

    Returns:
        The class.

    Raises:
        ImportError: the name is empty or names no module, the module cannot be imported, or it has no such class.
    """
    module_name, _, name = class_name.rpartition(".")
    if module_prefix:
        module_name = f"{module_prefix}.{module_name}" if module_name else module_prefix
    if not name or not module_name:
        raise ImportError(f"Cannot import {class_name!r}: give a dotted name such as package.module.Class.")
    found = getattr(importlib.import_module(module_name), name, None)
    if not inspect.isclass(found):
        raise ImportError(f"Cannot import {class_name!r}: module {module_name} has no class {name}.")
    return found


def require(module_name: str, package: str, who: str) -> ModuleType:
    """Imports a module of a package that only some models need.

    Args:
        module_name: dotted name of the module.
        package: what pip calls the package.
        who: what needs it, the beginning of a sentence.

    Returns:
        The module.

    Raises:
        ImportError: the package is not installed, or importing it fails.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # something that the package itself imports is missing
        message = f"{who} a package that is missing: pip install {package}"
        if error.name != module_name.partition(".")[0]:
            message += f". What is installed has no module {error.name}: it may be another version."
        raise ImportError(message, name=error.name) from None


def import_path(current: Sequence[str], *, inherited: str, model_dir: str, handler: str) -> tuple[list[str], str]:
    """Where a worker looks for modules once it knows its model.

    Args:
        current: ``sys.path`` as it is, without the directory of the main module.
        inherited: value of ``PYTHONPATH``; its entries keep their place before the model.
        model_dir: absolute path of the unpacked archive, possibly a symbolic link.
        handler: handler spec; with a function name its directory comes first.

    Returns:
        The new ``sys.path`` and the new value of ``PYTHONPATH`` for processes that a handler starts.
    """
    directory = Path(model_dir).resolve()
    first: list[Path] = []
    file, colon, _ = handler.partition(":")
    if colon and "/" in file:
        first.append(directory / Path(file).parent)
    first += [Path(entry).absolute() for entry in inherited.split(os.pathsep) if entry]
    first.append(directory)
    if Path(model_dir).is_symlink():
        first.append(Path(model_dir).absolute().parent)  # packages of a model without an archive lie here
    home = _PACKAGE.parent
    if home.name not in {"site-packages", "dist-packages"}:
        first.append(home)
    # The package's own folder must not be on the path: its context, metrics, service... would hide a user's modules.
    front = list(dict.fromkeys(str(entry) for entry in first if entry.resolve() != _PACKAGE))
    rest = [entry for entry in current if entry not in {"", *front} and Path(entry).resolve() != _PACKAGE]
    return front + rest, os.pathsep.join(front)
