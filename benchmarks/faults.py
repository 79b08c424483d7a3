"""Do the same harm to Mariner and to TorchServe 0.12, one after the other, and compare what comes of it.

    .venv/bin/python benchmarks/faults.py                       everything, in 5 minutes; updates the page and the JSON
    .venv/bin/python benchmarks/faults.py --only kill,poison    some faults; shows them and changes nothing

TorchServe is installed on first use. A server is started once and suffers all faults, each on a model of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from environments import make_environment
from fault_measures import FAULTS, Fault, Finding
from fault_server import BINS, running, version
from report import describe_machine
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scenarios import MARINER, TORCHSERVE

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "explanation" / "dependability.md"
RESULTS = HERE / "faults.json"
BEGIN, END = "<!-- faults: written by benchmarks/faults.py -->", "<!-- faults: end -->"
TITLES = {MARINER: "Mariner", TORCHSERVE: "TorchServe 0.12"}
FAULT_SECONDS = 90.0  # after which a fault is given up
LOG_WIDTH = 160  # columns of a table that goes to a file or a pipe

Findings = dict[str, dict[str, Finding]]
"""By fault, then by server."""


def main() -> int:
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if TORCHSERVE in options.peers:
        make_environment(TORCHSERVE, console)
    facts = describe_machine() | {peer: version(peer) for peer in options.peers}
    faults = [fault for fault in FAULTS if fault.name in options.only]
    findings: Findings = {fault.name: {} for fault in faults}
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary, _progress(console) as progress:
        task = progress.add_task("", total=len(faults) * len(options.peers))
        for peer in options.peers:
            for fault, finding in _suffer(peer, Path(temporary) / peer, faults, lambda: progress.advance(task)):
                progress.update(task, description=f"{peer}: {fault.name}")
                findings[fault.name][peer] = finding
                console.print(f"{peer}, {fault.name}: {finding.figure}", highlight=False, markup=False)
    console.print(_table(faults, options.peers, findings))
    if options.write:
        _write(findings, facts)
        console.print(f"written: {PAGE} and {RESULTS}")
    return 0


def _options() -> argparse.Namespace:
    def names(known: list[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is not one of {', '.join(known)}")
            return [name for name in known if name in text.split(",")]

        return parse

    everything = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(description="Do the same harm to Mariner and to TorchServe and compare.")
    parser.add_argument("--only", type=names(everything), help=f"some of {','.join(everything)}")
    parser.add_argument("--peers", type=names(list(BINS)), help=f"some of {','.join(BINS)}")
    options = parser.parse_args()
    options.write = not (options.only or options.peers)
    options.only = options.only or everything
    options.peers = options.peers or list(BINS)
    return options


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _suffer(
    peer: str, folder: Path, faults: list[Fault], advance: Callable[[], object]
) -> Iterator[tuple[Fault, Finding]]:
    """All faults on one server, one after the other; one that cannot be measured says why."""
    with running(peer, folder) as server, asyncio.Runner() as runner:
        runner.run(server.wait_until_up())
        for fault in faults:
            try:
                finding = runner.run(asyncio.wait_for(fault.measure(server), FAULT_SECONDS))
            except TimeoutError:
                finding = Finding(f"not over after {FAULT_SECONDS:g} s", {})
            except (RuntimeError, OSError, ValueError, LookupError) as problem:
                finding = Finding(f"not measured: {type(problem).__name__}: {problem}".partition("\n")[0], {})
            advance()
            yield fault, finding


def _table(faults: list[Fault], peers: list[str], findings: Findings) -> Table:
    table = Table(show_lines=True)
    for heading in ("fault", *(TITLES[peer] for peer in peers)):
        table.add_column(heading)
    for fault in faults:
        table.add_row(f"{fault.title}: {fault.done}", *(findings[fault.name][peer].figure for peer in peers))
    return table


def _write(findings: Findings, facts: Mapping[str, str]) -> None:
    """Puts all numbers into a file, and the figures between the marks on the page."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    rows = {name: {peer: asdict(finding) for peer, finding in found.items()} for name, found in findings.items()}
    document = {"when": when, "command": "python benchmarks/faults.py", "facts": dict(facts), "faults": rows}
    RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{section(document)}\n\n{END}{rest.partition(END)[2]}")


def section(document: Mapping[str, Any]) -> str:
    """What the page says of the results in ``faults.json``."""
    facts, rows = document["facts"], document["faults"]
    versions = f"Mariner {facts[MARINER]} and TorchServe {facts[TORCHSERVE]}"
    lines = [f"Measured on {document['when'][:10]}, {facts['processor']}: {versions}.", ""]
    lines += [f"| fault | {TITLES[MARINER]} | {TITLES[TORCHSERVE]} | flag |", "|---|---|---|---|"]
    for fault in FAULTS:
        figures = (rows[fault.name][peer]["figure"].replace("|", "\\|") for peer in (MARINER, TORCHSERVE))
        lines.append(f"| {fault.title}: {fault.done} | {' | '.join(figures)} | `--only {fault.name}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
