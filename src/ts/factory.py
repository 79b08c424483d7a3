"""A handler class out of plain functions: one builds the model, the others prepare and finish one sample each.

The handler does the rest: device, weights, batches, bundles of source files, a bound on GPU memory. A sample that
cannot be read or prepared fails alone; the others of its batch are answered.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from ts.errors import PredictionException
from ts.torch_handler import weights
from ts.torch_handler.device import choose_device, prefer_fast_matmul

__all__ = ["decode_sample", "handler_factory", "unpack_bundle"]

logger = logging.getLogger(__name__)

_MEGABYTE = 1 << 20
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


def handler_factory(
    init_function: Callable[..., Any],
    preprocess_function: Callable[[Any], Any] | None = None,
    postprocess_function: Callable[[Any], Any] | None = None,
    install_packages: Callable[[], Any] | None = None,
    unpack_dependencies: Callable[[], Any] | None = None,
    **kwargs: Any,
) -> type:
    """Makes a handler; bind the result to a name of your module, and the module is a handler file.

    Args:
        init_function: returns the model, a ``torch.nn.Module``, without its weights.
        preprocess_function: gets one decoded sample and returns what becomes one row of the model's input.
        postprocess_function: gets one row of the model's output and returns the answer.
        install_packages: called first; installs what pip cannot.
        unpack_dependencies: called once the bundle of the archive is unpacked, before the model is made.
        kwargs: handed to ``init_function``.

    Returns:
        A class that belongs to the calling module, where the loader looks for it.
    """
    functions = _Functions(
        init_function, preprocess_function, postprocess_function, install_packages, unpack_dependencies, kwargs
    )
    caller = sys._getframe(1).f_globals["__name__"]  # noqa: SLF001  # a class counts where its __module__ says it is
    return type("FactoryHandler", (_Handler,), {"functions": functions, "__module__": caller})


class _Functions(NamedTuple):
    init: Callable[..., Any]
    preprocess: Callable[[Any], Any] | None
    postprocess: Callable[[Any], Any] | None
    install_packages: Callable[[], Any] | None
    unpack_dependencies: Callable[[], Any] | None
    arguments: Mapping[str, Any]


class _Failure(NamedTuple):
    """What became of a sample that cannot be answered."""

    status: int
    message: str


class _Handler:
    """What :func:`handler_factory` makes subclasses of.

    Attributes:
        functions: the functions it was made of.
        model: the model.
        device: where the model is.
        initialized: the model is loaded.
    """

    functions: _Functions
    model: Any = None
    device: Any = None
    initialized: bool = False

    def initialize(self, context: Any) -> None:
        """Prepares the model directory, then makes and loads the model.

        Args:
            context: says where the archive is and which device to use.

        Raises:
            FileNotFoundError: the bundle that the configuration names is not in the archive.
            TypeError: ``init_function`` returned no model.
            ValueError: the configuration or the bundle is not as it must be.
            RuntimeError: the weights do not fit or cannot be loaded safely.
        """
        functions, properties = self.functions, context.system_properties
        config = context.model_yaml_config or {}
        system = config.get("system") or {}
        model_dir = Path(properties["model_dir"])
        _, self.device = choose_device(properties.get("gpu_id"))
        prefer_fast_matmul(self.device)
        _limit_memory(system.get("maxGPUMemory"), self.device)
        if functions.install_packages is not None:
            functions.install_packages()
        if system.get("extraFiles"):
            unpack_bundle(model_dir / str(system["extraFiles"]), model_dir)
        if functions.unpack_dependencies is not None:
            functions.unpack_dependencies()
        importlib.invalidate_caches()  # files have appeared since the last import looked
        model = functions.init(**functions.arguments)
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"init_function must return a torch.nn.Module; it returned {type(model).__name__}.")
        _load_weights(model, model_dir, context.manifest, config)
        self.model = model.to(self.device).eval()
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answers a batch.

        Args:
            data: one element for each request.
            context: takes the status of the samples that fail.

        Returns:
            One answer for each request.
        """
        outcomes: list[Any] = [_attempt(self._prepare, row) for row in data]
        for indices in _alike(outcomes):
            rows = _attempt(self._forward, [outcomes[index] for index in indices])
            for position, index in enumerate(indices):
                outcomes[index] = rows if isinstance(rows, _Failure) else _attempt(self._finish, (rows, position))
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, _Failure):
                context.set_response_status(outcome.status, "", index)
                context.set_response_content_type(index, "application/json")
                kind = "BadRequestException" if outcome.status == 400 else "InternalServerException"
                outcomes[index] = {"code": outcome.status, "type": kind, "message": outcome.message}
        return outcomes

    def _prepare(self, row: Mapping[str, Any]) -> Any:
        sample = decode_sample(next((row[key] for key in ("data", "body") if row.get(key) is not None), row))
        if self.functions.preprocess is not None:
            return _as_tensor(self.functions.preprocess(sample))
        try:
            return _as_tensor(sample)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PredictionException(f"The request is not what the model takes: {error}", 400) from error

    def _forward(self, samples: list[Any]) -> Any:
        with torch.inference_mode():
            return self.model(torch.stack(samples).to(self.device))

    def _finish(self, place: tuple[Any, int]) -> Any:
        row = _row(*place)
        finish = self.functions.postprocess
        return _plain(row if finish is None else finish(row))


# -- one batch --------------------------------------------------------------------------------------------------------


def _attempt(function: Callable[[Any], Any], argument: Any) -> Any:
    """The result, or what to tell those it was for; running out of memory is the worker's business."""
    try:
        return function(argument)
    except PredictionException as error:
        return _Failure(int(error.error_code), error.message)
    except Exception as error:
        if isinstance(error, MemoryError) or "CUDA" in str(error):
            raise
        logger.exception("A sample could not be answered.")
        return _Failure(503, "Prediction failed")


def _alike(samples: list[Any]) -> list[list[int]]:
    """Indices of the samples that can be stacked; one group unless shapes or types differ."""
    groups: dict[tuple[Any, Any], list[int]] = {}
    for index, sample in enumerate(samples):
        if not isinstance(sample, _Failure):
            groups.setdefault((sample.shape, sample.dtype), []).append(index)
    return list(groups.values())


def _row(output: Any, index: int) -> Any:
    """One sample of what the model returned; models may return tuples, lists and dicts of tensors."""
    if isinstance(output, Mapping):
        return {key: _row(value, index) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return tuple(_row(value, index) for value in output)
    return output[index]


def _plain(value: Any) -> Any:
    """Tensors as numbers, at any depth."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


# -- what clients send ------------------------------------------------------------------------------------------------


def decode_sample(value: Any) -> Any:
    """What a client sent, by its content: ``.npy`` and safetensors as tensors, pictures as Pillow images.

    Decoded JSON, text and bytes of no known format stay what they are. Nothing is ever unpickled.

    Args:
        value: body or field of a request.

    Raises:
        PredictionException: it has the marks of a format and cannot be read; status 400.
    """
    if not isinstance(value, (bytes, bytearray, memoryview)):
        return value
    content = bytes(value)
    try:
        if content.startswith(b"\x93NUMPY"):
            numpy = importlib.import_module("numpy")
            return torch.from_numpy(numpy.load(io.BytesIO(content), allow_pickle=False))
        if _is_safetensors(content):
            tensors = importlib.import_module("safetensors.torch").load(content)
            return next(iter(tensors.values())) if len(tensors) == 1 else tensors
        if content.startswith(_IMAGES):
            image = importlib.import_module("PIL.Image").open(io.BytesIO(content))
            image.load()
            return image
    except ImportError:
        logger.warning("A request was not decoded: a package is missing.", exc_info=True)
    except Exception as error:  # every library has errors of its own for damaged input
        raise PredictionException("The request's body is damaged or of a kind that is not read.", 400) from error
    return content


def _is_safetensors(content: bytes) -> bool:
    size = int.from_bytes(content[:8], "little")
    return content[8:9] == b"{" and 8 + size <= len(content)


def _as_tensor(sample: Any) -> Any:
    if isinstance(sample, (bytes, str, Mapping)):
        raise TypeError("send numbers as JSON, .npy or safetensors, or a picture")
    if hasattr(sample, "getbands"):
        return importlib.import_module("ts.torch_handler.vision_handler").image_to_tensor(sample)
    return torch.as_tensor(sample)


# -- loading ----------------------------------------------------------------------------------------------------------


def _limit_memory(megabytes: Any, device: Any) -> None:
    if megabytes is None:
        return
    if isinstance(megabytes, bool) or not isinstance(megabytes, (int, float)) or megabytes <= 0:
        raise ValueError(f"system.maxGPUMemory must be a number of megabytes above 0, not {megabytes!r}.")
    if device.type != "cuda":
        logger.warning("system.maxGPUMemory has no effect: this worker computes on %s.", device.type)
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, megabytes * _MEGABYTE / total), device)


def _load_weights(model: Any, model_dir: Path, manifest: Mapping[str, Any] | None, config: Mapping[str, Any]) -> None:
    """Loads the checkpoint of the archive; none, or an empty one, means that the model came with its weights."""
    name = ((manifest or {}).get("model") or {}).get("serializedFile")
    if not name or not (model_dir / name).stat().st_size:
        return
    section = config.get("handler")
    allow_pickle = isinstance(section, Mapping) and section.get("allow_pickle") is True
    model.load_state_dict(weights.load_state(model_dir / name, "cpu", allow_pickle=allow_pickle))


def unpack_bundle(bundle: Path, target: Path) -> None:
    """Unpacks a zip or a tar file of any compression into a directory; its name says nothing about what it is.

    Args:
        bundle: the file.
        target: directory that keeps the bundle's own directories; files of the same name are replaced.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, or has entries that lead elsewhere.
    """
    if not bundle.is_file():
        raise FileNotFoundError(
            f"system.extraFiles names {bundle.name}, which is not in the archive. Package it with --extra-files."
        )
    try:
        with tempfile.TemporaryDirectory(dir=target, prefix=".bundle-") as staging:
            for name, content in _entries(bundle):
                path = _inside(target.resolve(), name, bundle)
                part = Path(staging, "part")
                with content, part.open("wb") as file:
                    shutil.copyfileobj(content, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, path)  # noqa: PTH105  # other workers may be importing it right now
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"The bundle {bundle.name} is no tar or zip file, or it is damaged: {error}") from error


def _entries(bundle: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(bundle):
        with zipfile.ZipFile(bundle) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, archive.open(entry)
        return
    with tarfile.open(bundle, "r:*") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
            elif not member.isdir():
                raise ValueError(f"The bundle {bundle.name} has an entry that is no file: {member.name}.")


def _inside(target: Path, name: str, bundle: Path) -> Path:
    path = (target / name).resolve()
    if not path.is_relative_to(target) or path == target:
        raise ValueError(f"The bundle {bundle.name} has an entry that leads out of it: {name}.")
    return path
