"""Measure Mariner, TorchServe and mosec in one run, interleaved, and compare with the targets.

    .venv/bin/python benchmarks/bench.py                      everything; writes benchmarks/RESULTS.md
    .venv/bin/python benchmarks/bench.py --quick --only W1    one short round of one workload
    .venv/bin/python benchmarks/bench.py --only W1,W1b,W2 --peers mariner,litserve,ray     other peers, not in every run
    .venv/bin/python benchmarks/bench.py --render             the pages again from results.json, without measuring

The peers are installed on first use. A server runs alone; every second round takes the servers in reverse order, so
that a drift of the machine cancels out. The exit status is 1 if a spine target was missed or something could not be
measured.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from archives import Prepared, prepare
from load import WrongAnswer, require_wrk
from measure import Row, Timing, measure_bare_loop, measure_lifecycle, measure_load
from peers import OPTIONAL, PEERS, Peer, StartFailed
from report import describe_machine, limits, medians, medians_table, verdicts_table
from results import Run, load, render, write
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scenarios import BARE, LIFECYCLE, LIFECYCLE_WORKLOAD, MARINER, WORKLOADS

HERE = Path(__file__).parent
QUICK_SECONDS = 2
LOG_WIDTH = 140  # columns of tables that go to a file or a pipe


@dataclass(frozen=True, slots=True)
class Step:
    """One server, or the bare loop, for one workload in one round."""

    title: str
    rows: Callable[[], Generator[Row]]


def main() -> int:
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    # So that servers are stopped also when the run is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.render:
        console.print(f"written: {render(options.out, load(options.out / 'results.json'))}")
        return 0
    require_wrk()
    for name in options.peers:
        if name in PEERS:
            PEERS[name].prepare(console)
    facts = describe_machine() | {name: PEERS[name].version() for name in options.peers if name in PEERS}
    # A short path, because servers put Unix sockets below it.
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        rows, failures = _measure(_plan(options, Path(temporary), console), console)
    run = Run(
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        " ".join(["python", "benchmarks/bench.py", *sys.argv[1:]]),
        facts,
        rows,
        failures,
        _measures(options.only),
        options.peers,
    )
    judged = run.judged

    if rows:
        console.print(medians_table(medians(rows)))
    if MARINER in options.peers and judged:
        console.print(verdicts_table(judged))
    for line in [*(failure.partition("\n")[0] for failure in failures), *limits(rows)]:
        console.print(f"! {line}", highlight=False, markup=False)
    console.print(f"written: {write(options.out, run)}")
    missed = MARINER in options.peers and any(verdict.says(verdict.target.spine) == "miss" for verdict in judged)
    return 1 if failures or missed else 0


def _options() -> argparse.Namespace:
    everything = [workload.name for workload in WORKLOADS] + list(LIFECYCLE)
    usual = [*(name for name in PEERS if name not in OPTIONAL), BARE]
    everybody = [*usual, *(name for name in PEERS if name in OPTIONAL)]

    def names(known: list[str]) -> Callable[[str], set[str]]:
        def parse(text: str) -> set[str]:
            wanted = set(text.split(","))
            if unknown := wanted - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is not one of {', '.join(known)}")
            return wanted

        return parse

    parser = argparse.ArgumentParser(description="Measure Mariner against TorchServe, mosec and a bare loop.")
    parser.add_argument("--only", type=names(everything), help=f"some of {','.join(everything)}")
    parser.add_argument(
        "--peers", type=names(everybody), help=f"some of {','.join(everybody)} (default: {','.join(usual)})"
    )
    parser.add_argument("--seconds", type=int, default=5, help="length of one measurement (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds; the median counts (default 2)")
    parser.add_argument(
        "--warm-up", type=int, default=8, help="seconds of load on each server first: Java compiles (default 8)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of 2 s, to see that everything works")
    parser.add_argument("--render", action="store_true", help="measure nothing; make the pages again from results.json")
    parser.add_argument(
        "--out", type=Path, help="folder of RESULTS.md (default: benchmarks for a full run, else build/benchmarks)"
    )
    options = parser.parse_args()
    incomplete = options.quick or options.only or options.peers
    options.out = options.out or (HERE.parent / "build" / "benchmarks" if incomplete else HERE)
    options.only = options.only or set(everything)
    options.peers = [name for name in everybody if name in (options.peers or usual)]
    if options.quick:
        options.seconds, options.warm_up, options.rounds = QUICK_SECONDS, QUICK_SECONDS, 1
    return options


def _measures(only: set[str]) -> list[str]:
    loads = [workload.measure(n) for workload in WORKLOADS if workload.name in only for n in workload.connections]
    return loads + [name for name in LIFECYCLE if name in only]


def _plan(options: argparse.Namespace, temporary: Path, console: Console) -> list[Step]:
    """The steps in order: round by round, workload by workload, server by server."""
    folders: dict[str, Prepared] = {}
    lifecycle = options.only & LIFECYCLE.keys()
    for workload in [*WORKLOADS, LIFECYCLE_WORKLOAD]:
        if workload.name in options.only or (workload is LIFECYCLE_WORKLOAD and lifecycle):
            console.print(f"preparing {workload.name}: {workload.title}", highlight=False)
            folders[workload.name] = prepare(workload, temporary / workload.name)

    steps = []
    for round_ in range(1, options.rounds + 1):
        order = options.peers if round_ % 2 else options.peers[::-1]
        for name, prepared in folders.items():
            seconds = options.seconds * prepared.workload.times
            for peer in order:
                if peer in PEERS and not _covers(PEERS[peer], name):
                    continue
                title = f"round {round_}, {name}, {peer}"
                directory = temporary / f"{name}-{peer}-{round_}"
                if peer == BARE:
                    if prepared.workload.codecs:
                        steps.append(Step(title, partial(measure_bare_loop, prepared, round_, seconds)))
                elif name == LIFECYCLE_WORKLOAD.name:
                    rows = partial(measure_lifecycle, PEERS[peer], prepared, directory, round_, lifecycle)
                    steps.append(Step(title, rows))
                else:
                    timing = Timing(seconds, options.warm_up)
                    rows = partial(measure_load, PEERS[peer], prepared, directory, round_, timing)
                    steps.append(Step(title, rows))
    return steps


def _covers(peer: Peer, workload: str) -> bool:
    return peer.workloads is None or workload in peer.workloads


def _measure(steps: list[Step], console: Console) -> tuple[list[Row], list[str]]:
    """Run the steps; one that fails is noted, and the others go on."""
    rows: list[Row] = []
    failures: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        for step in steps:
            progress.update(task, description=step.title)
            try:
                with closing(step.rows()) as measured:  # closing stops the server at once, whatever happens here
                    for row in measured:
                        rows.append(row)
                        console.print(f"round {row.round}: {_shown(row)}", highlight=False, markup=False)
            except (StartFailed, WrongAnswer, RuntimeError, OSError, subprocess.SubprocessError) as problem:
                failures.append(f"{step.title}: {type(problem).__name__}: {problem}")
                console.print(failures[-1], highlight=False, markup=False)
            progress.advance(task)
    return rows, failures


def _shown(row: Row) -> str:
    value = "no value" if row.value is None else f"{row.value:,.4g} {row.unit}"
    latency = "" if row.p50_ms is None else f", p50 {row.p50_ms:.3g} ms, p99 {row.p99_ms:.3g} ms"
    return f"{row.measure} {row.peer}: {value}{latency}" + (f" ({row.note})" if row.note else "")


if __name__ == "__main__":
    raise SystemExit(main())
