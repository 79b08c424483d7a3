"""Lets the wall clock of every Python process under this ``PYTHONPATH`` jump, as a file says.

The file, named by ``CHAOS_CLOCK``, holds one little-endian double: seconds to add. ``time.time`` and ``time.time_ns``
follow it; ``datetime.now``, which is native code, does not.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path


def jump(path: Path) -> None:
    with path.open("rb") as file:
        page = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    real_time, real_time_ns = time.time, time.time_ns
    offset = struct.Struct("<d").unpack_from
    time.time = lambda: real_time() + offset(page)[0]
    time.time_ns = lambda: real_time_ns() + int(offset(page)[0] * 1e9)


if "CHAOS_CLOCK" in os.environ:
    jump(Path(os.environ["CHAOS_CLOCK"]))
