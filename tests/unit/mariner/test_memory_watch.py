from __future__ import annotations

import os
from pathlib import Path

import pytest

from mariner.engines.memory import MemoryWatch, oom_kill_file

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("membership", "file", "found"),
    [
        ("0::/a/b\n", "a/b/memory.events", True),
        ("0::/../../host/path\n", "memory.events", True),  # inside a container
        ("4:memory:/a\n1:cpu:/\n0::/\n", "memory/a/memory.oom_control", True),
        ("4:memory:/docker/123\n0::/\n", "memory/memory.oom_control", True),
        ("1:cpu:/\n", "memory.events", False),
        ("0::/a\n", "elsewhere", False),
    ],
)
def test_the_file_that_counts_kills_is_found(tmp_path: Path, membership: str, file: str, *, found: bool) -> None:
    groups, member = tmp_path / "cgroup", tmp_path / "membership"
    (groups / file).parent.mkdir(parents=True)
    (groups / file).write_text((V1 if file.endswith("oom_control") else V2).format(0))
    member.write_text(membership)
    place = oom_kill_file(groups, member, tmp_path / "none")
    assert (place is not None and place.resolve() == groups / file) is found


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    machine = tmp_path / "vmstat"
    assert oom_kill_file(tmp_path, tmp_path / "none", machine) is None
    machine.write_text("nr_free_pages 5\noom_kill 2\n")
    assert oom_kill_file(tmp_path, tmp_path / "none", machine) == machine


async def test_a_process_has_a_curve_until_it_is_forgotten() -> None:
    watch = MemoryWatch(None)
    watch.add(os.getpid())
    watch._sample()
    curve = watch.remove(os.getpid())
    assert [size > 1 << 20 for _, size in curve] == [True, True]
    assert curve[0][0] >= curve[1][0] >= 0
    assert watch.remove(os.getpid()) == ()


async def test_one_timer_samples_all_and_stops_with_the_last() -> None:
    watch = MemoryWatch(None)
    watch.add(os.getpid())
    timer = watch._timer
    assert timer is not None
    watch.add(os.getppid())
    assert watch._timer is timer
    watch.remove(os.getpid())
    assert not timer.cancelled()
    assert len(watch.remove(os.getppid())) == 1
    assert timer.cancelled()


async def test_each_kill_that_the_kernel_counts_explains_one_death(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text(V2.format(7))
    watch = MemoryWatch(file)
    watch.add(os.getpid())
    assert watch.recent_kills() == 0
    file.write_text(V2.format(8))
    assert (watch.recent_kills(), watch.recent_kills()) == (1, 0)
    watch.remove(os.getpid())


async def test_kills_of_long_ago_explain_nothing(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text(V2.format(0))
    watch = MemoryWatch(file)
    watch.add(os.getpid())
    file.write_text(V2.format(1))
    for _ in range(5):
        assert watch._timer is not None
        watch._timer.cancel()
        watch._sample()
    assert watch.recent_kills() == 0
    watch.remove(os.getpid())


async def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    watch = MemoryWatch(tmp_path / "none")
    watch.add(os.getpid())
    assert watch.recent_kills() is None
    watch.remove(os.getpid())
