"""Half a minute of chaos, and the lies that must be found."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from chaos_run import run_chaos
from chaos_server import MODELS, ChaosServer
from chaos_steps import Ask, Strike, steps_of
from lying_proxy import LIES, lying_proxy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join(str(ROOT / name) for name in ("tests", "tests/integration", "benchmarks"))


@pytest.mark.torch
def test_half_a_minute_of_chaos_breaks_no_promise() -> None:
    seed = str(random.SystemRandom().randrange(1_000_000))  # a failure names it; `make chaos SEED=…` repeats it
    words = [sys.executable, str(ROOT / "tests/chaos/chaos.py"), "--seconds", "30", "--steps", "1000", "--seed", seed]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"seed {seed}: 1,000 steps and \d+ faults", " ".join(done.stdout.split()))


def test_a_seed_always_gives_the_same_steps() -> None:
    first, again, other = ([*islice(steps_of(seed, list(MODELS)), 500)] for seed in (1, 1, 2))
    assert first == again != other
    assert {type(step) for step in first} == {Ask, Strike}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChaosServer]:
    server = ChaosServer(tmp_path, torch=False)
    yield server
    server.kill()


async def test_without_faults_and_lies_nothing_is_found(server: ChaosServer) -> None:
    report = await run_chaos(server, seed=1, steps=60, seconds=1.0, troubles=False)
    assert report.violations == []


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        ("swap", "got the wrong answer"),
        ("drop", "got no answer"),
        ("repeat", "got more than one answer"),
        ("replay", "got the id of another request"),
        ("run_twice", "Requests2XX: the server counted"),
        ("refuse", "got what it must not get with nothing wrong: 500"),
    ],
)
async def test_a_lie_is_found(server: ChaosServer, lie: str, found: str) -> None:
    assert lie in LIES
    async with lying_proxy(server.ports["inference"], lie) as port:
        report = await run_chaos(server, seed=1, steps=60, seconds=1.0, port=port, troubles=False)
    assert [violation.text for violation in report.violations if found in violation.text]
