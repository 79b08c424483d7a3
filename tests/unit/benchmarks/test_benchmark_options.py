"""What a run of the benchmark measures when nothing, or something, is asked for."""

import sys
from pathlib import Path

import pytest
from bench import _options, _plan
from rich.console import Console


def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    return [step.title for step in _plan(_options(), tmp_path, Console(quiet=True))]


def test_a_run_without_options_has_the_usual_servers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    options = _options()
    assert options.peers == ["mariner", "torchserve", "mosec", "bare"]
    assert (options.seconds, options.rounds, options.out.name) == (5, 2, "benchmarks")


@pytest.mark.slow
def test_servers_that_are_named_are_measured_on_what_they_cover(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = ("--quick", "--only", "W1,W3n", "--peers", "mariner,litserve,ray")
    assert plan(monkeypatch, tmp_path, *asked) == [
        "round 1, W1, mariner",
        "round 1, W1, litserve",
        "round 1, W1, ray",
        "round 1, W3n, mariner",
    ]
