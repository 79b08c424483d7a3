"""Weights that the workers of a version share: moved into a file that all of them map.

A worker loads its model as ever. Then its tensors are replaced by views of a file in the version's temporary directory:
the first worker writes it, the others compare and map it. So it does not matter what format the weights had or who
loaded them. The mapping is private: a handler that writes into a weight gets a page of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import hashlib
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

__all__ = ["find_modules", "share_weights"]

logger = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes; what PyTorch's own allocator gives
MEGABYTE = 1_000_000


def find_modules(*entry_points: Callable[..., Any]) -> list[torch.nn.Module]:
    """The networks that a handler holds: as attributes, or as ``model`` of one, as pipelines do.

    Args:
        entry_points: methods of the handler, or functions of a file, whose variables are taken then.
    """
    owners = [owner for owner in (getattr(entry, "__self__", None) for entry in entry_points) if owner is not None]
    spaces = [getattr(owner, "__dict__", {}) for owner in owners] or [
        getattr(entry, "__globals__", {}) for entry in entry_points
    ]
    values = [value for space in spaces for value in list(space.values())]
    values += [getattr(value, "model", None) for value in values]
    modules = {id(value): value for value in values if isinstance(value, torch.nn.Module)}
    return list(modules.values())


def share_weights(modules: Sequence[torch.nn.Module], place: Path) -> None:
    """Replaces what networks on the CPU have as parameters and buffers by views of a file; the log says how much.

    Args:
        modules: they must not be in use.
        place: where the file goes; the directory must exist, and be nobody else's.
    """
    weights = _Weights(modules)
    if not weights.size:
        logger.warning(
            "sharedWeights: the handler has no network with parameters on the CPU as an attribute; nothing is shared. "
            "Weights of frozen TorchScript, exported programs that were compiled, and ONNX cannot be."
        )
        return
    try:
        with (place.with_suffix(".lock")).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first one writes while the others wait
            path = place.with_name(f"{place.name}-{weights.layout()}")
            if not path.exists():
                weights.write(path)
        shared = weights.map(path)
    except OSError as error:
        logger.warning("sharedWeights: %s cannot be written or mapped (%s); nothing is shared.", place, error.strerror)
        return
    gc.collect()
    with suppress(OSError, AttributeError):  # not every libc has it
        ctypes.CDLL(None).malloc_trim(0)
    logger.info(
        "sharedWeights: %.1f of %.1f MB of weights are shared with the other workers.",
        *(shared / MEGABYTE, weights.size / MEGABYTE),
    )


class _Weights:
    """The tensors of networks, grouped by the memory they lie in."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._groups: dict[int, list[torch.Tensor]] = {}  # by address, in the order of the networks
        for tensor in _tensors(modules):
            if _can_move(tensor):
                self._groups.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self._sizes = [group[0].untyped_storage().nbytes() for group in self._groups.values()]
        self.size = sum(self._sizes)

    def layout(self) -> str:
        """A name for how they lie in the file."""
        return hashlib.sha256(repr(self._sizes).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                for (address, _), size, offset in self._placed():
                    file.write(bytes(offset - file.tell()))
                    file.write((ctypes.c_char * size).from_address(address))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def map(self, path: Path) -> int:
        """Lets the tensors lie in the file, as far as it has what they have; returns how many bytes they are."""
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        shared = 0
        with torch.no_grad():
            for (_, tensors), size, offset in self._placed():
                here = torch.frombuffer(mapping, dtype=torch.uint8, count=size, offset=offset)
                there = torch.empty(0, dtype=torch.uint8).set_(tensors[0].untyped_storage())
                if not torch.equal(here, there):
                    continue  # each worker makes it up anew
                for tensor in tensors:
                    tensor.data = torch.empty(0, dtype=tensor.dtype).set_(
                        here.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
                    )
                shared += size
        return shared

    def _placed(self) -> Iterator[tuple[tuple[int, list[torch.Tensor]], int, int]]:
        """Address and tensors, size in bytes, and offset in the file."""
        offset = 0
        for item, size in zip(self._groups.items(), self._sizes, strict=True):
            yield item, size, offset
            offset += -(-size // ALIGNMENT) * ALIGNMENT


def _tensors(modules: Iterable[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _can_move(tensor: torch.Tensor) -> bool:
    """A plain tensor in memory of this process."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and tensor.untyped_storage().nbytes() > 0
    )
