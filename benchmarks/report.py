"""Rows to verdicts: medians, ratios against the targets, a table for the terminal and a page for the repository."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from measure import Row
from rich.table import Table
from scenarios import LIFECYCLE, MARINER, TARGETS, WORKLOADS, Target

__all__ = [
    "INTRODUCTION",
    "Verdict",
    "describe_machine",
    "figure",
    "limits",
    "markdown_page",
    "medians",
    "medians_table",
    "verdict_cells",
    "verdicts",
    "verdicts_table",
]

SATURATED = 0.95  # cores of the one wrk thread
SHARED = 0.15  # cores that neither wrk nor the server used

INTRODUCTION = """\
Written by `benchmarks/bench.py`. Absolute figures belong to this machine and this moment; only the ratios of one run
say something. One worker, one torch thread, one wrk thread; `c64` means 64 connections. Every server runs the same
handler; `bare` is that handler in a plain loop, with the standard library's JSON or with orjson. Answers with a status
of 400 or more do not count. Memory is the PSS of the whole process tree, 1 MB = 10⁶ bytes. The columns `wrk`, `server`
and `others` say how many cores each used."""

Medians = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what came out; ``value`` is None if one of the two sides was not measured."""

    target: Target
    value: float | None

    def says(self, bound: float | None) -> str:
        if bound is None:
            return ""
        if self.value is None:
            return "not measured"
        return "ok" if self.target.met(self.value, bound) else "miss"


def medians(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Median over the rounds per measure and peer; a round without a value takes the whole median away."""
    grouped: dict[tuple[str, str], list[float | None]] = {}
    for row in rows:
        grouped.setdefault((row.measure, row.peer), []).append(row.value)
    return {
        key: median(value for value in values if value is not None)
        for key, values in grouped.items()
        if None not in values
    }


def verdicts(found: Medians, measures: set[str], peers: Sequence[str]) -> list[Verdict]:
    """What became of the targets whose measure and whose peer were part of this run."""
    return [
        Verdict(target, _value(target, found))
        for target in TARGETS
        if target.measure in measures and (target.against is None or target.against.split()[0] in peers)
    ]


def _value(target: Target, found: Medians) -> float | None:
    ours = found.get((target.measure, MARINER))
    if target.against is None or ours is None:
        return ours
    theirs = found.get((target.measure, target.against))
    return ours / theirs if theirs else None


def verdicts_table(judged: Sequence[Verdict]) -> Table:
    table = Table(title="Mariner against its targets", title_justify="left")
    for heading in ("measure", "against", "reached", "spine", "", "goal", " "):
        table.add_column(heading, justify="left" if heading in {"measure", "against", "", " "} else "right")
    colour = {"ok": "green", "miss": "red", "not measured": "yellow", "": "white"}
    for verdict in judged:
        measure, against, reached, spine, spine_says, goal, goal_says = verdict_cells(verdict)
        says = [f"[{colour[word]}]{word}[/]" for word in (spine_says, goal_says)]
        table.add_row(measure, against, reached, spine, says[0], goal, says[1])
    return table


def verdict_cells(verdict: Verdict) -> list[str]:
    target = verdict.target
    suffix = "x" if target.against else {"memory": " MB"}.get(target.measure, " s")
    sign = "≤" if target.at_most else "≥"

    def bound(value: float | None) -> str:
        return "" if value is None else f"{sign} {value:g}{suffix}"

    reached = "-" if verdict.value is None else f"{verdict.value:.3g}{suffix}"
    name = LIFECYCLE.get(target.measure, target.measure)
    spine, goal = target.spine, target.goal
    return [name, target.against or "", reached, bound(spine), verdict.says(spine), bound(goal), verdict.says(goal)]


def medians_table(found: Medians) -> Table:
    """Measures down, peers across; under each figure of a peer its ratio to Mariner's."""
    table = Table(title="Medians (a peer's figure, Mariner's ratio to it)", title_justify="left")
    headings, lines = _median_cells(found)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _median_cells(found: Medians) -> tuple[list[str], list[list[str]]]:
    peers = list(dict.fromkeys(peer for _, peer in found))
    peers.sort(key=lambda peer: peer != MARINER)
    units = dict.fromkeys((measure for measure, _ in found), "/s") | {"cold": " s", "kill": " s", "memory": " MB"}
    lines = []
    for measure in dict.fromkeys(measure for measure, _ in found):
        cells = [LIFECYCLE.get(measure, measure)]
        ours = found.get((measure, MARINER))
        for peer in peers:
            value = found.get((measure, peer))
            if value is None:
                cells.append("-")
                continue
            ratio = f" ({ours / value:.3g}x)" if ours is not None and peer != MARINER else ""
            cells.append(f"{figure(value)}{units[measure]}{ratio}")
        lines.append(cells)
    return ["measure", *peers], lines


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def describe_machine() -> dict[str, str]:
    """What a figure depends on besides the servers; taken before the run, because of the load average."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "processor": f"{model}, {psutil.cpu_count()} logical cores",
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "load average at the start": f"{psutil.getloadavg()[0]:.2f}",
        "system": platform.platform(),
        "python": f"{platform.python_version()}, {Path(sys.executable).resolve()}",
        "java": _first_line(["java", "-version"]),
        "wrk": _first_line(["wrk", "-v"]),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).partition("\n")[0].strip()


def limits(rows: Iterable[Row]) -> list[str]:
    """Where something other than the server bounded, or may have bent, a figure."""
    found: dict[str, None] = {}
    for row in rows:
        where = f"{row.measure}, {row.peer}"
        if row.wrk_cores is not None and row.wrk_cores >= SATURATED:
            found[f"{where}: the wrk thread was saturated, the server may be faster"] = None
        if row.wrk_cores is not None and row.other_cores is not None and row.other_cores >= SHARED:
            found[f"{where}: other processes used {row.other_cores:.2f} cores in round {row.round}"] = None
        if row.bad or row.broken:
            found[f"{where}: {row.bad} answers ≥ 400 and {row.broken} socket errors in round {row.round}"] = None
        if row.measure == "memory" and row.note:
            found[f"{where}: {row.note}"] = None
    return list(found)


def markdown_page(
    rows: Sequence[Row], judged: Sequence[Verdict], failures: Sequence[str], facts: Mapping[str, str]
) -> str:
    """``RESULTS.md``, which shows the picture and links the page with plots beside it."""
    described = [f"- **{workload.name}**: {workload.title}" for workload in WORKLOADS]
    sections = [
        "# Benchmark results",
        INTRODUCTION,
        "![Requests per second of each server](results.svg)",
        "With latencies, start, memory and recovery as plots: [results.html](results.html).",
        "\n".join(described),
        "## Targets",
        _markdown(["measure", "against", "reached", "spine", "", "goal", ""], map(verdict_cells, judged)),
        "## Medians",
        _markdown(*_median_cells(medians(rows))),
    ]
    if bounded := [*failures, *limits(rows)]:
        sections += ["## Limits of this run", "\n".join("- " + line.replace("\n", "\n  ") for line in bounded)]
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    sections += ["## Machine and versions", listed, "## Rows", _markdown(list(_RAW), map(_raw_cells, rows))]
    return "\n\n".join(sections) + "\n"


_RAW = ("measure", "peer", "round", "value", "p50 ms", "p99 ms", "requests", "≥ 400", "wrk", "server", "others", "note")


def _raw_cells(row: Row) -> list[str]:
    value = "-" if row.value is None else f"{figure(row.value)} {row.unit}"
    fractions = ["" if number is None else f"{number:.3g}" for number in (row.p50_ms, row.p99_ms)]
    cores = ["" if n is None else f"{n:.2f}" for n in (row.wrk_cores, row.server_cores, row.other_cores)]
    requests = "" if row.requests is None else str(row.requests)
    return [row.measure, row.peer, str(row.round), value, *fractions, requests, str(row.bad), *cores, row.note]


def _markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    head = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    return "\n".join(head + [f"| {' | '.join(line)} |" for line in lines])
