"""The arena of shared request bodies."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mariner.bodies import Arena, Slot

PAGE = mmap.PAGESIZE


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(16 * PAGE)
    yield arena
    arena.close()


def test_another_process_reads_what_was_written(arena: Arena) -> None:
    slot = arena.allocate(5)
    assert slot is not None
    slot.view[:] = b"hello"
    with mmap.mmap(arena.fd, arena.size, access=mmap.ACCESS_READ) as reader:
        assert reader[slot.offset : slot.offset + slot.size] == b"hello"
    slot.release()


def test_a_full_arena_says_so_and_recovers(arena: Arena) -> None:
    slots = [arena.allocate(PAGE) for _ in range(16)]
    assert arena.allocate(1) is None
    for slot in slots:
        assert slot is not None
        slot.release()
    whole = arena.allocate(16 * PAGE)
    assert whole is not None
    whole.release()


def test_releasing_twice_frees_once(arena: Arena) -> None:
    slot = arena.allocate(PAGE)
    assert slot is not None
    slot.release()
    slot.release()
    assert arena.used == 0


@given(st.lists(st.integers(1, 5 * PAGE) | st.none(), max_size=60))
def test_slots_never_overlap_and_nothing_is_lost(steps: list[int | None]) -> None:
    """A number allocates that many bytes, None releases the oldest slot."""
    arena = Arena(16 * PAGE)
    held: list[Slot] = []
    for size in steps:
        if size is None:
            if held:
                held.pop(0).release()
        elif (slot := arena.allocate(size)) is not None:
            for other in held:
                assert slot.offset + slot.size <= other.offset or other.offset + other.size <= slot.offset
            held.append(slot)
        assert arena.used == sum(-(-slot.size // PAGE) * PAGE for slot in held)
    for slot in held:
        slot.release()
    assert arena.used == 0
    arena.close()
