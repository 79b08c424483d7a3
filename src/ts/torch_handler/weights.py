"""Formats of weights: recognising a file, and making a model of it."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ts.importing import list_classes_from_module

__all__ = [
    "FORMATS",
    "ONNX_AVAILABLE",
    "Format",
    "Row",
    "build_model",
    "load_compiled",
    "load_exported",
    "load_pickled",
    "load_state",
    "load_torchscript",
    "recognise",
    "setup_ort_session",
]

ONNX_AVAILABLE = find_spec("onnxruntime") is not None


class Format(Enum):
    """What a file of weights is when no model file says what to do with it."""

    TORCHSCRIPT = "TorchScript"
    ONNX = "ONNX"
    EXPORTED = "exported program"
    COMPILED = "code compiled by AOTInductor"
    PICKLED = "pickled model"


class Row(NamedTuple):
    """One format: the file names it goes by and how to tell it from others of that name."""

    format: Format
    suffixes: tuple[str, ...]
    matches: Callable[[Path], bool]


def _always(_path: Path) -> bool:
    return True


def _is_torchscript(path: Path) -> bool:
    """TorchScript is a zip file with a table of constants; a checkpoint of ``torch.save`` has none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _is_compiled_package(path: Path) -> bool:
    """A package of AOTInductor is a zip file like an exported program, with libraries in a directory of their own."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("data/aotinductor/" in name for name in archive.namelist())


# The first row that fits decides.
FORMATS = (
    Row(Format.TORCHSCRIPT, (".pt",), _always),
    Row(Format.TORCHSCRIPT, (".pth", ".bin"), _is_torchscript),
    Row(Format.PICKLED, (".pth", ".bin"), _always),
    Row(Format.ONNX, (".onnx",), _always),
    Row(Format.COMPILED, (".pt2",), _is_compiled_package),
    Row(Format.EXPORTED, (".pt2",), _always),
    Row(Format.COMPILED, (".so",), _always),
)


def recognise(path: str | Path) -> Format | None:
    """The format of a file of weights that comes without a model file; None if it is none that can be loaded so.

    Args:
        path: the file.
    """
    path = Path(path)
    for row in FORMATS:
        if path.suffix in row.suffixes and row.matches(path):
            return row.format
    return None


def load_torchscript(path: str | Path, device: Any) -> Any:
    """A TorchScript module on its device.

    Args:
        path: the file.
        device: where its tensors go.

    Raises:
        RuntimeError: the file is no TorchScript.
        ValueError: there is no such file.
    """
    try:
        with warnings.catch_warnings():
            # Newer releases advise against TorchScript; whoever starts a server cannot follow that advice.
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        if _is_torchscript(Path(path)):
            raise
        raise RuntimeError(
            f"No model weights could be loaded: {Path(path).name} is not TorchScript. If it is a state_dict, package "
            "the model's class with it (--model-file)."
        ) from error
    return model


def load_exported(path: str | Path, device: Any, *, allow_pickle: bool = False) -> Any:
    """The module of a program that ``torch.export.save`` wrote, on its device.

    Args:
        path: the file.
        device: where its tensors go.
        allow_pickle: run code from the file if it asks for it.

    Raises:
        RuntimeError: the file is no exported program, needs pickle, or was written by an incompatible release.
    """
    name = Path(path).name
    with _only_weights(allow_pickle):
        try:
            program = torch.export.load(path)
        except pickle.UnpicklingError as error:
            raise RuntimeError(
                f"{name} holds more than tensors, and loading it would run code from the file. Export a model whose "
                "parameters and constants are plain tensors, or, if you trust the file, set "
                "`handler.allow_pickle: true` in the model's configuration file."
            ) from error
        except Exception as error:
            raise RuntimeError(
                f"No model weights could be loaded: PyTorch {torch.__version__} cannot read {name} as an exported "
                f"program ({error}). Save it again with torch.export.save() of this release."
            ) from error
    # The device is written into a program, so that .to() would leave it half on the old one.
    passes = importlib.import_module("torch.export.passes")
    move = getattr(passes, "move_to_device_pass", None)
    if move is not None:
        return move(program, str(device)).module()
    return program.module().to(device)


@contextmanager
def _only_weights(allow_pickle: bool) -> Iterator[None]:
    # torch.export.load() has no such argument, and falls back to pickle by itself for tensors of a class of their own.
    if allow_pickle:
        yield
        return
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def load_compiled(path: str | Path, device: Any) -> Any:
    """A callable for code that AOTInductor compiled; it runs on the kind of device that it was compiled for.

    Args:
        path: a package (``.pt2``), or a library (``.so``) of the older form.
        device: where it computes.

    Raises:
        RuntimeError: the file cannot be loaded, or this release of PyTorch does not know its form.
    """
    path, device = Path(path), torch.device(device)
    try:
        if path.suffix == ".so":
            return importlib.import_module("torch._export").aot_load(str(path), str(device))
        load = importlib.import_module("torch._inductor").aoti_load_package
        # Older releases take the current device.
        indexed = device.index is not None and "device_index" in inspect.signature(load).parameters
        return load(str(path), **({"device_index": device.index} if indexed else {}))
    except AttributeError as error:
        raise RuntimeError(
            f"PyTorch {torch.__version__} cannot load {path.name}: the form is not supported by this release. Compile "
            "the model again with torch._inductor.aoti_compile_and_package(), which writes a .pt2 file."
        ) from error
    except Exception as error:
        raise RuntimeError(
            f"{path.name} could not be loaded on {device}: {error}. Compiled code fits one release of PyTorch, one "
            "kind of device and one kind of processor; compile the model again on a machine like this one."
        ) from error


def build_model(model_file: str | Path) -> Any:
    """An instance of the only class that a model file defines.

    Args:
        model_file: a Python file; classes it imports do not count.

    Raises:
        RuntimeError: there is no such file.
        ValueError: it defines no class, or several.
    """
    path = Path(model_file)
    if not path.is_file():
        raise RuntimeError(f"Missing the model.py file: {path.name} is not in the archive.")
    classes = list_classes_from_module(_import_file(path))
    if len(classes) != 1:
        names = ", ".join(found.__name__ for found in classes) or "none"
        raise ValueError(
            f"Expected only one class as model definition. {path.name} defines {names}; "
            "move the others to a module of their own (--extra-files)."
        )
    return classes[0]()


def _import_file(path: Path) -> ModuleType:
    """Imports a file under the name that ``import`` would give it, so that its classes exist only once."""
    name = path.name.split(".", maxsplit=1)[0]
    present = sys.modules.get(name)
    if present is not None and os.path.realpath(getattr(present, "__file__", None) or "") == os.path.realpath(path):
        return present
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"The model file {path.name} is no Python file.")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_state(path: str | Path, device: Any, *, allow_pickle: bool = False) -> Any:
    """The state of an eager model.

    Args:
        path: safetensors, or what ``torch.save`` wrote: a ``state_dict``, or with ``allow_pickle`` a whole model.
        device: where its tensors go; None leaves them where they were saved.
        allow_pickle: run code from the file if it asks for it.

    Raises:
        RuntimeError: the file needs pickle, is damaged, or its format needs a package that is missing.
        OSError: it cannot be read.
    """
    if Path(path).suffix == ".safetensors":
        return _load_safetensors(path, device)
    loaded = load_pickled(path, device, allow_pickle=allow_pickle)
    return loaded.state_dict() if isinstance(loaded, torch.nn.Module) else loaded


def load_pickled(path: str | Path, device: Any, *, allow_pickle: bool) -> Any:
    """What ``torch.save`` wrote; without ``allow_pickle`` only tensors and plain values.

    Args:
        path: the file.
        device: where its tensors go; None leaves them where they were saved.
        allow_pickle: run code from the file if it asks for it.

    Raises:
        RuntimeError: the file needs pickle, or is no checkpoint.
        OSError: it cannot be read.
    """
    try:
        return torch.load(path, map_location=device, weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        name = Path(path).name
        if allow_pickle or not _is_checkpoint(Path(path)):
            raise RuntimeError(f"{name} is damaged or no checkpoint of torch.save.") from error
        raise RuntimeError(
            f"{name} holds more than tensors, and loading it would run code from the file. Save only the weights "
            "(torch.save(model.state_dict(), …), or safetensors), or, if you trust the file, set "
            "`handler.allow_pickle: true` in the model's configuration file."
        ) from error


def _is_checkpoint(path: Path) -> bool:
    """A zip file, or a pickle of protocol 2 or later as torch wrote before 1.6."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def _load_safetensors(path: str | Path, device: Any) -> Any:
    try:
        safetensors = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise RuntimeError(f"{Path(path).name} needs a package that is missing: pip install safetensors") from error
    return safetensors.load_file(path, device="cpu" if device is None else str(device))


def setup_ort_session(model_pt_path: str | Path, map_location: str | None, device: Any = None) -> Any:
    """An ONNX Runtime session.

    Args:
        model_pt_path: the file.
        map_location: ``cuda`` to compute on a GPU, anything else for the CPU.
        device: the GPU; None for the current one.

    Raises:
        RuntimeError: ``onnxruntime`` is not installed.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeError(
            f"No model weights could be loaded: {Path(model_pt_path).name} needs a package that is missing. "
            "pip install onnxruntime, or onnxruntime-gpu."
        ) from error
    providers: list[Any] = ["CPUExecutionProvider"]
    if map_location == "cuda":
        index = torch.cuda.current_device() if device is None else torch.device(device).index or 0
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    return runtime.InferenceSession(str(model_pt_path), providers=providers, sess_options=options)
