"""Request bodies in shared memory: received there, read there by the worker, never copied through a socket.

One arena per server. It is sparse: pages cost memory once they are used, and the lowest free space is used first, so
the resident size follows the peak of bodies in flight.
"""

from __future__ import annotations

import bisect
import mmap
import os
from contextlib import suppress

__all__ = ["Arena", "Slot"]

_PAGE = mmap.PAGESIZE


class Slot:
    """A piece of the arena that holds one body until :meth:`release`."""

    __slots__ = ("_arena", "_view", "offset", "size")

    def __init__(self, arena: Arena, offset: int, size: int) -> None:
        self._arena: Arena | None = arena
        self._view = arena.view[offset : offset + size]
        self.offset = offset
        self.size = size

    @property
    def view(self) -> memoryview:
        """The bytes, writable. Invalid after :meth:`release`."""
        return self._view

    def release(self) -> None:
        """Gives the space back; may be called more than once."""
        arena, self._arena = self._arena, None
        if arena is not None:
            self._view.release()
            arena.free(self.offset, self.size)


class Arena:
    """First-fit allocation in one anonymous shared-memory file.

    Args:
        size: capacity in bytes; address space until it is used.

    Attributes:
        fd: file descriptor to hand to workers, which map it read-only.
        size: capacity in bytes.
        view: the whole arena, writable.
    """

    def __init__(self, size: int) -> None:
        self.size = _pages(size)
        self.fd = os.memfd_create("mariner-bodies", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)
        self.view = memoryview(self._map)
        self._free: list[tuple[int, int]] = [(0, self.size)]  # offset, length; sorted, never adjacent

    def allocate(self, size: int) -> Slot | None:
        """Space for ``size`` bytes, or None if there is none: the body then travels through the socket."""
        wanted = _pages(size)
        for index, (offset, length) in enumerate(self._free):
            if length >= wanted:
                if length == wanted:
                    del self._free[index]
                else:
                    self._free[index] = (offset + wanted, length - wanted)
                return Slot(self, offset, size)
        return None

    def free(self, offset: int, size: int) -> None:
        """Called by :meth:`Slot.release`."""
        length = _pages(size)
        index = bisect.bisect(self._free, (offset, 0))
        if index < len(self._free) and self._free[index][0] == offset + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == offset:
            offset, before = self._free[index - 1]
            self._free[index - 1] = (offset, before + length)
        else:
            self._free.insert(index, (offset, length))

    @property
    def used(self) -> int:
        """Bytes that are allocated now."""
        return self.size - sum(length for _, length in self._free)

    def close(self) -> None:
        """Unmaps the arena. Where something still looks at a body, that memory is left to the end of the process."""
        with suppress(BufferError):
            self.view.release()
            self._map.close()
        os.close(self.fd)


def _pages(size: int) -> int:
    return -(-max(size, 1) // _PAGE) * _PAGE
