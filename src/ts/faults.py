"""What a worker can say about its own end: where an exception came from, where it hangs, and that its GPU is lost."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from contextlib import suppress
from typing import NamedTuple

from ts.wire import STACK_SIGNAL

__all__ = ["Place", "dump_stacks", "end_if_device_is_lost", "locate", "tell_device_state"]


class Place(NamedTuple):
    """A line of code; empty where none is known.

    Attributes:
        file: relative to the directory of the model, or the absolute path of a file outside of it.
        line: from 1 on.
        function: what it is part of, "" if nothing ran.
    """

    file: str = ""
    line: int = 0
    function: str = ""


def dump_stacks() -> None:
    """From now on a crash, or the server's signal, writes the Python stack to standard error, whatever runs.

    One thread's stack: the server keeps the last lines alone, and those of other threads would push it out.
    """
    faulthandler.enable(2, all_threads=False)
    faulthandler.register(STACK_SIGNAL, 2, all_threads=False)


def locate(error: BaseException, model_dir: str) -> Place:
    """The line an exception came from: the innermost one of the model's own code, else the innermost one.

    Args:
        error: what was raised.
        model_dir: directory of the model.
    """
    root = os.path.realpath(model_dir) + os.sep
    entries = traceback.extract_tb(error.__traceback__)
    places = [Place(entry.filename, entry.lineno or 0, entry.name) for entry in entries]
    if isinstance(error, SyntaxError) and error.filename:
        places.append(Place(error.filename, error.lineno or 0))  # no frame: the file never ran
    known = [place for place in places if not place.file.startswith("<")]
    own = [place for place in known if os.path.realpath(place.file).startswith(root)]
    if own:
        return own[-1]._replace(file=os.path.realpath(own[-1].file).removeprefix(root))
    return known[-1] if known else Place()


def end_if_device_is_lost(error: BaseException) -> None:
    """Ends this process if the error has left the GPU unusable for it, as a device-side assert does.

    Every later call would fail, too, with an error that names the wrong culprit. A new process starts afresh.

    Raises:
        SystemExit: it has; the traceback is on standard error.
    """
    if "CUDA" not in _printed(error) or not _device_is_lost():
        return
    tell_device_state()
    traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    raise SystemExit(1) from error


def tell_device_state() -> None:
    """Writes to standard error what PyTorch holds of the memory of its GPU; nothing if it uses none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    with suppress(AttributeError, RuntimeError):  # nothing of that name, or the device answers no more
        if cuda is not None and cuda.is_initialized():
            device, held = cuda.current_device(), (cuda.memory_allocated(), cuda.memory_reserved())
            sys.stderr.write("CUDA device {}: {} bytes allocated, {} bytes reserved by PyTorch\n".format(device, *held))


def _device_is_lost() -> bool:
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return False
        torch.cuda.synchronize()
    except AttributeError:  # something else of that name
        return False
    except RuntimeError:  # what was asked of the device before has failed, and so will all that comes
        return True
    return False


def _printed(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # an exception of a user may do anything when it is printed
        return ""
